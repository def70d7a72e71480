"""The newest parameters of a learner that ends, while its run stops, before it has saved."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import zmq

from launcher.numbers import plural
from launcher.results.saved import model_steps
from learner.checkpoint_folders import newest_steps
from pdqn import wire
from pdqn.broadcast import Subscriber
from pdqn.config import Config
from pdqn.errors import RunError
from pdqn.model_head import FINAL_MODEL
from pdqn.specs import EnvironmentSpec

_LATE_SHARE = 0.1


class LastParameters:
    """The learner's newest parameters, kept from the moment at which its run begins to stop.

    Args:
        context: the launcher's.
        run: id of the run.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run: str) -> None:
        self._context, self._run = context, run
        self._subscriber: Subscriber | None = None
        self._message: bytes | memoryview = b""

    def follow(self, address: str) -> None:
        """Begin to listen to the learner; an empty address tells that there is none."""
        if address and self._subscriber is None:
            with suppress(RunError):
                self._subscriber = Subscriber(self._context, address)

    def hear(self) -> None:
        """Take in what has come."""
        if self._subscriber is not None:
            self._message = self._subscriber.receive() or self._message

    def close(self) -> None:
        """Listen no longer; what was heard stays."""
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            subscriber.close()

    def save(self, run_dir: Path, config: Config, spec: EnvironmentSpec) -> int | None:
        """Save the parameters as the run's model, if they are newer than it.

        Returns:
            Learner steps of the parameters; None if nothing was or could be saved.
        """
        try:
            header, _ = wire.decode_arrays(self._message)
            version = wire.natural(header, "parameter_version")
        except wire.WireError:
            return None
        saved, _ = model_steps(run_dir / FINAL_MODEL)
        if saved is not None and saved >= version:
            return None
        return self._save(run_dir, config, spec)

    def _save(self, run_dir: Path, config: Config, spec: EnvironmentSpec) -> int | None:
        # These import torch, which few runs need here.
        from pdqn.model import save_model
        from pdqn.networks import build_network
        from pdqn.parameters import decode, matches

        try:
            parameters = decode(self._message)
        except wire.WireError:
            return None
        version, network = parameters.parameter_version, build_network(spec, config.network)
        if parameters.run != self._run or not matches(parameters.tensors, network):
            return None
        network.load_state_dict(parameters.tensors)
        try:
            save_model(run_dir / FINAL_MODEL, config, spec, network, version)
        except OSError:  # the check of what is saved then finds that there is no model
            return None
        return version


def holds_enough(version: int, learner_steps: int, publish_period: int) -> bool:
    """Tell whether parameters hold what was learned, but for what a learner publishes late.

    Args:
        version: learner steps of the parameters.
        learner_steps: number of learner steps that the run has taken.
        publish_period: learner steps between publications.
    """
    late = max(publish_period, int(_LATE_SHARE * learner_steps))
    return version > 0 and learner_steps - version <= late


def rescued(run_dir: Path, version: int, learner_steps: int) -> str:
    """Describe what was saved in place of the learner.

    Args:
        run_dir: the run's directory.
        version: learner steps of the model.
        learner_steps: number of learner steps that the run has taken.
    """
    checkpoint = newest_steps(run_dir)
    goes_on = "begins anew" if checkpoint is None else f"goes on from step {checkpoint}"
    return (
        f"learner 0 ended before it had saved: {FINAL_MODEL} has the newest parameters that it "
        f"published, of step {version} of {plural(learner_steps, 'learner step')}; "
        f"--resume {goes_on}"
    )
