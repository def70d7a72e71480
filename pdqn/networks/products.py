"""Products of matrices, by the library that is fast on this processor."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

# Multiplications from which another library pays: its call costs some microseconds more.
_LARGE = 1 << 21
# Columns below which a transposed left matrix costs several times as much as the product turned
# round, with its copy.
_NARROW = 16


def multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Compute the product of two matrices; the same shapes always give the same bits.

    Torch's own products are MKL's. That uses no AVX-512 on processors of other makers than Intel,
    where oneDNN's are twice as fast.

    Args:
        left: float32[n, k].
        right: float32[k, m].
        out: float32[n, m], overwritten.
    """
    rows, inner = left.shape
    columns = right.shape[1]
    if columns < _NARROW <= rows and left.stride(0) == 1:
        out.copy_(torch.mm(right.t(), left.t()).t())
    elif rows * inner * columns >= _LARGE and _linear is not None:
        out.copy_(_linear(left, right.t(), None, "none", [], ""))
    else:
        torch.mm(left, right, out=out)


def dense(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a dense layer of inputs that need no gradient, by the same choice of a library.

    Args:
        inputs: [..., k].
        weight: [m, k].
        bias: [m].
    """
    size = inputs.numel() * len(weight)
    is_usual = inputs.device.type == "cpu" and inputs.dtype == weight.dtype == torch.float32
    if _linear is None or size < _LARGE or not is_usual or torch.is_autocast_enabled("cpu"):
        return functional.linear(inputs, weight, bias)
    return cast(Tensor, _Dense.apply(inputs, weight, bias))


class _Dense(torch.autograd.Function):
    """A dense layer by oneDNN."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute inputs @ weight.T + bias."""
        ctx.save_for_backward(inputs)
        return _linear(inputs, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        """Compute the gradients of weight and bias."""
        (inputs,) = ctx.saved_tensors
        # Turned round and copied first, the product takes half the time.
        turned = gradients[0].flatten(0, -2).t().contiguous()
        rows = inputs.flatten(0, -2)
        weight = _linear(turned, rows.t(), None, "none", [], "")
        return None, weight, turned.sum(dim=1)


def _onednn() -> torch._ops.OpOverload | None:
    """Return oneDNN's product, x @ weight.T, or None if this torch or processor has no use for it.

    It is what ``torch.compile`` uses for linear layers, and has no public name.
    """
    wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
    if not (wide and torch.backends.mkldnn.is_available()):
        return None
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if linear is None else linear.default


_linear: Any = _onednn()
