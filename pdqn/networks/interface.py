"""The interface of a network for actors and the learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from pdqn.networks.scaling import ReturnScale


class QNetwork(nn.Module):
    """A network of two parts: ``prepare`` has no parameters, ``forward`` has all of them.

    The online and the target network therefore share the result of ``prepare``. Callers that choose
    or bootstrap apply the masks; networks do not.

    Attributes:
        support: float32[atoms], returns that atoms represent whose outputs are logits (categorical,
            hl_gauss); None for other networks. It is a buffer, so it follows the network to its
            device.
        last_layer: names of the submodules that are its last layer; () if they are not known.
        return_scale: unit of the outputs in which actors and learner take them as values; None if
            it is 1 (``network.normalize_rewards``). Whoever builds the network sets it.
    """

    support: Tensor | None
    return_scale: ReturnScale | None
    last_layer: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.return_scale = None
        if not hasattr(type(self), "support"):  # a subclass may declare its own kind of support
            self.register_buffer("support", None, persistent=False)

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Derive the inputs of ``forward`` from unpacked observations, without parameters.

        Args:
            observation: [batch, *stacked_shape] of each field.
        """
        raise NotImplementedError

    def observe(self, *prepared: Tensor) -> None:
        """Take a batch of the learner into what the network keeps of its inputs; nothing here.

        Only the learner's network is asked to, and only with ``network.normalize``. What it keeps
        has to be in buffers.

        Args:
            prepared: the result of ``prepare``.
        """

    def forward(self, *prepared: Tensor) -> Tensor:
        """Compute the actions' expected returns, float[batch, num_actions]."""
        raise NotImplementedError

    def chosen(self, actions: Tensor, *prepared: Tensor) -> Tensor:
        """Compute the expected return of one action in each row, float[batch].

        A network with very many actions may do so without computing all others.

        Args:
            actions: int64[batch].
            prepared: the result of ``prepare``.
        """
        return self.chosen_each(actions[:, None], *prepared)[:, 0]

    def chosen_each(self, actions: Tensor, *prepared: Tensor) -> Tensor:
        """Compute the expected returns of k actions in each row, float[batch, k].

        Args:
            actions: int64[batch, k].
            prepared: the result of ``prepare``.
        """
        return self(*prepared).gather(1, actions)

    def distribution(self, *prepared: Tensor) -> Tensor:
        """Compute the distribution of the returns, float[batch, num_actions, atoms].

        These are logits of the atoms for a categorical distribution and HL-Gauss, and values of the
        quantiles for quantile regression (``network.distribution``).
        """
        raise NotImplementedError
