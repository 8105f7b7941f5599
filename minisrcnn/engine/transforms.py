"""What the optimizers of the host and of the device share: a transform and some numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Muon: root mean square of the numbers of an update, in learning rates.
MUON_SIZE = 0.4

#: Muon: decay of the momentum.
MUON_MOMENTUM = 0.95

#: a, b, c of a step ``X <- (a I + b X X^T + c (X X^T)^2) X`` that moves the singular values of X
#: towards 1 (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def cosine_transform(K: int) -> NDArray[np.float64]:
    """Return the orthonormal matrix (K, K) of the discrete cosine transform::

        D[k,i] = sqrt(2 / K) cos(pi k (i + 1/2) / K)        D[0,i] = sqrt(1 / K)

    ``D @ w @ D.T`` are the coefficients of a kernel ``w`` (DCT-II), ``D.T @ c @ D`` is the kernel
    of coefficients ``c``.
    """
    k, i = np.arange(K)[:, None], np.arange(K)[None]
    D = np.sqrt(2 / K) * np.cos(np.pi * k * (i + 0.5) / K)
    D[0] = np.sqrt(1 / K)
    return D
