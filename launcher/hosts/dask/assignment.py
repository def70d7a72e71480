"""The assignment of roles to a cluster's workers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pdqn.errors import UsageError


@dataclass(frozen=True)
class ClusterWorker:
    """A worker of a cluster, as it describes itself.

    Attributes:
        address: unique.
        host: name or address of its machine.
        slots: number of actors that it has room for.
        gpus: number that it can use.
    """

    address: str
    host: str
    slots: int
    gpus: int = 0


def place_servers(
    workers: Sequence[ClusterWorker], replays: int, pins: Mapping[str, str]
) -> dict[tuple[str, int], str]:
    """Choose the workers for the learner and each replay, and return their addresses.

    The learner goes where the most GPUs are, and then where the most slots are. Replays are spread
    over the other workers, if there are any.

    Args:
        workers: at least one.
        replays: number of shards.
        pins: hosts, or addresses of workers, that roles must be placed on.

    Raises:
        UsageError: a pin that no worker fits.
    """
    ranked = sorted(workers, key=lambda w: (-w.gpus, -w.slots, w.address))
    learner = _pinned(ranked, "learner", pins)[0]
    candidates = _pinned(ranked, "replay", pins)
    others = [worker for worker in candidates if worker != learner] or candidates
    # From the far end: those without a GPU come last.
    spread = others[::-1]
    placed = {("learner", 0): learner.address}
    return placed | {("replay", k): spread[k % len(spread)].address for k in range(replays)}


def share_actors(workers: Iterable[ClusterWorker], total: int) -> dict[str, int]:
    """Share actors among workers, in proportion to their slots, by largest remainders.

    Workers that get none are left out.
    """
    ordered = sorted(workers, key=lambda worker: worker.address)
    slots = sum(worker.slots for worker in ordered)
    if not slots:
        return {}
    exact = {worker.address: total * worker.slots / slots for worker in ordered}
    counts = {address: int(share) for address, share in exact.items()}
    left = total - sum(counts.values())
    for address in sorted(exact, key=lambda a: counts[a] - exact[a])[:left]:
        counts[address] += 1
    return {address: count for address, count in counts.items() if count}


def _pinned(ranked: list[ClusterWorker], role: str, pins: Mapping[str, str]) -> list[ClusterWorker]:
    wanted = pins.get(role)
    if wanted is None:
        return ranked
    found = [worker for worker in ranked if wanted in (worker.host, worker.address)]
    if not found:
        hosts = ", ".join(sorted({worker.host for worker in ranked}))
        raise UsageError(f"--dask-pin {role}={wanted}: no worker is there; there are {hosts}")
    return found
