"""The versions of convolution in ``kernels/cuda``, side by side: for tests and benchmarks.

Each version is a :class:`Version` of three functions with one signature. The backend itself runs
the last one (through ``_cuda.py``); the others are there to be read, checked and timed. A version
that changes only some of the three functions takes the rest from the one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ._cuda import Array, CudaBackend
from ._cuda_plan import layer_options

_THREADS = 256
_GEMM = 16   # GEMM_TILE in conv_v2_im2col.cu
_TILE = 64   # TILE in conv_v3_tiled.cu
_SLIDE = (8, 40, 64)  # ROWS, COLUMNS * PIXELS, THREADS in conv_v4_sliding.cu


@dataclass(frozen=True)
class Version:
    """One version of valid convolution.

    Attributes
    ----------
    name : str
    forward : callable
        ``(x, w, b) -> y``.
    backward_input : callable
        ``(dy, w) -> dx``.
    backward_weight : callable
        ``(x, dy) -> dw``.
    """

    name: str
    forward: Callable[[Array, Array, Array], Array]
    backward_input: Callable[[Array, Array], Array]
    backward_weight: Callable[[Array, Array], Array]


def versions(backend: CudaBackend) -> list[Version]:
    """Return all versions, slowest first."""
    v1, v2, v3 = "conv_v1_naive.cu", "conv_v2_im2col.cu", "conv_v3_tiled.cu"
    sliding = (partial(_sliding_forward, backend), partial(_sliding_backward_input, backend))
    return [
        Version("v1 naive", *(partial(f, backend, v1) for f in (
            _naive_forward, _naive_backward_input, _naive_backward_weight))),
        Version("v2 im2col", *(partial(f, backend, v2) for f in (
            _im2col_forward, _im2col_backward_input, _im2col_backward_weight))),
        Version("v3 tiled", *(partial(f, backend, v3) for f in (
            _tiled_forward, _tiled_backward_input, _tiled_backward_weight))),
        Version("v4 sliding", *sliding, partial(_tiled_backward_weight, backend, v3)),
        Version("v5 split", *sliding, backend.conv2d_backward_weight),
        Version("v6 fused", backend.conv2d_forward, backend.conv2d_backward_input,
                backend.conv2d_backward_weight),
    ]


# ---- version 1 -----------------------------------------------------------------------------


def _naive_forward(backend: CudaBackend, file: str, x: Array, w: Array, b: Array) -> Array:
    N, C, H, W = x.shape
    F, _, KH, KW = w.shape
    y = backend.xp.empty((N, F, H - KH + 1, W - KW + 1), x.dtype)
    backend.launch(file, "conv_forward_naive", _grid(y.size), (_THREADS,), x, w, b, y,
                   N, C, H, W, F, KH, KW, real=x.dtype)
    return y


def _naive_backward_input(backend: CudaBackend, file: str, dy: Array, w: Array) -> Array:
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    H, W = OH + KH - 1, OW + KW - 1
    dx = backend.xp.empty((N, C, H, W), dy.dtype)
    backend.launch(file, "conv_backward_input_naive", _grid(dx.size), (_THREADS,), dy, w, dx,
                   N, C, H, W, F, KH, KW, real=dy.dtype)
    return dx


def _naive_backward_weight(backend: CudaBackend, file: str, x: Array, dy: Array) -> Array:
    N, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    dw = backend.xp.empty((F, C, KH, KW), x.dtype)
    backend.launch(file, "conv_backward_weight_naive", _grid(dw.size), (_THREADS,), x, dy, dw,
                   N, C, H, W, F, KH, KW, real=x.dtype)
    return dw


# ---- version 2 -----------------------------------------------------------------------------


def im2col(backend: CudaBackend, x: Array, KH: int, KW: int) -> Array:
    """Return the columns (N, C*KH*KW, OH*OW) of ``x`` (N,C,H,W)."""
    N, C, H, W = x.shape
    cols = backend.xp.empty((N, C * KH * KW, (H - KH + 1) * (W - KW + 1)), x.dtype)
    backend.launch("conv_v2_im2col.cu", "im2col", _grid(cols.size), (_THREADS,), x, cols,
                   N, C, H, W, KH, KW, real=x.dtype)
    return cols


def col2im(
    backend: CudaBackend, cols: Array, shape: tuple[int, int, int, int], KH: int, KW: int,
    *, atomic: bool = False,
) -> Array:
    """Return the transpose of :func:`im2col`: ``cols`` added up into an array of ``shape``."""
    dx = (backend.xp.zeros if atomic else backend.xp.empty)(shape, cols.dtype)
    kernel, size = ("col2im_atomic", cols.size) if atomic else ("col2im_gather", dx.size)
    backend.launch("conv_v2_im2col.cu", kernel, _grid(size), (_THREADS,), cols, dx, *shape,
                   KH, KW, real=cols.dtype)
    return dx


def _im2col_forward(backend: CudaBackend, file: str, x: Array, w: Array, b: Array) -> Array:
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    cols = im2col(backend, x, KH, KW)
    _, K, P = cols.shape
    y = backend.xp.empty((N, F, H - KH + 1, W - KW + 1), x.dtype)
    _gemm(backend, file, w, cols, y, (F, P, K), batch=N, bias=b,
          a=(K, 1, 0, 0), b=(P, 1, K * P, 0))
    return y


def _im2col_backward_input(backend: CudaBackend, file: str, dy: Array, w: Array) -> Array:
    N, F, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    K, P = C * KH * KW, OH * OW
    dcols = backend.xp.empty((N, K, P), dy.dtype)
    _gemm(backend, file, w, dy, dcols, (K, P, F), batch=N,
          a=(1, K, 0, 0), b=(P, 1, F * P, 0))                       # w transposed
    return col2im(backend, dcols, (N, C, OH + KH - 1, OW + KW - 1), KH, KW)


def _im2col_backward_weight(backend: CudaBackend, file: str, x: Array, dy: Array) -> Array:
    N, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    KH, KW = H - OH + 1, W - OW + 1
    cols = im2col(backend, x, KH, KW)
    _, K, P = cols.shape
    dw = backend.xp.empty((F, C, KH, KW), x.dtype)
    _gemm(backend, file, dy, cols, dw, (F, K, P), sums=N,
          a=(P, 1, 0, F * P), b=(1, P, 0, K * P))                   # cols transposed, summed over n
    return dw


def _gemm(
    backend: CudaBackend, file: str, left: Array, right: Array, out: Array,
    sizes: tuple[int, int, int], *, a: tuple[int, int, int, int], b: tuple[int, int, int, int],
    batch: int = 1, sums: int = 1, bias: Array | None = None,
) -> None:
    """Multiply; ``a`` and ``b`` are strides over row, column, batch and summed images."""
    M, N, K = sizes
    grid = (-(-N // _GEMM), -(-M // _GEMM), batch)
    backend.launch(file, "gemm", grid, (_GEMM, _GEMM), left, right, left if bias is None else bias,
                   out, M, N, K, sums, int(bias is not None), *a, *b, M * N, real=out.dtype)


# ---- version 3 -----------------------------------------------------------------------------


def _tiled_forward(backend: CudaBackend, file: str, x: Array, w: Array, b: Array) -> Array:
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    OH, OW = H - KH + 1, W - KW + 1
    y = backend.xp.empty((N, F, OH, OW), x.dtype)
    _tiled(backend, file, "conv_forward_tiled", w.shape, (N * OH * OW, F), x, w, b, y, N, H, W)
    return y


def _tiled_backward_input(backend: CudaBackend, file: str, dy: Array, w: Array) -> Array:
    N, _, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    H, W = OH + KH - 1, OW + KW - 1
    dx = backend.xp.empty((N, C, H, W), dy.dtype)
    _tiled(backend, file, "conv_backward_input_tiled", w.shape, (N * H * W, C), dy, w, dx, N, H, W)
    return dx


def _tiled_backward_weight(backend: CudaBackend, file: str, x: Array, dy: Array) -> Array:
    N, C, H, W = x.shape
    _, F, OH, OW = dy.shape
    shape = (F, C, H - OH + 1, W - OW + 1)
    dw = backend.xp.empty(shape, x.dtype)
    _tiled(backend, file, "conv_backward_weight_tiled", shape, (dw.size // F, F), x, dy, dw,
           N, H, W)
    return dw


def _tiled(
    backend: CudaBackend, file: str, kernel: str, shape: tuple[int, int, int, int],
    results: tuple[int, int], *args: Any,
) -> None:
    columns, rows = results
    backend.launch(file, kernel, (-(-columns // _TILE), -(-rows // _TILE)), (_THREADS,), *args,
                   real=args[0].dtype, options=layer_options(shape))


# ---- version 4 -----------------------------------------------------------------------------


def _sliding_forward(backend: CudaBackend, x: Array, w: Array, b: Array) -> Array:
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    y = backend.xp.empty((N, F, H - KH + 1, W - KW + 1), x.dtype)
    _sliding(backend, "conv_forward_sliding", w.shape, y, x, w, b, y, H, W)
    return y


def _sliding_backward_input(backend: CudaBackend, dy: Array, w: Array) -> Array:
    N, _, OH, OW = dy.shape
    _, C, KH, KW = w.shape
    H, W = OH + KH - 1, OW + KW - 1
    dx = backend.xp.empty((N, C, H, W), dy.dtype)
    _sliding(backend, "conv_backward_input_sliding", w.shape, dx, dy, w, dx, H, W)
    return dx


def _sliding(
    backend: CudaBackend, kernel: str, shape: tuple[int, int, int, int], result: Array, *args: Any
) -> None:
    N, outs, H, W = result.shape
    rows, columns, threads = _SLIDE
    grid = (N * -(-H // rows) * -(-W // columns), -(-outs // min(outs, 8)))
    backend.launch("conv_v4_sliding.cu", kernel, grid, (threads,), *args, real=result.dtype,
                   options=layer_options(shape))


def _grid(size: int) -> tuple[int]:
    return (-(-size // _THREADS),)
