"""The cases of ``benchmarks.learning``, as data: systems, times, and measures.

After a change of a case here, its old result files still have the old commands: run it again with
``--again``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

PDQN = "pdqn"
SB3 = "stable-baselines3"
PQN = "PQN in one process"
MINATAR_STEPS = 10_000
PARALLEL_ENVIRONMENTS = 32
INPUT = "INPUT.npy"  # stands for the file that a case makes
# Transitions of 32 environments grow old in longer ones.
SHORT_SEGMENTS = ("--set", "actor.segment_length=8", "--set", "actor.batch_transitions=16")

Measure = Literal["threshold", "return", "baseline", "curves", "throughput"]


@dataclass(frozen=True)
class System:
    """One of the systems that a case compares.

    Attributes:
        name: in tables, pictures and file names.
        arguments: of ``pdqn launch``, or of the peer's script.
        peer: module of the peer's script; None runs ``pdqn launch``.
    """

    name: str
    arguments: tuple[str, ...]
    peer: str | None = None


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        name: on the command line, and of the folder of its results.
        title: for people.
        measure: one of five. ``threshold``: wall seconds until the evaluated return stays at or
            above ``threshold``. ``return``: the final policy's mean return. ``baseline``: that
            return beside the environment's baselines. ``curves``: the mean of the curve's later
            half over environment steps. ``throughput``: steps and samples per second.
        seconds: time of training.
        seeds: used by default.
        systems: in the order in which they run, for each seed.
        threshold: a return, for ``threshold``.
        final_episodes: greedy episodes of the final policy; 0 leaves them out.
        over: horizontal axis of the pictures.
        needs: modules that the environment's Python must have.
        makes: module of a script that writes the file ``INPUT``, which arguments name; empty
            without one.
        note: one sentence for the report.
    """

    name: str
    title: str
    measure: Measure
    seconds: float
    seeds: tuple[int, ...]
    systems: tuple[System, ...]
    threshold: float = 0.0
    final_episodes: int = 0
    over: Literal["wall_seconds", "environment_steps"] = "wall_seconds"
    needs: tuple[str, ...] = ()
    makes: str = ""
    note: str = ""

    def system(self, name: str) -> System:
        """Return the system of that name."""
        return next(system for system in self.systems if system.name == name)


def cases() -> Iterator[Case]:
    """Yield every case, in the order of the report."""
    yield cartpole()
    yield classic("Acrobot-v1", -100.0)
    yield classic("MountainCar-v0", -110.0)
    yield cartpole_rates()
    for game in ("breakout", "asterix", "space-invaders"):
        yield minatar(game)
    for case in (atari, btr):
        for game in ("Pong", "Breakout"):
            yield case(game)
    for map_size in (64, 128):
        for radii in ("fixed", "random"):
            yield squares(map_size, radii)
    yield rectangles()
    yield guidance()
    yield parallel_cartpole()
    yield parallel_placement()
    yield parallel_vector()
    yield parallel_board()
    yield ablation()
    yield added_parts()
    yield pqn_learning()
    yield pqn_network()


def cartpole() -> Case:
    """Compare the time to solve CartPole with stable-baselines3 at RL Zoo's tuned settings.

    Our settings are those of the preset ``vector``, which comes by itself. They are tuned as well.
    """
    return Case(
        name="cartpole",
        title="CartPole-v1: until the evaluated return stays at 475",
        measure="threshold",
        threshold=475.0,
        seconds=45.0,
        seeds=(1, 2, 3, 4, 5),
        systems=(
            System(PDQN, ("--env", "CartPole-v1", *evaluated(10))),
            System(SB3, (), peer="benchmarks.sb3_cartpole"),
        ),
        note="The peer trains for the 50,000 steps that its settings are tuned for.",
    )


def classic(env_id: str, threshold: float) -> Case:
    """Solve another problem of classic control by the plain command, at the same settings."""
    return Case(
        name=env_id.partition("-")[0].lower(),
        title=f"{env_id}: until the evaluated return stays at {threshold:g}",
        measure="threshold",
        threshold=threshold,
        seconds=30.0,
        seeds=(1, 2, 3, 4, 5),
        systems=(System(PDQN, ("--env", env_id, *evaluated(10))),),
        final_episodes=100,
        note="All settings come by themselves.",
    )


def cartpole_rates() -> Case:
    """Compare environment steps per second at the peer's settings, with all that learning takes.

    Both have two layers of 256 units and batches of 64, and take half a learner step for each
    environment step. The peer copies its target after every 128 of them.
    """
    ours = (
        *("--env", "CartPole-v1", "--preset", "dqn", "--set", "replay.samples_per_insert=32"),
        *("--set", "learner.batch_size=64", "--set", "network.hidden=256"),
        *("--set", "network.layers=2", "--set", "learner.learning_rate=0.0023"),
        *("--set", "learner.target_update_period=128", *evaluated(10), *period(2)),
    )
    return Case(
        name="cartpole-rates",
        title="CartPole-v1: environment steps per second at stable-baselines3's settings",
        measure="throughput",
        seconds=30.0,
        seeds=(1, 2, 3),
        systems=(System(PDQN, ours), System(SB3, (), peer="benchmarks.sb3_cartpole")),
        over="environment_steps",
        note="The rates include both systems' starts; the peer's leave out its evaluations.",
    )


def minatar(game: str) -> Case:
    """Play a MinAtar game for 15 minutes by the plain command, beside two peers.

    The peers have the convolution and dense layer of MinAtar's authors. PQN's scheme in one process
    has one core.
    """
    env_id = f"MinAtar/{game.title().replace('-', '')}-v1"
    return Case(
        name=f"minatar-{game}",
        title=f"{env_id}: return after equal wall time",
        measure="return",
        seconds=900.0,
        seeds=(1, 2, 3),
        systems=(
            System(PDQN, ("--env", env_id, *limited(), *evaluated(20), *period(30))),
            System(PQN, ("--env", env_id), peer="benchmarks.pqn"),
            System(SB3, ("--env", env_id), peer="benchmarks.sb3_minatar"),
        ),
        final_episodes=100,
        needs=("minatar",),
        note=f"Minimal actions, sticky as by default; episodes end after {MINATAR_STEPS:,} steps.",
    )


def atari(game: str) -> Case:
    """Play an Atari game for twenty minutes, as far as two cores go."""
    env_id = f"ALE/{game}-v5"
    return Case(
        name=f"atari-{game.lower()}",
        title=f"{env_id}: as far as two cores go",
        measure="throughput",
        seconds=1200.0,
        seeds=(1,),
        systems=(System(PDQN, ("--env", env_id, *evaluated(5), *period(120), *checkpoints(300))),),
        over="environment_steps",
        needs=("ale_py",),
        note="All settings come by themselves. The return is of the run's last evaluation.",
    )


def btr(game: str) -> Case:
    """Play an Atari game for eight minutes on a GPU, by Beyond the Rainbow's settings."""
    env_id = f"ALE/{game}-v5"
    return Case(
        name=f"btr-{game.lower()}",
        title=f"{env_id}: Beyond the Rainbow for eight minutes on a GPU",
        measure="return",
        seconds=480.0,
        seeds=(1,),
        systems=(
            System(
                PDQN,
                (
                    *("--env", env_id, "--preset", "btr", "--set", "learner.device=cuda"),
                    *(*evaluated(5), *period(60), *checkpoints(240)),
                ),
            ),
        ),
        final_episodes=10,
        needs=("ale_py",),
        note="It needs a machine with a GPU; without one, pdqn refuses learner.device = cuda.",
    )


def squares(map_size: int, radii: str) -> Case:
    """Train on generated maps."""
    title = f"CirclePlacement {map_size} x {map_size}, {radii} radii"
    return placement(f"{map_size}-{radii}", title, placed(map_size, radii))


def rectangles() -> Case:
    """Train on a person's own maps, which are rectangles."""
    own = ("--env-arg", f"maps={INPUT}", "--env-arg", "radii=fixed")
    case = placement("rectangles", "CirclePlacement on own maps of 64 x 96, fixed radii", own)
    note = "A file of 2,048 maps, of which one in five is held out."
    return replace(case, makes="benchmarks.rectangles", note=note)


def placement(name: str, title: str, maps: tuple[str, ...]) -> Case:
    """Train on circle placement as the plain command does, beside its baselines."""
    return Case(
        name=f"placement-{name}",
        title=f"{title}: beside exact greedy",
        measure="baseline",
        seconds=1200.0,
        seeds=(1,),
        systems=(System(PDQN, (*maps, *period(60))),),
        final_episodes=256,
    )


def guidance() -> Case:
    """Test if an expert's choices help exploration."""
    plain = (*placed(64, "fixed"), *period(20))
    share = (
        *("--env-arg", "suggest=true", "--set", "actor.guidance=0.5"),
        *("--set", "actor.guidance_decay_steps=20000"),
    )
    return Case(
        name="guidance",
        title="CirclePlacement 64 x 64: exploring with exact greedy's choices",
        measure="baseline",
        seconds=300.0,
        seeds=(1, 2, 3),
        systems=(System("uniform", plain), System("guided", (*plain, *share))),
        final_episodes=256,
        over="environment_steps",
    )


def parallel_cartpole() -> Case:
    """Compare one process with many, at the same number of environment steps."""
    shared = (
        *("--env", "CartPole-v1", "--preset", "none", "--steps", "40000"),
        *("--set", "network.layer_norm=true", *decaying(1e-3, 1e-4, 5000)),
        *("--set", "learner.target_update=soft", "--set", "learner.target_update_rate=0.1"),
        *("--set", "replay.samples_per_insert=8", *evaluated(20), *period(2)),
    )
    return parallel("parallel-cartpole", "CartPole-v1: one process and many", shared, 300.0)


def parallel_placement() -> Case:
    """Compare on circle placement, with its settings except for more samples per insert."""
    shared = (
        *placed(64, "fixed"),
        *("--steps", "30000", *placement_settings(3_750, samples_per_insert=8)),
        *(*evaluated(64), *period(15)),
    )
    title = "CirclePlacement 64 x 64, fixed radii: one process and many"
    return parallel("parallel-placement64", title, shared, 900.0)


def parallel_vector() -> Case:
    """Compare on CartPole with the settings that come by themselves."""
    shared = ("--env", "CartPole-v1", "--steps", "40000", *evaluated(20), *period(2))
    title = "CartPole-v1 with the preset vector: one process and many"
    return parallel("parallel-vector", title, shared, 300.0)


def parallel_board() -> Case:
    """Compare on a game of MinAtar with the settings that come by themselves."""
    shared = (
        *("--env", "MinAtar/Breakout-v1", *limited(), "--steps", "500000"),
        *(*evaluated(20), *period(5)),
    )
    title = "MinAtar/Breakout-v1 with the preset board: one process and many"
    case = parallel("parallel-board", title, shared, 600.0, environments=128, segments=())
    return replace(case, needs=("minatar",))


def parallel(
    name: str,
    title: str,
    shared: tuple[str, ...],
    seconds: float,
    environments: int = PARALLEL_ENVIRONMENTS,
    segments: tuple[str, ...] = SHORT_SEGMENTS,
) -> Case:
    """Compare ``--mode single`` with 2, 8 and 32 actors at the same settings.

    All of them step as many environments. They therefore explore with the same ladder and hold the
    same number of unfinished segments.
    """

    def sized(actors: int) -> tuple[str, ...]:
        return (*shared, *segments, "--envs-per-actor", f"{environments // actors}")

    many = (System(f"{n} actors", (*sized(n), "--actors", f"{n}", "--yes")) for n in (2, 8, 32))
    return Case(
        name=name,
        title=title,
        measure="curves",
        seconds=seconds,
        seeds=(1, 2, 3),
        systems=(System("single", (*sized(1), "--mode", "single")), *many),
        over="environment_steps",
        note="They learn equally well where the seeds' ranges overlap at equal environment steps.",
    )


def ablation() -> Case:
    """Switch off each component, and all of them."""
    settings = (*minatar_settings("MinAtar/Breakout-v1"), *decaying(5e-4, 2e-5, 52_000))
    shared = (*settings, *evaluated(20), *period(30))
    off = {
        "all on": (),
        "no double": ("--set", "learner.double=false"),
        "no dueling": ("--set", "network.dueling=false"),
        "one step": ("--set", "actor.n_step=1"),
        "uniform replay": ("--set", "replay.priority_exponent=0"),
        "all off": ("--preset", "dqn"),
    }
    return Case(
        name="ablation",
        title="MinAtar/Breakout-v1: each component off",
        measure="return",
        seconds=240.0,
        seeds=(1, 2, 3),
        systems=tuple(System(name, (*shared, *changed)) for name, changed in off.items()),
        final_episodes=100,
        over="environment_steps",
        needs=("minatar",),
    )


def added_parts() -> Case:
    """Add each newer part to double DQN, at equal wall time.

    The step size falls over the whole run, however many steps a part leaves time for.
    """
    env = minatar_settings("MinAtar/Breakout-v1")
    shared = (*env, *falling(5e-4, 2e-5), *evaluated(20), *period(30))
    added = {
        "double DQN": (),
        "last layer as target": ("--set", "learner.target=last_layer"),
        "no target": ("--set", "learner.target=none"),
        "HL-Gauss": hl_gauss(),
        "Hadamax": ("--set", "network.kind=hadamax_small"),
        "spectral IMPALA": (
            *("--set", "network.kind=impala_spectral", "--set", "network.channels=16"),
            *("--set", "network.hidden=128"),
        ),
        "Munchausen": ("--set", "learner.munchausen=true"),
        "lambda returns": ("--set", "actor.returns=lambda", "--set", "replay.capacity=20000"),
    }
    return Case(
        name="added-parts",
        title="MinAtar/Breakout-v1: each newer part added to double DQN",
        measure="return",
        seconds=240.0,
        seeds=(1, 2, 3),
        systems=tuple(System(name, (*shared, *changed)) for name, changed in added.items()),
        final_episodes=100,
        needs=("minatar",),
        note="Only some of them have compiled steps; the others spend more time on each sample.",
    )


def pqn_learning() -> Case:
    """Change what the preset ``pqn`` learns from and how.

    Lambda returns need no target: that part is compared with three-step returns. Epsilon falls in
    about a tenth of the learner steps, as in the paper.
    """
    three_steps = ("--set", "actor.returns=n_step")
    changed = {
        "pqn": (),
        "three steps": three_steps,
        "three steps and a target": (*three_steps, "--set", "learner.target=network"),
        "Huber loss": ("--set", "learner.huber_delta=1"),
        "HL-Gauss": (*hl_gauss(), "--set", "network.dueling=true"),
        "prioritized": ("--set", "replay.priority_exponent=0.6"),
        "falling epsilon": (
            *("--set", "actor.epsilon=decay", "--set", "actor.epsilon_decay_steps=3200"),
        ),
    }
    return pqn_parts("pqn-learning", "each part of how the preset pqn learns changed", changed)


def pqn_network() -> Case:
    """Change the network of the preset ``pqn``."""
    plain = ("--set", "network.layer_norm=false", "--set", "network.layer_norm_convolutions=false")
    hadamax = (
        *("--set", "network.kind=hadamax_small"),
        *("--set", "network.layer_norm_convolutions=false"),
    )
    changed = {
        "pqn": (),
        "no layer norm": plain,
        "dueling": ("--set", "network.dueling=true"),
        "Hadamax": hadamax,
    }
    return pqn_parts("pqn-network", "the network of the preset pqn changed", changed)


def pqn_parts(name: str, title: str, changed: Mapping[str, tuple[str, ...]]) -> Case:
    """Change parts of the preset ``pqn``, at equal wall time."""
    shared = (
        *("--env", "MinAtar/Breakout-v1", *limited(), "--preset", "pqn"),
        *("--set", "network.kind=conv", *evaluated(20), *period(30)),
    )
    return Case(
        name=name,
        title=f"MinAtar/Breakout-v1: {title}",
        measure="return",
        seconds=240.0,
        seeds=(1, 2, 3),
        systems=tuple(System(name, (*shared, *part)) for name, part in changed.items()),
        final_episodes=100,
        needs=("minatar",),
    )


def hl_gauss() -> tuple[str, ...]:
    """Learn by classification; discounted returns of MinAtar's games stay below 45."""
    bins = ("--set", "network.value_min=-5", "--set", "network.value_max=45")
    return ("--set", "network.distribution=hl_gauss", *bins)


def placed(map_size: int, radii: str) -> tuple[str, ...]:
    """Build the arguments for circle placement, the default environment of ``pdqn launch``."""
    return ("--env-arg", f"map_size={map_size}", "--env-arg", f"radii={radii}")


def placement_settings(learner_steps: int, samples_per_insert: int) -> tuple[str, ...]:
    """Build the settings of circle placement for a number of learner steps.

    Returns reach to the end of the episode, which has at most 15 circles. Bootstrapping would cost
    two passes of the network, and its errors are as large as the differences to be learned.
    Exploration is rare and cold, so that it hardly changes these returns.
    """
    return (
        *("--set", "actor.n_step=15", "--set", f"replay.samples_per_insert={samples_per_insert}"),
        *("--set", "actor.exploration=boltzmann", "--set", "actor.temperature=0.002"),
        *("--set", "actor.epsilon_base=0.1", "--set", "actor.epsilon_alpha=0"),
        *decaying(1e-3, 1e-5, learner_steps),
    )


def minatar_settings(env_id: str) -> tuple[str, ...]:
    """Build the settings of all games: MinAtar's network, normalised, and a slow target."""
    return (
        *("--env", env_id, *limited(), "--preset", "none", "--set", "network.kind=conv"),
        *("--set", "network.layer_norm=true", "--set", "learner.target_update_period=1000"),
        *("--set", "replay.samples_per_insert=8"),
    )


def decaying(first: float, final: float, learner_steps: int) -> tuple[str, ...]:
    """Build a step size that falls linearly."""
    return (
        *("--set", f"learner.learning_rate={first:g}"),
        *("--set", f"learner.learning_rate_final={final:g}"),
        *("--set", f"learner.learning_rate_decay_steps={learner_steps}"),
    )


def falling(first: float, final: float) -> tuple[str, ...]:
    """Build a step size that falls linearly over the run, whatever its number of steps."""
    return (
        *("--set", f"learner.learning_rate={first:g}"),
        *("--set", f"learner.learning_rate_final={final:g}"),
    )


def limited() -> tuple[str, ...]:
    """Limit an episode: MinAtar has no limit, and a good policy can play without end."""
    return ("--env-arg", f"max_episode_steps={MINATAR_STEPS}")


def evaluated(episodes: int) -> tuple[str, ...]:
    """Set the number of episodes of an evaluation."""
    return ("--set", f"evaluation.episodes={episodes}")


def period(seconds: int) -> tuple[str, ...]:
    """Set the seconds from one evaluation's start to the next."""
    return ("--set", f"evaluation.period_seconds={seconds}")


def checkpoints(seconds: int) -> tuple[str, ...]:
    """Set the seconds from one checkpoint to the next."""
    return ("--set", f"checkpoint.period_seconds={seconds}")
