"""The environment's own baselines, on the held-out seeds of a run's evaluations.

They are an addition to an evaluation. If they fail, a note says so, and evaluations go on without.
Bounds that no policy exceeds, and slow searches, may take far longer. No evaluation waits for them:
they begin one after the other in the background, and evaluations after their end have them. Where
an environment has no baselines, the second evaluation begins random episodes in the same way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.environments.vector import VectorEnvironment
from actors.evaluation import baseline_scores, play, random_act, scored, unplayed
from pdqn import seeds
from pdqn.apart import Apart, Task
from pdqn.errors import RunError, UsageError, type_and_first_line
from pdqn.process import leave_processor
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry

_SECONDS, _TURN_SECONDS = 600.0, 0.05
_LATER = ("bounds", "searches")
_LATER_SECONDS = 3600.0
_RANDOM_SECONDS = 300.0
# Below actors, which wait for none of this; nobody's gap depends on a search, which takes longest.
_NICENESS = {"random": 10, "bounds": 10, "searches": 19}

Scores = dict[str, NDArray[np.float64]]


class Baselines:
    """Baselines that are played in a process of their own, while this one stays in touch.

    They may be slow: an environment plays whole episodes in one call. That process has a main
    thread, which some environments need. An environment without baselines costs no process.

    Args:
        spec: spec of the environment.
        env_args: keyword arguments of the environment.
        held_out: seeds of the episodes.
        telemetry: takes a note if they fail.
        run_seed: the run's seed.
        give_up: called now and then; True gives up.

    Attributes:
        scores: float64[episodes] of each baseline by name; empty without any, and before they are
            known.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        env_args: Mapping[str, Any],
        held_out: Sequence[int],
        telemetry: Telemetry,
        *,
        run_seed: int,
        give_up: Callable[[], bool],
    ) -> None:
        self._spec, self._env_args, self._held_out = spec, env_args, held_out
        self._telemetry, self._run_seed, self._give_up = telemetry, run_seed, give_up
        self.scores: Scores = {}
        self._later: list[str] = []
        self._has_looked = self._is_pending = self._is_told = False
        self._apart: Apart | None = None
        self._task: Task[Scores] | None = None
        self._slow: Task[Scores] | None = None
        self._random: Task[Scores] | None = None
        self._evaluations = 0

    def begin(self, env: VectorEnvironment) -> None:
        """Look for baselines on an environment that is made in any case, and begin to play them."""
        if not self._has_looked:
            self._has_looked = True
            try:
                self._is_pending = env.has_baselines()
                self._later = [method for method in _LATER if env.has_baselines(method)]
            except Exception as error:  # noqa: BLE001 - environments raise anything
                self._fail(RunError(type_and_first_line(error)))
        if self._is_pending and self._task is None:
            self._apart = Apart("baselines")
            arguments = (self._run_seed, self._spec, self._env_args, self._held_out)
            self._task = self._apart.begin(_play_seeded, *arguments, seconds=_SECONDS)

    def wait(self) -> bool:
        """Wait until they are known, or have failed; later on, add bounds and searches.

        Returns:
            False if the caller gives up.
        """
        try:
            if self._is_pending and not self._play():
                return False
            if self._later and not self._is_pending:
                self._look_for_later()
        except (RunError, UsageError) as error:
            self._fail(error)
        self._evaluations += 1
        if self._has_looked and not self.scores and self._task is None and not self._later:
            self._look_for_random()
        return True

    def close(self) -> None:
        """End their process."""
        self._task = self._slow = self._random = None
        if self._apart is not None:
            self._apart.close()
            self._apart = None

    def _play(self) -> bool:
        task = self._task
        if task is None:  # they failed, and no environment could be made since
            return True
        while not task.done(_TURN_SECONDS):
            if self._give_up():
                return False
        # Those that have hung once would hang again.
        self._is_pending = task.waited_seconds < _SECONDS
        try:
            self.scores, self._is_pending = task.result(), False
        finally:
            self.close()
        return True

    def _fail(self, error: Exception) -> None:
        if self._is_told:
            return
        self._is_told = True
        text, what = str(error).partition("\n")[0], unplayed(self._spec)
        text = text if text.startswith(what) else f"{what}: {text}"
        self._telemetry.note("baselines", f"{text}; evaluations go on without them")

    def _look_for_later(self) -> None:
        """Begin the bounds or searches, or take them over if they are known."""
        if self._slow is None:
            self._apart = Apart(self._later[0])
            arguments = (self._spec, self._env_args, self._held_out, self._later[0])
            self._slow = self._apart.begin(_play_later, *arguments, seconds=_LATER_SECONDS)
        elif self._slow.done():
            del self._later[0]
            try:
                self.scores = {**self.scores, **self._slow.result()}
            finally:
                self.close()

    def _look_for_random(self) -> None:
        """Begin random episodes with the second evaluation, or take them over once they ended.

        The first one is in a run's first seconds, in which all cores have much to do. Environments
        that cannot be played at random in time go without a baseline, as before.
        """
        if self._random is None:
            if self._evaluations == 2:
                self._apart = Apart("baselines")
                arguments = (self._run_seed, self._spec, self._env_args, self._held_out)
                self._random = self._apart.begin(_at_random, *arguments, seconds=_RANDOM_SECONDS)
        elif self._random.done():
            try:
                self.scores = self._random.result()
            except (RunError, UsageError):
                self.scores = {}
            finally:
                self.close()


def _play_seeded(
    run_seed: int, spec: EnvironmentSpec, env_args: Mapping[str, Any], held_out: Sequence[int]
) -> Scores:
    """Play them with global random states that follow from the run's seed."""
    rng = seeds.generator(run_seed, "baselines")
    random.seed(int(rng.integers(1 << 62)))
    np.random.seed(int(rng.integers(1 << 32)))
    return baseline_scores(spec, env_args, held_out)


def _play_later(
    spec: EnvironmentSpec, env_args: Mapping[str, Any], held_out: Sequence[int], method: str
) -> Scores:
    """Compute bounds or searches, and leave the processor to others."""
    leave_processor(_NICENESS[method])
    return baseline_scores(spec, env_args, held_out, method)


def _at_random(
    run_seed: int, spec: EnvironmentSpec, env_args: Mapping[str, Any], held_out: Sequence[int]
) -> Scores:
    """Score the random policy, and leave the processor to others; nothing if an episode fails."""
    leave_processor(_NICENESS["random"])
    act = random_act(spec, seeds.generator(run_seed, "random baseline"))
    scores = play(act, spec, env_args, held_out)
    values = np.empty(0) if scores is None else scored(scores, spec)
    return {"random": values} if len(values) and np.isfinite(values).all() else {}
