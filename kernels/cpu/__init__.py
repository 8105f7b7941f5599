"""Convolution kernels for the CPU.

``lessons`` has numbered versions of growing speed, each one idea and one file; ``production`` what
the ``numba`` backend runs. Both stand on ``jit``, which compiles and keeps what was compiled, and
``simd``, a vector type for Numba. Arrays are C-contiguous NCHW, of float32 or float64.
"""
