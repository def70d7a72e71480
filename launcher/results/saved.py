"""The check at a run's end that its files hold all that was learned."""

from __future__ import annotations

from pathlib import Path

from launcher.metrics.metrics import RunMetrics
from launcher.numbers import plural
from learner.checkpoint_folders import newest_steps
from pdqn import model_head
from pdqn.config import Config, resolved
from pdqn.errors import UsageError
from pdqn.model_head import FINAL_MODEL


def unsaved(run_dir: Path, learner_steps: int, reason: str) -> str:
    """Describe what a run's files lack of what was learned, and what there is instead.

    Args:
        run_dir: the run's directory.
        learner_steps: number of learner steps that the run has taken.
        reason: the learner's last words about a save that failed; empty if it said nothing.

    Returns:
        one line; empty if both the model and the newest checkpoint are of this step.
    """
    model, trouble = model_steps(run_dir / FINAL_MODEL)
    checkpoint = newest_steps(run_dir)
    lacks = [
        f"{name} {'cannot be read' if trouble and name == FINAL_MODEL else _age(steps)}"
        for name, steps in ((FINAL_MODEL, model), ("the newest checkpoint", checkpoint))
        if steps is None or steps < learner_steps
    ]
    if not lacks:
        return ""
    what = f"what {plural(learner_steps, 'learner step')} learned is not saved"
    what += f": {' and '.join(lacks)}"
    usable = [f"{FINAL_MODEL} can be evaluated"] if model is not None else []
    usable += [f"--resume goes on from step {checkpoint}"] if checkpoint is not None else []
    return "; ".join(
        filter(None, [what, reason, trouble, *(usable or ["nothing of it can be used"])])
    )


def _age(steps: int | None) -> str:
    return "does not exist" if steps is None else f"is of step {steps}"


def model_steps(path: Path) -> tuple[int | None, str]:
    """Return the learner steps of a model file, and why it cannot be read."""
    try:
        if not path.exists():
            return None, ""
        return model_head.model_steps(path), ""
    except (OSError, UsageError) as error:
        return None, str(error)


def shortcoming(config: Config, metrics: RunMetrics, reason: str, note: str) -> str | None:
    """Say that the learner took no step in a run that came to its end, or no evaluation worked.

    Args:
        config: the run's.
        metrics: the run's.
        reason: why it ended.
        note: what the evaluator said last.

    Returns:
        one line; None if both did.
    """
    if reason in ("interrupted", "failed"):
        return None
    if not metrics.learner_steps():
        return (
            "nothing was learned: the learner takes its first step when replay has "
            f"{resolved(config.replay.min_size):,} transitions (replay.min_size)"
        )
    if not config.evaluation.enabled or metrics.evaluation_view() is not None:
        return None
    last = f": {note}" if note else ""
    return f"no evaluation worked, so there is no best model{last}"
