"""The commands launch and check, between the command line and a run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from launcher import sockets, status_line, streams
from launcher.beginning import Beginning
from launcher.console.console import Console, Kind, make_console
from launcher.hosts.access import Access
from launcher.hosts.dask.cluster import DaskCluster
from launcher.hosts.dask.report import cluster_rows, cluster_table
from launcher.interrupts import Interrupts
from launcher.kinds import Names
from launcher.numbers import duration
from launcher.plan.inspector import Inspector
from launcher.plan.machine import Machine, raise_open_file_limit
from launcher.plan.plan import Plan
from launcher.plan.prepare import prepare
from launcher.plan.report import as_json as plan_as_json
from launcher.plan.report import report
from launcher.processes.forkserver import ForkServer
from launcher.records.sinks import check_sinks
from launcher.run.parallel import Run
from launcher.run.resume import PastRun
from launcher.run.session import Session
from launcher.run.state import RunState, read_state
from launcher.rundir import RunDirectory, new_path
from launcher.terminal import echo_json, show
from pdqn import layers
from pdqn.arguments import same
from pdqn.config import Config
from pdqn.errors import UsageError


def launch(
    config: Config,
    interrupts: Interrupts,
    inspector: Inspector | None = None,
    forkserver: ForkServer | None = None,
    given: Names | None = None,
    *,
    past: PastRun | None,
    run_dir: Path | None,
    console: Kind,
    access: Access,
    agreed: bool,
    check_only: bool,
    cluster: DaskCluster | None = None,
    beginning: Beginning | None = None,
) -> int:
    """Check, then train; return the exit code."""
    beginning = beginning or Beginning()
    if cluster is not None:
        config = on_cluster(config, cluster)
    check_sinks(config)
    status_line.doing(f"looks at {config.run.env}, and plans the run")
    folder = past.path if past else run_dir
    with inspector or contextlib.nullcontext():
        spec, here, plan = prepare(config, access.elsewhere, inspector, folder, given)
        begins, resolved = beginning.check(plan.config, spec, inspector), plan.config
    if past is not None:
        past.check(resolved)
    if check_only:
        return _print_check(here, plan, as_json=False)
    _agree(plan, agreed)
    single = resolved.run.mode == "single"
    _check_mode(access, forkserver, single=single)
    interrupts.begun = True
    directory, state = _open_directory(past, run_dir, spec.id, plan)
    access = access.with_keys(directory.path)
    beginning.write(directory, resolved, plan.before, here, is_new=past is None)
    # In mode single the environment is in this process, and has its standard streams.
    log = streams.apart(directory.log_path("actor", 0)) if single else contextlib.nullcontext()
    with log:
        view = make_console(console, streams.out())
        _say_first(view, plan, _warnings_of_access(access, cluster), begins, is_new=past is None)
        _raise_limits(plan, forkserver)
        if past is not None:
            _tell_resumed(directory, view, state, past.config, resolved)
        insecure = access.insecure
        session = Session(resolved, spec, directory, view, interrupts, state, insecure=insecure)
        if single:
            return _run_alone(session)
        return Run(session, access, cluster, forkserver, plan.parameter_bytes).execute()


def _raise_limits(plan: Plan, forkserver: ForkServer | None) -> None:
    raise_open_file_limit(plan.open_files)
    if forkserver is not None:
        forkserver.share_limits()


def _check_mode(access: Access, forkserver: ForkServer | None, *, single: bool) -> None:
    """Refuse what a mode cannot do before anything is made; end what it does not need."""
    if not single:
        sockets.find_parent()
        return
    if access.address is not None:
        raise UsageError("--bind: mode single is one process that nobody can join")
    if forkserver is not None:
        forkserver.close()


def _say_first(
    view: Console, plan: Plan, warnings: Iterator[str], begins: str, *, is_new: bool
) -> None:
    for warning in (*plan.warnings, *warnings):
        view.message(f"warning: {warning}")
    for text in (plan.preset, plan.about):
        if text:
            view.message(text)
    view.message(plan.replay)
    if begins:
        view.message(begins)
    if plan.expectation and is_new:
        view.message(plan.expectation)


def _run_alone(session: Session) -> int:
    # It imports gymnasium, of which other runs need nothing here.
    from launcher.run.single import SingleRun

    return SingleRun(session).execute()


def _warnings_of_access(access: Access, cluster: DaskCluster | None) -> Iterator[str]:
    if access.insecure:
        yield (
            f"nothing is encrypted: whoever reaches {access.address}, every user of this host "
            "included, can join"
        )
    if cluster is not None and not cluster.is_encrypted:
        yield (
            f"the Dask scheduler at {cluster.address} is not encrypted: whoever reaches it can run "
            "code on its workers and here"
        )


def connect(where: str, python: str, slots: int | None) -> DaskCluster:
    """Connect to a Dask cluster, and ask its workers what they have.

    Raises:
        UsageError: there is no cluster, it has no workers, or none of them has pdqn.
    """
    cluster = DaskCluster(where, python, slots)
    described = cluster.describe()
    if not cluster.workers:
        cluster.close()
        reasons = sorted({one.error for one in described.values() if one.error})
        raise UsageError(f"--dask {where}: " + ("; ".join(reasons) or "it has no workers"))
    return cluster


def check_cluster(
    config: Config, where: str, python: str, slots: int | None, *, as_json: bool
) -> int:
    """Print a Dask cluster, and the roles that each worker would get; return the exit code."""
    with contextlib.closing(DaskCluster(where, python, slots)) as cluster:
        described = cluster.describe()
        config = on_cluster(config, cluster)
        rows = cluster_rows(described, cluster.workers, config.actor.count or 0, config)
    if as_json:
        echo_json({"ok": any(row["roles"] for row in rows), "workers": rows}, indent=2)
    else:
        show(cluster_table(where, rows))
    return 0 if any(row["roles"] for row in rows) else 1


def on_cluster(config: Config, cluster: DaskCluster) -> Config:
    """Return the configuration, with an actor for every slot if it leaves their number open."""
    if config.actor.count is not None:
        return config
    slots = sum(worker.slots for worker in cluster.workers.values())
    return layers.build(
        ("cluster", {"actor": {"count": max(1, slots)}}), ("given", config.to_map())
    )


def _open_directory(
    past: PastRun | None, run_dir: Path | None, env_id: str, plan: Plan
) -> tuple[RunDirectory, RunState]:
    if past is None:
        path = run_dir or new_path(env_id, plan.config.run.seed)
        return RunDirectory(path), RunState(preset=plan.preset)
    directory = RunDirectory(past.path, past.state.elapsed_seconds)
    # Read again: until now another process could have been running it.
    return directory, read_state(past.path)


def _tell_resumed(
    directory: RunDirectory, view: Console, state: RunState, old: Config, new: Config
) -> None:
    """Show and record that the run goes on, and what was changed."""
    before, after = old.to_map(), new.to_map()
    names = sorted({(s, k) for side in (before, after) for s in side for k in side[s]})
    changed = [
        f"{s}.{k} = {after[s].get(k)}"
        for s, k in names
        if not same(before[s].get(k), after[s].get(k))
    ]
    directory.event("resumed", session=state.sessions + 1, changed=changed)
    what = f", with {', '.join(changed)}" if changed else ""
    view.message(f"goes on after {duration(state.elapsed_seconds)} of training{what}")


def check(
    config: Config,
    given: Names | None = None,
    *,
    as_json: bool,
    inspector: Inspector | None = None,
) -> int:
    """Print the machine and the plan; return the exit code.

    ``given`` is as ``prepare`` takes it.
    """
    check_sinks(config)
    with inspector or contextlib.nullcontext():
        _, here, plan = prepare(config, inspector=inspector, given=given)
    return _print_check(here, plan, as_json=as_json)


def _agree(plan: Plan, agreed: bool) -> None:
    """Refuse what cannot work; ask about what the plan advises against."""
    status_line.end()
    if plan.errors:
        raise UsageError("; ".join(plan.errors))
    if plan.advises_against is None or agreed:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"{plan.advises_against}; --force or --yes runs it all the same")
    click.confirm(f"{plan.advises_against}. Run it all the same?", abort=True)


def _print_check(here: Machine, plan: Plan, *, as_json: bool) -> int:
    if as_json:
        echo_json(plan_as_json(here, plan), indent=2)
    else:
        show(report(here, plan))
    return 1 if plan.errors else 0
