"""The configuration: one dataclass per part, read in layers, checked before anything starts.

A value comes from the highest layer that names it. The layers are, from the highest: command-line
options, ``--set``, ``PDQN_SECTION__KEY`` environment variables, the TOML file, the preset, the
plan, and the defaults here. The plan depends on this machine and environment.

People write ``auto`` for a setting whose default is ``None``. The plan fills it in, and a run's
``config.toml`` holds the resolved value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import tomli_w

from pdqn.seeds import MOST_HELD_OUT
from pdqn.stop_at import WORDS, parse_target

Value = TypeVar("Value")


def setting(
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    check: Callable[[str], Any] | None = None,
    words: str = "a text",
) -> Any:
    """Declare a dataclass field with its documentation and bounds.

    Args:
        default: value if no layer names one; None if the plan chooses.
        doc: meaning of the setting, in one line.
        at_least: smallest accepted number.
        above: bound that an accepted number must exceed.
        at_most: largest accepted number.
        check: function that raises ValueError for a text that is not accepted.
        words: description of the accepted texts.
    """
    bounds = {"at_least": at_least, "above": above, "at_most": at_most}
    metadata = {"doc": doc, **bounds, "check": check, "words": words}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


_MEMORY = re.compile(r"(\d+(?:\.\d+)?|\.\d+) *(%|[kmgt]?b)?")
_MEMORY_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def absolute_path(text: str) -> None:
    """Check that a path does not depend on the directory in which a role starts.

    Raises:
        ValueError: it does.
    """
    if not text.startswith(("/", "~/")):
        raise ValueError(text)


def memory_bytes(text: str, available_bytes: int = 10**12) -> int:
    """Convert an amount of memory, as a person writes it, to bytes.

    Args:
        text: a number of bytes, a number with a unit, or a share of the RAM: ``8000000000``,
            ``8GB``, ``500 MB`` or ``25%``.
        available_bytes: the RAM that a share refers to.

    Raises:
        ValueError: the text has none of these forms, or the amount is below one byte or too large.
    """
    match = _MEMORY.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(text)
    unit = match[2] or "b"
    amount = float(match[1]) * _MEMORY_UNITS.get(unit, available_bytes / 100)
    if not 1 <= amount < 2**63 or (unit == "%" and amount > available_bytes):
        raise ValueError(text)
    return int(amount)


# Atari's games are cut off after this many steps. An environment without a limit must also end.
MAX_EPISODE_STEPS = 27_000
NETWORK_KINDS = (
    "auto",
    "mlp",
    "conv",
    "nature",
    "impala",
    "impala_spectral",
    "hadamax",
    "hadamax_small",
    "spatial",
    "qmap",
)


def network_kind(text: str) -> None:
    """Check the name of a network: a built-in kind, or ``package.module:factory``.

    Raises:
        ValueError: the name is neither.
    """
    if text not in NETWORK_KINDS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        raise ValueError(text)


@dataclass(frozen=True)
class RunConfig:
    """Training task and stopping criteria."""

    env: str = setting(
        "pdqn/CirclePlacement-v0", "gymnasium environment id, module:id, or module:factory"
    )
    env_args: dict[str, Any] = setting({}, "keyword arguments of the environment")
    frame_stack: int | None = setting(
        None, "steps whose observations a network sees at once", at_least=1, at_most=32
    )
    seed: int = setting(
        0, "seed from which every random state of the run is derived", at_least=0, at_most=2**63 - 1
    )
    mode: Literal["auto", "single", "parallel", "ultra"] = setting("auto", "preset of sizes")
    episodes: int | None = setting(None, "stop after this many episodes", at_least=1)
    steps: int | None = setting(None, "stop after this many environment steps", at_least=1)
    time_seconds: float | None = setting(None, "stop after this many seconds", above=0)
    stop_at: str | None = setting(
        None, "stop once a figure has this value", check=parse_target, words=WORDS
    )


@dataclass(frozen=True)
class ActorConfig:
    """Actor processes: exploration, returns, and the sending of transitions."""

    count: int | None = setting(None, "local actor processes", at_least=0, at_most=10_000)
    envs_per_actor: int | None = setting(
        None, "environments that an actor steps as one batch", at_least=1, at_most=4096
    )
    returns: Literal["n_step", "lambda"] = setting(
        "n_step",
        "the learner bootstraps after n_step rewards, or actors mix the returns of all lengths up "
        "to a segment's end, by their own values",
    )
    n_step: int = setting(3, "rewards summed before bootstrapping (n_step)", at_least=1, at_most=64)
    trace_decay: float = setting(
        0.65,
        "lambda: 0 bootstraps after one step, 1 at the end of the segment (lambda)",
        at_least=0,
        at_most=1,
    )
    discount: float | None = setting(None, "gamma", at_least=0, at_most=1)
    epsilon_base: float = setting(
        0.4, "epsilon ladder: base^(1 + alpha i/(n-1))", at_least=0, at_most=1
    )
    epsilon_alpha: float = setting(7.0, "epsilon ladder: alpha", at_least=0)
    epsilon: Literal["ladder", "decay"] = setting(
        "ladder",
        "each environment has its own epsilon for the whole run, or all have one that falls",
    )
    epsilon_first: float = setting(1.0, "epsilon = decay: at first", at_least=0, at_most=1)
    epsilon_final: float = setting(0.05, "epsilon = decay: in the end", at_least=0, at_most=1)
    epsilon_decay_steps: int = setting(
        10_000, "epsilon = decay: learner steps until the end, on a straight line", at_least=1
    )
    exploration: Literal["uniform", "boltzmann"] = setting(
        "uniform", "exploratory actions: all valid ones equally, or by the softmax of their values"
    )
    temperature: float = setting(
        1.0, "Boltzmann exploration: a value lower by this makes an action e times rarer", above=0
    )
    guidance: float = setting(
        0.0,
        "share of exploratory actions that follow the environment's suggestion",
        at_least=0,
        at_most=1,
    )
    guidance_final: float = setting(0.0, "final share, after the decay", at_least=0, at_most=1)
    guidance_decay_steps: int = setting(
        10_000, "learner steps until the final share, on a straight line", at_least=1
    )
    reward_clip: float | None = setting(
        None, "rewards are clipped to +- this for learning; 0 turns clipping off", at_least=0
    )
    environment_failures: int = setting(
        5, "consecutive failures of an environment that end its actor", at_least=1
    )
    segment_length: int | None = setting(
        None, "most consecutive steps of one environment in a segment", at_least=1, at_most=4096
    )
    batch_transitions: int | None = setting(
        None, "transitions gathered before a TransitionBatch is sent", at_least=1, at_most=65_536
    )
    send_seconds: float = setting(1.0, "longest time that a finished segment waits", above=0)
    window: int = setting(
        2,
        "TransitionBatches that may be on their way unacknowledged; four times as many with "
        "replay.journal = sync",
        at_least=1,
        at_most=1000,
    )
    window_bytes: int | None = setting(
        None, "bytes of those batches; a larger batch goes alone", at_least=1
    )

    @property
    def lookahead(self) -> int:
        """Steps after a transition's own that are recorded before its segment can be cut."""
        return 1 if self.returns == "lambda" else self.n_step


@dataclass(frozen=True)
class ReplayConfig:
    """The prioritized buffer and its rate limiter."""

    shards: int = setting(1, "replay processes", at_least=1, at_most=256)
    capacity: int | None = setting(None, "transitions held, over all shards", at_least=1)
    store: Literal["auto", "dense", "compressed"] = setting(
        "auto", "frames lie flat in memory, or stay compressed and are decoded when sampled"
    )
    memory: str | None = setting(
        None,
        "memory limit of the buffers: 8GB, 500MB, or a share of the available RAM such as 25%",
        check=memory_bytes,
        words="an amount such as 8GB, 500MB or 8000000000, or a share of the RAM such as 25%",
    )
    decode_threads: int | None = setting(
        None, "threads of a shard that decode compressed frames", at_least=1, at_most=256
    )
    transport: Literal["auto", "socket"] = setting(
        "auto", "SampleBatches in memory shared with the learner where possible, or as messages"
    )
    min_size: int | None = setting(None, "transitions held before the first batch", at_least=1)
    max_age: int = setting(
        0,
        "learner steps since the parameters that acted, beyond which a transition is not sampled; "
        "0 sets no limit",
        at_least=0,
    )
    priority_exponent: float = setting(0.6, "0 samples uniformly", at_least=0, at_most=1)
    priority_max: float = setting(
        1000.0, "largest priority, as a multiple of the mean priority stored", at_least=1
    )
    importance_sampling_exponent: float = setting(
        0.4, "0 leaves the prioritized bias, 1 corrects it in full", at_least=0, at_most=1
    )
    importance_sampling_exponent_final: float = setting(
        1.0, "final exponent, after the annealing", at_least=0, at_most=1
    )
    importance_sampling_annealing_steps: int = setting(
        100_000, "learner steps until the final exponent, on a straight line", at_least=1
    )
    samples_per_insert: float | None = setting(
        None, "transitions sampled for each transition inserted", above=0
    )
    samples_per_insert_tolerance: float | None = setting(
        None, "samples by which the ratio may deviate before one side waits", above=0
    )
    journal: Literal["write", "sync", "off"] = setting(
        "write",
        "keep the contents in files for a replay that ends: write survives any kill of processes, "
        "and sync also a loss of power",
    )
    journal_dir: str | None = setting(
        None,
        "folder of the journals; auto takes the run's, or on another host its supervisor's",
        check=absolute_path,
        words="an absolute path",
    )
    journal_full: Literal["off", "block"] = setting(
        "off", "if the journal cannot be written: go on without it, or take no batches until it can"
    )


@dataclass(frozen=True)
class LearnerConfig:
    """Q-learning on sampled batches."""

    batch_size: int = setting(64, "transitions in a SampleBatch", at_least=1, at_most=65_536)
    learning_rate: float | None = setting(None, "Adam's step size", above=0)
    learning_rate_final: float | None = setting(
        None, "final step size, after the decay; auto keeps it constant", above=0
    )
    learning_rate_decay_steps: int | None = setting(
        None,
        "learner steps until the final step size, on a straight line; auto takes the whole run, by "
        "its limit of time, steps or episodes",
        at_least=1,
    )
    adam_epsilon: float = setting(1e-8, "Adam's epsilon", above=0)
    micro_batch_size: int | None = setting(
        None, "transitions of a batch that are computed at once; gradients accumulate", at_least=1
    )
    gradient_clip_norm: float = setting(10.0, "largest global gradient norm", above=0)
    huber_delta: float = setting(1.0, "error from which the loss is linear", above=0)
    rollout_weight: float = setting(
        100.0,
        "weight of the loss of rollouts, where an environment tells the returns of other actions",
        at_least=0,
    )
    double: bool = setting(True, "the online network selects, the target network evaluates")
    target: Literal["network", "last_layer", "none"] = setting(
        "network",
        "target that values what follows: a copy of the network, of its last layer only, or none",
    )
    target_update: Literal["periodic", "soft"] = setting(
        "periodic", "copy the online network from time to time, or follow it a little every step"
    )
    target_update_period: int = setting(250, "learner steps between periodic updates", at_least=1)
    target_update_rate: float = setting(
        0.005, "share of the online network taken in by a soft update", above=0, at_most=1
    )
    munchausen: bool = setting(False, "add the scaled log-policy to the reward; soft targets")
    munchausen_alpha: float = setting(0.9, "scale of the log-policy", at_least=0, at_most=1)
    munchausen_temperature: float = setting(0.03, "entropy temperature", above=0)
    munchausen_clip: float = setting(
        -1.0, "least value of the scaled log-policy", at_least=-1e15, at_most=0
    )
    prefetch: int = setting(3, "requests for SampleBatches ahead", at_least=1, at_most=64)
    publish_period: int = setting(8, "learner steps between parameter publications", at_least=1)
    publish_seconds: float = setting(0.25, "least time between publications", at_least=0)
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "device that the learner uses")
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "forward-pass precision")
    compile: bool = setting(False, "compile the networks with torch.compile")
    threads: int | None = setting(None, "CPU threads of the learner", at_least=1, at_most=1024)


@dataclass(frozen=True)
class NetworkConfig:
    """The Q-network."""

    kind: str = setting(
        "auto",
        "architecture; auto chooses it by the observation",
        check=network_kind,
        words=f"{', '.join(NETWORK_KINDS)}, or package.module:factory",
    )
    images: Literal["space", "dtype"] = setting(
        "space",
        "images are read by the bounds of their space, or by their dtype as earlier versions did",
    )
    channels_axis: Literal["auto", "first", "last"] = setting(
        "auto",
        "axis of an image's channels; auto takes the one beside two equal axes, else the shorter "
        "outer one",
    )
    fold_frames: bool = setting(
        True, "observations of four axes are stacks of images, whose frames become channels"
    )
    dueling: bool = setting(True, "separate value and advantage streams")
    layer_norm: bool = setting(False, "normalise hidden layers, which steadies large step sizes")
    normalize: bool = setting(
        False, "observed numbers less their running mean, over their running standard deviation"
    )
    normalize_rewards: bool = setting(
        False, "learn values in units of the returns' running standard deviation"
    )
    layer_norm_convolutions: bool = setting(
        False, "normalise the channels of every pixel after a convolution (conv, nature)"
    )
    noisy: bool = setting(False, "noisy dense layers, which replace epsilon")
    noisy_sigma: float = setting(0.5, "initial scale of the noise", above=0, at_most=1_000_000)
    distribution: Literal["none", "categorical", "quantile", "hl_gauss"] = setting(
        "none",
        "learn the mean of the return, its distribution (C51, quantile regression), or its mean by "
        "classification (HL-Gauss)",
    )
    atoms: int = setting(
        51, "atoms, quantiles or bins of the distribution", at_least=2, at_most=1024
    )
    value_min: float = setting(
        -10.0, "least return: of the first atom (categorical), the lower end of the first bin "
        "(hl_gauss)", at_least=-1e15, at_most=1e15,
    )  # fmt: skip
    value_max: float = setting(
        10.0, "largest return: of the last atom (categorical), the upper end of the last bin "
        "(hl_gauss)", at_least=-1e15, at_most=1e15,
    )  # fmt: skip
    gauss_sigma: float = setting(
        0.75, "standard deviation of a target, in widths of a bin (hl_gauss)", above=0, at_most=1000
    )
    hidden: int | None = setting(None, "units of a hidden layer", at_least=1, at_most=65_536)
    layers: int | None = setting(None, "hidden layers", at_least=0, at_most=16)
    channels: int | None = setting(None, "channels of the convolutions", at_least=4, at_most=8192)


@dataclass(frozen=True)
class EvaluationConfig:
    """Greedy episodes on held-out seeds while training goes on."""

    enabled: bool = setting(True, "run an evaluator")
    episodes: int | None = setting(
        None, "episodes per evaluation", at_least=1, at_most=MOST_HELD_OUT
    )
    period_seconds: float = setting(20.0, "longest time between starts of evaluations", above=0)
    period_steps: int = setting(
        0, "most learner steps between evaluations; 0 goes by time alone", at_least=0
    )
    env_args: dict[str, Any] = setting({}, "environment arguments that differ in evaluation")
    max_episode_steps: int = setting(
        MAX_EPISODE_STEPS,
        "steps after which an episode is cut off and counts as it is",
        at_least=1,
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """Periodic saves."""

    period_seconds: float = setting(60.0, "longest time between checkpoints", above=0)
    period_steps: int = setting(
        0, "most learner steps between checkpoints; 0 goes by time alone", at_least=0
    )
    keep: int = setting(3, "newest checkpoints kept", at_least=1)


@dataclass(frozen=True)
class SystemConfig:
    """Heartbeats, restarts and reports."""

    telemetry_seconds: float = setting(1.0, "time between a role's reports", above=0)
    metrics_seconds: float = setting(5.0, "time between lines of metrics.jsonl", above=0)
    episodes: bool = setting(True, "write a line of episodes.csv for every episode in training")
    pictures: bool = setting(True, "draw pictures of the run, while it goes on and at its end")
    picture_seconds: float = setting(
        120.0, "time between two drawings of the pictures while the run goes on", above=0
    )
    heartbeat_timeout_seconds: float = setting(
        30.0,
        "silence after which a role is restarted, or one on another host ends by itself",
        above=0,
    )
    host_timeout_seconds: float = setting(
        15.0, "silence after which another host counts as lost, with all its roles", above=0
    )
    join_seconds: float = setting(
        3600.0, "time that a run waits for roles that a person starts on other hosts", above=0
    )
    memory_limit: float = setting(
        3.0,
        "memory at which a role is ended: this multiple of its plan, and 1 GB; 0 turns this off",
        at_least=0,
        at_most=1_000_000,
    )
    restarts: int = setting(
        5,
        "restarts of one role in a row before it is given up; 20 s of work end the row",
        at_least=0,
    )
    wandb: bool = setting(False, "also log to Weights & Biases (pdqn[wandb])")
    wandb_project: str = setting("", "project there; by default WANDB_PROJECT, or pdqn")
    wandb_group: str = setting("", "group of runs there; by default WANDB_RUN_GROUP")
    metrics_port: int = setting(
        0, "port of the Prometheus metrics (pdqn[prometheus]); 0: none", at_least=0,
        at_most=65535,
    )  # fmt: skip
    metrics_host: str = setting("127.0.0.1", "address of that port")


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    run: RunConfig = field(default_factory=RunConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    system: SystemConfig = field(default_factory=SystemConfig)

    @property
    def evaluation_env_args(self) -> dict[str, Any]:
        """Environment arguments for evaluation: the run's, overridden by those of this section."""
        return {**self.run.env_args, **self.evaluation.env_args}

    def to_map(self) -> dict[str, dict[str, Any]]:
        """Convert to plain maps without the settings that are ``None``, for TOML and the wire."""
        return {
            section: {
                key: dict(value) if isinstance(value, dict) else value
                for key, value in vars(part).items()
                if value is not None
            }
            for section, part in vars(self).items()
        }

    def to_toml(self) -> str:
        """Return the text of ``config.toml``."""
        return tomli_w.dumps(self.to_map())


def resolved(value: Value | None) -> Value:
    """Return the value of a setting that may be ``auto`` only while planning."""
    if value is None:
        raise RuntimeError("a setting is still auto after planning")
    return value
