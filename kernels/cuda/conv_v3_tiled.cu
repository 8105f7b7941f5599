// Valid convolution, version 3: the matrix product of version 2 without the matrix.
//
// "Implicit GEMM": the columns are never written; a block works out, while it fills its tile in
// shared memory, which pixel of x the element cols[k][p] would have been copied from. And each
// thread keeps a 4x4 tile of results in registers, so that 8 numbers read from shared memory feed
// 16 multiply-adds (version 2: 2 numbers feed 1).
//
//   block: 64 x 64 results, 16 deep, 256 threads of 4x4      A tile: rows of w, w^T or dy
//                                                            B tile: columns of x or dy
//
// The layer is known when the kernel is compiled (-D CONV_C, CONV_F, CONV_KH, CONV_KW), so the
// divisions that turn k into (c,u,v) are by constants, which the compiler makes multiplications.
//
// What is still slow: each pixel is fetched once for each of the KH*KW columns that hold it (from
// the L2 cache, but fetched); a layer with one filter leaves 63 of 64 rows of the tile empty; see
// version 4. And the weight gradient has few results with a very long sum (64 x 81 in the first
// layer: two blocks!); see version 5.

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#ifndef CONV_C
#define CONV_C 1    // channels of x
#define CONV_F 64   // filters = channels of y
#define CONV_KH 9   // height of the kernel
#define CONV_KW 9   // width of the kernel
#endif
#define TAPS (CONV_KH * CONV_KW)

#define TILE 64                 // results of a block: TILE x TILE
#define DEPTH 16                // how much of the sum a block brings in at once
#define SIDE 4                  // results of a thread: SIDE x SIDE
#define THREADS 256             // (TILE / SIDE)^2
#define LOADS (TILE * DEPTH / THREADS)

// One step of the product: 16 rank-one updates of the thread's 4x4 tile.
__device__ __forceinline__ void multiply(const real (*as)[TILE + 1], const real (*bs)[TILE + 1],
                                         int tx, int ty, real (&sum)[SIDE][SIDE]) {
#pragma unroll
  for (int k = 0; k < DEPTH; ++k) {
    real a[SIDE], b[SIDE];
#pragma unroll
    for (int i = 0; i < SIDE; ++i) {
      a[i] = as[k][ty + i * (TILE / SIDE)];
      b[i] = bs[k][tx + i * (TILE / SIDE)];
    }
#pragma unroll
    for (int i = 0; i < SIDE; ++i)
#pragma unroll
      for (int j = 0; j < SIDE; ++j) sum[i][j] += a[i] * b[j];
  }
}

// Rows f, columns (n,i,j), sum over (c,u,v).
// limits: conv_forward_tiled registers<=128 shared<=16640 spills=0
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_forward_tiled(
    const real* __restrict__ x, const real* __restrict__ w, const real* __restrict__ b,
    real* __restrict__ y, int N, int H, int W) {
  __shared__ real as[DEPTH][TILE + 1];  // + 1: neighbours in a column lie in different banks
  __shared__ real bs[DEPTH][TILE + 1];
  const int OH = H - CONV_KH + 1, OW = W - CONV_KW + 1;
  const long long pixels = (long long)N * OH * OW, p0 = blockIdx.x * (long long)TILE;
  const int f0 = blockIdx.y * TILE, t = threadIdx.x, tx = t % (TILE / SIDE), ty = t / (TILE / SIDE);
  const int K = CONV_C * TAPS;

  // A thread fills the same column of the B tile in every step, so it decodes its pixel once.
  const int my_col = t % TILE;
  const long long p = p0 + my_col;
  const bool inside = p < pixels;
  const int j = inside ? (int)(p % OW) : 0, i = inside ? (int)(p / OW % OH) : 0;
  const long long n = inside ? p / ((long long)OW * OH) : 0;
  const real* const corner = x + (n * CONV_C * H + i) * (long long)W + j;

  real sum[SIDE][SIDE] = {};
  for (int k0 = 0; k0 < K; k0 += DEPTH) {
#pragma unroll
    for (int e = 0; e < LOADS; ++e) {
      const int ka = k0 + t % DEPTH, fa = t / DEPTH + e * (THREADS / DEPTH);
      as[t % DEPTH][fa] = ka < K && f0 + fa < CONV_F ? w[(f0 + fa) * K + ka] : 0;
      const int kb = k0 + t / TILE + e * (THREADS / TILE);
      const int v = kb % CONV_KW, u = kb / CONV_KW % CONV_KH, c = kb / TAPS;
      bs[kb - k0][my_col] = inside && kb < K ? corner[((long long)c * H + u) * W + v] : 0;
    }
    __syncthreads();
    multiply(as, bs, tx, ty, sum);
    __syncthreads();
  }
#pragma unroll
  for (int a = 0; a < SIDE; ++a)
#pragma unroll
    for (int q = 0; q < SIDE; ++q) {
      const int f = f0 + ty + a * (TILE / SIDE);
      const long long out = p0 + tx + q * (TILE / SIDE);
      if (f >= CONV_F || out >= pixels) continue;
      const long long image = out / ((long long)OH * OW), within = out % ((long long)OH * OW);
      y[(image * CONV_F + f) * OH * OW + within] = sum[a][q] + b[f];
    }
}

// Rows c, columns (n,p,q) of x, sum over (f,u,v): a convolution of dy with the kernel rotated by
// 180 degrees and the two channel indices swapped, dy being taken as zero outside.
// limits: conv_backward_input_tiled registers<=128 shared<=16640 spills=0
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_backward_input_tiled(
    const real* __restrict__ dy, const real* __restrict__ w, real* __restrict__ dx,
    int N, int H, int W) {
  __shared__ real as[DEPTH][TILE + 1];
  __shared__ real bs[DEPTH][TILE + 1];
  const int OH = H - CONV_KH + 1, OW = W - CONV_KW + 1;
  const long long pixels = (long long)N * H * W, p0 = blockIdx.x * (long long)TILE;
  const int c0 = blockIdx.y * TILE, t = threadIdx.x, tx = t % (TILE / SIDE), ty = t / (TILE / SIDE);
  const int K = CONV_F * TAPS;

  const int my_col = t % TILE;
  const long long at = p0 + my_col;
  const bool inside = at < pixels;
  const int q = inside ? (int)(at % W) : 0, p = inside ? (int)(at / W % H) : 0;
  const long long n = inside ? at / ((long long)W * H) : 0;

  real sum[SIDE][SIDE] = {};
  for (int k0 = 0; k0 < K; k0 += DEPTH) {
#pragma unroll
    for (int e = 0; e < LOADS; ++e) {
      const int ka = k0 + t % DEPTH, ca = t / DEPTH + e * (THREADS / DEPTH);
      as[t % DEPTH][ca] = ka < K && c0 + ca < CONV_C
                              ? w[((ka / TAPS) * CONV_C + c0 + ca) * TAPS + ka % TAPS] : 0;
      const int kb = k0 + t / TILE + e * (THREADS / TILE);
      const int v = kb % CONV_KW, u = kb / CONV_KW % CONV_KH, f = kb / TAPS;
      const int i = p - u, j = q - v;
      const bool known = inside && kb < K && i >= 0 && i < OH && j >= 0 && j < OW;
      bs[kb - k0][my_col] = known ? dy[((n * CONV_F + f) * OH + i) * (long long)OW + j] : 0;
    }
    __syncthreads();
    multiply(as, bs, tx, ty, sum);
    __syncthreads();
  }
#pragma unroll
  for (int a = 0; a < SIDE; ++a)
#pragma unroll
    for (int s = 0; s < SIDE; ++s) {
      const int c = c0 + ty + a * (TILE / SIDE);
      const long long out = p0 + tx + s * (TILE / SIDE);
      if (c >= CONV_C || out >= pixels) continue;
      const long long image = out / ((long long)H * W), within = out % ((long long)H * W);
      dx[(image * CONV_C + c) * H * W + within] = sum[a][s];
    }
}

// Rows f, columns (c,u,v), sum over (n,i,j).
// limits: conv_backward_weight_tiled registers<=128 shared<=16640 spills=0
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_backward_weight_tiled(
    const real* __restrict__ x, const real* __restrict__ dy, real* __restrict__ dw,
    int N, int H, int W) {
  __shared__ real as[DEPTH][TILE + 1];
  __shared__ real bs[DEPTH][TILE + 1];
  const int OH = H - CONV_KH + 1, OW = W - CONV_KW + 1;
  const long long pixels = (long long)N * OH * OW;
  const int k0 = blockIdx.x * TILE, f0 = blockIdx.y * TILE;
  const int t = threadIdx.x, tx = t % (TILE / SIDE), ty = t / (TILE / SIDE);
  const int K = CONV_C * TAPS;

  real sum[SIDE][SIDE] = {};
  for (long long p0 = 0; p0 < pixels; p0 += DEPTH) {
    const long long p = p0 + t % DEPTH;  // the pixel that this thread fetches for both tiles
    const bool inside = p < pixels;
    const int j = inside ? (int)(p % OW) : 0, i = inside ? (int)(p / OW % OH) : 0;
    const long long n = inside ? p / ((long long)OW * OH) : 0;
#pragma unroll
    for (int e = 0; e < LOADS; ++e) {
      const int row = t / DEPTH + e * (THREADS / DEPTH), f = f0 + row, k = k0 + row;
      const int v = k % CONV_KW, u = k / CONV_KW % CONV_KH, c = k / TAPS;
      as[t % DEPTH][row] =
          inside && f < CONV_F ? dy[((n * CONV_F + f) * OH + i) * (long long)OW + j] : 0;
      bs[t % DEPTH][row] =
          inside && k < K ? x[((n * CONV_C + c) * H + i + u) * (long long)W + j + v] : 0;
    }
    __syncthreads();
    multiply(as, bs, tx, ty, sum);
    __syncthreads();
  }
#pragma unroll
  for (int a = 0; a < SIDE; ++a)
#pragma unroll
    for (int s = 0; s < SIDE; ++s) {
      const int f = f0 + ty + a * (TILE / SIDE), k = k0 + tx + s * (TILE / SIDE);
      if (f < CONV_F && k < K) dw[f * K + k] = sum[a][s];
    }
}
