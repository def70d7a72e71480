"""Presets that come by themselves: for environments that are known, and for kinds of them.

Whatever a person sets overrides them. They stand aside altogether for a setting that would do
nothing beside them, and for a preset that a person names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdqn.config import Config, NetworkConfig
from pdqn.layers import Layer, build, read_toml

if TYPE_CHECKING:  # the command line imports this, and not yet numpy
    from pdqn.specs import EnvironmentSpec, FieldSpec

PLACEMENT_ID = "pdqn/CirclePlacement-v0"
NO_PRESET = "none"  # the name that asks for the defaults and the plan alone
Names = Collection[tuple[str, str]]  # (section, key) of settings
# Vectors of more numbers, such as the memory of a console, are unlike those that were measured.
VECTOR_NUMBERS_MAX = 32


@dataclass(frozen=True)
class Suited:
    """A preset for an environment.

    Attributes:
        name: the preset's.
        why: the reason, which goes on after "for".
    """

    name: str
    why: str


KNOWN = {PLACEMENT_ID: Suited("placement", "circle placement, on which it was measured")}
_VECTOR = Suited("vector", "observations of a few numbers, as measured on classic control")
_BOARD = Suited("board", "small boards, as measured on MinAtar")
_SCREEN = Suited("atari", "screens of 84 x 84 on a CPU, as measured on Pong and Breakout")
_SCREEN_SIDE = 84
# With a setting of a preset, these do nothing.
_IDLE = {
    ("actor", "returns", "lambda"): {("actor", "n_step")},
    ("actor", "epsilon", "decay"): {("actor", "epsilon_base"), ("actor", "epsilon_alpha")},
    ("learner", "target", "none"): {
        ("learner", key)
        for key in ("double", "target_update", "target_update_period", "target_update_rate")
    },
    ("learner", "target_update", "soft"): {("learner", "target_update_period")},
}


def suited(spec: EnvironmentSpec, *, on_cpu: bool) -> Suited | None:
    """Return the preset for an environment; None where the plan's settings are the best known.

    Nothing was measured for screens on a GPU, and nothing at all for other observations.

    Args:
        spec: the environment's.
        on_cpu: whether the learner will compute on a CPU.
    """
    from pdqn.networks.sizes import network_sizes
    from pdqn.specs import UNSEEN

    if spec.id in KNOWN:
        return KNOWN[spec.id]
    kind = network_sizes(spec, NetworkConfig()).kind
    if kind == "conv":
        return _BOARD
    if kind == "nature" and on_cpu and any(map(_is_screen, spec.fields)):
        return _SCREEN
    seen = [field for field in spec.fields if field.name not in UNSEEN]
    numbers = sum(math.prod(field.shape) for field in seen)
    if kind == "mlp" and all(map(_is_vector, seen)) and numbers <= VECTOR_NUMBERS_MAX:
        return _VECTOR
    return None


def _is_vector(field: FieldSpec) -> bool:
    return field.dtype.startswith("float") and len(field.shape) < 2 and not field.categories


def _is_screen(field: FieldSpec) -> bool:
    from pdqn.networks.images import as_image

    image = as_image(field)
    sides = image and (image.height, image.width)
    return field.dtype == "uint8" and sides == (_SCREEN_SIDE, _SCREEN_SIDE)


def with_preset(config: Config, chosen: Suited, given: Names) -> tuple[Config, str]:
    """Fill in a preset below what a person set; return the configuration, and a sentence about it.

    Args:
        config: as the person wrote it.
        chosen: the preset.
        given: the settings that the person set.

    Returns:
        The sentence is empty if the person set all of the preset, but for sizes that may be auto.
        The configuration stays as it is then, and also if a setting of the person would do nothing
        beside the preset.
    """
    preset = read_preset(chosen.name)
    if idle := _idle(preset, given):
        return config, stands_aside(chosen, f"{'.'.join(idle)} does nothing beside it")
    if sets_all(preset, given):  # no preset is to be mixed into a whole configuration
        return config, ""
    names = _names(preset)
    own = [".".join(name) for name in names if name in given]
    but = f", but for {', '.join(own)}" if own else ""
    read = build((f"preset {chosen.name}", preset))
    for section, key in names:
        if (section, key) not in given:
            changed = {key: _value(read, (section, key))}
            part = dataclasses.replace(getattr(config, section), **changed)
            config = dataclasses.replace(config, **{section: part})
    return config, f"preset {chosen.name}{but}, for {chosen.why} (--preset {NO_PRESET} omits it)"


def sets_all(preset: Layer, given: Names) -> bool:
    """Return whether a person set all of a preset but what may be auto, as a whole file does."""
    return all(name in given for name in _names(preset) if _value(Config(), name) is not None)


def stands_aside(chosen: Suited, reason: str) -> str:
    """Say that a preset is not used."""
    return f"no preset: {chosen.name} would be for {chosen.why}, but {reason}"


def read_preset(name: str) -> Layer:
    """Read the settings of a preset."""
    return read_toml(Path(__file__).with_name("presets") / f"{name}.toml")


def _names(preset: Layer) -> list[tuple[str, str]]:
    return [(section, key) for section, part in preset.items() for key in part]


def _value(config: Config, name: tuple[str, str]) -> Any:
    return getattr(getattr(config, name[0]), name[1])


def _idle(preset: Layer, given: Names) -> tuple[str, str] | None:
    """Return a setting of the person that does nothing beside the preset."""
    for (section, key, value), names in _IDLE.items():
        if preset.get(section, {}).get(key) == value and (section, key) not in given:
            for name in sorted(names):
                if name in given:
                    return name
    return None
