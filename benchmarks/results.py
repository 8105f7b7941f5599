"""The result file: one schema for every suite, CPU and GPU, with every sample.

A file is one run. Its rows are one implementation at one case, timed in one manner. Samples are
grouped by the turn in which they were taken: those of one turn share the machine's mood, so it is
the turns' medians, not the samples, that statistics may take as independent.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 2  # 1 was a file for each suite, with medians only

# How a time was taken. On a CPU only the first two are: caches are warm in a loop.
TIMINGS = ("warm", "first", "cold", "end to end")


@dataclass
class Row:
    """One implementation at one case.

    Attributes
    ----------
    suite : str
        ``roofs``, ``ops``, ``training``, ``inference`` or ``transfer``; ``files``: whole commands.
    case : str
        What was computed, in words; unique within a run.
    group, size : str, int
        The series that the case belongs to, and its place there: patches of a batch, pixels of an
        image, bytes of a transfer.
    implementation, device : str
        Who computed it, and on ``"cpu"`` or ``"gpu"``.
    kind : str
        What that is: ``textbook``, ``lesson``, ``ours`` (what users run), ``peer``, ``yours`` or
        ``roof``.
    status : str
        ``ok``; ``wrong`` (failed the gate), ``failed`` or ``skipped``, which have no samples.
    timing : str
        One of :data:`TIMINGS`.
    samples : list of lists of float
        Milliseconds of one call, turn by turn.
    mflop, done_mflop : float, float or None
        Operations of the plain sum; those actually done, where known (Winograd does fewer).
    mbyte : float
        Bytes of inputs and outputs, each counted once.
    error, gate : float or None
        Largest error against float64 over the largest result, and what is allowed.
    setting : str
        Which of the implementation's settings was fastest and was timed.
    threads : float or None
        Processor seconds per second while it ran.
    steady : bool
        Whether the warm-up became steady within its budget.
    reason : str
        Why there are no samples.
    peak_mb : float or None
        Peak of the memory of a whole process, where that was run.
    """

    suite: str
    case: str
    group: str
    size: int
    implementation: str
    device: str = "cpu"
    kind: str = "ours"
    status: str = "ok"
    timing: str = "warm"
    samples: list[list[float]] = field(default_factory=list)
    mflop: float = 0.0
    done_mflop: float | None = None
    mbyte: float = 0.0
    error: float | None = None
    gate: float | None = None
    setting: str = ""
    threads: float | None = None
    steady: bool = True
    reason: str = ""
    peak_mb: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes the row the same row in another run."""
        return self.case, self.implementation, self.timing

    @property
    def turns(self) -> list[float]:
        """The median of each turn, in milliseconds."""
        return [statistics.median(turn) for turn in self.samples]

    @property
    def median(self) -> float:
        """The median of the turns, in milliseconds; NaN if there are none."""
        return statistics.median(self.turns) if self.samples else float("nan")

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles of the turns over their median."""
        if len(self.samples) < 4:
            return 0.0
        low, _, high = statistics.quantiles(self.turns, n=4)
        return (high - low) / 2 / self.median

    @property
    def gflops(self) -> float:
        """Nominal operations a second, in billions."""
        return self.mflop / self.median


@dataclass
class Run:
    """A run: its rows, the machine, and how quiet it was.

    ``noise`` has a record a case and round: ``pressure`` (share of time in which some task waited
    for a processor), ``steal`` (share taken by the hypervisor) and ``calibration`` (milliseconds
    of a fixed job). ``missing`` says why an implementation could not take part at all.
    """

    command: list[str]
    started: str
    seconds: float
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]
    noise: list[dict[str, Any]]
    noisy: str = ""  # why the run counts as noisy; empty if it does not
    missing: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def timed(self, suite: str = "", timing: str = "warm") -> list[Row]:
        """Return the rows that have samples, of one suite or all."""
        return [r for r in self.rows if r.samples and r.timing == timing
                and suite in ("", r.suite)]


def save(run: Run, path: Path) -> None:
    """Write a run, whole or not at all; one row a line, so that versions can be compared."""
    head = asdict(run)
    rows, noise = head.pop("rows"), head.pop("noise")
    lines = [json.dumps(head, indent=1)[:-2] + ",", ' "noise": [',
             ",\n".join("  " + json.dumps(n) for n in noise), " ],", ' "rows": [',
             ",\n".join("  " + json.dumps(r) for r in rows), " ]", "}", ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write("\n".join(lines))
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def load(path: Path) -> Run:
    """Read a run.

    Raises
    ------
    ValueError
        If the file is not a run of this schema.
    OSError
        If it cannot be read.
    """
    try:
        data = json.loads(Path(path).read_text())
        schema = data["schema"]
        if schema == SCHEMA:
            return Run(**data | {"rows": [Row(**row) for row in data["rows"]]})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result file of python -m benchmarks ({error})") from None
    raise ValueError(f"{path} has schema {schema}, want {SCHEMA}: measure again")


def write_csv(run: Run, path: Path) -> None:
    """Write one line a row: for spreadsheets. The samples stay in the JSON."""
    names = ("suite", "case", "group", "size", "implementation", "device", "kind", "timing",
             "status", "mflop", "done_mflop", "mbyte", "error", "gate", "setting", "threads",
             "steady", "reason")
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*names, "turns", "median_ms", "least_ms", "spread", "gflops"])
        for row in run.rows:
            figures = ([len(row.samples), row.median, min(min(t) for t in row.samples), row.spread,
                        row.gflops] if row.samples else [0, "", "", "", ""])
            table.writerow([getattr(row, name) for name in names] + figures)
