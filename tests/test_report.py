"""The page that pdqn report writes: everything in itself, harmless, and readable in a browser."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_ls import ended, made
from test_plots import PNG

from launcher.about import ORIGIN, About
from launcher.studies.report import write_report
from pdqn.errors import UsageError

EVALUATION = {
    "return_mean": 487.25, "return_error": 3.5, "episodes": 32, "metrics": {}, "errors": {},
    "baselines": {"random": 21.5}, "differences": {"random": [465.75, 3.6]},
}  # fmt: skip
BAD = "</pre></title><script>alert(1)</script>\x1b[2J"


class Page(html.parser.HTMLParser):
    """The tags, links and texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.ids = Counter[str](), Counter[str]()
        self.links: list[str] = []
        self.used: set[str] = set()
        self.words: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
            self.used |= set(re.findall(r"url\(#([^)]+)\)", value or ""))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def run_of(path: Path, **summary: Any) -> Path:
    words = About("three steps", ("paper",), ("the step size was too large",))
    run = made(path, words=words, started=1e9, actor__n_step=5, run__seed=4)
    origin = {
        "clock": 1e9, "pdqn": "0.2", "commit": "c0ffee" * 7, "command": ["pdqn", "launch", "--x"],
        "machine": {"hostname": "desk", "cores": 2, "ram_total_bytes": 8_000_000_000, "gpus": []},
    }  # fmt: skip
    (run / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")
    lines = [
        {"environment_steps": step, "time_seconds": step / 10, "rollout/ep_rew_mean": step / 20,
         "train/loss": 1.0 / step, "time/fps": 900.0, "actor/episodes_per_second": 9.0}
        for step in range(100, 2000, 100)
    ]  # fmt: skip
    lines.insert(9, {"environment_steps": 1000, "time_seconds": 100, "eval/return_mean": 400.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = [{"time_seconds": 1.5, "event": "joined", "role": "actor", "index": 0}]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    (run / "strategy.png").write_bytes(PNG)
    ended(run, **{"eval": EVALUATION, "mode": "parallel", **summary})
    return run


def test_a_page_has_all_about_a_run(tmp_path: Path):
    run, path = run_of(tmp_path / "run"), tmp_path / "page.html"
    write_report([run], path)
    page = Page(path)
    for words in (
        "three steps", "paper", "the step size was too large", "CartPole-v1, seed 4", "done",
        "487.2 ± 3.5", "random 21.5", "+465.8 ± 3.6", "32 held-out episodes", "actor.n_step 5",
        "pdqn launch --x", "desk", "8.00 GB", "c0ffee", "joined", "role actor, index 0",
        "return in training and evaluation", "strategy",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.tags["svg"] == 1
    assert page.tags["img"] == 1


def test_it_needs_no_network_and_runs_nothing(tmp_path: Path):
    runs, path = [run_of(tmp_path / name) for name in "ab"], tmp_path / "page.html"
    write_report(runs, path, "two runs")
    page = Page(path)
    assert page.tags["script"] == 0
    assert all(link.startswith(("data:", "#")) for link in page.links), page.links
    assert "@import" not in page.source
    assert "Content-Security-Policy" in page.source
    assert page.tags["svg"] == 3, "the curves of each, and of both"


def test_parts_of_its_drawings_do_not_take_each_others_names(tmp_path: Path):
    runs, path = [run_of(tmp_path / name) for name in "ab"], tmp_path / "page.html"
    write_report(runs, path)
    page = Page(path)
    assert [name for name, times in page.ids.items() if times > 1] == []
    assert page.used | {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_what_a_run_is_called_and_says_is_text(tmp_path: Path):
    run, path = run_of(tmp_path / "run", error=BAD, warning=BAD), tmp_path / "page.html"
    words = {"name": BAD, "tags": ["x"], "notes": [BAD]}
    (run / "about.json").write_text(json.dumps(words), encoding="utf-8")
    (run / "events.jsonl").write_text(json.dumps({"event": BAD, "text": BAD}) + "\n")
    (run / ORIGIN).write_text(json.dumps({"command": ["pdqn", BAD], "machine": {"x": BAD}}))
    write_report([run], path, BAD)
    page = Page(path)
    assert page.tags["script"] == 0
    assert "\x1b" not in page.source


def test_a_film_that_is_too_large_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("launcher.studies.report._MOST_PICTURE", 100)
    run, path = run_of(tmp_path / "run"), tmp_path / "page.html"
    (run / "policy.gif").write_bytes(b"GIF89a" * 100)
    (run / "short.gif").write_bytes(b"GIF89a")
    write_report([run], path)
    assert "policy.gif has 600 B, and is left out of this page." in Page(path).text
    assert Page(path).tags["img"] == 2


def test_a_run_that_has_just_begun_or_is_damaged_has_a_page(tmp_path: Path):
    run, path = made(tmp_path / "run"), tmp_path / "page.html"
    for name in ("summary.json", "events.jsonl", ORIGIN):
        (run / name).write_text('{"eval": 3, "machine": [1], "gpus"', encoding="utf-8")
    write_report([run], path)
    assert "killed" in Page(path).text


def test_what_is_not_a_run_or_not_a_page_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a run directory"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(UsageError, match=r"ends in \.html"):
        write_report([made(tmp_path / "run")], tmp_path / "page.pdf")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_a_browser_shows_it_without_a_complaint(tmp_path: Path):
    runs, path = [run_of(tmp_path / name) for name in "ab"], tmp_path / "page.html"
    (runs[0] / "strategy.png").unlink()
    (runs[1] / "strategy.png").unlink()
    write_report(runs, path)
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'browser'}", f"--screenshot={picture}",
            "--window-size=1200,3600", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert ":CONSOLE" not in done.stderr, done.stderr
    assert picture.read_bytes().startswith(PNG)
