"""The learner's state and its step: sample in, new parameters and priorities out. No sockets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.losses import q_targets, td_loss
from pdqn import seeds
from pdqn.config import Config, resolved
from pdqn.networks import build_network
from pdqn.specs import ACTION_MASK, EnvironmentSpec, Observation
from pdqn.telemetry import Telemetry
from replay.samples import Sample, importance_weights


@dataclass(frozen=True)
class TensorBatch:
    """A Sample on the learner's device; binary fields are unpacked to bool.

    Attributes:
        observation: fields [batch, ...].
        bootstrap_observation: likewise.
        action: int64[batch].
        n_step_return: float32[batch].
        discount: float32[batch].
        importance_weight: float32[batch], the largest is 1.
    """

    observation: dict[str, Tensor]
    bootstrap_observation: dict[str, Tensor]
    action: Tensor
    n_step_return: Tensor
    discount: Tensor
    importance_weight: Tensor


@dataclass(frozen=True)
class StepResult:
    """What one step found.

    Attributes:
        priorities: float32[batch], absolute TD errors.
        skipped: loss or gradient was not finite, so the parameters were left alone.
    """

    priorities: NDArray[np.float32]
    loss: float
    q_mean: float
    gradient_norm: float
    skipped: bool


def account(telemetry: Telemetry, result: StepResult) -> None:
    """Count one step in the learner's figures."""
    telemetry.count("learner_steps")
    telemetry.count("steps_skipped", result.skipped)
    telemetry.count("loss_sum", 0.0 if result.skipped else result.loss)
    telemetry.gauge("q_mean", result.q_mean)
    telemetry.gauge("gradient_norm", result.gradient_norm)


class Learner:
    """Online and target network, optimizer, counter: all that a checkpoint must hold."""

    def __init__(self, config: Config, spec: EnvironmentSpec) -> None:
        self.device = _device(config.learner.device)
        torch.manual_seed(seeds.torch_seed(config.run.seed, "learner"))
        self._config = config.learner
        self._replay = config.replay
        self._spec = spec
        self.online = build_network(spec, config.network).to(self.device)
        self.target = build_network(spec, config.network).to(self.device).requires_grad_(False)
        self.target.load_state_dict(self.online.state_dict())
        self._optimizer = torch.optim.Adam(
            self.online.parameters(),
            lr=resolved(config.learner.learning_rate),
            eps=config.learner.adam_epsilon,
            fused=True,
        )
        self.learner_steps = 0
        self._bfloat16 = config.learner.precision == "bfloat16"

    @property
    def importance_sampling_exponent(self) -> float:
        """What corrects the bias of prioritized sampling, annealed over the learner's steps."""
        first = self._replay.importance_sampling_exponent
        final = self._replay.importance_sampling_exponent_final
        done = min(1.0, self.learner_steps / self._replay.importance_sampling_annealing_steps)
        return first + (final - first) * done

    def tensors(self, sample: Sample) -> TensorBatch:
        """Unpack a Sample and bring it to the device.

        On the CPU the tensors may be the sample's own memory: it must stay until the step is done.
        """
        weights = importance_weights(sample.sampling_priority, self.importance_sampling_exponent)
        return TensorBatch(
            observation=self._observation(sample.observation),
            bootstrap_observation=self._observation(sample.bootstrap_observation),
            action=self._tensor(sample.action).long(),
            n_step_return=self._tensor(sample.n_step_return),
            discount=self._tensor(sample.discount),
            importance_weight=self._tensor(weights),
        )

    def step(self, batch: TensorBatch) -> StepResult:
        """One step of gradient descent on a batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            values = self.online(*self.online.prepare(batch.observation))
            targets = self._targets(batch)
        chosen = values.float().gather(1, batch.action[:, None])[:, 0]
        loss, priorities = td_loss(
            chosen, targets, batch.importance_weight, self._config.huber_delta
        )
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(
            self.online.parameters(), self._config.gradient_clip_norm
        )
        # An infinite error has a finite gradient: the loss is linear there.
        finite = bool(torch.isfinite(norm) & torch.isfinite(loss))
        if finite:
            self._optimizer.step()
        self.learner_steps += 1
        if self.learner_steps % self._config.target_update_period == 0:
            self.target.load_state_dict(self.online.state_dict())
        return StepResult(
            priorities=priorities.cpu().numpy(),
            loss=loss.item(),
            q_mean=chosen.mean().item(),
            gradient_norm=norm.item(),
            skipped=not finite,
        )

    def get_state(self) -> dict[str, Any]:
        """Everything that a step depends on, as tensors and plain data."""
        return {
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "learner_steps": self.learner_steps,
            "torch_random_state": torch.get_rng_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``get_state`` returned."""
        self.online.load_state_dict(state["online"])
        self.target.load_state_dict(state["target"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.learner_steps = int(state["learner_steps"])
        torch.set_rng_state(state["torch_random_state"])

    def _targets(self, batch: TensorBatch) -> Tensor:
        with torch.no_grad():
            prepared = self.online.prepare(batch.bootstrap_observation)
            online = self.online(*prepared).float() if self._config.double else None
            return q_targets(
                batch.n_step_return,
                batch.discount,
                self.target(*prepared).float(),
                online,
                batch.bootstrap_observation.get(ACTION_MASK),
            )

    def _observation(self, packed: Observation) -> dict[str, Tensor]:
        return {name: self._tensor(a) for name, a in self._spec.unpack(packed).items()}

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # Torch would warn of memory that is read-only, though nobody writes to it.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
