"""docs/learn/gradients.html in a real browser: its numbers against ``reference``, every control, no network.

The three engines of the page (JavaScript, WebAssembly, WebGPU) are compared with the ``reference``
backend; float32 against sums in float64, hence TOLERANCE. Part 1 is float64 in the page.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from mutants import MUTANTS

from minisrcnn import SGD, SRCNN, Adam
from minisrcnn.engine.backends import reference
from minisrcnn.imaging.resize import imresize
from minisrcnn.models import find_model
from minisrcnn.upscale import upscale_image

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/learn/gradients.html"
SOURCES = ROOT / "docs/learn/page"

#: Largest error of a float32 result, relative to the largest number of the result.
TOLERANCE = 2e-6
#: Of the parameters after ten training steps.
TOLERANCE_TEN_STEPS = 2e-5

#: WebGPU without a GPU: Chromium's software renderer.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
]

ENGINES = ["js", "wasm", "webgpu"]


# --- without a browser -------------------------------------------------------------------------------


def _builder():
    spec = importlib.util.spec_from_file_location("page_build", SOURCES / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_its_sources_build():
    ziglang = pytest.importorskip(
        "ziglang", reason="ziglang compiles the page's kernels: pip install -e '.[browser]'"
    )
    builder = _builder()
    if importlib.metadata.version("ziglang") != builder.ZIGLANG:
        pytest.skip(
            f"ziglang is {importlib.metadata.version('ziglang')}, the page is built by {builder.ZIGLANG}"
        )
    assert ziglang is not None
    assert builder.build() == PAGE.read_text("utf-8"), "run: python docs/learn/page/build.py"


def test_the_page_names_no_address_and_is_small():
    text = PAGE.read_text("utf-8")
    assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]{2,}|\b(src|href)=\"(?!#|data:)", text)
    assert "connect-src" not in text and "default-src 'none'" in text
    assert len(text.encode()) < 400_000


# --- the browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by playwright."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser: pip install -e '.[browser]'"
    )
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page, and what it complained of or asked the network for."""

    def __init__(self, browser, before="", **options):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.context.add_init_script(before)
        self.page = self.context.new_page()
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(PAGE.as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=120_000)

    def hear(self, message):
        # The browser says so itself where it finds no GPU; the page then says it to the reader.
        if message.type in ("error", "warning") and message.text != "No available adapters.":
            self.complaints.append(message.text)

    def check(self):
        self.context.close()
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(("blob:", "data:"))] == [
            PAGE.as_uri()
        ]


@pytest.fixture(scope="module")
def watched(browser):
    """One desktop page for all tests that put it back as it was."""
    watched = Watched(browser, viewport={"width": 1280, "height": 900})
    yield watched
    watched.check()


@pytest.fixture
def page(watched):
    watched.page.evaluate("document.getElementById('reset').click()")
    watched.page.mouse.move(0, 0)
    return watched.page


@pytest.fixture(params=ENGINES)
def engine(request, page):
    missing = page.evaluate(f"minisrcnn.ENGINES['{request.param}'].missing")
    if missing:
        pytest.skip(f"{request.param}: {missing}")
    return request.param


# Runs one function of an engine on plain lists: [{shape, data}] -> [{shape, data}].
CALL = """async ([name, function_, tensors, numbers]) => {
  const e = await minisrcnn.makeEngine(name), args = tensors.map(t => e.asarray(t.data, t.shape));
  let out = e[function_](...args, ...numbers);
  out = Array.isArray(out) ? out : out ? [out] : args;
  const read = [];
  for (const t of out) read.push({shape: t.shape, data: [...await e.read(t)]});
  return read;
}"""


def wait(page, condition, seconds=120):
    """Poll: the page's own security policy forbids what playwright's wait_for_function does."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def tensor(a):
    return {"shape": list(a.shape), "data": a.ravel().tolist()}


def array(t):
    return np.array(t["data"], np.float32).reshape(t["shape"])


def call(page, engine, function, *tensors, numbers=()):
    out = page.evaluate(CALL, [engine, function, [tensor(a) for a in tensors], list(numbers)])
    return [array(t) for t in out]


def assert_close(got, want, tolerance=TOLERANCE):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1e-30)


# N, C, H, W, F, KH, KW: every remainder of the register tiles, and the three layers in small.
SHAPES = [
    (1, 1, 14, 15, 5, 9, 9),
    (2, 3, 9, 21, 4, 1, 1),
    (1, 4, 10, 13, 1, 5, 5),
    (2, 2, 7, 6, 3, 3, 2),
    (3, 1, 4, 4, 2, 4, 4),
    (1, 2, 5, 5, 6, 3, 3),
    (1, 1, 9, 12, 1, 2, 3),
]


@pytest.mark.parametrize(("engine", "shape"), [
    pytest.param(engine, shape, id=f"{engine}-{shape}",
                 marks=[pytest.mark.slow] if engine == "webgpu" and i > 2 else [])
    for engine in ENGINES for i, shape in enumerate(SHAPES)], indirect=["engine"])
def test_convolution(page, engine, shape):
    N, C, H, W, F, KH, KW = shape
    rng = np.random.default_rng(sum(shape))
    x, w, b, dy = (
        rng.normal(size=size).astype(np.float32)
        for size in ((N, C, H, W), (F, C, KH, KW), (F,), (N, F, H - KH + 1, W - KW + 1))
    )
    assert_close(
        call(page, engine, "conv2d_forward", x, w, b)[0], reference.conv2d_forward(x, w, b)
    )
    assert_close(
        call(page, engine, "conv2d_backward_input", dy, w)[0],
        reference.conv2d_backward_input(dy, w),
    )
    assert_close(
        call(page, engine, "conv2d_backward_weight", x, dy)[0],
        reference.conv2d_backward_weight(x, dy),
    )
    assert_close(
        call(page, engine, "conv2d_backward_bias", dy)[0], reference.conv2d_backward_bias(dy)
    )


def test_relu_and_loss(page, engine):
    rng = np.random.default_rng(1)
    y, t = (rng.normal(size=(2, 3, 5, 7)).astype(np.float32) for _ in range(2))
    y[0, 0, 0, :2] = 0, -0.0
    (got,) = call(page, engine, "relu_forward", y)
    np.testing.assert_array_equal(got, reference.relu_forward(y))
    np.testing.assert_array_equal(
        call(page, engine, "relu_backward", t, got)[0], reference.relu_backward(t, got)
    )
    loss, dy = call(page, engine, "mse", y, t)
    want, want_dy = reference.mse(y, t)
    assert loss[0] == pytest.approx(want, rel=TOLERANCE)
    assert_close(dy, want_dy)
    w = rng.normal(size=(3, 2, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(call(page, engine, "rotate", w)[0], w[:, :, ::-1, ::-1])


TRAIN = """async ([name, parameters, x, t, optimizer, lr]) => {
  const e = await minisrcnn.makeEngine(name), net = new minisrcnn.Network(e, parameters), losses = [];
  const X = e.asarray(x.data, x.shape), T = e.asarray(t.data, t.shape), out = {};
  const {grads} = net.lossAndGradients(X, T);
  const first = {};
  for (const [key, g] of Object.entries(grads)) first[key] = {shape: g.shape, data: [...await e.read(g)]};
  for (let k = 0; k < 10; k++) {
    const mark = e.mark();
    losses.push((await e.read(net.step(X, T, {optimizer, lr, lastLr: 0.1})))[0]);
    e.release(mark);
  }
  for (const [key, p] of Object.entries(await net.read())) out[key] = {shape: p.shape, data: [...p.data]};
  return {losses, first, parameters: out};
}"""


def _reference_training(optimizer, lr, x, t):
    net = SRCNN("9-1-5", (6, 4), backend="reference", seed=3, init="he")
    start = {name: tensor(value) for name, value in net.parameters.items()}
    rates = {"conv1": lr, "conv2": lr, "conv3": 0.1 * lr}
    optimizer = (
        SGD(net.parameters, rates, momentum=0.9, backend="reference")
        if optimizer == "sgd"
        else Adam(net.parameters, rates, backend="reference")
    )
    losses, first = [], None
    for _ in range(10):
        loss, grads = net.loss_and_gradients(x, t)
        first = first or {name: np.array(g) for name, g in grads.items()}
        losses.append(loss)
        optimizer.step(grads)
    return start, losses, first, net.parameters


@pytest.fixture(scope="module", params=[("sgd", 0.05), ("adam", 0.002)], ids=["sgd", "adam"])
def training(request):
    rng = np.random.default_rng(5)
    x = rng.uniform(size=(2, 1, 16, 17)).astype(np.float32)
    t = rng.uniform(size=(2, 1, 4, 5)).astype(np.float32)
    return (*request.param, x, t, *_reference_training(*request.param, x, t))


def test_ten_training_steps(page, engine, training):
    optimizer, lr, x, t, start, losses, first, parameters = training
    got = page.evaluate(TRAIN, [engine, start, tensor(x), tensor(t), optimizer, lr])
    np.testing.assert_allclose(got["losses"], losses, rtol=TOLERANCE_TEN_STEPS)
    assert losses[-1] < 0.9 * losses[0]  # ten steps of nothing would agree as well
    for name in parameters:
        assert_close(array(got["first"][name]), first[name], 5 * TOLERANCE)
        assert_close(array(got["parameters"][name]), parameters[name], TOLERANCE_TEN_STEPS)


# --- part 1 ----------------------------------------------------------------------------------------


LAB = """() => { const {lab} = minisrcnn;
  return {...lab.values, ...lab.out, loss: lab.lossValue, wrong: lab.wrong,
    numeric: Object.fromEntries(Object.entries(lab.numeric).map(([g, rows]) => [g, rows.map(r => r.map(n => n.value))]))}; }"""


def lab_state(page):
    return {
        key: value if isinstance(value, (dict, float, int)) else np.array(value, float)
        for key, value in page.evaluate(LAB).items()
    }


def nchw(a):
    return a[None, None]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("loss", ["mse", "sum"])
def test_the_small_convolution(page, relu, loss):
    for _ in range(3):
        page.click("#random")
        page.select_option("#loss", loss)
        page.set_checked("#relu", relu)
        s = lab_state(page)
        x, w, t = nchw(s["x"]), nchw(s["w"]), nchw(s["t"])
        y = reference.conv2d_forward(x, w, s["b"].ravel())
        a = reference.relu_forward(y) if relu else y
        want, da = reference.mse(a, t) if loss == "mse" else (a.sum(), np.ones_like(a))
        dy = reference.relu_backward(da, a) if relu else da
        np.testing.assert_allclose(nchw(s["y"]), y, rtol=1e-12)
        assert s["loss"] == pytest.approx(want, rel=1e-12)
        for name, value in {
            "dy": dy,
            "dx": reference.conv2d_backward_input(dy, w),
            "dw": reference.conv2d_backward_weight(x, dy),
            "db": reference.conv2d_backward_bias(dy).reshape(1, 1, 1, 1),
        }.items():
            np.testing.assert_allclose(nchw(s[name]), value, rtol=1e-12, atol=1e-12)
            assert not np.any(s["wrong"][name])
        if not relu:  # no kink: central differences of a quadratic are exact
            for name in ("dy", "dx", "dw", "db"):
                np.testing.assert_allclose(s["numeric"][name], s[name], rtol=1e-6, atol=1e-6)


def _bugs():
    text = (SOURCES / "lab.js").read_text("utf-8")
    return re.findall(
        r'\{id: "([\w-]+)", of: "(\w+)".*?mutant: "([^"]+)", says: (?:"([^"]+)"|null)', text
    )


def test_every_bug_of_the_page_is_known_here():
    assert len(_bugs()) == (SOURCES / "lab.js").read_text("utf-8").count('mutant: "')


@pytest.mark.parametrize(("bug", "of", "mutant", "says"), _bugs(), ids=[b[0] for b in _bugs()])
def test_bug(page, bug, of, mutant, says):
    """The wrong numbers are those of the mutant of that name; they differ from the finite difference."""
    mutant = next(m for m in MUTANTS if m.name == mutant)
    rng = np.random.default_rng(4)
    values = {
        name: rng.integers(low, high, size).tolist()
        for name, low, high, size in (
            ("x", 0, 9, (6, 6)), ("w", -3, 3, (3, 3)), ("b", -2, 2, (1, 1)), ("t", -9, 14, (4, 4)))
    }
    page.evaluate("values => { minisrcnn.lab.values = values; minisrcnn.paintLab(); }", values)
    page.evaluate(f"minisrcnn.setBug('{bug}')")
    s = lab_state(page)
    x, w, b, y, dy = nchw(s["x"]), nchw(s["w"]), s["b"].ravel(), nchw(s["y"]), nchw(s["dy"])
    if bug.startswith("relu"):
        da = reference.mse(reference.relu_forward(y), nchw(s["t"]))[1]
        want = mutant.backward(da, y)
    elif bug.startswith("mse"):
        want = mutant.backward(1.0, y, nchw(s["t"]))
    elif bug == "dw-accumulated":
        backward = mutant.backward()
        backward(dy, x, w, b)
        want = backward(dy, x, w, b)["w"]
    else:
        want = mutant.backward(dy, x, w, b)[of[1:]]
    np.testing.assert_allclose(s[of].ravel(), np.ravel(want), rtol=1e-12, atol=1e-12)
    assert np.any(s["wrong"][of])
    assert page.locator(f".grid-{of} .cell.wrong").count() == np.sum(s["wrong"][of])
    # The diagnosis shown is the checker's, but for the sizes in it.
    assert re.sub(r"\d", "", mutant.says or "").startswith(re.sub(r"\d", "", says))
    assert bool(says) == bool(mutant.says)
    assert page.locator("#code .wrong").count() == 1 and page.is_visible("#bug-text")


def lit(page, grid, kind="factor"):
    """The cells of a grid that are lit: {(i, j): term}."""
    return {
        tuple(map(int, key.split())): int(text or 0)
        for key, text in page.evaluate(
            f"""Object.entries(minisrcnn.lab.cells["{grid}"]).filter(([, e]) => e.classList.contains("{kind}"))
        .map(([key, e]) => [key, e.firstChild.textContent])"""
        )
    }


def test_the_terms_light_up(page):
    page.hover('[data-cell="y 1 2"]')
    assert lit(page, "x") == {(1 + u, 2 + v): 3 * u + v + 1 for u in range(3) for v in range(3)}
    assert lit(page, "w") == {(u, v): 3 * u + v + 1 for u in range(3) for v in range(3)}
    page.hover('[data-cell="x 2 3"]')  # a pixel: the sum of its gradient, the kernel flipped
    assert lit(page, "w") == {(u, v): 3 * u + v + 1 for u in range(3) for v in range(3)}
    assert lit(page, "dy") == {(2 - u, 3 - v): 3 * u + v + 1 for u in range(3) for v in range(3)}
    assert list(lit(page, "dx", "result")) == [(2, 3)]
    page.hover('[data-cell="w 1 0"]')
    assert lit(page, "x") == {(i + 1, j): 4 * i + j + 1 for i in range(4) for j in range(4)}
    assert page.locator("#terms [data-term]").count() == 16
    assert "conv2d_backward_weight" in page.inner_text("#code-name")
    assert "dw[f, c, u, v]" in page.inner_text("#code .hot >> nth=0")


def test_stepping_through_a_sum(page):
    page.click('[data-cell="y 0 0"]')
    s = lab_state(page)
    products = (s["x"][:3, :3] * s["w"]).ravel()
    page.keyboard.press(".")
    for k in range(1, 10):
        shown = page.inner_text("#sum-name strong").replace("−", "-")
        assert float(shown) == s["b"][0, 0] + products[:k].sum()
        assert page.inner_text("#step-text") == f"{k} / 9"
        assert len(lit(page, "x")) == k
        assert len(lit(page, "x", "current")) == (k < 9)
        page.click("#next")


def test_keys_move_and_change(page):
    page.click('[data-cell="x 2 3"]')
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.cell") == "x 2 4"
    before = lab_state(page)
    page.keyboard.press("+")
    after = lab_state(page)
    assert after["x"][2, 4] == before["x"][2, 4] + 1
    np.testing.assert_allclose(
        after["y"][0:3, 2:4] - before["y"][0:3, 2:4], before["w"][::-1, ::-1][:, :2]
    )
    page.keyboard.press("Enter")
    page.keyboard.type("2.5")
    page.keyboard.press("Enter")
    assert lab_state(page)["x"][2, 4] == 2.5
    assert page.evaluate("document.activeElement.dataset.cell") == "x 2 4"


def test_the_finite_difference_beside(page):
    page.click('[data-cell="w 0 2"]')
    page.mouse.move(0, 0)  # what scrolls under the mouse would be pointed at
    for exponent in (-5, -1, 0):
        page.fill("#h", str(exponent))
        numeric, analytic = (
            float(page.inner_text(f"#{id}").replace("−", "-")) for id in ("numeric", "analytic")
        )
        assert numeric == pytest.approx(analytic, rel=1e-5)
        assert "agree" in page.inner_text("#difference")
    page.evaluate("minisrcnn.setBug('dw-flipped')")
    assert "they differ" in page.inner_text("#difference")


# --- parts 2 to 4 --------------------------------------------------------------------------------------


def test_imresize_and_psnr(page):
    image = np.random.default_rng(2).uniform(size=(12, 18)).astype(np.float32)
    plane = {"H": 12, "W": 18, "data": image.ravel().tolist()}
    for scale in (3, 1 / 3):
        got = page.evaluate(
            "([p, s]) => { const o = minisrcnn.imresize(p, s); return {shape: [o.H, o.W], data: [...o.data]}; }",
            [plane, scale],
        )
        np.testing.assert_allclose(array(got), imresize(image, scale), atol=1e-6)


def test_a_restored_picture_is_that_of_upscale(page, engine):
    """A noisy picture of several tiles, against our own upscaling by the shipped model."""
    net = SRCNN.load(find_model("9-1-5-x3").path, backend="numpy")
    rng = np.random.default_rng(0)
    H, W = (21, 40)
    picture = np.clip(rng.normal(128, 60, (H, W, 4)), 0, 255).astype(np.uint8)
    picture[..., 3] = 255
    got = page.evaluate(
        """async ([engine, width, height, data]) => {
      const out = await minisrcnn.restorePicture({width, height, data: Uint8ClampedArray.from(data)}, engine, async () => true);
      return {shape: [out.restored.height, out.restored.width, 4], data: [...out.restored.data]}; }""",
        [engine, W, H, picture.ravel().tolist()],
    )
    got = np.array(got["data"], np.uint8).reshape(got["shape"]).astype(int)
    want = upscale_image(picture, net, 3).astype(int)
    assert got.shape == want.shape and np.abs(got - want).max() <= 1
    assert (got != want).mean() < 1e-3


def test_transparent_pixels_give_no_colour(page):
    """An orange disc on transparent black stays orange to its edge, enlarged and shrunk."""
    i, j = np.mgrid[:24, :24]
    picture = np.where(np.hypot(i - 12, j - 12)[..., None] < 8, [230, 140, 20, 255], [0, 0, 0, 0])
    for function in ("await minisrcnn.restorePicture(p, 'js', async () => true)", "minisrcnn.shrinkPicture(p)"):
        got = page.evaluate(
            "async data => { const p = {width: 24, height: 24, data: Uint8ClampedArray.from(data)},"
            f" out = {function}; return [...(out.bicubic ?? out.small).data]; }}",
            picture.ravel().tolist(),
        )
        got = np.array(got).reshape(-1, 4)
        seen = got[got[:, 3] > 20]
        assert len(seen) and np.abs(seen[:, :3] - [230, 140, 20]).max() <= 3


def test_the_reader_restores_a_file(page, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (30, 42, 3), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.uncheck("#shrink")
    page.set_input_files("#file", tmp_path / "small.png")
    wait(
        page,
        "document.getElementById('restore-text').textContent.startsWith('42 × 30 became 126 × 90')",
    )
    with page.expect_download() as download:
        page.click("#save")
    with Image.open(io.BytesIO(Path(download.value.path()).read_bytes())) as saved:
        assert saved.size == (126, 90)
    page.set_input_files("#file", tmp_path / "broken.png")
    wait(
        page,
        "document.getElementById('restore-text').textContent.includes('broken.png can\\'t be read')",
    )
    page.click("#drawn")
    page.check("#shrink")  # stops the first one and begins again
    wait(page, "document.getElementById('restore-text').textContent.includes('Against the truth')")


def train(page, steps):
    """Press Train, wait for so many steps, pause, and wait for the score."""
    page.click("#train")
    wait(page, f"minisrcnn.learn.network.steps >= {steps}")
    page.click("#train")
    wait(page, "document.getElementById('learn-say').textContent.startsWith('Paused after')"
               " && document.getElementById('train').textContent === 'Train'"
               " && minisrcnn.learn.scores.at(-1)[0] === minisrcnn.learn.network.steps")


@pytest.mark.parametrize("engine", [
    "wasm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("js", "webgpu"))],
    indirect=True)
def test_it_learns(page, engine):
    """600 steps get above bicubic on the picture that is not trained on; fewer where steps are slow."""
    steps = {"wasm": 600, "js": 60, "webgpu": 4}[engine]
    page.check(f"[name=engine][value={engine}]")
    page.click("#restart")
    wait(page, "minisrcnn.learn.network.steps === 0 && minisrcnn.learn.scores.length === 1"
               f" && minisrcnn.learn.engine.name === '{engine}'")
    train(page, steps)
    before, after, bicubic = page.evaluate(
        "(({scores, test}) => [scores[0][1], scores.at(-1)[1], test.bicubic])(minisrcnn.learn)")
    assert abs(before - bicubic) < 0.5  # it starts as bicubic, nearly
    assert after > bicubic + 0.3 if engine == "wasm" else after != before
    page.check("[name=engine][value=wasm]")


@pytest.mark.slow
def test_a_wrong_gradient_may_learn(page):
    """What part 2 says: from bicubic two bugs get above it, from random filters none does."""
    page.check("[name=engine][value=wasm]")
    gains = {}
    for start in ("identity", "he"):
        page.select_option("#init", start)
        for bug in ("none", "dx-not-flipped", "relu-mask-missing", "dw-flipped"):
            page.select_option("#train-bug", bug)
            page.click("#restart")
            wait(page, "minisrcnn.learn.network.steps === 0 && minisrcnn.learn.scores.length === 1")
            train(page, 600)
            gains[start, bug] = page.evaluate("minisrcnn.learn.psnr - minisrcnn.learn.test.bicubic")
    for bug in ("dx-not-flipped", "relu-mask-missing"):
        assert gains["identity", bug] > 0.1
        assert gains["he", bug] < gains["he", "none"] - 1
    assert gains["identity", "dw-flipped"] < -1 and gains["he", "dw-flipped"] < -1
    page.select_option("#train-bug", "none")
    page.select_option("#init", "identity")


@pytest.mark.parametrize(
    ("before", "chosen", "disabled"),
    [
        ("Object.defineProperty(Navigator.prototype, 'gpu', {value: undefined})", "wasm", ["webgpu"]),
        ("delete globalThis.WebAssembly", "js", ["wasm"]),
    ],
    ids=["no WebGPU", "no WebAssembly"],
)
def test_an_engine_that_is_missing_says_so(browser, before, chosen, disabled):
    watched = Watched(browser, before=before)
    page = watched.page
    assert page.evaluate("document.querySelector('[name=engine]:checked').value") == chosen
    off = page.evaluate("[...document.querySelectorAll('[name=engine]:disabled')].map(e => e.value)")
    assert set(disabled) <= set(off)
    for name in off:
        assert page.locator(f"label:has([value={name}]) small").inner_text()
    assert "Against the truth" in page.inner_text("#restore-text")
    watched.check()


def test_the_engine_is_chosen_where_it_computes(page):
    page.click("#restore-engine [data-engine=js]")
    wait(page, "document.getElementById('restore-text').textContent.includes('with JavaScript')")
    assert page.evaluate("document.querySelector('[name=engine]:checked').value") == "js"
    assert page.get_attribute("#learn-engine [data-engine=js]", "aria-pressed") == "true"
    page.click("#learn-engine [data-engine=wasm]")
    wait(page, "minisrcnn.learn.engine.name === 'wasm'")


def test_the_tour(page):
    for k, (result, code) in enumerate([
        ("y", "conv2d_forward"), ("dy", "mse"), ("db", "conv2d_backward_bias"),
        ("dw", "conv2d_backward_weight"), ("dx", "conv2d_backward_input"),
        ("dx", "conv2d_backward_input"), ("dx", "conv2d_backward_input"),
        ("dx", "conv2d_backward_input"),
    ]):
        page.locator(".quick button").nth(k).click()
        assert len(lit(page, result, "result")) == 1
        assert page.inner_text("#code-name") == code
        wrong = lab_state(page)["wrong"]["dx"]
        assert np.sum(wrong) == {6: 36, 7: 24}.get(k, 0)  # all ones as dy hide a third of it
    assert page.input_value("#loss") == "sum"


@pytest.mark.slow
def test_timing_agrees_between_engines(page):
    page.click("#time")
    wait(
        page,
        "document.querySelectorAll('#times tbody tr').length === 3 && !document.getElementById('time').disabled",
    )
    differences = [
        float(row) for row in page.locator("#times tbody td:nth-child(4)").all_inner_texts()
    ]
    assert len(differences) >= 2 and max(differences) < 1e-5


# --- everything at once ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_control_can_be_used_without_an_error(browser):
    watched = Watched(browser, viewport={"width": 1100, "height": 800}, color_scheme="dark")
    page = watched.page
    for button in page.locator("button:visible:not([data-cell], [data-engine])").all():
        if button.is_visible() and button.get_attribute("id") != "stop":
            button.click()
    for select in page.locator("select").all():
        for value in select.evaluate("s => [...s.options].map(o => o.value)"):
            select.select_option(value)
            if value == "dx-border":  # the tour, from within a bug
                for go in page.locator(".quick button").all():
                    go.click()
    for slider in page.locator("input[type=range]:visible").all():
        for at in ("min", "max"):
            slider.evaluate(
                f"(e) => {{ e.value = e.{at}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }}"
            )
    boxes = page.locator("input[type=checkbox], input[type=radio]").all()
    for box in reversed(boxes):  # WebGPU first, WebAssembly last: here the one is slow
        if box.is_enabled():
            box.click()
    page.evaluate("document.querySelectorAll('[data-cell]').forEach(e => { e.focus(); e.click(); })")
    for key in ("Home", "End", "ArrowUp", "ArrowDown", "ArrowLeft", "+", "-", ".", ","):
        page.keyboard.press(key)
    page.locator("summary").click()
    page.evaluate("document.getElementById('stop').click()")  # may be at work, may be done
    wait(page, "document.getElementById('stop').disabled")
    watched.check()


@pytest.mark.parametrize("width", [375, pytest.param(768, marks=pytest.mark.slow)])
def test_a_phone_needs_no_sideways_scrolling(browser, width):
    watched = Watched(
        browser, viewport={"width": width, "height": 740}, has_touch=True, is_mobile=width < 700
    )
    page = watched.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in ("x 2 3", "w 1 1", "dx 2 2", "dy 3 3"):
        page.tap(f'[data-cell="{name}"]')
        assert lit(page, "dy") or name[0] == "d"
        box = page.locator("#now").bounding_box()  # the sum stays in sight, and the cell too
        cell = page.locator(f'[data-cell="{name}"]').bounding_box()
        assert box["y"] + box["height"] <= 741 and cell["y"] + cell["height"] <= box["y"] + 1
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('button, select')].filter(e => e.offsetParent).map(e => e.getBoundingClientRect().height))"
    )
    assert smallest >= 24
    watched.check()


def test_everything_has_a_name_for_screen_readers(page):
    nameless = page.evaluate("""[...document.querySelectorAll("button, select, input, canvas, [role=grid], progress")].filter(e =>
      !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length || e.title)).map(e => e.outerHTML)""")
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].filter(e => e.offsetParent).map(e => Number(e.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    # One stop of the Tab key for each grid, as in a spreadsheet.
    assert (
        page.evaluate(
            "[...document.querySelectorAll('[role=grid]')].map(g => g.querySelectorAll('[tabindex=\"0\"]').length)"
        )
        == [1] * 9
    )


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_contrast(browser, scheme):
    """Text against what lies behind it: at least 4.5 to 1 (WCAG AA)."""
    watched = Watched(browser, color_scheme=scheme)
    colours = json.loads(
        watched.page.evaluate("""JSON.stringify(Object.fromEntries(
      ["paper", "ink", "muted", "soft", "blue", "vermilion", "green", "badge", "badge-ink", "cell", "heat-pos", "heat-neg"].map(n => {
        const c = document.createElement("canvas").getContext("2d");
        c.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--" + n).trim();
        c.fillRect(0, 0, 1, 1);
        return [n, [...c.getImageData(0, 0, 1, 1).data].slice(0, 3)]; })))""")
    )

    def luminance(rgb):
        c = np.array(rgb) / 255
        return np.dot(
            [0.2126, 0.7152, 0.0722],
            np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4),
        )

    def ratio(a, b):
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    hottest = [
        0.6 * np.array(colours[n]) + 0.4 * np.array(colours["cell"])
        for n in ("heat-pos", "heat-neg")
    ]
    pairs = [
        (colours[a], colours[b])
        for a in ("ink", "muted", "blue", "vermilion", "green")
        for b in ("paper", "soft")
    ]
    pairs += [(colours["ink"], h) for h in hottest] + [(colours["badge-ink"], colours["badge"])]
    assert min(ratio(*pair) for pair in pairs) >= 4.5
    watched.check()
