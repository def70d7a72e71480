"""Choice and sizes of an environment's network, with checks of what fits, without torch.

A plan needs these before anything is built. Importing torch takes longer than everything else that
``pdqn check`` does.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from pdqn.config import NetworkConfig
from pdqn.errors import UsageError
from pdqn.networks.images import IMAGE_SIDE_MIN, NATURE_SIDE_MIN, Image, images, place_images
from pdqn.specs import ACTION_MASK, EnvironmentSpec


class HadamaxBlock(NamedTuple):
    """A block of a Hadamax encoder.

    Attributes:
        side: of its convolutions.
        pool: side of its pooling.
        stride: of its pooling.
        padded: whether its convolutions keep the image's size.
    """

    side: int
    pool: int
    stride: int
    padded: bool


# Those of Kooi et al. (2025). Boards have one convolution as Young and Tian's (2019), pooled.
HADAMAX_BLOCKS = (
    HadamaxBlock(8, 4, 4, padded=True),
    HadamaxBlock(4, 2, 2, padded=True),
    HadamaxBlock(3, 3, 1, padded=True),
)
HADAMAX_SMALL_BLOCKS = (HadamaxBlock(3, 2, 2, padded=False),)
QMAP_FIELDS = frozenset({"map", "radius", "radii", "placed", "progress", ACTION_MASK})
# Map sizes are multiples of the larger block. Large maps have large discs, so coarse blocks
# suffice.
_SMALL_BLOCK, _LARGE_BLOCK, _LARGE_MAP = 4, 8, 128
# From this shorter side on, a block of the dilated convolutions is two or four pixels a side. A few
# convolutions then see about as large a part of the image, in a fraction of the time.
_BLOCK_SIDES = ((64, 4), (32, 2), (0, 1))
# Side of the features of each channel (Clark et al. 2024), where the image has as many.
IMPALA_POOLED_SIDE = 6
# The shortest side of an image that a kind takes.
_LEAST_SIDES = {
    "conv": IMAGE_SIDE_MIN,
    "impala": IMAGE_SIDE_MIN,
    "impala_spectral": IMAGE_SIDE_MIN,
    "hadamax_small": IMAGE_SIDE_MIN,
    "hadamax": NATURE_SIDE_MIN,
    "nature": NATURE_SIDE_MIN,
}
# Those whose convolutions are never normalised over their channels.
NOT_NORMALISED = frozenset({"impala", "impala_spectral", "spatial", "qmap"})
# Default sizes of each kind, None for sizes that it does not have. Those of the MLP are customary;
# the others are from the papers.
_SIZES: dict[str, dict[str, int | None]] = {
    "mlp": {"hidden": 256, "layers": 2, "channels": None},
    "conv": {"hidden": 128, "layers": 1, "channels": 16},
    "nature": {"hidden": 512, "layers": 1, "channels": 32},
    "impala": {"hidden": 256, "layers": 1, "channels": 16},
    "impala_spectral": {"hidden": 512, "layers": 1, "channels": 32},
    "hadamax": {"hidden": 512, "layers": 1, "channels": 32},
    "hadamax_small": {"hidden": 128, "layers": 1, "channels": 16},
    "spatial": {"hidden": 128, "layers": 4, "channels": 32},
    "qmap": {"hidden": None, "layers": None, "channels": 24},
}


def network_sizes(spec: EnvironmentSpec, config: NetworkConfig) -> NetworkConfig:
    """Fill in the kind and the sizes that the configuration leaves to auto.

    Raises:
        UsageError: the kind cannot take the environment's observations, or does not have a given
            size.
    """
    kind = _kind(spec, config)
    if kind not in _SIZES:
        return dataclasses.replace(config, kind=kind)
    filled = {}
    for key, size in _SIZES[kind].items():
        given = getattr(config, key)
        if size is None and given is not None:
            sized = ", ".join(f"network.{name}" for name, size in _SIZES[kind].items() if size)
            raise UsageError(
                f"network.{key} = {given}: a network of kind {kind} does not use it; "
                f"it is sized by {sized}"
            )
        filled[key] = size if given is None else given
    return dataclasses.replace(config, kind=kind, **filled)


def check_network(spec: EnvironmentSpec, sized: NetworkConfig) -> None:
    """Refuse options that a network cannot combine; a person's own checks its own.

    Args:
        spec: the environment's.
        sized: as ``network_sizes`` fills it in.

    Raises:
        UsageError: with the setting, its value, and what is accepted.
    """
    bounded = sized.distribution in ("categorical", "hl_gauss")
    if bounded and sized.value_min >= sized.value_max:
        raise UsageError(
            f"network.value_min = {sized.value_min:g} and value_max = {sized.value_max:g}: the "
            "first atom must lie below the last"
        )
    if sized.layer_norm_convolutions and sized.kind in NOT_NORMALISED:
        raise UsageError(
            f"network.layer_norm_convolutions = true: a network of kind {sized.kind} has no such "
            "layers; use false, or network.kind = conv or nature"
        )
    _check_axis(spec, sized)
    _check_normalize(spec, sized)
    if sized.kind == "qmap":
        _check_qmap(spec, sized)


def qmap_block(size: int) -> int:
    """Return the side of a Q-map's blocks, in cells, for maps of this size."""
    return _LARGE_BLOCK if size >= _LARGE_MAP else _SMALL_BLOCK


def spatial_block(side: int) -> int:
    """Return the side of a spatial network's blocks, in pixels, by the image's shorter side."""
    return next(block for least, block in _BLOCK_SIDES if side >= least)


def hadamax_sides(image: Image, blocks: tuple[HadamaxBlock, ...]) -> list[int]:
    """Return the height and width of a Hadamax encoder's features.

    Each pooling divides both by its stride and rounds up.
    """
    sides = [image.height, image.width]
    for block in blocks:
        lost = 0 if block.padded else block.side - 1
        sides = [-(-(side - lost) // block.stride) for side in sides]
    return sides


def is_small(image: Image, kind: str) -> bool:
    """Return whether a network of this kind encodes an image as a board, with few layers."""
    return image.side < NATURE_SIDE_MIN or kind in ("conv", "hadamax_small")


def field_shape(spec: EnvironmentSpec, name: str) -> tuple[int, ...]:
    """Return the shape of a field that the environment has."""
    return next(field.shape for field in spec.fields if field.name == name)


def _kind(spec: EnvironmentSpec, config: NetworkConfig) -> str:
    names = {field.name for field in spec.fields}
    sides = [image.side for image in images(spec, config)]
    if config.kind == "auto":
        # A wrapper may have removed fields.
        if spec.circle_placement and names >= QMAP_FIELDS:
            return "qmap"
        if place_images(spec, config):
            return "spatial"
        if not sides:
            return "mlp"
        return "nature" if max(sides) >= NATURE_SIDE_MIN else "conv"
    if config.kind == "qmap" and not names >= QMAP_FIELDS:
        raise UsageError(
            f"network.kind = qmap needs the observation fields {', '.join(sorted(QMAP_FIELDS))}; "
            f"{spec.id} has {', '.join(sorted(names))}"
        )
    if config.kind == "spatial" and not place_images(spec, config):
        raise UsageError(
            f"network.kind = spatial needs images with a pixel for each of {spec.num_actions} "
            f"actions; {spec.id} has {_shapes(spec)}: use auto"
        )
    least = _LEAST_SIDES.get(config.kind)
    if least is not None and max(sides, default=0) < least:
        raise UsageError(
            f"network.kind = {config.kind} needs an image of at least {least} x {least}; {spec.id} "
            f"has {_shapes(spec)}: use mlp or auto"
        )
    return config.kind


def _shapes(spec: EnvironmentSpec) -> str:
    return ", ".join(f"{field.name} {list(field.shape)}" for field in spec.fields)


def _check_axis(spec: EnvironmentSpec, config: NetworkConfig) -> None:
    """Refuse an axis of channels where no field is read as an image that has one."""
    has = any(len(image.field.shape) > 2 for image in images(spec, config))
    reads = ":" not in config.kind and config.kind not in ("mlp", "qmap")
    if config.channels_axis != "auto" and not (has and reads):
        raise UsageError(
            f"network.channels_axis = {config.channels_axis}: with it, {spec.id} has no image of "
            f"at least {IMAGE_SIDE_MIN} x {IMAGE_SIDE_MIN} for a network of kind {config.kind}, "
            f"but {_shapes(spec)}; use auto"
        )


def _check_normalize(spec: EnvironmentSpec, config: NetworkConfig) -> None:
    """Refuse to normalise where there are no plain numbers, or the network cannot."""
    if not config.normalize:
        return
    if ":" in config.kind or config.kind in ("spatial", "qmap"):
        raise UsageError(
            f"network.normalize = true: a network of kind {config.kind} does not have it; use false"
        )
    seen = () if config.kind == "mlp" else images(spec, config)
    if all(field.name in {image.field.name for image in seen} for field in spec.fields_to_act):
        raise UsageError(
            f"network.normalize = true: {spec.id} has no plain numbers, but {_shapes(spec)}; "
            "images are divided by their largest value anyway"
        )


def _check_qmap(spec: EnvironmentSpec, config: NetworkConfig) -> None:
    """Reject what the Q-map network does not support.

    Raises:
        UsageError: the frames are stacked, the map has a wrong size, a distribution is configured,
            or an option of dense layers is set.
    """
    if spec.frame_stack > 1:
        raise UsageError(
            f"run.frame_stack = {spec.frame_stack}: the Q-map network takes single frames; "
            "accepted is 1, or network.kind = mlp"
        )
    if config.normalize_rewards:
        raise UsageError(
            "network.normalize_rewards = true: the Q-map network's values begin with exact "
            "rewards, which have their own unit; use false, or network.kind = mlp"
        )
    size = field_shape(spec, "map")[0]
    if size % _LARGE_BLOCK:
        raise UsageError(f"map_size = {size}: the Q-map network needs a multiple of {_LARGE_BLOCK}")
    if config.distribution != "none":
        raise UsageError(
            f"network.distribution = {config.distribution}: the Q-map network has a value for each "
            f"of {spec.num_actions} cells, and would need {config.atoms} times as many; use none"
        )
    for key in ("noisy", "layer_norm"):
        if getattr(config, key):
            raise UsageError(
                f"network.{key} = true: the Q-map network is convolutional, and this is for dense "
                "layers; use false"
            )
