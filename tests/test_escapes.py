"""Terminal escapes of a member, a head, a file or an environment: none reaches the terminal."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console as Terminal
from rich.table import Table
from test_console import SUMMARY, Clock, FakeTerminal, snapshot
from test_coordinator import Hub, request
from test_plots import evaluation_line, training_line, write
from test_single import config_of, session_of
from test_views import Supervisor

import launcher.terminal
from launcher.cli.main import main
from launcher.console.console import Console, make_console
from launcher.console.dashboard import render
from launcher.console.views import MemberViews
from launcher.console.watch import watch
from launcher.evaluation.evaluate import table
from launcher.interrupts import Interrupts
from launcher.metrics.roster import MemberView, Roster
from launcher.metrics.snapshot import TO_CONSOLE, EvaluationView, Seen, Snapshot
from launcher.results.compare import draw_comparison
from launcher.results.training import plot_training, read_metrics
from launcher.run.ends import Ends
from pdqn import messages, wire
from pdqn.errors import UsageError
from pdqn.model import Model, load_model
from pdqn.process import PrintableFormatter
from pdqn.specs import EnvironmentSpec, FieldSpec

# A title, a request for the cursor's position, hidden text, a link, and a reversal. Then come a
# faked line of the console and rich's own markup.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[6n\x1b[31;5;8mevil\x9b31m\x1b]8;;http://x\x1b\\\u202e\u2028\r\n"
    "[0:07]  done[red]r[/red][link=http://x]l[/link]:smile:\x7f\x00"
)
WIDE = "主" * 80
TEXTS = {
    "escapes": HOSTILE, "wide": WIDE, "piled": "e" + "\u0301" * 79, "long": "x" * 4000,
    "joiners": "\u200d" * 80, "pictures": "🙂" * 40,
}  # fmt: skip
Eventually = Callable[..., Any]


@pytest.fixture
def hub(eventually: Eventually) -> Iterator[Hub]:
    hub = Hub(eventually)
    yield hub
    hub.close()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    return FakeTerminal()


OWN = re.compile(r"\x1b\[(?:[0-9;]*m|\?1049[hl]|\?25[hl]|H|2J)")  # rich's styles and its screen


def assert_harmless(text: str, *, styled: bool = False) -> None:
    """Check that a terminal obeys nothing in a text but line ends, and rich's own sequences."""
    if styled:
        assert "\x1b[31;5;8m" not in text, "this colour is not one of the console's own"
        text = OWN.sub("", text)
    left = {character for character in text if not character.isprintable()} - {"\n"}
    assert not left, ascii(text)


def consoles(stream: FakeTerminal, keep: dict[str, io.StringIO]) -> Iterator[tuple[str, Console]]:
    for kind in ("rich", "plain", "json"):
        keep[kind] = stream if kind == "rich" else io.StringIO()
        yield kind, make_console(kind, keep[kind], clock=Clock())


def hostile_view(text: str = HOSTILE, **changes: Any) -> Snapshot:
    """Make a snapshot in which every text that can be anything is this one."""
    names = (f"{text}1", f"{text}2")
    evaluation = EvaluationView(5000, 32, 0.4, 0.1, {text: 0.3}, dict.fromkeys(names, 0.2))
    members = tuple(
        MemberView(role, index, text, 7, "alive", text)
        for index, role in enumerate(("host", "host", "actor", "learner", "replay", "evaluator"))
    )
    return snapshot(
        figures={f"rollout/{text}": 0.5}, run_dir=text, env=text, mode=text, waiting_for=text,
        replay_waits=text, bottleneck=text, headline=text, first_error=text, insecure=True,
        evaluation=evaluation, members=members, rejected={text: 3}, **changes,
    )  # fmt: skip


# ---- the live consoles ----


@pytest.mark.parametrize("stage", ["running", HOSTILE])
def test_no_console_passes_on_what_a_snapshot_or_a_message_holds(stream: FakeTerminal, stage: str):
    kept: dict[str, io.StringIO] = {}
    summary = {**SUMMARY, "exit_reason": HOSTILE, "run_dir": HOSTILE, "restarts": {HOSTILE: 1}}
    for _, console in consoles(stream, kept):
        console.start()
        console.update(hostile_view(stage=stage))
        console.message(HOSTILE)
        console.update(hostile_view(stage=stage))
        console.finish(summary, HOSTILE)
    for kind, output in kept.items():
        text = output.getvalue()
        assert "owned" in text, "it is shown, and harmless"
        assert_harmless(text, styled=kind == "rich")
        assert "[red]r[/red][link=http://x]l[/link]:smile:" in text.replace("\n", ""), kind


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_text_breaks_the_layout(text: str, width: int):
    terminal = Terminal(
        file=io.StringIO(), width=width, height=90, color_system=None, force_terminal=True,
        legacy_windows=False,
    )  # fmt: skip
    events = [(float(second), text) for second in range(60)]
    with terminal.capture() as capture:
        view = Snapshot.from_map(hostile_view(text).to_map())
        terminal.print(render(view, width, 90, events))
    lines = capture.get().splitlines()
    assert len(lines) <= 90
    assert "╭ loss" in capture.get(), "the charts are there, with a title from elsewhere"
    for line in lines:
        assert cells(line) <= width, line
        if line.startswith(("│", "╭", "╰")):
            assert cells(line) == width, line
            assert width == 40 or line.count("╭") == line.count("╮"), line
            assert line[-1] in ("│╮╯…" if width == 40 else "│╮╯"), line


def cells(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)


# ---- a real coordinator, and a member that lies ----


def test_a_member_with_escapes_in_every_field_shows_nothing_but_text(
    hub: Hub, stream: FakeTerminal, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    supervisor: Any = Supervisor()
    session = session_of(config_of({"env": "CartPole-v1"}), tmp_path, make_console("rich", stream))
    views = MemberViews(hub.coordinator, supervisor, hub.metrics, 4.0)
    ends = Ends(session, hub.coordinator, supervisor)
    evil, named = hub.stranger(), hub.stranger()
    session.console.start()

    def send(kind: str, **content: Any) -> None:
        """Send what no honest member would make."""
        evil.send(wire.encode_control(kind, content))

    def show() -> None:
        while hub.coordinator.events:
            ends.take(hub.coordinator.events.popleft())
        session._next_console = 0.0
        session.show(views.recent)

    named.send(wire.encode_control("join", request(host=HOSTILE[:80])))
    hub.until(lambda: hub.coordinator.rejected["join"] == 1)
    named.send(wire.encode_control("join", {**request(), HOSTILE: 1}))
    hub.until(lambda: hub.coordinator.rejected["join"] == 2)
    send("join", **request(role="evaluator", host=WIDE))
    hub.until(lambda: hub.coordinator.membership.count("evaluator") == 1)
    notes = [["checkpoint", HOSTILE], ["evaluation", HOSTILE], ["seeds", HOSTILE]]
    report = {"activity": HOSTILE[:80], "notes": notes}
    send("report", **report)
    hub.until(lambda: next(hub.coordinator.membership.members("evaluator")).reported)
    show()
    send("report", counters={HOSTILE[:80]: 1})
    hub.until(lambda: hub.coordinator.rejected["report"] == 1)
    send("leave", report={}, reason=HOSTILE, trace="Traceback:\n  " + HOSTILE)
    hub.until(lambda: hub.coordinator.membership.count("evaluator") == 0)
    send("join", **request(role=HOSTILE[6:40]))
    hub.until(lambda: hub.coordinator.rejected["join"] == 3)
    show()
    session.fail(HOSTILE)
    session.conclude("failed", Roster.of(()))
    text = stream.getvalue()
    assert r"evaluator 0: \x1b]0;owned" in text
    assert_harmless(text, styled=True)
    assert_harmless((tmp_path / "events.jsonl").read_text("utf-8"))
    for record in caplog.records:
        assert_harmless(PrintableFormatter("%(message)s").format(record))


# ---- a run seen from elsewhere ----


def with_hostile_texts(value: Any) -> Any:
    """Put the text into every text of plain data, but not into states and names of fields."""
    if isinstance(value, dict):
        return {key: with_hostile_texts(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_hostile_texts(inner) for inner in value]
    return HOSTILE if isinstance(value, str) and value not in ("alive", "late") else value


@pytest.mark.parametrize("kind", ["plain", "json"])
def test_a_foreign_run_directory_shows_nothing_but_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: Any
):
    content = with_hostile_texts(json.loads(json.dumps(hostile_view().to_map())))
    content["stage"] = "done"
    messages_ = [[1.5, HOSTILE]]
    seen = {"snapshot": content, "said": 1, "messages": messages_}
    (tmp_path / "config.toml").touch()
    (tmp_path / "snapshot.json").write_text(json.dumps(seen), "utf-8")
    (tmp_path / "summary.json").write_text(json.dumps(with_hostile_texts(SUMMARY)), "utf-8")
    assert watch(str(tmp_path), kind, Interrupts()) == 0
    text = capsys.readouterr().out
    assert "owned" in text
    assert_harmless(text)


def test_a_foreign_head_hands_a_watcher_nothing_but_text(stream: FakeTerminal):
    content = with_hostile_texts(json.loads(json.dumps(hostile_view().to_map())))
    data = wire.encode_control(
        "seen", {"snapshot": content, "said": 1, "messages": [[1.5, HOSTILE]]}
    )
    seen = messages.decode(data, TO_CONSOLE)
    assert isinstance(seen, Seen)
    assert seen.snapshot is not None
    assert_harmless("".join(text for _, text in seen.messages))
    assert_harmless(seen.snapshot.env + seen.snapshot.members[0].host)
    console = make_console("rich", stream, clock=Clock())
    console.start()
    console.update(seen.snapshot)
    console.stop()
    assert_harmless(stream.getvalue(), styled=True)


def test_a_summary_that_is_not_one_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    seen = {"snapshot": snapshot(stage="done").to_map(), "said": 0, "messages": []}
    (tmp_path / "config.toml").touch()
    (tmp_path / "snapshot.json").write_text(json.dumps(seen), "utf-8")
    (tmp_path / "summary.json").write_text(json.dumps({"wall_seconds": HOSTILE}), "utf-8")
    monkeypatch.setattr("sys.argv", ["pdqn", "watch", str(tmp_path), "--console", "plain"])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().err
    assert shown.startswith("pdqn: summary.json cannot be read (")
    assert len(shown.splitlines()) == 1


# ---- files and tables ----


def printed(renderable: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.StringIO()
    own = launcher.terminal.terminal
    monkeypatch.setattr(
        launcher.terminal, "terminal", lambda: own(file=stream, force_terminal=True, width=100)
    )
    launcher.terminal.show(renderable)
    return stream.getvalue()


def test_a_table_of_a_foreign_model_is_text_and_markup_is_not_obeyed(
    monkeypatch: pytest.MonkeyPatch,
):
    spec = EnvironmentSpec(HOSTILE, (FieldSpec("o", (1,), "float32"),), 2, HOSTILE)
    model: Any = Model(None, spec, {}, 7)  # pyright: ignore[reportArgumentType]
    figures: dict[str, Any] = {
        "episodes": 3, "dropped": 0, "cut": 0, "unscored": 0, "parameter_version": 7,
        "return_mean": 1.0,
        "return_error": 0.1, "metrics": {HOSTILE: 1.0}, "errors": {HOSTILE: 0.1},
        "baselines": {HOSTILE: 0.5}, "baseline_errors": {HOSTILE: 0.1},
        "differences": {HOSTILE: (0.5, 0.1)},
        "info": {HOSTILE: {"mean": 1.0, "error": 0.1, "episodes": 3}},
    }  # fmt: skip
    text = printed(table(model, figures), monkeypatch)
    assert "[red]" in text.replace("\n", "")
    assert_harmless(text, styled=True)


def test_a_table_shows_brackets_and_colons_as_they_are(monkeypatch: pytest.MonkeyPatch):
    drawn = Table(title="[link=http://x]a[/link]")
    drawn.add_column("[red]b[/red]")
    drawn.add_row("[blink]:smile:[/blink]")
    text = printed(drawn, monkeypatch)
    for part in ("[link=http://x]a[/link]", "[red]b[/red]", "[blink]:smile:[/blink]"):
        assert part in text
    assert "http://x\x1b" not in text


def test_a_model_file_whose_names_hold_escapes_is_refused(tmp_path: Path):
    path = tmp_path / "model.pth"
    field = FieldSpec("o", (1,), "float32")
    fields = [dataclasses.asdict(field)]
    for spec in (
        {"id": HOSTILE, "fields": fields, "num_actions": 2},
        {"id": "x", "fields": fields, "num_actions": 2, "headline_metric": HOSTILE},
        {"id": "x", "fields": fields, "num_actions": 2, "headline_metric": [7]},
        {"id": "x", "fields": [{**fields[0], "name": HOSTILE}], "num_actions": 2},
    ):
        torch.save({"format": 3, "spec": spec, "network": {}, "parameters": {}}, path)
        with pytest.raises(UsageError, match="is not a name of printable characters") as refused:
            load_model(path)
        assert_harmless(str(refused.value))


def test_whatever_else_is_wrong_with_a_model_file_its_refusal_is_text(tmp_path: Path):
    path = tmp_path / "model.pth"
    spec = EnvironmentSpec("x", (FieldSpec("o", (1,), "float32"),), 2).to_map()
    for content in (
        {"format": HOSTILE},
        {"format": 3, "spec": spec, "network": {HOSTILE: 1}, "parameters": {}},
        {"format": 3, "spec": spec, "network": {"kind": HOSTILE}, "parameters": {}},
        {"format": 3, "spec": spec, "network": {"kind": HOSTILE + ":x"}, "parameters": {}},
        {"format": 3, "spec": spec, "network": {}, "parameters": {HOSTILE: torch.zeros(1)}},
    ):
        torch.save(content, path)
        with pytest.raises(UsageError) as refused:
            load_model(path)
        assert_harmless(str(refused.value))


FORMULA = r"$\frac{x$ \owned" + HOSTILE + "n" * 5000


def test_pictures_of_a_foreign_run_draw_its_names_as_text(tmp_path: Path):
    lines = [training_line(1000), training_line(2000)]
    evaluation = evaluation_line(2000) | {f"eval/baseline/{FORMULA}": 0.3, f"eval/{FORMULA}": 0.4}
    write(tmp_path, *lines, evaluation)
    state = {"metrics": {"distribution": [1.0, 2.0], "headline": FORMULA}}
    (tmp_path / "state.json").write_text(json.dumps(state), "utf-8")
    summary = {"environment": {"id": FORMULA}, "seed": 3}
    (tmp_path / "summary.json").write_text(json.dumps(summary), "utf-8")
    (tmp_path / "configured.toml").write_text(f"[run]\nenv = {json.dumps(FORMULA)}\n", "utf-8")
    other = tmp_path / "$x$ \x1b[2J"
    other.mkdir()
    for name in ("metrics.jsonl", "state.json", "summary.json"):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    for directory in (tmp_path, other):
        (directory / "config.toml").touch()
    (other / "configured.toml").touch()
    metrics = read_metrics(tmp_path)
    for text in (metrics.score[0], *metrics.baselines):
        assert_harmless(text)
        assert len(text) <= 70
        assert "$" not in text.replace(r"\$", "")
    assert plot_training(tmp_path).stat().st_size > 10_000
    assert plot_training(other).stat().st_size > 10_000
    assert draw_comparison([tmp_path, other], tmp_path / "compared.png")


# ---- what commands say ----


def calls_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node)


def test_everything_that_is_printed_goes_through_one_door():
    allowed = "click.echo(script.replace(plain,"
    found = [
        f"{path.name}: {call}"
        for name in ("pdqn", "actors", "replay", "learner", "launcher")
        for path in (Path(__file__).parents[1] / name).rglob("*.py")
        if path.name not in ("terminal.py", "role_process.py")
        for call in calls_of(path)
        if re.match(
            r"(click\.s?echo|(rich\.console\.)?Console|print|sys\.std(out|err)\.write)\(", call
        )
        and not call.startswith(allowed)
    ]
    assert found == [], "the shell's completion is the exception"


@pytest.mark.parametrize(
    "arguments",
    [["plot"], ["watch"], ["eval"], [], ["launch", "--env"], ["launch", "--set"]],
    ids=" ".join,
)
def test_an_error_names_its_argument_without_obeying_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", ["pdqn", *arguments, "\x1b[2J\x9b31m\u202ex"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code != 0
    shown = capsys.readouterr().err
    assert r"\x1b" in shown
    assert_harmless(shown)


def test_a_fault_of_this_program_is_shown_with_its_traceback_and_without_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fault(**_: Any) -> None:
        raise LookupError(HOSTILE)

    monkeypatch.setattr("launcher.cli.main.cli.main", fault)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert r"LookupError: \x1b]0;owned" in shown
    assert_harmless(shown)


def test_a_log_holds_no_escapes():
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("a member said %s", HOSTILE)
    assert r"a member said \x1b]0;owned" in lines.getvalue()
    assert_harmless(lines.getvalue())
