// Part 1: one image, one filter, one channel, in float64. A number is `scale` times a sum of terms plus
// `start`; a term is a product of one or two cells. The same lists of terms compute the numbers,
// light the cells up and write the equation, so these cannot disagree.

const H = 6, W = 6, KH = 3, KW = 3, OH = H - KH + 1, OW = W - KW + 1, M = OH * OW;

const START = {
  x: [[1, 2, 0, 1, 3, 1], [0, 5, 6, 7, 2, 0], [2, 6, 9, 8, 3, 1], [1, 4, 8, 5, 1, 0], [0, 3, 4, 2, 0, 2], [1, 0, 1, 0, 2, 4]],
  w: [[1, 0, -1], [2, 1, -2], [0, 1, -1]],
  b: [[1]],
  t: [[-4, 3, 9, 6], [-6, 2, 12, 8], [-9, 5, 14, 4], [-4, 8, 8, 1]],
};

// Where a bug leads: the terms it sums instead. `mutant` is its name in tests/mutants.py, `says` what
// minisrcnn.gradcheck calls it.
const BUGS = [
  {id: "none", title: "none"},
  {id: "dx-not-flipped", of: "dx", title: "dx: kernel not flipped", mutant: "dx, kernel not flipped", says: "kernel flipped",
    code: "dx[n, c, p, q] += dy[n, f, p - u, q - v] * w[f, c, KH - 1 - u, KW - 1 - v]",
    why: "Each dy meets the tap opposite to the one it came through. With dy all ones, some of the wrong numbers look right: choose that loss and count."},
  {id: "dx-swapped", of: "dx", title: "dx: rows and columns of the kernel swapped", mutant: "dx, H and W of the kernel swapped", says: "H and W swapped",
    code: "dx[n, c, p, q] += dy[n, f, p - u, q - v] * w[f, c, v, u]",
    why: "Square kernels give no error of shapes, so nothing but a check of the numbers finds it."},
  {id: "dx-border", of: "dx", title: "dx: the border forgotten", mutant: "dx, the border forgotten", says: "entries left out",
    code: "if 1 <= p < H - 1 and 1 <= q < W - 1:  # and nothing for the border",
    why: "The outermost pixels are seen by few outputs, but they are seen."},
  {id: "dx-overwrites", of: "dx", title: "dx: scatter overwrites instead of adding", mutant: "dx, scatter overwrites instead of adding", says: "entries left out",
    code: "dx[n, c, i:i+KH, j:j+KW] = dy[n, f, i, j] * w[f, c]  # '=' instead of '+='",
    why: "Only the last output to write survives: one term of each sum is left."},
  {id: "dw-flipped", of: "dw", title: "dw: kernel flipped", mutant: "dw, kernel flipped", says: "kernel flipped",
    code: "dw[f, c, u, v] += dy[n, f, i, j] * x[n, c, i + KH - 1 - u, j + KW - 1 - v]",
    why: "The flip belongs to dx. In dw, x is read in the direction of the forward pass."},
  {id: "dw-swapped", of: "dw", title: "dw: rows and columns swapped", mutant: "dw, H and W swapped", says: "H and W swapped",
    code: "dw[f, c, u, v] += dy[n, f, i, j] * x[n, c, i + v, j + u]",
    why: "The diagonal is right, the rest is mirrored: a check of one lucky entry passes."},
  {id: "dw-last-row", of: "dw", title: "dw: the last row of dy left out", mutant: "dw, the last row of dy left out", says: "index 3 of axis 2 of dy is left out",
    code: "for i in range(OH - 1):",
    why: "The usual off-by-one error: each sum has lost four of its 16 terms, and nothing looks strange."},
  {id: "dw-row-up", of: "dw", title: "dw: one row off", mutant: "dw, one row up", says: "shifted: right if rolled by -1 along axis 2",
    code: "dw[f, c, (u + 1) % KH, v] += dy[n, f, i, j] * x[n, c, i + u, j + v]",
    why: "All numbers are there, each in its neighbour's place."},
  {id: "dw-accumulated", of: "dw", title: "dw: added to the one before", mutant: "dw, accumulated", says: "accumulated instead of overwritten",
    code: "self.dw += ...  # never set to zero: this is the second call",
    why: "The first call is right, the second twice as large. A check that calls backward once cannot see it."},
  {id: "db-mean", of: "db", title: "db: mean over the pixels", mutant: "db, mean over the pixels", says: "a factor P",
    code: "db[f] = dy[:, f].mean()",
    why: "The bias is added to every output, so its gradient is the sum."},
  {id: "db-zero", of: "db", title: "db: forgotten, zero", mutant: "db, zero", says: "zero everywhere",
    code: "db = np.zeros(F)",
    why: "The weights' gradients are right, so the loss still falls; the bias stays where it began."},
  {id: "relu-missing", of: "dy", relu: true, title: "ReLU: mask missing", mutant: "relu, mask missing", says: "mask missing",
    code: "dx[k] = dy[k]",
    why: "Where ReLU was off, the loss does not move, but this gradient says that it does."},
  {id: "relu-inverted", of: "dy", relu: true, title: "ReLU: mask inverted", mutant: "relu, mask inverted", says: "mask inverted",
    code: "dx[k] = dy[k] if y[k].real <= 0 else 0",
    why: "It lets through what it should stop, and stops the rest."},
  {id: "mse-factor", of: "dy", loss: "mse", title: "loss: no factor 2", mutant: "mse, no factor 2", says: "a factor 2 is missing",
    code: "dy[k] = (y[k] - t[k]) / M",
    why: "Every gradient behind it is half as large: it looks like another learning rate."},
  {id: "mse-sign", of: "dy", loss: "mse", title: "loss: t − y instead of y − t", mutant: "mse, t - y", says: "sign wrong",
    code: "dy[k] = 2 * (t[k] - y[k]) / M",
    why: "Descent becomes ascent. Train with it in part 2."},
];

const lab = {
  values: structuredClone(START), bug: "none", loss: "mse", relu: false, h: 1e-3,
  pinned: {grid: "y", i: 1, j: 2}, shown: null, step: null, cells: {}, out: {}, numeric: {}, wrong: {},
};

// --- the sums ----------------------------------------------------------------------------------------

const cell = (grid, i, j) => ({grid, i, j});
const range = n => [...Array(n).keys()];
const grid2 = (rows, columns, f) => range(rows).map(i => range(columns).map(j => f(i, j)));
const bugIs = id => lab.bug === id;

// The sum behind one number: {start, scale, terms: [[cell, cell?]...], outside: terms that are not there}.
const SUMS = {
  y(i, j) {
    return {start: cell("b", 0, 0), scale: 1,
      terms: grid2(KH, KW, (u, v) => [cell("x", i + u, j + v), cell("w", u, v)]).flat()};
  },
  dy(i, j) {
    if (lab.loss === "sum") return {scale: 1, terms: [], constant: masked(i, j) ? 0 : 1};
    const scale = (bugIs("mse-factor") ? 1 : bugIs("mse-sign") ? -2 : 2) / M;
    return {scale: masked(i, j) ? 0 : scale, terms: [[cell("y", i, j)], [cell("t", i, j)]], signs: [1, -1]};
  },
  dx(p, q) {
    let terms = grid2(KH, KW, (u, v) => {
      const tap = bugIs("dx-not-flipped") ? cell("w", KH - 1 - u, KW - 1 - v)
        : bugIs("dx-swapped") ? cell("w", v, u) : cell("w", u, v);
      return [cell("dy", p - u, q - v), tap];
    }).flat();
    const there = ([{i, j}]) => i >= 0 && i < OH && j >= 0 && j < OW;
    let lost = () => false;
    if (bugIs("dx-border") && (p === 0 || p === H - 1 || q === 0 || q === W - 1)) lost = () => true;
    if (bugIs("dx-overwrites")) {
      const last = terms.find(there);  // the smallest tap is the output that writes last
      lost = term => term !== last;
    }
    terms = terms.map(term => Object.assign(term, {outside: !there(term), lost: there(term) && lost(term)}));
    return {scale: 1, terms};
  },
  dw(u, v) {
    let [a, b] = [u, v];
    if (bugIs("dw-flipped")) [a, b] = [KH - 1 - u, KW - 1 - v];
    if (bugIs("dw-swapped")) [a, b] = [v, u];
    if (bugIs("dw-row-up")) a = (u + KH - 1) % KH;
    return {scale: bugIs("dw-accumulated") ? 2 : 1, terms: grid2(OH, OW, (i, j) =>
      Object.assign([cell("dy", i, j), cell("x", i + a, j + b)], {lost: bugIs("dw-last-row") && i === OH - 1})).flat()};
  },
  db() {
    return {scale: bugIs("db-mean") ? 1 / M : bugIs("db-zero") ? 0 : 1, terms: grid2(OH, OW, (i, j) => [cell("dy", i, j)]).flat()};
  },
};

// Whether ReLU's backward stops this entry; `y` is the output of the convolution.
function masked(i, j) {
  if (!lab.relu || bugIs("relu-missing")) return false;
  return (lab.out.y[i][j] <= 0) !== bugIs("relu-inverted");
}

function valueOf({grid, i, j}) {
  if (grid === "y" && lab.useRelu) return Math.max(0, lab.out.y[i][j]);
  return (lab.values[grid] ?? lab.out[grid])[i]?.[j] ?? 0;
}

// In the loss the output is what ReLU lets through; in the forward sum it is the convolution's own.
function evaluate(grid, i, j, upTo = Infinity) {
  const sum = SUMS[grid](i, j);
  lab.useRelu = grid === "dy" && lab.relu;
  let total = sum.constant ?? (sum.start ? valueOf(sum.start) : 0);
  sum.terms.forEach((term, k) => {
    if (k < upTo && !term.outside && !term.lost)
      total += (sum.signs?.[k] ?? 1) * term.reduce((product, c) => product * valueOf(c), 1);
  });
  lab.useRelu = false;
  return total * sum.scale + 0;
}

function forward(values) {
  return grid2(OH, OW, (i, j) => {
    let sum = values.b[0][0];
    for (let u = 0; u < KH; u++) for (let v = 0; v < KW; v++) sum += values.x[i + u][j + v] * values.w[u][v];
    return sum;
  });
}

function lossOf(y, t) {
  let sum = 0;
  for (let i = 0; i < OH; i++)
    for (let j = 0; j < OW; j++) {
      const a = lab.relu ? Math.max(0, y[i][j]) : y[i][j];
      sum += lab.loss === "mse" ? (a - t[i][j]) ** 2 / M : a;
    }
  return sum;
}

// The derivative of the loss by one cell, from two evaluations. `kink` if a ReLU switches between them.
function finiteDifference(name, i, j, h) {
  const values = structuredClone(lab.values);
  const at = move => {
    if (name === "y") {
      const y = structuredClone(lab.out.y);
      y[i][j] += move;
      return y;
    }
    values[name][i][j] = lab.values[name][i][j] + move;
    return forward(values);
  };
  const [up, down] = [at(h), at(-h)];
  const kink = lab.relu && up.flat().some((v, k) => (v > 0) !== (down.flat()[k] > 0));
  return {value: (lossOf(up, lab.values.t) - lossOf(down, lab.values.t)) / (2 * h), kink};
}

const GRADIENT_OF = {dx: "x", dw: "w", db: "b", dy: "y"};
const SHAPES = {x: [H, W], w: [KH, KW], b: [1, 1], t: [OH, OW], y: [OH, OW], dx: [H, W], dw: [KH, KW], db: [1, 1], dy: [OH, OW]};

function computeLab() {
  lab.out = {y: forward(lab.values)};
  for (const g of ["dy", "dx", "dw", "db"]) lab.out[g] = grid2(...SHAPES[g], (i, j) => evaluate(g, i, j));
  lab.lossValue = lossOf(lab.out.y, lab.values.t);
  for (const [g, of] of Object.entries(GRADIENT_OF)) {
    lab.numeric[g] = grid2(...SHAPES[g], (i, j) => finiteDifference(of, i, j, 2 ** -10));
    const size = Math.max(1, ...lab.numeric[g].flat().map(n => Math.abs(n.value)));
    lab.wrong[g] = grid2(...SHAPES[g], (i, j) => {
      const {value, kink} = lab.numeric[g][i][j];
      return !kink && !(Math.abs(lab.out[g][i][j] - value) < 1e-7 * size);
    });
  }
}

// --- drawing -----------------------------------------------------------------------------------------

const $ = id => document.getElementById(id);

function shortNumber(v, digits = 3) {
  if (!Number.isFinite(v)) return String(v);
  const rounded = Number(v.toFixed(digits));
  if (rounded === 0 && v !== 0 && Math.abs(v) >= 1e-12) return (v < 0 ? "−" : "") + "0." + "0".repeat(digits - 1) + "…";
  return String(rounded + 0).replace("-", "−");
}
const cellNumber = v => shortNumber(v, Math.abs(v) >= 100 ? 0 : Math.abs(v) >= 10 ? 1 : 2);
const longNumber = v => Number.isFinite(v) ? (Math.abs(v) < 1e-6 && v !== 0 ? v.toExponential(2) : String(+v.toPrecision(10))).replace(/-/g, "−") : String(v);
const nameOf = ({grid, i, j}) => grid === "b" || grid === "db" ? grid : `${grid}[${i},${j}]`.replace(/-/g, "−");

const TITLES = {
  x: ["image", "x", "6×6"], w: ["kernel", "w", "3×3"], b: ["bias", "b", ""], y: ["output", "y", "4×4"], t: ["target", "t", "4×4"],
  dx: ["gradient of x", "dx", ""], dw: ["gradient of w", "dw", ""], db: ["gradient of b", "db", ""], dy: ["gradient of y", "dy", ""],
};
const AREAS = [["x"], ["w", "b"], ["y", "t"], ["dx"], ["dw", "db"], ["dy"]];

function buildBoard() {
  for (const names of AREAS) {
    const area = document.createElement("div");
    area.className = "area area-" + names[0];
    for (const name of names) {
      const [rows, columns] = SHAPES[name], ring = name === "dy" ? KH - 1 : 0, [title, symbol, size] = TITLES[name];
      const figure = document.createElement("figure");
      figure.className = "grid grid-" + name;
      figure.innerHTML = `<figcaption><b>${symbol}</b> <span>${title}${size ? " " + size : ""}</span></figcaption>`;
      const table = document.createElement("div");
      table.setAttribute("role", "grid");
      table.setAttribute("aria-label", `${symbol}, ${title}, ${rows} rows, ${columns} columns`);
      table.style.setProperty("--columns", columns + 2 * ring);
      lab.cells[name] = {};
      for (let i = -ring; i < rows + ring; i++) {
        const row = document.createElement("div");
        row.setAttribute("role", "row");
        for (let j = -ring; j < columns + ring; j++) {
          const outside = i < 0 || j < 0 || i >= rows || j >= columns;
          const element = document.createElement(outside ? "span" : "button");
          element.className = outside ? "cell ring" : "cell";
          element.innerHTML = "<i></i><b></b>";
          if (outside) element.setAttribute("aria-hidden", "true");
          else {
            element.type = "button";
            element.setAttribute("role", "gridcell");
            element.tabIndex = i === 0 && j === 0 ? 0 : -1;
            element.dataset.cell = `${name} ${i} ${j}`;
          }
          lab.cells[name][`${i} ${j}`] = element;
          row.append(element);
        }
        table.append(row);
      }
      figure.append(table);
      area.append(figure);
    }
    $("board").append(area);
  }
}

// A pixel or weight is shown by the sum of its gradient, everything else by its own.
const sumOf = ({grid, i, j}) => ({grid: {x: "dx", w: "dw", b: "db", t: "dy"}[grid] ?? grid, i, j});

const SYMBOLS = {
  y: "<mrow><msub><mi>y</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo><mi>b</mi><mo>+</mo><munder><mo>∑</mo><mrow><mi>u</mi><mo>,</mo><mi>v</mi></mrow></munder><msub><mi>x</mi><mrow><mi>i</mi><mo>+</mo><mi>u</mi><mo>,</mo><mi>j</mi><mo>+</mo><mi>v</mi></mrow></msub><msub><mi>w</mi><mrow><mi>u</mi><mi>v</mi></mrow></msub></mrow>",
  dx: "<mrow><msub><mi>dx</mi><mrow><mi>p</mi><mi>q</mi></mrow></msub><mo>=</mo><munder><mo>∑</mo><mrow><mi>u</mi><mo>,</mo><mi>v</mi></mrow></munder><msub><mi>dy</mi><mrow><mi>p</mi><mo>−</mo><mi>u</mi><mo>,</mo><mi>q</mi><mo>−</mo><mi>v</mi></mrow></msub><msub><mi>w</mi><mrow><mi>u</mi><mi>v</mi></mrow></msub></mrow>",
  dw: "<mrow><msub><mi>dw</mi><mrow><mi>u</mi><mi>v</mi></mrow></msub><mo>=</mo><munder><mo>∑</mo><mrow><mi>i</mi><mo>,</mo><mi>j</mi></mrow></munder><msub><mi>dy</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><msub><mi>x</mi><mrow><mi>i</mi><mo>+</mo><mi>u</mi><mo>,</mo><mi>j</mi><mo>+</mo><mi>v</mi></mrow></msub></mrow>",
  db: "<mrow><mi>db</mi><mo>=</mo><munder><mo>∑</mo><mrow><mi>i</mi><mo>,</mo><mi>j</mi></mrow></munder><msub><mi>dy</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub></mrow>",
  dy: "<mrow><msub><mi>dy</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo><mfrac><mn>2</mn><mi>M</mi></mfrac><mo>(</mo><msub><mi>y</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>−</mo><msub><mi>t</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>)</mo></mrow>",
};
const SAYS = {
  y: "Output: lay the kernel on the image, multiply, add up.",
  dx: "One pixel is seen by up to nine outputs, by each through another tap. Where the output lies further up-left, the tap lies further down-right: the kernel is flipped.",
  dw: "One weight takes part in all 16 outputs, each time with the pixel that lies (u, v) further on.",
  db: "The bias is in every output, once.",
  ones: "Where the loss is the sum of the outputs, each output moves it by as much as it moves itself.",
  relu: "The loss sees y through ReLU: 0 where y is not above 0, and there nothing comes back.",
  dy: "How the loss moves with one output: M = 16 outputs share the mean.",
};

function sayAbout(grid, sum) {
  if (grid === "dy" && lab.loss === "sum") return SAYS.ones;
  if (grid === "dy" && lab.relu) return SAYS.relu;
  const outside = sum.terms.filter(term => term.outside).length;
  if (outside) return `Near the border fewer outputs see the pixel: ${outside} of the nine would lie outside y, so ${9 - outside === 1 ? "one term is" : `${9 - outside} terms are`} left.`;
  return SAYS[grid];
}

function showSum() {
  const shown = lab.shown ?? lab.pinned, target = sumOf(shown), {grid, i, j} = target, sum = SUMS[grid](i, j);
  const count = sum.terms.length, step = lab.shown ? count : Math.min(lab.step ?? count, count), running = step < count;
  for (const cells of Object.values(lab.cells))
    for (const element of Object.values(cells)) {
      element.classList.remove("factor", "waiting", "current", "result", "lost", "pin", "frame");
      element.firstChild.textContent = "";
    }
  sum.terms.forEach((term, k) => {
    for (const c of term) {
      const element = lab.cells[c.grid]?.[`${c.i} ${c.j}`];
      if (!element) continue;
      element.classList.add(k < step ? "factor" : "waiting");
      if (term.lost) element.classList.add("lost");
      if (running && k === step - 1) element.classList.add("current");
      element.firstChild.textContent = k + 1;
    }
  });
  if (sum.start) lab.cells.b["0 0"].classList.add("factor");
  lab.cells[grid][`${i} ${j}`].classList.add("result");
  const own = GRADIENT_OF[grid];
  if (own && own !== "y") lab.cells[own][`${i} ${j}`].classList.add("result");
  lab.cells[shown.grid][`${shown.i} ${shown.j}`].classList.add("pin");

  // the equation, in symbols and in numbers
  const total = evaluate(grid, i, j, step);
  $("sum-name").innerHTML = `<code>${nameOf(target)}</code> = <strong>${shortNumber(total, 4)}</strong>${running ? ` <small>after ${step} of ${count} terms</small>` : ""}`;
  let symbols = SYMBOLS[grid];
  if (grid === "dy" && lab.loss === "sum") symbols = "<mrow><msub><mi>dy</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo><mn>1</mn></mrow>";
  if (grid === "dy" && lab.relu) symbols = symbols.replace(/<\/mrow>$/, "<mo>·</mo><mo>[</mo><msub><mi>y</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>&gt;</mo><mn>0</mn><mo>]</mo></mrow>");
  $("equation").innerHTML = `<math display="block">${symbols}</math><p>${sayAbout(grid, sum)}</p>`;
  lab.useRelu = grid === "dy" && lab.relu;
  const items = [];
  if (sum.start) items.push(`<li class="start">b <span>${shortNumber(valueOf(sum.start))}</span></li>`);
  sum.terms.forEach((term, k) => {
    const bracketed = v => v < 0 ? `(${shortNumber(v)})` : shortNumber(v);
    const sign = sum.signs?.[k] === -1 ? "− " : "", [first, second] = term.map(valueOf);
    const numbers = (sign ? sign + bracketed(first) : shortNumber(first)) + (term.length > 1 ? " · " + bracketed(second) : "");
    const names = term.map(nameOf).join(" · ");
    const classes = [k < step ? "" : "waiting", running && k === step - 1 ? "current" : "", term.outside ? "outside" : "", term.lost ? "lost" : ""].join(" ");
    items.push(`<li class="${classes}"><button type="button" tabindex="-1" data-term="${k + 1}" title="${names}${term.outside ? ": outside dy, no such term" : term.lost ? ": left out by the bug" : ""}"><i>${k + 1}</i> ${numbers}</button></li>`);
  });
  if (sum.scale !== 1) items.push(`<li class="start">all times ${shortNumber(sum.scale)}${grid === "dy" && sum.scale === 2 / M ? " = 2 / M" : grid === "dy" && sum.scale === 0 ? ", for y is not above 0" : ""}</li>`);
  if (sum.constant !== undefined) items.push(`<li class="start">L = sum of y: <span>${sum.constant}</span></li>`);
  lab.useRelu = false;
  $("terms").innerHTML = items.join("");
  $("terms").className = "terms " + ({9: "nine", 16: "sixteen"}[count] ?? "");
  $("step").max = count;
  $("step").value = step;
  $("step").disabled = $("back").disabled = $("next").disabled = $("play").disabled = count === 0;
  $("step-text").textContent = `${step} / ${count}`;
  $("step").setAttribute("aria-valuetext", `${step} of ${count} terms, ${shortNumber(total)}`);

  showConcrete(target, sum, step, running);
  showEditor(shown);
  showDerivative(target);
  showOverlay(grid, i, j);
  showCode(grid);
  drawWires(running ? sum.terms[step - 1] : null, target);
}

// The term that was added last, with its indices and its numbers; of a finished sum only the result.
function showConcrete(target, sum, step, running) {
  if (!running) {
    $("concrete").textContent = sum.terms.length ? `all ${sum.terms.length} terms: ${nameOf(target)} = ${shortNumber(evaluate(target.grid, target.i, target.j), 4)}` : "";
    return;
  }
  const term = sum.terms[step - 1];
  lab.useRelu = target.grid === "dy" && lab.relu;
  const factors = term?.map(valueOf) ?? [];
  lab.useRelu = false;
  const product = factors.reduce((a, b) => a * b, 1), left = nameOf(target);
  const words = !term ? (sum.start ? `${left} = b` : `${left} = 0`)
    : term.outside ? `${term.map(nameOf).join(" · ")}: outside dy, there is no such output`
    : term.lost ? `${term.map(nameOf).join(" · ")}: left out by the bug`
    : `${sum.signs?.[step - 1] === -1 ? "−" : "+"} ${term.map(nameOf).join(" · ")}` +
      (factors.length > 1 ? ` = ${factors.map(v => shortNumber(v)).join(" · ")}` : "") + ` = ${shortNumber(product, 4)}`;
  $("concrete").textContent = `${step ? "term " + step : "before the terms"}: ${words}`;
}

function showEditor(shown) {
  const editable = shown.grid in lab.values;
  $("editor").hidden = !editable;
  if (!editable) return;
  $("edit-name").textContent = nameOf(shown);
  if (document.activeElement !== $("edit")) $("edit").value = lab.values[shown.grid][shown.i][shown.j];
}

function showDerivative({grid, i, j}) {
  const g = grid === "y" ? "dy" : grid, of = GRADIENT_OF[g], {value, kink} = finiteDifference(of, i, j, lab.h);
  const analytic = lab.out[g][i][j], difference = analytic - value;
  $("analytic-name").textContent = `${nameOf({grid: g, i, j})}, by the sum`;
  $("analytic").textContent = longNumber(analytic);
  $("numeric").textContent = longNumber(value);
  const state = kink ? "a ReLU switches between −h and +h: no derivative to compare with"
    : lab.wrong[g][i][j] ? "they differ: the gradient is wrong"
    : Math.abs(difference) <= 1e-6 * Math.max(1, Math.abs(value)) ? "they agree"
    : "rounding: h is too small for the digits of L";
  $("difference").innerHTML = `${longNumber(difference)} <em class="${lab.wrong[g][i][j] && !kink ? "bad" : "good"}">${state}</em>`;
  const exponent = Math.round(Math.log10(lab.h));
  $("h-text").innerHTML = exponent === 0 ? "1" : `10<sup>${String(exponent).replace("-", "−")}</sup>`;
}

// The kernel laid over the other factor: straight over x, rotated by 180 degrees over dy. Nine
// [number of the term, tap], row by row.
function tapsInPlace(grid, i, j) {
  const places = [];
  SUMS[grid](i, j).terms.forEach(([other, tap], k) => {
    const [row, column] = grid === "dx" ? [other.i - i + KH - 1, other.j - j + KW - 1] : [other.i - i, other.j - j];
    places[row * KW + column] = [k + 1, tap];
  });
  return places;
}
const miniature = places => places.map(([k, tap]) => `<span><i>${k}</i>${shortNumber(valueOf(tap), 2)}</span>`).join("");

function showOverlay(grid, i, j) {
  $("overlay").hidden = grid !== "y" && grid !== "dx";
  if ($("overlay").hidden) return;
  const flipped = grid === "dx", places = tapsInPlace(grid, i, j), {bug} = lab;
  lab.bug = "none";
  const right = tapsInPlace(grid, i, j);
  lab.bug = bug;
  const wrong = places.some(([, tap], k) => !sameCell(tap, right[k][1]));
  $("overlay-name").textContent = `w laid over ${flipped ? "dy" : "x"}`;
  $("overlay-text").textContent = !flipped ? "Straight: tap (0, 0) is at the top left."
    : wrong ? "Left: with the bug. Right: correct, rotated by 180°."
    : "Rotated by 180°: the last tap comes first. This is the flipped kernel of the textbooks; it is nothing but the minus in p − u.";
  $("mini").innerHTML = miniature(places);
  $("mini").classList.toggle("bad", wrong);
  $("mini-right").hidden = !wrong;
  $("mini-right").innerHTML = miniature(right);
  const turned = String(flipped && !wrong);
  if ($("mini").dataset.turned !== turned) {
    $("mini").dataset.turned = turned;
    $("mini").classList.remove("turning");
    if (turned === "true") { void $("mini").offsetWidth; $("mini").classList.add("turning"); }
  }
}

const CODE_OF = {y: "conv2d_forward", dx: "conv2d_backward_input", dw: "conv2d_backward_weight", db: "conv2d_backward_bias", dy: "mse"};
const escapeHtml = text => text.replace(/[&<>]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;"})[c]);

function showCode(grid) {
  const bug = BUGS.find(b => b.id === lab.bug), reluCode = grid === "dy" && bug.relu;
  const name = reluCode ? "relu_backward" : CODE_OF[grid], lines = CODE[name];
  $("code-name").textContent = name;
  const here = bug.of === grid;
  $("code").innerHTML = lines.map(({text, hot}) => {
    const line = escapeHtml(text);
    const wrong = here && hot ? `<span class="hot wrong">${/^ */.exec(text)[0]}${escapeHtml(bug.code)}</span>` : "";
    return `<span class="${hot ? here ? "hot right" : "hot" : ""}">${line}</span>${wrong}`;
  }).join("");
  const sumLine = lines.filter(line => line.hot).map(line => line.text.trim()).join(" ");
  $("line").innerHTML = here ? `<span class="wrong">${escapeHtml(bug.code)}</span>` : escapeHtml(sumLine);
  $("bug-text").hidden = !bug.of;
  if (bug.of)
    $("bug-text").innerHTML = `<strong>${bug.title}.</strong> ${bug.why}` + (bug.says ? ` The checker says: <q>${bug.says}</q>.` : " The checker has no name for it, but finds it.");
}

function drawWires(term, target) {
  const board = $("board").getBoundingClientRect();
  const centre = c => {
    const box = lab.cells[c.grid]?.[`${c.i} ${c.j}`]?.getBoundingClientRect();
    return box && [box.left + box.width / 2 - board.left, box.top + box.height / 2 - board.top];
  };
  const put = (id, from, to) => {
    const line = $(id);
    line.style.display = from && to ? "" : "none";
    if (from && to) [["x1", from[0]], ["y1", from[1]], ["x2", to[0]], ["y2", to[1]]].forEach(([k, v]) => line.setAttribute(k, v));
  };
  const a = term && centre(term[0]), b = term && (term[1] ? centre(term[1]) : centre(target));
  put("wire-a", a, b);
  put("wire-b", term?.[1] ? b : null, centre(target));
}

function paintLab() {
  computeLab();
  const strongest = {};
  for (const name of Object.keys(SHAPES))
    strongest[name] = Math.max(1e-9, ...(lab.values[name] ?? lab.out[name]).flat().map(Math.abs));
  strongest.y = strongest.t = Math.max(strongest.y, strongest.t);
  for (const [name, [rows, columns]] of Object.entries(SHAPES))
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++) {
        const element = lab.cells[name][`${i} ${j}`], v = (lab.values[name] ?? lab.out[name])[i][j];
        element.lastChild.textContent = cellNumber(v);
        element.style.setProperty("--heat", (Math.abs(v) / strongest[name] * 60).toFixed(0) + "%");
        element.classList.toggle("negative", v < 0);
        const wrong = lab.wrong[name]?.[i][j] ?? false, off = lab.relu && (name === "y" || name === "dy") && lab.out.y[i][j] <= 0;
        element.classList.toggle("wrong", wrong);
        element.classList.toggle("off", off);
        element.setAttribute("aria-label", `${nameOf({grid: name, i, j})} ${shortNumber(v)}${wrong ? ", differs from its finite difference" : ""}${off ? ", ReLU is off" : ""}`);
      }
  for (const element of document.querySelectorAll(".ring")) element.lastChild.textContent = "0";
  const bug = BUGS.find(b => b.id === lab.bug);
  const rows = Object.keys(GRADIENT_OF).reverse().map(g => {
    const wrong = lab.wrong[g].flat().filter(Boolean).length, size = lab.wrong[g].flat().length;
    const kinks = lab.numeric[g].flat().filter(n => n.kink).length;
    const [i, j] = firstWrong(g);
    return `<li class="${wrong ? "bad" : "good"}"><b>${g}</b> ${wrong ? `${wrong} of ${size} wrong <button type="button" data-go="${g} ${i} ${j}">show the worst</button>` : `all ${size} agree`}${kinks ? ` (${kinks} at a kink, not compared)` : ""}</li>`;
  });
  $("verdict").innerHTML = `<p>L = <strong>${longNumber(+lab.lossValue.toPrecision(8))}</strong>. Every gradient against its finite difference:</p><ul>${rows.join("")}</ul>` +
    (bug.of && lab.loss === "sum" ? "<p>With dy all ones a bug can hide: compare the counts with those of the other loss. That is why a check draws dy at random.</p>" : "");
  showSum();
}

function firstWrong(g) {
  let worst = [0, 0], most = -1;
  lab.wrong[g].forEach((row, i) => row.forEach((bad, j) => {
    const gap = Math.abs(lab.out[g][i][j] - lab.numeric[g][i][j].value);
    if (bad && gap > most) [worst, most] = [[i, j], gap];
  }));
  return worst;
}

// --- what the reader does ------------------------------------------------------------------------------

let playing = null;
function stopPlaying() {
  clearInterval(playing);
  playing = null;
  $("play").textContent = "Play";
}

function pin(target, speak = true) {
  if (lab.pinned.grid !== target.grid || lab.pinned.i !== target.i || lab.pinned.j !== target.j) { lab.step = null; stopPlaying(); }
  lab.pinned = target;
  lab.shown = null;
  showSum();
  if (!speak) return;
  const of = sumOf(target), sum = SUMS[of.grid](of.i, of.j);
  $("say").textContent = `${nameOf(of)} is ${shortNumber(evaluate(of.grid, of.i, of.j))}, a sum of ${sum.terms.filter(t => !t.outside && !t.lost).length} terms`;
}

function setStep(k) {
  const {grid, i, j} = sumOf(lab.pinned), count = SUMS[grid](i, j).terms.length;
  lab.shown = null;
  lab.step = Math.min(count, Math.max(0, k));
  showSum();
  $("say").textContent = `${$("concrete").textContent}; so far ${$("sum-name").querySelector("strong").textContent}`;
}
const stepNow = () => Number($("step").value);

function change(target, value) {
  if (!(target.grid in lab.values) || !Number.isFinite(value)) return;
  lab.values[target.grid][target.i][target.j] = Math.min(999, Math.max(-999, value));
  paintLab();
}
const changeBy = by => change(lab.pinned, (lab.values[lab.pinned.grid]?.[lab.pinned.i][lab.pinned.j] ?? NaN) + by);

function startLab() {
  buildBoard();
  $("bug").innerHTML = BUGS.map(b => `<option value="${b.id}">${b.title}</option>`).join("");
  const board = $("board");
  const parse = element => {
    const [grid, i, j] = element.dataset.cell.split(" ");
    return {grid, i: Number(i), j: Number(j)};
  };
  board.addEventListener("pointerover", event => {
    const element = event.target.closest("[data-cell]");
    if (event.pointerType !== "mouse" || playing !== null) return;
    const before = lab.shown;
    lab.shown = element ? parse(element) : null;
    if (lab.shown && sameCell(lab.shown, lab.pinned)) lab.shown = null;
    if (!sameCell(before, lab.shown)) showSum();
  });
  board.addEventListener("pointerleave", () => { if (lab.shown) { lab.shown = null; showSum(); } });
  board.addEventListener("focusin", event => {
    const element = event.target.closest("[data-cell]");
    if (!element) return;
    for (const other of element.closest("[role=grid]").querySelectorAll("[data-cell]")) other.tabIndex = other === element ? 0 : -1;
    pin(parse(element));
  });
  board.addEventListener("click", event => {
    const element = event.target.closest("[data-cell]");
    if (element) { element.focus(); pin(parse(element)); }
  });
  board.addEventListener("keydown", event => {
    const element = event.target.closest("[data-cell]");
    if (!element || event.ctrlKey || event.metaKey || event.altKey) return;
    const {grid, i, j} = parse(element), [rows, columns] = SHAPES[grid];
    const move = {ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
      Home: [i, 0], End: [i, columns - 1]}[event.key];
    if (move) {
      const [p, q] = [Math.min(rows - 1, Math.max(0, move[0])), Math.min(columns - 1, Math.max(0, move[1]))];
      lab.cells[grid][`${p} ${q}`].focus();
    } else if (event.key === "+" || event.key === "=") changeBy(1);
    else if (event.key === "-") changeBy(-1);
    else if (event.key === ".") setStep(lab.step === null ? 1 : stepNow() + 1);
    else if (event.key === ",") setStep(stepNow() - 1);
    else if (event.key === "Enter" && !$("editor").hidden) { $("edit").focus(); $("edit").select(); }
    else return;
    event.preventDefault();
  });
  $("terms").addEventListener("click", event => {
    const button = event.target.closest("[data-term]");
    if (button) { stopPlaying(); setStep(Number(button.dataset.term)); }
  });
  document.addEventListener("click", event => {
    const button = event.target.closest("[data-go], [data-bug]");
    if (!button) return;
    if (button.dataset.bug) {
      const [id, loss = "mse"] = button.dataset.bug.split(" ");
      lab.loss = $("loss").value = loss;
      return setBug(id);
    }
    const [grid, i, j] = button.dataset.go.split(" "), tour = button.closest(".quick");
    if (tour && lab.bug !== "none") setBug("none");
    pin({grid, i: Number(i), j: Number(j)});
  });
  $("step").addEventListener("input", () => { stopPlaying(); setStep(stepNow()); });
  $("next").addEventListener("click", () => { stopPlaying(); setStep(lab.step === null ? 1 : stepNow() + 1); });
  $("back").addEventListener("click", () => { stopPlaying(); setStep(stepNow() - 1); });
  $("play").addEventListener("click", () => {
    if (playing !== null) return stopPlaying();
    if (lab.step === null || stepNow() >= Number($("step").max)) setStep(0);
    $("play").textContent = "Pause";
    playing = setInterval(() => {
      setStep(stepNow() + 1);
      if (stepNow() >= Number($("step").max)) stopPlaying();
    }, 700);
  });
  $("edit").addEventListener("input", () => { if ($("edit").value !== "") change(lab.pinned, $("edit").valueAsNumber); });
  $("edit").addEventListener("keydown", event => {
    if (event.key === "Enter") lab.cells[lab.pinned.grid][`${lab.pinned.i} ${lab.pinned.j}`].focus();
  });
  $("plus").addEventListener("click", () => changeBy(1));
  $("minus").addEventListener("click", () => changeBy(-1));
  $("h").addEventListener("input", () => { lab.h = 10 ** Number($("h").value); showSum(); });
  $("bug").addEventListener("change", () => setBug($("bug").value));
  $("loss").addEventListener("change", () => {
    lab.loss = $("loss").value;
    const bug = BUGS.find(b => b.id === lab.bug);
    if (bug.loss && bug.loss !== lab.loss) lab.bug = $("bug").value = "none";
    paintLab();
  });
  $("relu").addEventListener("change", () => {
    lab.relu = $("relu").checked;
    if (!lab.relu && BUGS.find(b => b.id === lab.bug).relu) lab.bug = $("bug").value = "none";
    paintLab();
  });
  $("reset").addEventListener("click", () => {
    lab.values = structuredClone(START);
    lab.relu = $("relu").checked = false;
    lab.bug = $("bug").value = "none";
    lab.loss = $("loss").value = "mse";
    lab.step = null;
    stopPlaying();
    paintLab();
  });
  $("random").addEventListener("click", () => {
    const draw = (rows, columns, low, high) => grid2(rows, columns, () => Math.round(low + (high - low) * Math.random()));
    lab.values = {x: draw(H, W, 0, 9), w: draw(KH, KW, -3, 3), b: draw(1, 1, -2, 2), t: draw(OH, OW, -9, 14)};
    paintLab();
  });
  window.addEventListener("resize", () => showSum());
  paintLab();
}
const sameCell = (a, b) => a?.grid === b?.grid && a?.i === b?.i && a?.j === b?.j;

// Switch a bug on, with what it needs to be seen, and go where it differs most.
function setBug(id) {
  const bug = BUGS.find(b => b.id === id);
  lab.bug = $("bug").value = id;
  if (bug.relu) lab.relu = $("relu").checked = true;
  if (bug.loss) lab.loss = $("loss").value = bug.loss;
  lab.step = null;
  stopPlaying();
  paintLab();
  if (bug.of) {
    const [i, j] = firstWrong(bug.of);
    pin({grid: bug.of, i, j});
  }
}
