"""Records of TensorBoard's event files, as bytes. This imports TensorBoard."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.api_pb2 import Experiment  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    PLUGIN_DATA_VERSION,
    PLUGIN_NAME,
    SESSION_START_INFO_TAG,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

_VERSION = "brain.Event:2"


def first_record() -> bytes:
    """Make the record with which a file begins."""
    return _record(Event(wall_time=time.time(), file_version=_VERSION))


def figures_record(figures: Mapping[str, float], step: int) -> bytes:
    """Make the record of the figures of one step."""
    # Not as tensors: scripts that read event files look for scalars alone.
    values = [Summary.Value(tag=name, simple_value=figures[name]) for name in figures]
    return _record(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def settings_record(settings: Mapping[str, Any], name: str, score: str) -> bytes:
    """Make the record of a run's settings, which TensorBoard compares between runs.

    Args:
        settings: by name.
        name: of the run.
        score: name of the figure that says how good the run is.
    """
    experiment, session = Experiment(), SessionStartInfo(group_name=name)
    experiment.metric_infos.add().name.tag = score
    for key, value in settings.items():
        experiment.hparam_infos.add().name = key
        field = session.hparams[key]
        if isinstance(value, bool):
            field.bool_value = value
        elif isinstance(value, int | float):
            field.number_value = value
        else:
            field.string_value = str(value)
    session.start_time_secs = time.time()
    parts = [
        (EXPERIMENT_TAG, HParamsPluginData(experiment=experiment, version=PLUGIN_DATA_VERSION)),
        (
            SESSION_START_INFO_TAG,
            HParamsPluginData(session_start_info=session, version=PLUGIN_DATA_VERSION),
        ),
    ]
    summary = Summary(value=[_plugin_value(tag, data) for tag, data in parts])
    return _record(Event(wall_time=time.time(), summary=summary))


def _plugin_value(tag: str, data: HParamsPluginData) -> Summary.Value:
    plugin = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=data.SerializeToString())
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))


def _record(event: Event) -> bytes:
    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()
