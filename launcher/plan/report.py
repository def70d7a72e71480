"""The tables and the JSON of ``pdqn check``."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.numbers import number, size
from launcher.plan.machine import (
    UNLIMITED,
    Machine,
)
from launcher.plan.plan import Plan
from pdqn.config import Config

_FLOAT32_BYTES = 4


# ---- report ----


def report(machine: Machine, plan: Plan) -> RenderableType:
    """Lay out what ``pdqn check`` shows: the machine, the plan, its memory, and what is wrong."""
    parts: list[RenderableType] = [_machine_table(machine), "", _plan_table(plan), ""]
    parts += [_memory_table(machine, plan), "", plan.replay]
    parts += [text for text in (plan.journal, plan.expectation) if text]
    parts += [""]
    parts += [Text.assemble(("warning  ", "bold yellow"), text) for text in plan.warnings]
    if plan.advises_against:
        parts.append(Text.assemble(("advice   ", "bold yellow"), plan.advises_against))
    parts += [Text.assemble(("error    ", "bold red"), text) for text in plan.errors]
    if not plan.errors:
        parts.append(Text.assemble(("ready    ", "bold green"), "pdqn launch can start"))
    return Group(*parts)


def as_json(machine: Machine, plan: Plan) -> dict[str, Any]:
    """Return the same as plain data."""
    return {
        "ok": not plan.errors,
        "machine": dataclasses.asdict(machine)
        | {"versions": dict(machine.versions), "optional": dict(machine.optional)},
        "plan": {
            "mode": plan.mode,
            "why": plan.why,
            "preset": plan.preset,
            "chosen": plan.layer,
            "config": plan.config.to_map(),
            "memory": dict(plan.memory),
            "replay": plan.replay,
            "journal": plan.journal,
            "environment_state": plan.state,
            "maps": plan.about,
            "network_parameters": plan.parameter_bytes // _FLOAT32_BYTES,
            "expectation": plan.expectation,
            "readings": plan.readings,
            "memory_bytes": plan.memory_bytes,
            "open_files": plan.open_files,
            "warnings": plan.warnings,
            "errors": plan.errors,
            "advises_against": plan.advises_against,
        },
    }


def _size_of(parameter_bytes: int) -> str:
    return f"{parameter_bytes // _FLOAT32_BYTES:,} parameters, {size(parameter_bytes)}"


def _table(title: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=False, box=None,
        pad_edge=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    table.add_column(style="dim", no_wrap=True, min_width=28)
    table.add_column(overflow="fold")
    return table


def _machine_table(machine: Machine) -> Table:
    table = _table("machine")
    cores = f"{machine.cores} usable of {machine.logical_cores} ({machine.physical_cores} physical)"
    table.add_row("host", f"{machine.hostname}, {machine.system}")
    table.add_row("cores", cores)
    table.add_row("memory", _of(machine.ram_available_bytes, machine.ram_total_bytes))
    for gpu in machine.gpus:
        table.add_row("GPU", f"{gpu.name}, {_of(gpu.memory_free_bytes, gpu.memory_total_bytes)}")
    if not machine.gpus:
        table.add_row("GPU", "none")
    hard = machine.open_files_hard
    most = "unlimited" if hard == UNLIMITED else str(hard)
    table.add_row("open files", f"{machine.open_files_soft}, can be raised to {most}")
    table.add_row("/dev/shm", f"{size(machine.shm_free_bytes)} free")
    versions = (f"{name} {version or 'missing'}" for name, version in machine.versions.items())
    table.add_row("software", ", ".join(versions))
    extras = (f"{name} {version or 'missing'}" for name, version in machine.optional.items())
    table.add_row("extras", ", ".join(extras) or "none")
    return table


def _plan_table(plan: Plan) -> Table:
    table = _table("plan")
    table.add_row("mode", f"{plan.mode} ({plan.why})")
    if plan.preset:
        table.add_row("settings", plan.preset)
    if plan.about:
        table.add_row("maps", plan.about)
    if plan.state:
        table.add_row("environment's state", plan.state)
    if plan.parameter_bytes:
        table.add_row("network's size", _size_of(plan.parameter_bytes))
    for name, words in plan.readings.items():
        table.add_row(name, words)
    config, defaults = dataclasses.asdict(plan.config), dataclasses.asdict(Config())
    for section, key in _REPORTED:
        value = config[section][key]
        if value == {}:
            continue
        configured = key not in plan.layer.get(section, {}) and value != defaults[section][key]
        table.add_row(f"{section}.{key}", f"{value}" + ("  (configured)" if configured else ""))
    return table


def _memory_table(machine: Machine, plan: Plan) -> Table:
    table = _table("memory")
    for what, amount in sorted(plan.memory, key=lambda item: -item[1]):
        table.add_row(what, size(amount))
    share = plan.memory_bytes / max(1, machine.ram_available_bytes)
    table.add_row("sum", f"{size(plan.memory_bytes)}, {number(100 * share)}% of what is available")
    return table


def _of(free: int, total: int) -> str:
    return f"{size(free)} available of {size(total)}"


_REPORTED = (
    ("actor", "count"),
    ("actor", "envs_per_actor"),
    ("actor", "segment_length"),
    ("actor", "batch_transitions"),
    ("actor", "window_bytes"),
    ("actor", "discount"),
    ("run", "frame_stack"),
    ("replay", "shards"),
    ("replay", "capacity"),
    ("replay", "store"),
    ("replay", "memory"),
    ("replay", "decode_threads"),
    ("replay", "min_size"),
    ("replay", "samples_per_insert"),
    ("replay", "samples_per_insert_tolerance"),
    ("network", "kind"),
    ("network", "distribution"),
    ("learner", "target"),
    ("learner", "device"),
    ("learner", "precision"),
    ("learner", "threads"),
    ("learner", "learning_rate"),
    ("evaluation", "episodes"),
    ("evaluation", "env_args"),
)
