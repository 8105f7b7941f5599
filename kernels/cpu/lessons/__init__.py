"""Convolution on a CPU in lessons: each one idea, one file, and faster than the one before.

Each stands on ``jit``, ``simd`` and NumPy alone, and can be read without the others. All have
``conv2d_forward(x, w, b)``, ``conv2d_backward_input(dy, w)`` and
``conv2d_backward_weight(x, dy)``, but ``v7_one_patch``, which is about a whole training step:
``chain_loss_and_gradients(params, x, t)``. What they are worth was measured:
``kernels/cpu/README.md``.
"""

LESSONS = ("v1_loops", "v2_rows", "v3_threads", "v4_channels_last", "v5_im2col",
           "v6_register_tile", "v7_one_patch", "v8_winograd_numpy", "v9_winograd")
