"""The time that a replay takes to read its journal: ``python -m benchmarks.journal [FOLDER]``.

For each kind of data, batches like those of ``pdqn bench replay`` go through replay's intake into a
journal in FOLDER. By default it is where the system keeps temporary files on a disk. A restarted
replay then reads it with the files in the page cache. It is whole, or has a torn end, or a damaged
record in the middle. The last costs a second reading and a new journal. The table also has the time
of a snapshot, for which replay does nothing else.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import rich.console
from rich.table import Table

from launcher.bench.recordings import Recording, record
from launcher.bench.replay import bench_config, changed, encoded_batches
from pdqn.config import Config
from pdqn.telemetry import Telemetry
from replay.buffer import make_buffer
from replay.contents import Contents
from replay.intake import Intake
from replay.journal import Journal, segments_of
from replay.keeper import Keeper
from replay.limiter import make_limiter
from replay.recovery import recover
from replay.sequences import Sequences
from replay.sharding import ShardLimiter
from replay.waiting import window_batches

_RUN, _KIND = "bench", "benchmark"
_CASES = (("cartpole", "dense", 1_000_000), ("placement", "compressed", 200_000))
_TRIES = 3


class Times(NamedTuple):
    """Seconds by the clock, and of CPU time of this process."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        """Return both in words."""
        return f"{self.wall:.2f} s ({self.cpu:.2f} s CPU)"


def main() -> None:
    """Measure and print one table."""
    base = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TMPDIR", "/var/tmp")
    table = Table(title="reading a journal; the fastest of three, and its CPU time")
    for column in ("data", "transitions", "bytes", "whole", "torn", "damaged", "snapshot"):
        table.add_column(column)
    for name, store, transitions in _CASES:
        folder = Path(tempfile.mkdtemp(prefix="pdqn-", dir=base)) / "journal"
        try:
            table.add_row(f"{name}, {store}", *_measured(name, store, transitions, folder))
        finally:
            shutil.rmtree(folder.parent)
    rich.console.Console().print(table)


def _measured(name: str, store: str, transitions: int, folder: Path) -> list[str]:
    recording = record(name)
    config = changed(bench_config(recording), "replay", {"store": store, "capacity": transitions})
    snapshot = _fill(recording, config, folder)
    nbytes = sum(path.stat().st_size for path in folder.iterdir())

    def read() -> None:
        contents, result = recover(
            folder, recording.spec, _KIND, lambda: _contents(recording, config), rewrite=rewrite
        )
        print(f"{name}: {contents.buffer.size} transitions, {result}", flush=True)
        contents.buffer.close()

    def rewrite(contents: Contents) -> Callable[..., object]:
        other = folder.with_name("new")
        shutil.rmtree(other, ignore_errors=True)
        journal = Journal(other, partial(contents.head, _RUN, _KIND))

        def take(_: str, first_key: int, mean: float | None, data: memoryview) -> None:
            journal.write()
            journal.store(first_key, mean, data)

        return take

    whole = _fastest(read)
    newest, middle = segments_of(folder)[-1].path, segments_of(folder)[1].path
    with newest.open("ab") as file:
        file.write(b"a record that was not written to its end")
    torn = _fastest(read)
    with middle.open("r+b") as file:
        file.seek(1 << 20)
        file.write(bytes(64))
    damaged = _fastest(read)
    return [f"{transitions:,}", f"{nbytes:,}", str(whole), str(torn), str(damaged), snapshot]


def _contents(recording: Recording, config: Config) -> Contents:
    buffer = make_buffer(config, recording.spec, 0, 1)
    limiter = ShardLimiter(make_limiter(config))
    return Contents(buffer, limiter, Sequences(window_batches(config)), 1)


def _fill(recording: Recording, config: Config, folder: Path) -> str:
    """Write the journal of a full buffer; return the duration of a snapshot, in words."""
    contents = _contents(recording, config)
    keeper = Keeper(contents, Telemetry(), Journal(folder, partial(contents.head, _RUN, _KIND)))
    intake = Intake(
        recording.spec, _RUN, contents.buffer, Telemetry(), contents.sequences, b"", str, keeper
    )
    intake._tickets.check = lambda *_: None  # type: ignore[method-assign]
    capacity = contents.buffer.capacity
    for data in encoded_batches(recording, config):
        intake.take(data)
        keeper.write()
        if contents.buffer.inserted - (1 << 40) >= capacity:
            break
    keeper.write()
    took = _fastest(keeper.take_snapshot)
    contents.buffer.close()
    return f"{1e3 * took.wall:.2f} ms"


def _fastest(work: Callable[[], object]) -> Times:
    times = []
    for _ in range(_TRIES):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append(Times(time.perf_counter() - wall, time.process_time() - cpu))
        print(times[-1], flush=True)
    return min(times)


if __name__ == "__main__":
    main()
