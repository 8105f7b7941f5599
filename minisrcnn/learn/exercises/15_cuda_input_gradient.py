"""A CUDA kernel: one thread for each pixel of dx.

On a GPU thousands of threads run the same function; each works out from its numbers which result is
its own. A gather suits them (no two threads write to the same place):

    dx[n,c,p,q] = sum over f,u,v of dy[n, f, p-u, q-v] w[f, c, u, v],   0 <= p-u < OH, 0 <= q-v < OW

Arrays are flat: dy[n,f,i,j] is dy[((n*F + f)*OH + i)*OW + j], and w[f,c,u,v] is
w[((f*C + c)*KH + u)*KW + v]. There may be more threads than pixels: those must do nothing. No GPU is
needed: the kernel is executed on the CPU, in several orders of its threads, and watched for reads
outside of its arrays.
"""

SOURCE = r"""
extern "C" __global__ void input_gradient(
    const float* dy, const float* w, float* dx,
    int N, int C, int H, int W, int F, int KH, int KW) {
  const int OH = H - KH + 1, OW = W - KW + 1;
  const int me = blockIdx.x * blockDim.x + threadIdx.x;
  if (me >= N * C * H * W) return;
  const int q = me % W, p = me / W % H, c = me / (W * H) % C, n = me / (W * H * C);
  float sum = 0;
  // gap: the sum over f, u and v, without the outputs that do not exist
  for (int f = 0; f < F; ++f)
    for (int u = 0; u < KH; ++u)
      for (int v = 0; v < KW; ++v) {
        const int i = p - u, j = q - v;
        if (i >= 0 && i < OH && j >= 0 && j < OW)
          sum += dy[((n * F + f) * OH + i) * OW + j] * w[((f * C + c) * KH + u) * KW + v];
      }
  // end of gap
  dx[me] = sum;
}
"""


# ---- grading -----------------------------------------------------------------------------------
import numpy as np

from minisrcnn.engine.backends import reference
from minisrcnn.learn import cuda

MISTAKES = [
    ("i = p - u, j = q - v", "i = p + u - KH + 1, j = q + v - KW + 1", "The kernel is flipped: pixel "
     "(p, q) went through tap (u, v) into output (p - u, q - v)."),
    ("(f * C + c) * KH", "(c * F + f) * KH", "The filter and channel of w are exchanged: w is "
     "(F, C, KH, KW)."),
    ("for (int f = 0; f < F; ++f)", "for (int f = 0; f < 1; ++f)", "Only the first filter "
     "contributes: sum over all of them."),
    ("sum += dy", "sum = dy", "Each product replaces the sum."),
    ("i >= 0 && i < OH && j >= 0 && j < OW", "j >= 0 && j < OW", "Rows that do not exist: "
     "i = p - u must lie in 0 .. OH - 1, else the thread reads outside of dy."),
]


def arrays():
    rng = np.random.default_rng(19)
    dy = rng.normal(size=(2, 3, 4, 3)).astype(np.float32)
    w = rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    return dy, w


def launch(student):
    dy, w = arrays()
    (N, F, OH, OW), (_, C, KH, KW) = dy.shape, w.shape
    shape = (N, C, OH + KH - 1, OW + KW - 1)
    blocks = -(-int(np.prod(shape)) // 64)
    return cuda.Launch(student.SOURCE, "input_gradient", blocks, 64, [dy, w], shape,
                       [N, C, *shape[2:], F, KH, KW])


def probe(student):
    return [launch(student).run()]


def judge(student):
    want = reference.conv2d_backward_input(*(a.astype(float) for a in arrays()))
    launch(student).check(want)
