"""Options of the learner: their combinations, and their effects on memory, targets and state."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from devices import DEVICE

from launcher.plan.prepare import check_combinations
from learner.learner import Learner, StepResult
from learner.objective import TensorBatch
from learner.staging import Stager
from pdqn.config import Config
from pdqn.errors import RunError, UsageError
from pdqn.layers import build
from pdqn.networks import QNetwork
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.samples import Sample

SPEC = EnvironmentSpec(
    "test/Masked-v0",
    (
        FieldSpec("action_mask", (3,), "int8", binary=True),
        FieldSpec("observation", (4,), "float32"),
    ),
    3,
)


def config_of(learner: dict[str, Any] | None = None, **network: Any) -> Config:
    fixed = {"learning_rate": 1e-2, "device": DEVICE, "precision": "float32", "batch_size": 8}
    layer = {
        "learner": {**fixed, **(learner or {})},
        "network": {"hidden": 16, "layers": 1, "value_min": -5, "value_max": 5, **network},
    }
    return build(("test", layer))


def sample_of(seed: int = 0, batch: int = 8) -> Sample:
    rng = np.random.default_rng(seed)

    def observation() -> dict[str, np.ndarray]:
        mask = rng.integers(0, 2, (batch, 3)).astype(bool)
        mask[:-1, 0] = True  # the last row has no valid action
        mask[-1] = False
        values = rng.normal(size=(batch, 4)).astype(np.float32)
        return {"action_mask": np.packbits(mask, axis=1), "observation": values}

    return Sample(
        keys=np.arange(batch),
        observation=observation(),
        bootstrap_observation=observation(),
        action=np.zeros(batch, np.int32),
        n_step_return=rng.normal(size=batch).astype(np.float32),
        discount=np.where(np.arange(batch) == batch - 1, 0.0, 0.9).astype(np.float32),
        sampling_priority=rng.random(batch) + 0.1,
        parameter_version=np.zeros(batch, np.int64),
    )


def learn(learner: Learner, sample: Sample) -> StepResult:
    return learner.step(learner.tensors(sample))


def parameters(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.online.state_dict().items()}


class Counting(QNetwork):
    """A network that counts its batches, as a user's own may."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)

    def prepare(self, observation: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (observation["observation"],)

    def forward(self, *prepared: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm(prepared[0]))


@pytest.mark.parametrize("bootstrapped", [1, 2, 8])
def test_batches_are_normalised_by_all_of_their_transitions(
    monkeypatch: pytest.MonkeyPatch, bootstrapped: int
):
    monkeypatch.setattr("learner.learner.build_network", lambda *_: Counting())
    learner = Learner(config_of({}), SPEC)
    sample = sample_of()
    sample.discount[:] = np.where(np.arange(8) < bootstrapped, 0.9, 0.0)
    assert not learn(learner, sample).skipped
    # Counted are the observations, and those by which double Q-learning chooses actions.
    counted = learner.online.get_buffer("norm.running_mean").cpu()
    means = [
        o["observation"].mean(axis=0) for o in (sample.observation, sample.bootstrap_observation)
    ]
    expected = 0.9 * 0.1 * means[0] + 0.1 * means[1]
    np.testing.assert_allclose(counted, expected, rtol=1e-4, atol=1e-6)


COMBINATIONS = [
    (distribution, dict(zip(("double", "munchausen", "dueling", "noisy"), flags, strict=True)))
    for distribution in ("none", "categorical", "quantile", "hl_gauss")
    for flags in itertools.product((False, True), repeat=4)
    if not (distribution == "categorical" and flags[1])
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("distribution", "flags"), COMBINATIONS)
def test_every_combination_learns_from_a_batch(precision: str, distribution: str, flags: Any):
    settings = {
        "precision": precision,
        "double": flags["double"],
        "munchausen": flags["munchausen"],
    }
    network = {"dueling": flags["dueling"], "noisy": flags["noisy"]}
    config = config_of(settings, distribution=distribution, atoms=11, **network)
    check_combinations(config)
    learner = Learner(config, SPEC)
    before = parameters(learner)
    result = learn(learner, sample_of())
    assert not result.skipped
    assert np.isfinite(result.priorities).all()
    assert (result.priorities >= 0).all()
    assert result.priorities.shape == (8,)
    after = parameters(learner)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("distribution", ["none", "categorical", "quantile", "hl_gauss"])
def test_repeated_steps_on_one_batch_reduce_its_errors(distribution: str):
    learner = Learner(config_of({"target_update_period": 10**6}, distribution=distribution), SPEC)
    sample = sample_of()
    first = learn(learner, sample).priorities.mean()
    for _ in range(200):
        learn(learner, sample)
    assert learn(learner, sample).priorities.mean() < 0.5 * first


@pytest.mark.parametrize("distribution", ["none", "categorical", "quantile", "hl_gauss"])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_parts_of_a_batch_make_the_step_of_the_whole(distribution: str, micro_batch_size: int):
    whole = Learner(config_of(distribution=distribution), SPEC)
    parts = Learner(
        config_of({"micro_batch_size": micro_batch_size}, distribution=distribution), SPEC
    )
    for seed in range(3):
        one, other = learn(whole, sample_of(seed)), learn(parts, sample_of(seed))
        np.testing.assert_allclose(one.priorities, other.priorities, atol=1e-5)
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
        assert one.q_mean == pytest.approx(other.q_mean, abs=1e-5)
    for name, tensor in parameters(whole).items():
        torch.testing.assert_close(tensor, parameters(parts)[name], atol=1e-5, rtol=1e-4)


FULL = torch.OutOfMemoryError("CUDA out of memory (simulated)")


def out_of_memory_above(
    learner: Learner, rows: int, monkeypatch: pytest.MonkeyPatch, error: RuntimeError = FULL
) -> list[int]:
    """Simulate a device with room for ``rows`` rows; return the list of sizes that were tried."""
    tried: list[int] = []
    losses = learner._objective.losses

    def bounded(batch: Any) -> Any:
        tried.append(len(batch))
        if len(batch) > rows:
            raise error
        return losses(batch)

    monkeypatch.setattr(learner._objective, "losses", bounded)
    return tried


@pytest.mark.usefixtures("steps_with_torch")
def test_out_of_memory_halves_the_parts_and_keeps_the_batch(monkeypatch: pytest.MonkeyPatch):
    whole, tight = Learner(config_of(), SPEC), Learner(config_of(), SPEC)
    tried = out_of_memory_above(tight, 3, monkeypatch)
    one, other = learn(whole, sample_of()), learn(tight, sample_of())
    assert tried == [8, 4, 2, 2, 2, 2]
    assert tight.micro_batch_size == 2
    assert tight.out_of_memory == 2
    np.testing.assert_allclose(one.priorities, other.priorities, atol=1e-6)
    for name, tensor in parameters(whole).items():
        torch.testing.assert_close(tensor, parameters(tight)[name], atol=1e-6, rtol=1e-5)
    # The size that fitted once is kept: no larger one is tried again.
    tried.clear()
    learn(tight, sample_of(1))
    assert tried == [2, 2, 2, 2]


def test_memory_that_ends_in_the_middle_of_a_batch_leaves_no_half_gradient(
    monkeypatch: pytest.MonkeyPatch,
):
    settings = {"micro_batch_size": 4}
    whole, tight = Learner(config_of(settings), SPEC), Learner(config_of(settings), SPEC)
    losses, calls = tight._objective.losses, iter(range(100))

    def second_time_full(batch: Any) -> Any:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return losses(batch)

    monkeypatch.setattr(tight._objective, "losses", second_time_full)
    one, other = learn(whole, sample_of()), learn(tight, sample_of())
    assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


@pytest.mark.usefixtures("steps_with_torch")
def test_only_a_single_transition_that_does_not_fit_ends_it(monkeypatch: pytest.MonkeyPatch):
    learner = Learner(config_of(), SPEC)
    tried = out_of_memory_above(learner, 0, monkeypatch)
    with pytest.raises(RunError, match="out of GPU memory with one transition at a time"):
        learn(learner, sample_of())
    # The last attempt has the batch on the host.
    assert tried == [8, 4, 2, 1, 1]


@pytest.mark.usefixtures("steps_with_torch")
@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_libraries_that_name_the_lack_of_memory_otherwise_are_understood(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
):
    learner = Learner(config_of(), SPEC)
    tried = out_of_memory_above(learner, 4, monkeypatch, error)
    assert not learn(learner, sample_of()).skipped
    assert tried == [8, 4, 4]
    nothing_fits = out_of_memory_above(learner, 0, monkeypatch, error)
    with pytest.raises(RunError, match=r"out of GPU memory .*: (CUDA|GET|Unable) "):
        learn(learner, sample_of())
    assert nothing_fits == [4, 2, 1, 1]


@pytest.mark.usefixtures("steps_with_torch")
def test_other_errors_of_a_network_are_not_taken_for_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
):
    learner = Learner(config_of(), SPEC)
    out_of_memory_above(learner, 4, monkeypatch, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        learn(learner, sample_of())


@pytest.mark.usefixtures("steps_with_torch")
@pytest.mark.parametrize("fitting", [1, 3, 7])
def test_a_batch_that_does_not_fit_the_device_is_brought_there_in_parts(
    monkeypatch: pytest.MonkeyPatch, fitting: int
):
    whole, tight = Learner(config_of(), SPEC), Learner(config_of(), SPEC)
    one = learn(whole, sample_of())
    move = TensorBatch.to

    def bounded(batch: TensorBatch, device: torch.device) -> TensorBatch:
        if len(batch) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return move(batch, device)

    monkeypatch.setattr(TensorBatch, "to", bounded)
    other = learn(tight, sample_of())
    assert tight.micro_batch_size == {1: 1, 3: 2, 7: 4}[fitting]
    np.testing.assert_allclose(one.priorities, other.priorities, atol=1e-6)
    for name, tensor in parameters(whole).items():
        torch.testing.assert_close(tensor, parameters(tight)[name], atol=1e-6, rtol=1e-5)
    assert not learn(tight, sample_of(1)).skipped


@pytest.mark.usefixtures("steps_with_torch")
def test_a_batch_makes_room_for_a_single_transition_by_leaving_the_device(
    monkeypatch: pytest.MonkeyPatch,
):
    """Let the activations of one row fit only when the batch is not beside them."""
    whole, tight = Learner(config_of(), SPEC), Learner(config_of(), SPEC)
    one = learn(whole, sample_of())
    losses, leave = tight._objective.losses, TensorBatch.leave_device
    left: list[TensorBatch] = []

    def note(batch: TensorBatch) -> None:
        leave(batch)
        left.append(batch)

    def bounded(batch: TensorBatch) -> Any:
        if len(batch) > 1 or not left:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return losses(batch)

    monkeypatch.setattr(TensorBatch, "leave_device", note)
    monkeypatch.setattr(tight._objective, "losses", bounded)
    batch = tight.tensors(sample_of())
    other = tight.step(batch)
    assert left == [batch], "it is the very one that others hold"
    np.testing.assert_allclose(one.priorities, other.priorities, atol=1e-6)


def test_a_soft_target_follows_by_its_rate_every_step():
    learner = Learner(config_of({"target_update": "soft", "target_update_rate": 0.25}), SPEC)
    before = {name: t.clone() for name, t in learner.target.state_dict().items()}
    learn(learner, sample_of())
    online = learner.online.state_dict()
    for name, tensor in learner.target.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + 0.25 * (online[name] - before[name]))


def test_what_a_network_counts_without_learning_it_follows_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("learner.learner.build_network", lambda *_: Counting())
    tracking = Learner(config_of({"target_update": "soft", "target_update_rate": 0.25}), SPEC)
    learn(tracking, sample_of())
    ours, theirs = tracking.online.state_dict(), tracking.target.state_dict()
    assert ours["norm.num_batches_tracked"] == theirs["norm.num_batches_tracked"] == 2
    torch.testing.assert_close(ours["norm.running_mean"], theirs["norm.running_mean"])
    assert not torch.equal(ours["layer.weight"], theirs["layer.weight"])


def test_moments_that_are_there_before_the_first_step_change_nothing_of_it():
    made = Learner(config_of(), SPEC)
    assert {int(s["step"]) for s in made.get_state()["optimizer"]["state"].values()} == {0}
    plain = copy.deepcopy(made.online)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2, eps=config_of().learner.adam_epsilon)
    learn(made, sample_of())
    for ours, theirs in zip(plain.parameters(), made.online.parameters(), strict=True):
        ours.grad = theirs.grad
    adam.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, made.online.state_dict()[name], atol=1e-7, rtol=1e-6)


def test_a_restored_noisy_learner_goes_on_exactly_as_the_first_one():
    first, second = (Learner(config_of(noisy=True), SPEC) for _ in range(2))
    learn(first, sample_of())
    second.set_state(copy.deepcopy(first.get_state()))
    for seed in range(1, 4):
        assert learn(first, sample_of(seed)).loss == learn(second, sample_of(seed)).loss


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"learner": {"munchausen": True}, "network": {"distribution": "categorical"}},
            "munchausen = true with",
        ),
        (
            {"learner": {"munchausen": True}, "actor": {"returns": "lambda"}},
            "munchausen = true with actor.returns = lambda",
        ),
        ({"learner": {"micro_batch_size": 65}}, "micro_batch_size = 65, but learner.batch_size"),
        (
            {"network": {"noisy": True}, "actor": {"exploration": "boltzmann"}},
            "noisy = true with actor.exploration = boltzmann",
        ),
        (
            {"network": {"noisy": True}, "actor": {"guidance": 0.5}},
            "noisy = true with actor.guidance",
        ),
        (
            {"network": {"noisy": True}, "actor": {"guidance_final": 0.1}},
            "noisy = true with actor.guidance",
        ),
    ],
)
def test_what_does_not_combine_is_refused(sections: Any, words: str):
    with pytest.raises(UsageError, match=words):
        check_combinations(build(("test", sections)))


def test_work_for_the_meantime_is_done_once_a_step_before_the_parameters_change():
    learner = Learner(config_of({"micro_batch_size": 2}), SPEC)
    before, seen = parameters(learner), []
    learner.step(learner.tensors(sample_of()), lambda: seen.append(parameters(learner)))
    assert len(seen) == 1
    assert all(torch.equal(before[name], seen[0][name]) for name in before)


def test_a_learner_whose_batches_are_staged_ahead_takes_the_same_steps():
    plain, staged = Learner(config_of(), SPEC), Learner(config_of(), SPEC)
    samples = [sample_of(seed) for seed in range(4)]
    expected = [learn(plain, sample).priorities for sample in samples]
    stager = Stager(staged.tensors, staged.device, ahead=1)
    coming = iter(samples)

    def stage_ahead() -> None:
        if (sample := next(coming, None)) is not None:
            stager.put(sample)

    stage_ahead()
    found = []
    while len(stager):
        sample, batch = stager.take()
        assert sample is samples[len(found)]
        found.append(staged.step(batch, stage_ahead).priorities)
    # The exponent of importance sampling is that of the step at which a batch was staged.
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++"))), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("settings", "network"),
    [
        ({}, {}),
        ({"precision": "bfloat16"}, {}),
        ({}, {"distribution": "categorical", "noisy": True}),
        ({"munchausen": True, "micro_batch_size": 3}, {"distribution": "quantile"}),
    ],
    ids=["plain", "bfloat16", "categorical and noisy", "munchausen in parts"],
)
def test_a_compiled_learner_takes_the_steps_of_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, network: Any
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = Learner(config_of(settings, **network), SPEC)
    compiled = Learner(config_of({**settings, "compile": True}, **network), SPEC)
    tolerance = 1e-4 if "precision" not in settings else 2e-2
    with torch._inductor.config.patch(compile_threads=1):  # leave no pool of processes behind
        for seed in range(2):
            one, other = learn(plain, sample_of(seed)), learn(compiled, sample_of(seed))
            np.testing.assert_allclose(one.priorities, other.priorities, atol=tolerance)


@pytest.mark.parametrize("distribution", ["none", "categorical", "quantile"])
@pytest.mark.parametrize("settings", [{}, {"double": False}, {"micro_batch_size": 4}])
def test_complete_returns_are_learned_without_target_and_next_observations(
    monkeypatch: pytest.MonkeyPatch, distribution: str, settings: dict[str, Any]
):
    config = config_of(settings, distribution=distribution, atoms=11)
    sample = sample_of()
    sample.discount[:] = 0.0
    looking = Learner(config, SPEC)
    monkeypatch.setattr(
        looking, "_bootstrap_observation", lambda s: looking._observation(s.bootstrap_observation)
    )
    expected = learn(looking, sample)
    # Any pass over these would make the loss NaN.
    sample.bootstrap_observation["observation"][:] = np.nan
    learner = Learner(config, SPEC)
    with torch.no_grad():
        for parameter in learner.target.parameters():
            parameter.fill_(torch.nan)
    found = learn(learner, sample)
    assert not found.skipped
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_allclose(found.priorities, expected.priorities, rtol=1e-5)
    for name, values in parameters(looking).items():
        torch.testing.assert_close(parameters(learner)[name], values)
