"""The commands that measure this machine. Each imports what is heavy only when it runs."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from launcher.cli.help import GroupedCommand
from launcher.cli.options import GROUPS, WholeRange, configuration_of, run_options
from launcher.interrupts import end_in_order
from launcher.progress import progress
from pdqn.errors import UsageError


class _Bench(GroupedCommand, click.Group):
    """A command of its own with options in groups, and with commands below it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group, and then the commands."""
        GroupedCommand.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


@click.group(
    "bench",
    cls=_Bench,
    groups=GROUPS,
    invoke_without_command=True,
    short_help="Measure this machine, and predict the rates of others.",
)
@run_options
@click.option(
    "--seconds",
    "part_seconds",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.1, 600),
    help="length of each measurement",
)
@click.option(
    "--run-seconds",
    default=12.0,
    show_default=True,
    type=click.FloatRange(0, 3600),
    help="length of each of three real runs once it has settled; 0: none, predict from parts alone",
)
@click.option(
    "--gpu-sample-us",
    type=click.FloatRange(0, min_open=True),
    help="microseconds of a sample on a GPU, if this machine has none: an assumption",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.pass_context
def bench(
    ctx: click.Context,
    part_seconds: float,
    run_seconds: float,
    gpu_sample_us: float | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure what a transition costs each role here, and predict the rates of other machines.

    Each part is measured by itself while actors keep the other cores busy. Three short real runs
    show what it costs in company. From these costs follow the bottleneck, this machine's rates, and
    those of machines with 16 to 1,024 cores. It takes two to three minutes. docs/performance.md
    explains the model and its assumptions.

    \b
    pdqn bench
    pdqn bench --env CartPole-v1 --json > costs.json
    pdqn bench --gpu-sample-us 50
    pdqn bench replay                    (one part in detail)
    """
    end_in_order()
    if ctx.invoked_subcommand is not None:
        _refuse_options(ctx)
        return 0
    asked = configuration_of(options)
    from launcher.bench.whole import overview

    gpu_seconds = None if gpu_sample_us is None else gpu_sample_us / 1e6
    with progress(lambda: "measures"):
        return overview.bench(
            asked.config, part_seconds, run_seconds, gpu_seconds, asked.given, as_json=as_json
        )


def _refuse_options(ctx: click.Context) -> None:
    """Refuse options before the name of a benchmark, which would do nothing there."""
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        if source is ParameterSource.COMMANDLINE:
            name = ctx.invoked_subcommand
            raise UsageError(f"{param.opts[0]}: give it after bench {name}, if that has it")


@bench.command("replay", short_help="Measure how fast replay is, and what limits it.")
@click.option(
    "--data",
    multiple=True,
    type=click.Choice(["cartpole", "minatar", "atari", "placement"]),
    help="shape of the data; may be repeated  [default: all available]",
)
@click.option(
    "--seconds", default=4.0, type=click.FloatRange(0.1, 600), help="length of each phase"
)
@click.option(
    "--journal",
    type=click.Choice(["write", "sync"]),
    help="measure only the cost of the journal at this level, beside none, in turns",
)
@click.option(
    "--rounds",
    default=5,
    type=WholeRange(1, 100),
    help="rounds of --journal",
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def bench_replay(
    data: tuple[str, ...], seconds: float, journal: str | None, rounds: int, as_json: bool
) -> int:
    """Measure every stage that transitions pass between an actor and the learner.

    Each stage first runs by itself on one core. Then a writer, a replay and a client work together
    over local sockets: inserting, sampling, and both. The table names the bottleneck of each phase.

    \b
    pdqn bench replay
    pdqn bench replay --data atari --seconds 10
    pdqn bench replay --data cartpole --journal write
    """
    from launcher.bench import journal as comparison
    from launcher.bench import replay as benchmark

    with progress(lambda: "measures replay"):
        if journal is not None:
            return comparison.bench_journal(data, seconds, journal, rounds, as_json=as_json)
        return benchmark.bench_replay(data, seconds, as_json=as_json)


@bench.command(
    "hosts",
    cls=GroupedCommand,
    groups=GROUPS,
    short_help="Measure what a transition costs, and how many actors saturate a part.",
)
@run_options
@click.option(
    "--seconds",
    "part_seconds",
    default=4.0,
    type=click.FloatRange(0.1, 600),
    help="length of each measurement",
)
@click.option(
    "--host-actors",
    default=30,
    show_default=True,
    type=WholeRange(1),
    help="actors on each host, which receive parameters together",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def bench_hosts(part_seconds: float, host_actors: int, as_json: bool, **options: Any) -> int:
    """Measure what a transition costs, and derive how large a run can be.

    The costs are bytes on the wire and processor time of every process involved, encryption
    included. They give the number of actors that saturate a link, replay, learner or coordinator.

    \b
    pdqn bench hosts
    pdqn bench hosts --env CartPole-v1 --set learner.publish_seconds=5
    """
    asked = configuration_of(options)
    from launcher.bench import hosts as benchmark

    with progress(lambda: "measures what a transition costs"):
        return benchmark.bench_hosts(
            asked.config, part_seconds, host_actors, asked.given, as_json=as_json
        )
