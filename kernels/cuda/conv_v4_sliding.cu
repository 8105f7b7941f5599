// Valid convolution, version 4: a pixel is fetched once, not KH*KW times. Forward and input
// gradient; version 5 does the weight gradient.
//
// In version 3 each pixel of x enters the tile once for each of the KH*KW columns that hold it. But
// neighbouring outputs share nearly all of their pixels:
//
//     a row of x      x0 x1 x2 x3 x4 x5 x6        OUTS filters, PIXELS = 5 outputs, KW = 3:
//     output j        [-- w --]                   7 pixels in registers feed 3 * 5 products for
//     output j+1         [-- w --]                each filter; the window of weights slides over
//     output j+2            [-- w --]             them, no pixel is read again
//
// So a block brings a patch of one channel of x and the weights of that channel into shared memory,
// and each thread slides along a row of the patch: per kernel row, PIXELS + KW - 1 numbers in
// registers feed OUTS * PIXELS * KW multiply-adds (8 x 5 x 9 = 360 for 13 pixels and 72 weights in
// the first layer of SRCNN; version 3: 16 for 8).
//
// The input gradient is the same code: with u' = KH-1-u the sum over dy[p-u] w[u] becomes one over
// dy[p-(KH-1)+u'] w[KH-1-u'], a convolution of dy with the kernel rotated by 180 degrees, offset by
// KH-1, dy being zero outside, and with the two channel indices swapped.
//
// What is still slow: the weight gradient (few results, a very long sum); and a thread stores its 5
// neighbouring pixels itself, so that the stores of a warp touch memory in many small pieces.

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

#define PIXELS 5   // neighbouring outputs of a thread; odd, so that threads read different banks
#define COLUMNS 8  // threads along a row of the block ...
#define ROWS 8     // ... and rows: the block gives OUTS channels x 8 rows x 40 columns
#define THREADS (COLUMNS * ROWS)
#define XH (ROWS + CONV_KH - 1)
#define XW (COLUMNS * PIXELS + CONV_KW - 1)
#define CHANNELS_OF_A_THREAD(n) ((n) < 8 ? (n) : 8)

// Add up OUTS x PIXELS outputs of this thread. The first tap of the block's first output lies at
// (top, left) of x (IN,H,W); `GRADIENT` says that x is dy and w has to be rotated.
template <bool GRADIENT, int IN, int OUT, int OUTS>
__device__ __forceinline__ void slide(const real* __restrict__ x, const real* __restrict__ w,
                                      int H, int W, int top, int left, int out0, real* patch,
                                      real* weights, real (&sum)[OUTS][PIXELS]) {
  const int t = threadIdx.x, column = t % COLUMNS, row = t / COLUMNS;
  for (int c = 0; c < IN; ++c) {
    for (int e = t; e < XH * XW; e += THREADS) {
      const int p = top + e / XW, q = left + e % XW;
      const bool inside = p >= 0 && p < H && q >= 0 && q < W;
      patch[e] = inside ? x[((long long)c * H + p) * W + q] : 0;
    }
    for (int e = t; e < TAPS * OUTS; e += THREADS) {
      const int k = e / OUTS, out = out0 + e % OUTS, tap = GRADIENT ? TAPS - 1 - k : k;
      weights[e] = out < OUT ? w[(GRADIENT ? c * OUT + out : out * IN + c) * TAPS + tap] : 0;
    }
    __syncthreads();  // patch and weights are complete
#pragma unroll 1
    for (int u = 0; u < CONV_KH; ++u) {
      real pixel[PIXELS + CONV_KW - 1];
#pragma unroll
      for (int q = 0; q < PIXELS + CONV_KW - 1; ++q)
        pixel[q] = patch[(row + u) * XW + column * PIXELS + q];
#pragma unroll
      for (int v = 0; v < CONV_KW; ++v)
#pragma unroll
        for (int i = 0; i < OUTS; ++i) {
          const real weight = weights[(u * CONV_KW + v) * OUTS + i];  // one read for the whole warp
#pragma unroll
          for (int j = 0; j < PIXELS; ++j) sum[i][j] += weight * pixel[j + v];
        }
    }
    __syncthreads();  // all threads are done with them before the next channel comes
  }
}

// grid: x = tiles of all images, y = groups of filters
// Double takes up to 190 registers on sm_100 and sm_120: five blocks a multiprocessor, not six.
// limits: conv_forward_sliding registers<=192 shared<=16384 spills=0
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_forward_sliding(
    const real* __restrict__ x, const real* __restrict__ w, const real* __restrict__ b,
    real* __restrict__ y, int H, int W) {
  const int OUTS = CHANNELS_OF_A_THREAD(CONV_F);
  __shared__ real patch[XH * XW];
  __shared__ real weights[TAPS * OUTS];
  const int OH = H - CONV_KH + 1, OW = W - CONV_KW + 1, f0 = blockIdx.y * OUTS;
  const int tiles_x = (OW + COLUMNS * PIXELS - 1) / (COLUMNS * PIXELS);
  const int tiles_y = (OH + ROWS - 1) / ROWS;
  const int i0 = blockIdx.x / tiles_x % tiles_y * ROWS;
  const int j0 = blockIdx.x % tiles_x * (COLUMNS * PIXELS);
  const long long n = blockIdx.x / (tiles_x * tiles_y);

  real sum[OUTS][PIXELS] = {};
  slide<false, CONV_C, CONV_F, OUTS>(x + n * CONV_C * H * W, w, H, W, i0, j0, f0, patch, weights,
                                     sum);
  const int i = i0 + threadIdx.x / COLUMNS, j1 = j0 + threadIdx.x % COLUMNS * PIXELS;
#pragma unroll
  for (int a = 0; a < OUTS; ++a)
#pragma unroll
    for (int q = 0; q < PIXELS; ++q)
      if (f0 + a < CONV_F && i < OH && j1 + q < OW)
        y[((n * CONV_F + f0 + a) * OH + i) * OW + j1 + q] = sum[a][q] + b[f0 + a];
}

// grid: x = tiles of all images, y = groups of channels
// limits: conv_backward_input_sliding registers<=168 shared<=16384 spills=0
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_backward_input_sliding(
    const real* __restrict__ dy, const real* __restrict__ w, real* __restrict__ dx, int H, int W) {
  const int OUTS = CHANNELS_OF_A_THREAD(CONV_C);
  __shared__ real patch[XH * XW];
  __shared__ real weights[TAPS * OUTS];
  const int OH = H - CONV_KH + 1, OW = W - CONV_KW + 1, c0 = blockIdx.y * OUTS;
  const int tiles_x = (W + COLUMNS * PIXELS - 1) / (COLUMNS * PIXELS);
  const int tiles_y = (H + ROWS - 1) / ROWS;
  const int p0 = blockIdx.x / tiles_x % tiles_y * ROWS;
  const int q0 = blockIdx.x % tiles_x * (COLUMNS * PIXELS);
  const long long n = blockIdx.x / (tiles_x * tiles_y);

  real sum[OUTS][PIXELS] = {};
  slide<true, CONV_F, CONV_C, OUTS>(dy + n * CONV_F * OH * OW, w, OH, OW, p0 - (CONV_KH - 1),
                                    q0 - (CONV_KW - 1), c0, patch, weights, sum);
  const int p = p0 + threadIdx.x / COLUMNS, q1 = q0 + threadIdx.x % COLUMNS * PIXELS;
#pragma unroll
  for (int a = 0; a < OUTS; ++a)
#pragma unroll
    for (int q = 0; q < PIXELS; ++q)
      if (c0 + a < CONV_C && p < H && q1 + q < W)
        dx[((n * CONV_C + c0 + a) * H + p) * W + q1 + q] = sum[a][q];
}
