"""The keys that change a run while it goes on, the same in both modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from launcher.console.keyboard import MORE


@dataclass(frozen=True)
class Controls:
    """The changes that a run can make to itself.

    Attributes:
        hold: makes the actors wait (True), or lets them go on (False).
        save: saves a checkpoint at once.
        samples_per_insert: returns the ratio in force.
        set_samples_per_insert: sets another one.
    """

    hold: Callable[[bool], object]
    save: Callable[[], object]
    samples_per_insert: Callable[[], float]
    set_samples_per_insert: Callable[[float], object]

    def scale_samples_per_insert(self, factor: float) -> float:
        """Multiply the ratio, and round it; return the new one."""
        target = float(f"{self.samples_per_insert() * factor:.3g}")
        self.set_samples_per_insert(target)
        return target


def keys_of(
    controls: Controls, pause: Callable[[], bool], say: Callable[[str], None]
) -> dict[str, Callable[[], object]]:
    """Return what each key does, beside those for the end and for help.

    Args:
        controls: of the run.
        pause: pauses the run or lets it go on; True if it is paused now.
        say: shows a line to the person.
    """

    def scale(factor: float) -> None:
        say(f"samples_per_insert is {controls.scale_samples_per_insert(factor):g} from now on")

    return {
        "p": lambda: controls.hold(pause()),
        "s": controls.save,
        "+": lambda: scale(MORE),
        "-": lambda: scale(1 / MORE),
    }
