"""Records of TensorBoard's event files, as bytes. This imports TensorBoard."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

_VERSION = "brain.Event:2"


def first_record() -> bytes:
    """Make the record with which a file begins."""
    return _record(Event(wall_time=time.time(), file_version=_VERSION))


def figures_record(figures: Mapping[str, float], step: int) -> bytes:
    """Make the record of the figures of one step."""
    summary = Summary(value=[_value(name, figures[name]) for name in figures])
    return _record(Event(wall_time=time.time(), step=step, summary=summary))


def _value(name: str, figure: float) -> Summary.Value:
    return Summary.Value(
        tag=name,
        tensor=make_tensor_proto(np.float32(figure)),
        metadata=create_summary_metadata("", ""),
    )


def _record(event: Event) -> bytes:
    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()
