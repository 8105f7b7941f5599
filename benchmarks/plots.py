"""The plots, PNG and SVG, readable in a talk: ladder, ratio to peers, roofline, growth."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from . import report, scaling, verdicts
from .results import Row, Run

_STYLE = {"font.size": 14, "axes.spines.top": False, "axes.spines.right": False,
          "svg.hashsalt": "minisrcnn", "svg.fonttype": "none",
          "figure.constrained_layout.use": True}
_OURS, _PEER, _OTHER, _GPU = "#d55e00", "#0072b2", "#999999", "#009e73"  # for all kinds of eyes


def draw(run: Run, folder: Path) -> list[Path]:
    """Draw what the run has rows for; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with plt.rc_context(_STYLE):
        for name, plot in {
            "ladder": ladder, "ladder_gpu": partial(ladder, device="gpu"),
            "ratio_to_peers": ratio_to_peers, "roofline": roofline,
            "roofline_gpu": partial(roofline, device="gpu"), "growth": growth, "ranks": ranks,
        }.items():
            figure = plot(run)
            if figure is None:
                continue
            for ending, facts in (("png", {"Software": None}), ("svg", {"Date": None})):
                path = folder / f"{name}.{ending}"
                figure.savefig(path, dpi=110, metadata=facts)
                files.append(path)
            plt.close(figure)
    return files


def ladder(run: Run, device: str = "cpu") -> Any:
    """GFLOP/s of the versions: a panel a layer, a group of bars a version, a bar an operation."""
    rows = [r for r in run.timed("ops") if r.kind in ("lesson", "ours") and r.device == device
            and r.size == 32]
    layers = list(dict.fromkeys(r.group.split(",")[0] for r in rows))
    if not layers:
        return None
    names = sorted({r.implementation for r in rows},
                   key=lambda n: (n in ("production", "cupy"), report.number_of(n), n))
    operations = list(dict.fromkeys(r.group.split(", ")[1] for r in rows))
    figure, axes = plt.subplots(1, len(layers), figsize=(max(9, 4.2 * len(layers)), 5.5),
                                sharey=True, squeeze=False)
    shades = (_OURS, _PEER, _GPU)
    for axis, layer in zip(axes[0], layers, strict=True):
        for i, operation in enumerate(operations):
            rate = {r.implementation: r.gflops for r in rows if r.group == f"{layer}, {operation}"}
            at = [n + 0.27 * (i - 1) for n, name in enumerate(names) if name in rate]
            axis.bar(at, [rate[n] for n in names if n in rate], 0.27, color=shades[i % 3],
                     label=operation)
        axis.set(title=layer.replace(" on ", "\non "), yscale="log")
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
        _plain(axis.yaxis)
        _line(axis, report.roof(run, "sgemm", device), "sgemm")
    axes[0][0].set_ylabel("GFLOP/s, nominal")
    axes[0][0].legend(frameon=False, fontsize=11)
    return _titled(figure, run, "The versions, 32 patches", device)


def ratio_to_peers(run: Run) -> Any:
    """How many times as fast as each peer, with intervals, for training and inference."""
    lines = []
    for rows in report.table_of(run.timed()).values():
        ours = report.best(rows.values(), "ours")
        peers = [r for r in rows.values() if r.kind == "peer" and r.device == "cpu"]
        if ours is not None and peers and ours.suite in ("training", "inference"):
            lines.append((ours.case, [(p.implementation,
                                       *verdicts.ratio_of_medians(ours.turns, p.turns))
                                      for p in peers]))
    if not lines:
        return None
    figure, axis = plt.subplots(figsize=(11, 1.8 + 0.55 * len(lines)))
    names = sorted({name for _, peers in lines for name, *_ in peers})
    palette = plt.get_cmap("tab10")
    for y, (_, peers) in enumerate(lines):
        for name, ratio, low, high in peers:
            axis.errorbar(ratio, y, xerr=[[max(ratio - low, 0)], [max(high - ratio, 0)]], fmt="o",
                          ms=8, color=palette(names.index(name)),
                          label=name if not _labelled(axis, name) else None)
    axis.axvline(1, color="black", lw=1)
    axis.set_yticks(range(len(lines)), [case for case, _ in lines], fontsize=11)
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="times as fast as the peer (1: equal)")
    low, high = axis.get_xlim()
    ticks = [t for t in (0.2, 0.5, 1, 2, 3, 5, 10, 20, 50) if low <= t <= high]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=11, loc="center left", bbox_to_anchor=(1, 0.5))
    return _titled(figure, run, "minisrcnn beside its peers")


def roofline(run: Run, device: str = "cpu") -> Any:
    """Nominal rate against operations for a byte, a dot a kernel, beneath the measured roofs."""
    rows = [r for r in run.timed() if r.device == device and r.suite != "roofs" and r.mflop
            and (r.kind in ("ours", "yours") or _last_lesson(run, r))]
    fma, sgemm, triad = (report.roof(run, name, device) for name in ("fma", "sgemm", "triad"))
    top = fma if fma > 0 else sgemm  # on a GPU only sgemm is measured
    if not rows or not (top > 0 and triad > 0):
        return None
    figure, axis = plt.subplots(figsize=(10, 6.5))
    x = np.geomspace(0.5, max(r.mflop / r.mbyte for r in rows) * 1.5, 200)
    axis.plot(x, np.minimum(top, triad * x), color="black")
    axis.annotate(f"{'multiply-adds' if fma > 0 else 'sgemm'} {top:.0f} GFLOP/s", (x[-1], top),
                  (0, 6), textcoords="offset points", ha="right")
    axis.annotate(f"triad {triad:.0f} GB/s", (x[10], triad * x[10]), (14, -4),
                  textcoords="offset points", va="top")
    if fma > 0:
        _line(axis, sgemm, f"sgemm {sgemm:.0f}")
    marks = {"ops": "o", "training": "s", "inference": "^"}
    for suite, mark in marks.items():
        for kind, colour in (("ours", _OURS), ("lesson", _OTHER), ("yours", _GPU)):
            dots = [r for r in rows if r.suite == suite and r.kind == kind]
            if dots:
                who = "last lesson" if kind == "lesson" else dots[0].implementation
                axis.scatter([r.mflop / r.mbyte for r in dots], [r.gflops for r in dots],
                             marker=mark, color=colour, s=55, alpha=0.8, label=f"{who}, {suite}")
    axis.set(xscale="log", yscale="log", ylabel="GFLOP/s, nominal (Winograd does fewer)",
             xlabel="nominal operations for a byte of inputs and outputs")
    _plain(axis.yaxis)
    _plain(axis.xaxis)
    axis.legend(frameon=False, fontsize=11, loc="lower right")
    return _titled(figure, run, "Roofline", device)


def growth(run: Run) -> Any:
    """Time against patches and pixels; where a GPU takes over is marked."""
    series = report.series_of(run, ("training", "inference"))
    groups = [g for g, s in series.items() if len({size for _, size in s}) > 1]
    if not groups:
        return None
    figure, axes = plt.subplots(1, len(groups), figsize=(5.2 * len(groups), 5.8), squeeze=False)
    palette = plt.get_cmap("tab10")
    names = sorted({who for g in groups for who, _ in series[g]})
    for axis, group in zip(axes[0], groups, strict=True):
        for who in dict.fromkeys(name for name, _ in series[group]):
            points = sorted((size, row) for (name, size), row in series[group].items()
                            if name == who)
            ours = points[0][1].kind == "ours"
            axis.plot([size for size, _ in points], [row.median for _, row in points], "o-",
                      color=palette(names.index(who) % 10), lw=3 if ours else 1.2, label=who)
        on_gpu = {r.size: r.median for r in run.timed("", "end to end")
                  if r.group == group and r.kind == "ours"}
        cpu = {size: row.median for (_, size), row in series[group].items()
               if row.kind == "ours" and row.device == "cpu"}
        if on_gpu:
            axis.plot(sorted(on_gpu), [on_gpu[s] for s in sorted(on_gpu)], "s--", color="black",
                      label="GPU with transfers")
            at = verdicts.crossover(cpu, on_gpu)
            if at is not None:
                axis.axvline(at, color="black", lw=1, ls=":")
                axis.annotate(f" GPU from {at:,.0f}", (at, 0.02), fontsize=11,
                              xycoords=("data", "axes fraction"))
        patches = "step" in group
        axis.set(title=group.replace(", ", "\n"), xscale="log", yscale="log",
                 xlabel="patches" if patches else "pixels")
        _plain(axis.yaxis)
        sizes = sorted({size for _, size in series[group]})
        axis.set_xticks(sizes, [f"{n}" if patches else f"{n**0.5:.0f}²" for n in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0][0].set_ylabel("ms")
    axes[0][-1].legend(frameon=False, fontsize=11, loc="center left", bbox_to_anchor=(1, 0.5))
    return _titled(figure, run, "Time against size")


def ranks(run: Run) -> Any:
    """How many times as fast as one rank: dots were measured, lines are the projection."""
    works, ms = scaling.works_of(run), scaling.medians_of(run)
    if not works:
        return None
    model = scaling.fit(run)
    figure, axis = plt.subplots(figsize=(10, 6.5))
    palette, counts = plt.get_cmap("tab10"), (1, *scaling.PROJECTED)
    for i, work in enumerate(scaling.projected_works(run)):
        group = scaling.group_of(work.arch, work.N)
        axis.plot(counts, [model.step(work, 1) / model.step(work, n) for n in counts], "--",
                  color=palette(i), label=f"{group}, projected")
        seen = sorted(n for g, n, part in ms if g == group and part == "step"
                      and n <= run.settings["processors"])
        axis.plot(seen, [ms[group, 1, "step"] / ms[group, n, "step"] for n in seen], "o",
                  color=palette(i), ms=9)
    axis.plot(counts, counts, color="black", lw=1)
    axis.set(xscale="log", yscale="log", xlabel="ranks, one thread each",
             ylabel="times as fast as one rank")
    _plain(axis.xaxis)
    _plain(axis.yaxis)
    axis.legend(frameon=False, fontsize=11, loc="upper left")
    return _titled(figure, run, "Ranks: dots measured, lines projected")


def _last_lesson(run: Run, row: Row) -> bool:
    lessons: Iterable[Row] = (r for r in run.timed("ops") if r.kind == "lesson"
                              and r.device == row.device)
    return row.implementation == max((r.implementation for r in lessons), default="",
                                     key=report.number_of)


def _plain(axis: Any) -> None:
    """Write 1, 2, 5, 10, ... at a logarithmic axis instead of powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _labelled(axis: Any, name: str) -> bool:
    return name in axis.get_legend_handles_labels()[1]


def _line(axis: Any, height: float, name: str) -> None:
    if height > 0:
        axis.axhline(height, color="black", lw=1, ls="--")
        axis.annotate(name, (0.01, height), (0, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=11)


def _titled(figure: Any, run: Run, title: str, device: str = "cpu") -> Any:
    noisy = ", A NOISY RUN" if run.noisy else ""
    where = (run.machine["gpu"] if device == "gpu" else
             f"{run.machine['processor']}, {run.settings['threads']} threads")
    figure.suptitle(f"{title}: {where}{noisy}", fontsize=16)
    return figure
