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
//   3. Loads overlap: a number takes hundreds of cycles to come from memory, so a thread asks for
//      AT_ONCE of them before it waits for the first.
//   4. Where there are few output channels, several threads share a sum: each takes every
//      SPLIT-th input channel, and the first one adds up what they have.
//   5. Borders: the forward repeats the nearest pixel beyond the image ('same'-sized convolution
//      with replicated borders is the same kernel with an offset; a valid one never reads there),
//      the input gradient takes dy as zero beyond it.
//
// The sum for an output has one order, by the layer alone, wherever its tile lies: an image
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
//     _SPLIT      threads that share a sum
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
#define FWD_SPLIT 1
#endif
#ifndef DX_OUTS
#define DX_OUTS 1
#define DX_PIXELS 3
#define DX_BLOCK_OUTS 1
#define DX_COLUMNS 7
#define DX_ROWS 6
#define DX_STAGE 8
#define DX_SPLIT 4
#endif

#define TAPS (CONV_KH * CONV_KW)
#ifndef AT_ONCE
#define AT_ONCE 8  // numbers that a thread loads before it stores the first
#endif

// Call put(e, load(e)) for all e below COUNT, shared out to THREADS threads.
template <int COUNT, int THREADS, class Load, class Put>
__device__ __forceinline__ void bring(Load load, Put put) {
#pragma unroll 1
  for (int first = threadIdx.x; first < COUNT; first += THREADS * AT_ONCE) {
    real value[AT_ONCE];
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k) value[k] = load(min(first + k * THREADS, COUNT - 1));
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k)
      if (first + k * THREADS < COUNT) put(first + k * THREADS, value[k]);
  }
}

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
// read different pixels (PIXELS is odd, so that these lie in different banks). Last comes the
// share of the input channels.
template <int IN, int OUT, int OUTS, int PIXELS, int BLOCK_OUTS, int COLUMNS, int ROWS, int STAGE,
          int SPLIT>
struct Tile {
  static constexpr int GROUPS = BLOCK_OUTS / OUTS;
  static constexpr int OWNERS = GROUPS * COLUMNS * ROWS;  // threads of a share
  static constexpr int THREADS = OWNERS * SPLIT;
  static constexpr int XH = ROWS + CONV_KH - 1, XW = COLUMNS * PIXELS + CONV_KW - 1;
  // Rows of weights are longer than needed, so that writing them transposed spreads over the
  // banks; by four where they are read four at a time, else to an odd number.
  static constexpr int WS = OUTS % 4 == 0 ? BLOCK_OUTS + 4 : BLOCK_OUTS | 1;
  static constexpr int X_SIZE = (STAGE * XH * XW + 3) / 4 * 4, W_SIZE = STAGE * TAPS * WS;
  // On the way out the results take the place of patch and weights, as many channels of a thread
  // at once as fit.
  static constexpr int WIDTH = COLUMNS * PIXELS, SLICE = GROUPS * ROWS * WIDTH;
  static constexpr int SUMS = (SPLIT - 1) * OUTS * PIXELS * OWNERS;  // of all shares but the first
  static constexpr int RESULTS = SUMS > SLICE ? SUMS : SLICE;
  static constexpr int SHARED = X_SIZE + W_SIZE > RESULTS ? X_SIZE + W_SIZE : RESULTS;
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
    const int t = threadIdx.x % OWNERS, share = threadIdx.x / OWNERS;
    const int column = t % COLUMNS, row = t / COLUMNS % ROWS, group = t / (COLUMNS * ROWS);
#pragma unroll
    for (int i = 0; i < OUTS; ++i)
#pragma unroll
      for (int j = 0; j < PIXELS; ++j) sum[i][j] = 0;

    for (int c0 = 0; c0 < IN; c0 += STAGE) {
      bring<X_SIZE, THREADS>(
          [=](int e) {
            const int c = c0 + e / (XW * XH), gy = top + e / XW % XH, gx = left + e % XW;
            const int p = min(max(gy, 0), H - 1), q = min(max(gx, 0), W - 1);
            const real value = x[(min(c, IN - 1) * H + p) * W + q];
            return c < IN && (!GRADIENT || (gy == p && gx == q)) ? value : (real)0;
          },
          [=](int e, real value) { xs[e] = value; });
      bring<STAGE * TAPS * BLOCK_OUTS, THREADS>(
          [=](int e) {
            const int k = e % TAPS, tap = GRADIENT ? TAPS - 1 - k : k;
            const int c = c0 + e / TAPS % STAGE, out = out0 + e / (TAPS * STAGE);
            const int from = min(c, IN - 1), to = min(out, OUT - 1);
            const real value = w[(GRADIENT ? from * OUT + to : to * IN + from) * TAPS + tap];
            return c < IN && out < OUT ? value : (real)0;
          },
          [=](int e, real value) {
            const int row = e / TAPS % STAGE * TAPS + e % TAPS, slot = e / (TAPS * STAGE);
            ws[row * WS + slot] = value;
          });
      __syncthreads();  // patch and weights are complete
      for (int c = share; c < STAGE; c += SPLIT) {
        const real* x_at = xs + (c * XH + row) * XW + column * PIXELS;
        const real* w_at = ws + c * TAPS * WS + group * OUTS;
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
          x_at += XW;  // the next row of the kernel
          w_at += CONV_KW * WS;
        }
      }
      __syncthreads();  // all threads are done with them before the next channels come
    }
    if (SPLIT == 1) return;
    if (share > 0) {
#pragma unroll
      for (int i = 0; i < OUTS; ++i)
#pragma unroll
        for (int j = 0; j < PIXELS; ++j)
          shared[(((share - 1) * OUTS + i) * PIXELS + j) * OWNERS + t] = sum[i][j];
    }
    __syncthreads();
    if (share == 0) {
      for (int other = 0; other < SPLIT - 1; ++other)
#pragma unroll
        for (int i = 0; i < OUTS; ++i)
#pragma unroll
          for (int j = 0; j < PIXELS; ++j)
            sum[i][j] += shared[((other * OUTS + i) * PIXELS + j) * OWNERS + t];
    }
    __syncthreads();
  }

  // Call store(channel, row, column, value) for every result of the block, which the threads of the
  // first share hold. A thread holds
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
      if (SPLIT == 1 || t < OWNERS) {
#pragma unroll
        for (int i = 0; i < PASS; ++i)
#pragma unroll
          for (int j = 0; j < PIXELS; ++j)
            shared[((group * PASS + i) * ROWS + row) * WIDTH + column * PIXELS + j] =
                sum[first + i][j];
      }
      __syncthreads();
      if (SPLIT == 1 || t < OWNERS) {
#pragma unroll
        for (int i = 0; i < PASS; ++i)
#pragma unroll
          for (int k = 0; k < PIXELS; ++k) {
            const int line = first_line + k * LINES;
            store(group * OUTS + first + i, line, at,
                  shared[((group * PASS + i) * ROWS + line) * WIDTH + at]);
          }
      }
      __syncthreads();
    }
  }
};

typedef Tile<CONV_C, CONV_F, FWD_OUTS, FWD_PIXELS, FWD_BLOCK_OUTS, FWD_COLUMNS, FWD_ROWS, FWD_STAGE,
             FWD_SPLIT>
    Forward;
typedef Tile<CONV_F, CONV_C, DX_OUTS, DX_PIXELS, DX_BLOCK_OUTS, DX_COLUMNS, DX_ROWS, DX_STAGE,
             DX_SPLIT>
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

  const int first = f0 + threadIdx.x % Forward::OWNERS / (FWD_COLUMNS * FWD_ROWS) * FWD_OUTS;
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
