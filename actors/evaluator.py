"""The evaluator process: greedy episodes on held-out seeds while training goes on."""

from __future__ import annotations

import logging
import math
import time
from contextlib import closing
from pathlib import Path

import torch
import zmq

from actors.environments import randomness
from actors.follower import ParameterFollower
from actors.greedy import GreedyEvaluation
from pdqn.errors import RunError
from pdqn.files import RunFiles
from pdqn.heartbeat import Heartbeat, longest_making_seconds
from pdqn.link import CoordinatorLink, role
from pdqn.messages import Welcome
from pdqn.model_head import BEST_MODEL
from pdqn.networks import build_network, set_noise
from pdqn.schedules import is_due
from pdqn.transport import Network

_WAIT_SECONDS = 0.1
_log = logging.getLogger("evaluator")


class Evaluator:
    """Evaluations of the newest parameters from time to time, and of the final ones on request."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: CoordinatorLink,
        welcome: Welcome,
        files: RunFiles,
    ) -> None:
        self._link, self._files = link, files
        self._welcome = welcome
        randomness.seed(welcome.config.run.seed, "evaluator", welcome.index, welcome.incarnation)
        self._network = build_network(welcome.spec, welcome.config.network)
        self._follower = ParameterFollower(context, link, welcome.run, self._network)
        set_noise(self._network, False)
        if not files.here:
            files.fetch(BEST_MODEL)
        config = welcome.config
        self._evaluation = GreedyEvaluation(
            welcome.config,
            welcome.spec,
            self._network,
            files.path,
            link.telemetry,
            give_up=self._interrupted,
            failed=lambda text, error: _log.error("%s", text, exc_info=error),
            may_keep=self._check_home,
            # The run's directory may be on another host.
            kept=lambda: files.push(BEST_MODEL),
            waiting=Heartbeat(link.poll, longest_making_seconds(config)),
        )
        self._has_home = True
        self._began = -math.inf
        self._evaluated: int | None = None

    def run(self) -> None:
        """Evaluate until this role must stop."""
        self._link.tell_ready()
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
        """Close the sockets, and end what plays the baselines."""
        self._evaluation.close()
        self._follower.close()

    def _is_due(self, version: int) -> bool:
        """Return whether the period in seconds or in learner steps is over."""
        steps, seconds = version - (self._evaluated or 0), time.monotonic() - self._began
        return is_due(self._welcome.config.evaluation, seconds, steps)

    def _evaluate(self, version: int) -> None:
        self._link.telemetry.activity = f"evaluates the policy of step {version}"
        if self._evaluation.evaluate(version):
            if self._evaluated is None:
                self._link.settle_memory()  # the environments were as large as they are
            # Do not try the same policy again: it could be the last one, and the loop would never
            # end.
            self._evaluated = version
            self._link.report()

    def _check_home(self) -> None:
        """Write nothing into another run's directory.

        Raises:
            RunError: another run is in this run's place.
        """
        if self._files.has_lost_home():
            self._has_home = False
        if not self._has_home:
            raise RunError("another run has taken this run's directory")

    def _interrupted(self) -> bool:
        """Stay in touch between steps; return whether to give up this evaluation."""
        before = self._link.pulse.command
        self._link.poll()
        return self._link.stopping or self._link.pulse.command != before


def run_evaluator(
    address: str,
    index: int | None = None,
    log_path: Path | None = None,
    network: Network | None = None,
) -> None:
    """Run one evaluator process, from joining to leaving."""
    torch.set_num_threads(1)
    with (
        role("evaluator", address, index, log_path, network) as (context, link, welcome),
        closing(RunFiles(link, welcome)) as files,
        closing(Evaluator(context, link, welcome, files)) as evaluator,
    ):
        evaluator.run()
