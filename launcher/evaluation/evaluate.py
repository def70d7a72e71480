"""The command ``pdqn eval``: a policy next to the environment's baselines, on held-out seeds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from actors.environments.describe import examine_environment
from actors.evaluation import (
    Act,
    Scores,
    baseline_scores,
    describe,
    describe_own,
    play,
    random_act,
    scored,
)
from launcher import streams
from launcher.evaluation.contest import Contest, contest_tables, parse_option
from launcher.progress import progress
from launcher.results.films import check_camera, check_film, record_film
from launcher.results.models import NO_PERMISSION, Permission, chosen_model, open_model
from launcher.terminal import echo, echo_json, show
from pdqn import seeds
from pdqn.config import MAX_EPISODE_STEPS
from pdqn.errors import RunError, UsageError, first_line
from pdqn.gap import closed_gap
from pdqn.model import Model
from pdqn.policy import greedy


@dataclass(frozen=True)
class Film:
    """A film to make: its path as a person gave it, its number of episodes, and its file."""

    path: Path
    episodes: int
    file: Path | None = None

    def checked(self) -> Film:
        """Return the film with its file, before an environment here changes the directory.

        Raises:
            UsageError: it cannot be written there, or in that format.
        """
        check_film(self.path)
        return replace(self, file=self.path.absolute())


@dataclass(frozen=True)
class Circumstances:
    """Differences from the evaluations of training.

    Attributes:
        env_args: arguments of the environment that replace the model's.
        seed: seed of the first episode; the others follow. None for held-out ones.
        render: render mode in which the policy's episodes are shown, one after another.
    """

    env_args: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    render: str | None = None

    def of(self, model: Model) -> Model:
        """Return the model in an environment with these arguments.

        Raises:
            UsageError: with them it is another environment than the one that the model is for.
        """
        if not self.env_args:
            return model
        env_args = {**model.env_args, **self.env_args}
        spec = examine_environment(model.spec.id, env_args).spec.stacked(model.spec.frame_stack)
        if difference := spec.difference(model.spec):
            raise UsageError(f"--env-arg: with them {spec.id} is another environment: {difference}")
        return replace(model, env_args=env_args)

    def seeds_of(self, model: Model, episodes: int) -> list[int]:
        """Return the seeds of the episodes."""
        if self.seed is not None:
            return list(range(self.seed, self.seed + episodes))
        # The best parameters of many evaluations look better on the seeds that chose them.
        return seeds.held_out_seeds(episodes, 0 if model.score is None else seeds.UNSEEN)


AS_IN_TRAINING = Circumstances()


def evaluate(
    path: Path,
    episodes: int,
    *,
    best: bool = False,
    as_json: bool,
    film: Film | None = None,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    permission: Permission = NO_PERMISSION,
    quick: bool = False,
    search: str | None = None,
    differs: Circumstances = AS_IN_TRAINING,
) -> int:
    """Evaluate a run directory or a model file, and print the result.

    Args:
        path: the run directory or the model file.
        episodes: number of episodes, each on another seed.
        best: use the parameters that evaluated best, on other seeds than those that chose them.
        as_json: print JSON.
        film: the film to make.
        max_episode_steps: steps after which an episode is cut, and counts as far as it went.
        permission: the code that the file may run.
        quick: leave out bounds and searches, which may take long.
        search: also place circles by a search with the policy, such as ``rollouts:16``.
        differs: other arguments, seeds, or episodes that are shown.

    Raises:
        UsageError: see ``open_model``, ``parse_search`` and ``Circumstances.of``.
    """
    method = None if search is None else parse_option(search)
    torch.set_num_threads(1)
    film = None if film is None else film.checked()
    doing = deque([f"opens {path}"], maxlen=1)
    with streams.apart(), progress(lambda: doing[-1]):
        model = differs.of(open_model(chosen_model(path, best=best), permission, plays=True))
        if film is not None:
            check_camera(model)
        contest = None if method is None else Contest(model, method)
        episodes = _without_repetition(model, episodes)
        held_out = differs.seeds_of(model, episodes)
        result = _scored(model, held_out, max_episode_steps, quick, doing.append, differs.render)
        if contest is not None:
            result["search"] = contest.run(held_out, doing.append)
        _show(model, result, as_json)
        if film is not None:
            doing.append(f"films {film.episodes} episodes")
            echo(_filmed(model, film), err=as_json)
    return 0


def _show(model: Model, result: dict[str, Any], as_json: bool) -> None:
    """Print the result."""
    if as_json:
        echo_json(result)
    else:
        show(table(model, result), *contest_tables(result))


def _without_repetition(model: Model, episodes: int) -> int:
    """Return the number of episodes, at most one for each of a person's own held-out maps."""
    if not model.spec.circle_placement or not model.env_args.get("maps"):
        return episodes
    found = examine_environment(model.spec.id, model.env_args)
    echo(found.about, err=True)
    return min(episodes, found.held_out_episodes or episodes)


def _scored(
    model: Model,
    held_out: list[int],
    max_episode_steps: int,
    quick: bool,
    tell: Callable[[str], object],
    render: str | None = None,
) -> dict[str, Any]:
    """Play the policy and its baselines, and describe both.

    Args:
        model: the policy.
        held_out: seeds of the episodes.
        max_episode_steps: steps after which an episode is cut.
        quick: whether to leave out the environment's bounds and searches.
        tell: called with a few words about what goes on.
        render: render mode in which the policy's episodes are shown, one after another.
    """
    episodes = len(held_out)
    playing = partial(
        play,
        spec=model.spec,
        env_args=model.env_args,
        seeds=held_out,
        max_episode_steps=max_episode_steps,
    )
    shown = playing
    if render is not None:
        shown = partial(
            playing, env_args={**model.env_args, "render_mode": render}, most_environments=1
        )
    scores = _played(shown, partial(greedy, model.network), "policy", episodes, tell)
    tell("plays the environment's baselines")
    beside = _own_baselines(model, held_out) or _random(model, episodes, playing, tell)
    if not quick:
        tell("computes bounds and searches")
        beside |= _slow_baselines(model, held_out)
    result = describe(scores, model.spec, beside)
    score = result["metrics"].get(model.spec.headline_metric, result["return_mean"])
    result["gap_closed"] = closed_gap(score, result["baselines"])
    result["info"] = describe_own(scores, model.spec)
    return result | {"parameter_version": model.parameter_version}


def _played(
    playing: Callable[..., Scores | None],
    act: Act,
    name: str,
    episodes: int,
    tell: Callable[[str], object],
) -> Scores:
    """Play episodes, and tell how many have ended."""
    over = 0

    def ended(count: int) -> None:
        nonlocal over
        over += count
        tell(f"plays the {name}: {over} of {episodes} episodes")

    ended(0)
    scores = playing(act, ended=ended)
    assert scores is not None, "nothing stops it"
    return scores


def _filmed(model: Model, film: Film) -> str:
    """Record the film, and describe it in a line."""
    frames, whole = record_film(model, film.file or film.path, film.episodes)
    cut = "" if whole else ", then cut: the film would be too large"
    return f"{film.path}: {frames} frames{cut}"


def table(model: Model, result: dict[str, Any]) -> Table:
    """Lay out policy and baselines, with standard errors and paired differences."""
    headline = model.spec.headline_metric
    name = headline if headline is not None and headline in result["metrics"] else "return"
    drawn = Table(
        title=f"{model.spec.id}: {result['episodes']} held-out episodes{_without_score(result)}, "
        f"parameters of learner step {result['parameter_version']}",
        caption="± standard errors; differences are paired by seed",
    )
    for column in ("policy", name, "policy - this"):
        drawn.add_column(column, justify="left" if column == "policy" else "right")
    score = result["metrics"].get(name, result["return_mean"])
    error = result["errors"].get(name, result["return_error"])
    policy = Text("greedy on Q", "bold"), Text(f"{score:.4f} ± {error:.4f}", "bold")
    drawn.add_row(*policy, "")
    for baseline, mean in result["baselines"].items():
        error = result["baseline_errors"][baseline]
        difference, difference_error = result["differences"][baseline]
        drawn.add_row(
            baseline.replace("_", " "),
            f"{mean:.4f} ± {error:.4f}",
            f"{difference:+.4f} ± {difference_error:.4f}",
        )
    reference = result["baselines"].get("exact_greedy")
    if reference:
        drawn.add_section()
        drawn.add_row("greedy on Q / exact greedy", f"{score / reference:.1%}", "")
    if (share := closed_gap(score, result["baselines"])) is not None:
        drawn.add_row("share of the provable gap closed", f"{share:.1%}", "")
    drawn.add_section()
    for name, own in result["info"].items():
        few = "" if own["episodes"] == result["episodes"] else f" in {own['episodes']} episodes"
        drawn.add_row(f"info/{name}{few}", f"{own['mean']:.4f} ± {own['error']:.4f}", "")
    return drawn


def _without_score(result: dict[str, Any]) -> str:
    """Describe episodes that do not count in full; empty if all do."""
    parts = [f"{result['cut']} of them cut"] if result["cut"] else []
    if result["unscored"]:
        parts.append(f"{result['unscored']} before their headline metric was known")
    if result["dropped"]:
        parts.append(f"{result['dropped']} more have no score")
    return f" ({', '.join(parts)})" if parts else ""


def _slow_baselines(model: Model, held_out: list[int]) -> dict[str, NDArray[np.float64]]:
    """Compute the environment's bounds, and scores of its searches; empty without any."""
    scores: dict[str, NDArray[np.float64]] = {}
    for method in ("bounds", "searches"):
        try:
            scores |= baseline_scores(model.spec, model.env_args, held_out, method)
        except RunError as error:
            echo(f"pdqn: {first_line(error)}", err=True)
    return scores


def _own_baselines(model: Model, held_out: list[int]) -> dict[str, NDArray[np.float64]]:
    """Score the environment's own baselines, if it has any that can be played."""
    try:
        return baseline_scores(model.spec, model.env_args, held_out)
    except RunError as error:  # they are an addition to the policy's score
        echo(f"pdqn: {first_line(error)}", err=True)
    return {}


def _random(
    model: Model,
    episodes: int,
    playing: Callable[..., Scores | None],
    tell: Callable[[str], object],
) -> dict[str, NDArray[np.float64]]:
    """Score the random policy, which every environment has.

    If it is cut before its headline metric is known, it is left out. The seeds of its short
    episodes alone would not compare the two fairly.
    """
    act = random_act(model.spec, seeds.generator(0, "random baseline"))
    scores = _played(playing, act, "random policy", episodes, tell)
    values = scored(scores, model.spec)
    if unscored := int((scores.cut & np.isnan(values)).sum()):
        echo(
            f"pdqn: the random policy is left out: {unscored} of its {len(values)} episodes were "
            f"cut before their {model.spec.headline_metric} was known",
            err=True,
        )
        return {}
    return {"random": values}
