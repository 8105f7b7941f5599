// Adam on the cosine coefficients of the filters: the update of all parameters in one launch.
//
//   w <- w + D^T Adam(D dw D^T) D        D (K,K): the orthonormal discrete cosine transform
//
// A block takes a run of numbers that stand one after another: whole kernels of K x K taps, as many
// as fit. Biases and 1x1 layers are runs with K = 1, whose transform is [1]: plain Adam. The table
// `runs` has a row for each block:
//   {first, count, K, kind, transform}   first, count: which parameters
//                                        kind: whose learning rate, as in pointwise.cu
//                                        transform: where D starts in `transforms`
//
// A thread computes one number of a K x K matrix at a time, as a sum of K products. That is a few
// hundred thousand multiply-adds in all: what counts here is that it is one launch.

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#ifndef DCT_SIDE
#define DCT_SIDE 9  // the largest K
#endif

#define RUN_COLUMNS 5
#define RUN_THREADS 128
#define RUN_NUMBERS (DCT_SIDE * DCT_SIDE > RUN_THREADS ? DCT_SIDE * DCT_SIDE : RUN_THREADS)

// limits: dct_adam_update registers<=72 shared<=2064 spills=0
extern "C" __global__ void __launch_bounds__(RUN_THREADS) dct_adam_update(
    const real* __restrict__ grad, real* __restrict__ param, real* __restrict__ m,
    real* __restrict__ v, const real* __restrict__ lr, const long long* __restrict__ counters,
    const int* __restrict__ runs, const real* __restrict__ transforms, double beta1, double beta2,
    double eps) {
  __shared__ real half[RUN_NUMBERS], change[RUN_NUMBERS];
  __shared__ real correct[2];
  const int* const run = runs + RUN_COLUMNS * blockIdx.x;
  const int first = run[0], count = run[1], K = run[2];
  const real rate = lr[run[3]];
  const real* const D = transforms + run[4];
  if (threadIdx.x < 2)  // mse_finish has counted the step already: it starts at 1
    correct[threadIdx.x] = (real)(1 - pow(threadIdx.x ? beta2 : beta1, (double)counters[1]));

  // Number e of the run is row i, column j of the kernel that starts at `kernel`.
  for (int e = threadIdx.x; e < count; e += RUN_THREADS) {
    const int kernel = e - e % (K * K), i = e % (K * K) / K, j = e % K;
    real sum = 0;
    for (int k = 0; k < K; ++k) sum += D[i * K + k] * grad[first + kernel + k * K + j];
    half[e] = sum;  // D dw
  }
  __syncthreads();
  for (int e = threadIdx.x; e < count; e += RUN_THREADS) {
    const int j = e % K;
    real g = 0;
    for (int k = 0; k < K; ++k) g += half[e - j + k] * D[j * K + k];  // D dw D^T
    const real mean = (real)beta1 * m[first + e] + (real)(1 - beta1) * g;
    const real square = (real)beta2 * v[first + e] + (real)(1 - beta2) * g * g;
    m[first + e] = mean;
    v[first + e] = square;
    change[e] = -rate * (mean / correct[0]) / (sqrt(square / correct[1]) + (real)eps);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < count; e += RUN_THREADS) {
    const int kernel = e - e % (K * K), i = e % (K * K) / K, j = e % K;
    real sum = 0;
    for (int k = 0; k < K; ++k) sum += D[k * K + i] * change[kernel + k * K + j];
    half[e] = sum;  // D^T change
  }
  __syncthreads();
  for (int e = threadIdx.x; e < count; e += RUN_THREADS) {
    const int j = e % K;
    real sum = 0;
    for (int k = 0; k < K; ++k) sum += half[e - j + k] * D[k * K + j];
    param[first + e] += sum;
  }
}
