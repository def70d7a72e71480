"""The live console's picture of a run: a pure function from a snapshot to lines of text.

The picture is made of blocks, each a list of lines that are exactly as wide as the terminal.
Blocks have ranks. A low terminal lacks the least important ones; on a high one, charts and events
take the lines that are left. Nothing here knows of terminals, clocks or streams.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Group
from rich.text import Text

from launcher.metrics.reached import beside_nearest, evaluation_score
from launcher.metrics.roster import MemberGroup, MemberView, merged, states_of
from launcher.metrics.snapshot import Snapshot
from launcher.metrics.waiting import limiting_stage
from launcher.numbers import duration, number, percent, plural, size, uncertainty
from pdqn.gap import closed_text

Lines = list[Text]
Health = Literal["healthy", "degraded", "failing"]

# Plain ANSI colours, which follow the terminal's own theme, light or dark; and no bright black,
# which some themes make the colour of the background.
FRAME = "dim"
LABEL = "dim"
FIGURE = "bold"
SPARK = "cyan"
LIMITS = "yellow"
HEALTH_STYLES: dict[Health, str] = {
    "healthy": "bold green",
    "degraded": "bold yellow",
    "failing": "bold red",
}
STATE_STYLES = {  # from the best state to the worst
    "alive": "green",
    "stopped": "dim",
    "starting": "cyan",
    "late": "yellow",
    "restarting": "magenta",
    "dead": "bold red",
}

_UNUSUAL = tuple(STATE_STYLES)[1:]
_WIDE = 160  # columns from which a row has four panels instead of two
_LOW = 24  # the height that everything but charts must fit into
_HOST_WIDTH, _HOST_WIDTH_MIN = 12, 8  # columns for a host's name
_CHART_MIN = 7  # lines of a chart with its frame
_BLOCKS = " ▁▂▃▄▅▆▇█"
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of a cell
_ROUNDING = 1e-9  # relative differences up to this are not differences


def render(
    snapshot: Snapshot,
    width: int,
    height: int,
    messages: Sequence[tuple[float, str]] | None = (),
    keys: Mapping[str, str] = MappingProxyType({}),
) -> Group:
    """Draw the run at one moment.

    Args:
        snapshot: what to draw.
        width: columns; no line is longer.
        height: lines, at most.
        messages: events as (elapsed seconds, text), oldest first; the newest that fit are shown.
            None if they are shown elsewhere and need no place here.
        keys: what each key does; explained in place of the panels.
    """
    rows = [_key_help(keys, width)] if keys else _panel_rows(snapshot, width, height)
    ranked = [
        (0, _header(snapshot, width)),
        (4, _pipeline(snapshot, width)),
        (2, _bottleneck(snapshot, width)),
        *((3 + 2 * index, row) for index, row in enumerate(rows)),
        (1, _problems(snapshot, width)),
    ]
    kept = _fitting(ranked, height)
    spare = height - sum(map(len, kept))
    chart_height = spare - spare // 3
    if chart_height >= _CHART_MIN and len(kept) == len(ranked):
        # Below the sentence about the bottleneck, above the panels.
        kept.insert(3, _charts(snapshot, width, chart_height))
        spare -= chart_height
    if messages is not None:
        kept.append(_events(messages, width, spare))
    lines = [line for block in kept for line in block][:height]
    # Frames have a minimum width: on a narrower terminal, the right side is cut off.
    return Group(*[_fixed(line, width) if line.cell_len > width else line for line in lines])


def health(snapshot: Snapshot) -> tuple[Health, str]:
    """Judge whether the run is well, and say in a few words why not."""
    states = states_of(snapshot.groups)
    if states["dead"]:
        return "failing", f"{states['dead']} dead"
    if snapshot.first_error:
        return "failing", "errors"
    awaited = snapshot.waiting_for.partition(" (")[0] if snapshot.stage == "running" else ""
    troubles = [f"waits for {awaited}"] if awaited else []
    troubles += [f"{states[state]} {state}" for state in ("late", "restarting") if states[state]]
    if snapshot.value("system/transitions_lost"):
        troubles.append(f"{snapshot.text('system/transitions_lost')} lost")
    if rejected := sum(snapshot.rejected.values()):
        troubles.append(f"{number(rejected)} rejected")
    # The rest is shown further down: this must fit beside the name of the run.
    return ("degraded", ", ".join(troubles[:2])) if troubles else ("healthy", "healthy")


def sparkline(values: Sequence[float | None], width: int, low: float = math.inf) -> str:
    """Draw values as blocks of eight heights, averaged down to ``width`` characters.

    Args:
        values: oldest first; ``None`` and values that are not finite are gaps.
        width: characters, at most.
        low: the value of the lowest block, if no value is lower.
    """
    points = _resampled(values, width)
    finite = [value for value in points if value is not None]
    if not finite:
        return ""
    low, high = min(low, *finite), max(finite)
    return "".join(
        " " if value is None else _BLOCKS[1 + int(7.99 * _position(value, low, high))]
        for value in points
    )


def chart(
    values: Sequence[float | None], width: int, height: int, marks: Mapping[str, float]
) -> Lines:
    """Draw a line chart of braille dots, with the range at its left and named levels across it.

    Args:
        values: oldest first; ``None`` and values that are not finite are gaps.
        width: columns, with the range.
        height: lines.
        marks: levels drawn as dotted lines with their names, such as baselines.
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return [Text("no data yet", LABEL)]
    shown = [*finite, *marks.values()]
    low, high = min(shown), max(shown)
    labels = {0: number(high), height - 1: number(low)} if high > low else {height - 1: number(low)}
    margin = max(map(len, labels.values()))
    columns = max(1, width - margin - 1)
    points = _resampled(values, 2 * columns)
    bottom = 4 * height - 1
    levels = [None if v is None else bottom * (1 - _position(v, low, high)) for v in points]
    rows = {name: (height - 1) * (1 - _position(v, low, high)) for name, v in marks.items()}
    names = {round(row): name for name, row in rows.items()}
    return [
        Text(labels.get(row, "").rjust(margin) + " ", LABEL) + _chart_row(cells, names.get(row))
        for row, cells in enumerate(_braille(levels, columns, height))
    ]


# ---- blocks, from top to bottom ----


def _header(snapshot: Snapshot, width: int) -> Lines:
    state, why = health(snapshot)
    left = Text.assemble(
        (" pdqn ", "bold reverse"),
        (" not encrypted ", "bold red reverse") if snapshot.insecure else "",
        " ",
        (snapshot.env, FIGURE),
        (f"  {snapshot.mode} · seed {snapshot.seed}", LABEL),
    )
    right = Text.assemble(
        "" if snapshot.stage == "running" else f"{snapshot.stage} ",
        (duration(snapshot.elapsed_seconds), FIGURE),
        "  ",
        (f"● {why}", HEALTH_STYLES[state]),
        " ",
    )
    return [_ends(left, right, width), _progress(snapshot, width)]


def _progress(snapshot: Snapshot, width: int) -> Text:
    episodes = plural(int(snapshot.amount("episodes")), "episode")
    totals = f"{episodes} · {snapshot.text('environment_steps')} steps "
    if snapshot.progress is None:
        return _ends(Text(" no limit, Ctrl-C ends the run", LABEL), Text(totals), width)
    left = f" {percent(snapshot.progress)}"
    if snapshot.remaining_seconds is not None:
        left += f"  {duration(snapshot.remaining_seconds)} left"
    bar_width = max(0, width - len(left) - len(totals) - 4)
    bar = Text(" ") + _bar(snapshot.progress, bar_width, "green")
    return _ends(bar.append(left, FIGURE), Text(totals), width)


def _pipeline(snapshot: Snapshot, width: int) -> Lines:
    """The way of the data as a row of boxes; the stage that limits the run stands out."""
    actors = sum(group.count for group in snapshot.groups if group.role == "actor")
    text = snapshot.text
    stages = [
        (plural(actors, "actor"), text("time/fps"), f"wait {text('actor/wait_share')}"),
        ("wire", text("replay/bytes_per_second"), _bytes_each(snapshot)),
        ("replay", f"in {text('replay/inserts_per_second')}",
         f"out {text('replay/samples_per_second')}", _blocked(snapshot)),
        ("learner", text("learner/steps_per_second"), f"waits {text('learner/wait_share')}"),
        ("parameters", f"step {text('learner_steps')}", f"lag {text('learner/policy_lag')}"),
    ]  # fmt: skip
    limiting = {"actors": 0, "replay": 2, "learner": 3, None: None}[
        limiting_stage(snapshot.figures)
    ]
    arrow = 1 if width < 100 else 4
    widths = _shares(width - arrow * (len(stages) - 1), len(stages))
    widths[0], widths[2] = widths[2], widths[0]  # replay has the most to say
    height = 2 + max(len(lines) for _, *lines in stages)
    boxes: list[Lines] = []
    for index, (title, figure, *rest) in enumerate(stages):
        style = LIMITS if index == limiting else FRAME
        lines = [Text(figure, FIGURE), *(Text(line, LABEL) for line in rest)]
        if boxes:
            boxes.append(_arrow(arrow, height))
        boxes.append(_box(title, lines, widths[index], height=height, frame=style, right=0))
    return _beside(boxes)


def _bytes_each(snapshot: Snapshot) -> str:
    """The size of a transition on the wire; empty while none arrive."""
    inserts = snapshot.amount("replay/inserts_per_second")
    each = snapshot.amount("replay/bytes_per_second") / max(inserts, 1e-9)
    return f"{size(each)} each" if inserts > 0 else ""


def _blocked(snapshot: Snapshot) -> str:
    """Name the side that replay lets wait, in at most 13 characters."""
    if not snapshot.replay_waits:
        return "nobody waits"
    inserts, samples = "replay/inserts_blocked_share", "replay/samples_blocked_share"
    if snapshot.amount(inserts) >= snapshot.amount(samples):
        return f"in waits {snapshot.text(inserts)}"
    return f"out wait {snapshot.text(samples)}"


def _arrow(width: int, height: int) -> Lines:
    head = Text("─" * (width - 1) + "▶", FRAME)
    return [head if row == 1 else Text(" " * width) for row in range(height)]


def _bottleneck(snapshot: Snapshot, width: int) -> Lines:
    if snapshot.waiting_for:
        text = Text.assemble((" ◌ waits for ", LIMITS), (snapshot.waiting_for, "bold yellow"))
    elif limiting_stage(snapshot.figures):
        text = Text.assemble((" ▲ ", LIMITS), (snapshot.bottleneck, "bold yellow"))
    else:
        text = Text.assemble((" ● ", "green"), (snapshot.bottleneck or "nobody waits", FIGURE))
    waits = Text(f"{snapshot.replay_waits} " if snapshot.replay_waits else "", LABEL)
    return [_fixed(_ends_if_fits(text, waits, width), width)]


def _problems(snapshot: Snapshot, width: int) -> Lines:
    rejected = sum(snapshot.rejected.values())
    lost = snapshot.value("system/transitions_lost")
    figures = [("restarts", snapshot.restarts), ("lost", lost), ("rejected", rejected)]
    if clipped := snapshot.value("replay/priorities_clipped"):
        figures.append(("priorities clipped", clipped))
    line = Text(" ")
    for name, value in figures:
        line.append(f"{name} ", LABEL).append(number(value), "bold yellow" if value else FIGURE)
        line.append("   ")
    if rejected:
        reasons = sorted(snapshot.rejected.items(), key=lambda item: -item[1])
        line.append(", ".join(f"{reason} {number(count)}" for reason, count in reasons), LIMITS)
    hint = Text.assemble(("?", FIGURE), (" keys ", LABEL))
    where = Text(f"{snapshot.run_dir}   ", LABEL) + hint
    fits = line.cell_len + where.cell_len < width
    lines = [_fixed(_ends_if_fits(line, where if fits else hint, width), width)]
    if snapshot.first_error:
        error = Text.assemble((" ✖ first error: ", "bold red"), (snapshot.first_error, "red"))
        lines.append(_fixed(error, width))
    return lines


def _key_help(keys: Mapping[str, str], width: int) -> Lines:
    lines = [Text.assemble((f" {key}  ", FIGURE), text) for key, text in keys.items()]
    return _box("keys", lines, width)


def _events(messages: Sequence[tuple[float, str]], width: int, height: int) -> Lines:
    """Draw the newest messages; if there is room, in a frame of constant height."""
    if height < 5:
        newest = messages[-height:] if height > 0 else ()
        return [_fixed(Text(" ") + _event(*event), width) for event in newest]
    lines = [_event(*event) for event in messages[-(height - 2) :]]
    return _box("events", lines or [Text("none yet", LABEL)], width, height=height)


def _event(elapsed_seconds: float, text: str) -> Text:
    return Text.assemble((f"{duration(elapsed_seconds):>7}  ", LABEL), " ".join(text.split()))


# ---- panels ----


def _panel_rows(snapshot: Snapshot, width: int, height: int) -> list[Lines]:
    """Draw learning, throughput, evaluation and roles: four in a row, or two and two."""
    count = 4 if width >= _WIDE else 2
    widths = _shares(width, count)
    if count == 2:
        # What the roles do takes more words than the evaluation.
        widths += [width * 9 // 20, width - width * 9 // 20]
    # Lists of unknown length share the additional lines of a higher terminal.
    limit = 4 + max(0, height - _LOW) // (2 if width >= _WIDE else 4)
    panels = [
        ("learning", "", _learning(snapshot, widths[0] - 4, limit + 2)),
        ("throughput", "", _throughput(snapshot, widths[1] - 4)),
        ("evaluation", _evaluation_note(snapshot), _evaluation(snapshot, widths[-2] - 4, limit)),
        ("roles", "cpu  memory", _roles(snapshot, widths[-1] - 4, limit)),
    ]
    return [
        _panel_row(panels[start : start + count], widths[start : start + count])
        for start in range(0, len(panels), count)
    ]


def _panel_row(panels: Sequence[tuple[str, str, Lines]], widths: Sequence[int]) -> Lines:
    """Draw panels of (title, note, lines) side by side, as high as the highest."""
    height = 2 + max(len(lines) for _, _, lines in panels)
    return _beside(
        [
            _box(title, lines, width, note=note, height=height)
            for (title, note, lines), width in zip(panels, widths, strict=True)
        ]
    )


def _learning(snapshot: Snapshot, inner: int, limit: int) -> Lines:
    rows = [
        ("return", "rollout/ep_rew_mean"),
        ("length", "rollout/ep_len_mean"),
        ("loss", "train/loss"),
        ("Q mean", "train/q_mean"),
        ("epsilon", "rollout/exploration_rate"),
    ]
    if snapshot.headline_figure:
        rows.insert(0, (str(snapshot.headline), snapshot.headline_figure))
    rows += snapshot.own_figures[: max(0, limit - len(rows))]
    return [
        _measure(label, snapshot.text(name), _history(snapshot, name), inner)
        for label, name in rows
    ]


def _throughput(snapshot: Snapshot, inner: int) -> Lines:
    rates = [
        ("episodes", "actor/episodes_per_second"),
        ("env steps", "time/fps"),
        ("learner steps", "learner/steps_per_second"),
    ]
    # Speed is drawn from zero upwards, so that a small change looks small.
    lines = [
        _measure(label, snapshot.text(name), _history(snapshot, name), inner, low=0.0)
        for label, name in rates
    ]
    target = Text(f"target {snapshot.text('replay/samples_per_insert_target')}", LABEL)
    ratio, lag = snapshot.text("replay/samples_per_insert"), "learner/policy_lag"
    lines.append(_measure("sample/insert", ratio, target, inner))
    lines.append(
        _measure("policy lag", snapshot.text(lag), _history(snapshot, lag), inner, low=0.0)
    )
    lines.append(_buffer(snapshot, inner))
    return lines


def _buffer(snapshot: Snapshot, inner: int) -> Text:
    stored, capacity = snapshot.amount("replay/size"), snapshot.amount("replay/capacity")
    amount = number(int(stored))
    if inner >= 44:
        amount += f" of {snapshot.text('replay/capacity')} "
    amount += f" {size(snapshot.amount('replay/stored_bytes'))}"
    return _measure("buffer", percent(stored / max(1, capacity)), Text(amount, LABEL), inner)


def _measure(
    label: str, figure: str, rest: Text | Sequence[float | None], inner: int, low: float = math.inf
) -> Text:
    """Draw a label, a figure, and its history or a remark."""
    line = Text.assemble((set_cell_size(label, 13), LABEL), (f"{figure:>8}", FIGURE), "  ")
    if isinstance(rest, Text):
        return line + rest
    return line.append(sparkline(rest, max(0, inner - line.cell_len), low), SPARK)


def _evaluation_note(snapshot: Snapshot) -> str:
    evaluation = snapshot.evaluation
    if evaluation is None:
        return ""
    return f"step {number(evaluation.parameter_version)}, {evaluation.episodes} ep."


def _evaluation(snapshot: Snapshot, inner: int, limit: int) -> Lines:
    """Draw the policy's score as a bar beside those of the baselines, highest first.

    Below it are the difference from the nearest one, and what to expect.
    """
    if snapshot.evaluation is None:
        return [Text(note, LABEL) for note in ("no evaluation yet", snapshot.expectation) if note]
    name, score, error = evaluation_score(snapshot.evaluation)
    rows = {"policy": score, **snapshot.evaluation.baselines}
    ranking = sorted(rows.items(), key=lambda item: -item[1])
    notes = _notes(snapshot, score, inner)
    others = [row for row in ranking if row[0] != "policy"]
    # Where there is no room for all, the bounds far above are left out.
    others = sorted(others, key=lambda row: abs(row[1] - score))[: max(0, limit - 1 - len(notes))]
    top = max(map(abs, rows.values())) or 1.0
    lines = []
    for label, value in [row for row in ranking if row[0] == "policy" or row in others]:
        mine = label == "policy"
        spread = f"±{uncertainty(error)}" if mine and error is not None else ""
        line = Text(
            f"{set_cell_size(name if mine else label, 12)} ", "bold green" if mine else LABEL
        )
        line.append(f"{number(value):>6}", FIGURE).append(f" {spread:<8}", LABEL)
        bar = _bar(max(0.0, value / top), max(0, inner - line.cell_len), "green" if mine else SPARK)
        lines.append(line + bar)
    return [*lines, *(Text(note, LABEL) for note in notes)]


def _notes(snapshot: Snapshot, score: float, inner: int) -> list[str]:
    """Phrase how far the policy is, and what to expect, in at most two lines.

    In a narrow panel, the share of the gap takes the second line once there is nothing to expect.
    """
    assert snapshot.evaluation is not None
    beside = beside_nearest(snapshot.evaluation.nearest, "±")
    closed = closed_text(score, snapshot.evaluation.baselines)
    together = ", ".join(filter(None, (beside, closed)))
    if cell_len(together) <= inner:
        return [note for note in (together, snapshot.expectation) if note]
    return [note for note in (beside, snapshot.expectation or closed) if note]


def _roles(snapshot: Snapshot, inner: int, limit: int) -> Lines:
    """Draw one line for all actors together, and one for each other role.

    Where there are several hosts, each has a line of its own instead of the actors. Where there is
    too little room for all of several replays, they share a line as well.
    """
    members, groups = snapshot.members, snapshot.groups
    others = [member for member in members if member.role not in ("actor", "host")]
    lines = _host_lines([member for member in members if member.role == "host"], groups, inner)
    actors = merged(group for group in groups if group.role == "actor")
    if actors is not None and not lines:
        lines.append(_group_line("actors", actors, inner))
    replays = merged(group for group in groups if group.role == "replay")
    if replays is not None and replays.count > 1 and len(lines) + len(others) > limit:
        lines.append(_group_line("replays", replays, inner))
        others = [member for member in others if member.role != "replay"]
    lines += [_member_line(member, others, inner) for member in others]
    if len(lines) > limit:
        hidden = len(lines) - limit + 1
        lines = [*lines[: limit - 1], Text(f"  and {hidden} more", LABEL)]
    room = limit - len(lines)
    if room > 0 and actors is not None and actors.count > 1:
        lines += _actor_strip([m for m in members if m.role == "actor"], inner, room)
    return lines or [Text("none yet", LABEL)]


def _group_line(name: str, group: MemberGroup, inner: int) -> Text:
    counts = Counter(group.states)
    worst = max(counts, key=list(STATE_STYLES).index)
    if len(counts) == 1:
        words = [f"{group.count} {worst}"]
    else:
        words = [f"{counts['alive']} of {group.count}"]
        words += [f"{counts[state]} {state}" for state in _UNUSUAL if counts[state]]
    load = (group.cpu_percent / group.count, group.memory_bytes)
    return _role_line(name, worst, ", ".join(words), load, inner)


def _host_lines(
    hosts: Iterable[MemberView], groups: Iterable[MemberGroup], inner: int
) -> list[Text]:
    there: defaultdict[str, list[MemberGroup]] = defaultdict(list)
    for group in groups:
        if group.role != "host":
            there[group.host].append(group)
    return [_host_line(host, there[host.host], inner) for host in hosts]


def _host_line(host: MemberView, groups: Sequence[MemberGroup], inner: int) -> Text:
    """Describe what a host does in the run, and how busy it is."""
    count = {group.role: group.count for group in groups}
    words = [plural(n, role) if role == "actor" else role for role, n in sorted(count.items())]
    states = states_of(groups)
    words += [f"{states[state]} {state}" for state in _UNUSUAL if states[state]]
    worst = max([host.state, *states], key=list(STATE_STYLES).index)
    load = (host.cpu_percent, host.memory_bytes)
    width = max(_HOST_WIDTH_MIN, min(_HOST_WIDTH, inner - 27))
    name = f"{set_cell_size(host.host, width)} "
    return _role_line(name, worst, ", ".join(words) or "nothing yet", load, inner)


def _member_line(member: MemberView, others: Sequence[MemberView], inner: int) -> Text:
    alone = sum(other.role == member.role for other in others) == 1
    name = member.role if alone else f"{member.role} {member.index}"
    doing = member.activity if member.state == "alive" else member.state
    return _role_line(name, member.state, doing, (member.cpu_percent, member.memory_bytes), inner)


def _role_line(name: str, state: str, doing: str, load: tuple[float, int], inner: int) -> Text:
    figures = Text.assemble((f"{load[0]:4.0f}%", FIGURE), (f" {size(load[1]):>7}", LABEL))
    line = Text.assemble(
        ("● ", STATE_STYLES[state]), (set_cell_size(name, max(10, cell_len(name))), FIGURE)
    )
    line.append(doing, LABEL if state == "alive" else STATE_STYLES[state])
    return _ends(line, figures, inner)


def _actor_strip(actors: Iterable[MemberView], inner: int, height: int) -> Lines:
    """Draw one mark for each actor, coloured by its state; none if there is no column for one."""
    columns = inner - 2
    if columns < 1:
        return []
    ordered = sorted(actors, key=lambda actor: (actor.host, actor.index))[: height * columns]
    lines = []
    for start in range(0, len(ordered), columns):
        row = ordered[start : start + columns]
        lines.append(Text.assemble("  ", *[("▪", STATE_STYLES[actor.state]) for actor in row]))
    return lines


def _charts(snapshot: Snapshot, width: int, height: int) -> Lines:
    score = ("return", "rollout/ep_rew_mean")
    if snapshot.headline_figure:
        score = (str(snapshot.headline), snapshot.headline_figure)
    plots = [score, ("loss", "train/loss"), ("env steps/s", "time/fps")]
    plots = plots[: 3 if width >= 120 else 2]
    baselines = snapshot.evaluation.baselines if snapshot.evaluation else {}
    # As in the throughput panel, speed is drawn from zero upwards.
    marks: list[Mapping[str, float]] = [baselines, {}, {"": 0.0}]
    widths = _shares(width, len(plots))
    boxes = []
    for index, (title, name) in enumerate(plots):
        lines = chart(_history(snapshot, name), widths[index] - 4, height - 2, marks[index])
        note = number(snapshot.value(name))
        boxes.append(_box(title, lines, widths[index], note=note, height=height))
    return _beside(boxes)


# ---- drawing ----


def _box(
    title: str,
    lines: Lines,
    width: int,
    *,
    note: str = "",
    height: int = 0,
    frame: str = FRAME,
    right: int = 1,
) -> Lines:
    """Draw lines in a rounded frame, cropped to its width and padded to its height.

    Args:
        title: in the upper edge, at the left.
        lines: what is framed.
        width: columns, with the frame.
        note: in the upper edge, at the right, if there is room.
        height: lines, with the frame; more if there are more lines.
        frame: style of the frame.
        right: columns left free inside the right edge.
    """
    inner = max(0, width - 3 - right)
    note = f" {note} ─" if note and len(note) + cell_len(title) + 8 <= width else ""
    if cell_len(title) > (room := max(1, width - 5)):
        title = set_cell_size(title, room - 1) + "…"
    rule = "─" * max(0, width - cell_len(title) - len(note) - 4)
    top = Text.assemble(("╭ ", frame), (title, "bold"), (f" {rule}", frame))
    top.append(note[:-1], LABEL).append(note[-1:] + "╮", frame)
    body = [*lines, *[Text()] * max(0, height - 2 - len(lines))]
    left, end = ("│ ", frame), (" " * right + "│", frame)
    return [
        _fixed(top, width),
        *(_fixed(Text.assemble(left, _fixed(line, inner), end), width) for line in body),
        _fixed(Text("╰" + "─" * max(0, width - 2) + "╯", frame), width),
    ]


def _beside(boxes: Sequence[Lines]) -> Lines:
    """Join blocks of the same height next to each other."""
    return [Text("").join(row) for row in zip(*boxes, strict=True)]


def _fixed(line: Text, width: int) -> Text:
    """Copy a line to exactly this width, with an ellipsis if something is cut off."""
    line = line.copy()
    line.no_wrap = True
    line.truncate(max(0, width), overflow="ellipsis", pad=True)
    return line


def _ends(left: Text, right: Text, width: int) -> Text:
    """Make one line with a text at either end; the left one yields."""
    return _fixed(_fixed(left, width - right.cell_len - 1) + Text(" ") + right, width)


def _ends_if_fits(left: Text, right: Text, width: int) -> Text:
    return _ends(left, right, width) if left.cell_len + right.cell_len < width else left


def _bar(share: float, width: int, style: str) -> Text:
    filled = round(min(1.0, max(0.0, share)) * width)
    return Text.assemble(("━" * filled, style), ("─" * (width - filled), FRAME))


def _shares(width: int, count: int) -> list[int]:
    """Divide a width into nearly equal whole parts, the wider ones first."""
    return [width // count + (index < width % count) for index in range(count)]


def _fitting(ranked: Sequence[tuple[int, Lines]], height: int) -> list[Lines]:
    """Choose the blocks that fit, the most important first; return them in their order."""
    taken: set[int] = set()
    for index in sorted(range(len(ranked)), key=lambda index: ranked[index][0]):
        lines = ranked[index][1]
        if len(lines) <= height:
            taken.add(index)
            height -= len(lines)
    return [ranked[index][1] for index in sorted(taken)]


def _history(snapshot: Snapshot, name: str) -> tuple[float | None, ...]:
    return snapshot.history.get(name, ())


def _resampled(values: Sequence[float | None], width: int) -> list[float | None]:
    """Average values down to at most ``width``, each the mean of neighbours; gaps stay None."""
    count = min(width, len(values))
    bounds = [len(values) * index // count for index in range(count + 1)] if count > 0 else []
    return [_mean(values[a:b]) for a, b in itertools.pairwise(bounds)]


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    # Dividing first keeps even a loss that explodes from overflowing.
    return sum(value / len(finite) for value in finite) if finite else None


def _position(value: float, low: float, high: float) -> float:
    """Return the position of a value between two others, 0 to 1; 0 if these are the same."""
    span = high / 2 - low / 2
    if span <= _ROUNDING * max(abs(low), abs(high)):
        return 0.0
    return min(1.0, max(0.0, (value / 2 - low / 2) / span))


def _braille(levels: Sequence[float | None], columns: int, height: int) -> list[list[int]]:
    """Join levels, counted in dots from the top, into cells [height][columns] of dots."""
    cells = [[0] * columns for _ in range(height)]
    # Few points are spread over the whole width.
    step = (2 * columns - 1) / max(1, len(levels) - 1)
    previous: tuple[float, float] | None = None
    for index, level in enumerate(levels):
        if level is None:
            previous = None
            continue
        point = (index * step, level)
        for x, y in _segment(previous or point, point):
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
        previous = point
    return cells


def _segment(start: tuple[float, float], end: tuple[float, float]) -> Iterable[tuple[int, int]]:
    length = math.ceil(max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1))
    for index in range(length + 1):
        part = index / length
        x = start[0] + part * (end[0] - start[0])
        y = start[1] + part * (end[1] - start[1])
        yield round(x), round(y)


def _chart_row(cells: Sequence[int], name: str | None) -> Text:
    if name is None:
        return Text("".join(chr(_BRAILLE + dots) for dots in cells).replace("\u2800", " "), SPARK)
    row = Text()
    room = max(0, len(cells) - 2)
    label = f" {set_cell_size(name, min(cell_len(name), room))}" if name else ""
    for dots in cells[: len(cells) - cell_len(label)]:
        row.append(chr(_BRAILLE + dots) if dots else "┈", SPARK if dots else FRAME)
    return row.append(label, LABEL)
