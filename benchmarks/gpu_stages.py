"""Stages of ``benchmarks/gpu.py``: ``python -m benchmarks.gpu_stages STAGE``.

A stage puts its figures into a file as it finds them, so that one that is cut short leaves some.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment
from actors.evaluation import random_act
from benchmarks.gpu_graphs import GraphedStep
from benchmarks.scaling import growth
from learner.learner import Learner
from learner.objective import TensorBatch
from learner.staging import Stager
from pdqn.errors import RunError
from pdqn.layers import build
from pdqn.specs import EnvironmentSpec, FieldSpec, Observation
from pdqn.telemetry import Telemetry
from replay.samples import Sample

_ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = ("float32", "bfloat16")
NETWORKS = ("mlp", "conv", "nature", "qmap")
BATCHES, TINY_BATCHES = (64, 256, 1024, 4096), (4, 8)
_CELL_SECONDS, _LEAST_STEPS = 0.3, 3
_ROOM_BYTES = 256 << 20
_BALLAST_BYTES = (1 << 30, 64 << 20, 4 << 20, 512 << 10, 64 << 10)
_TESTS = ("test_learner.py", "test_learner_options.py", "test_staging.py", "test_losses.py")
# What a run needs beside its time: a start that compiles kernels, and an end that saves.
_START_AND_END_SECONDS = 50.0
_RUN_SECONDS = 120.0
# Figures of a run; the mean over its second half is taken.
_FIGURES = (
    "time/fps", "actor/episodes_per_second", "actor/wait_share", "learner/steps_per_second",
    "learner/wait_share", "learner/micro_batch_size", "learner/policy_lag",
    "replay/inserts_per_second", "replay/samples_per_second", "replay/samples_per_insert",
    "replay/inserts_blocked_share", "replay/samples_blocked_share", "system/gpu_percent",
    "system/gpu_memory_bytes",
)  # fmt: skip


@dataclass
class Findings:
    """The figures of a stage, which are in its file as soon as they are known.

    Attributes:
        path: the file; None for none.
        figures: by name.
    """

    path: Path | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, value: Any) -> None:
        """Add a figure, and write all of them."""
        self.figures[name] = value
        if self.path is not None:
            new = self.path.with_name("result.new")
            new.write_text(json.dumps(self.figures), encoding="utf-8")
            new.replace(self.path)


@dataclass(frozen=True)
class Setting:
    """The device and the sizes of a stage.

    Attributes:
        device: ``cuda`` or ``cpu``.
        tiny: whether the sizes are those of a dry run.
        seconds: time for the stage.
    """

    device: str = "cuda"
    tiny: bool = False
    seconds: float = 60.0

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes to measure."""
        return TINY_BATCHES if self.tiny else BATCHES


def main() -> int:
    """Run one stage; return 1 if it fails."""
    parser = argparse.ArgumentParser(description="Run a stage of benchmarks/gpu.py.")
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    setting = Setting(options.device, options.tiny, options.seconds)
    if setting.tiny:
        torch.set_num_threads(1)  # threads that wait for each other would take most of the time
    return STAGES[options.stage](setting, Findings(options.result))


# ---- stages ----


def machine(setting: Setting, findings: Findings) -> int:
    """Find out what the machine is."""
    names = ("torch", "numba", "numpy", "gymnasium", "pyzmq", "triton")
    findings.put("versions", {name: _version(name) for name in names})
    findings.put("cores", len(os.sched_getaffinity(0)))
    findings.put("memory_bytes", psutil.virtual_memory().total)
    findings.put("load", os.getloadavg())
    findings.put("processor", platform.processor() or platform.machine())
    if setting.device == "cpu":
        return 0
    properties = torch.cuda.get_device_properties(0)
    findings.put("gpu", properties.name)
    findings.put("gpu_memory_bytes", properties.total_memory)
    findings.put("compute_capability", [properties.major, properties.minor])
    findings.put("cuda", torch.version.cuda)
    findings.put("bfloat16", torch.cuda.is_bf16_supported())
    return 0


def tests(setting: Setting, findings: Findings) -> int:
    """Run the learner's tests on the device."""
    import pytest

    os.environ["PDQN_TEST_DEVICE"] = setting.device
    torch.set_num_threads(1)
    outcomes = _Outcomes(findings)
    arguments = [str(_ROOT / "tests" / name) for name in _TESTS]
    # Other versions of torch and numpy warn of other things.
    arguments += ["-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    arguments += ["-m", "not slow", *(["-k", "one_step or halves"] if setting.tiny else [])]
    return int(pytest.main(arguments, plugins=[outcomes]))


class _Outcomes:
    """A plugin of pytest that counts what came of the tests.

    Args:
        findings: gets the counts after each test.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._passed, self._skipped = 0, 0
        self._failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take in a test's report."""
        if report.failed:
            self._failed[report.nodeid] = str(report.longreprtext)[-600:]
        elif report.skipped:
            self._skipped += 1
        elif report.when == "call":
            self._passed += 1
        counts = {"passed": self._passed, "skipped": self._skipped, "failed": self._failed}
        self._findings.put("outcomes", counts)


def precision(setting: Setting, findings: Findings) -> int:
    """Compare bfloat16 with float32: the first step of each, and the loss after some more."""
    batch, steps = setting.batches[0], 3 if setting.tiny else 50
    for network in NETWORKS:
        spec, sample = next(samples_of(network, batch, setting))
        first, last = {}, {}
        for name in PRECISIONS:
            learner = learner_of(spec, batch, setting, precision=name)
            results = [learner.step(learner.tensors(sample)) for _ in range(steps)]
            first[name], last[name] = results[0], results[-1]
        findings.put(
            network,
            {
                "priority_difference": _difference(*(first[n].priorities for n in PRECISIONS)),
                "priority_mean": float(first["float32"].priorities.mean()),
                "losses": {n: [first[n].loss, last[n].loss] for n in PRECISIONS},
                "skipped": {n: bool(first[n].skipped or last[n].skipped) for n in PRECISIONS},
            },
        )
    return 0


def memory(setting: Setting, findings: Findings) -> int:
    """Fill the device until a batch does not fit, and then until no transition fits."""
    batch = setting.batches[-1]
    spec, sample = next(samples_of("nature", batch, setting))
    free, tight = (learner_of(spec, batch, setting, precision="float32") for _ in range(2))
    wanted = free.step(free.tensors(sample))
    del free
    telemetry = Telemetry()
    with scarce(tight, setting, 4 if setting.device == "cpu" else _ROOM_BYTES):
        found = tight.step(tight.tensors(sample))
        tight.account(telemetry, found)
    findings.put("out_of_memory", tight.out_of_memory)
    findings.put("micro_batch_size", [batch, tight.micro_batch_size])
    findings.put("priority_difference", _difference(found.priorities, wanted.priorities))
    findings.put("told", [text for _, text in telemetry.report().notes])
    _, few = next(samples_of("nature", setting.batches[0], setting))
    with scarce(tight, setting, 0):
        try:
            tight.step(tight.tensors(few))
            findings.put("without_room", "the step was taken")
        except RunError as error:
            findings.put("without_room", str(error))
    after = tight.step(tight.tensors(few))
    findings.put("goes_on", not after.skipped)
    return int(not tight.out_of_memory or after.skipped)


@contextmanager
def scarce(learner: Learner, setting: Setting, room: int) -> Iterator[None]:
    """Leave the learner little memory on its device.

    On a GPU, tensors fill it, and the gaps in torch's own cache. On the CPU, losses of more rows
    than fit raise what torch would.

    Args:
        learner: the learner.
        setting: setting of the stage.
        room: on a GPU, bytes that stay free; on the CPU, rows that fit.
    """
    if setting.device == "cpu":
        with _bounded(learner, room):
            yield
        return
    learner._optimizer.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    kept = torch.empty(room, dtype=torch.uint8, device="cuda")
    ballast: list[torch.Tensor] = []
    for size in _BALLAST_BYTES:
        try:
            while True:
                ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            continue
    del kept
    try:
        yield
    finally:
        ballast.clear()
        torch.cuda.empty_cache()


@contextmanager
def _bounded(learner: Learner, rows: int) -> Iterator[None]:
    """Have losses of more rows fail as on a GPU without memory."""
    losses = learner._objective.losses

    def bounded(batch: TensorBatch) -> Any:
        if len(batch) > rows:
            raise torch.OutOfMemoryError("out of memory (simulated)")
        return losses(batch)

    learner._objective.losses = bounded
    try:
        yield
    finally:
        learner._objective.losses = losses


def graphs(setting: Setting, findings: Findings) -> int:
    """Compare the learner's step with a prototype of it in one CUDA graph.

    The prototype has a soft target network. On the CPU it takes the same step without a graph.
    """
    faults = 0
    for network in NETWORKS:
        for batch in setting.batches[:2]:
            try:
                found = _graphed(network, batch, setting)
            except RuntimeError as error:
                # Such as an operation that waits for the device, which no graph can hold.
                found = {"error": str(error).splitlines()[0]}
                faults += 1
            findings.put(f"{network}, {batch}", found)
    return int(faults == len(NETWORKS) * 2)


def _graphed(network: str, batch: int, setting: Setting) -> dict[str, float]:
    """Return samples/s with and without a graph, and how much their parameters differ."""
    spec, sample = next(samples_of(network, batch, setting))
    soft = {"target_update": "soft", "target_update_rate": 0.01, "precision": "float32"}
    eager, base = (learner_of(spec, batch, setting, **soft) for _ in range(2))
    tensors = eager.tensors(sample)
    first = {name: values.clone() for name, values in eager.online.state_dict().items()}
    graphed = GraphedStep(base, base.tensors(sample))
    for _ in range(3):
        eager.step(tensors)
        graphed.step(tensors)
    ours, theirs = eager.online.state_dict(), base.online.state_dict()
    seconds = _seconds(setting)
    before = rate_of(lambda: eager.step(tensors), batch, seconds)
    after = rate_of(lambda: graphed.step(tensors), batch, seconds)
    return {
        "eager": before,
        "graph": after,
        "ratio": after / before,
        "parameters_moved": _distance(ours, first),
        "parameter_difference": _distance(ours, theirs),
    }


def _distance(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Return the root mean square difference of parameters.

    The largest one would tell of chance: rounding switches a unit whose sum is near 0 on or off.
    """
    squares = [(ours[name] - theirs[name]).double().square().flatten() for name in ours]
    return float(torch.cat(squares).mean().sqrt())


def rates(setting: Setting, findings: Findings) -> int:
    """Measure samples/s by network, precision and batch: of steps alone, and with the copies.

    With the copies means as in a run: the next sample is unpacked and copied during the step.
    """
    ends = time.monotonic() + setting.seconds - 5.0
    for network in NETWORKS:
        for batch in setting.batches:
            spec, sample = next(samples_of(network, batch, setting))
            for name in PRECISIONS:
                if time.monotonic() > ends:
                    findings.put("left_out_after", f"{network}, {batch}, {name}")
                    return 0
                learner = learner_of(spec, batch, setting, precision=name)
                findings.put(f"{network}, {batch}, {name}", _rates_of(learner, sample, setting))
    return 0


def _rates_of(learner: Learner, sample: Sample, setting: Setting) -> dict[str, float]:
    """Measure one learner with one sample."""
    tensors, batch, seconds = learner.tensors(sample), sample.count, _seconds(setting)
    return {
        "step": rate_of(lambda: learner.step(tensors), batch, seconds),
        "staged": rate_of(_staged_steps(learner, sample), batch, seconds),
        "micro_batch_size": learner.micro_batch_size,
    }


def _staged_steps(learner: Learner, sample: Sample) -> Callable[[], object]:
    """Return a function that takes a step as a run's learner does."""
    stager = Stager(learner.tensors, learner.device)
    stager.put(sample)

    def step() -> None:
        if not len(stager):
            stager.put(sample)
        _, batch = stager.take()
        learner.step(batch, lambda: stager.put(sample) if stager.ahead else None)

    return step


def run(setting: Setting, findings: Findings) -> int:
    """Train the main problem in mode ultra with 15 actors, for two minutes."""
    seconds = max(5.0, min(_RUN_SECONDS, setting.seconds - _START_AND_END_SECONDS))
    actors, problem = "15", []
    if setting.tiny:
        seconds, actors, problem = 5.0, "1", ["--env-arg", "map_size=16"]
    # Yes: ultra is advised from 64 cores on.
    sizes = ["--mode", "ultra", "--actors", actors, "--yes", *problem]
    with tempfile.TemporaryDirectory(prefix="pdqn-gpu-run-") as folder:
        directory = Path(folder, "run")
        command = [sys.executable, "-m", "pdqn", "launch", "--time", f"{seconds:.0f}s", *sizes]
        command += ["--seed", "1", "--console", "plain", "--run-dir", str(directory)]
        command += ["--set", f"learner.device={setting.device}", "--set", "system.pictures=false"]
        began = time.monotonic()
        # In this session, so that it ends with this process.
        launch = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
        findings.put("command", command[2:])
        findings.put("seconds", round(time.monotonic() - began, 1))
        lines = _lines(directory / "metrics.jsonl")
        findings.put("cores_by_role", _cores(lines))
        findings.put("figures", _figures(lines))
        findings.put("summary", _summary(directory / "summary.json"))
    return launch.returncode


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _cores(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the cores that each role used after the first quarter of a run."""
    later = lines[len(lines) // 4 :]
    roles = ("actor", "replay", "learner", "evaluator")
    return {role: growth(later, f"{role}/cpu_seconds") for role in roles}


def _figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over the second half of a run's lines, the last line, and evaluations."""
    told = [line for line in lines if "learner_steps" in line]
    half = told[len(told) // 2 :]
    means = {}
    for name in _FIGURES:
        values = [line[name] for line in half if line.get(name) is not None]
        means[name] = float(np.mean(values)) if values else None
    evaluations = [line for line in lines if "eval/return_mean" in line]
    return {"means": means, "last": told[-1] if told else {}, "evaluations": evaluations}


def _summary(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# ---- learners and samples ----


def learner_of(spec: EnvironmentSpec, batch: int, setting: Setting, **changes: Any) -> Learner:
    """Make a learner on the setting's device."""
    settings = {"learning_rate": 1e-4, "batch_size": batch, "device": setting.device, **changes}
    return Learner(build(("benchmark", {"learner": settings})), spec)


def samples_of(
    network: str, batch: int, setting: Setting
) -> Iterator[tuple[EnvironmentSpec, Sample]]:
    """Yield the spec of an environment that gets a network, and samples of it without end."""
    rng = np.random.default_rng(0)
    spec, draw = _drawn(network, rng, setting)
    while True:
        yield (
            spec,
            Sample(
                keys=np.arange(batch),
                observation=draw(batch),
                bootstrap_observation=draw(batch),
                action=rng.integers(0, spec.num_actions, batch, np.int32),
                n_step_return=rng.normal(size=batch).astype(np.float32),
                discount=np.full(batch, 0.97, np.float32),
                sampling_priority=rng.random(batch) + 0.1,
                parameter_version=np.zeros(batch, np.int64),
            ),
        )


def _drawn(
    network: str, rng: np.random.Generator, setting: Setting
) -> tuple[EnvironmentSpec, Callable[[int], Observation]]:
    """Return an environment's spec, and a function that draws recorded observations of it."""
    if network == "qmap":
        return _placement(rng, 16 if setting.tiny else 128)
    fields = {
        "mlp": FieldSpec("observation", (8,), "float32"),
        "conv": FieldSpec("observation", (10, 10, 4), "uint8"),
        "nature": FieldSpec("observation", (84, 84), "uint8"),
    }
    spec = EnvironmentSpec(f"benchmark/{network}", (fields[network],), 4)
    if network == "nature":
        spec = spec.stacked(4)
    shape = spec.fields[0].stored_stacked_shape

    def draw(batch: int) -> Observation:
        if network == "mlp":
            return {"observation": rng.normal(size=(batch, *shape)).astype(np.float32)}
        most = 2 if network == "conv" else 256
        return {"observation": rng.integers(0, most, (batch, *shape), np.uint8)}

    return spec, draw


def _placement(
    rng: np.random.Generator, map_size: int
) -> tuple[EnvironmentSpec, Callable[[int], Observation]]:
    """Draw from what was played of circle placement."""
    spec, joined = _played(map_size)

    def draw(batch: int) -> Observation:
        rows = rng.integers(0, len(next(iter(joined.values()))), batch)
        return {name: values[rows] for name, values in joined.items()}

    return spec, draw


@lru_cache
def _played(map_size: int) -> tuple[EnvironmentSpec, Observation]:
    """Play circle placement at random; return packed observations, [128, ...] each."""
    env, env_args = "pdqn/CirclePlacement-v0", {"map_size": map_size}
    spec = describe_environment(env, env_args)
    vector = VectorEnvironment(spec, env_args, 8)
    act, observation = random_act(spec, np.random.default_rng(0)), vector.reset(range(8))
    frames: list[Observation] = []
    for _ in range(16):
        frames.append({name: rows.copy() for name, rows in spec.pack(observation).items()})
        observation = vector.step(act(observation)).observation
    vector.close()
    return spec, {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]}


def rate_of(step: Callable[[], object], batch: int, seconds: float) -> float:
    """Return samples/s of a step that waits for its figures."""
    for _ in range(_LEAST_STEPS):
        step()
    began, steps = time.perf_counter(), 0
    while steps < _LEAST_STEPS or time.perf_counter() - began < seconds:
        step()
        steps += 1
    return batch * steps / (time.perf_counter() - began)


def _seconds(setting: Setting) -> float:
    return 0.0 if setting.tiny else _CELL_SECONDS


def _difference(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


STAGES: Mapping[str, Callable[[Setting, Findings], int]] = {
    "machine": machine,
    "tests": tests,
    "precision": precision,
    "memory": memory,
    "graphs": graphs,
    "rates": rates,
    "run": run,
}


if __name__ == "__main__":
    sys.exit(main())
