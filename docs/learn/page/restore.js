// Part 3: a picture of the reader's, three times as large, by the shipped model.

const SCALE = 3, MOST_PIXELS = 6e6;
const restore = {stop: false, source: null, turn: Promise.resolve()};

function modelParameters() {
  const bytes = Uint8Array.from(atob(MODEL.weights), c => c.charCodeAt(0)), values = new Float32Array(bytes.buffer), out = {};
  let at = 0;
  for (const [name, shape] of MODEL.parameters) {
    out[name] = {shape, data: values.slice(at, at + sizeOf(shape))};
    at += sizeOf(shape);
  }
  return out;
}

// {width, height, data} of RGBA bytes -> the restored and the bicubic picture; null if stopped.
async function restorePicture(picture, engineName, progress) {
  const large = resizeColour(splitColour(picture), SCALE), engine = await makeEngine(engineName);
  try {
    const y = await new Network(engine, modelParameters()).predict(large.y, progress);
    return y && {bicubic: joinColour(large), restored: joinColour({...large, y}), planes: {bicubic: large.y, restored: y}};
  } finally {
    engine.destroy?.();
  }
}

function shrinkPicture({width, height, data}) {
  const W = width - width % SCALE, H = height - height % SCALE, cropped = new Uint8ClampedArray(4 * H * W);
  for (let i = 0; i < H; i++) cropped.set(data.subarray(4 * i * width, 4 * (i * width + W)), 4 * i * W);
  const truth = splitColour({width: W, height: H, data: cropped});
  return {small: joinColour(resizeColour(truth, 1 / SCALE)), truth: truth.y};
}

// A new request stops the one that runs, and waits until it has stopped.
function askRestore() {
  restore.stop = true;
  restore.turn = restore.turn.then(runRestore);
  return restore.turn;
}

async function runRestore() {
  let picture = restore.source, truth = null;
  if ($("shrink").checked) {
    if (picture.width < 24 || picture.height < 24) return say(`The picture has ${picture.width} × ${picture.height} pixels, want at least 24 × 24 to shrink it.`);
    ({small: picture, truth} = shrinkPicture(picture));
  }
  const pixels = picture.width * picture.height * SCALE * SCALE;
  if (pixels > MOST_PIXELS)
    return say(`The result would have ${(pixels / 1e6).toFixed(1)} million pixels, want at most ${MOST_PIXELS / 1e6}: take a smaller picture, or use minisrcnn upscale.`);
  restore.stop = false;
  $("stop").disabled = false;
  const start = performance.now(), name = chosenEngine();
  let painted = start;
  const result = await restorePicture(picture, name, async done => {
    $("progress").value = done;
    if (performance.now() - painted > 30) { await nextFrame(); painted = performance.now(); }
    return !restore.stop;
  }).catch(error => { say(`It failed: ${error.message}`); });
  $("stop").disabled = true;
  if (result === null) say("Stopped.");
  if (!result) return;
  const seconds = (performance.now() - start) / 1000, {restored, bicubic, planes} = result;
  for (const [id, image] of [["r-net", restored], ["r-bicubic", bicubic]]) {
    $(id).width = image.width;
    $(id).height = image.height;
    $(id).getContext("2d").putImageData(image, 0, 0);
  }
  $("save").disabled = false;
  layoutStage();
  let text = `${picture.width} × ${picture.height} became ${restored.width} × ${restored.height} in ${seconds.toFixed(2)} s with ${ENGINES[name].label}.`;
  if (truth) {
    const [a, b] = [psnr(planes.bicubic, truth), psnr(planes.restored, truth)];
    text += ` Against the truth: bicubic ${a.toFixed(2)} dB, restored ${b.toFixed(2)} dB (${b < a ? "−" : "+"}${Math.abs(b - a).toFixed(2)}).`;
  }
  say(text);
}

const say = text => { $("restore-text").textContent = text; };

function layoutStage() {
  const canvas = $("r-net"), zoom = $("zoom").value, ratio = window.devicePixelRatio || 1;
  const most = $("compare").clientWidth;
  const width = zoom === "fit" ? Math.min(most, Math.max(canvas.width, 720)) : canvas.width * Number(zoom) / ratio;
  $("stage").style.width = `${width}px`;
  $("stage").style.aspectRatio = `${canvas.width} / ${canvas.height}`;
  $("stage").style.setProperty("--split", `${$("split").value}%`);
}

async function pictureFromFile(file) {
  const bitmap = await createImageBitmap(file, {premultiplyAlpha: "none"});
  const {width, height} = bitmap;
  if (width * height > 40e6) throw new Error(`it has ${(width * height / 1e6).toFixed(0)} million pixels, want at most 40`);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

async function takeFile(file) {
  if (!file) return;
  try {
    restore.source = await pictureFromFile(file);
  } catch (error) {
    return say(`${file.name} can't be read as a picture (${error.message}).`);
  }
  await askRestore();
}

function startRestore() {
  $("model-name").textContent = MODEL.name;
  $("file").addEventListener("change", () => takeFile($("file").files[0]));
  $("drawn").addEventListener("click", () => {
    restore.source = drawScene(288, 432);
    askRestore();
  });
  $("shrink").addEventListener("change", askRestore);
  $("stop").addEventListener("click", () => { restore.stop = true; });
  $("split").addEventListener("input", layoutStage);
  $("zoom").addEventListener("change", layoutStage);
  window.addEventListener("resize", layoutStage);
  $("save").addEventListener("click", () => $("r-net").toBlob(blob => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "restored.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }));
  const stage = $("stage");
  const follow = event => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    $("split").value = 100 * (event.clientX - box.left) / box.width;
    layoutStage();
  };
  stage.addEventListener("pointerdown", follow);
  stage.addEventListener("pointermove", follow);
  const section = $("restore");
  section.addEventListener("dragover", event => event.preventDefault());
  section.addEventListener("drop", event => { event.preventDefault(); takeFile(event.dataTransfer.files[0]); });
  restore.source = drawScene(288, 432);
}
