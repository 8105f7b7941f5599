// Cut a batch of patches out of images that live on the device.
//
// Images of any sizes lie one after another in one array, (C,H,W) each; so do their labels, whose
// patches are smaller by what the convolutions take away. A table says where patches may be cut, a
// sequence says which come next and in which of the eight orientations:
//
//   table    (P,3) int:   image, y, x       the top left corner of an input patch
//   order    (S,2) int:   patch (a row of the table), code
//   geometry (I,6) long:  where the input starts, its H, its W; the same of the label
//
// code 0..7: if code >= 4, mirror the patch left to right; then turn it by `code % 4` quarter turns
// anticlockwise (numpy.rot90). Both patches are rotated alike and share one centre, so that
// they still belong together. counters[0] counts the batches already taken. The sequence starts
// again when it is used up (it holds `batches` whole batches).

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

// The pixel of a square patch, `size` wide, that orientation `code` brings to (i, j).
__device__ __forceinline__ void source_of(int code, int size, int* i, int* j) {
  for (int turn = code % 4; turn > 0; --turn) {  // rot90: new[i][j] = old[j][size-1-i]
    const int old_i = *j, old_j = size - 1 - *i;
    *i = old_i;
    *j = old_j;
  }
  if (code >= 4) *j = size - 1 - *j;
}

// x (N,C,SIZE,SIZE), t (N,F,LABEL,LABEL). One thread a pixel of x or t.
// limits: gather_patches registers<=64 shared<=0 spills=0
extern "C" __global__ void gather_patches(
    const real* __restrict__ inputs, const real* __restrict__ labels,
    const long long* __restrict__ geometry, const int* __restrict__ table,
    const int* __restrict__ order, const long long* __restrict__ counters, real* __restrict__ x,
    real* __restrict__ t, int N, int C, int size, int F, int label_size, int batches) {
  const int x_total = C * size * size, t_total = F * label_size * label_size;
  const long long at = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (at >= (long long)N * (x_total + t_total)) return;
  const long long n = at / (x_total + t_total);
  const int e = (int)(at % (x_total + t_total));
  const bool is_label = e >= x_total;
  const int within = is_label ? e - x_total : e, side = is_label ? label_size : size;
  const int c = within / (side * side);
  int i = within / side % side, j = within % side;

  const long long batch = counters[0] % batches;
  const int* const entry = order + 2 * (batch * N + n);
  const int* const corner = table + 3 * entry[0];
  const long long* const image = geometry + 6 * corner[0];
  source_of(entry[1], side, &i, &j);
  int H = (int)image[1], W = (int)image[2];
  i += corner[1];
  j += corner[2];
  if (is_label) {
    // Centres coincide: a label patch starts (size - label_size) / 2 inside the input patch, less
    // what the label image itself has lost on each side.
    i += (size - label_size) / 2 - (H - (int)image[4]) / 2;
    j += (size - label_size) / 2 - (W - (int)image[5]) / 2;
    H = (int)image[4];
    W = (int)image[5];
    t[n * t_total + within] = labels[image[3] + ((long long)c * H + i) * W + j];
  } else {
    x[n * x_total + within] = inputs[image[0] + ((long long)c * H + i) * W + j];
  }
}
