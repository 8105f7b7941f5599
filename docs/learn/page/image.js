// Pictures: resizing and colour as MATLAB has them (minisrcnn/imaging/resize.py and color.py), PSNR, and
// pictures drawn by formula. A plane is {H, W, data: Float32Array}, 0 to 1.

const cubic = t => {
  t = Math.abs(t);
  return t <= 1 ? (1.5 * t - 2.5) * t * t + 1 : t <= 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
};

// For each output pixel of an axis: the input pixels it takes (mirrored at the borders) and their weights.
function axisWeights(sizeIn, sizeOut, scale) {
  const stretch = Math.min(scale, 1), width = 4 / stretch, axis = [];
  for (let i = 0; i < sizeOut; i++) {
    const centre = (i + 0.5) / scale - 0.5, taken = [], weights = [];
    for (let j = Math.floor(centre - width / 2); j <= Math.ceil(centre + width / 2); j++) {
      const weight = cubic(stretch * (centre - j));
      if (weight === 0) continue;
      const m = ((j % (2 * sizeIn)) + 2 * sizeIn) % (2 * sizeIn);
      taken.push(m < sizeIn ? m : 2 * sizeIn - 1 - m);
      weights.push(weight);
    }
    const sum = weights.reduce((a, b) => a + b, 0);
    axis.push({taken, weights: weights.map(w => w / sum)});
  }
  return axis;
}

// imresize(plane, scale, 'bicubic'): rows, then columns.
function imresize({H, W, data}, scale) {
  const OH = Math.ceil(H * scale - 1e-9), OW = Math.ceil(W * scale - 1e-9), half = new Float64Array(OH * W);
  axisWeights(H, OH, scale).forEach(({taken, weights}, i) => taken.forEach((row, k) => {
    for (let j = 0; j < W; j++) half[i * W + j] += weights[k] * data[row * W + j];
  }));
  const out = new Float32Array(OH * OW), columns = axisWeights(W, OW, scale);
  for (let i = 0; i < OH; i++)
    for (let j = 0; j < OW; j++) {
      let sum = 0;
      const {taken, weights} = columns[j];
      for (let k = 0; k < taken.length; k++) sum += weights[k] * half[i * W + taken[k]];
      out[i * OW + j] = sum;
    }
  return {H: OH, W: OW, data: out};
}

// The network's input: the picture shrunk and enlarged again.
const degrade = (plane, scale = 3) => imresize(imresize(plane, 1 / scale), scale);

const TO_YCBCR = [[65.481, 128.553, 24.966], [-37.797, -74.203, 112], [112, -93.786, -18.214]];
const OFFSET = [16, 128, 128];
const TO_RGB = invert(TO_YCBCR);

function invert([[a, b, c], [d, e, f], [g, h, i]]) {
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  return [[e * i - f * h, c * h - b * i, b * f - c * e], [f * g - d * i, a * i - c * g, c * d - a * f],
          [d * h - e * g, b * g - a * h, a * e - b * d]].map(row => row.map(v => v / det));
}

// RGBA bytes -> {y, cb, cr, alpha} planes.
function splitColour({width: W, height: H, data}) {
  const planes = [0, 1, 2, 3].map(() => new Float32Array(H * W));
  for (let k = 0; k < H * W; k++) {
    const [R, G, B] = [data[4 * k], data[4 * k + 1], data[4 * k + 2]];
    TO_YCBCR.forEach(([a, b, c], m) => { planes[m][k] = (a * R + b * G + c * B) / 65025 + OFFSET[m] / 255; });
    planes[3][k] = data[4 * k + 3] / 255;
  }
  const [y, cb, cr, alpha] = planes.map(data => ({H, W, data}));
  return {y, cb, cr, alpha};
}

// All planes resized, the colours in proportion to alpha: what is transparent has none to give.
function resizeColour(planes, scale) {
  const alpha = imresize(planes.alpha, scale), out = {alpha}, opaque = planes.alpha.data.every(a => a === 1);
  for (const name of ["y", "cb", "cr"]) {
    const {H, W, data} = planes[name];
    out[name] = imresize(opaque ? planes[name] : {H, W, data: data.map((v, k) => v * planes.alpha.data[k])}, scale);
    if (!opaque) out[name].data.forEach((v, k, plane) => { plane[k] = alpha.data[k] > 1e-3 ? v / alpha.data[k] : OFFSET[1] / 255; });
  }
  return out;
}

// ... and back to RGBA bytes.
function joinColour({y, cb, cr, alpha}) {
  const {H, W} = y, out = new Uint8ClampedArray(4 * H * W);
  for (let k = 0; k < H * W; k++) {
    const v = [Math.min(1, Math.max(0, y.data[k])) * 255 - 16, cb.data[k] * 255 - 128, cr.data[k] * 255 - 128];
    TO_RGB.forEach(([a, b, c], m) => { out[4 * k + m] = Math.floor((a * v[0] + b * v[1] + c * v[2]) * 255 + 0.5); });
    out[4 * k + 3] = Math.floor(alpha.data[k] * 255 + 0.5);
  }
  return new ImageData(out, W, H);
}

// PSNR in dB of 8-bit values, without a border of `shave` pixels.
function psnr(a, b, shave = 3) {
  const byte = v => Math.min(255, Math.max(0, Math.round(v * 255)));
  let sum = 0, count = 0;
  for (let i = shave; i < a.H - shave; i++)
    for (let j = shave; j < a.W - shave; j++, count++)
      sum += (byte(a.data[i * a.W + j]) - byte(b.data[i * a.W + j])) ** 2;
  return 10 * Math.log10(255 * 255 * count / sum);
}

// --- pictures drawn by formula ------------------------------------------------------------------------

// What is inside a shape by its signed distance d in pixels, with a soft edge of one pixel.
const inside = d => Math.min(1, Math.max(0, 0.5 - d));

// A sheet of random discs, rings, bars and stripes to train on. Not a picture of any data set.
function drawShapes(H, W, seed) {
  const random = randomSource(seed), data = new Float32Array(H * W);
  const tilt = random.uniform() * 6.28;
  for (let i = 0; i < H; i++)
    for (let j = 0; j < W; j++) data[i * W + j] = 0.5 + 0.25 * Math.sin(tilt + i / 61) * Math.cos(j / 47);
  for (let n = 0; n < H * W / 450; n++) {
    const kind = random.integer(5), cy = random.uniform() * H, cx = random.uniform() * W, angle = random.uniform() * 3.1416;
    const r = 5 + 24 * random.uniform() ** 2, thin = 1.2 + 3 * random.uniform(), level = 0.06 + 0.86 * random.uniform();
    const period = 7 + 12 * random.uniform(), [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    for (let i = Math.max(0, Math.floor(cy - r - 5)); i < Math.min(H, cy + r + 5); i++)
      for (let j = Math.max(0, Math.floor(cx - r - 5)); j < Math.min(W, cx + r + 5); j++) {
        const y = i - cy, x = j - cx, along = x * cos + y * sin, across = y * cos - x * sin, d = Math.hypot(x, y);
        const cover = [() => inside(d - r), () => inside(Math.abs(d - r) - thin),
          () => inside(Math.max(Math.abs(along) - r, Math.abs(across) - thin)),
          () => inside(Math.max(Math.abs(along) - r * 0.7, Math.abs(across) - r * 0.5)),
          () => inside(d - r) * inside((Math.abs((((along % period) + period) % period) - period / 2) - period / 4))][kind]();
        data[i * W + j] += cover * (level - data[i * W + j]);
      }
  }
  return {H, W, data};
}

// A lighthouse on a rock at dusk, in colour, at any size: {width, height, data} of RGBA bytes.
function drawScene(H, W) {
  const data = new Uint8ClampedArray(4 * H * W), s = H / 180;
  for (let i = 0; i < H; i++)
    for (let j = 0; j < W; j++) {
      const y = (i + 0.5) / s, x = (j + 0.5) / s - (W / s - 180) / 2, px = d => inside(d * s);
      let c = [255 - 0.9 * y, 196 - 0.55 * y, 120 + 0.55 * y];
      const over = (cover, colour) => { c = c.map((v, k) => v + cover * (colour[k] - v)); };
      const sun = Math.hypot(x - 128, y - 62), ray = Math.atan2(y - 62, x - 128);
      over(px(Math.abs(Math.sin(ray * 12)) * sun * 0.26 - 2.2) * px(25 - sun) * px(sun - 44), [255, 236, 170]);
      over(px(sun - 20), [255, 226, 120]);
      over(px(Math.abs(sun - 15.5) - 0.9), [240, 150, 60]);
      for (const [a, b, size] of [[88, 36, 9], [106, 24, 6], [72, 55, 5], [150, 22, 7]]) {  // birds
        const u = Math.abs(x - a) / size;
        if (u < 1) over(px(Math.abs(y - b + size * 0.55 * Math.sin(u * 2.6)) - 0.9), [50, 40, 60]);
      }
      over(px(118 + 5 * Math.sin(x / 17) + 3 * Math.sin(x / 5.3) - y), [96, 92, 140]);  // far hills
      if (y > 128) {  // sea
        over(px(128 - y), [40, 84, 122]);
        const wave = Math.sin(y * 0.62 + 1.4 * Math.sin(x / 11 + y / 9));
        over(px((0.7 - wave) * 4) * 0.8, [120, 170, 190]);
        over(px((0.1 - Math.sin(y * 0.9)) * 3) * px(Math.abs(x - 122 + 3 * Math.sin(y / 3)) - 8), [250, 208, 120]);
      }
      over(px(Math.max(150 - y + Math.abs(x - 46) * 0.35 + 3 * Math.sin(x / 4), Math.abs(x - 44) - 48)), [54, 46, 50]);  // rock
      over(px(Math.max(143 - y + 3.5 * Math.sin(x / 6), Math.abs(x - 46) - 34)), [70, 60, 62]);
      const half = 9 + (y - 52) * 0.075, tower = Math.max(Math.abs(x - 46) - half, 52 - y, y - 146);  // tower
      over(px(tower), [238, 232, 222]);
      over(px(Math.max(tower, Math.abs(((y - x * 0.55 + 400) % 24) - 12) - 6)), [186, 44, 44]);
      over(px(Math.max(tower, x - 46 - half * 0.1)) * 0.16, [0, 0, 0]);
      over(px(Math.max(Math.abs(x - 46) - 13.5, Math.abs(y - 51) - 1.6)), [40, 36, 40]);  // gallery
      for (let k = -12; k <= 12; k += 4) over(px(Math.max(Math.abs(x - 46 - k) - 0.55, Math.abs(y - 46.5) - 4)), [40, 36, 40]);
      over(px(Math.max(Math.abs(x - 46) - 7, Math.abs(y - 42) - 7.5)), [252, 238, 150]);
      over(px(Math.max(Math.abs(x - 46) - 7.5, Math.abs(Math.abs(x - 46) - 4) - 0.6, Math.abs(y - 42) - 7.5)), [40, 36, 40]);
      over(px(Math.max(Math.abs(x - 46) - (y - 24) * 0.85, y - 35, 24 - y)), [150, 34, 38]);
      over(px(Math.max(Math.abs(x - 46) - 0.6, Math.abs(y - 20) - 5)), [40, 36, 40]);
      for (const b of [78, 104]) over(px(Math.max(Math.abs(x - 46) - 2.3, Math.abs(y - b) - 3.6)), [36, 40, 60]);
      over(px(Math.max(Math.abs(x - 46) - 4, 132 - y, y - 146)), [80, 44, 30]);
      const hull = Math.max(Math.abs(x - 137) - (17 - (y - 143) * 0.8), 143 - y, y - 150);  // boat
      over(px(hull), [120, 40, 36]);
      over(px(Math.max(Math.abs(y - 145) - 0.6, hull)), [240, 230, 210]);
      over(px(Math.max(Math.abs(x - 136) - 0.7, 108 - y, y - 143)), [60, 40, 30]);
      over(px(Math.max(138 - x, x - 138 - (y - 110) * 0.48, y - 140)), [246, 240, 226]);
      over(px(Math.max(x - 134.5, 134.5 - x - (y - 116) * 0.5, y - 140)), [226, 214, 196]);
      over(px(Math.max(138 - x, x - 138 - (y - 110) * 0.48, Math.abs(y - 130) - 1.2)), [40, 90, 150]);
      data.set([c[0], c[1], c[2], 255].map(Math.round), 4 * (i * W + j));
    }
  return {width: W, height: H, data};
}
