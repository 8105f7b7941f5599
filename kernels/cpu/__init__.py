"""Convolution kernels for the CPU, in versions of growing speed.

The versions, from ``v1_loops`` to ``v6_planes``, each have ``conv2d_forward(x, w, b)``,
``conv2d_backward_input(dy, w)`` and ``conv2d_backward_weight(x, dy)``, over C-contiguous NCHW
arrays of float32 or float64. The last is what the ``numba`` backend uses; ``chain`` and ``whole``
fuse whole networks from the same tile.
"""

VERSIONS = ("v1_loops", "v2_parallel", "v3_im2col", "v4_tile", "v5_winograd", "v6_planes")
