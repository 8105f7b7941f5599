"""Kills, damaged files, guard pages, interrupts, as long as you like: `tests/soak.py MINUTES`.

Not part of the test suite: run it by hand, before a release or on a new kind of machine
(``python tests/soak.py 10``). The time is shared out evenly; counts are printed at the end, and the
exit code is 1 if anything failed. ``--seed N`` repeats a run, ``--only PART`` does one part.

kills       Trainings of several recipes killed with SIGKILL at random moments, or interrupted, and
            resumed: the weights must be, bit by bit, those of a training that nothing disturbed.
writes      `convert` and `data pack` killed with SIGKILL before one of their changes to the disk,
            or at a random moment: what lies under a result's name must be whole, and the same
            command again must finish it and leave nothing over.
mutants     Models (ours, MATLAB, ONNX, PyTorch), checkpoints, logs, manifests and pictures with
            bytes changed, cut out or doubled, read in a process of their own: what is wrong must be
            refused in one line, and no process may die.
guards      Convolutions of random shapes whose arrays end at a page that may not be touched: one
            number too far is a crash.
interrupts  Predictions broken off by a signal, each followed at once by another call, whose result
            must be right.
pictures    Hundreds of small pictures upscaled by two workers; now and then one of them, or both
            and the job, is killed with SIGKILL and the job resumed: every result must be there,
            whole, the bytes of a run that nothing disturbed. ``--pictures N``: this alone, once.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from minisrcnn import SRCNN
from minisrcnn.checkpoint import load_model, save_model
from minisrcnn.engine.backends import get_backend
from minisrcnn.errors import MinisrcnnError
from minisrcnn.exchange import convert, read_model
from minisrcnn.imaging.files import read_image, write_image
from minisrcnn.training.files import CHECKPOINT_FILE, LOG_FILE, RunFiles
from minisrcnn.upscale.batch import Manifest, Outcome
from minisrcnn.upscale.plan import Job

BATCH = 250  # mutants that one process reads
RECIPES = ("paper", "fast")  # plain steps, and those of Muon and of Adam on cosine coefficients


# --- kills --------------------------------------------------------------------------------------


def train(recipe: str, folder: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a small training."""
    return subprocess.Popen(
        [sys.executable, "-m", "minisrcnn", "train", "--data", str(folder), "--scale", "2",
         "--arch", "5-1-3", "--recipe", recipe, "--epochs", "3", "--threads", "1",
         "--out", str(out), *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def weights(out: Path) -> dict[str, bytes]:
    """Return the trained weights, as bytes."""
    return {name: value.tobytes() for name, value in
            load_model(out / "model.safetensors").parameters.items()}


def kills(deadline: float, rng: random.Random, work: Path, count: Counter[str]) -> None:
    """Kill trainings, resume them, and compare."""
    pictures = work / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0)
    for k in range(6):
        picture = np.kron(noise.integers(0, 256, (12, 12)), np.ones((8, 8))).astype(np.uint8)
        write_image(pictures / f"p{k}.png", picture)
    seconds: dict[str, float] = {}
    for recipe in RECIPES:
        began = time.monotonic()
        train(recipe, pictures, work / recipe).wait()
        seconds[recipe] = time.monotonic() - began
    while time.monotonic() < deadline:
        recipe = rng.choice(RECIPES)
        out = work / f"killed{count['trainings']}"
        arguments: list[str] = []
        while True:
            running = train(recipe, pictures, out, *arguments)
            try:
                running.wait(rng.uniform(0.1, 1.2) * seconds[recipe])
            except subprocess.TimeoutExpired:
                kill = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
                os.killpg(running.pid, kill)
                running.wait()
                count[kill.name] += 1
                # A kill before the first checkpoint leaves nothing to go on with.
                begun = any(out.glob("checkpoint*.safetensors"))
                arguments = ["--resume"] if begun else []
                if running.returncode in (-kill, 130, 143):
                    continue
            if running.returncode:
                said = running.stderr.read().decode(errors="replace") if running.stderr else ""
                print(f"training: exit code {running.returncode}: {said.strip()[-300:]}")
                count["failed"] += 1
            break
        count["trainings"] += 1
        if not running.returncode and weights(out) != weights(work / recipe):
            print(f"training: other weights in {out}")
            count["failed"] += 1


# --- kills of commands that write ---------------------------------------------------------------


def die_before(number: int, arguments: list[str]) -> None:
    """Run a command, and end it before its ``number``-th change to the disk."""
    from minisrcnn import cli

    changes = 0

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = event == "open" and isinstance(details[2], int) and details[2] & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    cli.main(arguments)


def tree(path: Path) -> dict[str, bytes] | None:
    """Return a file, or all files of a folder, hidden ones too; None where there is nothing."""
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() if file.is_file() else b""
                for file in path.rglob("*")}
    return {"": path.read_bytes()} if path.exists() else None


def writes(deadline: float, rng: random.Random, work: Path, count: Counter[str]) -> None:
    """Kill `convert` and `data pack`, look at what is there, run them again."""
    folder = work / "to write"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for k in range(4):
        write_image(folder / f"{k}.png", noise.integers(0, 256, (40, 50)).astype(np.uint8))
    model = work / "to-convert.safetensors"
    save_model(model, SRCNN("5-1-3", (4, 2), backend="numpy"), {"scale": "3"})
    convert = ["convert", str(model)]
    commands = {"hub": convert, "m.safetensors": convert,
                "set.luma": ["data", "pack", str(folder), "-o"]}

    def run(place: Path, name: str, number: int = 0,
            seconds: float | None = None) -> tuple[int, str]:
        running = subprocess.Popen(
            [sys.executable, __file__, "--die-before", str(number), *commands[name],
             str(place / name)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
        try:
            said = running.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            running.kill()
            said = running.communicate()[1]
        return running.returncode, said.strip()

    def whole(there: dict[str, bytes] | None, want: dict[str, bytes]) -> bool:
        # A folder without a model is refused by whatever reads it.
        return there is None or there == want or (
            "config.json" in want and "model.safetensors" not in there)

    place = work / "undisturbed"
    place.mkdir()
    wanted, took = {}, {}
    for name in commands:
        began = time.monotonic()
        run(place, name)
        took[name] = time.monotonic() - began
        wanted[name] = tree(place / name) or {}
    while time.monotonic() < deadline:
        place, name = work / f"written{count['rounds']}", rng.choice(list(commands))
        place.mkdir()
        for _ in range(rng.choice((1, 1, 2, 3))):
            code, said = (run(place, name, rng.randint(1, 12)) if rng.random() < 0.8 else
                          run(place, name, 0, rng.uniform(0.3, 1.1) * took[name]))
            count["SIGKILL"] += code == -signal.SIGKILL
            if not whole(tree(place / name), wanted[name]):
                print(f"writes: {name} is there and not whole")
                count["failed"] += 1
        code, said = run(place, name)
        done = code == 0 or "already" in said
        if not done or tree(place) != {
                str(Path(name, file)): data for file, data in wanted[name].items()} | (
                {name: b""} if (place / name).is_dir() else {}):
            print(f"writes: {name}: exit code {code}, {said[-300:]}; there is "
                  f"{sorted(str(path.relative_to(place)) for path in place.rglob('*'))}")
            count["failed"] += 1
        count["rounds"] += 1
        shutil.rmtree(place)


# --- mutants ------------------------------------------------------------------------------------


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Change, cut out, double or add some bytes; the head, where formats live, most of all."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        if not changed:
            break
        at = rng.randrange(min(len(changed), rng.choice((64, 400, len(changed)))))
        kind = rng.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 127, 128, 254, 255))
        elif kind == 2:
            del changed[at:at + rng.choice((1, 4, 100, len(changed)))]
        elif kind == 3:
            changed[at:at] = changed[at:at + rng.choice((1, 8, 64))]
        elif kind == 4:
            changed[at:at + 8] = rng.randbytes(8)
        else:
            changed[at:at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4))
    return bytes(changed)


def seeds(work: Path) -> list[Path]:
    """Write one good file of each kind."""
    from PIL import Image
    from scipy.io import savemat

    folder = work / "good"
    folder.mkdir()
    net = SRCNN("5-1-3", (4, 2), backend="numpy")
    save_model(folder / "model.safetensors", net, {"scale": "3"})
    rng = np.random.default_rng(0)
    savemat(folder / "authors.mat", {
        "weights_conv1": rng.normal(size=(25, 4)), "weights_conv2": rng.normal(size=(4, 1, 2)),
        "weights_conv3": rng.normal(size=(2, 9)), "biases_conv1": rng.normal(size=(4, 1)),
        "biases_conv2": rng.normal(size=(2, 1)), "biases_conv3": np.zeros((1, 1))})
    for recipe in RECIPES:
        checkpoint = work / recipe / "checkpoint.safetensors"
        if checkpoint.exists():
            (folder / f"checkpoint-{recipe}.safetensors").write_bytes(checkpoint.read_bytes())
            (folder / "log.jsonl").write_bytes((work / recipe / "log.jsonl").read_bytes())
    for package, suffix in (("onnx", "onnx"), ("torch", "pth")):
        if importlib.util.find_spec(package) is not None:
            write_foreign(folder / f"foreign.{suffix}", net)
    with Manifest(folder / "manifest.jsonl") as manifest:
        for error in (None, "no room"):
            manifest.add(Outcome(Job(Path("a.png"), folder), None, error))
    picture = Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "bmp", "gif", "tiff", "webp"):
        picture.save(folder / f"picture.{suffix}")
    return sorted(folder.iterdir())


def write_foreign(path: Path, net: SRCNN) -> None:
    """Write a model as another program does."""
    if path.suffix == ".onnx":
        convert(path.with_name("model.safetensors"), path)
    else:
        import torch

        torch.save({name: torch.tensor(np.asarray(value)) for name, value in
                    net.parameters.items()}, path)


def read(path: Path) -> str:
    """Read a file of any kind; return "read" or "refused"."""
    lines: list[str] = []
    try:
        if path.name.startswith("checkpoint"):
            path.replace(path.with_name(CHECKPOINT_FILE))
            RunFiles(path.parent).load(lines.append)
        elif path.name.startswith("log"):
            path.replace(path.with_name(LOG_FILE))
            RunFiles(path.parent).read_log(lines.append)
        elif path.name.startswith("manifest"):
            Manifest(path).finished()
        elif path.name.startswith("foreign"):
            read_model(path)
        elif path.name.startswith("picture"):
            read_image(path)
        else:
            load_model(path)
    except MinisrcnnError as error:
        if not str(error).isprintable():
            raise RuntimeError("an error of several lines, or with control characters") from error
        return "refused"
    return "read"


def read_all(folder: Path) -> None:
    """Read what lies in a folder; say before each file which it is, so that a crash has a name."""
    for path in sorted(folder.iterdir()):
        print(path.name, flush=True)
        try:
            print(f"= {read(path)}", flush=True)
        except Exception as error:
            print(f"= {type(error).__name__}: {error}".splitlines()[0], flush=True)


def mutants(deadline: float, rng: random.Random, work: Path, count: Counter[str]) -> None:
    """Read damaged files, hundreds in a process."""
    good = seeds(work)
    while time.monotonic() < deadline:
        folder = work / "mutants"
        folder.mkdir(exist_ok=True)
        for k in range(BATCH):
            source = rng.choice(good)
            name = f"{source.stem}.{k}{source.suffix}"
            (folder / name).write_bytes(mutate(source.read_bytes(), rng))
        done = subprocess.run([sys.executable, __file__, "--read", str(folder)],
                              capture_output=True, text=True, errors="replace", check=False)
        lines = done.stdout.splitlines()
        names, outcomes = lines[::2], lines[1::2]
        for name, outcome in zip(names, outcomes, strict=False):
            kind = outcome.removeprefix("= ")
            count["read" if kind == "read" else "refused" if kind == "refused" else "failed"] += 1
            if kind not in ("read", "refused"):
                print(f"{name}: {kind}")
        if done.returncode:
            print(f"{names[-1] if names else '?'}: the process died ({done.returncode})")
            count["failed"] += 1
        for path in folder.iterdir():
            path.unlink()


# --- guard pages --------------------------------------------------------------------------------


class Guarded:
    """An array whose last byte is followed by a page that may not be touched."""

    def __init__(self, values: np.ndarray) -> None:
        page = mmap.PAGESIZE
        room = -(-values.nbytes // page) * page
        self.memory = mmap.mmap(-1, room + page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(base + room), page, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        whole = np.frombuffer(self.memory, np.uint8, values.nbytes, room - values.nbytes)
        self.array = whole.view(values.dtype).reshape(values.shape)
        self.array[...] = values


def guards(deadline: float, rng: random.Random, work: Path, count: Counter[str]) -> None:
    """Convolve in a process of its own, which a wrong access ends."""
    while time.monotonic() < deadline:
        done = subprocess.run(
            [sys.executable, __file__, "--guards", str(rng.randrange(1 << 30)),
             "--seconds", str(min(30.0, max(1.0, deadline - time.monotonic())))],
            capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        count["shapes"] += len(lines)
        if done.returncode:
            print(f"guard pages: the process died ({done.returncode}) at {lines[-1:]}")
            count["failed"] += 1


def convolve_guarded(seed: int, seconds: float) -> None:
    """Convolve random shapes at guard pages, and print each shape before it is done."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    backend = get_backend("numba")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        N, C, F = rng.randint(1, 4), rng.choice((1, 3, 8, 32, 64)), rng.choice((1, 3, 8, 32, 64))
        K = rng.choice((1, 3, 5, 7, 9))
        H, W = K + rng.randint(0, 24), K + rng.randint(0, 24)
        dtype = rng.choice(("float32", "float64"))
        print(N, C, F, K, H, W, dtype, flush=True)
        x, w, b, dy = (Guarded(draw.normal(size=shape).astype(dtype)).array for shape in
                       ((N, C, H, W), (F, C, K, K), (F,), (N, F, H - K + 1, W - K + 1)))
        backend.conv2d_forward(x, w, b)
        backend.conv2d_backward_input(dy, w)
        backend.conv2d_backward_weight(x, dy)


# --- interrupts ---------------------------------------------------------------------------------


def interrupts(deadline: float, rng: random.Random, work: Path, count: Counter[str]) -> None:
    """Break predictions off, and predict again at once."""
    net = SRCNN("9-1-5", backend="numba", seed=1)
    image = np.random.default_rng(0).random((500, 400), dtype=np.float32)
    want = net.predict(image)
    began = time.monotonic()
    net.predict(image)
    seconds = time.monotonic() - began

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while time.monotonic() < deadline:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, seconds))
                net.predict(image)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                count["interrupts"] += 1
            count["calls"] += 1
            if not np.array_equal(net.predict(image), want):
                print("a call after an interrupt gave other numbers")
                count["failed"] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- many pictures ------------------------------------------------------------------------------


def upscale(folder: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start upscaling a folder of pictures."""
    return subprocess.Popen(
        [sys.executable, "-m", "minisrcnn", "upscale", str(folder), "-o", str(out), "--backend",
         "numba", *more], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def contents(out: Path) -> dict[str, bytes]:
    """Return what lies in a folder, hidden files too."""
    return {path.name: path.read_bytes() for path in out.iterdir()}


def disturb(job: subprocess.Popen[bytes], rng: random.Random, count: Counter[str]) -> None:
    """Kill a worker, the process that directs, or all of them."""
    import psutil

    what = rng.choice(("worker", "director", "job"))
    try:
        if what == "worker":
            rng.choice([child for child in psutil.Process(job.pid).children()
                        if "resource_tracker" not in " ".join(child.cmdline())]).kill()
        elif what == "director":
            workers = psutil.Process(job.pid).children()
            job.kill()
            orphans = psutil.wait_procs(workers, timeout=60)[1]
            if orphans:
                print(f"pictures: {len(orphans)} workers go on without the process that directs")
            count["failed"] += len(orphans)
        else:
            os.killpg(job.pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError, IndexError):  # done meanwhile
        return
    count[f"{what}s killed"] += 1


def pictures(deadline: float, rng: random.Random, work: Path, count: Counter[str],
             many: int = 300, kills: int = 6) -> None:
    """Upscale, kill, resume, until all is done; compare."""
    folder = work / "small"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for k in range(many):
        picture = np.kron(noise.integers(0, 256, (6, 8)), np.ones((4, 4))).astype(np.uint8)
        write_image(folder / f"{k:05}.png", picture)
    if upscale(folder, work / "undisturbed").wait():
        print("pictures: the undisturbed run failed")
        count["failed"] += 1
        return
    want = contents(work / "undisturbed")
    while not count["failed"] and (count["pictures"] == 0 or time.monotonic() < deadline):
        out, manifest = work / f"out{count['pictures']}", work / f"m{count['pictures']}.jsonl"
        moments = sorted(rng.randrange(many) for _ in range(kills))
        code = None
        while code != 0 and count["failed"] == 0:
            job = upscale(folder, out, "--jobs", "2", "--manifest", str(manifest), "--resume")
            while (code := job.poll()) is None:
                if moments and out.exists() and len(os.listdir(out)) > moments[0]:
                    del moments[0]
                    disturb(job, rng, count)
                time.sleep(0.02)
            count["starts"] += 1
            if code not in (0, -signal.SIGKILL):
                said = job.stderr.read().decode(errors="replace") if job.stderr else ""
                print(f"pictures: exit code {code}: {said.strip()[-300:]}")
                count["failed"] += 1
        got = contents(out)
        done = {Path(output).name for _, output in Manifest(manifest).finished()}
        for what, names in (("lost", want.keys() - got.keys()),
                            ("left over", got.keys() - want.keys()),
                            ("not in the manifest", want.keys() - done),
                            ("differ", {name for name in want.keys() & got.keys()
                                        if want[name] != got[name]})):
            count[what] += len(names)
            count["failed"] += len(names)
            if names:
                print(f"pictures: {what}: {', '.join(sorted(names)[:5])}")
        count["pictures"] += len(got)
        shutil.rmtree(out)


def main() -> int:
    """Run everything for the minutes that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", type=float, nargs="?", default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("kills", "writes", "mutants", "guards",
                                           "interrupts", "pictures"),
                        help="do this part and no other")
    parser.add_argument("--pictures", type=int, help="upscale so many, and do nothing else")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--guards", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--die-before", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.die_before is not None:
        die_before(int(asked.die_before[0]), asked.die_before[1:])
    if asked.read is not None:
        read_all(asked.read)
        return 0
    if asked.guards is not None:
        convolve_guarded(asked.guards, asked.seconds)
        return 0
    counts: dict[str, Counter[str]] = {}
    parts: dict[str, Any] = {"kills": kills, "writes": writes, "mutants": mutants, "guards": guards,
                             "interrupts": interrupts, "pictures": pictures}
    if asked.only is not None:
        parts = {asked.only: parts[asked.only]}
    seconds = asked.minutes * 60 / len(parts)
    if asked.pictures is not None:
        seconds = 0
        parts = {"pictures": functools.partial(pictures, many=asked.pictures, kills=20)}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            counts[name] = Counter(failed=0)
            place = Path(folder, name)  # of its own: parts use the same names
            place.mkdir()
            part(time.monotonic() + seconds, random.Random(asked.seed), place, counts[name])
            print(f"{name:<11} {json.dumps(counts[name])}", flush=True)
    return 1 if any(count["failed"] for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
