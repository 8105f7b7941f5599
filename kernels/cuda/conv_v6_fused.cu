// Valid convolution, version 6: what follows the convolution happens while its result is still on
// the chip. Forward and input gradient; with the weight gradient of version 5 this is what the
// backend runs.
//
// What changes against version 4 (the sliding window is the same):
//
//   1. Fusion: bias and ReLU in the forward, the mask of the ReLU below in the input gradient. Each
//      saves a kernel that would read and write the whole array once more.
//   2. Results go through shared memory on their way out, so that neighbouring threads store
//      neighbouring pixels; weights are read four at a time; several input channels are brought in
//      between two barriers.
//   3. Borders: the forward repeats the nearest pixel beyond the image ('same'-sized convolution
//      with replicated borders is the same kernel with an offset; a valid one never reads there),
//      the input gradient takes dy as zero beyond it.
//
// The sum for an output runs over (c,u,v) in the same order wherever its tile lies: an image
// computed in strips is bit for bit the image computed whole. An image of all its channels holds at
// most 2^31 - 1 numbers (offsets within it are ints); there may be any number of images.
//
// What is still slow: each layer's activations go out to memory and come back in the next. They
// would have to stay in shared memory from layer to layer, as the CPU's fused training step has it.
//
// The sizes that the code is shaped by are macros, worked out in _cuda_plan.py:
//   CONV_C, CONV_F, CONV_KH, CONV_KW   the layer, w (F,C,KH,KW)
//   FWD_* and DX_*                     tiles of the forward and of the input gradient:
//     _OUTS       output channels of a thread           _PIXELS     neighbouring pixels of a thread
//     _BLOCK_OUTS output channels of a block            _COLUMNS    threads along a row
//     _ROWS       rows of a block                       _STAGE      input channels at a time
// The values below suit the first layer of SRCNN; the backend always gives its own.

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#ifndef CONV_C
#define CONV_C 1
#define CONV_F 64
#define CONV_KH 9
#define CONV_KW 9
#endif
#ifndef FWD_OUTS
#define FWD_OUTS 8
#define FWD_PIXELS 5
#define FWD_BLOCK_OUTS 64
#define FWD_COLUMNS 5
#define FWD_ROWS 5
#define FWD_STAGE 1
#endif
#ifndef DX_OUTS
#define DX_OUTS 1
#define DX_PIXELS 3
#define DX_BLOCK_OUTS 1
#define DX_COLUMNS 11
#define DX_ROWS 11
#define DX_STAGE 4
#endif

#define TAPS (CONV_KH * CONV_KW)

// Four numbers that travel together: one 16-byte load of floats, two of doubles.
struct __align__(4 * sizeof(real)) Real4 {
  real x, y, z, w;
};

// Read `COUNT` neighbouring numbers of shared memory; by four if they start at a multiple of four.
template <int COUNT, bool BY_FOUR>
__device__ __forceinline__ void read_run(const real* from, real (&to)[COUNT]) {
  if (BY_FOUR) {
#pragma unroll
    for (int i = 0; i + 3 < COUNT; i += 4) {
      const Real4 four = *reinterpret_cast<const Real4*>(from + i);
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[i] = from[i];
  }
}

// The tile of one block, for a convolution from IN to OUT channels. A block computes
// BLOCK_OUTS channels x ROWS rows x (COLUMNS * PIXELS) columns; a thread OUTS channels x PIXELS
// pixels of one row. Threads are numbered along the columns, then rows, then channel groups, so
// that the threads of a warp mostly share their weights (one read serves all of them) and
// read different pixels (PIXELS is odd, so that these lie in different banks).
template <int IN, int OUT, int OUTS, int PIXELS, int BLOCK_OUTS, int COLUMNS, int ROWS, int STAGE>
struct Tile {
  static constexpr int GROUPS = BLOCK_OUTS / OUTS;
  static constexpr int THREADS = GROUPS * COLUMNS * ROWS;
  static constexpr int XH = ROWS + CONV_KH - 1, XW = COLUMNS * PIXELS + CONV_KW - 1;
  // Rows of weights are longer than needed, so that writing them transposed spreads over the
  // banks; by four where they are read four at a time, else to an odd number.
  static constexpr int WS = OUTS % 4 == 0 ? BLOCK_OUTS + 4 : BLOCK_OUTS | 1;
  static constexpr int X_SIZE = (STAGE * XH * XW + 3) / 4 * 4, W_SIZE = STAGE * TAPS * WS;
  // On the way out the results take the place of patch and weights, as many channels of a thread
  // at once as fit.
  static constexpr int WIDTH = COLUMNS * PIXELS, SLICE = GROUPS * ROWS * WIDTH;
  static constexpr int SHARED = X_SIZE + W_SIZE > SLICE ? X_SIZE + W_SIZE : SLICE;
  static constexpr int PASS = OUTS % 8 == 0 && 8 * SLICE <= SHARED   ? 8
                              : OUTS % 4 == 0 && 4 * SLICE <= SHARED ? 4
                              : OUTS % 2 == 0 && 2 * SLICE <= SHARED ? 2
                                                                     : 1;
  static constexpr int LINES = ROWS / PIXELS;  // whole lines that the threads of a group store
  static_assert(BLOCK_OUTS % OUTS == 0, "a block holds whole threads");
  static_assert(ROWS % PIXELS == 0, "the threads of a group make up whole lines");

  // GRADIENT false: x is an input (IN,H,W), pixels beyond the border repeat the nearest one,
  //                 w is (OUT,IN,KH,KW).
  // GRADIENT true:  x is dy, zero beyond the border, and w is (IN,OUT,KH,KW), rotated by
  //                 180 degrees: with u' = KH-1-u the sum over dy[p-u] w[u] becomes one over
  //                 dy[p-(KH-1)+u'] w[KH-1-u'], a convolution like the forward, offset by KH-1.
  // (top, left): where in x the first tap of the block's first output lies.
  template <bool GRADIENT>
  static __device__ __forceinline__ void accumulate(
      const real* __restrict__ x, const real* __restrict__ w, int H, int W, int top, int left,
      int out0, real* shared, real (&sum)[OUTS][PIXELS]) {
    real* const xs = shared;
    real* const ws = shared + X_SIZE;
    const int t = threadIdx.x;
    const int column = t % COLUMNS, row = t / COLUMNS % ROWS, group = t / (COLUMNS * ROWS);
#pragma unroll
    for (int i = 0; i < OUTS; ++i)
#pragma unroll
      for (int j = 0; j < PIXELS; ++j) sum[i][j] = 0;

    for (int c0 = 0; c0 < IN; c0 += STAGE) {
      for (int e = t; e < X_SIZE; e += THREADS) {
        const int q = e % XW, p = e / XW % XH, c = c0 + e / (XW * XH);
        const int gx = left + q, gy = top + p;
        real value = 0;
        if (c < IN) {
          if (GRADIENT) {
            if (gy >= 0 && gy < H && gx >= 0 && gx < W)
              value = x[(c * H + gy) * W + gx];
          } else {
            value = x[(c * H + min(max(gy, 0), H - 1)) * W + min(max(gx, 0), W - 1)];
          }
        }
        xs[e] = value;
      }
      for (int e = t; e < STAGE * TAPS * BLOCK_OUTS; e += THREADS) {
        const int k = e % TAPS, c = c0 + e / TAPS % STAGE, slot = e / (TAPS * STAGE);
        const int out = out0 + slot;
        const int tap = GRADIENT ? TAPS - 1 - k : k;
        real value = 0;
        if (c < IN && out < OUT) value = w[(GRADIENT ? c * OUT + out : out * IN + c) * TAPS + tap];
        ws[((c - c0) * TAPS + k) * WS + slot] = value;
      }
      __syncthreads();  // patch and weights are complete
      const real* x_at = xs + row * XW + column * PIXELS;
      const real* w_at = ws + group * OUTS;
      for (int c = 0; c < STAGE; ++c) {
#pragma unroll 1
        for (int u = 0; u < CONV_KH; ++u) {
          real pixel[PIXELS + CONV_KW - 1];
          read_run<PIXELS + CONV_KW - 1, false>(x_at, pixel);
#pragma unroll
          for (int v = 0; v < CONV_KW; ++v) {
            real weight[OUTS];
            read_run<OUTS, OUTS % 4 == 0>(w_at + v * WS, weight);
#pragma unroll
            for (int i = 0; i < OUTS; ++i)
#pragma unroll
              for (int j = 0; j < PIXELS; ++j) sum[i][j] += weight[i] * pixel[j + v];
          }
          x_at += XW;  // the next row of the kernel ...
          w_at += CONV_KW * WS;
        }
        x_at += (XH - CONV_KH) * XW;  // ... and the next channel
      }
      __syncthreads();  // all threads are done with them before the next channels come
    }
  }

  // Call store(channel, row, column, value) for every result of the block. A thread holds
  // neighbouring pixels: stored from there, each store of a warp would touch many pieces of memory,
  // and each piece would be touched many times. So the results go through shared memory, and
  // neighbouring threads store neighbouring pixels.
  template <class Store>
  static __device__ __forceinline__ void store_all(const real (&sum)[OUTS][PIXELS], real* shared,
                                                   Store store) {
    const int t = threadIdx.x;
    const int column = t % COLUMNS, row = t / COLUMNS % ROWS, group = t / (COLUMNS * ROWS);
    const int at = t % (COLUMNS * ROWS) % WIDTH, first_line = t % (COLUMNS * ROWS) / WIDTH;
#pragma unroll
    for (int first = 0; first < OUTS; first += PASS) {
#pragma unroll
      for (int i = 0; i < PASS; ++i)
#pragma unroll
        for (int j = 0; j < PIXELS; ++j)
          shared[((group * PASS + i) * ROWS + row) * WIDTH + column * PIXELS + j] =
              sum[first + i][j];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < PASS; ++i)
#pragma unroll
        for (int k = 0; k < PIXELS; ++k) {
          const int line = first_line + k * LINES;
          store(group * OUTS + first + i, line, at,
                shared[((group * PASS + i) * ROWS + line) * WIDTH + at]);
        }
      __syncthreads();
    }
  }
};

typedef Tile<CONV_C, CONV_F, FWD_OUTS, FWD_PIXELS, FWD_BLOCK_OUTS, FWD_COLUMNS, FWD_ROWS, FWD_STAGE>
    Forward;
typedef Tile<CONV_F, CONV_C, DX_OUTS, DX_PIXELS, DX_BLOCK_OUTS, DX_COLUMNS, DX_ROWS, DX_STAGE>
    InputGradient;

// y = conv(x, w) + b, then ReLU if `relu`. x (N,C,H,W), y (N,F,OH,OW). The first tap of output
// (0,0) is pixel (top,left) of x: (0,0) for a valid convolution, minus the padding for a
// 'same'-sized one. grid: x = tiles of all images, y = blocks of filters.
// (The 1 in __launch_bounds__ asks for one block at a time on a multiprocessor, no more. Without
// it the compiler aims at several, and saves registers until a few of them spill.)
// limits: conv_forward_fused registers<=184 shared<=49152 spills=0
extern "C" __global__ void __launch_bounds__(Forward::THREADS, 1) conv_forward_fused(
    const real* __restrict__ x, const real* __restrict__ w, const real* __restrict__ b,
    real* __restrict__ y, int H, int W, int OH, int OW, int top, int left, int relu) {
  __shared__ __align__(32) real shared[Forward::SHARED];
  const int tiles_x = (OW + FWD_COLUMNS * FWD_PIXELS - 1) / (FWD_COLUMNS * FWD_PIXELS);
  const int tiles_y = (OH + FWD_ROWS - 1) / FWD_ROWS;
  const int tile_x = blockIdx.x % tiles_x, tile_y = blockIdx.x / tiles_x % tiles_y;
  const long long n = blockIdx.x / (tiles_x * tiles_y);
  const int i0 = tile_y * FWD_ROWS, j0 = tile_x * FWD_COLUMNS * FWD_PIXELS;
  const int f0 = blockIdx.y * FWD_BLOCK_OUTS;

  real sum[FWD_OUTS][FWD_PIXELS];
  Forward::accumulate<false>(x + n * CONV_C * H * W, w, H, W, i0 + top, j0 + left, f0, shared, sum);

  const int first = f0 + threadIdx.x / (FWD_COLUMNS * FWD_ROWS) * FWD_OUTS;
#pragma unroll
  for (int a = 0; a < FWD_OUTS; ++a) {
    const real bias = first + a < CONV_F ? b[first + a] : (real)0;
#pragma unroll
    for (int q = 0; q < FWD_PIXELS; ++q) {
      const real value = sum[a][q] + bias;
      // Not fmax: a NaN must come through, or a diverged training would look alive.
      sum[a][q] = relu && value <= 0 ? (real)0 : value;
    }
  }
  y += n * CONV_F * OH * OW;
  Forward::store_all(sum, shared, [=](int channel, int row, int column, real value) {
    const int f = f0 + channel, i = i0 + row, j = j0 + column;
    if (f < CONV_F && i < OH && j < OW) y[(f * OH + i) * OW + j] = value;
  });
}

// dx = the gradient of the convolution's input, times [a > 0] if `masked`: `a` is the output of the
// ReLU below, which is this convolution's input. dy (N,F,OH,OW), dx and a (N,C,H,W).
// limits: conv_backward_input_fused registers<=184 shared<=49152 spills=0
extern "C" __global__ void __launch_bounds__(InputGradient::THREADS, 1) conv_backward_input_fused(
    const real* __restrict__ dy, const real* __restrict__ w, const real* __restrict__ a,
    real* __restrict__ dx, int H, int W, int OH, int OW, int masked) {
  __shared__ __align__(32) real shared[InputGradient::SHARED];
  const int tiles_x = (W + DX_COLUMNS * DX_PIXELS - 1) / (DX_COLUMNS * DX_PIXELS);
  const int tiles_y = (H + DX_ROWS - 1) / DX_ROWS;
  const int tile_x = blockIdx.x % tiles_x, tile_y = blockIdx.x / tiles_x % tiles_y;
  const long long n = blockIdx.x / (tiles_x * tiles_y);
  const int p0 = tile_y * DX_ROWS, q0 = tile_x * DX_COLUMNS * DX_PIXELS;
  const int c0 = blockIdx.y * DX_BLOCK_OUTS;

  real sum[DX_OUTS][DX_PIXELS];
  InputGradient::accumulate<true>(dy + n * CONV_F * OH * OW, w, OH, OW, p0 - (CONV_KH - 1),
                                  q0 - (CONV_KW - 1), c0, shared, sum);
  dx += n * CONV_C * H * W;
  a += n * CONV_C * H * W;
  InputGradient::store_all(sum, shared, [=](int channel, int row, int column, real value) {
    const int c = c0 + channel, p = p0 + row, q = q0 + column;
    if (c >= CONV_C || p >= H || q >= W) return;
    const int at = (c * H + p) * W + q;
    dx[at] = !masked || a[at] > 0 ? value : (real)0;
  });
}
