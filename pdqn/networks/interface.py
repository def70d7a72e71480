"""What actors and learner need of a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


class QNetwork(nn.Module):
    """Two parts: ``prepare`` derives inputs and has no parameters, ``forward`` has them all.

    The online and the target network therefore share the result of ``prepare``. Masks are applied
    by who chooses or bootstraps, not here.

    Attributes:
        support: float32[atoms], returns that the atoms of a categorical distribution stand for;
            None for other networks. A buffer, which follows the network to its device.
    """

    support: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        if not hasattr(type(self), "support"):  # a subclass may have one of its own kind
            self.register_buffer("support", None, persistent=False)

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Inputs of ``forward`` from a batch of unpacked observations; no parameters involved.

        Args:
            observation: of each field, [batch, *stacked_shape].
        """
        raise NotImplementedError

    def forward(self, *prepared: Tensor) -> Tensor:
        """Expected returns of the actions, float[batch, num_actions]."""
        raise NotImplementedError

    def distribution(self, *prepared: Tensor) -> Tensor:
        """Of the returns, float[batch, num_actions, atoms].

        Logits of the atoms where it is categorical, values of the quantiles where it is made of
        quantiles (``network.distribution``).
        """
        raise NotImplementedError
