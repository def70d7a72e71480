"""Products of matrices, by the library that is fast on this processor."""

from __future__ import annotations

import torch
from torch import Tensor

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


def _onednn() -> torch._ops.OpOverload | None:
    """Return oneDNN's product, x @ weight.T, or None if this torch or processor has no use for it.

    It is what ``torch.compile`` uses for linear layers, and has no public name.
    """
    wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
    if not (wide and torch.backends.mkldnn.is_available()):
        return None
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if linear is None else linear.default


_linear = _onednn()
