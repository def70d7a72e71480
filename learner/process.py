"""The learner process: it samples, steps, updates priorities, and may publish and save."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
import zmq

from learner.checkpoint import Saver, not_saved, saved
from learner.gpu import GpuGauge
from learner.learner import Learner
from learner.staging import Stager
from learner.warming import warm_up
from pdqn import seeds
from pdqn.config import resolved
from pdqn.errors import RunError
from pdqn.files import RunFiles
from pdqn.heartbeat import Heartbeat
from pdqn.link import CoordinatorLink, role
from pdqn.messages import LAST_SAVE, MAX_INDEX, Welcome
from pdqn.model_head import FINAL_MODEL, INITIAL_MODEL
from pdqn.parameters import ParameterPublisher, Parameters
from pdqn.process import keep_freed_memory
from pdqn.transport import Network
from replay.client import SampleClient
from replay.samples import Sample

_WAIT_SECONDS = 0.1
_LINK_SECONDS = 0.1


class LearnerProcess:
    """Sockets, files and clocks around a Learner."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        link: CoordinatorLink,
        welcome: Welcome,
        files: RunFiles,
    ) -> None:
        self._config = welcome.config
        self._welcome = welcome
        self._link = link
        self._learner = Learner(welcome.config, welcome.spec)
        self._files = files
        self._saver = Saver(self._files.path, welcome.config, welcome.spec)
        self._heartbeat = Heartbeat(self._keep_in_touch)
        self._restore()
        link.telemetry.gauge("learner_steps", self._learner.learner_steps)
        self._gpu = GpuGauge(self._learner.device)
        self._stager = Stager(self._learner.tensors, self._learner.device)
        config, incarnation = welcome.config, welcome.incarnation
        rng = seeds.generator(config.run.seed, "sample client", 0, incarnation)
        self._client = SampleClient(context, welcome.spec, config, rng)
        self._context = context
        self._serve()
        self._published_steps = 0
        self._published = time.monotonic()
        self._saves_asked = link.pulse.saves
        self._unheard = ""
        self._next_link = 0.0
        self._publish()

    def learn(self) -> None:
        """Learn until this role must stop, then save."""
        settled = False
        # Meanwhile actors fill the replay. A first run on a machine compiles here, for seconds.
        with self._heartbeat:
            warm_up(self._learner, self._config, self._welcome.spec)
        while not self._link.stopping:
            self._communicate()
            self._maybe_save()
            if not len(self._stager):
                self._await_batch()
            if not len(self._stager):
                continue
            sample, batch = self._stager.take()
            result = self._learner.step(batch, meanwhile=self._stage_ahead)
            self._client.release(sample, result.priorities)
            self._learner.account(self._link.telemetry, result)
            self._maybe_publish()
            if not settled:
                # The plan does not know how large the activations of a step are.
                self._link.settle_memory()
                settled = True
        self._publish()
        self._link.telemetry.activity = LAST_SAVE
        self._link.report()
        self._save(last=True)
        # Publish again: on a slow connection, the last parameters may have found no room in the
        # queue.
        self._publish()

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()
        self._publisher.close()

    def _serve(self) -> None:
        """Open the publisher of parameters, and announce its address."""
        self._revocations = self._link.revocations
        address = self._welcome.address("parameters")
        self._publisher = ParameterPublisher(self._context, address)
        self._link.serve_at({"parameters": self._publisher.endpoint})

    def _await_batch(self) -> None:
        """Stage the next batch, or none if other work is due."""
        if self._client.has_next:
            sample = self._client.receive(0.0, self._learner.learner_steps)
        else:
            sample = self._wait_for_batch()
        if sample is not None:
            self._stager.put(sample)

    def _wait_for_batch(self) -> Sample | None:
        """Wait for an answer of replay; None if there was none in time."""
        shards = self._follow_replay()
        started = time.monotonic()
        if not shards:
            # The next message can only come from the coordinator.
            self._link.poll(_WAIT_SECONDS)
        timeout = _WAIT_SECONDS if shards else 0.0
        sample = self._client.receive(timeout, self._learner.learner_steps)
        self._link.telemetry.count("wait_seconds", time.monotonic() - started)
        waits = "" if sample is not None else self._client.unheard or "waits for batches"
        self._link.telemetry.activity = waits
        return sample

    def _follow_replay(self) -> Mapping[int, str]:
        """Follow the run's progress, shards and target ratio; return the shards' addresses."""
        pulse = self._link.pulse
        shards = pulse.shards("samples")
        self._client.connect(shards)
        self._learner.progress = pulse.progress
        target = pulse.samples_per_insert or resolved(self._config.replay.samples_per_insert)
        self._client.set_samples_per_insert(target)
        return shards

    def _stage_ahead(self) -> None:
        """Bring samples that have arrived to the device while it computes."""
        while len(self._stager) < self._stager.ahead:
            sample = self._client.receive(0.0, self._learner.learner_steps)
            if sample is None:
                return
            self._stager.put(sample)

    def _communicate(self) -> None:
        now = time.monotonic()
        if now >= self._next_link:
            self._next_link = now + _LINK_SECONDS
            self._report_client()
            self._link.poll()
            # Also here: with batches staged ahead, the learner may never wait for one.
            self._follow_replay()
            if self._revocations != self._link.revocations:
                # Every connection ends; those with keys that are still allowed come back.
                self._publisher.close()
                self._serve()
                self._publish()
            self._publisher.serve()

    def _report_client(self) -> None:
        telemetry, client = self._link.telemetry, self._client
        telemetry.gauge("shared_memory", client.shared_memory)
        if client.unheard != self._unheard:
            self._unheard = client.unheard
            telemetry.note("unheard", self._unheard or "all replays answer")
        for name, value in self._gpu.read().items():
            telemetry.gauge(name, value)
        telemetry.counters["answers_rejected"] = client.rejected
        telemetry.counters["priorities_dropped"] = client.priorities_dropped

    def _maybe_publish(self) -> None:
        steps = self._learner.learner_steps - self._published_steps
        seconds = time.monotonic() - self._published
        settings = self._config.learner
        if steps >= settings.publish_period and seconds >= settings.publish_seconds:
            self._publish()

    def _publish(self) -> None:
        steps = self._learner.learner_steps
        parameters = Parameters(
            self._welcome.run, self._welcome.incarnation, steps, self._learner.online.state_dict()
        )
        self._publisher.publish(parameters)
        self._published, self._published_steps = time.monotonic(), steps
        self._link.telemetry.gauge("parameter_version", steps)

    def _maybe_save(self) -> None:
        if self._link.pulse.saves != self._saves_asked:
            self._saves_asked = self._link.pulse.saves
            if self._save():
                self._link.telemetry.note("saved", saved(self._learner))
        elif self._saver.due(self._learner.learner_steps):
            self._save()

    def _save(self, *, last: bool = False) -> bool:
        """Save, also to the run's host if that is another one; return whether this succeeded."""
        try:
            with self._heartbeat:
                if self._files.has_lost_home():
                    self._saver.move_to(self._files.path)
                saved = self._saver.save(self._learner)
            self._files.push(*saved)
        except (OSError, RunError) as error:
            self._link.telemetry.note("checkpoint", not_saved(error, last=last))
            return False
        self._link.telemetry.count("checkpoints")
        return True

    def _keep_in_touch(self) -> None:
        """Report while the disk holds a save up; the end of a run waits for one."""
        if self._link.stopping:
            self._link.telemetry.activity = LAST_SAVE
        self._link.poll()

    def _restore(self) -> None:
        """Continue from the newest readable checkpoint."""
        say = partial(self._link.telemetry.note, "checkpoint")
        if self._files.here:
            with self._heartbeat:
                self._saver.restore(self._learner, say)
            return
        # More than are kept from now on may be there.
        for index in range(MAX_INDEX):
            path = self._files.fetch("checkpoint", index)
            if path is None and not index:
                if self._files.fetch(INITIAL_MODEL) is not None:
                    self._saver.begin(self._learner, say)
                return
            if path is None:
                break
            try:
                self._saver.restore(self._learner, say)
                return
            except RunError:
                # The saver has noted it. It would not try an older one as long as this one is
                # present.
                path.unlink()
        self._files.fetch(FINAL_MODEL)
        if not self._saver.restore_model(self._learner, say):
            raise RunError("none of the run's checkpoints can be read")


def run_learner(
    address: str,
    index: int | None = None,
    log_path: Path | None = None,
    network: Network | None = None,
) -> None:
    """Run one learner process, from joining to leaving."""
    with role("learner", address, index, log_path, network) as (context, link, welcome):
        keep_freed_memory()
        torch.set_num_threads(resolved(welcome.config.learner.threads))
        with closing(RunFiles(link, welcome)) as files:
            process = LearnerProcess(context, link, welcome, files)
            process.learn()
            process.close()
