// Valid convolution, version 2: unfold the image into a matrix and multiply matrices.
//
// Let k = (c,u,v) number the C*KH*KW weights of a filter, p = (i,j) the OH*OW output pixels. With
//
//   cols[n][k][p] = x[n, c, i+u, j+v]                                  (im2col)
//
// the three formulas of version 1 are matrix products, one for each image n:
//
//   forward          y [n] = w cols[n]          (F x K) (K x P)
//   input gradient   dcols[n] = w^T dy[n]       (K x F) (F x P), then dx = col2im(dcols)
//   weight gradient  dw = sum_n dy[n] cols[n]^T (F x P) (P x K)
//
// col2im is the transpose of im2col: each pixel of x was copied to up to KH*KW places, so its
// gradient is the sum over those places. Read from the columns this is a scatter, in which threads
// collide and need atomics (and the order of a float sum, hence its last bits, changes from run to
// run); read from the pixels it is a gather, without collisions and in one fixed order. It is used.
//
// What is good: a matrix product is the best understood loop there is. What is slow: cols is KH*KW
// times larger than x (81 times in the first layer of SRCNN), and it travels to memory and back.

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

// limits: im2col registers<=64 shared<=0 spills=0
extern "C" __global__ void im2col(const real* __restrict__ x, real* __restrict__ cols,
                                  int N, int C, int H, int W, int KH, int KW) {
  const int OH = H - KH + 1, OW = W - KW + 1;
  const long long total = (long long)N * C * KH * KW * OH * OW;
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < total; at += step) {
    const int j = (int)(at % OW), i = (int)(at / OW % OH);
    const long long row = at / ((long long)OW * OH);  // (n, c, u, v)
    const int v = (int)(row % KW), u = (int)(row / KW % KH);
    const long long nc = row / (KW * KH);
    cols[at] = x[(nc * H + i + u) * W + j + v];
  }
}

// The lesson, not the path: every column element adds itself to its pixel. dx must be zero before.
// (atomicAdd on double needs sm_60 or newer.)
// limits: col2im_atomic registers<=64 shared<=0 spills=0
extern "C" __global__ void col2im_atomic(const real* __restrict__ cols, real* __restrict__ dx,
                                         int N, int C, int H, int W, int KH, int KW) {
  const int OH = H - KH + 1, OW = W - KW + 1;
  const long long total = (long long)N * C * KH * KW * OH * OW;
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < total; at += step) {
    const int j = (int)(at % OW), i = (int)(at / OW % OH);
    const long long row = at / ((long long)OW * OH);
    const int v = (int)(row % KW), u = (int)(row / KW % KH);
    const long long nc = row / (KW * KH);
    atomicAdd(dx + (nc * H + i + u) * W + j + v, cols[at]);
  }
}

// The path: every pixel asks the column elements that were copied from it.
// limits: col2im_gather registers<=64 shared<=0 spills=0
extern "C" __global__ void col2im_gather(const real* __restrict__ cols, real* __restrict__ dx,
                                         int N, int C, int H, int W, int KH, int KW) {
  const int OH = H - KH + 1, OW = W - KW + 1;
  const long long total = (long long)N * C * H * W;
  const long long step = (long long)gridDim.x * blockDim.x;
  for (long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x; at < total; at += step) {
    const int q = (int)(at % W), p = (int)(at / W % H);
    const long long nc = at / ((long long)W * H);
    // The output row i = p - u must lie in 0..OH-1, hence u in [p-OH+1, p] and in 0..KH-1.
    const int u0 = max(0, p - OH + 1), u1 = min(KH - 1, p);
    const int v0 = max(0, q - OW + 1), v1 = min(KW - 1, q);
    real sum = 0;
    for (int u = u0; u <= u1; ++u)
      for (int v = v0; v <= v1; ++v)
        sum += cols[(((nc * KH + u) * KW + v) * OH + p - u) * OW + q - v];
    dx[at] = sum;
  }
}

// C[z] = sum_{s < S} A[z,s] B[z,s] (+ bias[row] if add_bias), any strides: one kernel serves all
// three products, for a transpose is two strides swapped, the sum over images is s, a batch is z.
// A 16x16 block of threads brings a 16x16 tile of A and of B into shared memory, where each number
// is then read 16 times instead of being fetched 16 times from memory.
#define GEMM_TILE 16

// limits: gemm registers<=64 shared<=4096 spills=0
extern "C" __global__ void __launch_bounds__(GEMM_TILE * GEMM_TILE) gemm(
    const real* __restrict__ a, const real* __restrict__ b, const real* __restrict__ bias,
    real* __restrict__ c, int M, int N, int K, int S, int add_bias,
    long long a_row, long long a_col, long long a_batch, long long a_sum,
    long long b_row, long long b_col, long long b_batch, long long b_sum, long long c_batch) {
  __shared__ real as[GEMM_TILE][GEMM_TILE];
  __shared__ real bs[GEMM_TILE][GEMM_TILE];
  const int tx = threadIdx.x, ty = threadIdx.y;
  const int row = blockIdx.y * GEMM_TILE + ty, col = blockIdx.x * GEMM_TILE + tx;
  a += blockIdx.z * a_batch;
  b += blockIdx.z * b_batch;
  c += blockIdx.z * c_batch;
  real sum = 0;
  for (int s = 0; s < S; ++s) {
    for (int k0 = 0; k0 < K; k0 += GEMM_TILE) {
      const int ka = k0 + tx, kb = k0 + ty;
      as[ty][tx] = row < M && ka < K ? a[s * a_sum + row * a_row + ka * a_col] : 0;
      bs[ty][tx] = kb < K && col < N ? b[s * b_sum + kb * b_row + col * b_col] : 0;
      __syncthreads();  // the tiles are complete before anybody reads them
#pragma unroll
      for (int k = 0; k < GEMM_TILE; ++k) sum += as[ty][k] * bs[k][tx];
      __syncthreads();  // all threads have read them before they are overwritten
    }
  }
  if (row < M && col < N) c[(long long)row * N + col] = sum + (add_bias ? bias[row] : (real)0);
}
