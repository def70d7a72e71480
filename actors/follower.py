"""Tracking of the learner's newest parameters by a network."""

from __future__ import annotations

import time

import torch
import zmq

from pdqn.errors import RunError
from pdqn.link import CoordinatorLink
from pdqn.parameters import ParameterSubscriber, matches
from pdqn.transport import network_of

_REFRESH_SECONDS, _REVOKED_SECONDS = 0.1, 2.0


class ParameterFollower:
    """A network's subscription to the learner, which polls a few times a second.

    It follows the learner and the coordinator when they move. If this host has a relay, it takes
    the parameters from the relay.

    Attributes:
        parameter_version: learner steps of the network's parameters; None before the first.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: CoordinatorLink,
        run: str,
        network: torch.nn.Module,
    ) -> None:
        self._context = context
        self._link = link
        self._run = run
        self._network = network
        self._relay = network_of(context).relay
        self._subscriber: ParameterSubscriber | None = None
        self._learner, self._address = "", ""
        self._not_before = 0.0
        self._next_refresh = 0.0
        self.parameter_version: int | None = None

    def refresh(self) -> bool:
        """Poll and load new parameters, if it is time; return whether it was."""
        now = time.monotonic()
        if now < self._next_refresh:
            return False
        self._next_refresh = now + _REFRESH_SECONDS
        self._link.poll()
        self._follow(self._link.pulse.endpoints.get("parameters", ""))
        newest = self._subscriber.latest() if self._subscriber else None
        if newest is not None:
            if not matches(newest.tensors, self._network):
                raise RunError("the learner publishes parameters of another network")
            self._network.load_state_dict(newest.tensors)
            self.parameter_version = newest.parameter_version
        return True

    def close(self) -> None:
        """Close the subscription."""
        if self._subscriber is not None:
            self._subscriber.close()

    def _follow(self, learner: str) -> None:
        now = time.monotonic()
        if self._link.pulse.is_revoked(self._learner):
            self.close()
            self._subscriber, self._learner, self._address = None, "", ""
            # A relay may learn a moment later that it must forget its parameters.
            self._not_before = now + _REVOKED_SECONDS
        # If there is no learner now, parameters of the last one may still be on their way.
        self._learner = learner or self._learner
        address = self._relay or self._learner
        if address and address != self._address and now >= self._not_before:
            self.close()
            self._subscriber = ParameterSubscriber(self._context, address, self._run)
            self._address = address
