"""Tables of result files, and the numbers in the documents.

A document asks for a table between two comments, and ``report --update`` writes it there from a
committed file; a test fails where they differ::

    <!-- benchmarks: speed cpu.json -->
    <!-- /benchmarks -->
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from . import ab, packed, pictures, results, scaling, verdicts
from .machine import ROOT
from .results import Row, Run

RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- benchmarks: (\S+) (\S+) -->\n)(.*?)(<!-- /benchmarks -->)", re.DOTALL)


# ---- picking rows ------------------------------------------------------------------------------


def merge(runs: Sequence[Run]) -> Run:
    """Return one run with the rows of all: those of a CPU and of a GPU, say."""
    first = runs[0]
    machines = " and ".join(dict.fromkeys(r.machine["processor"] for r in runs))
    gpus = [r.machine["gpu"] for r in runs if r.machine.get("gpu", "none") != "none"]
    missing = {name: why for r in runs for name, why in r.missing.items()
               if all(name in other.missing for other in runs)}
    return replace(first, rows=[row for r in runs for row in r.rows],
                   noise=[n for r in runs for n in r.noise], missing=missing,
                   noisy="; ".join(r.noisy for r in runs if r.noisy),
                   machine=first.machine | {"processor": machines,
                                            "gpu": gpus[0] if gpus else "none"})


def table_of(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return rows by case, then by implementation."""
    table: dict[str, dict[str, Row]] = {}
    for row in rows:
        table.setdefault(row.case, {})[row.implementation] = row
    return table


def best(rows: Iterable[Row], kind: str, device: str = "cpu") -> Row | None:
    """Return the fastest row of a kind."""
    return min((r for r in rows if r.kind == kind and r.device == device),
               key=lambda r: r.median, default=None)


def roof(run: Run, name: str, device: str = "cpu") -> float:
    """Return GFLOP/s of a roof, or GB/s of the triad; NaN if it was not measured."""
    for row in run.timed("roofs"):
        if row.group == name and row.device == device:
            return (row.mbyte if name == "triad" else row.mflop) / row.median
    return math.nan


# ---- tables ------------------------------------------------------------------------------------


def machine(run: Run) -> str:
    """One paragraph: what was measured on, when, and how quiet it was."""
    m, s = run.machine, run.settings
    versions = ", ".join(f"{name} {version}" for name, version in m.get("versions", {}).items())
    tree = " with changes" if m.get("clean") is False else ""
    gpu = "no GPU" if m.get("gpu", "none") == "none" else m["gpu"]
    quiet = (f"**A noisy run: {run.noisy}.**" if run.noisy else
             f"A quiet run: {sum(n.get('noisy', False) for n in run.noise)} of {len(run.noise)} "
             "rounds were noisy.")
    return (f"{m['processor']}, {s['threads']} threads, {gpu}; {m.get('system', '')}, governor "
            f"{m.get('governor', 'not readable')}; revision {m.get('revision', 'unknown')}{tree}, "
            f"{run.started[:10]}; Python {m.get('python', '')}, {versions}. {quiet}\n")


def roofs(run: Run) -> str:
    """Return what the machine can do, measured in the same run."""
    lines = []
    for row in run.timed("roofs"):
        rate = (f"{row.mbyte / row.median:.0f} GB/s" if row.group == "triad"
                else f"{row.gflops:.0f} GFLOP/s")
        lines.append([row.case + ("" if row.device == "cpu" else f", {row.implementation}"),
                      _ms(row.median), rate])
    return markdown(["roof", "ms", "rate"], lines)


def speed(run: Run) -> str:
    """Return the README's table: the large cases beside the best peer."""
    lines = []
    for rows in table_of(run.timed()).values():
        ours, peer = best(rows.values(), "ours"), best(rows.values(), "peer")
        if ours is None or peer is None or not (
                (ours.suite == "training" and ours.size == 128)
                or (ours.suite == "inference" and ours.size == 1024**2)):
            continue
        lines.append([ours.case, f"{_ms(ours.median)} ms", f"{_ms(peer.median)} ms, "
                      f"{peer.implementation}", f"{peer.median / ours.median:.1f}x"])
    return _marked(run, ["float32", "minisrcnn", "best peer", ""], lines)


def summary(run: Run) -> str:
    """Training and inference: ours, the best peer, their ratio, rates, and the error."""
    sgemm, lines = roof(run, "sgemm"), []
    for rows in table_of(run.timed()).values():
        ours, peer = best(rows.values(), "ours"), best(rows.values(), "peer")
        if ours is None or ours.suite not in ("training", "inference"):
            continue
        done = "" if ours.done_mflop is None else f"{ours.done_mflop / ours.median:.0f}"
        lines.append([
            ours.case, f"{_ms(ours.median)} ± {ours.spread:.0%}",
            "" if peer is None else f"{_ms(peer.median)}, {peer.implementation}",
            "" if peer is None else _ratio(ours, peer), f"{ours.gflops:.0f}", done,
            f"{ours.gflops / sgemm:.0%}", f"{ours.error:.0e}"])
    return _marked(run, ["", "ms", "best peer ms", "times as fast (95 %)", "nominal GFLOP/s",
                         "done GFLOP/s", "of sgemm", "error"], lines)


def ops(run: Run) -> str:
    """Single operations: production against PyTorch's better layout, by batch."""
    groups: dict[str, dict[int, str]] = {}
    sizes: set[int] = set()
    for rows in table_of(run.timed("ops")).values():
        ours, peer = best(rows.values(), "ours"), best(rows.values(), "peer")
        if ours is None or peer is None:
            continue
        ratio = peer.median / ours.median
        text = f"{_ms(ours.median)} / {_ms(peer.median)}, {'**' if ratio < 1 else ''}{ratio:.2f}x"
        groups.setdefault(ours.group, {})[ours.size] = text + ("**" if ratio < 1 else "")
        sizes.add(ours.size)
    return _marked(run, ["ms, ours / PyTorch", *(f"{size} patches" for size in sorted(sizes))],
                   [[group, *(cells.get(size, "") for size in sorted(sizes))]
                    for group, cells in groups.items()])


def ladder(run: Run) -> str:
    """Nominal GFLOP/s of every version."""
    return _wide(run, "ops", lambda row: f"{row.gflops:.3g}", kinds=("lesson", "ours"),
                 devices=("cpu",), title="nominal GFLOP/s")


def times(run: Run, suite: str) -> str:
    """Every implementation at every case: milliseconds, and the error against float64."""
    return _wide(run, suite, lambda row: f"{_ms(row.median)} ({row.error:.0e})",
                 title="ms (error)")


def gpu(run: Run) -> str:
    """Return times on a device in four manners."""
    rows = [r for r in run.rows if r.device == "gpu" and r.samples]
    if not rows:
        return "Not yet run on a GPU.\n"
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row.case, row.implementation), {})[row.timing] = _ms(row.median)
    manners = ("first", "cold", "warm", "end to end")
    cases = list(dict.fromkeys(case for case, _ in cells))
    order = {(case, who): (cases.index(case), who) for case, who in cells}
    return markdown(["case", "implementation", *(f"{name} ms" for name in manners)],
                    [[*key, *(c.get(name, "") for name in manners)] for key, c in sorted(
                        cells.items(), key=lambda cell: order[cell[0]])])


def on_gpu(run: Run) -> str:
    """Return what was timed on a GPU, beside PyTorch in float32 and TF32."""
    lines = []
    for rows in table_of(r for r in run.timed() if r.device == "gpu").values():
        ours = best(rows.values(), "ours", "gpu")
        if ours is None or ours.suite not in ("training", "inference", "ops"):
            continue
        peers = [rows.get(name) for name in ("PyTorch CUDA", "PyTorch CUDA TF32")]
        exact = peers[0]
        lines.append([ours.case, f"{_ms(ours.median)}, {ours.implementation}",
                      *("" if p is None else _ms(p.median) for p in peers),
                      "" if exact is None else _ratio(ours, exact),
                      f"{ours.gflops / 1000:.1f}", f"{ours.error:.0e}"])
    return markdown(["", "ms", "PyTorch ms", "PyTorch, TF32, ms", "times as fast (95 %)",
                     "nominal TFLOP/s", "error"], lines) or "Not yet run on a GPU.\n"


def gpu_ladder(run: Run) -> str:
    """Return nominal GFLOP/s of every CUDA version."""
    return _wide(run, "ops", lambda row: f"{row.gflops:.0f}", kinds=("lesson", "ours"),
                 devices=("gpu",), title="nominal GFLOP/s")


def crossover(run: Run) -> str:
    """From which size on the GPU is faster, transfers included."""
    lines = []
    for group, series in series_of(run, ("training", "inference", "ops")).items():
        cpu = {size: row.median for (who, size), row in series.items()
               if row.device == "cpu" and row.kind == "ours"}
        on_gpu = {row.size: row.median for row in run.timed("", "end to end")
                  if row.group == group and row.kind == "ours"}
        if not on_gpu or not cpu:
            continue
        size = verdicts.crossover(cpu, on_gpu)
        lines.append([group, "not up to the largest" if size is None else f"{size:,.0f}"])
    return markdown(["", "the GPU is faster from"], lines) if lines else "Not yet run on a GPU.\n"


def growth(run: Run) -> str:
    """Return the exponent of time against patches or pixels."""
    lines = []
    for group, series in series_of(run, ("training", "inference")).items():
        for who in dict.fromkeys(name for name, _ in series):
            points = {size: row.median for (name, size), row in series.items() if name == who}
            fit = verdicts.growth(list(points), list(points.values()))
            if fit is not None:
                lines.append([group, who, f"{fit.exponent:.3f} ± {fit.error:.3f}",
                              f"{min(points):,} to {max(points):,}"])
    return markdown(["", "implementation", "exponent", "sizes"], lines)


def untimed(run: Run) -> str:
    """Return what was not timed, and why."""
    together: dict[str, list[str]] = {}
    for name, why in run.missing.items():
        together.setdefault(why, []).append(name)
    lines = [["all", ", ".join(names), why] for why, names in together.items()]
    lines += [[row.case, row.implementation, f"{row.status}: {row.reason}"]
              for row in run.rows if row.status != "ok"]
    return markdown(["case", "implementation", "why"], lines) if lines else "Nothing.\n"


def compared(run: Run) -> str:
    """Return the verdicts of a file that ``ab`` wrote."""
    names = run.settings["revisions"]
    return (f"before: {names['before']}, after: {names['after']}\n\n"
            + verdicts.compare(*ab.split(run), paired=True).text() + "\n")


def ranks(run: Run) -> str:
    """Training steps by batch and ranks: milliseconds, of them the exchange, and efficiency."""
    ms, works = scaling.medians_of(run), scaling.works_of(run)
    cores = run.settings.get("processors", 1)
    counts = sorted({count for _, count, _ in ms})
    lines = []
    for group, work in works.items():
        cells = []
        for count in counts:
            step, exchange = ms[group, count, "step"], ms[group, count, "exchange"]
            share = f", {ms[group, 1, 'step'] / step / min(count, cores):.0%}" if count > 1 else ""
            cells.append(f"{_ms(step)} ({_ms(exchange)}){share}")
        lines.append([group, str(work.chunks), *cells])
    titles = [f"{n} rank{'s' * (n > 1)}" + " (no core each)" * (n > cores) for n in counts]
    return _marked(run, ["ms of a step (of an exchange), efficiency", "chunks", *titles], lines)


def projection(run: Run) -> str:
    """Say what the fitted model gives for more ranks than were measured: no measurement."""
    if not scaling.works_of(run):
        return ""
    model = scaling.fit(run)
    tables = []
    for link, there in (("links as fast as between processes here", model),
                        ("assumed links: " + scaling.SLOW_LINK, scaling.slower(model))):
        lines = []
        for work in scaling.projected_works(run):
            one = there.step(work, 1)
            cells = [f"{one / there.step(work, n):.3g}x" for n in scaling.PROJECTED]
            best = scaling.pays_up_to(there, work)
            lines.append([f"{work.arch}, {work.N:,} patches, {work.chunks:,} chunks", *cells,
                          f"{best:,} ({one / there.step(work, best) / best:.0%})"])
        tables.append(f"**Projection**, {link}:\n\n" + markdown(
            ["times as fast, by ranks", *(f"{n:,}" for n in scaling.PROJECTED),
             "pays up to (efficiency)"], lines))
    patch = ", ".join(f"{arch} {1e3 * took:.3g}" for arch, took in model.patch.items())
    update = ", ".join(f"{arch} {1e3 * took:.3g}" for arch, took in model.update.items())
    facts = (f"Fitted, microseconds: a patch {patch}; an update {update}; a message "
             f"{1e3 * model.message:.3g}; 1,000 numbers exchanged {1e6 * model.number:.3g}, added "
             f"{1e6 * model.add:.3g}. Largest deviation from a measured step of ranks with a core "
             f"each: {scaling.deviation(run, model):.0%}.\n")
    noisy = f"\n**Fitted to a noisy run: {run.noisy}.**\n" if run.noisy else ""
    return "\n".join([*tables, facts]) + noisy


def workers(run: Run) -> str:
    """Return how many small pictures a second one worker of ``upscale`` writes, and two."""
    rows = run.timed("workers")
    count = run.settings.get("pictures", 0)
    return _marked(run, ["", "seconds", "pictures a second"], [
        [row.case, f"{row.median / 1e3:.1f}", f"{1e3 * count / row.median:.0f}"] for row in rows])


def files(run: Run) -> str:
    """Return whole commands on picture files: time, processors, memory."""
    missing = "".join(f"\nNot measured: {name}: {why}.\n" for name, why in run.missing.items())
    return _marked(run, ["", "by", "time", "processors", "peak"], pictures.table(run)) + (
        missing if run.timed("files") else "")


def packed_sets(run: Run) -> str:
    """Return trainings from memory and from packed sets: patches a second, memory."""
    return _marked(run, ["", "", "patches a second", "against memory", "peak of memory"],
                   packed.table(run))


BLOCKS: dict[str, Callable[[Run], str]] = {
    "machine": machine, "roofs": roofs, "speed": speed, "summary": summary, "ops": ops,
    "ladder": ladder, "gpu": gpu, "on_gpu": on_gpu, "gpu_ladder": gpu_ladder,
    "crossover": crossover, "growth": growth, "untimed": untimed,
    "ab": compared, "ranks": ranks, "projection": projection, "workers": workers,
    "files": files, "packed": packed_sets,
    "training": lambda run: times(run, "training"),
    "inference": lambda run: times(run, "inference"), "times": lambda run: times(run, "ops"),
}
TITLES = {
    "roofs": "What the machine can do", "summary": "minisrcnn and its best peer",
    "ops": "Single operations, beside PyTorch's better layout",
    "ladder": "The versions, nominal GFLOP/s", "training": "Training steps: ms (error)",
    "inference": "Whole images: ms (error)", "times": "Single operations: ms (error)",
    "growth": "Growth: time is size to the power of", "on_gpu": "GPU: minisrcnn and PyTorch",
    "gpu_ladder": "The CUDA versions, nominal GFLOP/s",
    "gpu": "GPU: first call, cold, warm, whole",
    "crossover": "From which size on the GPU wins, with transfers", "untimed": "Not timed",
    "ab": "Two revisions", "ranks": "Ranks of MPI, one thread each",
    "projection": "More ranks than were measured: a projection", "workers": "Many small pictures",
    "files": "Picture files", "packed": "Training from a packed set",
}


# ---- documents ---------------------------------------------------------------------------------


def write(run: Run, folder: Path) -> str:
    """Write ``report.md``, ``rows.csv`` and the plots; return the report."""
    folder.mkdir(parents=True, exist_ok=True)
    results.write_csv(run, folder / "rows.csv")
    try:
        from . import plots
        pictures = plots.draw(run, folder)
    except ImportError as missing:
        pictures = []
        print(f"no plots: {missing}")
    parts = ["# Benchmarks", machine(run)]
    for name in ["ab"] if "revisions" in run.settings else [n for n in TITLES if n != "ab"]:
        if text := BLOCKS[name](run):
            parts += [f"## {TITLES[name]}", text]
    parts += [f"![{path.stem}]({path.name})" for path in pictures if path.suffix == ".png"]
    text = "\n\n".join(part.rstrip("\n") for part in parts) + "\n"
    (folder / "report.md").write_text(text)
    return text


@cache
def _load(names: str) -> Run:
    """Return a committed run, or several, joined by a plus, as one."""
    return merge([results.load(RESULTS / name) for name in names.split("+")])


def documents() -> list[Path]:
    """Return the documents that ask for tables."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")),
             *sorted((ROOT / "kernels").rglob("*.md"))]
    return [path for path in found if "<!-- benchmarks:" in path.read_text(encoding="utf-8")]


def missing_results() -> list[str]:
    """Return the result files that documents ask for and that are not there."""
    names = {name for path in documents()
             for _, _, file, _, _ in _BLOCK.findall(path.read_text(encoding="utf-8"))
             for name in file.split("+")}
    return sorted(name for name in names if not (RESULTS / name).exists())


def update_documents(write: bool) -> list[Path]:
    """Compare every table in the documents with the results; with ``write``, renew them.

    Returns
    -------
    list of Path
        The documents that differ, or differed.
    """
    _load.cache_clear()
    changed = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        new = render(text)
        if new != text:
            changed.append(path)
            if write:
                path.write_text(new, encoding="utf-8")
    if write:
        from . import plots

        names = {found[2] for path in documents()
                 for found in _BLOCK.findall(path.read_text(encoding="utf-8"))}
        missing = missing_results()
        for name in sorted(names):
            if not set(name.split("+")) & set(missing) and "revisions" not in _load(name).settings:
                plots.draw(_load(name), ROOT / "docs" / "plots" / name.split(".")[0])
    return changed


def render(text: str) -> str:
    """Return a document with its tables as the results have them.

    A table whose results are not committed stays as it is: :func:`missing_results` names them.

    Raises
    ------
    ValueError
        If it asks for a table that does not exist.
    """
    def fill(match: re.Match[str]) -> str:
        start, block, file, _, end = match.groups()
        if block not in BLOCKS:
            raise ValueError(f"a document has the table {block!r}, want one of {', '.join(BLOCKS)}")
        if not all((RESULTS / name).exists() for name in file.split("+")):
            return match[0]
        return f"{start}\n{BLOCKS[block](_load(file)).strip()}\n\n{end}"

    return _BLOCK.sub(fill, text)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or nothing if it has no lines."""
    lines = list(lines)
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(line) + " |" for line in
                      (head, ["---"] * len(head), *lines)]) + "\n"


# ---- details -----------------------------------------------------------------------------------


def _wide(run: Run, suite: str, cell: Callable[[Row], str], title: str,
          kinds: Sequence[str] = (), devices: Sequence[str] = ()) -> str:
    rows = [r for r in run.rows if r.suite == suite and r.timing == "warm"
            and (not kinds or r.kind in kinds) and (not devices or r.device in devices)]
    order = ("textbook", "lesson", "ours", "yours", "peer")
    columns = list(dict.fromkeys(r.implementation for r in sorted(
        rows, key=lambda r: (r.device, order.index(r.kind), number_of(r.implementation),
                             r.implementation)) if r.samples))
    noisy = _noisy_cases(run)

    def text(row: Row | None) -> str:
        if row is None or not row.samples:
            return "" if row is None or row.status == "skipped" else row.status
        return cell(row) + ("" if row.steady else " ~")

    return markdown([title, *columns], [
        [case + (" (noisy)" if case in noisy else ""), *(text(found.get(name)) for name in columns)]
        for case, found in table_of(rows).items()])


def series_of(run: Run, suites: Sequence[str]) -> dict[str, dict[tuple[str, int], Row]]:
    series: dict[str, dict[tuple[str, int], Row]] = {}
    for row in run.timed():
        if row.suite in suites:
            series.setdefault(row.group, {})[row.implementation, row.size] = row
    return series


def _noisy_cases(run: Run) -> set[str]:
    count: dict[str, list[bool]] = {}
    for n in run.noise:
        count.setdefault(n["case"], []).append(n.get("noisy", False))
    return {case for case, rounds in count.items() if sum(rounds) > len(rounds) / 4}


def _marked(run: Run, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table, and say below it if the machine was noisy."""
    noisy = f"\n**Measured on a noisy machine: {run.noisy}.**\n" if run.noisy and lines else ""
    return markdown(head, lines) + noisy


def _ratio(ours: Row, peer: Row) -> str:
    ratio, low, high = verdicts.ratio_of_medians(ours.turns, peer.turns)
    return f"**{ratio:.2f}x** ({low:.2f} to {high:.2f})"


def number_of(name: str) -> int:
    found = re.search(r"\bv(\d+)", name)
    return int(found[1]) if found else 0


def _ms(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
