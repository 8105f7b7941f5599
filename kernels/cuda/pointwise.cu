// Everything that is not a convolution: ReLU, loss, sums, and the two optimisers.
//
// Sums are taken in two stages with a fixed order (each thread its strided share, then a tree over
// the threads of a block, then a second kernel over the blocks): no atomics, the same bits always.

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#define SUM_THREADS 256  // threads of a block that sums; a power of two
#define SHARES 8         // in which the sums over a batch are made; then these are added in order

// Add one number of each thread of the block; the result is valid in thread 0.
__device__ __forceinline__ real block_sum(real value, real* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
#pragma unroll
  for (int half = SUM_THREADS / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

// y = max(0, x); a NaN stays a NaN.
// limits: relu_forward registers<=32 shared<=0 spills=0
extern "C" __global__ void relu_forward(const real* __restrict__ x, real* __restrict__ y,
                                        long long size) {
  const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (at < size) y[at] = x[at] <= 0 ? (real)0 : x[at];
}

// dx = dy where y > 0, else 0. (At y = 0 the derivative is taken as 0.)
// limits: relu_backward registers<=32 shared<=0 spills=0
extern "C" __global__ void relu_backward(const real* __restrict__ dy, const real* __restrict__ y,
                                         real* __restrict__ dx, long long size) {
  const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (at < size) dx[at] = y[at] > 0 ? dy[at] : (real)0;
}

// L = 1/M sum_k (y_k - t_k)^2 over all M elements, dy_k = 2/M (y_k - t_k).
// Stage 1: dy, and one partial sum of squares a block. y holds N images of `image` elements; block
// b adds up images b % chunks, b % chunks + chunks, ... together with the other blocks of that
// chunk. `elements` is M, which is more than y has where several devices share a batch.
// limits: mse_partial registers<=48 shared<=2048 spills=0
extern "C" __global__ void __launch_bounds__(SUM_THREADS) mse_partial(
    const real* __restrict__ y, const real* __restrict__ t, real* __restrict__ dy,
    real* __restrict__ partial, int N, int chunks, long long image, long long elements) {
  __shared__ real shared[SUM_THREADS];
  const real scale = (real)2 / (real)elements;
  const int chunk = blockIdx.x % chunks;
  const long long size = (N - chunk + chunks - 1) / chunks * image;
  const long long step = (long long)(gridDim.x / chunks) * SUM_THREADS;
  real sum = 0;
  for (long long e = blockIdx.x / chunks * (long long)SUM_THREADS + threadIdx.x; e < size;
       e += step) {
    const long long at = chunks == 1 ? e : (e / image * chunks + chunk) * image + e % image;
    const real difference = y[at] - t[at];
    dy[at] = scale * difference;
    sum += difference * difference;
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Stage 2, one block: the loss, from sums `stride` apart, added as reduce_partials adds gradients.
// For training on the device it also adds the loss to `total` (so that the host need not look at
// every step) and counts the step in counters[0] (the batches taken of a sequence) and counters[1]
// (all steps), if `counting`.
// limits: mse_finish registers<=48 shared<=64 spills=0
extern "C" __global__ void __launch_bounds__(SHARES) mse_finish(
    const real* __restrict__ partial, real* __restrict__ loss, double* __restrict__ total,
    long long* __restrict__ counters, int parts, long long stride, long long elements,
    int counting) {
  __shared__ real shared[SHARES];
  real sum = 0;
#pragma unroll 8
  for (int p = threadIdx.x; p < parts; p += SHARES) sum += partial[p * stride];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int s = 1; s < SHARES; ++s) sum += shared[s];
    loss[0] = sum / (real)elements;
    if (counting) {
      total[0] += (double)loss[0];
      counters[0] += 1;
      counters[1] += 1;
    }
  }
}

// db[f] = sum_{n,i,j} dy[n,f,i,j]; one block a filter.
// limits: bias_gradient registers<=64 shared<=2048 spills=0
extern "C" __global__ void __launch_bounds__(SUM_THREADS) bias_gradient(
    const real* __restrict__ dy, real* __restrict__ db, int N, int F, int pixels) {
  __shared__ real shared[SUM_THREADS];
  const int f = blockIdx.x;
  real sum = 0;
  for (long long n = 0; n < N; ++n)
    for (int p = threadIdx.x; p < pixels; p += SUM_THREADS) sum += dy[(n * F + f) * pixels + p];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) db[f] = sum;
}

// Equation (5) of the SRCNN paper, in place: velocity = momentum * velocity - lr * grad;
// param += velocity. Without `moving` there is no velocity (momentum 0): it is left alone.
// limits: sgd_update registers<=32 shared<=0 spills=0
extern "C" __global__ void sgd_update(real* __restrict__ param, const real* __restrict__ grad,
                                      real* __restrict__ velocity, real lr, real momentum,
                                      long long size, int moving) {
  const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (at >= size) return;
  real change = -lr * grad[at];
  if (moving) {
    change += momentum * velocity[at];
    velocity[at] = change;
  }
  param[at] += change;
}

// Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1, in place.
// correct1 = 1 - beta1^step and correct2 = 1 - beta2^step come from the host, in double: in
// float, 1 - 0.999 is right to four digits only.
// limits: adam_update registers<=40 shared<=0 spills=0
extern "C" __global__ void adam_update(real* __restrict__ param, const real* __restrict__ grad,
                                       real* __restrict__ m, real* __restrict__ v, real lr,
                                       real beta1, real beta2, real eps, real rest1, real rest2,
                                       real correct1, real correct2, long long size) {
  const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (at >= size) return;
  const real g = grad[at];
  const real mean = beta1 * m[at] + rest1 * g;
  const real square = beta2 * v[at] + rest2 * g * g;
  m[at] = mean;
  v[at] = square;
  param[at] -= lr * (mean / correct1) / (sqrt(square / correct2) + eps);
}

// ---- the end of a training step: partial gradients of all layers -> gradient -> new weights ----
//
// conv_backward_weight_split leaves, for a layer, `parts` rows of `count` partial gradients
// (weights, then biases), `stride` apart, from `partial + from` on. The parameters of all layers
// lie in one array, layer after layer, so that one launch finishes the step. The table `layers`
// holds L rows:
//   {end, count, parts, from, biases, stride}   end: index in the parameter array behind the layer
//
// A block serves 32 parameters with 8 threads each: thread (s, i) adds the partials s, s+8, ... of
// parameter i, its share, then the 8 shares are added in order. A share is the gradient of a chunk
// of the batch, images s, s+8, ...: several devices that compute some chunks each, and add all of
// them in order, get the same bits.
#define LAYER_COLUMNS 6
#define REDUCE_PARAMS 32
#define REDUCE_THREADS (REDUCE_PARAMS * SHARES)

// The sum of partials `share`, share + shares, ... of parameter `at`. `kind` tells whose learning
// rate it has: 2 l for the weights of layer l (counted from 0), 2 l + 1 for its biases.
__device__ __forceinline__ real sum_share(const real* __restrict__ partial,
                                          const long long* __restrict__ layers, int L, int at,
                                          int share, int shares, int* kind) {
  const long long* row = layers;
  *kind = 0;
  for (int l = 1; l < L && at >= row[0]; ++l, row += LAYER_COLUMNS) *kind += 2;
  const long long end = row[0], count = row[1], parts = row[2], stride = row[5];
  if (at >= end - row[4]) *kind += 1;
  const real* const from = partial + row[3] + (at - (end - count));
  real sum = 0;
#pragma unroll 8  // eight loads on their way at a time; added in the same order
  for (long long p = share; p < parts; p += shares) sum += from[p * stride];
  return sum;
}

// The gradient of parameter `at`, valid in the threads of share 0, and its `kind`.
__device__ __forceinline__ real reduce_partials(const real* __restrict__ partial,
                                                const long long* __restrict__ layers, int L,
                                                int at, int size, real* shared, int* kind) {
  const int share = threadIdx.x / REDUCE_PARAMS;
  *kind = 0;
  real sum = at < size ? sum_share(partial, layers, L, at, share, SHARES, kind) : 0;
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (share == 0) {
#pragma unroll
    for (int s = 1; s < SHARES; ++s) sum += shared[threadIdx.x + s * REDUCE_PARAMS];
  }
  return sum;
}

// The share of each of some chunks: rows (chunks, size).
// limits: reduce_chunks registers<=80 shared<=0 spills=0
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS) reduce_chunks(
    const real* __restrict__ partial, const long long* __restrict__ layers, int L,
    real* __restrict__ rows, int chunks, int size) {
  const int at = blockIdx.x * REDUCE_PARAMS + threadIdx.x % REDUCE_PARAMS;
  const int chunk = threadIdx.x / REDUCE_PARAMS;
  if (at >= size || chunk >= chunks) return;
  int kind;
  rows[chunk * (long long)size + at] = sum_share(partial, layers, L, at, chunk, chunks, &kind);
}

// limits: reduce_gradient registers<=80 shared<=2048 spills=0
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS) reduce_gradient(
    const real* __restrict__ partial, const long long* __restrict__ layers, int L,
    real* __restrict__ grad, int size) {
  __shared__ real shared[REDUCE_THREADS];
  const int at = blockIdx.x * REDUCE_PARAMS + threadIdx.x % REDUCE_PARAMS;
  int kind;
  const real g = reduce_partials(partial, layers, L, at, size, shared, &kind);
  if (threadIdx.x < REDUCE_PARAMS && at < size) grad[at] = g;
}

// The learning rates lie on the device, two a layer, so that a recorded step can use new ones.
// limits: reduce_sgd registers<=80 shared<=2048 spills=0
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS) reduce_sgd(
    const real* __restrict__ partial, const long long* __restrict__ layers, int L,
    real* __restrict__ param, real* __restrict__ velocity, const real* __restrict__ lr,
    real momentum, int size) {
  __shared__ real shared[REDUCE_THREADS];
  const int at = blockIdx.x * REDUCE_PARAMS + threadIdx.x % REDUCE_PARAMS;
  int kind;
  const real g = reduce_partials(partial, layers, L, at, size, shared, &kind);
  if (threadIdx.x < REDUCE_PARAMS && at < size) {
    const real change = momentum * velocity[at] - lr[kind] * g;
    velocity[at] = change;
    param[at] += change;
  }
}

// Adam with the step read from the device (mse_finish has counted it already: it starts at 1).
// limits: reduce_adam registers<=80 shared<=2080 spills=0
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS) reduce_adam(
    const real* __restrict__ partial, const long long* __restrict__ layers, int L,
    real* __restrict__ param, real* __restrict__ m, real* __restrict__ v,
    const real* __restrict__ lr, const long long* __restrict__ counters, double beta1,
    double beta2, double eps, int size) {
  __shared__ real shared[REDUCE_THREADS];
  __shared__ real correct[2];
  const int at = blockIdx.x * REDUCE_PARAMS + threadIdx.x % REDUCE_PARAMS;
  if (threadIdx.x < 2)
    correct[threadIdx.x] = (real)(1 - pow(threadIdx.x ? beta2 : beta1, (double)counters[1]));
  int kind;
  const real g = reduce_partials(partial, layers, L, at, size, shared, &kind);
  if (threadIdx.x < REDUCE_PARAMS && at < size) {
    const real mean = (real)beta1 * m[at] + (real)(1 - beta1) * g;
    const real square = (real)beta2 * v[at] + (real)(1 - beta2) * g * g;
    m[at] = mean;
    v[at] = square;
    param[at] -= lr[kind] * (mean / correct[0]) / (sqrt(square / correct[1]) + (real)eps);
  }
}
