"""Draw PSNR against minutes and against passes, from the logs in docs/curves."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent


def main() -> None:
    """Write docs/curves/psnr.png."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for path in sorted(FOLDER.glob("*x3*.jsonl")):
        start, *lines = [json.loads(line) for line in path.read_text().splitlines()]
        scored = [line for line in lines if "psnr" in line]
        gains = [line["psnr"] - start["bicubic"] for line in scored]
        passes = [line["epoch"] * start["patches"] / 21_884 for line in scored]
        axes[0].plot([line["seconds"] / 60 for line in scored], gains, label=path.stem)
        axes[1].plot(passes, gains, label=path.stem)
    for axis, title in zip(axes, ("minutes, one busy core", "passes over T91 (21,884 patches)"),
                           strict=True):
        for name, level in (("authors' 9-1-5, 91 images", 2.000),
                            ("authors' 9-1-5, ImageNet", 2.122),
                            ("authors' 9-5-5, ImageNet", 2.355)):
            axis.axhline(level, color="0.6", linewidth=0.8, linestyle="--")
            axis.annotate(name, (1, level), xycoords=("axes fraction", "data"), fontsize=7,
                          ha="right", va="bottom", color="0.4")
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Set5 x3, dB above bicubic")
    axes[0].set_ylim(1.5, None)
    axes[0].legend(fontsize=8, loc="lower right")
    figure.savefig(FOLDER / "psnr.png", dpi=110)


if __name__ == "__main__":
    main()
