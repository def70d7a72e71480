"""The best-evaluated parameters so far, kept as a model file.

The parameters of a run's first evaluation are kept until another evaluation is above it. The mean
difference of their scores, paired by held-out episode, must be at least two standard errors
(``pdqn.paired``). The first evaluation is that of the untrained network, which may be good already:
that of circle placement plays exact greedy. From then on the highest score counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.evaluation import difference
from pdqn.config import Config
from pdqn.errors import UsageError, reason_of
from pdqn.model import ModelFile, read_model, save_model
from pdqn.model_head import NOT_SAVED
from pdqn.networks import QNetwork
from pdqn.paired import is_above
from pdqn.specs import EnvironmentSpec


def not_kept(error: Exception) -> str:
    """Phrase an evaluator's note about parameters that it could not keep."""
    return f"the best parameters are {NOT_SAVED}: {reason_of(error)}"


class BestKeeper:
    """A model file with the parameters of the best evaluation so far.

    Attributes:
        score: score of that evaluation; None if there is none.
        version: learner steps of those parameters; None if there are none.
        unread: the reason why the file that was there could not be read, and was set aside; empty
            if it could.
    """

    def __init__(self, path: Path, config: Config, spec: EnvironmentSpec) -> None:
        """Continue from the file, if an earlier incarnation of this role has written one."""
        self._path, self._config, self._spec = path, config, spec
        self.unread = ""
        self.score: float | None = None
        self.version: int | None = None
        self._first: NDArray[np.float64] | None = None
        known = self._known() if path.is_file() else None
        if known is not None and known.score is not None and math.isfinite(known.score):
            self.score, self.version = known.score, known.parameter_version
            first = known.first_scores
            self._first = None if first is None else np.asarray(first, np.float64)

    @property
    def is_first(self) -> bool:
        """Return whether the parameters are those of the first evaluation, which none has beaten.

        The file of an earlier version of pdqn does not say so; the next higher score replaces it.
        """
        return self._first is not None

    def _known(self) -> ModelFile | None:
        """Read the file; set aside one that is damaged, as it would end every start."""
        try:
            return read_model(self._path)
        except UsageError as error:
            aside = self._path.with_name(f"unreadable-{self._path.name}")
            with suppress(OSError):
                self._path.replace(aside)
            self.unread = f"{error}; it is now {aside.name}, and the best score starts over"
            return None

    def offer(
        self,
        result: Mapping[str, Any],
        scores: NDArray[np.float64],
        network: QNetwork,
        version: int,
    ) -> bool:
        """Keep the parameters if their evaluation is the best one; return whether they were kept.

        Args:
            result: result of ``describe`` for the evaluation. If some of its episodes were cut
                before their headline metric was known, the parameters are not kept: the mean over
                the other episodes, the short ones, cannot be compared.
            scores: float64[episodes], score of each held-out episode in their order; NaN where an
                episode has none.
            network: network with these parameters.
            version: learner steps of the parameters.

        Raises:
            OSError: the file cannot be written; later parameters may still be kept.
        """
        if result.get("unscored"):
            return False
        headline = self._spec.headline_metric
        score = result["return_mean"] if headline is None else result["metrics"][headline]
        # No score compares with NaN: after keeping one, every later score would count as better.
        if not math.isfinite(score) or not self._is_better(score, scores):
            return False
        if not self._path.parent.is_dir():
            return False
        first = scores if self.version is None else None
        told = None if first is None else first.tolist()
        save_model(self._path, self._config, self._spec, network, version, score, told)
        self.score, self.version, self._first = score, version, first
        return True

    def _is_better(self, score: float, scores: NDArray[np.float64]) -> bool:
        """Return whether an evaluation is better than that of the parameters that are kept."""
        if self.score is None:
            return True
        if self._first is None:
            return score > self.score
        # A resumed run may evaluate on more or fewer of the same seeds.
        ours, theirs = scores[: len(self._first)], self._first[: len(scores)]
        both = np.isfinite(ours) & np.isfinite(theirs)
        if not both.any():
            return score > self.score
        mean, error = difference(ours[both], theirs[both])
        return is_above(mean, error)
