"""Evaluations of the greedy policy during training, shared by both modes of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.best import BestKeeper, not_kept
from actors.evaluation import baseline_scores, describe, dropped_text, play
from pdqn import seeds
from pdqn.config import Config, resolved
from pdqn.errors import RunError, first_line
from pdqn.model import BEST_MODEL
from pdqn.networks import QNetwork
from pdqn.policy import greedy
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry

Scores = Mapping[str, NDArray[np.float64]]


class GreedyEvaluation:
    """Evaluations of a network on held-out seeds, which also keep its best parameters.

    Scores, failures and episodes without a score go into the telemetry.

    Args:
        config: configuration of the run.
        spec: spec of its environment.
        network: network that acts; the caller controls its noise and its parameters.
        folder: folder for the best parameters.
        telemetry: telemetry of the evaluator.
        give_up: called at every step of the environments; True gives up.
        failed: called with a sentence and the error if a policy has no score.
        may_keep: called before the best parameters are saved; raises a RunError to prevent it.
        kept: called when the best parameters have been saved.
        prepare: called before a policy plays; False gives the evaluation up.
        baselines: function that returns float64[episodes] of each baseline by name. By default this
            class plays them once, as soon as a policy has a score.
    """

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        network: QNetwork,
        folder: Path,
        telemetry: Telemetry,
        *,
        give_up: Callable[[], bool],
        failed: Callable[[str, RunError], object],
        may_keep: Callable[[], object] = lambda: None,
        kept: Callable[[], object] = lambda: None,
        prepare: Callable[[], bool] = lambda: True,
        baselines: Callable[[], Scores] | None = None,
    ) -> None:
        self._config, self._spec = config, spec
        self._network, self._telemetry = network, telemetry
        self._best = BestKeeper(folder / BEST_MODEL, config, spec)
        if self._best.unread:
            telemetry.note("checkpoint", self._best.unread)
        self._seeds = held_out_seeds(config)
        self._give_up, self._failed, self._kept = give_up, failed, kept
        self._may_keep, self._prepare = may_keep, prepare
        self._baselines = baselines or cache(self._play_baselines)

    def evaluate(self, version: int) -> bool:
        """Evaluate the network's present parameters; False if given up before the end.

        A policy without a score is also finished: another one may have a score.

        Args:
            version: learner steps of the parameters.
        """
        try:
            result = self._play()
        except RunError as error:
            text = f"step {version} has no score: {first_line(error)}"
            self._telemetry.note("evaluation", text)
            self._failed(text, error)
            return True
        if result is None:
            return False
        if text := dropped_text(result):
            self._telemetry.note("evaluation", text)
        self._keep_best(result, version)
        best = self._best.score
        result["best"] = best if math.isfinite(best) else None  # none could be kept so far
        self._telemetry.count("evaluations")
        self._telemetry.evaluation({"parameter_version": version, **result})
        return True

    def _play(self) -> dict[str, Any] | None:
        """Play the policy and compare it with the baselines; None if given up."""
        if not self._prepare():
            return None
        scores = play(
            lambda observation: greedy(self._network, observation),
            self._spec,
            self._config.evaluation_env_args,
            self._seeds,
            self._give_up,
            self._config.evaluation.max_episode_steps,
        )
        return None if scores is None else describe(scores, self._spec, self._baselines())

    def _play_baselines(self) -> Scores:
        return baseline_scores(self._spec, self._config.evaluation_env_args, self._seeds)

    def _keep_best(self, result: Mapping[str, Any], version: int) -> None:
        try:
            self._may_keep()
            if self._best.offer(result, self._network, version):
                self._kept()
        except (OSError, RunError) as error:
            self._telemetry.note("checkpoint", not_kept(error))


def held_out_seeds(config: Config) -> list[int]:
    """Return the seeds on which a run evaluates."""
    return seeds.held_out_seeds(resolved(config.evaluation.episodes))
