"""Registration of this package's environments with gymnasium.

gymnasium finds an environment by its id only after an import of a module that registers it; this is
that module. ``import actors.environments.registration`` does it, and so does the id
``actors.environments.registration:pdqn/CirclePlacement-v0``. The entry points are strings, so
nothing of the environments is imported until one is made.
"""

from __future__ import annotations

from gymnasium.envs import registration

CIRCLE_PLACEMENT_ID = "pdqn/CirclePlacement-v0"
LATENCY_ID = "pdqn/Latency-v0"


def register() -> None:
    """Register the environments, unless this has been done."""
    if CIRCLE_PLACEMENT_ID in registration.registry:
        return
    registration.register(
        id=CIRCLE_PLACEMENT_ID,
        entry_point="actors.circle_placement.environment:CirclePlacementEnv",
        vector_entry_point="actors.circle_placement.environment:CirclePlacementVectorEnv",
    )
    registration.register(id=LATENCY_ID, entry_point="actors.environments.latency:LatencyEnv")


register()
