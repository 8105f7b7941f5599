// Muon (Jordan et al. 2024): the update of an inner layer, its weights a matrix (F,n), n = C KH KW.
//
//   m <- mu m + (1 - mu) dw
//   X  = mu m + (1 - mu) dw
//   w <- w - size lr P X     P: the polynomial of X X^T that takes all singular values to about 1
//
//     muon_gram           m, X, and for every 64 columns of X their share of X X^T  n / 64 blocks
//     muon_orthogonalise  add up the shares; five steps of the iteration; P            one block
//     muon_update         the product P X, and w                                 F n / 128 blocks
//
// The iteration runs among matrices of F x F alone, which one block does in the time of a launch or
// two; so X, which may have 1600 columns, is read twice in all. Every sum has a fixed order.
//
// Matrices of F x F are stored with rows of S numbers, S being F rounded up to a multiple of 4, and
// zeros in between.

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#define GRAM_COLUMNS 64  // of X, for a block of muon_gram
#define GRAM_TILE 32     // rows and columns of X X^T that it works on at a time
#define GRAM_THREADS 256
#define GRAM_ROWS (GRAM_THREADS / GRAM_TILE)  // rows of threads in a tile
#define ORTHO_THREADS 512
#define PACK (16 / (int)sizeof(real))  // numbers that are read at once

// limits: muon_gram registers<=128 shared<=33280 spills=0
extern "C" __global__ void __launch_bounds__(GRAM_THREADS) muon_gram(
    real* __restrict__ m, real* __restrict__ grad, real* __restrict__ grams, int F, int n, int S,
    real mu, real rest) {
  __shared__ real rows[GRAM_TILE][GRAM_COLUMNS + 1], others[GRAM_TILE][GRAM_COLUMNS + 1];
  const int t = threadIdx.x, first = blockIdx.x * GRAM_COLUMNS;
  // m and X; X takes the place of the gradient. A thread reads later on what it writes here, and no
  // other does: a tile is a whole number of rounds of the threads.
  for (int e = t; e < F * GRAM_COLUMNS; e += GRAM_THREADS) {
    const int f = e / GRAM_COLUMNS, k = first + e % GRAM_COLUMNS;
    if (k >= n) continue;
    const real g = grad[f * n + k], mean = mu * m[f * n + k] + rest * g;
    m[f * n + k] = mean;
    grad[f * n + k] = mu * mean + rest * g;
  }
  real* const gram = grams + (long long)blockIdx.x * S * S;
  const int j = t % GRAM_TILE, i = t / GRAM_TILE;
  for (int i0 = 0; i0 < F; i0 += GRAM_TILE)
    for (int j0 = 0; j0 < F; j0 += GRAM_TILE) {
      for (int e = t; e < GRAM_TILE * GRAM_COLUMNS; e += GRAM_THREADS) {
        const int f = e / GRAM_COLUMNS, c = e % GRAM_COLUMNS, k = first + c;
        rows[f][c] = i0 + f < F && k < n ? grad[(i0 + f) * n + k] : 0;
        others[f][c] = j0 + f < F && k < n ? grad[(j0 + f) * n + k] : 0;
      }
      __syncthreads();
      real sum[GRAM_TILE / GRAM_ROWS] = {};
      for (int c = 0; c < GRAM_COLUMNS; ++c)
#pragma unroll
        for (int r = 0; r < GRAM_TILE / GRAM_ROWS; ++r)
          sum[r] += rows[i + r * GRAM_ROWS][c] * others[j][c];
#pragma unroll
      for (int r = 0; r < GRAM_TILE / GRAM_ROWS; ++r)
        if (i0 + i + r * GRAM_ROWS < S && j0 + j < S)
          gram[(i0 + i + r * GRAM_ROWS) * S + j0 + j] = sum[r];
      __syncthreads();
    }
}

struct __align__(16) Pack {
  real at[PACK];
};

// out = x a^T b + y b + z I, by all threads of the block; a thread computes PACK numbers of a
// column, whose numbers of `a` stand side by side. The matrices lie in global memory, whose nearest
// cache holds them: so F has no limit but patience.
__device__ __forceinline__ void multiply(const real* a, const real* b, real* out, int S, real x,
                                         real y, real z) {
  for (int q = threadIdx.x; q < S * S / PACK; q += ORTHO_THREADS) {
    const int i = q / S * PACK, j = q % S;
    real sum[PACK] = {};
#pragma unroll 4
    for (int k = 0; k < S; ++k) {
      const Pack column = *reinterpret_cast<const Pack*>(a + k * S + i);
      const real other = b[k * S + j];
#pragma unroll
      for (int r = 0; r < PACK; ++r) sum[r] += column.at[r] * other;
    }
#pragma unroll
    for (int r = 0; r < PACK; ++r)
      out[(i + r) * S + j] = x * sum[r] + y * b[(i + r) * S + j] + (i + r == j ? z : (real)0);
  }
}

// Newton-Schulz, multiplied out: with G = X X^T / trace, whose eigenvalues are at most 1, repeat
//
//   T <- a I + b G + c G^2        P <- T P        G <- T G T        (five times)
//
// T and G are symmetric, so that a^T b above is a b. `work` holds five matrices; P / sqrt(trace) is
// left in the first.
// limits: muon_orthogonalise registers<=128 shared<=0 spills=0
extern "C" __global__ void __launch_bounds__(ORTHO_THREADS, 1) muon_orthogonalise(
    const real* __restrict__ grams, real* __restrict__ work, int parts, int S, real a, real b,
    real c) {
  const int size = S * S;
  real *const gram = work, *const step = work + size, *const half = step + size;
  real *product = half + size, *next = product + size;
  for (int e = threadIdx.x; e < size; e += ORTHO_THREADS) {
    real sum = 0;
#pragma unroll 8
    for (int p = 0; p < parts; ++p) sum += grams[(long long)p * size + e];
    gram[e] = sum;
    product[e] = e / S == e % S;
  }
  __syncthreads();
  real trace = (real)1e-30;
  for (int i = 0; i < S; ++i) trace += gram[i * S + i];
  __syncthreads();  // all have read it
  for (int e = threadIdx.x; e < size; e += ORTHO_THREADS) gram[e] /= trace;
  __syncthreads();
  for (int round = 0; round < 5; ++round) {
    multiply(gram, gram, step, S, c, b, a);
    __syncthreads();
    multiply(step, product, next, S, 1, 0, 0);
    multiply(gram, step, half, S, 1, 0, 0);
    __syncthreads();
    multiply(half, step, gram, S, 1, 0, 0);
    __syncthreads();
    real* const before = product;
    product = next;
    next = before;
  }
  for (int e = threadIdx.x; e < size; e += ORTHO_THREADS) gram[e] = product[e] / sqrt(trace);
}

// limits: muon_update registers<=40 shared<=0 spills=0
extern "C" __global__ void muon_update(real* __restrict__ param, const real* __restrict__ grad,
                                       const real* __restrict__ product,
                                       const real* __restrict__ lr, int kind, real size, int F,
                                       int n, int S) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= F * n) return;
  const int f = at / n, k = at % n;
  real sum = 0;
#pragma unroll 4
  for (int g = 0; g < F; ++g) sum += product[f * S + g] * grad[g * n + k];
  param[at] -= size * lr[kind] * sum;
}
