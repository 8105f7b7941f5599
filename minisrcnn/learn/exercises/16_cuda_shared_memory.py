"""Shared memory, and the barrier that it needs.

The threads of a block can exchange numbers through a small, fast memory. A 1-D convolution: each of
the 64 threads of a block brings one number of x, the last ones bring K - 1 more, and then all of
them read what the others brought:

    tile[t] = x[first + t];  if (t < K - 1) tile[64 + t] = x[first + 64 + t]
    __syncthreads()                                  <- wait until all threads have loaded theirs
    y[first + t] = sum over u of tile[t + u] w[u]

Threads do not run in step. Without the barrier a thread reads numbers that have not come yet: right
on most days, wrong on others. Here it is found, for the threads are run in several orders. A barrier
must be reached by *all* threads of the block: not inside an `if` that some of them skip.
"""

SOURCE = r"""
extern "C" __global__ void convolve(const float* x, const float* w, float* y, int N, int K) {
  __shared__ float tile[64 + 15];  // K is at most 16
  const int t = threadIdx.x, first = blockIdx.x * 64, outputs = N - K + 1;
  // gap: fill the tile (zero beyond the end of x), and wait for the others
  tile[t] = first + t < N ? x[first + t] : 0;
  if (t < K - 1) tile[64 + t] = first + 64 + t < N ? x[first + 64 + t] : 0;
  __syncthreads();
  // end of gap
  if (first + t >= outputs) return;
  float sum = 0;
  for (int u = 0; u < K; ++u) sum += tile[t + u] * w[u];
  y[first + t] = sum;
}
"""


# ---- grading -----------------------------------------------------------------------------------
import numpy as np

from minisrcnn.learn import cuda

MISTAKES = [
    ("  __syncthreads();\n", "", "The barrier is missing: a thread reads tile[t + u] before the "
     "thread that brings it has come. Put __syncthreads() between writing and reading."),
    ("if (t < K - 1) tile[64 + t] = first + 64 + t < N ? x[first + 64 + t] : 0;", "", "The last "
     "K - 1 numbers of the tile are never written: thread 63 needs tile[63 + K - 1]."),
    ("x[first + t] : 0;\n", "x[t] : 0;\n", "Every block reads the first numbers of x: this block's "
     "begin at `first`."),
    ("if (t < K - 1) tile[64 + t]", "if (t < K) tile[63 + t]", "The second part of the tile begins "
     "at 64: tile[63] is thread 63's own number."),
]


def arrays():
    rng = np.random.default_rng(20)
    return rng.normal(size=150).astype(np.float32), rng.normal(size=5).astype(np.float32)


def launch(student):
    x, w = arrays()
    outputs = len(x) - len(w) + 1
    return cuda.Launch(student.SOURCE, "convolve", -(-outputs // 64), 64, [x, w], (outputs,),
                       [len(x), len(w)])


def probe(student):
    return [launch(student).run()]


def judge(student):
    x, w = arrays()
    launch(student).check(np.correlate(x.astype(float), w, "valid"))
