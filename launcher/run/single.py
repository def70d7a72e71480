"""Mode single: the same parts in one process, in lockstep and without sockets.

Two runs with the same seed that end by steps or episodes have identical figures and parameters.
What the clock decides may differ: which policies were evaluated, unless steps decide that, and
which evaluations have baselines that take long.
This mode is the baseline against which the speed of many processes is measured.
"""

from __future__ import annotations

import math
import os
import time
import uuid

import torch

from actors.environments import randomness
from actors.greedy import GreedyEvaluation
from actors.rollout import Identity, Rollout
from actors.segments import Segment, join_segments
from launcher import standstill, streams
from launcher.console.controls import Controls
from launcher.interrupts import EXIT_INTERRUPTED_TWICE
from launcher.metrics.limits import limit_reached, progress
from launcher.metrics.metrics import MemberKey
from launcher.metrics.roster import MemberView, Roster
from launcher.plan.memory import Estimates
from launcher.run.session import Session
from learner.checkpoint import Saver, not_saved, saved
from learner.learner import Learner
from pdqn.config import resolved
from pdqn.errors import Interrupted, RunError, reason_of, type_and_first_line
from pdqn.memory import MemoryLimit, held_bytes, machine_bytes
from pdqn.messages import Welcome
from pdqn.model_head import NOT_SAVED
from pdqn.networks import build_network, set_noise
from pdqn.parameters import published_bytes
from pdqn.schedules import falls_with_run, is_due
from pdqn.telemetry import Telemetry
from replay.durability import StoppedError
from replay.local import LocalReplay
from replay.samples import SampleLayout

_REPORT_SECONDS = 0.5
_STATE_SECONDS = 10.0
_PAUSED_SECONDS = 0.1
_FLUSH_SECONDS = 2.0
_SPOKEN_STEPS = 256  # learner steps after which the run is shown, whatever the limiter still allows
_ACTOR = ("actor", 0)
_ROLES = ("actor", "replay", "learner")


class SingleRun:
    """A run in this process: act, insert, learn while the limiter lets it, and again."""

    def __init__(self, session: Session) -> None:
        config, spec = session.config, session.spec
        torch.set_num_threads(resolved(config.learner.threads))
        incarnation = self._begun(session)
        randomness.seed(config.run.seed, *_ACTOR, incarnation)
        self._session, self._config = session, config
        self._stream = (0, incarnation)
        self._learner = Learner(config, spec)
        self._follows_progress = falls_with_run(config.learner)
        # Acts on the CPU, wherever the learner computes.
        self._acting = build_network(spec, config.network)
        # Only now: the parts above draw from the random state that this restores.
        self._saver = Saver(session.run_dir.path, config, spec)
        self._saver.restore(self._learner, session.say)
        self._acting.load_state_dict(self._learner.online.state_dict())
        self._acting_version = self._learner.learner_steps
        self._rollout = Rollout(config, spec, self._acting, Identity(0, incarnation))
        self._rollout.set_learner_steps(self._acting_version)
        layout = SampleLayout(spec, config.learner.batch_size)
        # One memory for all SampleBatches: a step is over before the next one is drawn.
        self._sample = layout.view(bytearray(layout.nbytes))
        self._telemetry = {role: Telemetry() for role in (*_ROLES, "evaluator")}
        self._telemetry["learner"].gauge("learner_steps", self._learner.learner_steps)
        self._rollout.note_seeds(self._telemetry["actor"])
        self._replay = self._opened(incarnation)
        self._parts = standstill.Parts(
            config, spec, self._learner, self._replay, self._rollout, self._acting
        )
        self._torn = False
        self._evaluation = GreedyEvaluation(
            config,
            spec,
            self._acting,
            session.run_dir.path,
            self._telemetry["evaluator"],
            give_up=self._has_no_time,
            may_keep=self._check_directory,
            failed=lambda text, error: session.note_error(text, _trace(error)),
        )
        self._counted_before, self._next_report = session.metrics.counts(), 0.0
        self._evaluated, self._evaluated_steps = _evaluated(session), self._learner.learner_steps
        self._memory = self._memory_limit()
        session.take(
            Controls(
                hold=lambda _: None,  # it is this process's own loop that waits
                save=self._save_as_asked,
                samples_per_insert=lambda: self._replay.limiter.target,
                set_samples_per_insert=self._set_samples_per_insert,
            )
        )

    @staticmethod
    def _begun(session: Session) -> int:
        """Count this start, so that no later one draws its random numbers, even after a kill."""
        incarnation = session.state.incarnations.get(_ACTOR, 0)
        session.state.incarnations[_ACTOR] = incarnation + 1
        session.save_state()
        session.records.flush(_STATE_SECONDS)
        return incarnation

    def _opened(self, incarnation: int) -> LocalReplay:
        """Open the replay with what its journal holds."""
        session, telemetry = self._session, self._telemetry["replay"]
        run, path = uuid.uuid4().hex, str(session.run_dir.path)
        session.run_dir.name_run(run)
        welcome = Welcome(run, 0, incarnation, self._config, session.spec, "none", path)
        try:
            return LocalReplay(welcome, telemetry, lambda: session.is_hurried)
        except StoppedError as error:
            raise Interrupted from error

    def _memory_limit(self) -> MemoryLimit:
        parameters = published_bytes(self._acting)
        planned = Estimates(self._config, self._session.spec, parameters).together
        limit = MemoryLimit("run", planned, self._config.system.memory_limit, machine_bytes())
        # The plan does not know how large the environments are.
        limit.settle(held_bytes())
        return limit

    def execute(self) -> int:
        """Run to the end; return the exit code."""
        session = self._session
        session.start(self._end_now)
        session.enter("running")
        try:
            reason = self._train()
        except Exception:
            # A fault of this program itself must not lose what was learned, and the terminal must
            # show it.
            session.console.stop()
            self._evaluation.close()
            self._save()
            session.records.flush(_FLUSH_SECONDS)
            raise
        session.enter("stopping")
        self._stand_still()
        self._refresh()
        if not session.is_hurried and not session.failure:
            self._evaluate()
        self._report()
        self._evaluation.close()
        self._replay.close()
        code = session.conclude(reason, self._members())
        # Last: what closes an environment may hang.
        self._rollout.close()
        return code

    def _train(self) -> str:
        """Act and learn until the run is to end; return the reason."""
        acts = not self._go_on()
        while not (reason := self._session.end_reason()):
            if self._session.stage == "paused" or self._replay.blocked:
                time.sleep(_PAUSED_SECONDS)
            else:
                self._turn(acts)
                acts = True
            self._communicate()
        return reason

    def _go_on(self) -> bool:
        """Go on where the last session stopped; return whether that may be within a turn."""
        session = self._session
        if session.state.sessions == 1:
            return False
        resumed = standstill.resume(session.run_dir.path, self._parts)
        self._insert(resumed.segments)
        session.say(
            f"new episodes begin: {resumed.reason}"
            if resumed.reason
            else "goes on with the episodes that were in progress"
        )
        if resumed.position is None:
            return False
        self._acting_version = resumed.position.acting_version
        self._evaluated_steps = resumed.position.evaluated_steps
        self._rollout.set_learner_steps(self._acting_version)
        if self._learner.learner_steps % _SPOKEN_STEPS == 0:
            self._communicate()  # an evaluation may be due that was given up
        return True

    def _turn(self, acts: bool) -> None:
        """Act once, and learn as often as that allows; a RunError ends the run."""
        try:
            if acts:
                self._act()
            self._learn()
        except RunError as error:
            self._torn = True
            text = type_and_first_line(error)
            self._session.note_error(text, _trace(error))
            self._session.fail(text)

    def _act(self) -> None:
        """Step the environments once, and insert what they have completed."""
        segments = self._rollout.step(self._telemetry["actor"])
        self._rollout.report(self._telemetry["actor"])
        self._insert(segments)

    def _insert(self, segments: list[Segment]) -> None:
        for segment in segments:
            for name in ("transitions_made", "transitions_sent"):
                self._telemetry["actor"].count(name, segment.count)
            columns, blocks = join_segments([segment], self._session.spec)
            steps = self._learner.learner_steps
            self._replay.insert(columns, blocks, self._acting_version, steps)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _learn(self) -> None:
        """Learn as often as the limiter lets it, whatever an environment has left in force."""
        batch_size = self._config.learner.batch_size
        telemetry = self._telemetry["learner"]
        # The clock or a person may end the run meanwhile: a wide tolerance allows many steps.
        while (
            self._replay.can_sample(batch_size, self._learner.learner_steps)
            and not self._session.end_reason()
        ):
            sample = self._sample
            self._replay.sample_into(sample)
            if self._follows_progress:
                self._learner.progress = self._progress()
            result = self._learner.step(self._learner.tensors(sample))
            self._replay.update_priorities(sample.keys, result.priorities)
            self._learner.account(telemetry, result)
            if self._learner.learner_steps % self._config.learner.publish_period == 0:
                self._refresh()
            if self._learner.learner_steps % _SPOKEN_STEPS == 0:
                self._communicate()

    def _refresh(self) -> None:
        """Act with the learner's present parameters."""
        self._acting.load_state_dict(self._learner.online.state_dict())
        self._acting_version = self._learner.learner_steps
        self._rollout.set_learner_steps(self._acting_version)

    def _communicate(self) -> None:
        now = time.monotonic()
        self._replay.write()
        if self._saver.due(self._learner.learner_steps):
            self._save()
        steps = self._learner.learner_steps - self._evaluated_steps
        is_ending = bool(self._session.end_reason())
        if is_due(self._config.evaluation, now - self._evaluated, steps) and not is_ending:
            before = self._evaluated_steps
            self._evaluated, self._evaluated_steps = now, self._learner.learner_steps
            # Time counts from the first step that was reported, and may end the evaluation.
            self._report()
            if not self._evaluate():
                self._evaluated_steps = before  # the next session evaluates
            self._next_report = now  # before another evaluation replaces this one
        # Episodes and steps end the run, so they are reported after every step.
        if self._limits_counted() or now >= self._next_report:
            self._next_report = now + _REPORT_SECONDS
            self._report()

    def _limits_counted(self) -> bool:
        return bool(limit_reached(self._config.run, self._counts(), 0.0))

    def _counts(self) -> dict[str, int]:
        """Count to this moment, where the metrics have only what was reported."""
        counters = self._telemetry["actor"].counters
        names = ("episodes", "environment_steps")
        return {name: self._counted_before[name] + int(counters[name]) for name in names}

    def _progress(self) -> float:
        """Return the share of the run that is over, which does not depend on when reports are made.

        Only a limit of time makes it depend on the clock.
        """
        seconds = self._session.metrics.seconds_since_first_step(time.monotonic())
        return progress(self._config.run, self._counts(), seconds)[0] or 0.0

    def _report(self) -> None:
        session = self._session
        self._replay.report()
        for role, telemetry in self._telemetry.items():
            report = telemetry.report()
            for kind, text in report.notes:
                session.note(kind, role, 0, text)
            key = MemberKey(role, *self._stream)
            session.metrics.ingest(key, report, time.monotonic())
        streams.bound_log()
        if excess := self._memory.excess(held_bytes()):
            session.fail(f"this process {excess}")
        session.tick()
        session.record()
        session.obey_keys()
        session.show(self._members)

    def _evaluate(self) -> bool:
        """Evaluate the present policy, without any effect on training; False if given up."""
        if not self._config.evaluation.enabled:
            return True
        set_noise(self._acting, False)
        # The clock decides when an evaluation is given up: training must not depend on that.
        with randomness.kept():
            done = self._evaluation.evaluate(self._acting_version)
        set_noise(self._acting, True)
        return done

    def _check_directory(self) -> None:
        """Write nothing into another run's directory.

        Raises:
            RunError: another run is in this run's place.
        """
        if taken := self._session.run_dir.taken:
            raise RunError(taken)

    def _has_no_time(self) -> bool:
        """Return whether to give an evaluation up: the run ends, or a person hurries its end."""
        session = self._session
        return session.is_hurried or (session.stage == "running" and bool(session.end_reason()))

    def _set_samples_per_insert(self, target: float) -> None:
        self._replay.limiter.set_samples_per_insert(target)
        self._session.note("samples_per_insert", "replay", 0, f"{target:g} from now on")

    def _save_as_asked(self) -> None:
        if self._save():
            self._session.note("saved", "learner", 0, saved(self._learner))

    def _stand_still(self) -> None:
        """Save the complete state, from which a later session goes on as if this had not ended."""
        if not self._save(last=True) or self._torn:
            return
        self._report()
        self._session.save_state()
        self._session.records.flush(_STATE_SECONDS)
        if self._replay.save():
            position = standstill.Position(self._acting_version, self._evaluated_steps)
            try:
                standstill.save(self._session.run_dir.path, self._parts, position)
            except OSError as error:
                text = f"the episodes in progress are {NOT_SAVED}: {reason_of(error)}"
                self._session.note("standstill", "actor", 0, text)

    def _save(self, *, last: bool = False) -> bool:
        """Save; return whether that was possible."""
        self._saver.move_to(self._session.run_dir.path)
        try:
            self._saver.save(self._learner)
        except OSError as error:
            self._session.note("checkpoint", "learner", 0, not_saved(error, last=last))
            return False
        self._telemetry["learner"].count("checkpoints")
        return True

    def _end_now(self) -> None:
        """End at once, after a second Ctrl-C."""
        self._session.console.stop()
        os._exit(EXIT_INTERRUPTED_TWICE)

    def _members(self) -> Roster:
        return Roster.of(
            MemberView(role, 0, "", os.getpid(), "alive", "in lockstep") for role in _ROLES
        )


def _evaluated(session: Session) -> float:
    """Return the time from which on the next evaluation is counted, which is due in a new run.

    The best parameters are those that are better than the untrained ones, here as in a run of many
    processes.
    """
    return -math.inf if session.metrics.evaluation is None else time.monotonic()


def _trace(error: RunError) -> str:
    """Return the traceback that follows the first line of what some errors say."""
    return str(error).partition("\n")[2]
