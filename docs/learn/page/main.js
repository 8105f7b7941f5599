// Part 4, the theme, and the start.

const ENGINES = {
  wasm: {label: "WebAssembly", make: () => makeWasmEngine(WASM)},
  js: {label: "JavaScript", make: async () => makeJsEngine()},
  webgpu: {label: "WebGPU", make: () => makeWebGpuEngine(WGSL)},
};
const makeEngine = name => ENGINES[name].make();
const chosenEngine = () => document.querySelector("[name=engine]:checked").value;

async function startEngines() {
  for (const [name, engine] of Object.entries(ENGINES)) {
    try {
      const made = await engine.make();
      engine.about = made.about ?? "";
      made.destroy?.();
      engine.missing = null;
    } catch (error) {
      engine.missing = error.message;
    }
  }
  const first = Object.keys(ENGINES).find(name => !ENGINES[name].missing);
  $("engine-choice").insertAdjacentHTML("beforeend", Object.entries(ENGINES).map(([name, {label, missing, about}]) =>
    `<label><input type="radio" name="engine" value="${name}"${name === first ? " checked" : ""}${missing ? " disabled" : ""}> ${label}` +
    `<small>${missing ? escapeHtml(missing) : about ? escapeHtml(about) : ""}</small></label>`).join(""));
  $("engine-choice").addEventListener("change", () => {
    showEngine();
    const again = learn.running;
    pauseTraining();
    inTurn(moveTraining);
    if (again) inTurn(trainLoop);
  });
  document.addEventListener("click", chooseEngine);
  showEngine();
}

// Parts 2 and 3 show who computes, and let the reader choose there as well.
function showEngine() {
  const chosen = chosenEngine();
  for (const id of ["learn-engine", "restore-engine"])
    $(id).innerHTML = "Computed by " + Object.entries(ENGINES).map(([name, {label, missing}]) =>
      `<button type="button" data-engine="${name}" aria-pressed="${name === chosen}"` +
      `${missing ? ` disabled title="${escapeHtml(missing)}"` : ""}>${label}</button>`).join(" ");
}

function chooseEngine(event) {
  const button = event.target.closest("[data-engine]");
  if (!button || button.dataset.engine === chosenEngine()) return;
  const radio = document.querySelector(`[name=engine][value=${button.dataset.engine}]`), line = button.parentElement;
  radio.checked = true;
  radio.dispatchEvent(new Event("change", {bubbles: true}));
  line.querySelector("[aria-pressed=true]").focus();  // the line was drawn anew
  if (line.id === "restore-engine") askRestore();
}

// --- timing: the same work for each engine, after one run to warm up ---------------------------------------

async function median(repeats, job) {
  const times = [];
  await job();
  for (let k = 0; k < repeats; k++) {
    const start = performance.now();
    await job();
    times.push(performance.now() - start);
    await nextFrame();
  }
  return times.sort((a, b) => a - b)[repeats >> 1];
}

async function timeEngines() {
  pauseTraining();
  $("time").disabled = true;
  const rows = [], {x, t} = trainingBatch(learn.sheet, randomSource(3)), values = {};
  const plane = {H: 96, W: 96, data: imresize({H: 32, W: 32, data: learn.test.truth.data.slice(0, 1024)}, 3).data};
  for (const [name, {label, missing}] of Object.entries(ENGINES)) {
    if (missing) { rows.push([label, missing]); continue; }
    $("time-text").textContent = `${label} …`;
    await nextFrame();
    const engine = await makeEngine(name);
    const small = new Network(engine, initialParameters()), large = new Network(engine, modelParameters());
    const step = await median(5, async () => {
      const mark = engine.mark();
      const loss = small.step(engine.asarray(x, [BATCH, 1, PATCH, PATCH]), engine.asarray(t, [BATCH, 1, LABEL, LABEL]),
        {optimizer: "sgd", lr: 0});
      await engine.read(loss);
      engine.release(mark);
    });
    const tile = await median(3, async () => { values[name] = (await large.predict(plane)).data; });
    const off = values.js ? Math.max(...values[name].map((v, k) => Math.abs(v - values.js[k]))) : null;
    rows.push([label, step, tile, off, name]);
    engine.destroy?.();
  }
  for (const row of rows) if (row[4]) row[3] = Math.max(...values[row[4]].map((v, k) => Math.abs(v - values.js[k])));
  const best = k => Math.min(...rows.filter(r => r[4]).map(r => r[k]));
  const number = (row, k) => `<td class="${row[k] === best(k) ? "best" : ""}">${row[k] < 10 ? row[k].toFixed(2) : row[k].toFixed(0)} ms</td>`;
  $("times").innerHTML = "<thead><tr><th>engine</th><th>a training step of part 2, 8 patches</th><th>96 × 96 pixels through the shipped model</th><th>largest difference from JavaScript</th></tr></thead><tbody>" +
    rows.map(row => row[4] ? `<tr><th>${row[0]}</th>${number(row, 1)}${number(row, 2)}<td>${row[3] === 0 ? "0" : row[3].toExponential(1)}</td></tr>`
      : `<tr><th>${row[0]}</th><td colspan="3">${escapeHtml(row[1])}</td></tr>`).join("") + "</tbody>";
  $("time-text").textContent = "Median of a few runs, including the copies to and from the engine; pixels are 0 to 1.";
  $("time").disabled = false;
}

function startTheme() {
  const put = value => {
    if (value) document.documentElement.dataset.theme = value;
    else delete document.documentElement.dataset.theme;
    if (learn.restored) paintCurve();
  };
  $("theme").addEventListener("change", () => put($("theme").value));
}

// For the tests, and for whoever opens the browser's console.
window.minisrcnn = {
  lab, START, BUGS, setBug, pin, setStep, change, computeLab, paintLab, evaluate, finiteDifference,
  ENGINES, makeEngine, Network, initialParameters, randomSource, sizeOf, modelParameters, MODEL,
  imresize, degrade, psnr, splitColour, joinColour, drawShapes, drawScene, restorePicture, shrinkPicture, learn, restore,
};

startTheme();
startLab();
window.minisrcnn.ready = (async () => {
  await startEngines();
  $("time").addEventListener("click", () => inTurn(timeEngines));
  await startLearn();
  startRestore();
  await askRestore();
  document.documentElement.dataset.ready = "yes";
})();
