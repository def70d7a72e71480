"""The report of ``pdqn check --dask``: the workers, what they have, and their roles. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.hosts.dask.answers import WorkerDescription
from launcher.hosts.dask.assignment import ClusterWorker, place_servers, share_actors
from launcher.numbers import plural, size
from pdqn.config import Config


def cluster_rows(
    described: Mapping[str, WorkerDescription],
    workers: Mapping[str, ClusterWorker],
    actors: int,
    config: Config,
) -> list[dict[str, Any]]:
    """Make a row for each worker.

    Args:
        described: the description of each worker.
        workers: those that can be used.
        actors: number in all.
        config: the run's.
    """
    usable = list(workers.values())
    servers = place_servers(usable, config.replay.shards, {}) if usable else {}
    shares = share_actors(usable, actors)
    rows = []
    for address in sorted(described):
        roles = [
            f"{role} {index}" for (role, index), at in sorted(servers.items()) if at == address
        ]
        if shares.get(address):
            roles.append(plural(shares[address], "actor"))
        slots = workers[address].slots if address in workers else 0
        known = described[address].to_map()
        rows.append({"address": address, "slots": slots, "roles": roles, **known})
    return rows


def cluster_table(where: str, rows: list[dict[str, Any]]) -> RenderableType:
    """Lay out the rows as a table for people."""
    table = Table(
        title=f"Dask cluster {where}", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for column in ("worker", "host", "slots", "cores", "memory", "GPUs", "pdqn", "gets"):
        table.add_column(column, overflow="fold", no_wrap=column == "worker")
    for row in rows:
        if "error" in row:
            table.add_row(row["address"], "", "", "", "", "", "", Text(row["error"], "bold red"))
            continue
        gpus = ", ".join(row["gpus"]) or "none"
        version = f"{row['pdqn']}, Python {row['python']}"
        cells = (row["hostname"], str(row["slots"]), str(row["cores"]), size(row["memory_bytes"]))
        table.add_row(row["address"], *cells, gpus, version, ", ".join(row["roles"]) or "nothing")
    if not any(row["roles"] for row in rows):
        return Group(table, Text.assemble(("error  ", "bold red"), "no worker can be used"))
    return table
