// The page's WebGPU kernels: the functions of minisrcnn/engine/backends/reference.py in float32.
// Arrays are NCHW and contiguous. `s` holds the sizes of a launch, `r` its real numbers.
struct Sizes { s: array<vec4u, 3>, r: array<vec4f, 2> }
@group(0) @binding(0) var<uniform> p: Sizes;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> d: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read_write> out2: array<f32>;
@group(0) @binding(6) var<storage, read_write> out3: array<f32>;

// a = x (N,C,H,W), b = w (F,C,KH,KW), d = b (F,), out = y (N,F,OH,OW); s = N C H W, F KH KW.
// A thread computes one pixel of four filters, so that each x that it reads serves four times.
@compute @workgroup_size(64)
fn conv2d_forward(@builtin(global_invocation_id) id: vec3u) {
  let C = p.s[0].y; let H = p.s[0].z; let W = p.s[0].w;
  let F = p.s[1].x; let KH = p.s[1].y; let KW = p.s[1].z;
  let OH = H - KH + 1; let OW = W - KW + 1;
  let groups = (F + 3) / 4;
  let n = id.y / groups; let f = 4 * (id.y % groups);
  if (id.x >= OH * OW) { return; }
  let i = id.x / OW; let j = id.x % OW;
  let last = vec4u(F - 1);
  let filters = min(vec4u(f, f + 1, f + 2, f + 3), last);
  var sum = vec4f(d[filters.x], d[filters.y], d[filters.z], d[filters.w]);
  for (var c = 0u; c < C; c++) {
    for (var u = 0u; u < KH; u++) {
      let row = ((n * C + c) * H + i + u) * W + j;
      let taps = ((filters * C + c) * KH + u) * KW;
      for (var v = 0u; v < KW; v++) {
        sum += a[row + v] * vec4f(b[taps.x + v], b[taps.y + v], b[taps.z + v], b[taps.w + v]);
      }
    }
  }
  for (var k = 0u; k < 4 && f + k < F; k++) { out[((n * F + f + k) * OH + i) * OW + j] = sum[k]; }
}

// a = dy (N,F,OH,OW), b = w (F,C,KH,KW), out = dx (N,C,H,W); s = N F OH OW, C KH KW.
// The gather form: a thread collects the sum of one input pixel, so no two write to one place.
@compute @workgroup_size(64)
fn conv2d_backward_input(@builtin(global_invocation_id) id: vec3u) {
  let F = p.s[0].y; let OH = p.s[0].z; let OW = p.s[0].w;
  let C = p.s[1].x; let KH = p.s[1].y; let KW = p.s[1].z;
  let H = OH + KH - 1; let W = OW + KW - 1;
  let n = id.y / C; let c = id.y % C;
  if (id.x >= H * W) { return; }
  let row = id.x / W; let column = id.x % W;
  var sum = 0.0;
  for (var f = 0u; f < F; f++) {
    for (var u = 0u; u < KH; u++) {
      if (row < u || row - u >= OH) { continue; }
      for (var v = 0u; v < KW; v++) {
        if (column < v || column - v >= OW) { continue; }
        sum += a[((n * F + f) * OH + row - u) * OW + column - v] * b[((f * C + c) * KH + u) * KW + v];
      }
    }
  }
  out[((n * C + c) * H + row) * W + column] = sum;
}

var<workgroup> part: array<f32, 64>;

// The sum of the 64 numbers in `part`, in a fixed order, for thread 0.
fn reduce(k: u32) -> f32 {
  for (var half = 32u; half > 0; half /= 2) {
    workgroupBarrier();
    if (k < half) { part[k] += part[k + half]; }
  }
  workgroupBarrier();
  return part[0];
}

// a = x (N,C,H,W), b = dy (N,F,OH,OW), out = dw (F,C,KH,KW); s = N C H W, F KH KW.
// A workgroup for each weight: 64 threads share the sum over images, rows and columns.
@compute @workgroup_size(64)
fn conv2d_backward_weight(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
  let N = p.s[0].x; let C = p.s[0].y; let H = p.s[0].z; let W = p.s[0].w;
  let F = p.s[1].x; let KH = p.s[1].y; let KW = p.s[1].z;
  let OH = H - KH + 1; let OW = W - KW + 1;
  let v = group.x % KW; let u = group.x / KW % KH; let c = group.x / (KW * KH) % C; let f = group.x / (KW * KH * C);
  var sum = 0.0;
  for (var k = local.x; k < N * OH * OW; k += 64) {
    let j = k % OW; let i = k / OW % OH; let n = k / (OW * OH);
    sum += b[((n * F + f) * OH + i) * OW + j] * a[((n * C + c) * H + i + u) * W + j + v];
  }
  part[local.x] = sum;
  let total = reduce(local.x);
  if (local.x == 0) { out[group.x] = total; }
}

// a = dy, out = db; s = N F P, P = OH OW. A workgroup for each filter.
@compute @workgroup_size(64)
fn conv2d_backward_bias(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u) {
  let N = p.s[0].x; let F = p.s[0].y; let P = p.s[0].z;
  var sum = 0.0;
  for (var k = local.x; k < N * P; k += 64) { sum += a[(k / P * F + group.x) * P + k % P]; }
  part[local.x] = sum;
  let total = reduce(local.x);
  if (local.x == 0) { out[group.x] = total; }
}

// a = y, b = t, out = loss, out2 = dy; s = M. One workgroup.
@compute @workgroup_size(64)
fn mse(@builtin(local_invocation_id) local: vec3u) {
  let M = p.s[0].x;
  var sum = 0.0;
  for (var k = local.x; k < M; k += 64) {
    let difference = a[k] - b[k];
    sum += difference * difference;
    out2[k] = 2 * difference / f32(M);
  }
  part[local.x] = sum;
  let total = reduce(local.x);
  if (local.x == 0) { out[0] = total / f32(M); }
}

@compute @workgroup_size(64)
fn relu_forward(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < p.s[0].x) { out[id.x] = select(a[id.x], 0.0, a[id.x] <= 0); }
}

// a = dy, b = y
@compute @workgroup_size(64)
fn relu_backward(@builtin(global_invocation_id) id: vec3u) {
  if (id.x < p.s[0].x) { out[id.x] = select(0.0, a[id.x], b[id.x] > 0); }
}

// a = grad, out = param, out2 = velocity; r = lr, momentum
@compute @workgroup_size(64)
fn sgd_update(@builtin(global_invocation_id) id: vec3u) {
  let k = id.x;
  if (k >= p.s[0].x) { return; }
  out2[k] = p.r[0].y * out2[k] - p.r[0].x * a[k];
  out[k] += out2[k];
}

// a = grad, out = param, out2 = m, out3 = v; r = lr / (1 - beta1^s), 1 / (1 - beta2^s), beta1, beta2, eps
@compute @workgroup_size(64)
fn adam_update(@builtin(global_invocation_id) id: vec3u) {
  let k = id.x;
  if (k >= p.s[0].x) { return; }
  let r = p.r[0];
  out2[k] = r.z * out2[k] + (1 - r.z) * a[k];
  out3[k] = r.w * out3[k] + (1 - r.w) * a[k] * a[k];
  out[k] -= r.x * out2[k] / (sqrt(out3[k] * r.y) + p.r[1].x);
}

// a = w, out = every kernel rotated by 180 degrees; s = size, KH KW
@compute @workgroup_size(64)
fn rotate(@builtin(global_invocation_id) id: vec3u) {
  let P = p.s[0].y;
  if (id.x < p.s[0].x) { out[id.x] = a[id.x / P * P + P - 1 - id.x % P]; }
}
