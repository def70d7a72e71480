"""The plan: which mode and sizes fit this machine, this configuration and this environment.

``plan`` is pure. It keeps what the configuration sets, plans around it, and fills in everything
left to ``auto``. The numbers at the top are the only place where sizes are chosen.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from launcher.numbers import plural, size
from launcher.plan.machine import (
    COMPILERS,
    Gpu,
    Machine,
    open_files_error,
)
from launcher.plan.memory import GB, LAUNCHER_BYTES, MB, REPLAY_BYTES, Estimates, window_for
from launcher.plan.storage import COMPRESSED_HEADROOM, STORES, Storage, Store, wanted_capacity
from launcher.prediction.model import PARALLEL_SHARE, actors_for, threads_worth
from pdqn.config import ActorConfig, Config, memory_bytes, resolved
from pdqn.errors import UsageError
from pdqn.networks.readings import readings
from pdqn.networks.sizes import network_sizes
from pdqn.specs import ATARI_NAMESPACE, UNSEEN, EnvironmentSpec, FieldSpec
from pdqn.wire import MAX_TRANSITION_BYTES
from replay.limiter import make_limiter

Mode = Literal["single", "parallel", "ultra"]

# From this size on, observations are maps or images: bandwidth and memory limit, not overhead.
LARGE_OBSERVATION_BYTES = 4096

# Below this, replay, learner and evaluator would not keep up with more actors.
ULTRA_CORES, ULTRA_GPU_BYTES = 64, 8 * GB

ENVS_PER_ACTOR = {"small": 8, "large": 8}
ULTRA_ENVS_PER_ACTOR = {"small": 32, "large": 16}
# Transitions that wait in a segment or a batch grow stale; frames repeated between segments cost
# bytes. Stacked frames are repeated more: segments then grow by whole steps of this length, until
# the repeated frames are less than the share.
SEGMENT_LENGTH, REPEATED_SHARE = 16, 0.15
# Lambda returns end with their segment (Gallici et al. 2025 use 32 steps for MinAtar and Atari).
# Many environments complete them at once: a message for each would cost replay more than sampling.
LAMBDA_SEGMENT_LENGTH, LAMBDA_BATCH_SHARE = 32, 1 / 8
# Messages with more raw bytes than about this would not save anything on the wire.
BATCH_BYTES = 256_000
BATCH_TRANSITIONS_MIN, BATCH_TRANSITIONS_MAX = 16, 64

# Learning from a batch of maps takes milliseconds, from vectors far less than collecting them.
SAMPLES_PER_INSERT = {"small": 16.0, "large": 0.5}
CAPACITY_MAX = {"small": 1_000_000, "large": 200_000}
CAPACITY_MEMORY_SHARE = 0.25
DECODE_THREADS_MAX, CORES_PER_DECODE_THREAD = 8, 8
MIN_SIZE = 2000
LEARNING_RATE = {"small": 1e-3, "large": 3e-4}
DISCOUNT, PLACEMENT_DISCOUNT = 0.99, 1.0
# Mnih et al. 2015: a single picture shows no motion, and the scores of games differ in size.
ATARI_FRAME_STACK, ATARI_REWARD_CLIP, SCREEN_SIDE_MIN = 4, 1.0, 36
EVALUATION_EPISODES, HEADLINE_EVALUATION_EPISODES = 10, 32

# Beside a GPU, the learner's threads only unpack samples.
GPU_THREADS = 4
ACTORS_MEMORY_SHARE = 0.5
# Of a host that runs nothing but actors.
HOST_MEMORY_SHARE = 0.8

GPU_FREE_BYTES_MIN = 2 * GB
SHM_BYTES_MIN = 16 * MB
FILES_PER_PROCESS, FILES_OF_THE_REST = 4, 200


@dataclass(frozen=True)
class Plan:
    """The sizes of a run on this machine, and what there is to say about them.

    Attributes:
        mode: single (one process), parallel, or ultra (parallel with larger batches of
            environments for many cores and a GPU).
        why: the reason for the mode, in a few words.
        layer: a value for every setting that was left to auto, as a configuration layer.
        config: the configuration with that layer filled in.
        memory: the parts of the run, and the bytes that each is expected to take.
        replay: a sentence about the transitions that the buffers hold and the memory they take.
        open_files: number of files that the launcher and its children need.
        warnings: what will work, but not well; each with its fix.
        errors: why the run cannot work; each with its fix.
        advises_against: why the requested mode does not fit the machine; None if it does.
        journal: a sentence about the disk that the replays' journals take; empty without one.
        state: whether the environment's state can be saved, as equal resumption needs it; empty if
            nobody has looked.
        parameter_bytes: size of the network's parameters.
        about: a sentence about the maps that the environment plays; empty without any.
        readings: how the network reads each field of an observation.
        expectation: a sentence about what the policy reaches and when; empty where nobody knows.
        preset: a sentence about a preset that comes by itself, or stands aside; else empty.
        before: the configuration with that preset, before the plan filled it in.
    """

    mode: Mode
    why: str
    layer: dict[str, dict[str, Any]]
    config: Config
    memory: list[tuple[str, int]]
    replay: str
    open_files: int
    warnings: list[str]
    errors: list[str]
    advises_against: str | None
    journal: str = ""
    state: str = ""
    parameter_bytes: int = 0
    about: str = ""
    readings: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    expectation: str = ""
    preset: str = ""
    before: Config = dataclasses.field(default_factory=Config)

    @property
    def memory_bytes(self) -> int:
        """The sum of all bytes in ``memory``."""
        return sum(amount for _, amount in self.memory)


def plan(
    machine: Machine,
    config: Config,
    spec: EnvironmentSpec,
    block_bytes_per_transition: float | None = None,
    elsewhere: Collection[str] = (),
    parameter_bytes: int = 0,
) -> Plan:
    """Size a run of this configuration in this environment for this machine.

    Args:
        machine: the resources that there are.
        config: the settings that are already chosen.
        spec: the environment's.
        block_bytes_per_transition: bytes of compressed frames for each transition, as measured;
            without it the plan assumes that frames cannot be compressed.
        elsewhere: roles that will join from other hosts. The learner's host, if it is one of them,
            settles what depends on it.
        parameter_bytes: size of the network's parameters, of which each process has some copies.
    """
    draft, mode, why, actors = _without_buffer(machine, config, spec, elsewhere, parameter_bytes)
    _plan_buffer(draft, block_bytes_per_transition)
    _plan_limiter(draft, mode)
    processes = actors + draft.config.replay.shards
    open_files = open_files_of(processes)
    read = readings(spec, draft.config.network)
    draft.warnings += [f"{name} {r.words}: {r.advice}" for name, r in read.items() if r.advice]
    _check_machine(draft, open_files)
    return Plan(
        mode=mode,
        why=why,
        layer={section: dict(values) for section, values in draft.layer.items()},
        config=draft.config,
        memory=draft.memory,
        replay=draft.replay,
        open_files=open_files,
        warnings=draft.warnings,
        errors=draft.errors,
        advises_against=_advice(machine, mode),
        parameter_bytes=parameter_bytes,
        readings={name: reading.words for name, reading in read.items()},
    )


def measures_frames(
    machine: Machine, config: Config, spec: EnvironmentSpec, parameter_bytes: int = 0
) -> bool:
    """Tell whether the plan depends on how well the environment's frames compress."""
    store = config.replay.store
    if spec.observation_bytes <= LARGE_OBSERVATION_BYTES or store == "dense":
        return False
    draft, *_ = _without_buffer(machine, config, spec, (), parameter_bytes)
    wanted = wanted_capacity(draft.config, CAPACITY_MAX[draft.scale])
    needed = Storage(spec, config.replay.shards).bytes_of("dense", wanted)
    return store == "compressed" or needed > _budget(draft)


def open_files_of(processes: int) -> int:
    """Estimate the open files of a supervisor with this many processes, their share included."""
    return FILES_PER_PROCESS * processes + FILES_OF_THE_REST


def actors_for_host(machine: Machine, config: Config, spec: EnvironmentSpec) -> int:
    """Return the number of actors for a host that does nothing else for this run."""
    each = Estimates(config, spec).actor
    room = int(HOST_MEMORY_SHARE * machine.ram_available_bytes / each)
    return max(1, min(machine.cores, room))


class _Draft:
    """A plan in the making: the configuration so far, and what there is to say about it."""

    def __init__(
        self,
        machine: Machine,
        config: Config,
        spec: EnvironmentSpec,
        elsewhere: Collection[str],
        parameter_bytes: int = 0,
    ) -> None:
        self.machine = machine
        self.elsewhere = elsewhere
        self.config = config
        self.spec = spec
        self._parameter_bytes = parameter_bytes
        self.scale = "large" if spec.observation_bytes > LARGE_OBSERVATION_BYTES else "small"
        self.layer: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self.memory: list[tuple[str, int]] = []
        self.replay = ""
        self.warnings: list[str] = []
        self.errors: list[str] = []

    @property
    def estimates(self) -> Estimates:
        """The memory of processes by the settings so far."""
        return Estimates(self.config, self.spec, self._parameter_bytes)

    def is_open(self, section: str, key: str) -> bool:
        """Tell whether a setting is left to auto."""
        return getattr(getattr(self.config, section), key) in (None, "auto")

    def settle(self, section: str, key: str, value: Any) -> Any:
        """Return a setting's configured value, else this one, which becomes part of the plan."""
        part = getattr(self.config, section)
        if not self.is_open(section, key):
            return getattr(part, key)
        self.layer[section][key] = value
        changed = dataclasses.replace(part, **{key: value})
        self.config = dataclasses.replace(self.config, **{section: changed})
        return value

    def set_memory(self, taken_bytes: int) -> None:
        """Set replay.memory in plain digits, however a person wrote it."""
        if self.is_open("replay", "memory"):
            self.layer["replay"]["memory"] = str(taken_bytes)
        replay = dataclasses.replace(self.config.replay, memory=str(taken_bytes))
        self.config = dataclasses.replace(self.config, replay=replay)


def _without_buffer(
    machine: Machine,
    config: Config,
    spec: EnvironmentSpec,
    elsewhere: Collection[str] = (),
    parameter_bytes: int = 0,
) -> tuple[_Draft, Mode, str, int]:
    """Plan everything that precedes the buffer; return (draft, mode, why, actors)."""
    draft = _Draft(machine, config, spec, elsewhere, parameter_bytes)
    draft.settle("run", "frame_stack", spec.frame_stack)
    mode, why = _choose_mode(draft)
    _plan_evaluation(draft)
    # In this order: the learner takes the cores that actors leave, the buffer the memory.
    actors = _plan_actors(draft, mode)
    _plan_learner(draft, actors)
    _plan_network(draft)
    _plan_roles(draft, mode)
    return draft, mode, why, actors


# ---- mode ----


def _choose_mode(draft: _Draft) -> tuple[Mode, str]:
    machine = draft.machine
    if not draft.is_open("run", "mode"):
        return draft.settle("run", "mode", None), "asked for"
    has = _described(machine.cores, machine.learner_gpu)
    if machine.cores == 1 and not draft.elsewhere:
        return draft.settle("run", "mode", "single"), "one core: all roles in one process"
    if _fits_ultra(machine):
        return draft.settle("run", "mode", "ultra"), has
    return draft.settle("run", "mode", "parallel"), has


def _fits_ultra(machine: Machine) -> bool:
    gpu = machine.learner_gpu
    return (
        machine.cores >= ULTRA_CORES
        and gpu is not None
        and gpu.memory_total_bytes >= ULTRA_GPU_BYTES
    )


def _advice(machine: Machine, mode: Mode) -> str | None:
    if mode != "ultra" or _fits_ultra(machine):
        return None
    return (
        f"ultra is for {ULTRA_CORES} cores and a GPU with {size(ULTRA_GPU_BYTES)}; this machine "
        f"has {_described(machine.cores, machine.learner_gpu)}: use --mode parallel"
    )


def _described(cores: int, gpu: Gpu | None) -> str:
    has_gpu = "no usable GPU" if gpu is None else f"a GPU with {size(gpu.memory_total_bytes)}"
    return f"{plural(cores, 'core')} and {has_gpu}"


# ---- settings ----


def _plan_actors(draft: _Draft, mode: Mode) -> int:
    spec, scale = draft.spec, draft.scale
    envs = (ULTRA_ENVS_PER_ACTOR if mode == "ultra" else ENVS_PER_ACTOR)[scale]
    here = "actor" not in draft.elsewhere
    if here and (draft.config.actor.count or 0) > draft.machine.cores:
        envs //= 2  # actors take turns: memory is scarce, not time
    draft.settle("actor", "envs_per_actor", envs)
    length = _segment_length(draft.config.actor, spec.frame_stack)
    draft.settle("actor", "segment_length", length)
    draft.settle("actor", "batch_transitions", _batch_transitions(draft))
    _check_segment(draft)
    draft.settle("actor", "discount", _discount(spec))
    is_atari = spec.id.startswith(ATARI_NAMESPACE)
    draft.settle("actor", "reward_clip", ATARI_REWARD_CLIP if is_atari else 0.0)
    if is_atari:
        _score_whole_games(draft)
    count = _plan_actor_count(draft, mode, draft.estimates.actor)
    window = window_for(draft.config, spec, draft.machine.ram_available_bytes)
    draft.settle("actor", "window_bytes", window)
    if not here:
        return 0
    draft.memory.append((plural(count, "actor"), count * draft.estimates.actor))
    return count


def _score_whole_games(draft: _Draft) -> None:
    """Evaluate whole games where an episode of training is one life."""
    evaluation = draft.config.evaluation
    if not draft.config.run.env_args.get("life_loss") or "life_loss" in evaluation.env_args:
        return
    env_args = {**evaluation.env_args, "life_loss": False}
    draft.layer["evaluation"]["env_args"] = env_args
    evaluation = dataclasses.replace(evaluation, env_args=env_args)
    draft.config = dataclasses.replace(draft.config, evaluation=evaluation)


def frame_stack(spec: EnvironmentSpec) -> int:
    """Return how many frames a network needs: several of a grayscale screen, else one.

    A screen is [H, W], [H, W, 1] or [1, H, W].
    """
    fields = [field for field in spec.fields if field.name not in UNSEEN]
    return ATARI_FRAME_STACK if all(map(_is_screen, fields)) else 1


def _is_screen(field: FieldSpec) -> bool:
    sides = [side for side in field.shape if side > 1]
    return field.dtype == "uint8" and len(sides) == 2 and min(sides) >= SCREEN_SIDE_MIN


def _batch_transitions(draft: _Draft) -> int:
    """Choose the transitions that an actor gathers before it sends them."""
    actor, most = draft.config.actor, BATCH_TRANSITIONS_MAX
    if actor.returns == "lambda":
        # All that the environments record in a segment's time is as old as one another.
        together = resolved(actor.envs_per_actor) * resolved(actor.segment_length)
        most = max(most, int(LAMBDA_BATCH_SHARE * together))
    fitting = BATCH_BYTES // max(1, draft.spec.observation_bytes)
    return min(most, max(BATCH_TRANSITIONS_MIN, fitting))


def _segment_length(actor: ActorConfig, frame_stack: int) -> int:
    """Choose a segment's transitions; it repeats n_step + frame_stack - 1 frames of another one."""
    if actor.returns == "lambda":
        return max(LAMBDA_SEGMENT_LENGTH, 4 * (frame_stack - 1))
    n_step = actor.n_step
    if frame_stack == 1:
        # The buffer makes room for a quarter more frames than transitions.
        return max(SEGMENT_LENGTH, 4 * n_step)
    shortest = (n_step + frame_stack - 1) / REPEATED_SHARE
    return SEGMENT_LENGTH * (int(shortest // SEGMENT_LENGTH) + 1)


def _check_segment(draft: _Draft) -> None:
    """Refuse segments that are larger than a message may be."""
    actor, spec = draft.config.actor, draft.spec
    length = resolved(actor.segment_length)
    frames = length + actor.lookahead + spec.frame_stack
    if frames * spec.observation_bytes > MAX_TRANSITION_BYTES:
        draft.errors.append(
            f"actor.segment_length = {length}: {frames} frames of {size(spec.observation_bytes)} "
            f"are more than the {size(MAX_TRANSITION_BYTES)} that a message may hold: set it to at "
            f"most {max(0, MAX_TRANSITION_BYTES // spec.observation_bytes - frames + length)}"
        )


def _plan_actor_count(draft: _Draft, mode: Mode, each_bytes: int) -> int:
    cores = draft.machine.cores
    if mode == "single":
        count = draft.settle("actor", "count", 1)
        if count != 1:
            draft.errors.append(
                f"actor.count = {count}, but mode single has one actor: use --mode parallel"
            )
        return count
    wanted = actors_for(cores)
    room = int(ACTORS_MEMORY_SHARE * draft.machine.ram_available_bytes / each_bytes)
    if draft.is_open("actor", "count") and room < wanted:
        draft.warnings.append(
            f"memory has room for {plural(max(1, room), 'actor')}, the cores for {wanted}: "
            "free some, or set actor.envs_per_actor lower"
        )
        wanted = max(1, room)
    count = draft.settle("actor", "count", wanted)
    if count > cores and "actor" not in draft.elsewhere:
        draft.warnings.append(
            f"actor.count = {count} on {plural(cores, 'core')}: actors will take turns; "
            f"--actors {actors_for(cores)} keeps them as busy"
        )
    return count


def _plan_learner(draft: _Draft, actors: int) -> None:
    rate = draft.settle("learner", "learning_rate", LEARNING_RATE[draft.scale])
    draft.settle("learner", "learning_rate_final", rate)
    draft.settle("learner", "micro_batch_size", draft.config.learner.batch_size)
    if "learner" in draft.elsewhere:
        return
    device = _plan_device(draft, actors)
    draft.memory.append(("learner", draft.estimates.learner))
    _check_gpu(draft, device)


def _plan_device(draft: _Draft, actors: int) -> str:
    """Settle device, precision and threads, by the learner's host; return the device."""
    gpu = draft.machine.learner_gpu
    device = draft.settle("learner", "device", "cpu" if gpu is None else "cuda")
    # Older GPUs emulate bfloat16, more slowly than they compute float32.
    fast_bfloat16 = device == "cuda" and gpu is not None and gpu.compute_capability >= (8, 0)
    draft.settle("learner", "precision", "bfloat16" if fast_bfloat16 else "float32")
    left = max(1, draft.machine.cores - actors)
    share = PARALLEL_SHARE[draft.scale]
    threads = min(GPU_THREADS, left) if device == "cuda" else threads_worth(share, left)
    draft.settle("learner", "threads", threads)
    if draft.config.learner.compile and not draft.machine.compiler:
        draft.errors.append(
            "learner.compile = true, but no C++ compiler is installed, which torch.compile needs: "
            f"install one of {', '.join(COMPILERS)}, or use false"
        )
    return device


def learner_settings(
    machine: Machine, config: Config, spec: EnvironmentSpec
) -> dict[str, dict[str, Any]]:
    """Settle what a run leaves to its learner's host, for a host that does nothing else.

    Raises:
        UsageError: the settings ask for a GPU or for compiling, and the host has no GPU or no
            compiler.
    """
    draft = _Draft(machine, config, spec, ())
    _check_gpu(draft, _plan_device(draft, 0))
    if draft.errors:
        raise UsageError("; ".join(draft.errors))
    return {section: dict(values) for section, values in draft.layer.items()}


def _plan_network(draft: _Draft) -> None:
    sizes = network_sizes(draft.spec, draft.config.network)
    for key in ("kind", "hidden", "layers", "channels"):
        value = getattr(sizes, key)
        if value is not None:
            draft.settle("network", key, value)


def _plan_roles(draft: _Draft, mode: Mode) -> None:
    """Add the memory of replay, launcher, evaluator and SampleBatches, without the buffer."""
    shards = draft.config.replay.shards
    name = "replay" if shards == 1 else f"{shards} replays"
    draft.memory += [(name, shards * REPLAY_BYTES), ("launcher", LAUNCHER_BYTES)]
    if draft.config.evaluation.enabled:
        draft.memory.append(("evaluator", draft.estimates.evaluator))
    if mode != "single":
        _plan_samples(draft)
        if "replay" not in draft.elsewhere:
            draft.memory.append(("waiting batches", draft.estimates.waiting))
    elif shards != 1:
        draft.errors.append(
            f"replay.shards = {shards}, but mode single has one replay: use --mode parallel"
        )


def _plan_samples(draft: _Draft) -> None:
    config, shm_free = draft.config, draft.machine.shm_free_bytes
    needed = draft.estimates.samples
    draft.memory.append(("sample batches", needed))
    if config.replay.transport == "socket" or shm_free < needed:
        draft.memory.append(("sample batches on their way", draft.estimates.samples_on_their_way))
    if config.replay.transport == "auto" and SHM_BYTES_MIN <= shm_free < needed:
        draft.warnings.append(
            f"/dev/shm has {size(shm_free)} free, SampleBatches need {size(needed)}: SampleBatches "
            "will go over sockets; free some, or start the container with --shm-size"
        )


def _plan_limiter(draft: _Draft, mode: Mode) -> None:
    batch_size, capacity = draft.config.learner.batch_size, draft.config.replay.capacity
    assert capacity is not None  # the buffer is planned
    ratio = draft.settle("replay", "samples_per_insert", SAMPLES_PER_INSERT[draft.scale])
    enough = max(batch_size, min(MIN_SIZE, capacity // 20))
    min_size = draft.settle("replay", "min_size", min(capacity, enough))
    steps = draft.config.run.steps
    if steps is not None and steps <= min_size:
        draft.warnings.append(
            f"nothing is learned in run.steps = {steps}: the first sample waits for "
            f"replay.min_size = {min_size} transitions"
        )
    requested = 2 * batch_size * draft.config.learner.prefetch
    slack = max(float(requested), 0.1 * ratio * min_size)
    draft.settle("replay", "samples_per_insert_tolerance", slack)
    try:
        make_limiter(draft.config)
    except UsageError as error:
        draft.errors.append(str(error))
    _check_batch_fits(draft, mode)


def _check_batch_fits(draft: _Draft, mode: Mode) -> None:
    """Refuse a shard that is too small for what actors send at once."""
    actor, replay = draft.config.actor, draft.config.replay
    # An episode that ends when its segment is full adds its last steps to it.
    most = resolved(actor.segment_length) + actor.lookahead
    smaller = "actor.segment_length"
    if mode != "single":  # segments are gathered until there are enough
        most += resolved(actor.batch_transitions) - 1
        smaller = "actor.batch_transitions and actor.segment_length"
    each = -(-resolved(replay.capacity) // replay.shards)
    if each < most:
        draft.errors.append(
            f"replay.capacity = {replay.capacity} in {plural(replay.shards, 'shard')}: actors send "
            f"up to {most} transitions at once, so at least {most * replay.shards} are needed, or "
            f"a smaller {smaller}"
        )


# ---- the buffer ----


def _plan_buffer(draft: _Draft, measured: float | None) -> None:
    """Settle memory, capacity and store, once the memory of the other roles is known."""
    config, budget = draft.config, _budget(draft)
    storage = _storage(draft, measured)
    _warn_of_less(draft, budget)
    if "replay" in draft.elsewhere and draft.is_open("replay", "memory"):
        draft.warnings.append(
            f"replay joins from another host, and is sized for this one's {size(budget)}: set "
            "replay.memory to what that host has"
        )
    wanted = wanted_capacity(draft.config, CAPACITY_MAX[draft.scale])
    store = config.replay.store
    if store == "auto":
        store = _fitting_store(storage, wanted, budget)
    draft.settle("replay", "store", store)
    largest = storage.largest(store, budget)
    capacity = draft.settle("replay", "capacity", max(1, _round_down(min(wanted, largest))))
    threads = min(DECODE_THREADS_MAX, max(1, draft.machine.cores // CORES_PER_DECODE_THREAD))
    draft.settle("replay", "decode_threads", threads if store == "compressed" else 1)
    needed = storage.bytes_of(store, capacity)
    taken = min(budget, COMPRESSED_HEADROOM * needed) if store == "compressed" else needed
    draft.set_memory(taken)
    if "replay" not in draft.elsewhere:
        draft.memory.append(("buffer" if storage.shards == 1 else "buffers", taken))
    draft.replay = _replay_sentence(draft, needed, budget, measured)
    if largest < config.learner.batch_size:
        draft.errors.append(_too_little(draft, budget))
    elif capacity > largest:
        draft.errors.append(_too_much(draft, largest, needed, budget))


def _budget(draft: _Draft) -> int:
    """Return the bytes that the buffers of all shards may take together."""
    available = draft.machine.ram_available_bytes
    room = max(0, available - sum(amount for _, amount in draft.memory))
    memory = draft.config.replay.memory
    if memory is not None and "replay" in draft.elsewhere:
        return memory_bytes(memory, available)  # the memory of other hosts is unknown here
    share = int(CAPACITY_MEMORY_SHARE * available)
    return min(room, share if memory is None else memory_bytes(memory, available))


def _warn_of_less(draft: _Draft, budget: int) -> None:
    memory, available = draft.config.replay.memory, draft.machine.ram_available_bytes
    if memory is not None and memory_bytes(memory, available) > budget:
        draft.warnings.append(
            f"replay.memory = {memory}, but {size(budget)} is available beside the other roles: "
            "the buffer takes no more than that"
        )


def _storage(draft: _Draft, measured: float | None) -> Storage:
    shards = draft.config.replay.shards
    if measured is not None:
        return Storage(draft.spec, shards, measured)
    length = draft.config.actor.segment_length
    assert length is not None  # the actors are planned
    repeated = draft.config.actor.lookahead + draft.spec.frame_stack - 1
    return Storage(draft.spec, shards, draft.spec.observation_bytes * (1 + repeated / length))


def _fitting_store(storage: Storage, wanted: int, budget: int) -> Store:
    """Choose dense if it holds what is wanted, else compressed if it does, else what holds more."""
    for store in STORES:
        if storage.bytes_of(store, wanted) <= budget:
            return store
    return storage.better(budget)


def _replay_sentence(draft: _Draft, needed: int, budget: int, measured: float | None) -> str:
    replay = draft.config.replay
    shards = f" in {replay.shards} shards" if replay.shards > 1 else ""
    known = "" if measured is None else f" (measured {measured:,.0f} B a transition)"
    return (
        f"replay: {replay.capacity:,} transitions{shards}, {replay.store}, "
        f"{size(needed)} of {size(budget)}{known}"
    )


def _too_little(draft: _Draft, budget: int) -> str:
    available = draft.machine.ram_available_bytes
    others = sum(amount for name, amount in draft.memory if not name.startswith("buffer"))
    return (
        f"too little memory: the roles take {size(others)}, {size(available)} is available, and "
        f"{size(budget)} is too little for a buffer: free some, use fewer --actors, or set "
        "replay.memory higher"
    )


def _too_much(draft: _Draft, largest: int, needed: int, budget: int) -> str:
    replay = draft.config.replay
    return (
        f"replay.capacity = {replay.capacity} needs {size(needed)} ({replay.store}), but the "
        f"buffer may take {size(budget)}: at most {_round_down(largest)} fit ({replay.store}); set "
        "replay.capacity lower or replay.memory higher"
    )


def _plan_evaluation(draft: _Draft) -> None:
    episodes = HEADLINE_EVALUATION_EPISODES if draft.spec.headline_metric else EVALUATION_EPISODES
    draft.settle("evaluation", "episodes", episodes)


def _discount(spec: EnvironmentSpec) -> float:
    # Episodes of circle placement end by themselves, and their plain sum is what counts.
    return PLACEMENT_DISCOUNT if spec.circle_placement else DISCOUNT


def _round_down(value: int) -> int:
    """Round down to whole thousands from ten thousand on, for a number that is easy to say."""
    return value // 1000 * 1000 if value >= 10_000 else value


# ---- checks ----


def _check_machine(draft: _Draft, open_files: int) -> None:
    machine = draft.machine
    if open_files > machine.open_files_hard:
        draft.errors.append(open_files_error(open_files, machine.open_files_hard))
    if machine.shm_free_bytes < SHM_BYTES_MIN:
        draft.warnings.append(
            f"/dev/shm has {size(machine.shm_free_bytes)} free, which processes need to start: "
            "free some, or start the container with --shm-size"
        )
    missing = [name for name, version in machine.versions.items() if not version]
    if missing:
        names = " ".join(missing)
        draft.errors.append(f"missing Python packages: python -m pip install {names}")


def _check_gpu(draft: _Draft, device: str) -> None:
    machine, gpu = draft.machine, draft.machine.learner_gpu
    if machine.gpus and not machine.torch_has_cuda:
        draft.warnings.append(
            f"torch {machine.versions['torch']} cannot use the GPU "
            f"({machine.gpus[0].name}): install a build of torch with CUDA"
        )
    if device != "cuda":
        return
    if gpu is None:
        draft.errors.append(
            "learner.device = cuda, but there is no GPU that torch can use: "
            "set learner.device to cpu or auto"
        )
    elif gpu.memory_free_bytes < GPU_FREE_BYTES_MIN:
        draft.warnings.append(
            f"the GPU has {size(gpu.memory_free_bytes)} of {size(gpu.memory_total_bytes)} free: "
            "end what uses it, choose another with CUDA_VISIBLE_DEVICES, or set learner.device "
            "to cpu"
        )
