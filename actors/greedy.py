"""Evaluations of the greedy policy during training, shared by both modes of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.baselines import Baselines
from actors.best import BestKeeper, not_kept
from actors.evaluation import describe, dropped_text, play, scored
from pdqn import seeds
from pdqn.config import Config, resolved
from pdqn.errors import RunError, first_line
from pdqn.model_head import BEST_MODEL
from pdqn.networks import QNetwork
from pdqn.policy import greedy
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry


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
        waiting: context in which they are saved, which takes as long as the disk does, and in which
            environments are made.
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
        waiting: AbstractContextManager[object] | None = None,
    ) -> None:
        self._config, self._spec = config, spec
        self._network, self._telemetry = network, telemetry
        self._best = BestKeeper(folder / BEST_MODEL, config, spec)
        if self._best.unread:
            telemetry.note("checkpoint", self._best.unread)
        self._seeds = held_out_seeds(config)
        self._give_up, self._failed, self._kept = give_up, failed, kept
        self._may_keep, self._waiting = may_keep, waiting or nullcontext()
        self._baselines = Baselines(
            spec,
            config.evaluation_env_args,
            self._seeds,
            telemetry,
            run_seed=config.run.seed,
            give_up=give_up,
        )

    def close(self) -> None:
        """End what plays the environment's own baselines."""
        self._baselines.close()

    def evaluate(self, version: int) -> bool:
        """Evaluate the network's present parameters; False if given up before the end.

        A policy without a score is also finished: another one may have a score.

        Args:
            version: learner steps of the parameters.
        """
        try:
            played = self._play()
        except RunError as error:
            text = f"step {version} has no score: {first_line(error)}"
            self._telemetry.note("evaluation", text)
            self._failed(text, error)
            return True
        if played is None:
            return False
        result, scores = played
        if text := dropped_text(result):
            self._telemetry.note("evaluation", text)
        self._keep_best(result, scores, version)
        best = self._best
        result |= {"best": best.score, "best_version": best.version, "best_is_first": best.is_first}
        self._telemetry.count("evaluations")
        self._telemetry.evaluation({"parameter_version": version, **result})
        return True

    def _play(self) -> tuple[dict[str, Any], NDArray[np.float64]] | None:
        """Play the policy and compare it with the baselines; None if given up.

        Returns:
            the result of ``describe``, and the score of each held-out episode.
        """
        scores = play(
            lambda observation: greedy(self._network, observation),
            self._spec,
            self._config.evaluation_env_args,
            self._seeds,
            self._give_up,
            self._config.evaluation.max_episode_steps,
            self._baselines.begin,
            making=self._waiting,
        )
        if scores is None or not self._baselines.wait():
            return None
        described = describe(scores, self._spec, self._baselines.scores)
        return described, scored(scores, self._spec)

    def _keep_best(
        self, result: Mapping[str, Any], scores: NDArray[np.float64], version: int
    ) -> None:
        try:
            with self._waiting:
                self._may_keep()
                is_kept = self._best.offer(result, scores, self._network, version)
            if is_kept:
                self._kept()
        except (OSError, RunError) as error:
            self._telemetry.note("checkpoint", not_kept(error))


def held_out_seeds(config: Config) -> list[int]:
    """Return the seeds on which a run evaluates."""
    return seeds.held_out_seeds(resolved(config.evaluation.episodes))
