"""The cost of replay's journal: rates with it and without it, measured in turns.

The load of a machine varies, so each round measures both. The time that replay computes for each
transition varies less than the rates.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from launcher.bench.recordings import Recording, recorded
from launcher.bench.replay import WARM_UP_SECONDS, Processes, bench_config, changed
from launcher.numbers import number
from launcher.terminal import echo, echo_json, show
from pdqn.config import Config

_SETTINGS = {
    "capacity": 20_000,  # two buffers are there at once
    # Inserting costs more than sampling, so both must keep the same ratio.
    "samples_per_insert": 4.0,
    "samples_per_insert_tolerance": 8192.0,
}
# Only large observations are worth compressing.
_COMPRESSED_BYTES = 1000


@dataclass(frozen=True)
class Rates:
    """The work of replay in one round, while it inserted and was sampled at once.

    Attributes:
        inserts: transitions inserted per second.
        samples: transitions sampled per second.
        cpu_microseconds: CPU time of replay for each transition inserted or sampled.
    """

    inserts: float
    samples: float
    cpu_microseconds: float


def bench_journal(
    data: Sequence[str], seconds: float, level: str, rounds: int, *, as_json: bool
) -> int:
    """Measure and print one table; return the exit code."""
    results: dict[str, dict[str, Any]] = {}
    for name, recording in recorded(data):
        config = bench_config(recording)
        large = recording.spec.observation_bytes > _COMPRESSED_BYTES
        for store in ("dense", "compressed") if large else ("dense",):
            echo(f"{name}, {store}: {rounds} rounds", err=True)
            results[f"{name}, {store}"] = compare(
                recording,
                changed(config, "replay", {"store": store, **_SETTINGS}),
                seconds,
                level,
                rounds,
            )
    if as_json:
        echo_json(results, indent=2)
    else:
        show(_table(results, level))
    return 0


def compare(
    recording: Recording, config: Config, seconds: float, level: str, rounds: int
) -> dict[str, Any]:
    """Measure in turns; return each round's figures, and of each figure medians and ratio.

    The ratio is the median of the rounds' ratios, with the journal to without it.
    """
    measured: dict[str, list[Rates]] = {"off": [], level: []}
    others: list[Processes] = []
    with ExitStack() as stack:
        processes = {
            journal: stack.enter_context(
                Processes(recording, changed(config, "replay", {"journal": journal}), others)
            )
            for journal in measured
        }
        for bench in processes.values():
            bench.phase({"writer": WARM_UP_SECONDS, "client": WARM_UP_SECONDS})
        for turn in range(rounds):
            # The first one of a round is sometimes this one and sometimes the other.
            for journal in list(measured)[:: 1 if turn % 2 else -1]:
                measured[journal].append(_rates(processes[journal], seconds))
    result: dict[str, Any] = {}
    for figure in asdict(measured["off"][0]):
        off, on = ([getattr(r, figure) for r in measured[j]] for j in measured)
        result[figure] = {
            "off": statistics.median(off),
            level: statistics.median(on),
            "ratio": statistics.median(b / a for a, b in zip(off, on, strict=True)),
            "rounds": {"off": off, level: on},
        }
    return result


def _rates(bench: Processes, seconds: float) -> Rates:
    loads = bench.phase({"writer": seconds, "client": seconds})
    inserts, samples = loads["writer"].rate, loads["client"].rate
    return Rates(inserts, samples, 1e6 * loads["replay"].busy / max(1.0, inserts + samples))


_ROWS = {
    "inserts": "inserts per second",
    "samples": "samples per second",
    "cpu_microseconds": "replay's CPU time of a transition, us",
}


def _table(results: dict[str, dict[str, Any]], level: str) -> Table:
    table = Table(title=f"replay with the journal {level}, beside none", title_justify="left",
                  box=None, padding=(0, 1))  # fmt: skip
    for column in ("data", "both at once", "off", level, "ratio"):
        table.add_column(column, justify="left" if column in ("data", "both at once") else "right")
    for name, figures in results.items():
        table.add_section()
        for figure, words in _ROWS.items():
            values = figures[figure]
            ratio = f"{values['ratio']:.3f}"
            table.add_row(name, words, number(values["off"]), number(values[level]), ratio)
    return table
