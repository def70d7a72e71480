"""Prototype of the learner's step as one CUDA graph, which ``benchmarks/gpu.py`` measures.

The learner itself has no such option yet. A graph replays the whole step without Python: losses,
backward pass, clipping, Adam and the soft target. So everything has to stay on the device and at
its place. Adam's own kernel leaves out a step that is to be skipped, and each batch is copied into
the memory of the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learner.learner import Learner
from learner.objective import TensorBatch

_WARM_UPS = 3


class GraphedStep:
    """The step of a learner on fixed memory; on a GPU it is a graph.

    Args:
        learner: a learner that has taken no step, with a soft target; its parameters are moved.
        batch: a batch on its device, whose memory is used from now on.
    """

    def __init__(self, learner: Learner, batch: TensorBatch) -> None:
        self._learner, self._batch = learner, batch
        self._online: list[Tensor] = list(learner.online.parameters())
        self._target: list[Tensor] = list(learner.target.parameters())
        self._rate = learner._config.target_update_rate
        self._clip_norm = learner._config.gradient_clip_norm
        on_gpu = learner.device.type == "cuda"
        self._adam = torch.optim.Adam(
            self._online,
            lr=learner.learning_rate,
            eps=learner._optimizer.epsilon,
            fused=True,
            capturable=on_gpu,
        )
        self._numbers = torch.zeros(0)
        self._graph = self._captured() if on_gpu else None

    def step(self, batch: TensorBatch) -> list[float]:
        """Take a step on a batch of the same shapes; return its loss, mean Q and gradient norm."""
        for ours, theirs in zip(self._batch.tensors(), batch.tensors(), strict=True):
            ours.copy_(theirs)
        if self._graph is None:
            self._take()
        else:
            self._graph.replay()
        return self._numbers.cpu()[:3].tolist()

    def _take(self) -> None:
        """Queue the whole step."""
        figures, rows = self._learner._backward(self._batch)
        norm = nn.utils.clip_grad_norm_(self._online, self._clip_norm)
        finite = norm.isfinite() & figures[0].isfinite()
        # Adam's kernel leaves parameters and moments alone where this is 1.
        self._adam.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
        self._adam.step()
        with torch.no_grad():
            for ours, theirs in zip(self._online, self._target, strict=True):
                theirs.lerp_(ours, self._rate)
        self._numbers = torch.cat([figures, norm.detach()[None], rows.flatten()])

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Capture the step, and set everything back to before it."""
        before = [p.detach().clone() for p in (*self._online, *self._target)]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._take()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._take()
        with torch.no_grad():
            for parameter, values in zip((*self._online, *self._target), before, strict=True):
                parameter.copy_(values)
        for state in self._adam.state.values():
            for moment in state.values():
                if isinstance(moment, Tensor):
                    moment.zero_()
        return graph
