"""JSON objects of files that a kill may have cut off, or that somebody has edited. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse the JSON object in a text; return an empty one if it holds anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def map_in(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the object of that name in an object; an empty one if there is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}
