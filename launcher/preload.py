"""What the forkserver imports once, so that every role starts warm."""

from __future__ import annotations

import actors.actor
import actors.environments.circle_placement
import actors.evaluator
import learner.process
import replay.server

ROLES = {
    "actor": actors.actor.run_actor,
    "replay": replay.server.run_replay,
    "learner": learner.process.run_learner,
    "evaluator": actors.evaluator.run_evaluator,
}
