"""The members of a run as consoles and watchers see them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.places import Member
from launcher.hosts.supervisor import Supervisor
from launcher.metrics.bounds import LARGEST
from launcher.metrics.metrics import RunMetrics
from launcher.metrics.roster import MemberState, MemberView, Roster
from launcher.numbers import size
from launcher.plan import machine
from pdqn.process import own_host

# Looking at thousands of members with every frame of a console would be too slow.
_MANY, _MANY_SECONDS = 500, 1.0


class MemberViews:
    """Views of all members, by role and index.

    Args:
        coordinator: knows which roles have joined.
        supervisor: of the processes on this host.
        metrics: have the members' gauges.
        late_seconds: time after which a member's report is overdue.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        supervisor: Supervisor,
        metrics: RunMetrics,
        late_seconds: float,
    ) -> None:
        self._coordinator, self._supervisor, self._metrics = coordinator, supervisor, metrics
        self._late_seconds = late_seconds
        self._here = own_host()
        self._recent = Roster((), ())
        self._count, self._made = 0, 0.0

    def recent(self) -> Roster:
        """Return the members as they are; where they are many, as they were within a second."""
        if self._count < _MANY or time.monotonic() - self._made >= _MANY_SECONDS:
            present = self.present()
            self._recent, self._count = Roster.of(present), len(present)
            self._made = time.monotonic()
        return self._recent

    def present(self) -> list[MemberView]:
        """Return the members as they are."""
        joined = {(m.key.role, m.key.index): m for m in self._coordinator.membership.members()}
        local = self._supervisor.slots()
        views = [
            self._view(role, index, joined.get((role, index)), local.get((role, index)))
            for role, index in sorted(joined.keys() | local.keys())
        ]
        return [*views, self._own_host()] if self._coordinator.membership.count("host") else views

    def _own_host(self) -> MemberView:
        """Describe this host in the same way as other hosts."""
        return MemberView("host", -1, self._here, os.getpid(), "alive", "", *machine.load())

    def _view(
        self, role: str, index: int, member: Member | None, process: MemberState | None
    ) -> MemberView:
        if member is None:
            return MemberView(role, index, self._here, 0, process or "starting")
        gauges = self._metrics.member_gauges(role, index)
        return MemberView(
            role,
            index,
            self._coordinator.host_of(member),
            member.pid,
            self._joined_state(member),
            member.activity or _gpu(gauges),
            gauges.get("host_cpu_percent", gauges.get("cpu_percent", 0.0)),
            int(min(LARGEST, gauges.get("host_memory_bytes", gauges.get("memory_bytes", 0.0)))),
            member.key.incarnation,
        )

    def _joined_state(self, member: Member) -> MemberState:
        if self._coordinator.membership.silent_seconds(member) > self._late_seconds:
            return "late"
        return "alive" if member.reported else "starting"


def _gpu(gauges: Mapping[str, float]) -> str:
    """Say in a few words how busy a role's GPU is; empty without one."""
    if "gpu_percent" not in gauges:
        return ""
    return f"GPU {gauges['gpu_percent']:.0f}% {size(gauges.get('gpu_memory_bytes', 0.0))}"
