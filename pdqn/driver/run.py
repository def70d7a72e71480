"""A run as an object: ``pdqn.train`` returns one that has ended, ``pdqn.launch`` a present one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdqn.driver import columns
from pdqn.driver.child import WITHIN, Child, is_run_directory, output_of
from pdqn.driver.display import Display, Nowhere, make_display
from pdqn.driver.settings import Env, Options, request
from pdqn.driver.snapshot import Snapshot
from pdqn.errors import RunError, UsageError
from pdqn.model_head import FINAL_MODEL

if TYPE_CHECKING:
    from pdqn.policy import Policy

_METRICS, _SUMMARY, _PICTURE = "metrics.jsonl", "summary.json", "training_results.png"
_ORDER_SECONDS, _SAVE_SECONDS, _STOP_SECONDS = 30.0, 60.0, 120.0
_TURN_SECONDS = 0.1


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls while it goes on, one at a time.

    Attributes:
        on_snapshot: called with every snapshot, about once a second.
        on_evaluation: called with the figures of every evaluation, in order.
        on_end: called with the run once it has ended, however it did.
        stop_when: called with every snapshot; True ends the run as a limit does.
    """

    on_snapshot: Callable[[Snapshot], object] | None = None
    on_evaluation: Callable[[dict[str, Any]], object] | None = None
    on_end: Callable[[Run], object] | None = None
    stop_when: Callable[[Snapshot], object] | None = None


@dataclass(frozen=True)
class Picture:
    """A picture in a file, which notebooks show.

    Attributes:
        path: the file.
    """

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


class Run:
    """A run that this program has started, or the results of any run.

    Iterate over it for its snapshots, until it ends. A run that goes on ends, in order, with the
    program that has started it.

    Args:
        path: a run directory.

    Attributes:
        path: the run directory.

    Raises:
        UsageError: it is not a run directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if not is_run_directory(self.path):
            raise UsageError(f"{path} is not a run directory (it needs config.toml)")
        self._child: Child | None = None
        self._folders: Sequence[str] = ()
        self._read_to = self._first_byte = 0
        self._evaluation: Mapping[str, Any] = {}
        self._evaluations_read = threading.Lock()
        self._fault: BaseException | None = None
        self._follower: threading.Thread | None = None

    @classmethod
    def _of(cls, child: Child, folders: Sequence[str], first_byte: int) -> Run:
        """Make the object of a run that has begun; its metrics begin at this byte."""
        run = cls(Path(child.progress["run_dir"]))
        run._child, run._folders, run._first_byte = child, folders, first_byte
        return run

    # ---- the run while it goes on ----

    def __iter__(self) -> Iterator[Snapshot]:
        """Yield the newest snapshot whenever there is another one, until the run has ended.

        Raises:
            RunError: the run failed, or this program has not started it.
        """
        child, lines = self._started, 0
        while True:
            while not child.wait_for_news(lines, math.inf):
                pass
            if child.lines == lines:
                break
            lines = child.lines
            yield self.snapshot
        self._check()

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot.

        Raises:
            RunError: this program has not started the run.
        """
        self._read_evaluations()
        return Snapshot(self, self._started.progress, self._evaluation)

    @property
    def is_running(self) -> bool:
        """Tell whether the run goes on, as far as this program has started it."""
        return self._child is not None and self._child.code is None

    def wait(self, seconds: float = math.inf) -> dict[str, Any]:
        """Wait until the run has ended, and return its summary. Ctrl-C ends the wait, not the run.

        Raises:
            RunError: the run failed, or this program has not started it.
            TimeoutError: it goes on after these seconds.
        """
        if not self._started.wait(seconds):
            raise TimeoutError(f"{self.path}: the run goes on after {seconds:g} s")
        if self._follower not in (None, threading.current_thread()):
            self._follower.join()
        self._check()
        return self.summary

    def stop(self) -> dict[str, Any]:
        """End the run as Ctrl-C does, wait until it has saved everything, and return its summary.

        Raises:
            RunError: the run failed meanwhile, or this program has not started it.
            KeyboardInterrupt: a person does not want to wait; the run ends at once.
        """
        child = self._started
        child.interrupt()
        try:
            ended = child.wait(_STOP_SECONDS)
        except KeyboardInterrupt:
            child.interrupt(again=True)
            raise
        if not ended:
            raise RunError(f"{self.path}: the run has not ended within {_STOP_SECONDS:g} s")
        if failure := child.failure():
            raise failure
        return self.summary

    def pause(self) -> None:
        """Let the actors wait. The time of the run goes on.

        Raises:
            RunError: the run has ended, or does not obey for half a minute.
        """
        self._order("pause", lambda: self._started.progress.get("stage") == "paused")

    def resume(self) -> None:
        """Let paused actors go on.

        Raises:
            RunError: the run has ended, or does not obey for half a minute.
        """
        self._order("resume", lambda: self._started.progress.get("stage") == "running")

    def save(self) -> Path:
        """Save a checkpoint and the model now; return the model's file.

        Raises:
            RunError: the run has ended, or does not save for a minute.
        """
        model = self.path / FINAL_MODEL
        before = _written_at(model)
        self._order("save", lambda: _written_at(model) != before, _SAVE_SECONDS)
        return model

    def watch(self) -> None:
        """Show the run here until it ends, or until Ctrl-C, after which it goes on."""
        display = make_display(True)
        self._follow(Callbacks(), display, self._started.said)

    # ---- its results ----

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json; empty while the run goes on."""
        try:
            return json.loads((self.path / _SUMMARY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def metrics(self, *, frame: bool | None = None) -> Any:
        """Return the figures of training so far, a line every five seconds.

        Args:
            frame: True for a pandas DataFrame, False for a dict of numpy arrays. By default it is
                a DataFrame if pandas is installed.

        Returns:
            float64[lines] by the names of the figures; NaN where a figure was not known.
        """
        lines, _ = columns.read_lines(self.path / _METRICS)
        return columns.table((one for one in lines if not columns.is_evaluation(one)), frame)

    def evaluations(self, *, frame: bool | None = None) -> Any:
        """Return the figures of all evaluations so far, in the same form as ``metrics``."""
        lines, _ = columns.read_lines(self.path / _METRICS)
        return columns.table(filter(columns.is_evaluation, lines), frame)

    def policy(self, *, best: bool = False, device: str = "cpu") -> Policy:
        """Load the policy; of a run that goes on, save it first.

        Args:
            best: load the parameters that evaluated best, not the last ones.
            device: device on which it computes.

        Raises:
            UsageError: there is no model yet.
            RunError: the run goes on, but does not save.
        """
        self._save_for(best)
        from pdqn.policy import load_policy

        return load_policy(self.path, best=best, device=device)

    def evaluate(self, *, episodes: int = 100, best: bool = False) -> dict[str, Any]:
        """Play greedy episodes on held-out seeds, as ``pdqn eval`` does; return its JSON.

        Args:
            episodes: number of episodes.
            best: use the parameters that evaluated best, not the last ones.

        Raises:
            UsageError, RunError: see ``policy``; or no episode could be played.
        """
        self._save_for(best)
        arguments = ["eval", str(self.path), "--json", "--episodes", str(episodes)]
        return json.loads(output_of([*arguments, *(["--best"] if best else [])], self._folders))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Picture:
        """Draw the run's curves, as ``pdqn plot`` does; a notebook shows what this returns.

        Args:
            path: file of the picture; by default training_results.png in the run directory.

        Raises:
            UsageError, RunError: there is nothing to draw yet, or the file cannot be written.
        """
        out = self.path / _PICTURE if path is None else Path(path)
        output_of(["plot", str(self.path), "--out", str(out)], self._folders)
        return Picture(out)

    def __repr__(self) -> str:
        """Return the directory and the present state."""
        state = repr(self.snapshot) if self._child is not None else "results"
        return f"Run({str(self.path)!r}, {state})"

    # ---- inside ----

    @property
    def _started(self) -> Child:
        if self._child is None:
            raise RunError(f"{self.path}: this program has not started the run")
        return self._child

    def _order(self, word: str, is_done: Callable[[], bool], seconds: float | None = None) -> None:
        child, seconds = self._started, seconds or _ORDER_SECONDS
        child.order(word)
        deadline = clock.monotonic() + seconds
        while child.code is not None or not is_done():
            if child.code is not None:
                raise RunError(f"{self.path}: {word}: the run has ended")
            if child.progress.get("stage") == "starting":  # orders wait until it has begun
                deadline = clock.monotonic() + seconds
            if clock.monotonic() > deadline:
                raise RunError(f"{self.path}: {word}: nothing has happened for {seconds:g} s")
            child.wait_for_news(child.lines, _TURN_SECONDS)

    def _save_for(self, best: bool) -> None:
        if self.is_running and not best:
            try:
                self.save()
            except RunError:
                if self.is_running:
                    raise

    def _check(self) -> None:
        """Raise the error with which the run, or a callback of it, has failed."""
        if self._fault is not None:
            raise self._fault
        if failure := self._started.failure():
            raise failure

    def _read_evaluations(self) -> list[dict[str, Any]]:
        """Return the lines of evaluations since the last call."""
        with self._evaluations_read:
            lines, self._read_to = columns.read_lines(self.path / _METRICS, self._read_to)
            new = [*filter(columns.is_evaluation, lines)]
            self._evaluation = new[-1] if new else self._evaluation
        return new

    def _follow(self, callbacks: Callbacks, display: Display, said: int = 0) -> None:
        """Call the callbacks and show the run, until it has ended."""
        told, asked = self._first_byte, False
        try:
            for snapshot in self:
                said = _show_messages(self._started, said, display)
                display.update(snapshot)
                told = self._tell_evaluations(told, callbacks)
                if callbacks.on_snapshot is not None:
                    callbacks.on_snapshot(snapshot)
                if callbacks.stop_when is not None and not asked and callbacks.stop_when(snapshot):
                    asked = True
                    self._started.order("finish")
        finally:
            display.close()
        self._tell_evaluations(told, callbacks)

    def _tell_evaluations(self, told: int, callbacks: Callbacks) -> int:
        """Tell of the evaluations in the bytes from ``told`` on; return the bytes told of."""
        if callbacks.on_evaluation is None:
            return told
        lines, told = columns.read_lines(self.path / _METRICS, told)
        for line in filter(columns.is_evaluation, lines):
            callbacks.on_evaluation(line)
        return told

    def _follow_aside(self, callbacks: Callbacks) -> None:
        """Follow the run in a thread; ``wait`` raises what a callback has raised, which ends it."""
        try:
            self._follow(callbacks, Nowhere())
        except Exception as error:  # noqa: BLE001 - a callback may raise anything; wait raises it
            if self._started.failure() is None:
                self._fault = error
            self._started.interrupt()
            self._started.wait(math.inf)
        if callbacks.on_end is not None:
            callbacks.on_end(self)


def launch(
    env: Env = None,
    *,
    time: float | str | None = None,
    on_snapshot: Callable[[Snapshot], object] | None = None,
    on_evaluation: Callable[[dict[str, Any]], object] | None = None,
    on_end: Callable[[Run], object] | None = None,
    stop_when: Callable[[Snapshot], object] | None = None,
    **settings: Any,
) -> Run:
    """Start a run in the background, and return it once it has its directory.

    Arguments are those of ``train``, but for ``show``. Callbacks are called from a thread, one at a
    time. What one of them raises ends the run, and ``Run.wait`` raises it. The run ends, in order,
    with this program: wait for it.

    Raises:
        UsageError: a setting or the environment is refused, as the command line would refuse it.
        RunError: the run could not be started.
    """
    callbacks = Callbacks(on_snapshot, on_evaluation, on_end, stop_when)
    run = _begin(env, time, settings)
    if callbacks != Callbacks():
        follow = partial(run._follow_aside, callbacks)
        run._follower = threading.Thread(target=follow, name="pdqn-callbacks", daemon=True)
        run._follower.start()
    return run


def train(
    env: Env = None,
    *,
    time: float | str | None = None,
    show: bool | None = None,
    on_snapshot: Callable[[Snapshot], object] | None = None,
    on_evaluation: Callable[[dict[str, Any]], object] | None = None,
    on_end: Callable[[Run], object] | None = None,
    stop_when: Callable[[Snapshot], object] | None = None,
    **settings: Any,
) -> Run:
    """Train in processes of their own until a limit is reached, and return the run.

    This is ``pdqn launch`` with the same settings. Ctrl-C ends the run in order, and then raises
    KeyboardInterrupt, with the run directory in a note.

    Args:
        env: a gymnasium id, ``module:function``, or a function or class at the top level of a
            module or script, which makes an environment.
        time: limit in seconds, or a text such as ``90s`` or ``10m``.
        show: False shows nothing. By default there is a live view in a notebook, and a line on a
            terminal.
        on_snapshot: called with each ``Snapshot``, about once a second.
        on_evaluation: called with the figures of each evaluation, by their names in metrics.jsonl.
        on_end: called with the run once it has ended, however it did.
        stop_when: called with each snapshot; if it returns True, the run ends as at a limit.
        settings: the settings of ``[run]`` by their names, and of other sections as dicts, such as
            ``learner={"batch_size": 128}``. ``config`` is a TOML file or a dict of the same form.
            ``preset``, ``run_dir``, ``resume``, ``force``, ``trust``, ``actors``, ``replays`` and
            ``envs_per_actor`` are the options of ``pdqn launch``.

    Raises:
        UsageError: a setting or the environment is refused, as the command line would refuse it.
        RunError: the run failed.
    """
    callbacks = Callbacks(on_snapshot, on_evaluation, on_end, stop_when)
    run = _begin(env, time, settings)
    try:
        run._follow(callbacks, make_display(show))
    except BaseException as error:
        if run.is_running:
            with contextlib.suppress(RunError, UsageError):
                run.stop()
        error.add_note(f"the run is in {run.path}: pdqn.Run({str(run.path)!r})")
        raise
    finally:
        if callbacks.on_end is not None:
            callbacks.on_end(run)
    return run


def _begin(env: Env, time: float | str | None, settings: Mapping[str, Any]) -> Run:
    """Start a run, and wait until it has its directory.

    Raises:
        UsageError, RunError: it cannot be started.
    """
    if WITHIN in os.environ:
        raise UsageError(
            "a process of a run has imported a script that starts a run; write pdqn.train and "
            "pdqn.launch below `if __name__ == '__main__':`"
        )
    names = Options.__dataclass_fields__.keys()
    options = Options(**{name: value for name, value in settings.items() if name in names})
    others = {name: value for name, value in settings.items() if name not in names}
    asked = request(env, time, options, others)
    # A run that is resumed has told of its earlier evaluations.
    past = None if options.resume is None else Path(options.resume) / _METRICS
    first_byte = 0 if past is None else columns.read_lines(past)[1]
    child = Child(asked.arguments, asked.layers, asked.folders)
    try:
        while not child.lines and child.code is None:
            child.wait_for_news(0, math.inf)
        if not child.lines:
            raise child.failure() or RunError(child.last_error or "the run ended at once")
        return Run._of(child, asked.folders, first_byte)
    except BaseException:
        child.interrupt()
        child.wait(_STOP_SECONDS)
        raise


def _show_messages(child: Child, said: int, display: Display) -> int:
    """Show the messages after the first ones; return how many there have been."""
    with child.changed:
        new, count = child.said - said, child.said
        messages = [*child.messages][-new:] if new > 0 else []
    for text in messages:
        display.message(text)
    return count


def _written_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
