"""What the ``numba`` backend runs: the ideas of the lessons put together, and made general.

From the bottom up, each importing only from those before it:

================  ============================================================================
``tile``          the register tile and its offset tables: nearly all the time is spent there
``winograd``      filters of 3x3 and 5x5 with fewer multiplications
``winograd1d``    the same in one direction, for the first layer's nine rows
``layout``        from planes to channels-last and back, by transposing blocks in registers
``workers``       the threads, and how they share out their work
``plan``          where everything lies: records of sizes and offsets for a chain of layers
``chain``         forward, loss and backward of one patch after the other, in the cache
``whole``         prediction: a pipeline of rows over a whole image
``planes``        1x1 convolutions
``single``        one convolution and its gradients
``pointwise``     ReLU, loss, bias gradient, optimizers
================  ============================================================================
"""
