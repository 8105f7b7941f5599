"""What the commands share: options, error messages, tables and progress bars."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..engine.backends import BACKENDS
from ..errors import MinisrcnnError, printable, reason

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..checkpoint import ModelFile
    from ..srcnn import SRCNN


class Command(TyperCommand):
    """A command whose known errors are one line, and whose list options take several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read ``--data Set5 Set14`` as ``--data Set5 --data Set14``."""
        lists = {name for param in self.params if getattr(param, "multiple", False)
                 for name in param.opts}
        _Plain.put_before(self.get_params(ctx))
        return super().parse_args(ctx, _repeat(args, lists))

    def invoke(self, ctx: Any) -> Any:
        """Run; turn a :class:`MinisrcnnError` into its message and exit code 2."""
        try:
            return super().invoke(ctx)
        except MinisrcnnError as error:
            complain(str(error))
            raise typer.Exit(2) from None
        except MemoryError as error:
            complain(f"not enough memory ({reason(error)})")
            raise typer.Exit(1) from None
        except RuntimeError as error:  # Python has no type of its own for it
            if str(error) != "can't start new thread":
                raise
            complain("no thread can be started: too many processes or too little memory is allowed "
                     "(ulimit -u, ulimit -v)")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            complain("interrupted")
            raise typer.Exit(130) from None


class Commands(TyperGroup):
    """Commands under one name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the command's name."""
        _Plain.put_before(self.get_params(ctx))
        return super().parse_args(ctx, args)


class _Plain:
    """Takes values that are plainly right, and leaves all others to typer.

    Typer checks values by pydantic, whose import takes a tenth of a second: of a command on a
    small picture, an eighth.
    """

    def __init__(self, checked: Callable[[], Any]) -> None:
        self._checked = checked

    @classmethod
    def put_before(cls, params: list[Any]) -> None:
        """Have typer ask this first what a value of the command line is."""
        for param in params:
            checked = getattr(param, "get_runtime_param", None)  # none before typer used pydantic
            if checked is not None and not isinstance(getattr(checked, "__self__", None), cls):
                param.get_runtime_param = cls(checked).itself

    def itself(self) -> _Plain:
        """Return what has ``coerce``."""
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value as the command's function takes it."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        info, kind = param.type_descriptor.parameter_info, param.type_descriptor.annotation
        if info.parser is None and info.path_type is None:
            if kind is str and isinstance(value, str):
                return value
            if kind == list[str] and isinstance(value, (list, tuple)):
                return list(value)
            if kind in (int, float) and isinstance(value, (int, float, str)):
                with contextlib.suppress(ValueError):
                    number = kind(value)
                    low, high = (-math.inf if info.min is None else info.min,
                                 math.inf if info.max is None else info.max)
                    if low <= number <= high and not info.clamp and kind is type(number):
                        return number
        return self._checked().coerce(value, param=param, ctx=ctx)


Model = Annotated[str | None, typer.Option(
    metavar="NAME|PATH",
    help="A model file (ours, or the authors' .mat), a folder that holds one, the NAME of a "
         "training in runs/ or of a model of the package (minisrcnn models).",
    show_default="the package's for the scale")]
Scale = Annotated[int | None, typer.Option(
    min=2, max=16, help="How many times larger.",
    show_default="the model's own; 3 without a model")]
BACKEND_HELP = f"What computes: auto, {', '.join(BACKENDS)}."
Backend = Annotated[str, typer.Option(metavar="NAME", help=BACKEND_HELP)]


def _repeat(args: list[str], lists: set[str]) -> list[str]:
    """Repeat a list option before each of its values: ``--data A B`` is ``--data A --data B``."""
    repeated: list[str] = []
    current = None  # the list option whose values are being read
    for i, arg in enumerate(args):
        if arg == "--":
            return repeated + args[i:]
        if arg.startswith("-") and arg != "-":
            option = arg.split("=", 1)[0]
            current = option if option in lists else None
            fresh = current is not None and "=" not in arg
            repeated.append(arg)
        elif current is None or fresh:
            fresh = False
            repeated.append(arg)
        else:
            repeated += [current, arg]
    return repeated


def console(stderr: bool = False) -> Console:
    """Return a console of rich on standard output, or on standard error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def note(text: str) -> None:
    """Print a line on standard error; work goes on where nobody reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr)


def complain(text: str) -> None:
    """Print an error as one line on standard error."""
    note(f"minisrcnn: {text}")


def print_line(text: str) -> None:
    """Print a line of results on standard output."""
    print(printable(text), flush=True)


@contextlib.contextmanager
def user_values() -> Iterator[None]:
    """Report a value that a library function refuses as a request that was wrong."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise MinisrcnnError(str(error)) from error


def model_scale(loaded: ModelFile, path: Path) -> int | None:
    """Return the scale of a model: what its file says, else what its name hints at, with a note.

    The authors' files do not hold their scale.
    """
    from ..checkpoint import scale_from_name

    if loaded.scale is not None:
        return loaded.scale
    hint = scale_from_name(path)
    if hint is not None:
        note(f"{path} is by its name for scale {hint}.")
    return hint


def ask_for_scale(path: Path) -> MinisrcnnError:
    """Return what to raise where neither a model nor the user says the scale."""
    return MinisrcnnError(f"{path}: neither the file nor its name says for which scale it was "
                          "trained: name it with --scale")


def load_network(model: str, backend: str) -> tuple[ModelFile, Path, SRCNN]:
    """Load what ``--model`` names, with a warning where it was trained for something else."""
    from ..checkpoint import load_model, resolve_model
    from ..engine.backends import choose_backend
    from ..srcnn import SRCNN

    path = resolve_model(model)
    loaded = load_model(path)
    degradation = loaded.metadata.get("degradation", "bicubic")
    if degradation != "bicubic":
        note(f"Warning: {path} was trained on another degradation ({degradation}), "
             "not on the bicubic one that is used here.")
    return loaded, path, SRCNN.from_file(loaded, backend=choose_backend(backend))


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal while something runs, and nothing anywhere else."""
    if not sys.stderr.isatty():  # rich takes a tenth of a second to import
        yield lambda done, total: None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(),
               TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(printable(title)), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def new_table(*columns: str, left: tuple[str, ...], title: str = "") -> Table:
    """Return an empty table; columns in ``left`` are aligned left and folded, the others right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title), "bold"), title_justify="left", box=box.SIMPLE,
                  show_edge=False)
    for column in columns:
        if column in left:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def add_row(table: Table, *cells: str, style: str | None = None) -> None:
    """Add a row of plain text to a table."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def print_table(table: Table) -> None:
    """Print a table and an empty line; as plain whole lines where a terminal would cut numbers."""
    terminal = console()
    wanted = terminal.measure(table, options=terminal.options.update(max_width=120))
    if terminal.is_terminal and terminal.width >= wanted.minimum:
        terminal.print(table)
        terminal.print()
        return
    terminal.width = max(terminal.width, 80, wanted.maximum)
    with terminal.capture() as capture:
        terminal.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")


def number(value: float | None, digits: int, sign: str = "") -> str:
    """Format a number, or "-" where there is none."""
    return "-" if value is None or value != value else f"{value:{sign}.{digits}f}"


def print_json(value: Any) -> None:
    """Print a value as JSON, with null where a number is not finite."""
    from json import dumps

    print(dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    """Put null where a number is infinite or none: JSON has neither."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
