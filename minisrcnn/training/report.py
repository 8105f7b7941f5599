"""What a training leaves to look at: curve, filters, before and after, and a page of figures."""

from __future__ import annotations

import io
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import printable
from ..imaging.files import atomic_open
from ..imaging.metrics import psnr
from ..info import describe
from .state import TrainResult

# What the network is given, by the recipe's degradation.
_INPUT = {"bicubic": "bicubic", "bicubic-mirror": "bicubic, borders mirrored",
          "zoom": "input, degraded by zoom"}

_CROP = 96  # pixels on a side of the before/after picture


def write_report(result: TrainResult, lines: list[dict[str, Any]]) -> None:
    """Write ``curve.png``, ``filters.png``, ``before-after.png`` and ``report.md``.

    Parameters
    ----------
    result : TrainResult
    lines : list of dict
        The log.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    net = result.net
    w = np.asarray(net.backend.to_numpy(net.parameters["conv1.weight"]))
    _save(_curve(lines, result), result.out / "curve.png")
    _save(_filters(w), result.out / "filters.png")
    _save(_before_after(result), result.out / "before-after.png")
    with atomic_open(result.out / "report.md") as file:
        file.write(_page(result).encode())


def _cell(value: Any) -> str:
    """Return a text as it stands in a table of Markdown: names can hold anything."""
    return printable(str(value)).replace("|", "\\|")


def _plain(name: str) -> str:
    """Return a name for a figure, where dollar signs would be a formula."""
    return printable(name).replace("$", "\\$")


def _figure(width: float, height: float) -> Any:
    # The object, not pyplot: no window, no global state, safe in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    data = io.BytesIO()
    with warnings.catch_warnings():  # of letters in names that the font has not
        warnings.simplefilter("ignore")
        figure.savefig(data, format="png", dpi=110, metadata={"Software": None})
    with atomic_open(path) as file:
        file.write(data.getvalue())


def _curve(lines: list[dict[str, Any]], result: TrainResult) -> Any:
    figure = _figure(7, 4)
    left = figure.add_subplot()
    right = left.twinx()
    epochs = [line for line in lines if line["event"] == "epoch"]
    scores = [line for line in lines if line.get("psnr") is not None]
    marker = "o" if len(scores) < 30 else None
    handles = left.plot([line["epoch"] for line in epochs], [line["loss"] for line in epochs],
                        color="tab:orange", label="training loss", marker=marker, markersize=3)
    left.set(xlabel="epoch", ylabel="loss (mean squared error), thousandths", yscale="log")
    for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis(lambda value, _: f"{1000 * value:.3g}")
    left.xaxis.get_major_locator().set_params(integer=True)
    scored = result.validation
    handles += right.plot([line["epoch"] for line in scores], [line["psnr"] for line in scores],
                          color="tab:blue", label=f"PSNR, {_plain(scored.name)}", marker=marker,
                          markersize=3)
    levels = {_INPUT[result.plan.recipe.degradation]: scored.bicubic}
    if scored.published is not None:
        levels |= scored.published.of(result.plan.arch)
    for (name, value), style in zip(levels.items(), (":", "--", "-."), strict=False):
        handles.append(right.axhline(value, color="tab:blue", linestyle=style, linewidth=1,
                                     label=f"{name}, {value:.2f} dB"))
    low = min([scored.bicubic - 0.3, *(line["psnr"] for line in scores[1:] or scores)])
    high = max([*levels.values(), *(line["psnr"] for line in scores), scored.bicubic])
    right.set(ylabel=f"PSNR on {_planes(result)}, dB", ylim=(low - 0.1, high + 0.2))
    left.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2,
                fontsize="small", frameon=False)
    left.grid(alpha=0.3)
    left.set_title(f"SRCNN {result.plan.arch}, scale {result.plan.scale}, "
                   f"recipe {result.plan.recipe.name}")
    return figure


def _filters(w: NDArray[Any]) -> Any:
    """Draw the filters of the first layer, the strongest first, each over its own range."""
    F, C = w.shape[:2]
    order = np.argsort(-w.reshape(F, -1).var(axis=1), kind="stable")
    columns = max(1, round(np.sqrt(F)))
    rows = -(-F // columns)
    KH, KW = w.shape[2:]
    # One picture: a subplot for each filter would take a second.
    mosaic = np.ones((rows * (KH + 1) - 1, columns * (KW + 1) - 1, C))
    for place, n in enumerate(order):
        y, x = place // columns * (KH + 1), place % columns * (KW + 1)
        most = float(np.abs(w[n]).max()) or 1.0
        mosaic[y : y + KH, x : x + KW] = (w[n] / (2 * most) + 0.5).transpose(1, 2, 0)
    figure = _figure(0.7 * columns + 0.2, 0.7 * rows + 0.6)
    axis = figure.subplots()
    axis.imshow(mosaic.squeeze(2) if C == 1 else mosaic, cmap="gray", vmin=0, vmax=1,
                interpolation="nearest")
    axis.axis("off")
    figure.suptitle(f"first layer: {F} filters, strongest first (grey is 0)", fontsize="medium")
    return figure


def _before_after(result: TrainResult) -> Any:
    scored, scale = result.validation, result.plan.scale
    # A picture with something to restore: the one that bicubic does worst.
    before = [psnr(x, t, scale) for x, t in zip(scored.inputs, scored.labels, strict=True)]
    n = int(np.argmin(before))
    x, t = scored.inputs[n], scored.labels[n]
    y = result.net.predict(x)
    H, W = x.shape[-2:]
    window = _worst_window(((x - t) ** 2).reshape(-1, H, W).sum(axis=0))
    name = _INPUT[result.plan.recipe.degradation]
    panels = [(f"{name}, {before[n]:.2f} dB", x), (f"SRCNN, {psnr(y, t, scale):.2f} dB", y),
              ("truth", t)]
    H, W = (side.stop - side.start for side in window)
    figure = _figure(10.5, 10.5 / 3 * H / W + 0.8)
    for axis, (title, image) in zip(figure.subplots(1, 3), panels, strict=True):
        part = image[(..., *window)]
        axis.imshow(part if part.ndim == 2 else part.clip(0, 1).transpose(1, 2, 0), cmap="gray",
                    vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.suptitle(f"{_plain(scored.name)}, {_plain(scored.titles[n])}, scale {scale} (a part of "
                    f"{_planes(result)}; PSNR of the whole)", fontsize="medium")
    return figure


def _planes(result: TrainResult) -> str:
    return "Y" if result.plan.channels == 1 else "RGB"


def _worst_window(error: NDArray[Any]) -> tuple[slice, slice]:
    """Return the part with the largest squared error, by a summed-area table."""
    h, w = min(_CROP, error.shape[0]), min(_CROP, error.shape[1])
    total = np.zeros((error.shape[0] + 1, error.shape[1] + 1))
    total[1:, 1:] = error.astype(np.float64).cumsum(0).cumsum(1)
    sums = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return slice(int(y), int(y) + h), slice(int(x), int(x) + w)


def _page(result: TrainResult) -> str:
    plan, recipe, progress, scored = (result.plan, result.plan.recipe, result.progress,
                                      result.validation)
    machine = dict(describe())
    batches = len(result.data.index) // recipe.batch
    minutes = progress.seconds / 60
    rate = progress.step * recipe.batch / max(progress.seconds, 1e-9)
    assert progress.psnr is not None
    start = _INPUT[recipe.degradation]
    rows = [(start, scored.bicubic), ("this model", progress.psnr)]
    if scored.published is not None:
        rows += scored.published.of().items()
    scores = "\n".join(f"| {name} | {value:.3f} | {value - scored.bicubic:+.3f} |"
                       for name, value in rows)
    settings = asdict(recipe)
    about = settings.pop("about")
    settings.pop("name")
    settings = {"data": result.data.name, "patches": len(result.data.index), "scale": plan.scale,
                "arch": plan.arch, "channels": plan.channels,
                "filters": "-".join(map(str, result.net.filters)),
                "seed": plan.seed, "backend": plan.backend} | settings
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in settings.items())
    versions = ("minisrcnn", "python", "numpy", "numba", "system", "processor", "cores")
    made_with = "\n".join(f"| {name} | {machine[name].split(' (')[0]} |"
                      for name in versions if name in machine)
    warning = "" if scored.comparable else (
        "\n**These scores compare with no published ones**: "
        + ("they are of RGB, all three channels together.\n" if plan.channels > 1 else
           "the recipe degrades pictures in its own way.\n" if recipe.degradation != "bicubic"
           else "they are not of the original Set5 at a scale that figures are known for.\n"))
    unfinished = "" if result.finished else (
        f"\n**Stopped early**, at step {progress.step:,} of {result.steps:,}; "
        "`--resume` goes on.\n")
    return f"""# SRCNN {plan.arch}, scale {plan.scale}, recipe {recipe.name}
{unfinished}
{progress.step:,} steps ({progress.step / batches:g} epochs) in {minutes:.1f} minutes, \
{rate:,.0f} patches a second, scoring included.

## Score

Mean PSNR on {_planes(result)}, {printable(scored.name)}, {len(scored.titles)} pictures, in dB.
{warning}
| | PSNR | against {start.split(',')[0]} |
|---|---|---|
{scores}

![loss and PSNR](curve.png)

![before and after](before-after.png)

![filters of the first layer](filters.png)

## Settings

{recipe.name}: {about}.

| | |
|---|---|
{table}

## Made with

| | |
|---|---|
{made_with}
"""
