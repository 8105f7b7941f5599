// Valid convolution, version 5: the weight gradient with its long sum cut into parts.
//
// dw[f,c,u,v] = sum over n,i,j of dy[n,f,i,j] x[n,c,i+u,j+v]: in the first layer of SRCNN 64 x 81
// results, each a sum of 128 * 25 * 25 = 80,000 products. Version 3 gives a block 64 x 64 results
// and the whole sum: two blocks for a device that runs hundreds.
//
//     block (part, tile)       jobs: segments of 32 output pixels of one row of one image
//     part 0    0        3        6        9    ...     |
//     part 1      1        4        7       10  ...     |  each part adds up its own jobs,
//     part 2         2        5        8        ...     v  in a fixed order
//                  partial[0] + partial[1] + partial[2]    in a fixed order, by pointwise.cu
//
// Jobs go from image to image before they go to the next segment: with as many parts as images,
// or a fraction or a multiple of them, a part is of the same images throughout. So several devices
// can each work on some images of a batch, and leave the parts that one device would.
//
// Any number of blocks can share a sum in that way, without atomics: hence the same bits in every
// run. And the last addition updates the weights in the same pass (reduce_sgd, reduce_adam).
//
// Within a block each thread slides along a row of x as in version 4: it owns DW_FILTERS filters
// and DW_ROWS kernel rows (c,u), all KW taps of them. It takes four pixels at a time: KW + 3
// numbers of a row of x and 4 * DW_FILTERS of dy, read by four, feed 4 * DW_FILTERS * KW
// multiply-adds (8 x 9 x 4 = 288 for 12 + 32 numbers in the first layer).
//
// What is still slow: x and dy were written to memory by earlier kernels and come back from it.
//
// The sizes that the code is shaped by are macros, worked out in _cuda_plan.py:
//   CONV_C, CONV_F, CONV_KH, CONV_KW   the layer, w (F,C,KH,KW)
//   DW_FILTERS        filters of a thread             DW_ROWS        its kernel rows (c,u)
//   DW_BLOCK_FILTERS, DW_BLOCK_ROWS    the same of a block
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
#ifndef DW_FILTERS
#define DW_FILTERS 8
#define DW_ROWS 1
#define DW_BLOCK_FILTERS 64
#define DW_BLOCK_ROWS 9
#endif

#define TAPS (CONV_KH * CONV_KW)
#define SEGMENT 32  // output pixels of a row that a block brings in at once
#define ROW_GROUPS (DW_BLOCK_ROWS / DW_ROWS)
#define FILTER_GROUPS (DW_BLOCK_FILTERS / DW_FILTERS)
#define DW_THREADS (ROW_GROUPS * FILTER_GROUPS)
#define DW_BIASES ((DW_BLOCK_FILTERS + DW_THREADS - 1) / DW_THREADS)  // bias sums of a thread
// Length of a row of x: an odd multiple of four, so that reads by four of eight neighbouring rows
// go to different banks.
#define DW_XW ((SEGMENT + CONV_KW - 1 + 3) / 8 * 8 + 4)
#define DW_DS (DW_FILTERS % 4 == 0 ? DW_BLOCK_FILTERS + 4 : DW_BLOCK_FILTERS | 1)

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

// Add what PIXELS neighbouring outputs contribute; `x` and `d` point at the first of them.
template <int PIXELS>
__device__ __forceinline__ void add_pixels(const real* x, const real* d,
                                           real (&sum)[DW_FILTERS][DW_ROWS][CONV_KW]) {
  const int WINDOW = PIXELS + CONV_KW - 1, READ = PIXELS == 4 ? (WINDOW + 3) / 4 * 4 : WINDOW;
  real delta[PIXELS][DW_FILTERS];
#pragma unroll
  for (int p = 0; p < PIXELS; ++p)
    read_run<DW_FILTERS, DW_FILTERS % 4 == 0>(d + p * DW_DS, delta[p]);
#pragma unroll
  for (int r = 0; r < DW_ROWS; ++r) {
    real pixel[READ];
    read_run<READ, PIXELS == 4>(x + r * ROW_GROUPS * DW_XW, pixel);
#pragma unroll
    for (int p = 0; p < PIXELS; ++p)
#pragma unroll
      for (int f = 0; f < DW_FILTERS; ++f)
#pragma unroll
        for (int v = 0; v < CONV_KW; ++v) sum[f][r][v] += delta[p][f] * pixel[p + v];
  }
}

// Partial gradients of weights and biases: block (part, tile) adds up the jobs part, part + parts,
// ... and writes what follows. There are jobs for `slots` images, N or some more, so that they fit
// the parts; those beyond N are empty.
//
//   partial[part][f*C*KH*KW + ...]  = sum over its jobs of dy[n,f,i,j] x[n,c,i+u,j+v]
//   partial[part][F*C*KH*KW + f]    = sum over its jobs of dy[n,f,i,j]
//
// limits: conv_backward_weight_split registers<=248 shared<=49152 spills=0
extern "C" __global__ void __launch_bounds__(DW_THREADS, 1) conv_backward_weight_split(
    const real* __restrict__ x, const real* __restrict__ dy, real* __restrict__ partial,
    int N, int slots, int H, int W) {
  __shared__ __align__(32) real xs[DW_BLOCK_ROWS * DW_XW];
  __shared__ __align__(32) real ds[SEGMENT * DW_DS];
  const int OH = H - CONV_KH + 1, OW = W - CONV_KW + 1;
  const int row_tiles = (CONV_C * CONV_KH + DW_BLOCK_ROWS - 1) / DW_BLOCK_ROWS;
  const int first_row = blockIdx.y % row_tiles * DW_BLOCK_ROWS;
  const int f0 = blockIdx.y / row_tiles * DW_BLOCK_FILTERS;
  const int t = threadIdx.x, row_group = t % ROW_GROUPS, filter_group = t / ROW_GROUPS;

  real sum[DW_FILTERS][DW_ROWS][CONV_KW];
#pragma unroll
  for (int f = 0; f < DW_FILTERS; ++f)
#pragma unroll
    for (int r = 0; r < DW_ROWS; ++r)
#pragma unroll
      for (int v = 0; v < CONV_KW; ++v) sum[f][r][v] = 0;
  real bias[DW_BIASES] = {};

  const int segments = (OW + SEGMENT - 1) / SEGMENT;
  const long long jobs = (long long)slots * OH * segments;
  for (long long job = blockIdx.x; job < jobs; job += gridDim.x) {
    const long long n = job % slots;
    if (n >= N) continue;
    const int segment = (int)(job / slots);
    const int j0 = segment % segments * SEGMENT, i = segment / segments;
    const real* const image = x + n * CONV_C * H * W;
    const real* const deltas = dy + n * CONV_F * OH * OW;
    const int width = min(SEGMENT, OW - j0);
    for (int e = t; e < DW_BLOCK_ROWS * DW_XW; e += DW_THREADS) {
      const int q = e % DW_XW, r = first_row + e / DW_XW, c = r / CONV_KH, u = r % CONV_KH;
      const bool inside = r < CONV_C * CONV_KH && j0 + q < W;
      xs[e] = inside ? image[(c * H + i + u) * W + j0 + q] : 0;
    }
    for (int e = t; e < DW_BLOCK_FILTERS * SEGMENT; e += DW_THREADS) {
      const int q = e % SEGMENT, f = f0 + e / SEGMENT;
      const bool inside = f < CONV_F && q < width;
      ds[q * DW_DS + e / SEGMENT] = inside ? deltas[(f * OH + i) * OW + j0 + q] : 0;
    }
    __syncthreads();
    const real* const x_at = xs + row_group * DW_XW;
    const real* const d_at = ds + filter_group * DW_FILTERS;
    int q = 0;
    for (; q + 4 <= width; q += 4) add_pixels<4>(x_at + q, d_at + q * DW_DS, sum);
    for (; q < width; ++q) add_pixels<1>(x_at + q, d_at + q * DW_DS, sum);
    if (first_row == 0) {  // the blocks that hold the first rows also add up the biases
#pragma unroll
      for (int e = 0; e < DW_BIASES; ++e) {
        const int f = t + e * DW_THREADS;
        if (f < DW_BLOCK_FILTERS)
          for (int p = 0; p < width; ++p) bias[e] += ds[p * DW_DS + f];
      }
    }
    __syncthreads();
  }

  const int weights = CONV_F * CONV_C * TAPS;
  real* const to = partial + blockIdx.x * (long long)(weights + CONV_F);
#pragma unroll
  for (int a = 0; a < DW_FILTERS; ++a) {
    const int f = f0 + filter_group * DW_FILTERS + a;
    if (f >= CONV_F) continue;
#pragma unroll
    for (int r = 0; r < DW_ROWS; ++r) {
      const int row = first_row + row_group + r * ROW_GROUPS;
      if (row >= CONV_C * CONV_KH) continue;
#pragma unroll
      for (int v = 0; v < CONV_KW; ++v)
        to[(f * CONV_C * CONV_KH + row) * CONV_KW + v] = sum[a][r][v];
    }
  }
  if (first_row != 0) return;
#pragma unroll
  for (int e = 0; e < DW_BIASES; ++e) {
    const int slot = t + e * DW_THREADS;
    if (slot < DW_BLOCK_FILTERS && f0 + slot < CONV_F) to[weights + f0 + slot] = bias[e];
  }
}
