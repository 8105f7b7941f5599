// Valid convolution, version 1: one thread computes one element, straight from the formula.
//
// "Convolution" is cross-correlation, stride 1, no padding. With x (N,C,H,W), w (F,C,KH,KW),
// OH = H-KH+1 and OW = W-KW+1:
//
//   forward          y[n,f,i,j] = b[f] + sum_{c,u,v} x[n,c,i+u,j+v] * w[f,c,u,v]
//   input gradient   dx[n,c,p,q] = sum_{f,u,v} dy[n,f,p-u,q-v] * w[f,c,u,v]   (where dy exists)
//   weight gradient  dw[f,c,u,v] = sum_{n,i,j} dy[n,f,i,j] * x[n,c,i+u,j+v]
//
// The gradients follow from the forward by reading off what multiplies what: x[n,c,p,q] meets
// w[f,c,u,v] in exactly the output (i,j) = (p-u, q-v), so dx collects dy there; w[f,c,u,v] meets
// x[n,c,i+u,j+v] in the output (i,j), for every n, i and j, so dw sums over all of them.
//
// What is slow here: every multiply-add fetches two numbers from memory. What is good: there is
// nothing else to understand, so the other versions are measured against this one.

#ifndef REAL
#define REAL float  // or double, for gradient checks
#endif
typedef REAL real;

// limits: conv_forward_naive registers<=64 shared<=0 spills=0
extern "C" __global__ void conv_forward_naive(
    const real* __restrict__ x, const real* __restrict__ w, const real* __restrict__ b,
    real* __restrict__ y, int N, int C, int H, int W, int F, int KH, int KW) {
  const int OH = H - KH + 1, OW = W - KW + 1;
  const long long total = (long long)N * F * OH * OW;
  const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (at >= total) return;
  const int j = (int)(at % OW), i = (int)(at / OW % OH), f = (int)(at / ((long long)OW * OH) % F);
  const long long n = at / ((long long)OW * OH * F);
  real sum = 0;
  for (int c = 0; c < C; ++c)
    for (int u = 0; u < KH; ++u)
      for (int v = 0; v < KW; ++v)
        sum += x[((n * C + c) * H + i + u) * W + j + v] * w[((f * C + c) * KH + u) * KW + v];
  y[at] = sum + b[f];
}

// limits: conv_backward_input_naive registers<=64 shared<=0 spills=0
extern "C" __global__ void conv_backward_input_naive(
    const real* __restrict__ dy, const real* __restrict__ w, real* __restrict__ dx,
    int N, int C, int H, int W, int F, int KH, int KW) {
  const int OH = H - KH + 1, OW = W - KW + 1;
  const long long total = (long long)N * C * H * W;
  const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (at >= total) return;
  const int q = (int)(at % W), p = (int)(at / W % H), c = (int)(at / ((long long)W * H) % C);
  const long long n = at / ((long long)W * H * C);
  real sum = 0;
  for (int f = 0; f < F; ++f)
    for (int u = 0; u < KH; ++u) {
      const int i = p - u;
      if (i < 0 || i >= OH) continue;
      for (int v = 0; v < KW; ++v) {
        const int j = q - v;
        if (j < 0 || j >= OW) continue;
        sum += dy[((n * F + f) * OH + i) * OW + j] * w[((f * C + c) * KH + u) * KW + v];
      }
    }
  dx[at] = sum;
}

// limits: conv_backward_weight_naive registers<=64 shared<=0 spills=0
extern "C" __global__ void conv_backward_weight_naive(
    const real* __restrict__ x, const real* __restrict__ dy, real* __restrict__ dw,
    int N, int C, int H, int W, int F, int KH, int KW) {
  const int OH = H - KH + 1, OW = W - KW + 1;
  const int total = F * C * KH * KW;
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= total) return;
  const int v = at % KW, u = at / KW % KH, c = at / (KW * KH) % C, f = at / (KW * KH * C);
  real sum = 0;  // one thread walks over the whole batch: version 5 cuts this sum into parts
  for (long long n = 0; n < N; ++n)
    for (int i = 0; i < OH; ++i)
      for (int j = 0; j < OW; ++j)
        sum += dy[((n * F + f) * OH + i) * OW + j] * x[((n * C + c) * H + i + u) * W + j + v];
  dw[at] = sum;
}
