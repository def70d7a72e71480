"""Mode single: the same parts in one process, in lockstep and without sockets.

Two runs with the same seed that end by steps or episodes have identical figures and parameters.
It is the baseline that the speed of many processes is measured against.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from actors.actor import Identity, Rollout
from actors.best import BestKeeper
from actors.environments.factory import VectorEnvironment
from actors.evaluation import describe, play
from actors.policy import greedy
from actors.segments import join_segments
from launcher.interrupts import EXIT_INTERRUPTED_TWICE
from launcher.metrics import MemberKey
from launcher.session import Session
from launcher.snapshot import MemberView
from learner.checkpoint import save_checkpoint
from learner.learner import Learner
from pdqn import seeds
from pdqn.config import resolved
from pdqn.model import BEST_MODEL, FINAL_MODEL, save_model
from pdqn.networks import build_network, set_noise
from pdqn.telemetry import Telemetry
from replay.samples import SampleLayout
from replay.server import make_buffer, make_limiter

_REPORT_SECONDS = 0.5


class SingleRun:
    """A run in this process: act, insert, learn while the limiter lets it, and again."""

    def __init__(self, session: Session) -> None:
        config, spec = session.config, session.spec
        torch.set_num_threads(resolved(config.learner.threads))
        self._session = session
        self._config = config
        self._learner = Learner(config, spec)
        # Acts on the CPU, wherever the learner computes.
        self._acting = build_network(spec, config.network)
        self._acting.load_state_dict(self._learner.online.state_dict())
        self._acting_version = 0
        self._rollout = Rollout(config, spec, self._acting, Identity(0, 0))
        self._buffer = make_buffer(config, spec)
        self._limiter = make_limiter(config)
        layout = SampleLayout(spec, config.learner.batch_size)
        # One memory for all SampleBatches: a step is over before the next one is drawn.
        self._sample = layout.view(bytearray(layout.nbytes))
        self._telemetry = {role: Telemetry() for role in ("actor", "replay", "learner")}
        self._telemetry["evaluator"] = Telemetry()
        self._rollout.note_seeds(self._telemetry["actor"])
        self._best = BestKeeper(session.run_dir.path / BEST_MODEL, config, spec)
        self._saved = self._evaluated = time.monotonic()
        self._next_report = 0.0

    def execute(self) -> int:
        """Run to the end; the exit code."""
        session = self._session
        session.run_dir.event("started", mode="single", pid=os.getpid())
        session.console.start()
        session.interrupts.on_second = self._end_now
        session.stage = "running"
        while not (reason := session.end_reason()):
            self._act()
            self._learn()
            self._communicate()
        session.stage = "stopping"
        self._save()
        self._refresh()
        if not session.interrupts.count:
            self._evaluate()
        self._report()
        self._rollout.close()
        self._buffer.close()
        return session.conclude(reason, self._members())

    def _act(self) -> None:
        segments = self._rollout.step(self._telemetry["actor"])
        self._rollout.report(self._telemetry["actor"])
        if not segments:
            return
        columns, blocks = join_segments(segments, self._session.spec)
        inserted = self._buffer.insert(columns, blocks, self._acting_version)
        self._limiter.inserted(len(inserted))
        lag = self._learner.learner_steps - self._acting_version
        replay = self._telemetry["replay"]
        replay.count("transitions_received", len(inserted))
        replay.count("policy_lag_sum", lag * len(inserted))
        self._telemetry["actor"].count("transitions_sent", len(inserted))

    def _learn(self) -> None:
        batch_size = self._config.learner.batch_size
        telemetry = self._telemetry["learner"]
        while self._limiter.can_sample(batch_size):
            sample = self._sample
            self._buffer.sample_into(sample)
            self._limiter.sampled(batch_size)
            result = self._learner.step(self._learner.tensors(sample))
            self._buffer.update_priorities(sample.keys, result.priorities)
            self._telemetry["replay"].count("samples", batch_size)
            self._learner.account(telemetry, result)
            if self._learner.learner_steps % self._config.learner.publish_period == 0:
                self._refresh()

    def _refresh(self) -> None:
        """Act with the learner's present parameters."""
        self._acting.load_state_dict(self._learner.online.state_dict())
        self._acting_version = self._learner.learner_steps
        self._rollout.set_learner_steps(self._acting_version)

    def _communicate(self) -> None:
        now = time.monotonic()
        if now - self._saved >= self._config.checkpoint.period_seconds:
            self._saved = now
            self._save()
        if now - self._evaluated >= self._config.evaluation.period_seconds:
            self._evaluated = now
            self._evaluate()
        # Episodes and steps end the run: they are looked at after every step.
        if self._limits_counted() or now >= self._next_report:
            self._next_report = now + _REPORT_SECONDS
            self._report()

    def _limits_counted(self) -> bool:
        run, counters = self._config.run, self._telemetry["actor"].counters
        reached_episodes = run.episodes is not None and counters["episodes"] >= run.episodes
        reached_steps = run.steps is not None and counters["environment_steps"] >= run.steps
        return reached_episodes or reached_steps

    def _report(self) -> None:
        session, replay = self._session, self._telemetry["replay"]
        replay.gauge("size", self._buffer.size)
        replay.gauge("stored_bytes", self._buffer.stored_bytes)
        replay.gauge("limiter_target", self._limiter.target)
        replay.gauge("limiter_balance", self._limiter.balance)
        for role, telemetry in self._telemetry.items():
            report = telemetry.report()
            for kind, text in report["notes"]:
                session.note(kind, role, 0, text)
            session.metrics.ingest(MemberKey(role, 0, 0), report, time.monotonic())
        session.tick()
        session.record()
        if session.console_due():
            session.console.update(session.snapshot(self._members()))

    def _evaluate(self) -> None:
        if not self._config.evaluation.enabled:
            return
        spec, env_args = self._session.spec, self._config.evaluation_env_args
        held_out = seeds.held_out_seeds(resolved(self._config.evaluation.episodes))
        set_noise(self._acting, False)
        scores = play(
            lambda observation: greedy(self._acting, observation),
            spec,
            env_args,
            held_out,
            lambda: self._session.interrupts.count > 0,
        )
        set_noise(self._acting, True)
        if scores is None:
            return
        env = VectorEnvironment(spec, env_args, 1)
        result = describe(scores, spec, env.baselines(held_out))
        env.close()
        self._best.offer(result, self._acting, self._acting_version)
        result["best"] = self._best.score
        evaluation = {"parameter_version": self._acting_version, **result}
        self._telemetry["evaluator"].evaluation(evaluation)

    def _save(self) -> None:
        path = Path(self._session.run_dir.path)
        state, keep = self._learner.get_state(), self._config.checkpoint.keep
        save_checkpoint(path / "checkpoints", state, keep)
        network, steps = self._learner.online, self._learner.learner_steps
        spec = self._session.spec
        save_model(path / FINAL_MODEL, self._config, spec, network, steps)

    def _end_now(self) -> None:
        """The second Ctrl-C."""
        self._session.console.stop()
        os._exit(EXIT_INTERRUPTED_TWICE)

    def _members(self) -> list[MemberView]:
        return [
            MemberView(role, 0, "", os.getpid(), "alive", "in lockstep")
            for role in ("actor", "replay", "learner")
        ]
