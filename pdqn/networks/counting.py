"""The number of a network's parameters by its sizes, without torch and without building it.

A plan needs it for the memory of each process. ``tests/test_network_sizes.py`` compares it with
every kind of network.
"""

from __future__ import annotations

import itertools
import math

from pdqn.config import NetworkConfig, resolved
from pdqn.networks.images import Image, flat_size, images, place_images
from pdqn.networks.sizes import (
    HADAMAX_BLOCKS,
    HADAMAX_SMALL_BLOCKS,
    IMPALA_POOLED_SIDE,
    field_shape,
    hadamax_sides,
    is_small,
    qmap_block,
    spatial_block,
)
from pdqn.specs import UNSEEN, EnvironmentSpec

_FLOAT32_BYTES = 4
_RETURN_SCALE = 3  # figures of a ReturnScale
_QMAP_PLANES, _QMAP_PARTS, _QMAP_LAYERS, _QMAP_CONDITION = 3, 3, 5, 64


def parameter_bytes(spec: EnvironmentSpec, sized: NetworkConfig) -> int:
    """Return the size of a network's parameters, as the learner publishes them.

    Args:
        spec: the environment's.
        sized: as ``network_sizes`` fills it in, and not of a person's own kind.
    """
    count = {"qmap": _qmap, "spatial": _spatial}.get(sized.kind, _fused)
    return _FLOAT32_BYTES * (count(spec, sized) + (_RETURN_SCALE if sized.normalize_rewards else 0))


def _dense(inputs: int, outputs: int, config: NetworkConfig) -> int:
    """Count a dense layer's; a noisy one has two of each."""
    return (inputs + 1) * outputs * (2 if config.noisy else 1)


def _plain(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _convolution(inputs: int, outputs: int, side: int) -> int:
    return (inputs * side * side + 1) * outputs


def _fused(spec: EnvironmentSpec, config: NetworkConfig) -> int:
    seen = () if config.kind == "mlp" else images(spec, config)
    encoders = [_encoder(image, config) for image in seen]
    features = _values_beside(seen, spec) + sum(size for _, size in encoders)
    sizes = [features, *[resolved(config.hidden)] * resolved(config.layers)]
    trunk = sum(_dense(a, b, config) for a, b in itertools.pairwise(sizes))
    norms = 2 * sum(sizes[1:]) if config.layer_norm else 0
    scaling = 2 * _values_beside(seen, spec) + 1 if config.normalize else 0
    head = _head(sizes[-1], spec, config)
    return sum(count for count, _ in encoders) + trunk + norms + scaling + head


def _head(features: int, spec: EnvironmentSpec, config: NetworkConfig) -> int:
    atoms = _atoms(config)
    value = _dense(features, atoms, config) if config.dueling else 0
    return _dense(features, spec.num_actions * atoms, config) + value


def _atoms(config: NetworkConfig) -> int:
    return 1 if config.distribution == "none" else config.atoms


def _values_beside(seen: tuple[Image, ...], spec: EnvironmentSpec) -> int:
    """Count the values of the fields that are not read as images."""
    names = {image.field.name for image in seen} | UNSEEN
    return sum(flat_size(field) for field in spec.fields if field.name not in names)


def _encoder(image: Image, config: NetworkConfig) -> tuple[int, int]:
    """Return an encoder's parameters and features."""
    channels, sides = resolved(config.channels), (image.height, image.width)
    small = is_small(image, config.kind)
    if config.kind in ("impala", "impala_spectral"):
        return _impala(image, channels, spectral=config.kind == "impala_spectral")
    if config.kind in ("hadamax", "hadamax_small"):
        return _hadamax(image, channels, small=small)
    norms = 2 if config.layer_norm_convolutions else 0  # of each channel
    if not small:
        count = (
            _convolution(image.inputs, channels, 8)
            + _convolution(channels, 2 * channels, 4)
            + _convolution(2 * channels, 2 * channels, 3)
        )
        rest = math.prod(((side - 8) // 4 + 1 - 4) // 2 + 1 - 2 for side in sides)
        return count + norms * 5 * channels, 2 * channels * rest
    features = channels * math.prod(side - 2 for side in sides)
    return _convolution(image.inputs, channels, 3) + norms * channels, features


def _impala(image: Image, channels: int, *, spectral: bool) -> tuple[int, int]:
    widths = [image.inputs, channels, 2 * channels, 2 * channels]
    stages = sum(
        _convolution(a, b, 3) + 4 * _convolution(b, b, 3) for a, b in itertools.pairwise(widths)
    )
    sides = [-(-side // 8) for side in (image.height, image.width)]
    if not spectral:
        return stages, widths[-1] * math.prod(sides)
    directions = 4 * sum(widths[1:])  # published beside the parameters
    pooled = math.prod(min(side, IMPALA_POOLED_SIDE) for side in sides)
    return stages + directions, widths[-1] * pooled


def _hadamax(image: Image, channels: int, *, small: bool) -> tuple[int, int]:
    shapes = HADAMAX_SMALL_BLOCKS if small else HADAMAX_BLOCKS
    widths = [image.inputs, channels, *[2 * channels] * (len(shapes) - 1)]
    blocks = sum(
        2 * (_convolution(a, b, shape.side) + 2 * b)
        for (a, b), shape in zip(itertools.pairwise(widths), shapes, strict=True)
    )
    return blocks, widths[-1] * math.prod(hadamax_sides(image, shapes))


def _spatial(spec: EnvironmentSpec, config: NetworkConfig) -> int:
    seen = place_images(spec, config)
    planes, flat = sum(image.inputs for image in seen), _values_beside(seen, spec)
    channels, hidden, atoms = resolved(config.channels), resolved(config.hidden), _atoms(config)
    return (
        _convolution(planes, channels, 3)
        + _convolution(planes, channels, spatial_block(seen[0].side))
        + (_plain(flat, channels) if flat else 0)
        + resolved(config.layers) * _convolution(channels, channels, 3)
        + _dense(2 * channels + flat, hidden, config)
        + (2 * hidden if config.layer_norm else 0)
        + _dense(hidden, channels, config)
        + _dense(channels, atoms, config)
        + (_dense(hidden, atoms, config) if config.dueling else 0)
    )


def _qmap(spec: EnvironmentSpec, config: NetworkConfig) -> int:
    size, radii = field_shape(spec, "map")[0], field_shape(spec, "radii")[0]
    channels, condition = resolved(config.channels), _QMAP_CONDITION
    scalars = 1 + 2 * radii + 2 + _QMAP_PARTS
    return (
        _plain(scalars, condition)
        + 2 * _convolution(_QMAP_PLANES, channels, qmap_block(size))
        + 2 * _plain(condition, channels)
        + (_QMAP_LAYERS + 1) * _convolution(channels, channels, 3)
        + _convolution(channels, channels, 1)
        + _plain(channels, 1)
        + _plain(condition, _QMAP_PLANES)
        + _plain(channels + condition, condition)
        + _plain(condition, 1)
    )
