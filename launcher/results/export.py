"""The command ``pdqn export``: a policy's network as an ONNX file, for programs without torch."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from launcher.results.checks import check_output
from launcher.results.models import NO_PERMISSION, Permission, chosen_model, open_model
from pdqn.atomic import replacing
from pdqn.errors import UsageError
from pdqn.model import Model
from pdqn.networks import QNetwork
from pdqn.networks.qmap import QMap
from pdqn.specs import EnvironmentSpec

_NEEDED = ("onnx", "onnxscript")
_FORMATS = (".onnx",)
_EXAMPLES = 2


class _Values(nn.Module):
    """Action values from the observation's fields, in their order."""

    def __init__(self, network: QNetwork, names: list[str]) -> None:
        super().__init__()
        self._network, self._names = network, names

    def forward(self, *fields: Tensor) -> Tensor:
        observation = dict(zip(self._names, fields, strict=True))
        values = self._network(*self._network.prepare(observation))
        scale = self._network.return_scale
        return values if scale is None else values * scale()


def export_onnx(
    run: Path,
    path: Path,
    *,
    best: bool = False,
    permission: Permission = NO_PERMISSION,
) -> list[str]:
    """Write the network of a run as an ONNX file; return the names of its inputs.

    Its inputs are the observation's fields, [batch, *stacked shape], with any batch size. Its
    output is ``values``, float32[batch, num_actions], action masks not applied.

    Args:
        run: a run directory or a model file.
        path: the file, ``.onnx``.
        best: write the parameters of a run that evaluated best, not the last ones.
        permission: the code that the file may run.

    Raises:
        UsageError: the file cannot be written, packages are missing, or the network cannot be
            written as ONNX.
    """
    check_output("--onnx", path, _FORMATS)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"export needs {' and '.join(missing)}: python -m pip install 'pdqn[onnx]'"
        )
    model = open_model(chosen_model(run, best=best), permission)
    examples = example_fields(model.spec)
    names = list(examples)
    _check_exportable(model)
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            _Values(model.network, names).eval(),
            tuple(examples.values()),
            input_names=names,
            output_names=["values"],
            dynamic_shapes=(tuple({0: batch} for _ in names),),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    with replacing(path) as temporary:
        program.save(str(temporary))
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, which reports its internals, such as operators of missing packages."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def example_fields(spec: EnvironmentSpec) -> dict[str, Tensor]:
    """Make example observations as the network takes them."""
    return {name: torch.from_numpy(values) for name, values in spec.blank(_EXAMPLES).items()}


def _check_exportable(model: Model) -> None:
    if isinstance(model.network, QMap):
        raise UsageError(
            f"{model.spec.id}: the Q-map network derives exact rewards with a compiled kernel, "
            "which ONNX has no operator for; use pdqn.load_policy"
        )
