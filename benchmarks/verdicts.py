"""Whether a difference is real: SAME, FASTER, SLOWER or UNCLEAR; growth; crossover.

The turns' medians of both runs are compared: their ratio with a bootstrap interval, and a rank test
(Mann and Whitney's; Wilcoxon's for the turns that two revisions took side by side), whose p-values
are corrected for the number of rows (Benjamini and Hochberg 1995: of all alarms, at most the given
share are false; where nothing changed, that share is also the chance of any alarm at all).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .results import Run

_RESAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """One row of a comparison: ``ratio`` is the time after over the time before."""

    key: tuple[str, str, str]
    before: float
    after: float
    ratio: float
    low: float
    high: float
    p: float
    word: str


@dataclass(frozen=True)
class Comparison:
    """All verdicts, and what else should be known."""

    verdicts: list[Verdict]
    notes: list[str]
    threshold: float

    @property
    def slower(self) -> list[Verdict]:
        """The real slowdowns beyond the threshold."""
        return [v for v in self.verdicts if v.word == "SLOWER"]

    def text(self) -> str:
        """Return a Markdown table and a summary."""
        lines = ["| case | implementation | before ms | after ms | after / before (95 %) | p | |",
                 "|---|---|---|---|---|---|---|"]
        for v in sorted(self.verdicts, key=lambda v: -v.ratio):
            case, who, timing = v.key
            lines.append(
                f"| {case} | {who}{'' if timing == 'warm' else ', ' + timing} | {v.before:.4g} | "
                f"{v.after:.4g} | {v.ratio:.3f} ({v.low:.3f} to {v.high:.3f}) | {v.p:.2g} | "
                f"{v.word} |")
        counts = {word: sum(v.word == word for v in self.verdicts)
                  for word in ("SLOWER", "FASTER", "SAME", "UNCLEAR")}
        summary = ", ".join(f"{n} {word}" for word, n in counts.items())
        return "\n".join([*lines, "", f"{summary}; differences up to {self.threshold:.0%} do not "
                          "matter", *self.notes])


def compare(before: Run, after: Run, threshold: float = 0.02, level: float = 0.05,
            paired: bool = False) -> Comparison:
    """Compare the rows that two runs share.

    Parameters
    ----------
    before, after : Run
    threshold : float
        Differences up to this do not matter.
    level : float
        Share of alarms that may be false.
    paired : bool
        Whether the turns of a round were taken side by side, as ``ab`` does: what disturbed one
        then disturbed the other, and it is their ratios that count.

    Raises
    ------
    ValueError
        If the runs have no timed row in common.
    """
    from scipy import stats

    old = {row.key: row.turns for row in before.rows if row.timing != "first" and row.samples}
    new = {row.key: row.turns for row in after.rows if row.timing != "first" and row.samples}
    keys = [key for key in old if key in new]
    if not keys:
        raise ValueError("the two files have no timed row in common, want the same cases")
    tests = []
    for key in keys:
        if paired:
            turns = min(len(old[key]), len(new[key]))
            old[key], new[key] = old[key][:turns], new[key][:turns]
            tests.append(stats.wilcoxon(np.log(new[key]) - np.log(old[key])).pvalue)
        else:
            tests.append(stats.mannwhitneyu(old[key], new[key]).pvalue)
    p = stats.false_discovery_control(np.nan_to_num(tests, nan=1.0))
    verdicts = []
    for key, chance in zip(keys, p, strict=True):
        ratio, low, high = (median_ratio if paired else ratio_of_medians)(old[key], new[key])
        verdicts.append(Verdict(key, float(np.median(old[key])), float(np.median(new[key])), ratio,
                                low, high, float(chance),
                                judge(ratio, low, high, chance, threshold, level)))
    return Comparison(verdicts, _notes(before, after), threshold)


def judge(ratio: float, low: float, high: float, p: float, threshold: float, level: float) -> str:
    """Return the word for a ratio, its interval and its corrected p-value.

    SLOWER and FASTER: the difference is real, and larger than the threshold. SAME: the whole
    interval is within the threshold. Anything else is UNCLEAR: measure longer.
    """
    if p < level and ratio > 1 + threshold:
        return "SLOWER"
    if p < level and ratio < 1 / (1 + threshold):
        return "FASTER"
    if 1 / (1 + threshold) <= low and high <= 1 + threshold:
        return "SAME"
    return "UNCLEAR"


def ratio_of_medians(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Return median(after) / median(before) and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    old, new = (np.median(rng.choice(np.asarray(v), (_RESAMPLES, len(v))), axis=1)
                for v in (before, after))
    low, high = np.quantile(new / old, (0.025, 0.975))
    return float(np.median(after) / np.median(before)), float(low), float(high)


def median_ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the turns' ratios and its 95 % bootstrap interval."""
    ratios = np.asarray(after) / np.asarray(before)
    again = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(again, axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def _notes(before: Run, after: Run) -> list[str]:
    notes = [f"{name} is a noisy run: {run.noisy}"
             for name, run in (("before", before), ("after", after)) if run.noisy]
    fixed = [[n["calibration"] for n in run.noise if n.get("calibration")]
             for run in (before, after)]
    if all(fixed):
        ratio = float(np.median(fixed[1]) / np.median(fixed[0]))
        if not 0.98 < ratio < 1.02:
            notes.append(f"the machine itself: the fixed job took {ratio:.3f} times as long after; "
                         "ab measures two revisions in turns")
    for word in ("processor", "gpu"):
        a, b = before.machine.get(word), after.machine.get(word)
        if a != b:
            notes.append(f"another {word}: {a} before, {b} after")
    for word in ("threads", "clock"):
        a, b = before.settings.get(word), after.settings.get(word)
        if a != b:
            notes.append(f"another setting: {word} {a} before, {b} after")
    return notes


@dataclass(frozen=True)
class Growth:
    """time = factor * size ** exponent, with the exponent's standard error."""

    exponent: float
    error: float
    factor: float


def growth(sizes: Sequence[float], times: Sequence[float]) -> Growth | None:
    """Fit a straight line to log time against log size; None for fewer than three sizes."""
    if len(set(sizes)) < 3:
        return None
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(times, float))
    slope, start = np.polyfit(x, y, 1)
    rest = y - (start + slope * x)
    error = math.sqrt((rest**2).sum() / (len(x) - 2) / ((x - x.mean())**2).sum())
    return Growth(float(slope), error, float(np.exp(start)))


def crossover(cpu: dict[int, float], gpu: dict[int, float]) -> float | None:
    """Return the size from which on the GPU is faster.

    Parameters
    ----------
    cpu, gpu : dict
        Times by size; those of the GPU with transfers.

    Returns
    -------
    float or None
        Between two measured sizes, the crossing of the straight lines through their logarithms;
        the least size if the GPU always wins; None if it does not win at the largest.
    """
    sizes = sorted(cpu.keys() & gpu.keys())
    wins: list[Any] = [gpu[size] < cpu[size] for size in sizes]
    if not sizes or not wins[-1]:
        return None
    first = len(wins) - next((i for i, won in enumerate(reversed(wins)) if not won), len(wins))
    if first == 0:
        return float(sizes[0])
    a, b = sizes[first - 1], sizes[first]
    lead_a, lead_b = (math.log(gpu[size] / cpu[size]) for size in (a, b))
    share = lead_a / (lead_a - lead_b)
    return math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
