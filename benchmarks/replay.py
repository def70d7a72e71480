"""Replay beside a peer, in one run: ``python -m benchmarks.replay [cartpole minatar atari]``.

The same observations go through pdqn's replay and through Reverb, over TCP loopback. Each has one
writer process and one sampling client, with batches of 256 and priority updates. ``pdqn bench
replay`` measures pdqn alone, stage by stage.

Reverb pins its own versions of packages, so it gets a separate virtual environment. If it cannot be
installed, its columns stay empty, and the reason is printed. The peer is measured between two
measurements of pdqn, because the load of a machine varies.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rich.console
from numpy.typing import NDArray
from rich.table import Table

from launcher.bench.recordings import Recording, record
from launcher.bench.replay import Together, bench_config, run_together
from launcher.numbers import number, size
from pdqn.errors import UsageError

_KINDS = ("cartpole", "minatar", "atari")
_SECONDS = 8.0
_ENVIRONMENT = Path(".venv-reverb")
_REQUIREMENTS = ("dm-reverb[tensorflow]", "numpy<2")
_PEER = Path(__file__).with_name("reverb_peer.py")
_PEER_OBSERVATIONS = 2048


def main() -> None:
    """Measure and print one table."""
    console = rich.console.Console()
    python = _reverb(console)
    table = Table(title="transitions per second, one writer, one client, TCP loopback")
    for column in ("data", "", "Reverb", "pdqn, socket", "", "pdqn, shared memory", ""):
        table.add_column(column, justify="left" if not column else "right")
    for kind in sys.argv[1:] or _KINDS:
        try:
            recording = record(kind)
        except UsageError as error:
            console.print(f"{kind}: skipped: {error}")
            continue
        for row in _rows(kind, recording, python, console):
            table.add_row(*row)
    console.print(table)


def _rows(
    kind: str, recording: Recording, python: Path | None, console: rich.console.Console
) -> list[tuple[str, ...]]:
    config = bench_config(recording)
    socket = run_together(recording, config, _SECONDS, "socket")
    peer = None if python is None else _measure_peer(python, recording, console)
    shared = run_together(recording, config, _SECONDS, "auto")
    console.print(
        f"{kind}: {recording.origin}; {size(shared.wire_bytes)} a transition on the wire, "
        f"{size(shared.stored_bytes)} stored; limits: insert {shared.bottleneck('insert')}, "
        f"sample {shared.bottleneck('sample')} or {socket.bottleneck('sample')}"
    )
    rows = []
    for what, name in (("inserts", "inserts_per_second"), ("samples", "samples_per_second")):
        theirs = None if peer is None else peer[name]
        row = [kind, what, number(theirs)]
        for ours in (socket, shared):
            row += _beside(ours, what, theirs)
        rows.append(tuple(row))
    return rows


def _beside(ours: Together, what: str, theirs: float | None) -> tuple[str, str]:
    rate = getattr(ours, what)
    return number(rate), "" if theirs is None else f"{rate / theirs:.1f} x"


def _reverb(console: rich.console.Console) -> Path | None:
    """Return the Python that has Reverb, installed if necessary; None if that fails."""
    python = (_ENVIRONMENT / "bin" / "python").absolute()
    if not python.exists():
        console.print(f"installing Reverb into {_ENVIRONMENT} (once)")
        subprocess.run([sys.executable, "-m", "venv", str(_ENVIRONMENT)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_REQUIREMENTS], check=False)
    probe = subprocess.run([python, "-c", "import reverb"], capture_output=True, text=True)
    if probe.returncode == 0:
        return python
    reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
    console.print(f"Reverb is skipped: it cannot be imported here ({reason})")
    return None


def _measure_peer(
    python: Path, recording: Recording, console: rich.console.Console
) -> dict[str, float] | None:
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, _observations(recording))
        done = subprocess.run(
            [python, str(_PEER), file.name, str(_SECONDS)], capture_output=True, text=True
        )
    if done.returncode != 0:
        console.print(f"Reverb failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def _observations(recording: Recording) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return one environment's observations in order, stacked if the network needs stacks.

    A step of Reverb's writer has the whole observation, so its frames are stacked beforehand. The
    stack is the last axis, as Reverb's users have it.
    """
    (field,) = recording.spec.fields
    frames = recording.frames[field.name]
    joined = np.concatenate([frames[:, i] for i in range(frames.shape[1])])[:_PEER_OBSERVATIONS]
    if field.stack == 1:
        return joined
    earlier = [np.concatenate([joined[:1]] * k + [joined[: len(joined) - k]]) for k in range(4)]
    return np.stack(earlier[::-1], axis=-1)


if __name__ == "__main__":
    main()
