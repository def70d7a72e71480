"""The list of runs that pdqn ls prints, and the words that a person gives a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import about
from launcher.about import ABOUT, ORIGIN, About, commit_of, origin, read_about
from launcher.cli.main import main
from launcher.rundir import RunDirectory
from launcher.studies.listing import runs_below
from pdqn.errors import UsageError
from pdqn.layers import build

Ls = Callable[..., str]


def made(path: Path, *, words: About | None = None, started: float = 0.0, **settings: Any) -> Path:
    """Write the directory of a run that a kill has ended."""
    sections: dict[str, dict[str, Any]] = {"run": {"env": "CartPole-v1"}}
    for name, value in settings.items():
        section, _, key = name.partition("__")
        sections.setdefault(section, {})[key] = value
    config = build(("test", sections))
    others = {ORIGIN: json.dumps({"clock": started})}
    if words is not None:
        others[ABOUT] = words.text
    directory = RunDirectory(path)
    directory.write_config(config, config, others)
    directory.metrics({"environment_steps": 7})
    directory.close()
    return path


def ended(path: Path, **summary: Any) -> None:
    found = {"exit_reason": "time", "wall_seconds": 61.0, "environment_steps": 12_300, **summary}
    (path / "summary.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture
def ls(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ls:
    """Provide the command, which returns what it prints."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["pdqn", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert end.value.code == 0, captured.err
        return captured.out

    return run


def test_runs_are_listed_with_what_they_are_and_how_far_they_came(tmp_path: Path, ls: Ls):
    first = made(tmp_path / "b", started=1.0, run__seed=1, words=About("plain", ("paper",)))
    evaluation = {"return_mean": 487.25, "return_error": 3.5, "metrics": {}, "errors": {}}
    ended(first, eval=evaluation)
    second = made(tmp_path / "sweep" / "a", started=2.0, run__seed=2, learner__batch_size=96)
    ended(second, exit_reason="interrupted", environment={"return_mean": 21.0})
    made(tmp_path / "c", started=3.0, learner__batch_size=96, actor__n_step=5)
    failed = made(tmp_path / "d", started=4.0)
    ended(failed, error="no actor can be kept alive", exit_reason="failed")
    head, *lines = ls("ls", tmp_path).splitlines()
    columns = ["run", "name", "env", "seed", "settings", "state", "time", "steps", "score"]
    assert head.split() == columns
    assert [line.split()[0] for line in lines] == [
        str(tmp_path / p) for p in ("b", "sweep/a", "c", "d")
    ]
    assert "plain #paper" in lines[0]
    assert lines[0].endswith("done         1:01  12.3k  487 ± 3.5")
    assert "learner.batch_size=96" in lines[1]
    assert "interrupted" in lines[1]
    assert lines[1].endswith("21.0")
    assert "actor.n_step=5, learner.batch_size=96" in lines[2]
    assert "killed" in lines[2]
    assert "failed" in lines[3]


def test_settings_that_are_the_same_for_all_are_not_repeated(tmp_path: Path):
    for name in ("a", "b"):
        made(tmp_path / name, learner__batch_size=96)
    assert [run.differs for run in runs_below(tmp_path)] == [{}, {}]


def test_a_run_that_lives_is_told_from_one_that_was_killed(tmp_path: Path):
    made(tmp_path / "run")
    (killed,) = runs_below(tmp_path)
    directory = RunDirectory(tmp_path / "run", resumed_at=0.0)
    snapshot = {"elapsed_seconds": 30.0, "progress": 0.25, "figures": {"environment_steps": 99}}
    (tmp_path / "run" / "snapshot.json").write_text(json.dumps({"snapshot": snapshot}))
    (lives,) = runs_below(tmp_path)
    directory.close()
    assert (killed.state, lives.state) == ("killed", "lives")
    assert (lives.seconds, lives.environment_steps, lives.progress) == (30.0, 99, 0.25)


def test_runs_are_found_by_tag_and_environment(tmp_path: Path, ls: Ls):
    made(tmp_path / "a", words=About(tags=("x", "y")))
    made(tmp_path / "b", words=About(tags=("x",)), run__env="Acrobot-v1")

    def found(*options: str) -> list[str]:
        return [
            Path(run["path"]).name for run in json.loads(ls("ls", tmp_path, *options, "--json"))
        ]

    assert sorted(found("--tag", "x")) == ["a", "b"]
    assert found("--tag", "x", "--tag", "y") == ["a"]
    assert found("--env", "Acrobot-v1") == ["b"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"eval": [1]}', '{"environment": 7, "error": 0}'])
def test_damaged_files_of_a_run_hide_no_other_run(tmp_path: Path, text: str):
    made(tmp_path / "good")
    bad = made(tmp_path / "bad")
    for name in ("summary.json", "snapshot.json", ABOUT):
        (bad / name).write_text(text, encoding="utf-8")
    (made(tmp_path / "worse") / "configured.toml").write_text("not = = toml", encoding="utf-8")
    assert {Path(run.path).name for run in runs_below(tmp_path)} == {"good", "bad"}


def test_a_terminal_obeys_nothing_that_a_run_is_called(tmp_path: Path, ls: Ls):
    run = made(tmp_path / "a")
    (run / ABOUT).write_text(json.dumps({"name": "\x1b]0;owned\x07", "tags": [], "notes": []}))
    ended(run, eval={"return_mean": 1.0, "metrics": {"\x1b[2J": 1.0}})
    assert "\x1b" not in ls("ls", tmp_path)


def test_words_are_added_to_a_run_at_any_time(tmp_path: Path, ls: Ls):
    run = made(tmp_path / "a", words=About("first", ("x",)))
    ls("note", run, "the step size was too large", "--tag", "y", "--tag", "x")
    shown = ls("note", run, "--name", "second")
    assert shown.splitlines() == [
        "name   second", "tags   x y", "note   the step size was too large",
    ]  # fmt: skip
    assert read_about(run) == About("second", ("x", "y"), ("the step size was too large",))


@pytest.mark.parametrize("tag", ["two words", "", "a,b", "x" * 51])
def test_a_tag_is_one_word(tag: str):
    with pytest.raises(UsageError, match=r"--tag .*one word"):
        About(tags=(tag,))


def test_a_run_knows_its_commit_machine_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commit = "0123456789abcdef0123456789abcdef01234567"
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{commit} refs/heads/main\n")
    (tmp_path / "below").mkdir()
    assert commit_of(tmp_path / "below") == commit
    newer = commit[::-1]
    (git / "refs" / "heads" / "main").write_text(f"{newer}\n")
    assert commit_of(tmp_path) == newer
    (git / "HEAD").write_text(f"{commit}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pdqn", "launch", "--env", "CartPole-v1"])
    monkeypatch.setattr(about, "commit_of", commit_of)
    written = json.loads(origin({"cores": 2}))
    assert written["own_commit"] == commit
    assert written["command"][1:] == ["launch", "--env", "CartPole-v1"]
    assert written["machine"] == {"cores": 2}
    (git / "HEAD").write_text("something else\n")
    assert commit_of(tmp_path) == ""
