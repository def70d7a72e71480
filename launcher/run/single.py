"""Mode single: the same parts in one process, in lockstep and without sockets.

Two runs with the same seed that end by steps or episodes have identical figures and parameters.
What goes by the clock may differ: which policies were evaluated, unless that goes by steps.
It is the baseline that the speed of many processes is measured against.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.best import BestKeeper, not_kept
from actors.environments import randomness
from actors.evaluation import baseline_scores, describe, dropped_text, play
from actors.rollout import Identity, Rollout
from actors.segments import Segment, join_segments
from launcher.console.keyboard import MORE
from launcher.coordinator.metrics import MemberKey
from launcher.coordinator.snapshot import MemberView
from launcher.interrupts import EXIT_INTERRUPTED_TWICE
from launcher.run.session import Session
from learner.checkpoint import Saver, not_saved, saved
from learner.learner import Learner
from pdqn import seeds, wire
from pdqn.config import resolved
from pdqn.errors import RunError
from pdqn.model import BEST_MODEL
from pdqn.networks import build_network, set_noise
from pdqn.policy import greedy
from pdqn.schedules import is_due
from pdqn.telemetry import Telemetry
from replay.buffer import make_buffer
from replay.limiter import make_limiter
from replay.samples import SampleLayout

_REPORT_SECONDS = 0.5
_PAUSED_SECONDS = 0.1
_ACTOR = ("actor", 0)


class SingleRun:
    """A run in this process: act, insert, learn while the limiter lets it, and again."""

    def __init__(self, session: Session) -> None:
        config, spec = session.config, session.spec
        torch.set_num_threads(resolved(config.learner.threads))
        # What an earlier session drew at random is not drawn again.
        incarnation = session.state.incarnations.get(_ACTOR, 0)
        session.state.incarnations[_ACTOR] = incarnation + 1
        randomness.seed(config.run.seed, *_ACTOR, incarnation)
        self._session = session
        self._config = config
        self._learner = Learner(config, spec)
        # Acts on the CPU, wherever the learner computes.
        self._acting = build_network(spec, config.network)
        # Only now: what is built above draws from the random state that is restored.
        self._saver = Saver(session.run_dir.path, config, spec)
        self._saver.restore(self._learner, session.say)
        self._acting.load_state_dict(self._learner.online.state_dict())
        self._acting_version = self._learner.learner_steps
        self._rollout = Rollout(config, spec, self._acting, Identity(0, incarnation))
        self._rollout.set_learner_steps(self._acting_version)
        self._buffer = make_buffer(config, spec, incarnation=incarnation)
        self._limiter = make_limiter(config)
        layout = SampleLayout(spec, config.learner.batch_size)
        # One memory for all SampleBatches: a step is over before the next one is drawn.
        self._sample = layout.view(bytearray(layout.nbytes))
        self._telemetry = {role: Telemetry() for role in ("actor", "replay", "learner")}
        self._telemetry["evaluator"] = Telemetry()
        self._telemetry["learner"].gauge("learner_steps", self._learner.learner_steps)
        self._rollout.note_seeds(self._telemetry["actor"])
        self._best = BestKeeper(session.run_dir.path / BEST_MODEL, config, spec)
        self._baselines: dict[str, NDArray[np.float64]] | None = None
        self._counted_before = session.metrics.counts()
        self._told: set[str] = set()
        self._evaluated, self._evaluated_steps = time.monotonic(), self._learner.learner_steps
        self._next_report = 0.0
        session.controls = {
            "p": self._pause,
            "s": self._save_as_asked,
            "+": lambda: self._scale_samples_per_insert(MORE),
            "-": lambda: self._scale_samples_per_insert(1 / MORE),
        }

    def execute(self) -> int:
        """Run to the end; the exit code."""
        session = self._session
        session.run_dir.event("started", mode="single", pid=os.getpid())
        session.console.start()
        session.interrupts.on_second = self._end_now
        session.stage = "running"
        session.metrics.expect_steps(time.monotonic())
        try:
            reason = self._train()
        except Exception:
            # Of this program's own making: what was learned is not to be lost with it, and the
            # terminal is to show it.
            session.console.stop()
            self._save()
            raise
        session.stage = "stopping"
        self._save()
        self._refresh()
        if not session.interrupts.count and not session.failure:
            self._evaluate()
        self._report()
        self._rollout.close()
        self._buffer.close()
        return session.conclude(reason, self._members())

    def _train(self) -> str:
        """Act and learn until the run is to end; the reason."""
        while not (reason := self._session.end_reason()):
            if self._session.stage == "paused":
                time.sleep(_PAUSED_SECONDS)
            else:
                self._turn()
            self._communicate()
        return reason

    def _turn(self) -> None:
        """Act once, and learn as often as that allows; what cannot go on ends the run."""
        try:
            self._act()
            self._learn()
        except RunError as error:
            self._session.failure = self._note_error(error)

    def _note_error(self, error: RunError) -> str:
        """Show an error, with the traceback that follows its first line; that line."""
        text, _, trace = str(error).partition("\n")
        text = f"{type(error).__name__}: {text}"
        self._session.note_error(text, trace)
        return text

    def _act(self) -> None:
        segments = self._rollout.step(self._telemetry["actor"])
        self._rollout.report(self._telemetry["actor"])
        for segment in segments:
            self._telemetry["actor"].count("transitions_sent", segment.count)
            self._insert(segment)

    def _insert(self, segment: Segment) -> None:
        """Insert a segment, or count it as replay does where nothing could be learned from it."""
        replay, spec = self._telemetry["replay"], self._session.spec
        try:
            wire.check_columns(segment.columns, spec, [segment.frame_count])
            wire.check_frames(segment.frames, spec, "a segment")
        except wire.WireError as error:
            replay.count(f"rejected/{error.reason}")
            for name in ("rejected", "refused"):
                replay.count(f"transitions_{name}", segment.count)
            if error.reason not in self._told:
                self._told.add(error.reason)
                self._session.note("rejected", "replay", 0, f"the first of its kind: {error}")
            return
        inserted = self._buffer.insert(*join_segments([segment], spec), self._acting_version)
        self._limiter.inserted(len(inserted))
        lag = self._learner.learner_steps - self._acting_version
        replay.count("transitions_received", len(inserted))
        replay.count("policy_lag_sum", lag * len(inserted))

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
        if self._saver.due(self._learner.learner_steps):
            self._save()
        steps = self._learner.learner_steps - self._evaluated_steps
        if is_due(self._config.evaluation, now - self._evaluated, steps):
            self._evaluated, self._evaluated_steps = now, self._learner.learner_steps
            self._evaluate()
            self._next_report = now  # before another one takes its place
        # Episodes and steps end the run: they are looked at after every step.
        if self._limits_counted() or now >= self._next_report:
            self._next_report = now + _REPORT_SECONDS
            self._report()

    def _limits_counted(self) -> bool:
        run, counters = self._config.run, self._telemetry["actor"].counters
        limits = {"episodes": run.episodes, "environment_steps": run.steps}
        return any(
            limit is not None and self._counted_before[name] + counters[name] >= limit
            for name, limit in limits.items()
        )

    def _report(self) -> None:
        session, replay = self._session, self._telemetry["replay"]
        replay.gauge("size", self._buffer.size)
        replay.gauge("stored_bytes", self._buffer.stored_bytes)
        replay.gauge("limiter_target", self._limiter.target)
        replay.gauge("limiter_balance", self._limiter.balance)
        for role, telemetry in self._telemetry.items():
            report = telemetry.report()
            for kind, text in report.notes:
                session.note(kind, role, 0, text)
            session.metrics.ingest(MemberKey(role, 0, 0), report, time.monotonic())
        session.tick()
        session.record()
        session.obey_keys()
        session.show(self._members)

    def _evaluate(self) -> None:
        if not self._config.evaluation.enabled:
            return
        set_noise(self._acting, False)
        try:
            result = self._play()
        except RunError as error:
            text = self._note_error(error)
            # Only the first error is shown: all of them are written down.
            self._telemetry["evaluator"].note("evaluation", text)
            result = None
        set_noise(self._acting, True)
        if result is None:
            return
        if text := dropped_text(result):
            self._telemetry["evaluator"].note("evaluation", text)
        try:
            self._best.offer(result, self._acting, self._acting_version)
        except OSError as error:
            self._session.note("checkpoint", "evaluator", 0, not_kept(error))
        result["best"] = self._best.score
        evaluation = {"parameter_version": self._acting_version, **result}
        self._telemetry["evaluator"].evaluation(evaluation)

    def _play(self) -> dict[str, Any] | None:
        """Play the present policy beside the baselines; None when there is no time.

        When that happens goes by the clock: training must not see it.
        """
        with randomness.kept():
            return self._play_held_out()

    def _play_held_out(self) -> dict[str, Any] | None:
        spec, env_args = self._session.spec, self._config.evaluation_env_args
        held_out = seeds.held_out_seeds(resolved(self._config.evaluation.episodes))
        scores = play(
            lambda observation: greedy(self._acting, observation),
            spec,
            env_args,
            held_out,
            self._has_no_time,
            self._config.evaluation.max_episode_steps,
        )
        if scores is None:
            return None
        if self._baselines is None:
            self._baselines = baseline_scores(spec, env_args, held_out)
        return describe(scores, spec, self._baselines)

    def _has_no_time(self) -> bool:
        """Whether an evaluation is to be given up: the run ends, or a person ends even its end."""
        session = self._session
        return session.interrupts.count > 0 or (
            session.stage == "running" and bool(session.end_reason())
        )

    def _pause(self) -> None:
        self._session.pause()

    def _scale_samples_per_insert(self, factor: float) -> None:
        target = float(f"{self._limiter.target * factor:.3g}")
        self._limiter.set_samples_per_insert(target)
        self._session.note("samples_per_insert", "replay", 0, f"{target:g} from now on")
        self._session.say(f"samples_per_insert is {target:g} from now on")

    def _save_as_asked(self) -> None:
        if self._save():
            self._session.note("saved", "learner", 0, saved(self._learner))

    def _save(self) -> bool:
        """Save; whether that was done."""
        try:
            self._saver.save(self._learner)
        except OSError as error:
            self._session.note("checkpoint", "learner", 0, not_saved(error))
            return False
        self._telemetry["learner"].count("checkpoints")
        return True

    def _end_now(self) -> None:
        """The second Ctrl-C."""
        self._session.console.stop()
        os._exit(EXIT_INTERRUPTED_TWICE)

    def _members(self) -> list[MemberView]:
        return [
            MemberView(role, 0, "", os.getpid(), "alive", "in lockstep")
            for role in ("actor", "replay", "learner")
        ]
