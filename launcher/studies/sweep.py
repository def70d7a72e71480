"""A search for good settings, whose trials are runs: ``pdqn sweep FILE.toml``."""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import status_line
from launcher.interrupts import Interrupts
from launcher.numbers import number
from launcher.results.training import read_metrics
from launcher.studies.members import EXIT_INTERRUPTED, Member, pause, shares_of
from launcher.studies.seeds import memory_options
from launcher.studies.space import Sweep
from launcher.terminal import echo
from pdqn.errors import RunError, UsageError
from pdqn.locking import take_lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    import optuna

STORAGE = "study.db"
_NAME = "pdqn"
_LOOK_SECONDS = 2.0
_FAILURES_IN_A_ROW = 3


@dataclass
class _Running:
    """A trial whose run goes on.

    Attributes:
        reported: evaluations that the study knows.
        pruned: whether its run is ending because others are better.
    """

    trial: optuna.trial.Trial
    member: Member
    share: frozenset[int] | None
    reported: int = 0
    pruned: bool = False
    next_look: float = 0.0


@dataclass
class Study:
    """A sweep in its folder.

    Attributes:
        sweep: the content of its file.
        directory: folder of the trials' runs and of the study's storage.
        options: further options of all runs, from the command line; no run directory holds them.
        parallel: trials at the same time.
    """

    sweep: Sweep
    directory: Path
    options: tuple[str, ...] = ()
    parallel: int = 1
    _failures: int = field(default=0, init=False)

    def run(self, interrupts: Interrupts) -> int:
        """Run the trials that are missing; return the exit code.

        Those that an interrupted sweep has begun go on first.

        Raises:
            UsageError: another process runs the sweep, or Optuna is not installed.
            RunError: several trials in a row have failed.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with _alone(self.directory):
            study = open_study(self.directory, self.sweep)
            running: list[_Running] = []
            try:
                return self._run(study, running, interrupts)
            finally:
                status_line.end()
                for one in running:
                    one.member.kill()

    def _run(self, study: optuna.Study, running: list[_Running], interrupts: Interrupts) -> int:
        begun = deque(begun_trials(study))
        free = deque(self._shares())
        while True:
            while free and not interrupts.count and (trial := self._next(study, begun, running)):
                running.append(self._start(trial, free.popleft()))
            for one in list(running):
                self._look(study, one)
                if one.member.code is not None:
                    running.remove(one)
                    free.append(one.share)
                    self._conclude(study, one, interrupts)
                elif interrupts.count:
                    one.member.end()
            if not running and (interrupts.count or not self._missing(study, begun, running)):
                break
            pause()
        if interrupts.count:
            echo("interrupted: the same command goes on with the sweep", err=True)
            return EXIT_INTERRUPTED
        return 0

    def _shares(self) -> list[frozenset[int] | None]:
        if self.parallel == 1 or "--dask" in self.options:
            return [None] * self.parallel
        return [*shares_of(sorted(os.sched_getaffinity(0)), self.parallel)]

    def _missing(self, study: optuna.Study, begun: deque[Any], running: list[_Running]) -> int:
        """Return the number of trials that are still to be started."""
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        finished = sum(state.is_finished() for state in states)
        return max(len(begun), self.sweep.trials - finished - len(running))

    def _next(
        self, study: optuna.Study, begun: deque[Any], running: list[_Running]
    ) -> optuna.trial.Trial | None:
        """Return the next trial: one that was begun, or a new one; None if there are enough."""
        if begun:
            return begun.popleft()
        if not self._missing(study, begun, running):
            return None
        trial = study.ask()
        for parameter in self.sweep.search:
            parameter.suggest(trial)
        return trial

    def _start(self, trial: optuna.trial.Trial, share: frozenset[int] | None) -> _Running:
        run_dir = trial_directory(self.directory, trial.number)
        chosen = ", ".join(f"{name}={shown(value)}" for name, value in trial.params.items())
        echo(f"trial {trial.number}: {chosen}")
        options = [*self.sweep.options_of(trial.params), *self.options]
        options += memory_options(options, self.parallel)
        member = Member(f"trial {trial.number}", run_dir, options, "off", share, self.options)
        status_line.doing(f"trial {trial.number} of {self.sweep.trials}")
        known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        return _Running(trial, member, share, len(known))

    def _look(self, study: optuna.Study, one: _Running) -> None:
        """Tell the study the evaluations of a run, and end the run if others are better."""
        if one.member.look() is None and time.monotonic() < one.next_look:
            return
        one.next_look = time.monotonic() + _LOOK_SECONDS
        scores = scores_of(one.member.run_dir)
        # By their number: runs evaluate at the same times, and after different numbers of steps.
        for index in range(one.reported, len(scores)):
            one.trial.report(scores[index], index)
        one.reported = max(one.reported, len(scores))
        prunes = self.sweep.pruner != "none" and one.reported > self.sweep.warmup
        if one.member.code is None and not one.pruned and prunes and one.trial.should_prune():
            one.pruned = True
            one.member.stop_now()

    def _conclude(self, study: optuna.Study, one: _Running, interrupts: Interrupts) -> None:
        """Tell the study how a trial ended; one that was interrupted goes on another time."""
        from optuna.trial import TrialState

        code, scores = one.member.code, scores_of(one.member.run_dir)
        if code == EXIT_INTERRUPTED and not one.pruned:
            interrupts.count = max(1, interrupts.count)
            return
        if one.pruned and scores:
            study.tell(one.trial, state=TrialState.PRUNED)
            echo(f"trial {one.trial.number}: pruned at {number(scores[-1])}")
        elif code or not scores:
            self._failures += 1
            study.tell(one.trial, state=TrialState.FAIL)
            log = one.member.run_dir.with_name(f"{one.member.run_dir.name}.out")
            what = f"exit code {code}" if code else "no evaluation"
            echo(f"trial {one.trial.number}: failed ({what}), see {log}", err=True)
            if self._failures >= _FAILURES_IN_A_ROW:
                raise RunError(f"{self._failures} trials in a row have failed, see {log}")
            return
        else:
            study.tell(one.trial, scores[-1])
            best = study.best_trial
            echo(
                f"trial {one.trial.number}: {number(scores[-1])}, best {number(best.value)} "
                f"(trial {best.number})"
            )
        self._failures = 0


def scores_of(run_dir: Path) -> list[float]:
    """Return the scores of a run's evaluations so far, oldest first."""
    metrics = read_metrics(run_dir)
    _, scores = metrics.series(metrics.score[2])
    return [float(score) for score in scores]


def trial_directory(directory: Path, index: int) -> Path:
    """Return the run directory of a trial."""
    return directory / f"trial-{index:04}"


def begun_trials(study: optuna.Study) -> Iterator[optuna.trial.Trial]:
    """Yield the trials that an interrupted sweep has begun."""
    from optuna.trial import Trial, TrialState

    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        yield Trial(study, frozen._trial_id)


def open_study(directory: Path, sweep: Sweep | None = None) -> optuna.Study:
    """Open the study of a folder, or make it.

    Args:
        directory: the folder.
        sweep: how trials are chosen; None to look only.

    Raises:
        UsageError: there is none to look at, or Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(f"a sweep needs Optuna: pip install 'pdqn[sweep]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = directory / STORAGE
    storage = f"sqlite:///{path.absolute()}"
    if sweep is None:
        if not path.is_file():
            raise UsageError(f"{directory} holds no sweep (needs {STORAGE})")
        return optuna.load_study(study_name=_NAME, storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of features that Optuna calls experimental
        study = optuna.create_study(
            study_name=_NAME,
            storage=storage,
            direction=sweep.direction,
            pruner=_pruner(optuna, sweep),
            load_if_exists=True,
        )
        study.sampler = _sampler(optuna, sweep, len(study.get_trials(deepcopy=False)))
    return study


def _sampler(optuna: Any, sweep: Sweep, trials: int) -> Any:
    # One that goes on must not draw again what it has drawn.
    seed = sweep.seed + trials
    if sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if sweep.sampler == "grid":
        grid = {parameter.name: list(parameter.choices) for parameter in sweep.search}
        return optuna.samplers.GridSampler(grid, seed=sweep.seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _pruner(optuna: Any, sweep: Sweep) -> Any:
    pruners = optuna.pruners
    match sweep.pruner:
        case "median":
            return pruners.MedianPruner(
                n_startup_trials=sweep.startup, n_warmup_steps=max(0, sweep.warmup - 1)
            )
        case "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=max(1, sweep.warmup))
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=max(1, sweep.warmup))
        case _:
            return pruners.NopPruner()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let no other process run the sweep meanwhile."""
    with closing((directory / "lock").open("w", encoding="utf-8")) as file:
        if not take_lock(file, 10, 0.02):
            raise UsageError(f"{directory}: another process runs this sweep")
        yield


def shown(value: Any) -> str:
    """Return the value that a trial has chosen, as a person reads it."""
    return number(value) if isinstance(value, float) else str(value)
