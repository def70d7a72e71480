"""The network for everything but maps of actions: an encoder per image, fused with the rest."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from pdqn.config import NetworkConfig, resolved
from pdqn.networks.encoders import Convolutions, FlatFields, ImpalaResNet, NatureCNN
from pdqn.networks.hadamax import Hadamax
from pdqn.networks.heads import Head, categorical_support, dense, expected
from pdqn.networks.images import Image, images
from pdqn.networks.interface import QNetwork
from pdqn.networks.scaling import RunningScale
from pdqn.networks.sizes import is_small
from pdqn.specs import UNSEEN, EnvironmentSpec


class FusedNetwork(QNetwork):
    """Late fusion: image encoders and plain values, concatenated, then dense layers and a head.

    Without images it is a multilayer perceptron. The configuration may make the dense layers and
    the head noisy, but never the convolutions.
    """

    last_layer = ("head",)

    def __init__(self, spec: EnvironmentSpec, config: NetworkConfig) -> None:
        """Build the network for an environment; kind, hidden, layers and channels are resolved."""
        super().__init__()
        self._images = () if config.kind == "mlp" else images(spec, config)
        seen = {image.field.name for image in self._images} | UNSEEN
        rest = [field for field in spec.fields if field.name not in seen]
        self._flat = FlatFields(rest, config)
        self.scaling = RunningScale(self._flat.size) if config.normalize else None
        encoders = [_encoder(image, config) for image in self._images]
        self.encoders = nn.ModuleList(encoders)
        inputs = self._flat.size + sum(encoder.features for encoder in encoders)
        sizes = [inputs, *[resolved(config.hidden)] * resolved(config.layers)]
        self.trunk = nn.ModuleList(dense(a, b, config) for a, b in itertools.pairwise(sizes))
        # Steadies Q-learning at large step sizes (Gallici et al. 2024, "Simplifying deep temporal
        # difference learning").
        self.norms = nn.ModuleList(
            nn.LayerNorm(size) if config.layer_norm else nn.Identity() for size in sizes[1:]
        )
        self.gelu = config.kind in ("hadamax", "hadamax_small")
        self.head = Head(sizes[-1], spec.num_actions, config)
        self.support = categorical_support(config)

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Derive float32[batch, inputs, H, W] per image, and float32[batch, values] of the rest."""
        pictures = [image.prepare(observation[image.field.name]) for image in self._images]
        rest = [self._flat.prepare(observation)] if self._flat.size else []
        return (*pictures, *rest)

    def observe(self, *prepared: Tensor) -> None:
        """Take a batch of the learner into the statistics of plain numbers."""
        if self.scaling is not None:
            self.scaling.observe(prepared[-1])

    def forward(self, *prepared: Tensor) -> Tensor:
        """Compute expected returns, float[batch, num_actions]."""
        return expected(self.distribution(*prepared), self.support)

    def distribution(self, *prepared: Tensor) -> Tensor:
        """Compute logits or quantiles, float[batch, num_actions, atoms]."""
        return self.head(self._features(*prepared))

    def _features(self, *prepared: Tensor) -> Tensor:
        count = len(self._images)
        parts = [e(images) for e, images in zip(self.encoders, prepared[:count], strict=True)]
        rest = prepared[count:]
        parts += rest if self.scaling is None else [self.scaling(values) for values in rest]
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        activation = functional.gelu if self.gelu else functional.relu
        for layer, norm in zip(self.trunk, self.norms, strict=True):
            hidden = activation(norm(layer(hidden)))
        return hidden


def _encoder(
    image: Image, config: NetworkConfig
) -> Convolutions | NatureCNN | ImpalaResNet | Hadamax:
    channels, small = resolved(config.channels), is_small(image, config.kind)
    if config.kind in ("impala", "impala_spectral"):
        return ImpalaResNet(image, channels, spectral=config.kind == "impala_spectral")
    if config.kind in ("hadamax", "hadamax_small"):
        return Hadamax(image, channels, small=small)
    encoder = Convolutions if small else NatureCNN
    return encoder(image, channels, normalised=config.layer_norm_convolutions)
