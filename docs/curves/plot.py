"""Draw PSNR against minutes and against passes, from the logs in docs/curves."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent

# Trainings for scale 3, of Y; the colours of what belongs together are alike.
LOGS = {
    "9-5-5-x3": ("9-5-5, shipped", "tab:purple"),
    "9-1-5-x3": ("9-1-5, shipped", "tab:blue"),
    "fast": ("recipe fast, 10 epochs", "tab:cyan"),
    "paper": ("recipe paper", "tab:orange"),
    "notes": ("recipe notes, own degradation", "tab:brown"),
}
LEVELS = {  # dB above bicubic, `minisrcnn evaluate` of the authors' weights
    "authors' 9-1-5, 91 images": 2.000,
    "authors' 9-1-5, ImageNet": 2.122,
    "authors' 9-5-5, ImageNet": 2.355,
}
MACHINE = "minutes on an H200 that made eight trainings at once"


def main() -> None:
    """Write docs/curves/psnr.png."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for name, (label, colour) in LOGS.items():
        path = FOLDER / f"{name}.jsonl"
        if not path.exists():
            continue
        start, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        scored = [line for line in lines if "psnr" in line]
        gains = [line["psnr"] - start["bicubic"] for line in scored]
        passes = [line["epoch"] * start["patches"] / 21_884 for line in scored]
        axes[0].plot([line["seconds"] / 60 for line in scored], gains, color=colour, label=label)
        axes[1].plot(passes, gains, color=colour, label=label)
    for axis, title in zip(axes, (MACHINE, "passes over T91 (21,884 patches)"), strict=True):
        for level in LEVELS.values():
            axis.axhline(level, color="0.6", linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    for name, level in LEVELS.items():
        axes[1].annotate(name, (1.01, level), xycoords=("axes fraction", "data"), fontsize=6.5,
                         ha="left", va="center", color="0.4", annotation_clip=False)
    axes[0].set_ylabel("Set5 x3, dB above the input")
    axes[0].set_ylim(-0.5, 2.75)
    axes[0].legend(fontsize=7, loc="lower left")
    figure.savefig(FOLDER / "psnr.png", dpi=110)


if __name__ == "__main__":
    main()
