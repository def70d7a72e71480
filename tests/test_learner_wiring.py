"""The learner's step against naive twins: every option has the effect that it promises.

The twins are loops in NumPy over rows, actions and atoms, on the outputs of the two networks.
"""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from learner.checkpoint import load_newest, save_checkpoint
from learner.learner import Learner, StepResult
from pdqn.layers import build
from pdqn.networks import QNetwork
from pdqn.specs import EnvironmentSpec, FieldSpec, Observation
from pdqn.telemetry import Telemetry
from replay.samples import Sample

ROWS, ACTIONS = 8, 3
SPEC = EnvironmentSpec(
    "test/Masked-v0",
    (
        FieldSpec("action_mask", (ACTIONS,), "int8", binary=True),
        FieldSpec("observation", (4,), "float32"),
    ),
    ACTIONS,
)
SUPPORT = np.linspace(-4.0, 4.0, 9)
SIGMA = 0.6
DELTA, EXPONENT, ALPHA, TEMPERATURE, CLIP = 0.5, 0.7, 0.8, 0.4, -0.6
FIXED = {
    "learner": {
        "learning_rate": 1e-2,
        "device": "cpu",
        "precision": "float32",
        "batch_size": ROWS,
        "gradient_clip_norm": 1e6,
        "huber_delta": DELTA,
        "munchausen_alpha": ALPHA,
        "munchausen_temperature": TEMPERATURE,
        "munchausen_clip": CLIP,
    },
    "network": {
        "hidden": 16,
        "layers": 1,
        "atoms": len(SUPPORT),
        "value_min": SUPPORT[0],
        "value_max": SUPPORT[-1],
        "gauss_sigma": SIGMA,
    },
    "replay": {
        "importance_sampling_exponent": EXPONENT,
        "importance_sampling_exponent_final": EXPONENT,
    },
}
Array = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _one_thread(same_threads: None) -> None:
    torch.set_num_threads(1)  # the arrays are small


def learner_of(network: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> Learner:
    layer = {"run": {"seed": seed}, "learner": changes, "network": network or {}}
    return Learner(build(("fixed", FIXED), ("test", layer)), SPEC)


def scattered(learner: Learner) -> Learner:
    """Replace the parameters by unrelated online and target networks."""
    for network in (learner.online, learner.target):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return learner


def sample_of(seed: int = 0, **changes: Any) -> Sample:
    """Build a batch of unequal weights; row 0 is terminal, row 7 has no valid action."""
    rng = np.random.default_rng(seed)
    action = rng.integers(0, ACTIONS, ROWS, np.int32)
    valid, following = rng.random((2, ROWS, ACTIONS)) < 0.6
    valid[np.arange(ROWS), action] = True
    following[np.arange(ROWS), rng.integers(0, ACTIONS, ROWS)] = True
    following[6], following[7] = True, False
    values: dict[str, Any] = {
        "keys": np.arange(ROWS),
        "observation": observation_of(rng, valid),
        "bootstrap_observation": observation_of(rng, following),
        "action": action,
        "n_step_return": rng.normal(size=ROWS).astype(np.float32),
        "discount": np.where(np.arange(ROWS) == 0, 0.0, rng.uniform(0.5, 0.9, ROWS)).astype("f4"),
        "sampling_priority": rng.random(ROWS) + 0.1,
        "parameter_version": np.zeros(ROWS, np.int64),
    }
    return Sample(**{**values, **changes})


def observation_of(rng: np.random.Generator, mask: NDArray[np.bool_]) -> Observation:
    values = rng.normal(size=(ROWS, 4)).astype(np.float32)
    return {"action_mask": np.packbits(mask, axis=1), "observation": values}


def valid_in(observation: Observation) -> NDArray[np.bool_]:
    return np.unpackbits(observation["action_mask"], axis=1)[:, :ACTIONS].astype(bool)


def learn(learner: Learner, sample: Sample) -> StepResult:
    return learner.step(learner.tensors(sample))


def put_out(network: QNetwork, observation: Observation) -> torch.Tensor:
    """Return float32[batch, actions, atoms] with the present noise; one atom for a mean."""
    inputs = {"observation": torch.from_numpy(observation["observation"])}
    return network.distribution(*network.prepare(inputs))


def tensors(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


def same(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in network.state_dict().items())


# ---- naive twins, of one row each ----


def softmax(values: Array) -> Array:
    odds = np.exp(values - values.max())
    return odds / odds.sum()


def log_policy(values: Array, valid: NDArray[np.bool_]) -> dict[int, float]:
    """Map each valid action to its log-probability."""
    odds = {a: math.exp(values[a] / TEMPERATURE) for a in range(ACTIONS) if valid[a]}
    return {a: math.log(odd / sum(odds.values())) for a, odd in odds.items()}


def projection(ret: float, discount: float, probabilities: Array) -> Array:
    """Project by algorithm 1 of Bellemare et al. (2017)."""
    found, spacing = np.zeros(len(SUPPORT)), SUPPORT[1] - SUPPORT[0]
    for atom, probability in zip(SUPPORT, probabilities, strict=True):
        moved = min(max(ret + discount * atom, SUPPORT[0]), SUPPORT[-1])
        at = (moved - SUPPORT[0]) / spacing
        lower, upper = math.floor(at), math.ceil(at)
        if lower == upper:  # the paper's algorithm loses this mass
            found[lower] += probability
        else:
            found[lower] += probability * (upper - at)
            found[upper] += probability * (at - lower)
    return found


def histogram(value: float) -> Array:
    """Spread a return by the formula of Farebrother et al. (2024), for bins from -4 to 4."""

    def below(end: float) -> float:
        return 0.5 * (1 + math.erf((end - value) / (SIGMA * width * math.sqrt(2))))

    ends = np.linspace(SUPPORT[0], SUPPORT[-1], len(SUPPORT) + 1)
    width = ends[1] - ends[0]
    masses = [below(high) - below(low) for low, high in itertools.pairwise(ends)]
    return np.array(masses) / (below(ends[-1]) - below(ends[0]))


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) < DELTA else DELTA * (abs(error) - 0.5 * DELTA)


def slope(error: float) -> float:
    """Return the derivative of ``huber``."""
    return min(max(error, -DELTA), DELTA)


def loss_of(kind: str, ours: Array, target: Array) -> tuple[float, Array]:
    """Return the loss of the chosen action's atoms, and its derivative by each of them."""
    if kind == "none":
        error = ours[0] - target[0]
        return huber(error), np.array([slope(error)])
    if kind == "hl_gauss":
        target = histogram(target[0])
    if kind in ("categorical", "hl_gauss"):
        return -float(target @ np.log(softmax(ours))), softmax(ours) - target
    loss, slopes = 0.0, np.zeros(len(ours))
    for i, quantile in enumerate(ours):
        for value in target:
            weight = abs((i + 0.5) / len(ours) - (value < quantile)) / DELTA / len(target)
            loss += weight * huber(quantile - value)
            slopes[i] += weight * slope(quantile - value)
    return loss, slopes


def twin(learner: Learner, sample: Sample, kind: str, double: bool, munchausen: bool) -> Any:
    """Return (loss, mean Q, priorities, gradient by the online network's atoms) of a batch."""

    half = (SUPPORT[-1] - SUPPORT[0]) / len(SUPPORT) / 2
    centres = np.linspace(SUPPORT[0] + half, SUPPORT[-1] - half, len(SUPPORT))

    def mean(atoms: Array) -> float:
        if kind == "hl_gauss":
            return float(softmax(atoms) @ centres)
        return float(softmax(atoms) @ SUPPORT if kind == "categorical" else atoms.mean())

    def outcomes(atoms: Array) -> Array:
        return np.array([mean(atoms)]) if kind == "hl_gauss" else atoms

    def atoms_of(network: QNetwork, observation: Observation) -> Array:
        return put_out(network, observation).detach().numpy().astype(np.float64)

    now, following = sample.observation, sample.bootstrap_observation
    (ours, theirs), (ours_next, theirs_next) = (
        [atoms_of(network, seen) for network in (learner.online, learner.target)]
        for seen in (now, following)
    )
    weights = (sample.sampling_priority.min() / sample.sampling_priority) ** EXPONENT
    loss, chosen, errors, gradient = 0.0, [], [], np.zeros_like(ours)
    for row in range(ROWS):
        action, discount = sample.action[row], float(sample.discount[row])
        ret, valid = float(sample.n_step_return[row]), valid_in(following)[row]
        worth = np.zeros(1)
        if munchausen:
            q = np.array([mean(theirs[row, a]) for a in range(ACTIONS)])
            ret += ALPHA * max(TEMPERATURE * log_policy(q, valid_in(now)[row])[action], CLIP)
            q = np.array([mean(theirs_next[row, a]) for a in range(ACTIONS)])
            for a, log_pi in log_policy(q, valid).items():
                soft = outcomes(theirs_next[row, a]) - TEMPERATURE * log_pi
                worth = worth + math.exp(log_pi) * soft
        elif valid.any():
            chooser = ours_next if double else theirs_next
            best = max(np.flatnonzero(valid), key=lambda a: mean(chooser[row, a]))
            worth = outcomes(theirs_next[row, best])
        if kind == "categorical":
            going_on = worth if valid.any() else np.zeros(len(SUPPORT))
            target = projection(ret, discount if valid.any() else 0.0, softmax(going_on))
            aim = float(target @ SUPPORT)
        else:
            target = ret + discount * worth
            if kind == "hl_gauss":
                target = target.clip(SUPPORT[0], SUPPORT[-1])
            aim = target.mean()
        found, slopes = loss_of(kind, ours[row, action], target)
        loss += weights[row] * found / ROWS
        gradient[row, action] = weights[row] * slopes / ROWS
        chosen.append(mean(ours[row, action]))
        errors.append(abs(aim - chosen[-1]))
    return loss, np.mean(chosen), errors, gradient


# ---- targets, weights and gradients ----


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("micro_batch_size", [8, 3])
@pytest.mark.parametrize(
    ("kind", "double", "munchausen", "target"),
    [
        ("none", False, False, "network"),
        ("none", True, False, "network"),
        ("none", False, True, "network"),
        ("none", False, False, "last_layer"),
        ("none", True, False, "last_layer"),
        ("none", True, False, "none"),
        ("none", False, True, "none"),
        ("categorical", False, False, "network"),
        ("categorical", True, False, "network"),
        ("categorical", True, False, "last_layer"),
        ("quantile", False, False, "network"),
        ("quantile", True, False, "network"),
        ("quantile", False, True, "network"),
        ("quantile", False, True, "none"),
        ("hl_gauss", True, False, "network"),
        ("hl_gauss", False, True, "last_layer"),
        ("hl_gauss", True, False, "none"),
    ],
)
def test_a_step_has_the_loss_the_priorities_and_the_gradient_of_a_naive_twin(
    kind: str, double: bool, munchausen: bool, target: str, micro_batch_size: int, noisy: bool
):
    learner = scattered(
        learner_of(
            {"distribution": kind, "noisy": noisy},
            target=target,
            double=double,
            munchausen=munchausen,
            micro_batch_size=micro_batch_size,
        )
    )
    before = tensors(learner.online)
    for seed in range(3):
        sample = sample_of(seed)
        result = learn(learner, sample)
        learner.online.load_state_dict(before)  # the step's noise stays
        loss, q_mean, priorities, gradient = twin(learner, sample, kind, double, munchausen)
        assert result.loss == pytest.approx(loss, rel=1e-4)
        assert result.q_mean == pytest.approx(q_mean, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(result.priorities, priorities, rtol=1e-4, atol=1e-5)
        output = put_out(learner.online, sample.observation)
        parameters = list(learner.online.parameters())
        wanted = torch.autograd.grad(output, parameters, torch.from_numpy(gradient).float())
        for parameter, slope in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "categorical", "quantile", "hl_gauss"])
def test_going_on_without_a_valid_action_aims_at_the_return_alone(kind: str):
    sample = sample_of(
        discount=np.full(ROWS, 0.9, np.float32),
        bootstrap_observation=observation_of(
            np.random.default_rng(1), np.zeros((ROWS, ACTIONS), bool)
        ),
    )
    learner = scattered(learner_of({"distribution": kind}))
    with torch.no_grad():
        inputs = {"observation": torch.from_numpy(sample.observation["observation"])}
        values = learner.online(*learner.online.prepare(inputs)).numpy()
    wanted = np.abs(sample.n_step_return - values[np.arange(ROWS), sample.action])
    np.testing.assert_allclose(learn(learner, sample).priorities, wanted, rtol=1e-4, atol=1e-5)


def test_a_masked_action_takes_no_part_in_munchausens_policy():
    """Compare with numbers worked by hand: at temperature 1 the odds are 1 : 3 : (masked) 1000."""
    learner = learner_of(
        {"dueling": False},
        munchausen=True,
        munchausen_temperature=1.0,
        munchausen_clip=-5.0,
    )
    for network, values in ((learner.online, [7.0, 8, 9]), (learner.target, np.log([1, 3, 1000]))):
        flat = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
        flat["head.advantage.bias"] = torch.as_tensor(values)
        network.load_state_dict(flat)
    seen = observation_of(np.random.default_rng(0), np.tile([True, True, False], (ROWS, 1)))
    result = learn(
        learner,
        sample_of(
            observation=seen,
            bootstrap_observation=seen,
            action=np.tile([0, 1], 4).astype(np.int32),
            n_step_return=np.ones(ROWS, np.float32),
            discount=np.full(ROWS, 0.5, np.float32),
        ),
    )
    # The policy is (1/4, 3/4) with soft value log(1 + 3); the online network's values are 7 and 8.
    targets = 1 + ALPHA * np.log([1 / 4, 3 / 4]) + 0.5 * math.log(4)
    wanted = np.tile(np.abs(targets - [7, 8]), 4)
    np.testing.assert_allclose(result.priorities, wanted, rtol=1e-5)


# ---- noise ----


def test_every_step_draws_noise_anew_for_each_network():
    learner = learner_of({"noisy": True}, micro_batch_size=3)
    drawn = []
    for seed in range(3):
        learn(learner, sample_of(seed))
        both = (learner.online, learner.target)
        drawn += [[noise.clone() for noise in network.buffers()] for network in both]
    for layer in zip(*drawn, strict=True):
        assert len({tuple(noise.tolist()) for noise in layer}) == 6


# ---- memory that runs out ----


@pytest.mark.parametrize("where", ["losses", "backward"])
@pytest.mark.parametrize(("rows", "halvings"), [(4, 1), (2, 2)])
def test_a_step_that_runs_out_of_memory_is_noted_once_and_is_that_of_small_parts(
    monkeypatch: pytest.MonkeyPatch, where: str, rows: int, halvings: int
):
    small, tight = learner_of({"noisy": True}), learner_of({"noisy": True})
    sizes, losses = [], tight._objective.losses
    limit, telemetry = [ROWS], Telemetry()

    def fail_if_large(_: Any = None) -> None:
        if sizes[-1] > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    def limited(batch: Any) -> Any:
        sizes.append(len(batch))
        if where == "losses":
            fail_if_large()
        return losses(batch)

    monkeypatch.setattr(tight._objective, "losses", limited)
    if where == "backward":  # the head has a gradient, the layers below do not
        head = tight.online.get_parameter("head.advantage.weight")
        head.register_post_accumulate_grad_hook(fail_if_large)
    notes = []
    for seed in range(4):
        if seed == 1:
            limit[0], small.micro_batch_size = rows, rows
        expected, found = learn(small, sample_of(seed)), learn(tight, sample_of(seed))
        assert (found.loss, found.gradient_norm) == (expected.loss, expected.gradient_norm)
        assert np.array_equal(found.priorities, expected.priorities)
        assert same(tight.online, small.online)
        tight.account(telemetry, found)
        report = telemetry.report()
        notes.append(report.notes)
        halved = seed >= 1
        assert report.gauges["micro_batch_size"] == (rows if halved else ROWS)
        assert report.counters.get("out_of_memory", 0) == (halvings if halved else 0)
    assert [len(written) for written in notes] == [0, 1, 0, 0]
    kind, text = notes[1][0]
    assert kind == "out_of_memory"
    assert f"a batch of {ROWS} is computed {rows} at a time from now on" in text


# ---- state ----

PERIODIC = {"target_update_period": 2}


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ({}, {"target_update": "soft", "target_update_rate": 0.3}),
        ({"distribution": "categorical"}, PERIODIC),
        ({"distribution": "quantile"}, PERIODIC),
        ({}, {**PERIODIC, "munchausen": True}),
        ({}, {**PERIODIC, "micro_batch_size": 3}),
        ({}, {**PERIODIC, "learning_rate_final": 1e-3, "learning_rate_decay_steps": 5}),
        ({"noisy": True}, PERIODIC),
        ({}, {**PERIODIC, "target": "last_layer"}),
        ({"distribution": "hl_gauss"}, {"target": "last_layer", "target_update": "soft"}),
        ({}, {"target": "none"}),
    ],
    ids=[
        "soft",
        "categorical",
        "quantile",
        "munchausen",
        "micro-batches",
        "decaying",
        "noisy",
        "last layer",
        "soft last layer",
        "no target",
    ],
)
def test_a_learner_that_is_restored_goes_on_bit_for_bit(
    tmp_path: Path, network: dict[str, Any], changes: dict[str, Any]
):
    def three_steps(learner: Learner, first: int) -> list[Any]:
        results = [learn(learner, sample_of(seed)) for seed in range(first, first + 3)]
        numbers = [(r.loss, r.gradient_norm, r.q_mean, r.priorities.tolist()) for r in results]
        # A user's own network may draw from torch's generator, as dropout does.
        return [*numbers, torch.rand(()).item()]

    through = learner_of(network, **changes)
    three_steps(through, 0)
    save_checkpoint(tmp_path, through.get_state(), keep=1)
    expected = three_steps(through, 3)
    # Another seed, so that nothing agrees by chance.
    restored = learner_of(network, seed=1, **changes)
    state = load_newest(tmp_path)
    assert state is not None
    restored.set_state(state)
    assert three_steps(restored, 3) == expected
    assert same(restored.online, through.online)
    assert same(restored.target, through.target)
