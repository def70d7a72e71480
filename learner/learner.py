"""The learner's state and its step: sample in, new parameters and priorities out. No sockets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner import array_kernels as kernels
from learner.adam import FlatAdam, TorchAdam, flatten
from learner.array_step import ArrayStep, array_step_of
from learner.objective import Objective, TensorBatch
from learner.targets import target_network
from pdqn import seeds
from pdqn.config import Config, resolved
from pdqn.errors import RunError, first_line
from pdqn.networks import build_network, resample_noise
from pdqn.networks.array_network import Array, suits_flat
from pdqn.schedules import linear
from pdqn.specs import EnvironmentSpec, Observation
from pdqn.telemetry import Telemetry
from replay.samples import Sample, importance_weights

# Messages of cuBLAS and cuDNN where torch does not raise OutOfMemoryError. Each of cuDNN's engines
# needs working memory: with too little for any of them, it finds none.
_NO_MEMORY = (
    "out of memory",
    "_ALLOC_FAILED",
    "_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm",
)


@dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Attributes:
        priorities: float32[batch], absolute TD errors. After a skipped step they are 0 for the
            transitions that spoilt it, or for all if none can be told from the others.
        loss: mean loss of the batch, weighted by importance.
        q_mean: mean Q of the actions taken.
        gradient_norm: global norm of the gradient before clipping.
        skipped: whether the step left the parameters unchanged, because its loss or gradient was
            not finite.
    """

    priorities: NDArray[np.float32]
    loss: float
    q_mean: float
    gradient_norm: float
    skipped: bool


def _nothing() -> None:
    """Do nothing while the device computes."""


class Learner:
    """The contents of a checkpoint: online and target network, optimizer and step counter."""

    def __init__(self, config: Config, spec: EnvironmentSpec) -> None:
        self.device = _device(config.learner.device)
        torch.manual_seed(seeds.torch_seed(config.run.seed, "learner"))
        self._config = config.learner
        self._replay = config.replay
        self._spec = spec
        self.online = build_network(spec, config.network).to(self.device)
        self.target = target_network(
            config, self.online, lambda: build_network(spec, config.network)
        )
        self.online.train()
        self._optimizer, self._arrays, self._flat_target = self._descent(config)
        # To look for them in all modules takes as long as a step of Adam.
        self._has_buffers = any(True for _ in self.online.buffers())
        self.learner_steps = 0
        # The share of the run that is over, as far as its limits tell. Whoever knows them sets it.
        self.progress = 0.0
        self._objective = Objective(config, self.online, self.target)
        self._bfloat16 = config.learner.precision == "bfloat16"
        self._noisy, self._normalizes = config.network.noisy, config.network.normalize
        self._noise = torch.Generator().manual_seed(seeds.torch_seed(config.run.seed, "noise"))
        self.micro_batch_size = config.learner.micro_batch_size or config.learner.batch_size
        self.out_of_memory = 0
        self._whole_on_device = True

    def _descent(
        self, config: Config
    ) -> tuple[FlatAdam | TorchAdam, ArrayStep | None, Array | None]:
        """Make the optimizer, and what goes beside one on flat memory."""
        parameters, epsilon = list(self.online.parameters()), config.learner.adam_epsilon
        if not (suits_flat(self.online) and suits_flat(self.target)):
            return TorchAdam(parameters, epsilon), None, None
        whole = config.learner.target == "network"  # else parameters would leave the shared memory
        flat_target = flatten(list(self.target.parameters())) if whole else None
        optimizer = FlatAdam(parameters, epsilon)
        arrays = array_step_of(config, self._spec, self.online, self.target, optimizer.gradients)
        return optimizer, arrays, flat_target

    @property
    def computes_on_arrays(self) -> bool:
        """True if compiled loops take the steps, and not torch."""
        return self._arrays is not None

    @property
    def importance_sampling_exponent(self) -> float:
        """Exponent that corrects the bias of prioritized sampling, annealed over learner steps."""
        return linear(
            self._replay.importance_sampling_exponent,
            self._replay.importance_sampling_exponent_final,
            self._replay.importance_sampling_annealing_steps,
            self.learner_steps,
        )

    @property
    def learning_rate(self) -> float:
        """Adam's step size, which may decay over learner steps or over the whole run."""
        first, final = resolved(self._config.learning_rate), self._config.learning_rate_final
        final = first if final is None else final
        steps = self._config.learning_rate_decay_steps
        if steps is None:
            return first + (final - first) * self.progress
        return linear(first, final, steps, self.learner_steps)

    def tensors(self, sample: Sample) -> TensorBatch:
        """Unpack a Sample and bring it to the device, unless that has no memory for all of it.

        On the host, the tensors may be the sample's own memory, which must stay until the step is
        done.
        """
        weights = importance_weights(sample.sampling_priority, self.importance_sampling_exponent)
        batch = TensorBatch(
            observation=self._observation(sample.observation),
            bootstrap_observation=self._bootstrap_observation(sample),
            action=_tensor(sample.action).long(),
            n_step_return=_tensor(sample.n_step_return),
            discount=_tensor(sample.discount),
            importance_weight=_tensor(weights),
        )
        if self._whole_on_device:
            try:
                return batch.to(self.device)
            except RuntimeError as error:
                _raise_unless_memory(error)
            self._keep_on_host()
        return batch

    def step(self, batch: TensorBatch, meanwhile: Callable[[], None] = _nothing) -> StepResult:
        """Take one step of gradient descent on a batch.

        Args:
            batch: a batch from ``tensors``.
            meanwhile: called while a GPU computes, before the wait for its figures.

        Raises:
            RunError: the GPU runs out of memory with a single transition at a time.
        """
        self._observe_returns(batch)
        if self._arrays is not None:
            meanwhile()
            return self._step_on_arrays(self._arrays, batch)
        if self._noisy:
            resample_noise(self.online, self._noise)
            if self.target is not self.online:
                resample_noise(self.target, self._noise)
        if self._normalizes:
            self._observe(batch)
        figures, rows = self._accumulate(batch)
        norm = self._optimizer.clip(self._config.gradient_clip_norm)
        meanwhile()
        # In one piece, so that there is only one wait for a GPU.
        norms = torch.as_tensor(norm, dtype=torch.float32)[None]
        numbers = torch.cat([figures, norms, rows.flatten()]).cpu().numpy()
        loss, q_mean, gradient_norm = map(float, numbers[:3])
        priorities, losses = numbers[3:].reshape(2, -1)
        result = _result(priorities, losses, loss, q_mean, gradient_norm)
        self._finish(result)
        return result

    def _observe(self, batch: TensorBatch) -> None:
        """Take a batch into the statistics of both networks, which agree at every step."""
        observation = batch.to(self.device).observation
        self.online.observe(*self.online.prepare(observation))
        for ours, theirs in zip(self.online.buffers(), self.target.buffers(), strict=True):
            theirs.copy_(ours)

    def _observe_returns(self, batch: TensorBatch) -> None:
        """Take a batch into the unit of the online network's outputs, the only one that is used."""
        scale = self.online.return_scale
        if scale is not None:
            figures = batch.n_step_return, batch.discount, batch.importance_weight
            scale.observe(*(each.to(self.device) for each in figures))

    def _step_on_arrays(self, arrays: ArrayStep, batch: TensorBatch) -> StepResult:
        """Take the same step without autograd."""
        found = arrays.differentiate(batch)
        norm = float(self._optimizer.clip(self._config.gradient_clip_norm))
        result = _result(found.priorities, found.losses, found.loss, found.q_mean, norm)
        self._finish(result)
        return result

    def _finish(self, result: StepResult) -> None:
        """Move the parameters, unless the step is skipped, and the target network."""
        if not result.skipped:
            self._optimizer.step(self.learning_rate)
        self.learner_steps += 1
        self._update_target()

    def _accumulate(self, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the whole batch, in smaller parts whenever memory runs out."""
        while True:
            try:
                return self._backward(batch)
            except RuntimeError as error:
                _raise_unless_memory(error)
                told = first_line(error)
            # Not earlier: the error holds the results computed until then.
            self._make_room(batch, told)

    def _backward(self, batch: TensorBatch) -> tuple[Tensor, Tensor]:
        """Compute gradients part by part.

        Returns:
            [loss, mean Q] and float32[2, batch], the priority and the weighted loss of each
            transition. Both are on the device.
        """
        self._optimizer.zero_grad()
        sums = torch.zeros(2, device=self.device)
        rows: list[Tensor] = []
        for start in range(0, len(batch), self.micro_batch_size):
            part = batch.part(start, start + self.micro_batch_size).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
                found = self._objective.losses(part)
            weighted = part.importance_weight * found.loss
            loss = weighted.sum() / len(batch)
            loss.backward()
            sums += torch.stack([loss.detach(), found.chosen.sum() / len(batch)])
            rows.append(torch.stack([found.priority, weighted.detach()]))
        return sums, torch.cat(rows, dim=1)

    def _make_room(self, batch: TensorBatch, told: str) -> None:
        """Reduce memory use: halve the parts, and finally keep whole batches off the device."""
        self._optimizer.zero_grad()
        if self.micro_batch_size > 1:
            self.micro_batch_size = -(-self.micro_batch_size // 2)
            self._note_out_of_memory()
        elif self._whole_on_device:
            batch.leave_device()
            self._keep_on_host()
        else:
            raise RunError(f"out of GPU memory with one transition at a time: {told}")

    def _keep_on_host(self) -> None:
        """Keep batches on the host from now on, and bring them to the device in parts."""
        self._whole_on_device = False
        self._note_out_of_memory()

    def _note_out_of_memory(self) -> None:
        self.out_of_memory += 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _update_target(self) -> None:
        if self.target is self.online:
            return
        if self._config.target_update == "soft":
            self._follow(self._config.target_update_rate)
        elif self.learner_steps % self._config.target_update_period == 0:
            self.target.load_state_dict(self.online.state_dict())

    def _follow(self, rate: float) -> None:
        """Move the target network a little towards the online one."""
        if isinstance(self._optimizer, FlatAdam) and self._flat_target is not None:
            kernels.follow(self._flat_target, self._optimizer.values, np.float32(rate))
        else:
            pairs = zip(self.online.parameters(), self.target.parameters(), strict=True)
            with torch.no_grad():
                for ours, theirs in pairs:
                    if theirs is not ours:
                        theirs.lerp_(ours, rate)
        if self._has_buffers:
            # Values that a network counts without learning them, as the means of a batch norm.
            for ours, theirs in zip(self.online.buffers(), self.target.buffers(), strict=True):
                theirs.copy_(ours)

    def account(self, telemetry: Telemetry, result: StepResult) -> None:
        """Count one step in the learner's figures."""
        telemetry.count("learner_steps")
        telemetry.count("steps_skipped", result.skipped)
        if result.skipped and telemetry.counters["steps_skipped"] == 1:
            telemetry.note(
                "skipped",
                f"loss {result.loss:g} and gradient norm {result.gradient_norm:g} in step "
                f"{self.learner_steps}: the parameters stay as they were; the first of its kind",
            )
        telemetry.count("loss_sum", 0.0 if result.skipped else result.loss)
        telemetry.gauge("q_mean", result.q_mean)
        telemetry.gauge("gradient_norm", result.gradient_norm)
        telemetry.gauge("learner_steps", self.learner_steps)
        telemetry.gauge("learning_rate", self.learning_rate)
        telemetry.gauge("importance_sampling_exponent", self.importance_sampling_exponent)
        telemetry.gauge("micro_batch_size", self.micro_batch_size)
        if telemetry.counters["out_of_memory"] != self.out_of_memory:
            telemetry.counters["out_of_memory"] = self.out_of_memory
            brought = "" if self._whole_on_device else " and copied"
            telemetry.note(
                "out_of_memory",
                f"out of GPU memory: a batch of {self._config.batch_size} is computed{brought} "
                f"{self.micro_batch_size} at a time from now on",
            )

    def get_state(self) -> dict[str, Any]:
        """Return everything that a step depends on, as tensors and plain data."""
        return {
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "learner_steps": self.learner_steps,
            "torch_random_state": torch.get_rng_state(),
            "noise_state": self._noise.get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of ``get_state``."""
        # In this order: what they have in common is the online network's.
        self.target.load_state_dict(state["target"])
        self.online.load_state_dict(state["online"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.learner_steps = int(state["learner_steps"])
        torch.set_rng_state(state["torch_random_state"])
        self._noise.set_state(state["noise_state"])

    def begin_with(self, parameters: Mapping[str, Tensor], learner_steps: int) -> None:
        """Begin with these parameters of the network, which are of that learner step."""
        self.online.load_state_dict(parameters)
        self.target.load_state_dict(parameters)
        self.learner_steps = learner_steps

    def _bootstrap_observation(self, sample: Sample) -> dict[str, Tensor]:
        """Unpack what a Sample bootstraps from; nothing if all of its returns are complete."""
        if not sample.discount.any():
            return {}
        return self._observation(sample.bootstrap_observation)

    def _observation(self, packed: Observation) -> dict[str, Tensor]:
        return {name: _tensor(a) for name, a in self._spec.unpack(packed).items()}


def _result(
    priorities: NDArray[np.float32],
    losses: NDArray[np.float32],
    loss: float,
    q_mean: float,
    gradient_norm: float,
) -> StepResult:
    """Make a step's result; one whose loss or gradient is not finite is skipped."""
    # An infinite error has a finite gradient: the loss is linear there.
    skipped = not (math.isfinite(gradient_norm) and math.isfinite(loss))
    if skipped:
        priorities = _without_spoilers(priorities, losses)
    return StepResult(priorities, loss, q_mean, gradient_norm, skipped)


def _without_spoilers(
    priorities: NDArray[np.float32], losses: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Set the priorities of transitions that spoilt a step to 0; return a copy.

    A transition from which nothing can be learned must not be drawn again and again. Its loss is
    not finite or too large to be summed, or the square of its error overflows. Squares in the
    gradient's norm overflow likewise. If there is none, any may be to blame.

    Args:
        priorities: float32[batch], absolute errors.
        losses: float32[batch], weighted by importance.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        usable = np.isfinite(losses * np.float32(len(losses))) & np.isfinite(priorities**2)
    return np.where(usable & (not usable.all()), priorities, np.float32(0.0))


def _raise_unless_memory(error: RuntimeError) -> None:
    """Raise an error again unless it reports that the device has no memory."""
    known = isinstance(error, torch.OutOfMemoryError)
    if not known and not any(words in str(error) for words in _NO_MEMORY):
        raise error


def _tensor(array: NDArray[Any]) -> Tensor:
    # Torch would warn of read-only memory, although nothing writes to it.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
