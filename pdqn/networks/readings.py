"""Readings of an observation in words: what a network takes for an image, and how it is scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from pdqn.config import NetworkConfig
from pdqn.networks.images import Image, as_image, is_guess, place_images
from pdqn.specs import UNSEEN, EnvironmentSpec, FieldSpec

_AXES: tuple[Literal["last", "first"], ...] = ("last", "first")


@dataclass(frozen=True)
class Reading:
    """A network's reading of a field.

    Attributes:
        words: the axes and the scale, in words.
        advice: the setting that changes the reading where it may be wrong; else empty.
    """

    words: str
    advice: str = ""


def readings(spec: EnvironmentSpec, sized: NetworkConfig) -> dict[str, Reading]:
    """Describe how a network reads each field but the action mask, by the fields' names.

    Args:
        spec: the environment's.
        sized: as ``network_sizes`` fills it in.

    Returns:
        Nothing for a person's own network and for the Q-map, which have readings of their own.
    """
    if ":" in sized.kind or sized.kind == "qmap":
        return {}
    places = place_images(spec, sized) if sized.kind == "spatial" else ()
    images = {image.field.name: image for image in places}
    found: dict[str, Reading] = {}
    for field in spec.fields:
        image = None if sized.kind == "mlp" else images.get(field.name, as_image(field, sized))
        if field.name not in UNSEEN:
            read = _numbers(field, sized) if image is None else _image(image, sized)
            words = f"{field.dtype}{list(field.shape)}: {read.words}"
            found[field.name] = replace(read, words=words)
    return found


def _image(image: Image, config: NetworkConfig) -> Reading:
    """Describe an image: its sides, where its channels come from, and its scale."""
    field, axis = image.field, "last" if image.channels_last else "first"
    channels = str(image.channels)
    if len(field.shape) > 2:
        channels += f", the {axis} axis"
    if len(field.shape) > 3:
        channels += f", of each of {image.frames} frames"
    steps = f", of each of {field.stack} steps" if field.stack > 1 else ""
    words = (
        f"an image of {image.height} x {image.width}; channels: {channels}{steps}; "
        f"{_scale(image.scale, field)}"
    )
    if not is_guess(image, config):
        return Reading(words)
    other = "first" if image.channels_last else "last"
    return Reading(words, f"that is a guess; network.channels_axis={other} reads it otherwise")


def _numbers(field: FieldSpec, config: NetworkConfig) -> Reading:
    """Describe a field that is part of a vector."""
    if field.categories:
        return Reading(f"{field.stack * sum(field.categories):,} numbers, one-hot")
    words = f"{field.stack * math.prod(field.shape):,} plain numbers"
    if len(field.shape) < 2:
        return Reading(words)
    scale = field.scale if config.images == "space" else None
    words += f"; {_scale(scale or 1.0, field)}"
    axes = [axis for axis in _AXES if _fits(field, config, axis)]
    if as_image(field, config) or not axes:
        return Reading(words)
    return Reading(words, f"network.channels_axis={' or '.join(axes)} reads it as an image")


def _fits(field: FieldSpec, config: NetworkConfig, axis: Literal["first", "last"]) -> bool:
    return as_image(field, replace(config, channels_axis=axis)) is not None


def _scale(scale: float, field: FieldSpec) -> str:
    if scale != 1:
        return f"divided by {scale:g}"
    if field.binary or field.dtype in ("uint8", "int8"):
        return "not divided: at most 1"
    return "not divided: its space names no bound between 1 and 65,535"
