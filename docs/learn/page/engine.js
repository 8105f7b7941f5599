// Three engines with one set of functions, those of minisrcnn's backends: JavaScript (readable loops),
// WebAssembly (conv.c) and WebGPU (conv.wgsl). A tensor is {shape, ...} of its engine; asarray and read
// are the only way in and out. What is made after mark() is given back by release(mark).

const sizeOf = shape => shape.reduce((a, b) => a * b, 1);

// --- JavaScript: sums in float64, rounded once, as the reference backend does --------------------

function makeJsEngine() {
  const tensor = (shape, data = new Float32Array(sizeOf(shape))) => ({shape, data});
  return {
    name: "js", label: "JavaScript",
    asarray: (values, shape) => tensor(shape, Float32Array.from(values)),
    read: async t => t.data.slice(),
    mark: () => null, release: () => {},

    // y[n,f,i,j] = b[f] + sum over c, u, v of x[n,c,i+u,j+v] w[f,c,u,v]
    conv2d_forward(x, w, b) {
      const [N, C, H, W] = x.shape, [F, , KH, KW] = w.shape, OH = H - KH + 1, OW = W - KW + 1;
      const y = tensor([N, F, OH, OW]), sum = new Float64Array(OW);
      for (let n = 0; n < N; n++)
        for (let f = 0; f < F; f++)
          for (let i = 0; i < OH; i++) {
            sum.fill(b.data[f]);
            for (let c = 0; c < C; c++)
              for (let u = 0; u < KH; u++)
                for (let v = 0; v < KW; v++) {
                  const tap = w.data[((f * C + c) * KH + u) * KW + v];
                  const row = ((n * C + c) * H + i + u) * W + v;
                  for (let j = 0; j < OW; j++) sum[j] += tap * x.data[row + j];
                }
            y.data.set(sum, ((n * F + f) * OH + i) * OW);
          }
      return y;
    },

    // dx[n,c,p,q] = sum over f, u, v of dy[n,f,p-u,q-v] w[f,c,u,v]
    conv2d_backward_input(dy, w) {
      const [N, F, OH, OW] = dy.shape, [, C, KH, KW] = w.shape, H = OH + KH - 1, W = OW + KW - 1;
      const dx = tensor([N, C, H, W]), sum = new Float64Array(W);
      for (let n = 0; n < N; n++)
        for (let c = 0; c < C; c++)
          for (let p = 0; p < H; p++) {
            sum.fill(0);
            for (let f = 0; f < F; f++)
              for (let u = Math.max(0, p - OH + 1); u <= Math.min(KH - 1, p); u++)
                for (let v = 0; v < KW; v++) {
                  const tap = w.data[((f * C + c) * KH + u) * KW + v];
                  const row = ((n * F + f) * OH + p - u) * OW;
                  for (let j = 0; j < OW; j++) sum[j + v] += tap * dy.data[row + j];  // q = j + v
                }
            dx.data.set(sum, ((n * C + c) * H + p) * W);
          }
      return dx;
    },

    // dw[f,c,u,v] = sum over n, i, j of dy[n,f,i,j] x[n,c,i+u,j+v]
    conv2d_backward_weight(x, dy) {
      const [N, C, H, W] = x.shape, [, F, OH, OW] = dy.shape, KH = H - OH + 1, KW = W - OW + 1;
      const dw = tensor([F, C, KH, KW]);
      for (let f = 0; f < F; f++)
        for (let c = 0; c < C; c++)
          for (let u = 0; u < KH; u++)
            for (let v = 0; v < KW; v++) {
              let sum = 0;
              for (let n = 0; n < N; n++)
                for (let i = 0; i < OH; i++) {
                  const grad = ((n * F + f) * OH + i) * OW, row = ((n * C + c) * H + i + u) * W + v;
                  for (let j = 0; j < OW; j++) sum += dy.data[grad + j] * x.data[row + j];
                }
              dw.data[((f * C + c) * KH + u) * KW + v] = sum;
            }
      return dw;
    },

    // db[f] = sum over n, i, j of dy[n,f,i,j]
    conv2d_backward_bias(dy) {
      const [N, F, OH, OW] = dy.shape, P = OH * OW, db = tensor([F]);
      for (let f = 0; f < F; f++) {
        let sum = 0;
        for (let n = 0; n < N; n++) for (let k = 0; k < P; k++) sum += dy.data[(n * F + f) * P + k];
        db.data[f] = sum;
      }
      return db;
    },

    relu_forward: x => tensor(x.shape, x.data.map(v => v <= 0 ? 0 : v)),
    relu_backward: (dy, y) => tensor(dy.shape, dy.data.map((v, k) => y.data[k] > 0 ? v : 0)),

    // loss = 1/M sum of (y - t)^2, dy = 2/M (y - t)
    mse(y, t) {
      const M = y.data.length;
      let sum = 0;
      const dy = y.data.map((v, k) => { sum += (v - t.data[k]) ** 2; return 2 * (v - t.data[k]) / M; });
      return [tensor([1], Float32Array.of(sum / M)), tensor(y.shape, dy)];
    },

    sgd_update(param, grad, velocity, lr, momentum) {
      for (let k = 0; k < param.data.length; k++) {
        velocity.data[k] = momentum * velocity.data[k] - lr * grad.data[k];
        param.data[k] += velocity.data[k];
      }
    },
    adam_update(param, grad, m, v, step, lr, beta1, beta2, eps) {
      const rate = lr / (1 - beta1 ** step), scale = 1 / (1 - beta2 ** step);
      for (let k = 0; k < param.data.length; k++) {
        const g = grad.data[k];
        m.data[k] = beta1 * m.data[k] + (1 - beta1) * g;
        v.data[k] = beta2 * v.data[k] + (1 - beta2) * g * g;
        param.data[k] -= rate * m.data[k] / (Math.sqrt(v.data[k] * scale) + eps);
      }
    },
    rotate(w) {
      const P = w.shape[2] * w.shape[3];
      return tensor(w.shape, w.data.map((_, k) => w.data[k - k % P + P - 1 - k % P]));
    },
  };
}

// --- WebAssembly ---------------------------------------------------------------------------------

async function makeWasmEngine(base64) {
  const code = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  const {instance: {exports: c}} = await WebAssembly.instantiate(code, {});
  let top = Math.ceil(c.__heap_base.value / 16) * 16;
  function tensor(shape) {  // a stack: mark and release move its top
    const ptr = top, size = sizeOf(shape);
    top = Math.ceil((top + 4 * size + 16) / 16) * 16;
    const missing = top - c.memory.buffer.byteLength;
    if (missing > 0) c.memory.grow(Math.ceil(missing / 65536));
    return {shape, ptr, size};
  }
  const view = t => new Float32Array(c.memory.buffer, t.ptr, t.size);
  return {
    name: "wasm", label: "WebAssembly",
    asarray(values, shape) { const t = tensor(shape); view(t).set(values); return t; },
    read: async t => view(t).slice(),
    mark: () => top, release: mark => { top = mark; },
    conv2d_forward(x, w, b) {
      const [N, C, H, W] = x.shape, [F, , KH, KW] = w.shape, y = tensor([N, F, H - KH + 1, W - KW + 1]);
      c.conv2d_forward(x.ptr, w.ptr, b.ptr, y.ptr, N, C, H, W, F, KH, KW);
      return y;
    },
    conv2d_backward_input(dy, w) {
      const [N, F, OH, OW] = dy.shape, [, C, KH, KW] = w.shape;
      const dx = tensor([N, C, OH + KH - 1, OW + KW - 1]), mark = top;
      const scratch = tensor([F * (OH + 2 * KH - 2) * (OW + 2 * KW - 2) + C * F * KH * KW + C]);
      c.conv2d_backward_input(dy.ptr, w.ptr, dx.ptr, scratch.ptr, N, F, OH, OW, C, KH, KW);
      top = mark;
      return dx;
    },
    conv2d_backward_weight(x, dy) {
      const [N, C, H, W] = x.shape, [, F, OH, OW] = dy.shape, KH = H - OH + 1, KW = W - OW + 1;
      const dw = tensor([F, C, KH, KW]);
      c.conv2d_backward_weight(x.ptr, dy.ptr, dw.ptr, N, C, H, W, F, KH, KW);
      return dw;
    },
    conv2d_backward_bias(dy) {
      const [N, F, OH, OW] = dy.shape, db = tensor([F]);
      c.conv2d_backward_bias(dy.ptr, db.ptr, N, F, OH * OW);
      return db;
    },
    relu_forward(x) { const y = tensor(x.shape); c.relu_forward(x.ptr, y.ptr, x.size); return y; },
    relu_backward(dy, y) {
      const dx = tensor(dy.shape);
      c.relu_backward(dy.ptr, y.ptr, dx.ptr, dy.size);
      return dx;
    },
    mse(y, t) {
      const loss = tensor([1]), dy = tensor(y.shape);
      c.mse(y.ptr, t.ptr, loss.ptr, dy.ptr, y.size);
      return [loss, dy];
    },
    sgd_update: (param, grad, velocity, lr, momentum) =>
      c.sgd_update(param.ptr, grad.ptr, velocity.ptr, param.size, lr, momentum),
    adam_update: (param, grad, m, v, step, lr, beta1, beta2, eps) =>
      c.adam_update(param.ptr, grad.ptr, m.ptr, v.ptr, param.size,
        lr / (1 - beta1 ** step), 1 / (1 - beta2 ** step), beta1, beta2, eps),
    rotate(w) {
      const out = tensor(w.shape), P = w.shape[2] * w.shape[3];
      c.rotate(w.ptr, out.ptr, w.size / P, P);
      return out;
    },
  };
}

// --- WebGPU: commands are recorded and sent when something is written or read ----------------------

async function makeWebGpuEngine(source) {
  if (!navigator.gpu) throw new Error("this browser has no WebGPU");
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error("no WebGPU adapter on this machine");
  const device = await adapter.requestDevice();
  const module = device.createShaderModule({code: source});
  const {STORAGE, COPY_SRC, COPY_DST, UNIFORM, MAP_READ} = GPUBufferUsage;

  // Which bindings a kernel uses: inputs a b d (1 2 3), outputs out out2 out3 (4 5 6).
  const inputs = {conv2d_forward: 3, conv2d_backward_input: 2, conv2d_backward_weight: 2, conv2d_backward_bias: 1,
    relu_forward: 1, relu_backward: 2, mse: 2, sgd_update: 1, adam_update: 1, rotate: 1};
  const pipelines = {};
  for (const entryPoint of Object.keys(inputs))
    pipelines[entryPoint] = await device.createComputePipelineAsync({layout: "auto", compute: {module, entryPoint}});

  const free = new Map();  // buffers that were given back, by size
  let made = [], encoder = null, uniforms = new Map();
  function tensor(shape) {
    const bytes = Math.max(16, 4 * sizeOf(shape));
    const buffer = free.get(bytes)?.pop() ??
      device.createBuffer({size: bytes, usage: STORAGE | COPY_SRC | COPY_DST});
    const t = {shape, buffer, bytes, size: sizeOf(shape)};
    made.push(t);
    return t;
  }
  function flush() {
    if (encoder) device.queue.submit([encoder.finish()]);
    encoder = null;
  }
  function sizes(s, r) {
    const key = s + "|" + r;
    if (!uniforms.has(key)) {
      if (uniforms.size > 400) { flush(); uniforms = new Map(); }
      const buffer = device.createBuffer({size: 80, usage: UNIFORM, mappedAtCreation: true});
      new Uint32Array(buffer.getMappedRange(0, 48)).set(s);
      new Float32Array(buffer.getMappedRange(48, 32)).set(r);
      buffer.unmap();
      uniforms.set(key, buffer);
    }
    return uniforms.get(key);
  }
  function launch(kernel, from, to, groups, s, r = []) {
    const pipeline = pipelines[kernel], entries = [{binding: 0, resource: {buffer: sizes(s, r)}}];
    from.forEach((t, k) => entries.push({binding: 1 + k, resource: {buffer: t.buffer}}));
    to.forEach((t, k) => entries.push({binding: 4 + k, resource: {buffer: t.buffer}}));
    encoder ??= device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, device.createBindGroup({layout: pipeline.getBindGroupLayout(0), entries}));
    pass.dispatchWorkgroups(...groups);
    pass.end();
  }
  const each = size => [Math.ceil(size / 64)];
  return {
    name: "webgpu", label: "WebGPU",
    about: [adapter.info?.vendor, adapter.info?.architecture].filter(Boolean).join(" "),
    asarray(values, shape) {
      const t = tensor(shape);
      flush();  // what was recorded may still use this buffer
      device.queue.writeBuffer(t.buffer, 0, Float32Array.from(values));
      return t;
    },
    async read(t) {
      const staging = device.createBuffer({size: t.bytes, usage: MAP_READ | COPY_DST});
      encoder ??= device.createCommandEncoder();
      encoder.copyBufferToBuffer(t.buffer, 0, staging, 0, t.bytes);
      flush();
      await staging.mapAsync(GPUMapMode.READ);
      const values = new Float32Array(staging.getMappedRange(), 0, t.size).slice();
      staging.destroy();
      return values;
    },
    destroy: () => device.destroy(),
    mark: () => made.length,
    release(mark) {
      for (const t of made.splice(mark)) {
        if (!free.has(t.bytes)) free.set(t.bytes, []);
        free.get(t.bytes).push(t.buffer);
      }
    },
    conv2d_forward(x, w, b) {
      const [N, C, H, W] = x.shape, [F, , KH, KW] = w.shape, OH = H - KH + 1, OW = W - KW + 1;
      const y = tensor([N, F, OH, OW]);
      launch("conv2d_forward", [x, w, b], [y], [Math.ceil(OH * OW / 64), N * Math.ceil(F / 4)],
        [N, C, H, W, F, KH, KW]);
      return y;
    },
    conv2d_backward_input(dy, w) {
      const [N, F, OH, OW] = dy.shape, [, C, KH, KW] = w.shape, H = OH + KH - 1, W = OW + KW - 1;
      const dx = tensor([N, C, H, W]);
      launch("conv2d_backward_input", [dy, w], [dx], [Math.ceil(H * W / 64), N * C], [N, F, OH, OW, C, KH, KW]);
      return dx;
    },
    conv2d_backward_weight(x, dy) {
      const [N, C, H, W] = x.shape, [, F, OH, OW] = dy.shape, KH = H - OH + 1, KW = W - OW + 1;
      const dw = tensor([F, C, KH, KW]);
      launch("conv2d_backward_weight", [x, dy], [dw], [dw.size], [N, C, H, W, F, KH, KW]);
      return dw;
    },
    conv2d_backward_bias(dy) {
      const [N, F, OH, OW] = dy.shape, db = tensor([F]);
      launch("conv2d_backward_bias", [dy], [db], [F], [N, F, OH * OW]);
      return db;
    },
    relu_forward(x) { const y = tensor(x.shape); launch("relu_forward", [x], [y], each(x.size), [x.size]); return y; },
    relu_backward(dy, y) {
      const dx = tensor(dy.shape);
      launch("relu_backward", [dy, y], [dx], each(dy.size), [dy.size]);
      return dx;
    },
    mse(y, t) {
      const loss = tensor([1]), dy = tensor(y.shape);
      launch("mse", [y, t], [loss, dy], [1], [y.size]);
      return [loss, dy];
    },
    sgd_update: (param, grad, velocity, lr, momentum) =>
      launch("sgd_update", [grad], [param, velocity], each(param.size), [param.size], [lr, momentum]),
    adam_update: (param, grad, m, v, step, lr, beta1, beta2, eps) =>
      launch("adam_update", [grad], [param, m, v], each(param.size), [param.size],
        [lr / (1 - beta1 ** step), 1 / (1 - beta2 ** step), beta1, beta2, eps]),
    rotate(w) {
      const out = tensor(w.shape);
      launch("rotate", [w], [out], each(w.size), [w.size, w.shape[2] * w.shape[3]]);
      return out;
    },
  };
}

// --- the network: one text for all engines ---------------------------------------------------------

// Wrong gradients to train with, on request: what each does to the convolutions' and ReLU's gradients.
const TRAINING_BUGS = {
  none: "none: the right gradients",
  "dx-not-flipped": "dx: kernel not flipped",
  "dw-flipped": "dw: kernel flipped",
  "relu-mask-missing": "ReLU: mask missing",
  "mse-sign": "loss: t - y instead of y - t",
};

class Network {
  // parameters: {"conv1.weight": {shape, data}, "conv1.bias": ..., ...} as in the model files
  constructor(engine, parameters) {
    this.engine = engine;
    this.parameters = {};
    this.bug = "none";
    this.state = {};
    this.steps = 0;
    for (const [name, {shape, data}] of Object.entries(parameters)) {
      this.parameters[name] = engine.asarray(data, shape);
      this.state[name] = [engine.asarray(new Float32Array(data.length), shape),
                          engine.asarray(new Float32Array(data.length), shape)];
    }
    this.depth = Object.keys(parameters).length / 2;
  }
  layer(l) { return [this.parameters[`conv${l}.weight`], this.parameters[`conv${l}.bias`]]; }

  forward(x) {  // the input of every layer, then the output
    const inputs = [x];
    for (let l = 1; l <= this.depth; l++) {
      const y = this.engine.conv2d_forward(inputs.at(-1), ...this.layer(l));
      inputs.push(l < this.depth ? this.engine.relu_forward(y) : y);
    }
    return inputs;
  }
  lossAndGradients(x, t) {
    const e = this.engine, inputs = this.forward(x), grads = {};
    let [loss, dy] = e.mse(inputs.at(-1), t);
    if (this.bug === "mse-sign") dy = e.mse(t, inputs.at(-1))[1];
    for (let l = this.depth; l >= 1; l--) {
      const [w] = this.layer(l), dw = e.conv2d_backward_weight(inputs[l - 1], dy);
      grads[`conv${l}.weight`] = this.bug === "dw-flipped" ? e.rotate(dw) : dw;
      grads[`conv${l}.bias`] = e.conv2d_backward_bias(dy);
      if (l === 1) break;  // nobody needs the gradient of the picture
      dy = e.conv2d_backward_input(dy, this.bug === "dx-not-flipped" ? e.rotate(w) : w);
      if (this.bug !== "relu-mask-missing") dy = e.relu_backward(dy, inputs[l - 1]);
    }
    return {loss, grads};
  }
  // One step on a batch; returns the loss, still a tensor. The caller marks and releases.
  step(x, t, {optimizer, lr, lastLr = 1}) {
    const {loss, grads} = this.lossAndGradients(x, t);
    this.steps++;
    for (const [name, param] of Object.entries(this.parameters)) {
      const rate = name.startsWith(`conv${this.depth}.`) ? lr * lastLr : lr, [a, b] = this.state[name];
      if (optimizer === "adam") this.engine.adam_update(param, grads[name], a, b, this.steps, rate, 0.9, 0.999, 1e-8);
      else this.engine.sgd_update(param, grads[name], a, rate, 0.9);
    }
    return loss;
  }
  async read() {
    const out = {};
    for (const [name, t] of Object.entries(this.parameters))
      out[name] = {shape: t.shape, data: await this.engine.read(t)};
    return out;
  }

  // Restore a plane, same size, each layer's border replicated, tile by tile. `progress(done)` is
  // awaited after each tile and may return false to stop; then null is returned.
  async predict({H, W, data}, progress = async () => true, side = 96) {
    const out = {H, W, data: new Float32Array(H * W)}, halos = [];
    for (let l = this.depth; l >= 1; l--) halos.push(this.parameters[`conv${l}.weight`].shape[2] >> 1);
    for (let top = 0; top < H; top += side)
      for (let left = 0; left < W; left += side) {
        const mark = this.engine.mark(), bottom = Math.min(top + side, H), right = Math.min(left + side, W);
        let y0 = top, y1 = bottom, x0 = left, x1 = right;
        const pads = halos.map(h => {  // backwards: what each layer needs, and what of it is outside
          [y0, y1, x0, x1] = [y0 - h, y1 + h, x0 - h, x1 + h];
          const pad = [Math.max(0, -y0), Math.max(0, y1 - H), Math.max(0, -x0), Math.max(0, x1 - W)];
          [y0, y1, x0, x1] = [Math.max(0, y0), Math.min(H, y1), Math.max(0, x0), Math.min(W, x1)];
          return pad;
        });
        let values = new Float32Array((y1 - y0) * (x1 - x0));
        for (let y = y0; y < y1; y++)
          values.set(data.subarray(y * W + x0, y * W + x1), (y - y0) * (x1 - x0));
        let tile = {shape: [1, 1, y1 - y0, x1 - x0], data: values};
        let tensor = null;
        for (let l = 1; l <= this.depth; l++) {
          const pad = pads.pop();
          if (pad.some(Boolean)) {
            if (tensor) tile = {shape: tensor.shape, data: await this.engine.read(tensor)};
            tile = replicate(tile, pad);
            tensor = null;
          }
          tensor ??= this.engine.asarray(tile.data, tile.shape);
          tensor = this.engine.conv2d_forward(tensor, ...this.layer(l));
          if (l < this.depth) tensor = this.engine.relu_forward(tensor);
        }
        values = await this.engine.read(tensor);
        this.engine.release(mark);
        const w = right - left;
        for (let y = top; y < bottom; y++) out.data.set(values.subarray((y - top) * w, (y - top + 1) * w), y * W + left);
        if (await progress((top * W + (bottom - top) * right) / (H * W)) === false) return null;
      }
    return out;
  }
}

// Repeat the border of every plane: pad is top, bottom, left, right.
function replicate({shape: [N, C, H, W], data}, [top, bottom, left, right]) {
  const PH = H + top + bottom, PW = W + left + right, out = new Float32Array(N * C * PH * PW);
  for (let plane = 0; plane < N * C; plane++)
    for (let p = 0; p < PH; p++) {
      const row = (plane * H + Math.min(H - 1, Math.max(0, p - top))) * W, to = (plane * PH + p) * PW;
      out.fill(data[row], to, to + left);
      out.set(data.subarray(row, row + W), to + left);
      out.fill(data[row + W - 1], to + left + W, to + PW);
    }
  return {shape: [N, C, PH, PW], data: out};
}

// --- initial weights ---------------------------------------------------------------------------------

// Reproducible random numbers (mulberry32), and normal ones from them (Box and Muller).
function randomSource(seed) {
  let a = seed >>> 0;
  const uniform = () => {
    a = (a + 0x6D2B79F5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return {uniform, normal, integer: n => Math.floor(uniform() * n)};
}

// init "he": normal, of standard deviation sqrt(2 / inputs). "identity": a fraction of that, and filter 0
// of each layer passes the picture on, so that the network starts as bicubic (like the recipe "fast").
function initialParameters({sizes = [9, 1, 5], filters = [16, 8], init = "identity", seed = 1} = {}) {
  const random = randomSource(seed), out = {}, F = [1, ...filters, 1];
  sizes.forEach((K, l) => {
    const shape = [F[l + 1], F[l], K, K], last = l === sizes.length - 1;
    const data = new Float32Array(sizeOf(shape)), std = Math.sqrt(2 / (F[l] * K * K));
    const part = init === "he" ? 1 : last ? 0.01 : 0.3;
    for (let k = 0; k < data.length; k++) data[k] = part * std * random.normal();
    if (init === "identity") {
      data.fill(0, 0, last ? K * K : F[l] * K * K);
      data[(K * K) >> 1] = 1;
    }
    out[`conv${l + 1}.weight`] = {shape, data};
    out[`conv${l + 1}.bias`] = {shape: [F[l + 1]], data: new Float32Array(F[l + 1])};
  });
  return out;
}
