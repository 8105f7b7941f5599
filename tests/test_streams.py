"""Closed, full and broken standard streams; signals; homes that are not there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from minisrcnn import SRCNN, cli
from minisrcnn.checkpoint import load_model, save_model
from minisrcnn.commands.terminal import add_row, new_table, print_table
from minisrcnn.errors import printable
from minisrcnn.exchange.folders import write_folder
from minisrcnn.imaging.files import write_image
from minisrcnn.training.loop import train
from minisrcnn.training.settings import TrainSettings
from minisrcnn.training.state import summary

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and shells of POSIX")

TRAIN = ["train", "--data", "pictures", "--backend", "numpy", "--arch", "3-1-1", "--scale", "2",
         "--batch-size", "4"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    rng = np.random.default_rng(0)
    for name in ("T91", "Set5"):
        Path("pictures", name).mkdir(parents=True)
        image = rng.integers(0, 256, (60, 80)).astype(np.uint8)
        write_image(Path("pictures", name, "0.png"), image)
    save_model("m.safetensors", SRCNN("3", (), backend="numpy"), {"scale": "2"})
    return tmp_path


def shell(line, **options):
    """Run a line of shell with ``minisrcnn`` as a command; what blocks is a failure."""
    script = f'minisrcnn() {{ "{sys.executable}" -m minisrcnn "$@"; }}\n{line}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=900,
                          **options)


STREAMS = {">&-": 0, "2>&-": 0, ">&- 2>&-": 0, "<&- >&- 2>&-": 0, "> /dev/full": 1,
           "2> /dev/full": 0, "> /dev/full 2> /dev/full": 1}
COMMANDS = ["data list", "info", "--help", "evaluate --data pictures/T91 --scale 2 --backend numpy",
            "upscale pictures/T91/0.png --model m.safetensors --backend numpy -o out.png"]
EVERY_DAY = [(0, 0), (0, 3), (0, 5), (1, 4), (2, 1), (3, 6), (4, 2)]  # every stream, every command


@pytest.mark.parametrize("command, streams", [
    pytest.param(command, streams, marks=[] if (i, j) in EVERY_DAY else [pytest.mark.slow])
    for i, command in enumerate(COMMANDS) for j, streams in enumerate(STREAMS)])
def test_any_command_ends_cleanly(place, command, streams):
    code = STREAMS[streams]
    done = shell(f"minisrcnn {command} {streams}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if code and "2>" not in streams:
        assert done.stderr.endswith("standard output cannot be written (No space left on device)\n")


def test_a_picture_that_fits_in_part_is_no_success(place):
    """Without a buffer, a write to a disk that fills up writes what there is room for."""
    done = shell("ulimit -f 8; minisrcnn upscale pictures/T91/0.png --model m.safetensors "
                 "--backend numpy --format bmp -o - > out.bmp",
                 env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert done.returncode == 1 and done.stderr.endswith(
        "minisrcnn: standard output cannot be written (File too large)\n")


@pytest.mark.parametrize("streams, code", [
    ("2>&1 >/dev/null | head -1", 0), pytest.param("> /dev/full", 1, marks=pytest.mark.slow),
    pytest.param(">&- 2>&-", 0, marks=pytest.mark.slow),
    pytest.param("2> /dev/full", 0, marks=pytest.mark.slow),
    pytest.param("2>&1 >/dev/null | true", 0, marks=pytest.mark.slow),
])
def test_training_goes_on_where_nobody_listens(place, streams, code):
    done = shell(f"set -o pipefail; minisrcnn {' '.join(TRAIN)} --epochs 6 --out run {streams}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert load_model("run/model.safetensors").metadata["epochs"] == "6"
    assert Path("run/report.md").exists()


def started(*more, **options):
    """Begin a training that lasts, and wait for its first epoch."""
    child = subprocess.Popen(
        [sys.executable, "-m", "minisrcnn", *TRAIN, "--epochs", "100000", "--out", "run", *more],
        stderr=subprocess.PIPE, text=True, **options)
    watchdog = threading.Timer(900, child.kill)
    watchdog.daemon = True
    watchdog.start()
    deadline = time.monotonic() + 900
    while not Path("run/log.jsonl").exists() or Path("run/log.jsonl").read_text().count("\n") < 2:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return child


@pytest.mark.parametrize("name", [
    "SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))])
def test_signals_end_a_training_saved(place, name):
    child = started()
    child.send_signal(getattr(signal, name))
    _, rest = child.communicate()
    assert child.returncode == 130 and "interrupted and saved at step" in rest
    assert load_model("run/model.safetensors").scale == 2


def test_under_nohup_a_hangup_is_ignored(place):
    child = started(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    child.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(1)
    child.send_signal(signal.SIGTERM)
    assert child.communicate()[1].count("interrupted and saved") == 1


STUCK = """
import contextlib, sys, time
from minisrcnn.training import loop
interrupted = None
@contextlib.contextmanager
def kept(true=loop.interruptible):
    global interrupted
    with true() as interrupted:
        yield interrupted
loop.interruptible = kept
from minisrcnn.cli import main
true = loop._Run._score
def slow(self):
    if self.progress.step:
        print("stuck", file=sys.stderr, flush=True)
        while not interrupted():
            time.sleep(0.01)
        print("once", file=sys.stderr, flush=True)
        time.sleep(600)
    return true(self)
loop._Run._score = slow
main(sys.argv[1:])
"""


def test_two_interrupts_leave_a_model(place):
    """Two Ctrl-C while a score takes long: the weights of the last checkpoint, and no traceback."""
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK, *TRAIN, "--epochs", "9", "--out", "run"],
        stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None and any("stuck" in line for line in child.stderr)
    child.send_signal(signal.SIGINT)
    assert any("once" in line for line in child.stderr), "the first one ends nothing"
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=900)
    assert child.returncode == 130, rest
    assert "interrupted at once; saved is step 0" in rest and "Traceback" not in rest
    assert load_model("run/model.safetensors").scale == 2


def test_an_interrupt_while_the_command_is_loaded(place):
    Path("typer.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run([sys.executable, "-m", "minisrcnn", "models"], capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "minisrcnn: interrupted\n")


def test_an_interrupt_while_the_process_ends(place):
    code = """
import atexit, os, runpy, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)
runpy.run_module("minisrcnn", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT and done.stderr == ""


def test_a_terminal_that_goes_away(place):
    """The bar is drawn on a terminal whose other end is closed: training goes on."""
    import pty

    other, terminal = pty.openpty()
    child = subprocess.Popen([sys.executable, "-m", "minisrcnn", *TRAIN, "--epochs", "12",
                              "--out", "run"], stderr=terminal, stdout=subprocess.DEVNULL)
    os.close(terminal)
    assert os.read(other, 1)
    os.close(other)
    assert child.wait(900) == 0
    assert load_model("run/model.safetensors").metadata["epochs"] == "12"


@pytest.mark.parametrize("width", [0, 1, 20, 40, 80])
def test_a_narrow_terminal_cuts_no_number(monkeypatch, capsys, width):
    monkeypatch.setattr("minisrcnn.commands.terminal.console",
                        lambda: Console(force_terminal=True, width=width))
    table = new_table("picture", *["model dB"] * 5, left=("picture",))
    add_row(table, "a name that is long enough to be folded", *["38.2664"] * 5)
    print_table(table)
    assert capsys.readouterr().out.count("38.2664") == 5


# --- names --------------------------------------------------------------------------------------


def test_control_characters_are_escaped():
    assert printable("a\x1b[31mred\x07\r\x9b.png") == "a\\x1b[31mred\\x07\\r\\x9b.png"
    assert printable("two\nlines \udcff") == "two\\nlines \\udcff"
    assert printable("naïve ☃ 図.png") == "naïve ☃ 図.png"
    assert printable("\u202egnp.exe") == "\\u202egnp.exe"  # right-to-left override


@pytest.mark.parametrize("command", [
    "train --data $'a\\x1b[31m'", "evaluate --data $'a\\x1b[31m'",
    "upscale $'a\\x1b[31m.png' --model m.safetensors", "evaluate --model $'a\\x1b[31m'",
    "evaluate --data bad", "upscale bad/* --model m.safetensors", "data fetch $'a\\x1b[31m'",
    "train --data bad --backend numpy --out run",
])
def test_names_from_files_are_printed_without_control_characters(place, command, capfd):
    Path("bad").mkdir()
    Path("bad", "x\x1b[31m.png").write_bytes(b"no picture")
    words = shell(f"printf '%s\\n' {command}").stdout.splitlines()
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code in (1, 2)
    out, err = capfd.readouterr()
    assert "\x1b" not in err + out and "\\x1b[31m" in err


ODD = ["a\x1b[31m\nb", "$x_{$", "p|q", "[bold]x", "  two  spaces", os.fsdecode(b"\xff\xfe")]


def test_odd_names_in_tables_and_reports(place, capfd):
    """Each is whole, on one line, and no formula, markup or column of its own."""
    folder = Path("d\x1b]0;|\n$a$")
    folder.mkdir()
    for name in ODD:
        image = np.kron(np.tri(6) * 200, np.ones((8, 8)))
        if "$" in name:  # the worst one is drawn
            image = np.kron(np.tri(12) * 200, np.ones((4, 4)))
        write_image(folder / f"{name}.png", image.astype(np.uint8))
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--model", "bicubic", "--scale", "2", "--data", str(folder)])
    out, err = capfd.readouterr()
    rows = [line[1:].split("   ")[0] for line in out.splitlines()]
    for name in ODD[:4]:
        assert printable(name) in rows
    assert "   two  spaces  " in out and "\\udcff\\udcfe  " in out
    assert "\x1b" not in out + err and out.startswith("d\\x1b]0;|\\n$a$, scale 2\n")
    shutil.copytree(folder, folder / "Set5")
    result = train(TrainSettings(
        data=str(folder), recipe="paper", epochs=1, arch="5-1-3", scale=2,
        backend="numpy", out=Path("my run")), lambda text: None)
    page = Path("my run/report.md").read_text()
    assert "| data | d\\x1b]0;\\|\\n$a$ |" in page and "\x1b" not in page
    assert "--model 'my run'" in summary(result)
    write_folder("hub", load_model("my run/model.safetensors"))
    assert "- data: d\\x1b]0;|\\n$a$\n" in Path("hub/README.md").read_text()


ONE_BY_ONE = """
import sys
from minisrcnn.cli import main
codes = []
for line in sys.argv[1:]:
    try:
        codes.append(main(line.split()) or 0)
    except SystemExit as ended:
        codes.append(ended.code or 0)
print("codes", *codes)
"""


def test_a_fifo_is_refused_at_once(place):
    os.mkfifo("fifo.png")
    Path("fifos").mkdir()
    os.mkfifo("fifos/a.png")
    commands = ["upscale fifo.png --model m.safetensors --backend numpy", "evaluate --data fifos",
                "train --data fifos --backend numpy --out run", "evaluate --model fifo.png"]
    done = subprocess.run([sys.executable, "-c", ONE_BY_ONE, *commands], capture_output=True,
                          text=True, timeout=900)
    assert "Traceback" not in done.stderr and done.returncode == 0, done.stderr
    word, *codes = done.stdout.splitlines()[-1].split()
    assert word == "codes" and len(codes) == 4 and {*codes} <= {"1", "2"}, done.stderr


# --- homes --------------------------------------------------------------------------------------

HOMELESS = """
import pwd, sys
def nobody(*args):
    raise KeyError("uid not found")
pwd.getpwuid = pwd.getpwnam = nobody  # as `docker run -u 54321`: a user that the system lacks
""" + ONE_BY_ONE
CODES = {
    "info": 0, "data list": 0, "data verify": 1, "data fetch Set5": 2, "evaluate": 2,
    "evaluate --data pictures/T91 --scale 2 --backend numpy": 0,
    "upscale pictures/T91/0.png --model m.safetensors --backend numpy": 0,
    " ".join(TRAIN) + " --epochs 1 --out run": 0, "train --backend numpy --data T91": 2,
}


@pytest.mark.parametrize("commands, home", [
    pytest.param([*CODES], "unwritable", id="all in one process"),
    *(pytest.param([command], home, marks=pytest.mark.slow)
      for command in CODES for home in ("unwritable", "none"))])
def test_no_home(place, commands, home):
    env = {key: value for key, value in os.environ.items() if key in ("PATH", "PYTHONPATH")}
    env |= {"MINISRCNN_DATA_URL": "http://127.0.0.1:9", "OPENBLAS_NUM_THREADS": "1"}
    if home == "unwritable":  # for root too: below a file there is no folder
        Path("file").touch()
        nowhere = str(place / "file" / "home")
        env |= {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "NUMBA_CACHE_DIR": nowhere,
                "MPLCONFIGDIR": nowhere, "MINISRCNN_CACHE": nowhere}
    done = subprocess.run([sys.executable, "-c", HOMELESS, *commands], capture_output=True,
                          text=True, timeout=900, env=env)
    assert "Traceback" not in done.stderr and done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == " ".join(
        ["codes", *(str(CODES[command]) for command in commands)]), done.stderr
