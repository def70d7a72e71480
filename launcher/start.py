"""What the commands launch and check do, between the command line and a run."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import click
import rich.console
import torch

from actors.environments.factory import describe_environment, suggests
from launcher import hardware, machine, probe, rundir
from launcher.access import Access
from launcher.cluster_report import cluster_rows, cluster_table
from launcher.console import Console, Kind, make_console
from launcher.dask_cluster import DaskCluster
from launcher.hardware import Machine
from launcher.human import duration
from launcher.interrupts import Interrupts
from launcher.machine import Plan
from launcher.resume import PastRun
from launcher.run import Run
from launcher.session import Session
from launcher.single import SingleRun
from launcher.sinks import check_sinks
from launcher.state import RunState, read_state
from learner.objective import check_combinations
from pdqn import config as configuration
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.networks import QNetwork, build_network
from pdqn.specs import EnvironmentSpec


def prepare(
    config: Config, elsewhere: frozenset[str] = frozenset()
) -> tuple[EnvironmentSpec, Machine, Plan]:
    """Fill in every automatic setting for this machine and environment, and check the whole.

    Args:
        config: as people wrote it.
        elsewhere: roles that will join from other hosts.

    Raises:
        UsageError: settings that cannot work, whatever the machine.
    """
    run = config.run
    spec = describe_environment(run.env, run.env_args)
    spec = spec.stacked(run.frame_stack or machine.frame_stack(spec))
    network = build_network(spec, config.network)
    if config.evaluation.env_args:
        _check_evaluation(config, spec, network)
    check_combinations(config)
    check_sinks(config)
    if config.actor.guidance or config.actor.guidance_final:
        _check_guidance(config, spec)
    here = hardware.detect()
    plan = machine.plan(here, config, spec, None, elsewhere)
    if machine.measures_frames(here, config, spec):
        measured = probe.block_bytes_per_transition(plan.config, spec)
        size = measured or float(spec.observation_bytes)
        plan = machine.plan(here, config, spec, size, elsewhere)
        if measured is None:
            plan.warnings.append(
                f"{spec.id} ended or hung while its frames were measured: memory is planned as if "
                "they could not be compressed"
            )
    return spec, here, plan


def _check_evaluation(config: Config, spec: EnvironmentSpec, network: QNetwork) -> None:
    """Evaluations must show the network what it is trained on; sizes may be others if it can."""
    where, env_args = "evaluation.env_args", config.evaluation_env_args
    try:
        found = describe_environment(spec.id, env_args, spec.frame_stack)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    seen, trained = _essentials(found), _essentials(spec)
    differ = [f"{seen[k]} (in training {trained[k]})" for k in seen if seen[k] != trained[k]]
    if differ:
        raise UsageError(f"{where}: with them {spec.id} has {', '.join(differ)}")
    if _sizes(found) != _sizes(spec) and not _takes(network, found):
        raise UsageError(
            f"{where}: with them {spec.id} has {_sizes(found)} (in training {_sizes(spec)}), which "
            "the network does not fit"
        )


def _essentials(spec: EnvironmentSpec) -> dict[str, str]:
    """What no network can make up for, in words."""
    fields = (
        f"{f.name} {f.dtype}"
        + (f" of {list(f.categories)} categories from {list(f.start)}" if f.categories else "")
        for f in spec.fields
    )
    return {
        "first_action": f"the first action {spec.first_action}",
        "headline_metric": f"the headline metric {spec.headline_metric}",
        "fields": f"the observations {', '.join(fields)}",
    }


def _sizes(spec: EnvironmentSpec) -> str:
    shapes = ", ".join(f"{field.name} {list(field.shape)}" for field in spec.fields)
    return f"the shapes {shapes} and {spec.num_actions} actions"


def _takes(network: QNetwork, spec: EnvironmentSpec) -> bool:
    """Whether a network values every action of an environment that it was not built for."""
    blank = {name: torch.from_numpy(values) for name, values in spec.blank(1).items()}
    try:
        with torch.inference_mode():
            values = network(*network.prepare(blank))
    except Exception:  # noqa: BLE001 - networks of a person's own raise anything
        return False
    return tuple(values.shape) == (1, spec.num_actions)


def _check_guidance(config: Config, spec: EnvironmentSpec) -> None:
    if not suggests(spec, config.run.env_args):
        raise UsageError(
            f"actor.guidance = {config.actor.guidance:g}: {spec.id} gives no "
            'info["suggested_action"] to follow; circle placement does with --env-arg suggest=true'
        )


def launch(
    config: Config,
    interrupts: Interrupts,
    *,
    past: PastRun | None,
    run_dir: Path | None,
    console: Kind,
    access: Access,
    agreed: bool,
    check_only: bool,
    cluster: DaskCluster | None = None,
) -> int:
    """Check, then train; the exit code."""
    if cluster is not None:
        config = on_cluster(config, cluster)
    spec, here, plan = prepare(config, access.elsewhere)
    resolved = plan.config
    if past is not None:
        past.check(resolved)
    if check_only:
        return _print_check(here, plan, as_json=False)
    _agree(plan, agreed)
    if interrupts.count:
        click.echo("interrupted before anything was started", err=True)
        return 0
    single = resolved.run.mode == "single"
    if single and access.address is not None:
        raise UsageError("--bind: mode single is one process, nobody can join it")
    directory, state = _open_directory(past, run_dir, spec.id, resolved.run.seed)
    directory.write_config(resolved, config)
    view = make_console(console, sys.stdout)
    for text in (*(f"warning: {warning}" for warning in plan.warnings), plan.replay):
        view.message(text)
    if access.insecure:
        view.message(
            f"warning: nothing is encrypted, and whoever reaches {access.address} can join"
        )
    hardware.raise_open_file_limit(plan.open_files)
    if past is not None:
        _tell_resumed(directory, view, state, past.config, resolved)
    session = Session(resolved, spec, directory, view, interrupts, state)
    session.insecure = access.insecure
    return SingleRun(session).execute() if single else Run(session, access, cluster).execute()


def connect(where: str, python: str, slots: int | None) -> DaskCluster:
    """A Dask cluster, with what its workers have.

    Raises:
        UsageError: no cluster, no workers, or none that has pdqn.
    """
    cluster = DaskCluster(where, python, slots)
    described = cluster.describe()
    if not cluster.workers:
        cluster.close()
        reasons = sorted({one["error"] for one in described.values() if "error" in one})
        raise UsageError(f"--dask {where}: " + ("; ".join(reasons) or "it has no workers"))
    return cluster


def check_cluster(
    config: Config, where: str, python: str, slots: int | None, *, as_json: bool
) -> int:
    """Print a Dask cluster, and which worker would get which roles; the exit code."""
    with contextlib.closing(DaskCluster(where, python, slots)) as cluster:
        described = cluster.describe()
        config = on_cluster(config, cluster)
        rows = cluster_rows(described, cluster.workers, config.actor.count or 0, config)
    if as_json:
        click.echo(json.dumps({"ok": any(row["roles"] for row in rows), "workers": rows}, indent=2))
    else:
        rich.console.Console().print(cluster_table(where, rows))
    return 0 if any(row["roles"] for row in rows) else 1


def on_cluster(config: Config, cluster: DaskCluster) -> Config:
    """The configuration with an actor for every slot, where their number is left open."""
    if config.actor.count is not None:
        return config
    slots = sum(worker.slots for worker in cluster.workers.values())
    return configuration.build(
        ("cluster", {"actor": {"count": max(1, slots)}}), ("given", config.to_map())
    )


def _open_directory(
    past: PastRun | None, run_dir: Path | None, env_id: str, seed: int
) -> tuple[rundir.RunDirectory, RunState]:
    if past is None:
        path = run_dir or rundir.new_path(env_id, seed)
        return rundir.RunDirectory(path), RunState()
    directory = rundir.RunDirectory(past.path, past.state.elapsed_seconds)
    # Read again: until now another process could have been running it.
    return directory, read_state(past.path)


def _tell_resumed(
    directory: rundir.RunDirectory, view: Console, state: RunState, old: Config, new: Config
) -> None:
    """Say and write down that the run goes on, and what was changed."""
    before, after = old.to_map(), new.to_map()
    names = sorted({(s, k) for side in (before, after) for s in side for k in side[s]})
    changed = [
        f"{s}.{k} = {after[s].get(k)}" for s, k in names if before[s].get(k) != after[s].get(k)
    ]
    directory.event("resumed", session=state.sessions + 1, changed=changed)
    what = f", with {', '.join(changed)}" if changed else ""
    view.message(f"goes on after {duration(state.elapsed_seconds)} of training{what}")


def check(config: Config, *, as_json: bool) -> int:
    """Print the machine and the plan; the exit code."""
    _, here, plan = prepare(config)
    return _print_check(here, plan, as_json=as_json)


def _agree(plan: Plan, agreed: bool) -> None:
    """Stop at what cannot work; ask about what is advised against."""
    if plan.errors:
        raise UsageError("; ".join(plan.errors))
    if plan.advises_against is None or agreed:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{plan.advises_against}; --force or --yes runs it all the same")
    click.confirm(f"{plan.advises_against}. Run it all the same?", abort=True)


def _print_check(here: Machine, plan: Plan, *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(machine.as_json(here, plan), indent=2))
    else:
        rich.console.Console().print(machine.report(here, plan))
    return 1 if plan.errors else 0
