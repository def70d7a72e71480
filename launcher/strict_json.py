"""JSON as its standard has it: without NaN and infinity, which Python would write all the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(values: Any, **layout: Any) -> str:
    """Write plain data as JSON, with null in place of NaN and infinity.

    Args:
        values: the data.
        layout: other arguments of ``json.dumps``.
    """
    return json.dumps(_strict(values), allow_nan=False, **layout)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
