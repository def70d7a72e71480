"""The learner's step, its state, and its checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from devices import DEVICE, on_the_cpu

from learner.checkpoint import Saver, load_newest, save_checkpoint
from learner.checkpoint_folders import checkpoints
from learner.learner import Learner, StepResult
from pdqn import wire
from pdqn.errors import RunError
from pdqn.layers import build
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.telemetry import Telemetry
from replay.buffer import PrioritizedBuffer, make_store
from replay.samples import Sample

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 3)
MASKED = EnvironmentSpec(
    "test/Masked-v0",
    (
        FieldSpec("action_mask", (3,), "int8", binary=True),
        FieldSpec("observation", (4,), "float32"),
    ),
    3,
)
PRECISIONS = ("float32", "bfloat16")


def learner_of(
    spec: EnvironmentSpec = SPEC,
    replay: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
    **changes: Any,
) -> Learner:
    settings = {"learning_rate": 1e-2, "device": DEVICE, "precision": "float32", **changes}
    sizes = {"hidden": 16, "layers": 1, **(network or {})}
    layer = {"learner": settings, "network": sizes, "replay": replay or {}}
    return Learner(build(("test", layer)), spec)


def sample_of(batch: int = 8, seed: int = 0, **changes: Any) -> Sample:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "keys": np.arange(batch),
        "observation": {"observation": rng.normal(size=(batch, 4)).astype(np.float32)},
        "bootstrap_observation": {"observation": rng.normal(size=(batch, 4)).astype(np.float32)},
        "action": rng.integers(0, 3, batch, np.int32),
        "n_step_return": rng.normal(size=batch).astype(np.float32),
        "discount": np.full(batch, 0.9, np.float32),
        "sampling_priority": np.ones(batch),
        "parameter_version": np.zeros(batch, np.int64),
    }
    return Sample(**{**values, **changes})


def learn(learner: Learner, sample: Sample) -> StepResult:
    return learner.step(learner.tensors(sample))


def copied(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def gradient_norm(learner: Learner) -> float:
    gradients = [p.grad for p in learner.online.parameters() if p.grad is not None]
    return torch.stack([g.norm() for g in gradients]).norm().item()


# ---- step ----


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_step_changes_the_online_parameters_and_not_the_target(precision: str):
    learner = learner_of(precision=precision)
    online, target = copied(learner.online), copied(learner.target)
    result = learn(learner, sample_of())
    assert not result.skipped
    changed = {name for name, t in learner.online.state_dict().items() if (t != online[name]).any()}
    assert changed == set(online), "some parameters were left alone"
    assert equal(learner.target, target)
    assert {t.dtype for t in learner.online.parameters()} == {torch.float32}


def test_both_precisions_find_about_the_same_loss():
    results = [learn(learner_of(precision=precision), sample_of()) for precision in PRECISIONS]
    assert results[0].loss == pytest.approx(results[1].loss, rel=0.1)
    assert results[0].priorities == pytest.approx(results[1].priorities, abs=0.1)


def test_priorities_are_the_absolute_errors_of_the_batch():
    learner = learner_of()
    sample = sample_of(discount=np.zeros(8, np.float32))
    with torch.no_grad():
        observation = torch.from_numpy(sample.observation["observation"]).to(DEVICE)
        values = learner.online(*learner.online.prepare({"observation": observation}))
        values = values.cpu().numpy()
    result = learn(learner, sample)
    errors = np.abs(sample.n_step_return - values[np.arange(8), sample.action])
    assert result.priorities == pytest.approx(errors, abs=1e-6)
    assert result.priorities.dtype == np.float32


def test_the_mask_of_the_bootstrap_observation_is_unpacked_and_used():
    rng = np.random.default_rng(1)
    observation = rng.normal(size=(2, 4)).astype(np.float32)
    # Row 0 has no valid action, so its target is its return. Row 1 has only action 1.
    packed = np.packbits(np.array([[0, 0, 0], [0, 1, 0]], bool), axis=1)
    everything = np.packbits(np.ones((2, 3), bool), axis=1)
    learner = learner_of(MASKED)
    with torch.no_grad():
        inputs = {"observation": torch.from_numpy(observation).to(DEVICE)}
        values = learner.target(*learner.target.prepare(inputs)).cpu().numpy()
    sample = sample_of(
        2,
        observation={"action_mask": everything, "observation": observation},
        bootstrap_observation={"action_mask": packed, "observation": observation},
        action=np.zeros(2, np.int32),
        n_step_return=np.array([1.0, 2.0], np.float32),
        discount=np.array([0.5, 0.5], np.float32),
    )
    targets = np.array([1.0, 2.0 + 0.5 * values[1, 1]])
    result = learn(learner, sample)
    assert result.priorities == pytest.approx(np.abs(targets - values[:, 0]), abs=1e-5)


@on_the_cpu
def test_a_batch_whose_returns_reach_the_end_of_their_episodes_asks_no_network_what_follows(
    monkeypatch: pytest.MonkeyPatch,
):
    learner = learner_of()
    monkeypatch.setattr(learner.target, "trunk", None)  # a step would raise
    assert not learn(learner, sample_of(discount=np.zeros(8, np.float32))).skipped


@pytest.mark.usefixtures("steps_with_torch")
@pytest.mark.parametrize("change", [{}, {"distribution": "quantile"}, {"munchausen": True}])
def test_only_what_is_bootstrapped_from_is_computed_and_nothing_changes(change: dict[str, Any]):
    network = {"distribution": change.pop("distribution", "none")}
    discounts = np.array([0, 0.9, 0, 0.9, 0.9, 0, 0, 0.5], np.float32)
    sample = sample_of(discount=discounts)
    some, every = learner_of(network=network, **change), learner_of(network=network, **change)
    every._objective._selects = False
    found, wanted = learn(some, sample), learn(every, sample)
    np.testing.assert_allclose(found.priorities, wanted.priorities, rtol=1e-5)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)


def test_the_target_is_updated_exactly_every_period():
    learner = learner_of(target_update_period=3)
    updated = []
    for step in range(1, 8):
        learn(learner, sample_of(seed=step))
        if equal(learner.target, copied(learner.online)):
            updated.append(step)
    assert updated == [3, 6]
    assert learner.learner_steps == 7


def test_the_gradient_is_clipped_before_the_optimizer_sees_it():
    learner = learner_of(gradient_clip_norm=0.5, huber_delta=1e6)
    result = learn(learner, sample_of(n_step_return=np.full(8, 1e5, np.float32)))
    assert result.gradient_norm > 1000, "the norm that is reported is the one before clipping"
    # Adam's first moment after one step is (1 - 0.9) times the gradient.
    moments = [s["exp_avg"] for s in learner.get_state()["optimizer"]["state"].values()]
    assert torch.stack([m.norm() for m in moments]).norm() == pytest.approx(0.05, rel=1e-3), (
        "clipped to a norm of 0.5"
    )


def test_a_gradient_within_the_bound_is_left_as_it_is():
    learner = learner_of(gradient_clip_norm=1e6)
    result = learn(learner, sample_of())
    assert gradient_norm(learner) == pytest.approx(result.gradient_norm, rel=1e-5)


def sample_with_ones() -> Sample:
    return sample_of(n_step_return=np.ones(8, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["n_step_return", "observation"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_that_is_not_finite_leaves_the_parameters_alone_and_loses_its_own_priority_only(
    precision: str, where: str, bad: float
):
    learner, twin = learner_of(precision=precision), learner_of(precision=precision)
    for either in (learner, twin):
        learn(either, sample_of())
    before = copied(learner.online)
    if where == "observation":
        observation = sample_of().observation["observation"]
        observation[3, 1] = bad
        sample = sample_of(observation={"observation": observation})
    else:
        sample = sample_with_ones()
        sample.n_step_return[3] = bad
    others = np.arange(8) != 3
    errors = learn(twin, sample_of() if where == "observation" else sample_with_ones()).priorities
    result = learn(learner, sample)
    assert result.skipped
    assert result.priorities[3] == 0.0
    np.testing.assert_allclose(result.priorities[others], errors[others], rtol=1e-5)
    assert (errors[others] > 0).all()
    assert equal(learner.online, before)
    assert not learn(learner, sample_of()).skipped, "the next good batch is learned from"


@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_losses_that_only_their_sum_makes_infinite_cost_the_rows_that_are_so_large(
    micro_batch_size: int,
):
    returns = np.ones(8, np.float32)
    returns[[1, 2]] = 3e38
    learner = learner_of(micro_batch_size=micro_batch_size)
    result = learn(learner, sample_of(n_step_return=returns))
    assert result.skipped
    assert result.loss == np.inf
    assert [row for row in range(8) if result.priorities[row] == 0.0] == [1, 2]


def test_a_finite_row_whose_gradient_overflows_loses_its_priority_alone():
    observation = sample_of().observation["observation"]
    observation[5, 2] = 1e25
    result = learn(learner_of(), sample_of(observation={"observation": observation}))
    assert result.skipped
    assert np.isfinite(result.loss)
    assert [row for row in range(8) if result.priorities[row] == 0.0] == [5]


@pytest.mark.usefixtures("steps_with_torch")
def test_every_row_loses_its_priority_when_no_row_can_be_blamed():
    learner = learner_of()
    with torch.no_grad():
        for parameter in learner.online.parameters():
            parameter.register_hook(lambda gradient: gradient * np.inf)
    result = learn(learner, sample_of())
    assert result.skipped
    assert result.priorities.tolist() == [0.0] * 8


def test_an_observation_out_of_all_proportion_costs_a_few_steps_and_not_all():
    learner, telemetry = learner_of(), Telemetry()
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(513, 4)).astype(np.float32)
    frames[100, 2] = 1e20  # the gradient's squares overflow
    store = make_store("dense", SPEC, 2048, None, 1)
    buffer = PrioritizedBuffer(SPEC, 2048, store=store, priority_exponent=0.6, rng=rng)
    columns = {
        "action": rng.integers(0, 3, 512, np.int32),
        "n_step_return": np.ones(512, np.float32),
        "discount": np.full(512, 0.9, np.float32),
        "priority": np.ones(512, np.float32),
        "observation_index": np.arange(512, dtype=np.int32),
        "bootstrap_index": np.arange(1, 513, dtype=np.int32),
    }
    columns["priority"][99:101] = 1e20
    buffer.insert(columns, [wire.compress_block({"observation": frames}, SPEC)], 0)
    for _ in range(100):
        sample = buffer.sample(32)
        result = learn(learner, sample)
        buffer.update_priorities(sample.keys, result.priorities)
        learner.account(telemetry, result)
    assert 1 <= telemetry.counters["steps_skipped"] < 10
    assert [kind for kind, _ in telemetry.report().notes] == ["skipped"]


def test_repeated_steps_on_one_batch_reduce_its_loss():
    learner = learner_of()
    sample = sample_of(discount=np.zeros(8, np.float32))
    losses = [learn(learner, sample).loss for _ in range(100)]
    assert losses[-1] < 0.05 * losses[0]


def test_two_learners_of_one_seed_are_the_same():
    first, second = learner_of(), learner_of()
    for seed in range(3):
        learn(first, sample_of(seed=seed))
        learn(second, sample_of(seed=seed))
    assert equal(second.online, copied(first.online))


def test_arrays_off_the_wire_are_learned_from_though_they_are_read_only():
    sample = sample_of()
    for array in (sample.action, sample.n_step_return, sample.observation["observation"]):
        array.flags.writeable = False
    assert not learn(learner_of(), sample).skipped


@on_the_cpu
def test_tensors_on_the_cpu_are_the_samples_own_memory():
    sample = sample_of()
    batch = learner_of().tensors(sample)
    sample.observation["observation"][0, 0] = 77
    sample.n_step_return[0] = 78
    assert batch.observation["observation"][0, 0] == 77
    assert batch.n_step_return[0] == 78


# ---- importance sampling ----

ANNEALED = {
    "importance_sampling_exponent": 0.4,
    "importance_sampling_exponent_final": 1.0,
    "importance_sampling_annealing_steps": 6,
}


def test_the_exponent_goes_on_a_straight_line_to_its_final_value_and_stays():
    learner = learner_of(replay=ANNEALED)
    found = []
    for step in range(9):
        found.append(learner.importance_sampling_exponent)
        learn(learner, sample_of(seed=step))
    assert found == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])


def test_a_final_exponent_like_the_first_changes_nothing():
    learner = learner_of(replay={**ANNEALED, "importance_sampling_exponent_final": 0.4})
    learner.learner_steps = 3
    assert learner.importance_sampling_exponent == pytest.approx(0.4)


def test_weights_are_those_of_the_exponent_at_this_step():
    learner = learner_of(replay=ANNEALED)
    sample = sample_of(4, sampling_priority=np.array([1.0, 4.0, 16.0, 1.0]))
    weights = learner.tensors(sample).importance_weight
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([1, 4**-0.4, 16**-0.4, 1])
    learner.learner_steps = 100
    assert learner.tensors(sample).importance_weight.tolist() == pytest.approx(
        [1, 1 / 4, 1 / 16, 1]
    )


def test_an_exponent_of_zero_weighs_all_alike():
    learner = learner_of(replay={**ANNEALED, "importance_sampling_exponent": 0.0})
    sample = sample_of(3, sampling_priority=np.array([1.0, 1e-9, 1e9]))
    assert learner.tensors(sample).importance_weight.tolist() == [1, 1, 1]


def test_a_restored_learner_anneals_on_from_where_it_was():
    first, second = learner_of(replay=ANNEALED), learner_of(replay=ANNEALED)
    for seed in range(4):
        learn(first, sample_of(seed=seed))
    second.set_state(first.get_state())
    assert second.importance_sampling_exponent == first.importance_sampling_exponent


# ---- step size ----


def test_the_step_size_decays_on_a_straight_line_and_is_what_adam_takes():
    decaying = {"learning_rate_final": 0.001, "learning_rate_decay_steps": 4}
    learner, taken = learner_of(learning_rate=0.005, **decaying), []
    for step in range(6):
        learn(learner, sample_of(seed=step))
        taken.append(learner.get_state()["optimizer"]["param_groups"][0]["lr"])
    assert taken == pytest.approx([0.005, 0.004, 0.003, 0.002, 0.001, 0.001])


def test_without_a_number_of_decay_steps_it_falls_with_the_run_itself():
    learner = learner_of(learning_rate=0.005, learning_rate_final=0.001)
    learner.learner_steps = 10**6
    rates: list[float] = []
    for learner.progress in (0.0, 0.25, 1.0):
        rates.append(learner.learning_rate)
    assert rates == pytest.approx([0.005, 0.004, 0.001])


def test_without_a_final_step_size_it_stays():
    learner = learner_of(learning_rate=0.005)
    learner.learner_steps, learner.progress = 10**6, 0.5
    assert learner.learning_rate == 0.005


# ---- state ----


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_restored_learner_goes_on_exactly_as_the_first_one(tmp_path: Path, precision: str):
    first = learner_of(precision=precision, target_update_period=4)
    for seed in range(6):
        learn(first, sample_of(seed=seed))
    save_checkpoint(tmp_path, first.get_state(), keep=1)
    second = learner_of(precision=precision, target_update_period=4)
    state = load_newest(tmp_path)
    assert state is not None
    second.set_state(state)
    assert second.learner_steps == 6
    for seed in range(6, 12):
        expected, found = learn(first, sample_of(seed=seed)), learn(second, sample_of(seed=seed))
        assert (found.loss, found.gradient_norm) == (expected.loss, expected.gradient_norm)
    assert equal(second.online, copied(first.online))
    assert equal(second.target, copied(first.target))


# ---- checkpoints ----


def state_of(steps: int) -> dict[str, Any]:
    return {"learner_steps": steps, "online": {"weight": torch.full((256,), float(steps))}}


def test_a_checkpoint_loads_without_running_pickled_code(tmp_path: Path):
    path = save_checkpoint(tmp_path, state_of(7), keep=3)
    assert path == tmp_path / "checkpoints" / "step-000000007"
    content = torch.load(path / "learner.pth", weights_only=True)
    assert content["learner_steps"] == 7
    assert [file.name for file in path.iterdir()] == ["learner.pth"], "nothing temporary is left"


def test_a_learners_whole_state_loads_without_running_pickled_code(tmp_path: Path):
    learner = learner_of()
    learn(learner, sample_of())
    save_checkpoint(tmp_path, learner.get_state(), keep=1)
    state = load_newest(tmp_path)
    assert state is not None
    assert state.keys() == learner.get_state().keys()


def test_only_the_newest_few_are_kept(tmp_path: Path):
    for steps in (5, 90, 1000, 200_000):
        save_checkpoint(tmp_path, state_of(steps), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000200000", "step-000001000"]


def test_newest_means_most_steps_beyond_nine_digits_too(tmp_path: Path):
    for steps in (999_999_999, 1_000_000_000):
        save_checkpoint(tmp_path, state_of(steps), keep=2)
    state = load_newest(tmp_path)
    assert state is not None
    assert state["learner_steps"] == 1_000_000_000


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path):
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "nowhere") is None


def test_saving_the_same_step_again_replaces_the_checkpoint(tmp_path: Path):
    save_checkpoint(tmp_path, state_of(3), keep=2)
    save_checkpoint(tmp_path, {**state_of(3), "extra": 1}, keep=2)
    state = load_newest(tmp_path)
    assert state is not None
    assert state["extra"] == 1


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_one_byte_of_a_name(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"FloatStorage") + 5] = 0xDB
    file.write_bytes(content)


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut in half": cut_in_half,
    "noise": lambda file: file.write_bytes(np.random.default_rng(0).bytes(5000)),
    "text": lambda file: file.write_text("not a checkpoint\n" * 100),
    "zeros": lambda file: file.write_bytes(bytes(5000)),
    "a byte that is no text": change_one_byte_of_a_name,
    "another thing": lambda file: torch.save(["not", "a", "state"], file),
    "a state without steps": lambda file: torch.save({"online": {}}, file),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
):
    save_checkpoint(tmp_path, state_of(1), keep=3)
    newest = save_checkpoint(tmp_path, state_of(2), keep=3)
    DAMAGES[damage](newest / "learner.pth")
    with caplog.at_level(logging.WARNING):
        state = load_newest(tmp_path)
    assert state is not None
    assert state["learner_steps"] == 1
    assert "step-000000002 cannot be read" in caplog.text
    assert "weights_only" not in caplog.text


def test_one_that_was_not_written_to_its_end_is_none_and_goes_with_the_next(tmp_path: Path):
    save_checkpoint(tmp_path, state_of(1), keep=1)
    unfinished = tmp_path / "checkpoints" / "step-000000002"
    unfinished.mkdir()
    state = load_newest(tmp_path)
    assert state is not None
    assert state["learner_steps"] == 1
    save_checkpoint(tmp_path, state_of(3), keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000003"]
    assert not unfinished.exists()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_after_a_damaged_newest_checkpoint_saves_of_fewer_steps_stay(tmp_path: Path, keep: int):
    save_checkpoint(tmp_path, state_of(10), keep=3)
    save_checkpoint(tmp_path, state_of(500), keep=3)
    damaged = save_checkpoint(tmp_path, state_of(1000), keep=3)
    (damaged / "learner.pth").write_bytes(b"damaged")
    again = load_newest(tmp_path, lambda _: None)
    assert again is not None
    assert again["learner_steps"] == 500
    for steps in (520, 540):
        path = save_checkpoint(tmp_path, state_of(steps), keep)
        newest = load_newest(tmp_path, pytest.fail)
        assert newest is not None
        assert newest["learner_steps"] == steps
        assert next(checkpoints(tmp_path)) == path
    kept = [540, 520, 500][:keep]
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{n:09d}" for n in kept]
    aside = tmp_path / "checkpoints" / "unreadable-step-000001000" / "learner.pth"
    assert aside.read_bytes() == b"damaged"


def test_a_damaged_checkpoint_does_not_take_the_place_of_one_that_can_be_read(tmp_path: Path):
    learner = learner_of()
    for steps in (500, 1000):
        learner.learner_steps = steps
        damaged = save_checkpoint(tmp_path, learner.get_state(), keep=2)
    (damaged / "learner.pth").write_bytes(b"damaged")
    saver, said = Saver(tmp_path, build(("test", {"checkpoint": {"keep": 2}})), SPEC), list[str]()
    saver.restore(learner, said.append)
    assert [text.partition("(")[0] for text in said] == [
        f"checkpoint {damaged} cannot be read ",
        "goes on from learner step 500",
    ]
    saver.restore(learner, said.append)
    assert said[2:] == ["goes on from learner step 500"], "the damaged one is told once"
    learner.learner_steps = 1200
    saver.save(learner)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000500", "step-000001200", "unreadable-step-000001000"]


def test_of_damaged_checkpoints_only_the_newest_ten_stay(tmp_path: Path):
    save_checkpoint(tmp_path, state_of(1), keep=1)
    for steps in range(10, 25):
        damaged = save_checkpoint(tmp_path, state_of(steps), keep=1)
        (damaged / "learner.pth").write_bytes(b"damaged")
        save_checkpoint(tmp_path, state_of(1), keep=1)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000001", *(f"unreadable-step-{n:09d}" for n in range(15, 25))]


def test_a_second_damaged_checkpoint_of_the_same_step_replaces_the_first(tmp_path: Path):
    for content in (b"first", b"second"):
        damaged = save_checkpoint(tmp_path, state_of(9), keep=1)
        (damaged / "learner.pth").write_bytes(content)
        save_checkpoint(tmp_path, state_of(3), keep=1)
    folder = tmp_path / "checkpoints"
    names = ["step-000000003", "unreadable-step-000000009"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / names[1] / "learner.pth").read_bytes() == b"second"


def test_checkpoints_of_which_none_can_be_read_are_an_error(tmp_path: Path):
    for steps in (1, 2):
        (save_checkpoint(tmp_path, state_of(steps), keep=3) / "learner.pth").write_bytes(b"")
    with pytest.raises(RunError, match="none of the 2 checkpoints"):
        load_newest(tmp_path)


def test_a_save_is_due_after_enough_steps_or_time_and_never_without_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [100.0]
    monkeypatch.setattr("learner.checkpoint.time.monotonic", lambda: now[0])
    period = {"period_seconds": 60.0, "period_steps": 5}
    learner = learner_of()
    saver = Saver(tmp_path, build(("test", {"checkpoint": period})), SPEC)
    assert [saver.due(steps) for steps in (0, 4, 5)] == [False, False, True]
    now[0] = 161.0
    assert [saver.due(steps) for steps in (0, 1)] == [False, True]
    learn(learner, sample_of())
    saver.save(learner)
    assert not saver.due(learner.learner_steps)
    said: list[str] = []
    again = Saver(tmp_path, build(), SPEC)
    again.restore(learner_of(), said.append)
    assert said == ["goes on from learner step 1"]
    now[0] += 61.0
    assert not again.due(1), "what was restored is saved already"
    assert again.due(2)


def test_adams_epsilon_may_change_when_a_run_goes_on():
    first, second = learner_of(), learner_of(adam_epsilon=0.5)
    second.set_state(first.get_state())
    assert second._optimizer.epsilon == 0.5


def test_a_save_that_fails_leaves_the_last_checkpoint_whole(tmp_path: Path):
    save_checkpoint(tmp_path, state_of(1), keep=3)
    broken = {"learner_steps": 2, "online": lambda: None}  # cannot be pickled
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_checkpoint(tmp_path, broken, keep=3)
    state = load_newest(tmp_path)
    assert state is not None
    assert state["learner_steps"] == 1
