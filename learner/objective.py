"""The learner's objective: losses of a batch under the options of the configuration.

Priorities are absolute TD errors of the expected values, for every kind of loss. Actors send the
same with new transitions, so old and new priorities are comparable. Under Munchausen this holds
only roughly: actors do not compute the bonus or the soft value.

With ``network.normalize_rewards``, losses are in units of the network's ``return_scale``, as its
outputs are. Priorities and the expected returns that are reported are in the environment's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from learner.losses import (
    best_actions,
    categorical_losses,
    gaussian_histogram,
    hard_values,
    huber_losses,
    munchausen_bonus,
    projected,
    quantile_losses,
    rollout_losses,
    select,
    soft_values,
)
from pdqn.config import Config
from pdqn.networks import QNetwork
from pdqn.networks.heads import expected
from pdqn.specs import ACTION_MASK, ROLLOUT_ACTIONS, ROLLOUT_RETURNS

_Prepared = tuple[Tensor, ...]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class TensorBatch:
    """A Sample as tensors; binary fields are unpacked to bool.

    Attributes:
        observation: fields [batch, ...].
        bootstrap_observation: fields [batch, ...]; none if no transition bootstraps.
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

    def __len__(self) -> int:
        """Return the number of transitions."""
        return len(self.action)

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors, in no particular order."""
        yield from self.observation.values()
        yield from self.bootstrap_observation.values()
        yield from (self.action, self.n_step_return, self.discount, self.importance_weight)

    def to(self, device: torch.device) -> TensorBatch:
        """Copy the batch to a device; copies to a GPU are asynchronous.

        Raises:
            torch.OutOfMemoryError: the device has no memory for it.
        """
        if self.action.device.type == device.type:
            return self
        return self._each(lambda tensor: _moved(tensor, device))

    def leave_device(self) -> None:
        """Move this object's tensors to the host, which frees their memory on the device."""
        host = self._each(Tensor.cpu)
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(host, field.name))

    def part(self, start: int, stop: int) -> TensorBatch:
        """Return the transitions ``start`` to ``stop - 1``, without copying them."""
        if start == 0 and stop >= len(self):
            return self
        return self.rows(slice(start, stop))

    def rows(self, rows: slice | Tensor) -> TensorBatch:
        """Select transitions: a slice does not copy them, int64[any] does."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> TensorBatch:
        return TensorBatch(
            {name: change(values) for name, values in self.observation.items()},
            {name: change(values) for name, values in self.bootstrap_observation.items()},
            change(self.action),
            change(self.n_step_return),
            change(self.discount),
            change(self.importance_weight),
        )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


class Losses(NamedTuple):
    """Results for every transition, float32[batch] each.

    Attributes:
        loss: the loss; differentiable.
        priority: absolute TD errors of the expected values.
        chosen: expected return of the action taken.
    """

    loss: Tensor
    priority: Tensor
    chosen: Tensor


class _Values(NamedTuple):
    """A network's output for a batch of observations, or for one action of each.

    Attributes:
        distribution: float[batch, actions, atoms]; one atom if only the mean is learned. Without
            the second axis for one action.
        mean: float[batch, actions], or float[batch].
    """

    distribution: Tensor
    mean: Tensor


class _Rollouts(NamedTuple):
    """Returns of other actions in each state.

    Attributes:
        actions: int64[batch, k]; 0 where there is none.
        returns: float32[batch, k].
        told: bool[batch, k], where there is one.
    """

    actions: Tensor
    returns: Tensor
    told: Tensor


class Objective:
    """Losses of a batch for an online and a target network."""

    def __init__(self, config: Config, online: QNetwork, target: QNetwork) -> None:
        self._config = config.learner
        self._kind, self._sigma = config.network.distribution, config.network.gauss_sigma
        self._prepare = online.prepare  # without parameters: both networks share its result
        self._online = _Function(config, online)
        self._target = self._online if target is online else _Function(config, target)
        self._support = online.support
        self._scale = online.return_scale
        self._bounds = config.network.value_min, config.network.value_max
        # Selecting rows would make a GPU wait, and would compile a network for another size. A
        # batch norm would normalise by the figures of a few transitions.
        normalises = any(isinstance(module, _BATCH_NORMS) for module in online.modules())
        self._selects = config.learner.device == "cpu" and not (
            config.learner.compile or normalises
        )

    def losses(self, batch: TensorBatch) -> Losses:
        """Compute losses and priorities of a batch; under autocast for lower precision."""
        prepared = self._prepare(batch.observation)
        rollouts = self._rollouts(batch)
        others = None if rollouts is None else rollouts.actions
        ours, tried = self._online.chosen(prepared, batch.action, others)
        with torch.no_grad():
            unit = 1.0 if self._scale is None else self._scale()
            target = self._aim(batch, batch.n_step_return / unit + self._bonus(batch, prepared))
            error = (self._mean(target) - ours.mean).abs() * unit
        losses = self._losses(ours.distribution, target)
        if rollouts is not None:
            found = rollout_losses(tried, rollouts.returns / unit, rollouts.told)
            losses = losses + self._config.rollout_weight * found
        return Losses(losses, error, ours.mean.detach() * unit)

    def _rollouts(self, batch: TensorBatch) -> _Rollouts | None:
        """Return what the environment tells of other actions; None if that is not used."""
        actions = batch.observation.get(ROLLOUT_ACTIONS)
        if actions is None or not self._config.rollout_weight:
            return None
        returns = batch.observation[ROLLOUT_RETURNS].float()
        return _Rollouts(actions.long().clamp_min(0), returns, actions >= 0)

    def _losses(self, predicted: Tensor, target: Tensor) -> Tensor:
        if self._kind == "categorical":
            return categorical_losses(predicted, target)
        if self._kind == "hl_gauss":
            assert self._support is not None
            histogram = gaussian_histogram(target[:, 0], self._support, self._sigma)
            return categorical_losses(predicted, histogram)
        delta = self._config.huber_delta
        if self._kind == "quantile":
            return quantile_losses(predicted, target, delta)
        return huber_losses(predicted[:, 0], target[:, 0], delta)

    def _mean(self, target: Tensor) -> Tensor:
        if self._support is None or self._kind == "hl_gauss":
            return target.mean(dim=1)
        return (target * self._support).sum(dim=1)  # autocast would round a product of matrices

    def _aim(self, batch: TensorBatch, rewarded: Tensor) -> Tensor:
        """Compute targets, float32[batch, k]: equally likely returns, or atoms' probabilities.

        Args:
            batch: transitions.
            rewarded: float32[batch], their returns up to what follows, in the network's units.
        """
        returns = rewarded[:, None]
        if self._support is None:
            return returns + self._discounted(batch)
        if self._kind == "hl_gauss":
            return (returns + self._discounted(batch)).clamp(*self._bounds)
        if not batch.bootstrap_observation:
            return projected(returns, torch.ones_like(returns), self._support)
        values, chooser, mask = self._bootstrap(batch)
        probabilities = select(values.distribution, best_actions(chooser, mask)).softmax(dim=1)
        valid = batch.discount if mask is None else batch.discount * mask.any(dim=1)
        return projected(returns + valid[:, None] * self._support, probabilities, self._support)

    def _discounted(self, batch: TensorBatch) -> Tensor:
        """Compute the discounted values of the bootstrap observations, float32[batch, k].

        On the CPU, it computes only the rows that are bootstrapped from: a return that reaches the
        end of its episode is known.
        """
        if not batch.bootstrap_observation:
            return torch.zeros_like(batch.n_step_return)[:, None]
        if not self._selects or batch.discount.all():
            return batch.discount[:, None] * self._following(batch)
        rows = batch.discount.nonzero()[:, 0]
        worth = torch.zeros(len(batch), 1)
        if len(rows):
            part = batch.rows(rows)
            following = part.discount[:, None] * self._following(part)
            worth = worth.expand(-1, following.shape[1]).index_copy(0, rows, following)
        return worth

    def _following(self, batch: TensorBatch) -> Tensor:
        """Compute the values of the bootstrap observations, float32[batch, k]."""
        values, chooser, mask = self._bootstrap(batch)
        # The atoms of HL-Gauss classify the expected value, and do not say how returns spread.
        outcomes = values.distribution if self._support is None else values.mean[:, :, None]
        if self._config.munchausen:
            temperature = self._config.munchausen_temperature
            return soft_values(outcomes, values.mean, mask, temperature)
        return hard_values(outcomes, chooser, mask)

    def _bootstrap(self, batch: TensorBatch) -> tuple[_Values, Tensor, Tensor | None]:
        """Return the target network's values, the values that choose the action, and the mask."""
        prepared = self._prepare(batch.bootstrap_observation)
        values = self._target(prepared)
        chooser = values.mean
        # A soft value chooses nothing, and without a target there is no second opinion.
        chooses = self._config.double and not self._config.munchausen
        if chooses and self._config.target != "none":
            chooser = self._online(prepared).mean
        return values, chooser, batch.bootstrap_observation.get(ACTION_MASK)

    def _bonus(self, batch: TensorBatch, prepared: _Prepared) -> Tensor | float:
        """Compute the Munchausen bonus for the first of the rewards in each return."""
        if not self._config.munchausen:
            return 0.0
        return munchausen_bonus(
            self._target(prepared).mean,
            batch.observation.get(ACTION_MASK),
            batch.action,
            alpha=self._config.munchausen_alpha,
            temperature=self._config.munchausen_temperature,
            clip=self._config.munchausen_clip,
        )


class _Function:
    """A network as a function of prepared observations, compiled if configured."""

    def __init__(self, config: Config, network: QNetwork) -> None:
        self._network = network
        self._distributional = config.network.distribution != "none"
        forward = network.distribution if self._distributional else network.forward
        self._forward = torch.compile(forward) if config.learner.compile else forward
        self._whole = self._distributional or config.learner.compile

    def chosen(
        self, prepared: _Prepared, actions: Tensor, others: Tensor | None
    ) -> tuple[_Values, Tensor]:
        """Compute the values of one action in each row, and expected returns of others.

        Args:
            prepared: what the network's ``prepare`` gives.
            actions: int64[batch].
            others: int64[batch, k], or None.

        Returns:
            float[batch, atoms] and float[batch] of the actions, and float[batch, k] of the others.
        """
        if others is None:
            others = actions[:, None][:, :0]
        if self._whole:
            every = self(prepared)
            values = _Values(select(every.distribution, actions), select(every.mean, actions))
            return values, every.mean.gather(1, others)
        if others.shape[1]:
            both = torch.cat([actions[:, None], others], dim=1)
            means = self._network.chosen_each(both, *prepared).float()
        else:
            means = self._network.chosen(actions, *prepared).float()[:, None]
        return _Values(means[:, :1], means[:, 0]), means[:, 1:]

    def __call__(self, prepared: _Prepared) -> _Values:
        result = self._forward(*prepared).float()
        if self._distributional:
            return _Values(result, expected(result, self._network.support))
        return _Values(result[:, :, None], result)
