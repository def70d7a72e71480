"""The evaluator process: greedy episodes on held-out seeds while training goes on."""

from __future__ import annotations

import logging
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
from actors.evaluation import baseline_scores, describe, play
from actors.follower import ParameterFollower
from pdqn import seeds
from pdqn.config import resolved
from pdqn.errors import RunError, first_line
from pdqn.files import RunFiles
from pdqn.link import CoordinatorLink, Welcome, role
from pdqn.model import BEST_MODEL
from pdqn.networks import build_network, set_noise
from pdqn.policy import greedy
from pdqn.transport import Network

_WAIT_SECONDS = 0.1
_log = logging.getLogger("evaluator")


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
        self._period_seconds = welcome.config.evaluation.period_seconds
        self._network = build_network(welcome.spec, welcome.config.network)
        self._follower = ParameterFollower(context, link, welcome.run, self._network)
        set_noise(self._network, False)
        self._files = files
        if not self._files.here:
            self._files.fetch(BEST_MODEL)
        self._best = BestKeeper(self._files.path / BEST_MODEL, welcome.config, welcome.spec)
        self._seeds = seeds.held_out_seeds(resolved(welcome.config.evaluation.episodes))
        self._baselines: dict[str, NDArray[np.float64]] | None = None
        self._evaluated: int | None = None

    def run(self) -> None:
        """Evaluate until told to stop."""
        next_time = 0.0
        while not self._link.stopping:
            self._follower.refresh()
            command = self._link.pulse.command
            finishing = command == "finish"
            version = self._follower.parameter_version
            due = finishing or (command == "run" and time.monotonic() >= next_time)
            if version is not None and version != self._evaluated and due:
                next_time = time.monotonic() + self._period_seconds
                self._evaluate(version)
            elif finishing and version == self._link.pulse.final_version:
                return
            else:
                self._link.telemetry.activity = ""
                self._link.poll(_WAIT_SECONDS)

    def close(self) -> None:
        """Close the sockets."""
        self._follower.close()

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
        if result["dropped"]:
            text = f"{result['dropped']} of {len(self._seeds)} held-out episodes have no score"
            self._link.telemetry.note("evaluation", text)
        self._keep_best(result, version)
        result["best"] = self._best.score
        self._link.telemetry.count("evaluations")
        self._link.telemetry.evaluation({"parameter_version": version, **result})
        self._link.report()

    def _play(self) -> dict[str, Any] | None:
        """Play the present policy beside the baselines; None when interrupted."""
        spec, config = self._welcome.spec, self._welcome.config
        if self._baselines is None:
            self._baselines = baseline_scores(spec, config.evaluation_env_args, self._seeds)
        scores = play(
            lambda observation: greedy(self._network, observation),
            spec,
            config.evaluation_env_args,
            self._seeds,
            self._interrupted,
            config.evaluation.max_episode_steps,
        )
        return None if scores is None else describe(scores, spec, self._baselines)

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
