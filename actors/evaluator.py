"""The evaluator process: greedy episodes on held-out seeds while training goes on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq
from numpy.typing import NDArray

from actors.best import BestKeeper, not_kept
from actors.environments import randomness
from actors.evaluation import baseline_scores, describe, dropped_text, play
from actors.follower import ParameterFollower
from pdqn import seeds
from pdqn.config import resolved
from pdqn.errors import RunError, UsageError, first_line
from pdqn.files import RunFiles
from pdqn.link import CoordinatorLink, role
from pdqn.messages import Welcome
from pdqn.model import BEST_MODEL
from pdqn.networks import build_network, set_noise
from pdqn.policy import greedy
from pdqn.schedules import is_due
from pdqn.transport import Network

_WAIT_SECONDS = 0.1
_TURN_SECONDS = 0.05
_BASELINES_SECONDS = 600.0
_log = logging.getLogger("evaluator")


class _Baselines:
    """An environment's own baselines on the held-out seeds, while this process stays in touch.

    They may be slow: in a thread of its own an environment plays whole episodes without a word.
    """

    def __init__(self, welcome: Welcome, held_out: list[int]) -> None:
        self._welcome, self._seeds = welcome, held_out
        self._found: dict[str, NDArray[np.float64]] | Exception = {}
        self._ends = time.monotonic() + _BASELINES_SECONDS
        # Nobody waits for it at the end of the process.
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        env_args = self._welcome.config.evaluation_env_args
        try:
            self._found = baseline_scores(self._welcome.spec, env_args, self._seeds)
        except (RunError, UsageError) as error:
            self._found = error

    @property
    def is_late(self) -> bool:
        """Whether they have taken longer than anybody waits for."""
        return time.monotonic() >= self._ends

    def is_playing(self, seconds: float) -> bool:
        """Whether they are still playing when so many seconds have passed."""
        self._thread.join(seconds)
        return self._thread.is_alive()

    def scores(self) -> dict[str, NDArray[np.float64]]:
        """What was found.

        Raises:
            RunError, UsageError: why there is nothing.
        """
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


class Evaluator:
    """Evaluates the newest parameters from time to time, and the final ones when asked."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: CoordinatorLink,
        welcome: Welcome,
        files: RunFiles,
    ) -> None:
        self._link = link
        self._welcome = welcome
        run_seed = welcome.config.run.seed
        randomness.seed(run_seed, "evaluator", welcome.index, welcome.incarnation)
        self._network = build_network(welcome.spec, welcome.config.network)
        self._follower = ParameterFollower(context, link, welcome.run, self._network)
        set_noise(self._network, False)
        self._files = files
        if not self._files.here:
            self._files.fetch(BEST_MODEL)
        self._best = BestKeeper(self._files.path / BEST_MODEL, welcome.config, welcome.spec)
        self._seeds = seeds.held_out_seeds(resolved(welcome.config.evaluation.episodes))
        self._baselines: _Baselines | None = None
        self._without_baselines = False
        self._began = -math.inf
        self._evaluated: int | None = None

    def run(self) -> None:
        """Evaluate until told to stop."""
        while not self._link.stopping:
            self._follower.refresh()
            command = self._link.pulse.command
            finishing = command == "finish"
            version = self._follower.parameter_version
            due = finishing or (command == "run" and self._is_due(version or 0))
            if version is not None and version != self._evaluated and due:
                self._began = time.monotonic()
                self._evaluate(version)
            elif finishing and version == self._link.pulse.final_version:
                return
            else:
                self._link.telemetry.activity = ""
                self._link.poll(_WAIT_SECONDS)

    def close(self) -> None:
        """Close the sockets."""
        self._follower.close()

    def _is_due(self, version: int) -> bool:
        """Whether so much time or so many learner steps have passed since the last evaluation."""
        steps, seconds = version - (self._evaluated or 0), time.monotonic() - self._began
        return is_due(self._welcome.config.evaluation, seconds, steps)

    def _evaluate(self, version: int) -> None:
        self._link.telemetry.activity = f"evaluates the policy of step {version}"
        try:
            result = self._play()
        except RunError as error:
            # Another policy may have a score, and another time an environment that fails now may
            # work. The same policy is not tried again: it could be the last one, for ever.
            self._evaluated = version
            _log.exception("the policy of step %d has no score", version)
            text = f"step {version} has no score: {first_line(error)}"
            self._link.telemetry.note("evaluation", text)
            return
        if result is None:
            return
        self._evaluated = version
        if text := dropped_text(result):
            self._link.telemetry.note("evaluation", text)
        self._keep_best(result, version)
        result["best"] = self._best.score
        self._link.telemetry.count("evaluations")
        self._link.telemetry.evaluation({"parameter_version": version, **result})
        self._link.report()

    def _play(self) -> dict[str, Any] | None:
        """Play the present policy beside the baselines; None when interrupted."""
        spec, config = self._welcome.spec, self._welcome.config
        baselines = self._baseline_scores()
        if baselines is None:
            return None
        scores = play(
            lambda observation: greedy(self._network, observation),
            spec,
            config.evaluation_env_args,
            self._seeds,
            self._interrupted,
            config.evaluation.max_episode_steps,
        )
        return None if scores is None else describe(scores, spec, baselines)

    def _baseline_scores(self) -> dict[str, NDArray[np.float64]] | None:
        """Scores of the environment's own baselines, played once; None when interrupted.

        Raises:
            RunError: they fail, which another time they may not.
        """
        if self._baselines is None:
            self._baselines = _Baselines(self._welcome, self._seeds)
        while self._baselines.is_playing(_TURN_SECONDS):
            if self._baselines.is_late:
                return self._go_without_baselines()
            if self._interrupted():
                return None
        try:
            return self._baselines.scores()
        except RunError:
            self._baselines = None
            raise

    def _go_without_baselines(self) -> dict[str, NDArray[np.float64]]:
        if not self._without_baselines:
            self._without_baselines = True
            text = (
                f"the environment's baselines are not there after {_BASELINES_SECONDS:g} s: "
                "evaluations go on without them"
            )
            self._link.telemetry.note("evaluation", text)
        return {}

    def _keep_best(self, result: Mapping[str, Any], version: int) -> None:
        """Save the best parameters, and bring them to the run's host if that is another one."""
        try:
            if self._best.offer(result, self._network, version):
                self._files.push(BEST_MODEL)
        except (OSError, RunError) as error:
            self._link.telemetry.note("checkpoint", not_kept(error))

    def _interrupted(self) -> bool:
        """Keep the line alive between steps; a newer evaluation is wanted when finishing."""
        before = self._link.pulse.command
        self._link.poll()
        return self._link.stopping or self._link.pulse.command != before


def run_evaluator(
    address: str,
    index: int | None = None,
    log_path: Path | None = None,
    network: Network | None = None,
) -> None:
    """One evaluator process, from joining to leaving."""
    torch.set_num_threads(1)
    with (
        role("evaluator", address, index, log_path, network) as (context, link, welcome),
        closing(RunFiles(link, welcome)) as files,
    ):
        evaluator = Evaluator(context, link, welcome, files)
        evaluator.run()
        evaluator.close()
