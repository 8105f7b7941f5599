// Part 2: a small 9-1-5 trained on patches of a drawn sheet, scored on a drawn picture it never sees.

const BATCH = 8, PATCH = 33, LABEL = 21, BORDER = (PATCH - LABEL) / 2;

const learn = {engine: null, network: null, running: false, losses: [], scores: [], smooth: null, seed: 1};

function trainingBatch({input, truth}, random) {
  const x = new Float32Array(BATCH * PATCH * PATCH), t = new Float32Array(BATCH * LABEL * LABEL), corners = [];
  for (let n = 0; n < BATCH; n++) {
    const top = random.integer(input.H - PATCH + 1), left = random.integer(input.W - PATCH + 1);
    corners.push([top, left]);
    for (let i = 0; i < PATCH; i++)
      x.set(input.data.subarray((top + i) * input.W + left, (top + i) * input.W + left + PATCH), (n * PATCH + i) * PATCH);
    for (let i = 0; i < LABEL; i++) {
      const from = (top + BORDER + i) * truth.W + left + BORDER;
      t.set(truth.data.subarray(from, from + LABEL), (n * LABEL + i) * LABEL);
    }
  }
  return {x, t, corners};
}

const rateNow = () => 10 ** Number($("rate").value);
const DEFAULT_RATE = {adam: -2.75, sgd: -1.75};

function trainSteps(count) {
  let loss = null;
  for (let k = 0; k < count; k++) {
    const batch = trainingBatch(learn.sheet, learn.random);
    learn.corners = batch.corners;
    const {engine, network} = learn;
    const x = engine.asarray(batch.x, [BATCH, 1, PATCH, PATCH]), t = engine.asarray(batch.t, [BATCH, 1, LABEL, LABEL]);
    network.bug = $("train-bug").value;
    loss = network.step(x, t, {optimizer: $("optimizer").value, lr: rateNow(), lastLr: 0.1});
  }
  return loss;
}

// Some steps, the loss of the last one, and how long a step took.
async function trainALittle(milliseconds) {
  const mark = learn.engine.mark(), start = performance.now();
  let steps = 0, loss;
  if (learn.engine.name === "webgpu") {
    steps = milliseconds ? 4 : 1;
    loss = await learn.engine.read(trainSteps(steps));
  } else {
    do { loss = trainSteps(1); steps++; } while (performance.now() - start < milliseconds);
    loss = await learn.engine.read(loss);
  }
  learn.engine.release(mark);
  const each = (performance.now() - start) / steps;
  learn.time = learn.time ? 0.9 * learn.time + 0.1 * each : each;
  learn.smooth = learn.smooth === null ? loss[0] : 0.9 * learn.smooth + 0.1 * loss[0];
  learn.losses.push([learn.network.steps, learn.smooth]);
  if (learn.losses.length > 2000) learn.losses = learn.losses.filter((_, k) => k % 2 === 0);
  return Number.isFinite(loss[0]);
}

async function score() {
  let since = performance.now();
  learn.restored = await learn.network.predict(learn.test.input, async () => {  // never longer than a frame
    if (performance.now() - since > 9) { await nextFrame(); since = performance.now(); }
  }, 60);
  learn.psnr = psnr(learn.restored, learn.test.truth);
  learn.scores.push([learn.network.steps, learn.psnr]);
  if (learn.scores.length > 1000) learn.scores = learn.scores.filter((_, k) => k % 2 === 0);
  paintLearn(await learn.network.read());
}

const nextFrame = () => new Promise(resolve => requestAnimationFrame(resolve));

async function trainLoop() {
  learn.running = true;
  $("train").textContent = "Pause";
  let scored = performance.now();
  while (learn.running) {
    await nextFrame();
    const fine = await trainALittle(9);
    if (!fine) {
      learn.running = false;
      $("learn-error").textContent = "The loss is no longer a number. Start again, with right gradients or a lower rate.";
      $("f-loss").textContent = "not a number";
      break;
    }
    paintFigures();
    if (performance.now() - scored > 500) {
      await score();
      scored = performance.now();
    }
  }
  $("train").textContent = "Train";
  if (Number.isFinite(learn.smooth)) await score();
  $("learn-say").textContent = `Paused after ${learn.network.steps} steps, PSNR ${learn.psnr.toFixed(2)} decibels, bicubic ${learn.test.bicubic.toFixed(2)}`;
}

// Only one thing at a time uses the network: what is asked for meanwhile waits for its turn.
let learnTurn = Promise.resolve();
const inTurn = job => (learnTurn = learnTurn.then(job).catch(error => {
  learn.running = false;
  $("train").textContent = "Train";
  $("learn-error").textContent = `It failed (${error.message}). Choose another engine or start again.`;
  console.error(error);
}));
function pauseTraining() { learn.running = false; }

async function restartTraining() {
  $("learn-error").textContent = "";
  learn.engine?.destroy?.();
  learn.engine = await makeEngine(chosenEngine());
  learn.random = randomSource(7);
  learn.network = new Network(learn.engine, initialParameters({init: $("init").value, seed: learn.seed}));
  Object.assign(learn, {losses: [], scores: [], smooth: null, time: null});
  await score();
  paintFigures();
}

// The same network, with what its optimizer remembers, in another engine.
async function moveTraining() {
  const {network, engine} = learn;
  const parameters = await network.read(), state = {};
  for (const [name, tensors] of Object.entries(network.state))
    state[name] = [await engine.read(tensors[0]), await engine.read(tensors[1])];
  engine.destroy?.();
  learn.engine = await makeEngine(chosenEngine());
  learn.network = new Network(learn.engine, parameters);
  learn.network.steps = network.steps;
  for (const [name, [a, b]] of Object.entries(state))
    learn.network.state[name] = [a, b].map(values => learn.engine.asarray(values, parameters[name].shape));
  learn.time = null;
}

// --- drawing -------------------------------------------------------------------------------------------

function paintPlane(canvas, {H, W, data}) {
  canvas.width = W;
  canvas.height = H;
  const image = new ImageData(W, H);
  for (let k = 0; k < H * W; k++) {
    image.data[4 * k] = image.data[4 * k + 1] = image.data[4 * k + 2] = Math.round(255 * data[k]);
    image.data[4 * k + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// A canvas with as many device pixels as its place on the page has.
function sharpCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function paintFigures() {
  $("f-step").textContent = learn.network.steps;
  if (learn.smooth !== null) $("f-loss").textContent = learn.smooth.toExponential(2);
  else $("f-loss").textContent = "–";
  $("f-psnr").textContent = `${learn.psnr.toFixed(2)} dB`;
  $("f-bicubic").textContent = `${learn.test.bicubic.toFixed(2)} dB`;
  const gain = learn.psnr - learn.test.bicubic;
  $("f-gain").textContent = `${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(2)} dB`;
  $("f-gain").className = gain > 0 ? "good" : "bad";
  $("f-time").textContent = learn.time ? `${learn.time.toFixed(1)} ms` : "–";
}

function paintLearn(parameters) {
  paintPlane($("c-net"), learn.restored);
  paintSheet();
  paintCurve();
  paintKernels($("c-filters"), parameters["conv1.weight"], 4);
  paintKernels($("c-filters3"), parameters["conv3.weight"], 2);
}

function paintSheet() {
  const canvas = $("c-sheet");
  paintPlane(canvas, learn.sheet.truth);
  const context = canvas.getContext("2d");
  context.strokeStyle = colour("--orange");
  context.lineWidth = 1.5;
  for (const [top, left] of learn.corners ?? []) context.strokeRect(left + 0.5, top + 0.5, PATCH, PATCH);
}

// Every kernel of (F,C,K,K) in a grid, each scaled by its own largest weight: blue below zero, orange above.
function paintKernels(canvas, {shape: [F, C, K], data}, columns) {
  const count = F * C, gap = 1, rows = Math.ceil(count / columns);
  canvas.width = columns * (K + gap) - gap;
  canvas.height = rows * (K + gap) - gap;
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  const low = [0, 114, 178], high = [230, 140, 0], zero = [247, 247, 247];
  for (let k = 0; k < count; k++) {
    const kernel = data.subarray(k * K * K, (k + 1) * K * K), top = Math.max(1e-9, ...kernel.map(Math.abs));
    kernel.forEach((v, tap) => {
      const y = Math.floor(k / columns) * (K + gap) + Math.floor(tap / K), x = k % columns * (K + gap) + tap % K;
      const part = Math.abs(v) / top, to = v < 0 ? low : high;
      image.data.set([...zero.map((z, c) => z + part * (to[c] - z)), 255], 4 * (y * canvas.width + x));
    });
  }
  context.putImageData(image, 0, 0);
}

function paintCurve() {
  const canvas = $("c-curve"), width = canvas.clientWidth || 320, height = 200, context = sharpCanvas(canvas, width, height);
  const left = 44, right = width - 44, top = 10, bottom = height - 22;
  const last = Math.max(50, learn.network.steps), x = step => left + (right - left) * step / last;
  context.font = "12px system-ui, sans-serif";
  context.lineWidth = 1;
  context.strokeStyle = colour("--line");
  context.strokeRect(left + 0.5, top + 0.5, right - left, bottom - top);
  context.fillStyle = colour("--muted");
  context.textAlign = "center";
  for (const part of [0, 0.5, 1]) context.fillText(String(Math.round(last * part)), x(last * part), height - 6);
  const draw = (points, y, name, dash = []) => {
    context.strokeStyle = colour(name);
    context.lineWidth = 2;
    context.setLineDash(dash);
    context.beginPath();
    points.forEach(([step, v], k) => context[k ? "lineTo" : "moveTo"](x(step), y(v)));
    context.stroke();
    context.setLineDash([]);
  };
  const losses = learn.losses.filter(([, v]) => v > 0 && Number.isFinite(v));
  if (losses.length) {
    const logs = losses.map(([, v]) => Math.log10(v)), low = Math.min(...logs) - 0.05, high = Math.max(...logs) + 0.05;
    draw(losses, v => bottom - (bottom - top) * (Math.log10(v) - low) / (high - low), "--blue");
    context.fillStyle = colour("--blue");
    context.textAlign = "right";
    context.fillText((10 ** high).toExponential(0), left - 4, top + 10);
    context.fillText((10 ** low).toExponential(0), left - 4, bottom);
  }
  const scores = learn.scores.filter(([, v]) => Number.isFinite(v)), {bicubic} = learn.test;
  const low = Math.min(bicubic - 0.3, Math.max(bicubic - 6, ...scores.slice(-1).map(s => s[1] - 1)), ...scores.map(s => Math.max(s[1], bicubic - 8)));
  const high = Math.max(bicubic + 1, ...scores.map(s => s[1] + 0.2));
  const y = v => bottom - (bottom - top) * (Math.max(low, v) - low) / (high - low);
  draw([[0, bicubic], [last, bicubic]], y, "--muted", [4, 4]);
  draw(scores, y, "--vermilion");
  context.fillStyle = colour("--vermilion");
  context.textAlign = "left";
  context.fillText(high.toFixed(1), right + 4, top + 10);
  context.fillText(low.toFixed(1), right + 4, bottom);
  context.fillText("dB", right + 4, (top + bottom) / 2);
}

async function startLearn() {
  const truth = drawShapes(264, 264, 5), scene = splitColour(drawScene(180, 180)).y;
  learn.sheet = {truth, input: degrade(truth)};
  learn.test = {truth: scene, input: degrade(scene)};
  learn.test.bicubic = psnr(learn.test.input, scene);
  paintPlane($("c-bicubic"), learn.test.input);
  paintPlane($("c-truth"), scene);
  $("train-bug").innerHTML = Object.entries(TRAINING_BUGS).map(([id, title]) => `<option value="${id}">${title}</option>`).join("");
  const showRate = () => { $("rate-text").textContent = rateNow().toPrecision(2); };
  const defaultRate = () => { $("rate").value = DEFAULT_RATE[$("optimizer").value]; showRate(); };
  $("rate").addEventListener("input", showRate);
  $("optimizer").addEventListener("change", () => { defaultRate(); pauseTraining(); inTurn(() => restartTraining()); });
  $("init").addEventListener("change", () => { pauseTraining(); inTurn(() => restartTraining()); });
  $("restart").addEventListener("click", () => { pauseTraining(); learn.seed++; inTurn(() => restartTraining()); });
  $("train").addEventListener("click", () => { if (learn.running) pauseTraining(); else inTurn(trainLoop); });
  $("one").addEventListener("click", () => {
    pauseTraining();
    inTurn(async () => { await trainALittle(0); await score(); paintFigures(); });
  });
  window.addEventListener("resize", () => { if (learn.restored) paintCurve(); });
  defaultRate();
  await inTurn(() => restartTraining());
}
