// The page's WebAssembly kernels: the functions of minisrcnn/engine/backends/reference.py in float32
// with 128-bit SIMD. Arrays are NCHW and contiguous; the caller allocates, nothing is checked here.
//
//   n image, c input channel, f filter, i j output row and column, u v kernel row and column
#include <stddef.h>
#include <wasm_simd128.h>

#define EXPORT(name) __attribute__((export_name(#name), visibility("default"))) void name
#define INLINE static inline __attribute__((always_inline))

// A register tile of the forward convolution: FILTERS filters x ROWS rows x 4 VECTORS columns of the
// output stay in registers while the taps go by. The three sizes are constants where this is called.
INLINE void tile(const float *x, const float *w, const float *b, float *y, int C, int H, int W,
                 int OH, int OW, int KH, int KW, const int FILTERS, const int ROWS, const int VECTORS) {
  v128_t sum[4][4][2];
  for (int f = 0; f < FILTERS; f++)
    for (int r = 0; r < ROWS; r++)
      for (int k = 0; k < VECTORS; k++) sum[f][r][k] = wasm_v128_load32_splat(b + f);
  for (int c = 0; c < C; c++)
    for (int u = 0; u < KH; u++)
      for (int v = 0; v < KW; v++) {
        v128_t tap[4], pixel[4][2];
        for (int f = 0; f < FILTERS; f++)
          tap[f] = wasm_v128_load32_splat(w + ((f * C + c) * KH + u) * KW + v);
        for (int r = 0; r < ROWS; r++)
          for (int k = 0; k < VECTORS; k++)
            pixel[r][k] = wasm_v128_load(x + (c * H + r + u) * W + v + 4 * k);
        for (int f = 0; f < FILTERS; f++)
          for (int r = 0; r < ROWS; r++)
            for (int k = 0; k < VECTORS; k++)
              sum[f][r][k] = wasm_f32x4_add(sum[f][r][k], wasm_f32x4_mul(pixel[r][k], tap[f]));
      }
  for (int f = 0; f < FILTERS; f++)
    for (int r = 0; r < ROWS; r++)
      for (int k = 0; k < VECTORS; k++)
        wasm_v128_store(y + (f * OH + r) * OW + 4 * k, sum[f][r][k]);
}

// All columns of some rows of some filters. The last tile overlaps the one before it, so that no
// column is left over; outputs narrower than a vector are summed one by one.
INLINE void rows(const float *x, const float *w, const float *b, float *y, int C, int H, int W,
                 int OH, int OW, int KH, int KW, const int FILTERS, const int ROWS) {
  int j = 0;
  for (; j + 8 <= OW; j += 8)
    tile(x + j, w, b, y + j, C, H, W, OH, OW, KH, KW, FILTERS, ROWS, 2);
  for (; OW >= 4 && j < OW; j += 4) {
    if (j > OW - 4) j = OW - 4;
    tile(x + j, w, b, y + j, C, H, W, OH, OW, KH, KW, FILTERS, ROWS, 1);
  }
  if (OW >= 4) return;
  for (int f = 0; f < FILTERS; f++)
    for (int r = 0; r < ROWS; r++)
      for (j = 0; j < OW; j++) {
        float sum = b[f];
        for (int c = 0; c < C; c++)
          for (int u = 0; u < KH; u++)
            for (int v = 0; v < KW; v++)
              sum += x[(c * H + r + u) * W + j + v] * w[((f * C + c) * KH + u) * KW + v];
        y[(f * OH + r) * OW + j] = sum;
      }
}

// y[n,f,i,j] = b[f] + sum over c, u, v of x[n,c,i+u,j+v] w[f,c,u,v]
EXPORT(conv2d_forward)(const float *x, const float *w, const float *b, float *y,
                       int N, int C, int H, int W, int F, int KH, int KW) {
  if (KH == 1 && KW == 1) { W *= H; H = 1; }  // one long row
  const int OH = H - KH + 1, OW = W - KW + 1;
  for (int n = 0; n < N; n++, x += C * H * W, y += F * OH * OW) {
    int f = 0;
    for (; f + 4 <= F; f += 4)
      for (int i = 0; i < OH; i++)
        rows(x + i * W, w + f * C * KH * KW, b + f, y + (f * OH + i) * OW, C, H, W, OH, OW, KH, KW, 4, 1);
    for (; f < F; f++) {
      int i = 0;
      for (; i + 4 <= OH; i += 4)
        rows(x + i * W, w + f * C * KH * KW, b + f, y + (f * OH + i) * OW, C, H, W, OH, OW, KH, KW, 1, 4);
      for (; i < OH; i++)
        rows(x + i * W, w + f * C * KH * KW, b + f, y + (f * OH + i) * OW, C, H, W, OH, OW, KH, KW, 1, 1);
    }
  }
}

// dx[n,c,p,q] = sum over f, u, v of dy[n,f,p-u,q-v] w[f,c,u,v]: the forward convolution of dy inside
// a frame of zeros, with each kernel flipped and the channels swapped.
// scratch: F (OH + 2 KH - 2) (OW + 2 KW - 2) + C F KH KW + C floats.
EXPORT(conv2d_backward_input)(const float *dy, const float *w, float *dx, float *scratch,
                              int N, int F, int OH, int OW, int C, int KH, int KW) {
  const int PH = OH + 2 * (KH - 1), PW = OW + 2 * (KW - 1);
  float *padded = scratch, *flipped = padded + F * PH * PW, *zero = flipped + C * F * KH * KW;
  for (int c = 0; c < C; c++) {
    zero[c] = 0;
    for (int f = 0; f < F; f++)
      for (int u = 0; u < KH; u++)
        for (int v = 0; v < KW; v++)
          flipped[((c * F + f) * KH + u) * KW + v] = w[((f * C + c) * KH + KH - 1 - u) * KW + KW - 1 - v];
  }
  for (int k = 0; k < F * PH * PW; k++) padded[k] = 0;
  const int H = OH + KH - 1, W = OW + KW - 1;
  for (int n = 0; n < N; n++) {
    for (int f = 0; f < F; f++)
      for (int i = 0; i < OH; i++)
        for (int j = 0; j < OW; j++)
          padded[(f * PH + i + KH - 1) * PW + j + KW - 1] = dy[((n * F + f) * OH + i) * OW + j];
    conv2d_forward(padded, flipped, zero, dx + n * C * H * W, 1, F, PH, PW, C, KH, KW);
  }
}

// FILTERS x TAPS sums of dw, four lanes each, over all images, rows and columns.
INLINE void weights(const float *x, const float *dy, float *dw, int N, int C, int H, int W, int F,
                    int OH, int OW, int KH, int KW, const int FILTERS, const int TAPS) {
  v128_t sum[4][2];
  float rest[4][2];
  for (int f = 0; f < FILTERS; f++)
    for (int t = 0; t < TAPS; t++) { sum[f][t] = wasm_f32x4_splat(0); rest[f][t] = 0; }
  for (int n = 0; n < N; n++)
    for (int i = 0; i < OH; i++) {
      const float *pixel = x + (n * C * H + i) * W, *grad = dy + (n * F * OH + i) * OW;
      int j = 0;
      for (; j + 4 <= OW; j += 4)
        for (int t = 0; t < TAPS; t++) {
          v128_t p = wasm_v128_load(pixel + j + t);
          for (int f = 0; f < FILTERS; f++)
            sum[f][t] = wasm_f32x4_add(sum[f][t], wasm_f32x4_mul(p, wasm_v128_load(grad + f * OH * OW + j)));
        }
      for (; j < OW; j++)
        for (int t = 0; t < TAPS; t++)
          for (int f = 0; f < FILTERS; f++) rest[f][t] += pixel[j + t] * grad[f * OH * OW + j];
    }
  for (int f = 0; f < FILTERS; f++)
    for (int t = 0; t < TAPS; t++)
      dw[f * C * KH * KW + t] = rest[f][t] +
          (wasm_f32x4_extract_lane(sum[f][t], 0) + wasm_f32x4_extract_lane(sum[f][t], 1)) +
          (wasm_f32x4_extract_lane(sum[f][t], 2) + wasm_f32x4_extract_lane(sum[f][t], 3));
}

// dw[f,c,u,v] = sum over n, i, j of dy[n,f,i,j] x[n,c,i+u,j+v]
EXPORT(conv2d_backward_weight)(const float *x, const float *dy, float *dw,
                               int N, int C, int H, int W, int F, int KH, int KW) {
  if (KH == 1 && KW == 1) { W *= H; H = 1; }
  const int OH = H - KH + 1, OW = W - KW + 1;
  for (int c = 0; c < C; c++)
    for (int u = 0; u < KH; u++)
      for (int v = 0; v < KW; v += 2) {
        const float *from = x + (c * H + u) * W + v;
        int f = 0;
#define BLOCK(FILTERS, TAPS)                                                                      \
  weights(from, dy + f * OH * OW, dw + ((f * C + c) * KH + u) * KW + v, N, C, H, W, F, OH, OW, KH, KW, \
          FILTERS, TAPS)
        for (; f + 4 <= F; f += 4)
          if (v + 1 < KW) BLOCK(4, 2); else BLOCK(4, 1);
        for (; f < F; f++)
          if (v + 1 < KW) BLOCK(1, 2); else BLOCK(1, 1);
#undef BLOCK
      }
}

// db[f] = sum over n, i, j of dy[n,f,i,j]; P = OH OW
EXPORT(conv2d_backward_bias)(const float *dy, float *db, int N, int F, int P) {
  for (int f = 0; f < F; f++) {
    double sum = 0;
    for (int n = 0; n < N; n++)
      for (int k = 0; k < P; k++) sum += dy[(n * F + f) * P + k];
    db[f] = (float)sum;
  }
}

// Not "x > 0 ? x : 0": a NaN must stay visible.
EXPORT(relu_forward)(const float *x, float *y, int size) {
  for (int k = 0; k < size; k++) y[k] = x[k] <= 0 ? 0 : x[k];
}

EXPORT(relu_backward)(const float *dy, const float *y, float *dx, int size) {
  for (int k = 0; k < size; k++) dx[k] = y[k] > 0 ? dy[k] : 0;
}

// loss = 1/M sum of (y - t)^2, dy = 2/M (y - t)
EXPORT(mse)(const float *y, const float *t, float *loss, float *dy, int size) {
  double sum = 0;
  for (int k = 0; k < size; k++) {
    double difference = (double)y[k] - t[k];
    sum += difference * difference;
    dy[k] = (float)(2 * difference / size);
  }
  *loss = (float)(sum / size);
}

EXPORT(sgd_update)(float *param, const float *grad, float *velocity, int size, float lr, float momentum) {
  for (int k = 0; k < size; k++) {
    velocity[k] = momentum * velocity[k] - lr * grad[k];
    param[k] += velocity[k];
  }
}

// lr is divided by 1 - beta1^s, and scale is 1 / (1 - beta2^s), by the caller.
EXPORT(adam_update)(float *param, const float *grad, float *m, float *v, int size,
                    float lr, float scale, float beta1, float beta2, float eps) {
  for (int k = 0; k < size; k++) {
    m[k] = beta1 * m[k] + (1 - beta1) * grad[k];
    v[k] = beta2 * v[k] + (1 - beta2) * grad[k] * grad[k];
    param[k] -= lr * m[k] / (__builtin_sqrtf(v[k] * scale) + eps);
  }
}

// Every kernel rotated by 180 degrees, for the bug zoo: P = KH KW
EXPORT(rotate)(const float *w, float *out, int kernels, int P) {
  for (int k = 0; k < kernels; k++)
    for (int t = 0; t < P; t++) out[k * P + t] = w[k * P + P - 1 - t];
}
