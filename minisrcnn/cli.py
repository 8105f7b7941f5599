"""The command line: ``minisrcnn train | evaluate | upscale | models | convert | learn | ...``.

Exit codes: 0 done, 1 some inputs failed, 2 the request was wrong, 130 interrupted. Results go to
standard output, everything else to standard error. Nothing heavy is imported before a command
runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from . import __version__
from .commands import data, learn
from .commands.convert import convert_command
from .commands.evaluate import evaluate_command
from .commands.gradcheck import gradcheck_command
from .commands.info import info_command
from .commands.models import models_command
from .commands.terminal import Command, Commands, complain
from .commands.train import train_command
from .commands.upscale import upscale_command

# How writing to standard output fails; files of our own name themselves in their errors.
_STREAM_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

app = typer.Typer(
    cls=Commands,
    help="SRCNN from scratch: train it, score it, upscale pictures with it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", cls=Command)(train_command)
app.command("evaluate", cls=Command)(evaluate_command)
app.command("upscale", cls=Command)(upscale_command)
app.command("models", cls=Command)(models_command)
app.command("convert", cls=Command)(convert_command)
app.command("gradcheck", cls=Command)(gradcheck_command)
app.command("info", cls=Command)(info_command)
app.add_typer(data.app, name="data")
app.add_typer(learn.app, name="learn")


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line, ``sys.argv`` by default, and exit; the entry point of ``minisrcnn``."""
    args = sys.argv[1:] if args is None else args
    _open_standard_streams()
    if os.path.expanduser("~") == "~":  # a user whom the system lacks; libraries fail at that
        os.environ["HOME"] = "/nonexistent"  # which they take for one that cannot be written to
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name can hold anything
    try:
        code = app(args=args, prog_name="minisrcnn", standalone_mode=False) or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        code = 130
    except OSError as error:
        if error.filename is not None or error.errno not in _STREAM_ERRORS:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # of a reader, such as `head`, that has enough
            complain(f"standard output cannot be written ({error.strerror})")
        code = 1
    except Exception as error:
        # What typer itself refuses: an unknown option, a value of the wrong type.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "minisrcnn"
        text = " ".join(message().split()).rstrip(".") or "no command is named"
        complain(f"{text} (see {command} --help)")
        code = getattr(error, "exit_code", 2)
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open what was closed (``minisrcnn ... >&-``) on the null device.

    Else the next file that is opened gets the stream's number, and what is printed goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115


def _print_version(value: bool) -> None:
    if value:
        print(f"minisrcnn {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option(
        "--version", is_eager=True, callback=_print_version, help="Print the version.")] = False,
) -> None:
    pass
