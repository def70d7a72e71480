"""The best-evaluated parameters so far, kept as a model file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pdqn.config import Config
from pdqn.errors import UsageError, reason_of
from pdqn.model import read_model, save_model
from pdqn.model_head import NOT_SAVED
from pdqn.networks import QNetwork
from pdqn.specs import EnvironmentSpec


def not_kept(error: Exception) -> str:
    """Phrase an evaluator's note about parameters that it could not keep."""
    return f"the best parameters are {NOT_SAVED}: {reason_of(error)}"


class BestKeeper:
    """A model file with the parameters of the best evaluation so far.

    Attributes:
        score: score of that evaluation; -inf if there is none.
        unread: the reason why the file that was there could not be read, and was set aside; empty
            if it could.
    """

    def __init__(self, path: Path, config: Config, spec: EnvironmentSpec) -> None:
        """Continue from the file, if an earlier incarnation of this role has written one."""
        self._path, self._config, self._spec = path, config, spec
        self.unread = ""
        known = self._known_score() if path.is_file() else None
        self.score = known if known is not None and math.isfinite(known) else -math.inf

    def _known_score(self) -> float | None:
        """Read the file's score; set aside a file that is damaged, as it would end every start."""
        try:
            return read_model(self._path).score
        except UsageError as error:
            aside = self._path.with_name(f"unreadable-{self._path.name}")
            with suppress(OSError):
                self._path.replace(aside)
            self.unread = f"{error}; it is now {aside.name}, and the best score starts over"
            return None

    def offer(self, result: Mapping[str, Any], network: QNetwork, version: int) -> bool:
        """Keep the parameters if their evaluation is the best one; return whether they were kept.

        Args:
            result: result of ``describe`` for the evaluation. If some of its episodes were cut
                before their headline metric was known, the parameters are not kept: the mean over
                the other episodes, the short ones, cannot be compared.
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
        better = math.isfinite(score) and score > self.score
        if not better or not self._path.parent.is_dir():
            return False
        save_model(self._path, self._config, self._spec, network, version, score)
        self.score = score
        return True
