"""``minisrcnn learn start | list | check | hint | solution | reports``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MinisrcnnError
from .terminal import Command, add_row, new_table, note, print_line, print_table

if TYPE_CHECKING:
    from ..learn.course import Exercise
    from ..learn.grading import Verdict

app = typer.Typer(help="Exercises: write the gradients of a convolution yourself.",
                  no_args_is_help=True)

Number = Annotated[int, typer.Argument(metavar="N", help="Number of the exercise.")]
Folder = Annotated[Path, typer.Option(
    "--dir", metavar="DIR", help="Your folder, where `learn start` put the exercises.")]

_PROGRESS = ".progress.json"


@app.command("start", cls=Command)
def learn_start(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for your exercises.")],
) -> None:
    """Copy the exercises into a folder; what is there already is left alone."""
    from ..learn.course import exercises

    try:
        folder.mkdir(parents=True, exist_ok=True)
        copied = 0
        for task in exercises():
            file = folder / f"{task.name}.py"
            if not file.exists():
                file.write_text(task.skeleton, encoding="utf-8")
                copied += 1
    except OSError as error:
        raise MinisrcnnError(f"{folder}: cannot be written ({error.strerror})") from None
    kept = len(exercises()) - copied
    same = f", {kept} kept as they are" if kept else ""
    print_line(f"{copied} exercises copied to {folder}{same}.")
    print_line(f"Open {folder / exercises()[0].name}.py, fill its gap, then: "
               f"cd {shlex.quote(str(folder))} && "
               "minisrcnn learn check 1")


@app.command("list", cls=Command)
def learn_list(folder: Folder = Path()) -> None:
    """Show the exercises and how far you are."""
    from ..learn.course import exercises

    progress = _progress(folder)
    table = new_table("", "exercise", "file", "so far", left=("exercise", "file", "so far"))
    for task in exercises():
        add_row(table, str(task.number), task.title, task.name + ".py",
                      progress.get(task.name, "-"))
    print_table(table)


@app.command("check", cls=Command)
def learn_check(
    number: Annotated[int | None, typer.Argument(
        metavar="[N]", show_default="up to the first that does not pass")] = None,
    folder: Folder = Path(),
    watch: Annotated[bool, typer.Option(
        "--watch", help="Check again whenever the file changes; Ctrl-C ends it.")] = False,
) -> None:
    """Grade an exercise, or all up to the first that does not pass; exit code 1 if one does not."""
    from ..learn.course import exercise, exercises

    tasks = list(exercises()) if number is None else [exercise(number)]
    if not any((folder / f"{task.name}.py").is_file() for task in exercises()):
        raise MinisrcnnError(f"{folder.resolve()}: no exercises here; make them with `minisrcnn "
                             "learn start DIR`, then go there or name it with --dir")
    while True:
        passed, task = _check(tasks, folder)
        if not watch:
            raise typer.Exit(0 if passed else 1)
        _wait_for_change(folder / f"{task.name}.py")


@app.command("hint", cls=Command)
def learn_hint(number: Number) -> None:
    """Print the task of an exercise, and the mistakes that are often made."""
    from ..learn.course import exercise
    from ..learn.grading import load

    task = exercise(number)
    print(task.task)
    print("\nOften:")
    for _, _, hint in load(task.grading, "grading_of_" + task.name).MISTAKES:
        print(f"  - {hint}")


@app.command("solution", cls=Command)
def learn_solution(number: Number) -> None:
    """Print a solution of an exercise."""
    from ..learn.course import exercise

    print(exercise(number).solution)


@app.command("reports", cls=Command)
def learn_reports() -> None:
    """Print the reports of the bug zoo, the last exercise."""
    from ..learn.course import exercises
    from ..learn.grading import load

    for text in load(exercises()[-1].grading, "bug_zoo").reports():
        print(text + "\n")


def _check(tasks: list[Exercise], folder: Path) -> tuple[bool, Exercise]:
    """Grade until one does not pass; return whether all did, and the last one graded."""
    from ..learn.grading import grade

    for task in tasks:
        file = folder / f"{task.name}.py"
        if not file.is_file():
            again = f"`minisrcnn learn start {shlex.quote(str(folder))}` copies it again"
            if len(tasks) == 1:
                raise MinisrcnnError(f"{file} is missing: {again}")
            note(f"{file} is missing, skipped: {again}.")
            continue
        verdict = grade(task.number, file)
        _show(task, verdict)
        _keep(folder, task.name, verdict.status)
        if verdict.status not in ("passed", "skipped"):
            return False, task
    return True, tasks[-1]


def _show(task: Exercise, verdict: Verdict) -> None:
    print(f"{task.number:2} {task.title}  {verdict.status}")
    if verdict.text:
        print("   " + verdict.text.replace("\n", "\n   "))
    if verdict.hint:
        print(f"   -> {verdict.hint}")
    elif verdict.status == "wrong":
        print(f"   -> minisrcnn learn hint {task.number}")


def _progress(folder: Path) -> dict[str, str]:
    try:
        kept = json.loads((folder / _PROGRESS).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in kept.items()} if isinstance(kept, dict) else {}


def _keep(folder: Path, name: str, status: str) -> None:
    temporary = folder / f"{_PROGRESS}.part"
    try:
        temporary.write_text(json.dumps(_progress(folder) | {name: status}), encoding="utf-8")
        temporary.replace(folder / _PROGRESS)
    except OSError as error:
        note(f"{folder / _PROGRESS}: progress is not kept ({error.strerror}).")


def _wait_for_change(file: Path) -> None:
    import time

    def stamp() -> int:
        try:
            return file.stat().st_mtime_ns
        except OSError:  # an editor is just replacing it
            return 0

    before = stamp()
    note(f"Watching {file.name} ...")
    while stamp() == before:
        time.sleep(0.3)
