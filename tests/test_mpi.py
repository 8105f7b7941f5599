"""Training on several ranks of MPI: the bits of one process, whatever the ranks and threads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.scaling import find_mpiexec, mpi_environment
from minisrcnn import MinisrcnnError
from minisrcnn.checkpoint import load_state
from minisrcnn.commands.data import FACTORS
from minisrcnn.engine.backends import unavailable_reason
from minisrcnn.imaging.files import write_image
from minisrcnn.imaging.packed import find_sources, pack
from minisrcnn.training import loop
from minisrcnn.training import ranks as ranks_of_mpi
from minisrcnn.training.gather import VARIABLE, ByHost, ByMPI, ByNCCL, choose_gather
from minisrcnn.training.loop import train
from minisrcnn.training.ranks import MPIRanks, Ranks, find_ranks
from minisrcnn.training.settings import TrainSettings

pytest.importorskip("mpi4py", reason="needs mpi4py and an MPI: pip install '.[mpi]'")

MPIEXEC = find_mpiexec()

pytestmark = [
    pytest.mark.skipif(MPIEXEC is None, reason="needs mpiexec: pip install '.[mpi]'"),
    pytest.mark.skipif(unavailable_reason("numba") is not None, reason="needs the numba backend"),
]

TRAIN = ["train", "--data", "pictures", "--backend", "numba", "--arch", "5-1-3", "--scale", "2",
         "--batch-size", "40", "--epochs", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pictures, a packed set of them, and a training of one process: run1."""
    here = tmp_path_factory.mktemp("mpi")
    rng = np.random.default_rng(0)
    for name, count in (("T91", 3), ("Set5", 3)):
        (here / "pictures" / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (110, 120)).astype(np.uint8)
            write_image(here / "pictures" / name / f"{i}.png", image)
    pack(find_sources([here / "pictures/T91"]), here / "T91.luma", FACTORS)
    done = ranks(here, 1, *TRAIN, "--out", "run1")
    assert done.returncode == 0, done.stderr
    return here


def command(count, *args):
    alone = [sys.executable, "-m", "minisrcnn", *args]
    return alone if count == 1 else [str(MPIEXEC), "-n", str(count), *alone]


def environment():
    return mpi_environment(str(MPIEXEC)) | os.environ | {"NUMBA_NUM_THREADS": "2"}


def ranks(here, count, *args):
    return subprocess.run(command(count, *args), capture_output=True, text=True, cwd=here,
                          timeout=900, env=environment())


def log(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
        line.pop("ranks", None)
        line.get("settings", {}).pop("data", None)  # a folder, or a packed set of it
    return lines


def assert_same(out, whole):
    for file in ("checkpoint.safetensors", "model.safetensors"):
        a, b = load_state(out / file)[0], load_state(whole / file)[0]
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert log(out) == log(whole)


@pytest.mark.parametrize("count, more", [
    (2, ["--threads", "1", "--data", "T91.luma", "--memory", "1MB"]),
    pytest.param(3, ["--threads", "2"], marks=pytest.mark.slow)])
def test_the_bits_of_one_process(place, count, more, monkeypatch):
    """On the folder of pictures or on a packed set."""
    monkeypatch.setenv("MINISRCNN_DATA", str(place / "pictures"))  # a set has no Set5 beside it
    done = ranks(place, count, *TRAIN, *more, "--out", f"run{count}")
    assert done.returncode == 0, done.stderr
    assert_same(place / f"run{count}", place / "run1")
    assert done.stdout.count("model.safetensors") == 1  # the first rank speaks for all
    first = json.loads((place / f"run{count}/log.jsonl").read_text().splitlines()[0])
    assert first["ranks"] == count
    assert json.loads((place / "run1/log.jsonl").read_text().splitlines()[0])["ranks"] == 1
    assert (place / f"run{count}/report.md").exists()


ADDING = """
import numpy as np
from minisrcnn.training.ranks import find_ranks
ranks, draw = find_ranks(), np.random.default_rng(0)
def add(rows):
    total = np.zeros(rows.shape[1], rows.dtype)
    for row in rows:
        total += row
    return total
for items, columns in ((7, 10), (2, 5), (1, 2), (30, 3), (4, 9)):  # fewer than ranks, too
    rows = (draw.standard_normal((items, columns)) * 10.0 ** draw.integers(-3, 3, (items, 1)))
    rows = rows.astype(np.float32)
    mine = rows[slice(*ranks.share(items))]
    np.testing.assert_array_equal(ranks.add_in_order(mine, items, add), add(rows))
    np.testing.assert_array_equal(ranks.gather(mine, items), rows)
    np.testing.assert_array_equal(ranks.gather(mine[:, 0], items), rows[:, 0])
if ranks.rank == 0:  # lines of several ranks may run into each other
    print("as one process", ranks.size)
"""


def test_rows_of_all_ranks_are_added_in_order(place):
    done = subprocess.run([str(MPIEXEC), "-n", "4", sys.executable, "-c", ADDING], cwd=place,
                          capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout == "as one process 4\n"


@pytest.mark.parametrize("backend", [pytest.param("cupy-emulated", marks=pytest.mark.slow),
                                     pytest.param("cupy", marks=pytest.mark.gpu)])
def test_devices_share_a_batch(place, backend):
    """One device a rank, or one for all: the weights, state and log of a process alone."""
    if (reason := unavailable_reason(backend)) is not None:
        pytest.skip(f"backend {backend}: {reason}")
    for folder, shape in (("T91", (75, 95)), ("Set5", (12, 14))):
        (place / backend / folder).mkdir(parents=True)
        image = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
        write_image(place / backend / folder / "0.png", image)
    for count in (1, 2):  # a batch is 8 chunks, the first of two patches
        done = ranks(place, count, "train", "--data", backend, "--backend", backend,
                     "--arch", "3-3", "--recipe", "paper", "--scale", "2", "--batch-size", "9",
                     "--epochs", "1", "--out", f"{backend}-{count}")
        assert done.returncode == 0, done.stderr
    if backend == "cupy-emulated":
        assert "Warning: 2 ranks share 1 GPU, want one for each." in done.stderr
        assert "through the memory of the host; not nccl: ranks share a device; not mpi: it does " \
               "not say that it takes device memory." in done.stderr
    assert_same(place / f"{backend}-2", place / f"{backend}-1")


GATHERING = """
import sys, types
import numpy as np
from mpi4py import MPI
from minisrcnn import SRCNN
from minisrcnn.engine.backends import get_backend
from minisrcnn.training.gather import WAYS
from minisrcnn.training.ranks import find_ranks

class Group:  # the part of cupyx.distributed that is called, on memory of the host
    def __init__(self, n_devices, rank, *, use_mpi):
        assert use_mpi and (n_devices, rank) == (ranks.size, ranks.rank)
        self.rank = rank
    def all_gather(self, in_array, out_array, count, stream):
        assert stream.ptr and out_array.flags.c_contiguous and in_array.size == count
        assert in_array.data.ptr == out_array.data.ptr + self.rank * in_array.nbytes
        ranks.fill(out_array)
sys.modules["cupyx"] = types.ModuleType("cupyx")
sys.modules["cupyx.distributed"] = types.SimpleNamespace(init_process_group=Group)

ranks, device = find_ranks(), get_backend("cupy-emulated")
draw = np.random.default_rng(0)
images = [draw.random((1, 30, 30))], [draw.random((1, 30, 30))]
table = np.array([(0, y, x) for y in range(4) for x in range(5)])
def trained(batch, optimizer, **sharing):
    net = SRCNN("3-1-3", (4, 3), backend=device, dtype="float32", seed=1)
    made = device.DeviceTrainer(net.parameters, *images, table, batch_size=batch, patch_size=8,
                                lr=0.01, optimizer=optimizer, **sharing)
    numbers = np.random.default_rng(2)
    made.load_order(numbers.integers(20, size=made.batches * batch),
                    numbers.integers(8, size=made.batches * batch))
    for _ in range(3):  # launch by launch, recorded, replayed
        made.step()
    arrays = {**made.parameters, **made.state}
    return made.read_loss(), {name: device.to_numpy(a) for name, a in arrays.items()}
cases = (9, "muon", WAYS), (16, "sgd", ["nccl"]), (20, "adam", ["host"])
for batch, optimizer, ways in cases if "all" in sys.argv else cases[:1]:
    loss, want = trained(batch, optimizer)
    for way in ways:
        gather = WAYS[way](device, ranks)
        found_loss, found = trained(batch, optimizer, rank=ranks.rank, ranks=ranks.size,
                                    gather=gather)
        assert found_loss == loss
        for name, value in want.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{way} {name}")
if ranks.rank == 0:
    print("as one device", ranks.size)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 5])
def test_every_way_to_gather_gives_the_bits_of_one_device(place, count):
    """NCCL is a stand-in here; of five ranks one has no chunk."""
    if (reason := unavailable_reason("cupy-emulated")) is not None:
        pytest.skip(f"backend cupy-emulated: {reason}")
    run = [sys.executable, "-c", GATHERING, *["all"] * (count == 5)]
    done = subprocess.run([str(MPIEXEC), "-n", str(count), *run], cwd=place, capture_output=True,
                          text=True, timeout=600, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"as one device {count}\n"


@pytest.mark.slow
def test_one_picture_is_written_once(place):
    picture = str(next((place / "pictures/T91").iterdir()))
    done = ranks(place, 2, "upscale", picture, "-o", "large.png", "--scale", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "large.png\n"
    with Image.open(place / "large.png") as large:
        assert large.size == (240, 220)


@pytest.mark.slow
def test_resumed_on_another_number_of_ranks(place):
    for count, more in ((2, [*TRAIN, "--max-minutes", "0"]), (1, ["train", "--max-minutes", "0"]),
                        (3, ["train"])):
        more = [*more, *([] if more[-1] == "0" and len(more) > 3 else ["--resume"])]
        done = ranks(place, count, *more, "--out", "parts")
        assert done.returncode == 0, done.stderr
    assert_same(place / "parts", place / "run1")


@pytest.mark.parametrize("args, says", [
    ([*TRAIN, "--out", "run1"], "holds files already"),  # found by the first rank alone
    ([*TRAIN, "--data", "nowhere", "--out", "new"], "nowhere: neither a folder"),  # found by all
    pytest.param([*TRAIN, "--backend", "numpy", "--out", "new"], "want numba or cupy for 2 ranks",
                 marks=pytest.mark.slow),
])
def test_a_wrong_request_is_one_line(place, args, says):
    done = ranks(place, 2, *args)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("minisrcnn: ")]
    assert len(lines) == 1 and says in lines[0], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_pictures_that_one_rank_lacks_are_one_line(place):
    """Ranks of GPUs agree on how to gather before they train: not while one has failed."""
    if (reason := unavailable_reason("cupy-emulated")) is not None:
        pytest.skip(f"backend cupy-emulated: {reason}")
    alone = command(1, *TRAIN, "--backend", "cupy-emulated", "--out", "lacking", "--data")
    done = subprocess.run(
        [str(MPIEXEC), "-n", "1", *alone, "pictures", ":", "-n", "1", *alone, "nowhere"],
        capture_output=True, text=True, cwd=place, timeout=900, env=environment())
    assert done.returncode == 2
    assert done.stderr.endswith("minisrcnn: nowhere: neither a folder nor a packed set nor T91 "
                                "(on rank 1)\n") and "Traceback" not in done.stderr
    assert not (place / "lacking").exists()


def gather_asked_for(monkeypatch, asked):
    monkeypatch.setenv(VARIABLE, asked)
    for way in (ByNCCL, ByMPI):
        monkeypatch.setattr(way, "unavailable_reason", lambda shared: "it is not installed")
    said = []
    backend = SimpleNamespace(device_address=lambda: "0", xp=SimpleNamespace(cuda=None))
    return choose_gather(backend, Ranks(), said.append), said


def test_a_way_to_gather_is_asked_for(monkeypatch):
    chosen, said = gather_asked_for(monkeypatch, "host")
    assert isinstance(chosen, ByHost)
    assert said == ["Gradients go from GPU to GPU through the memory of the host."]
    _, said = gather_asked_for(monkeypatch, "")  # as if it were not set
    assert "; not nccl: it is not installed" in said[0]


@pytest.mark.parametrize("asked, says", [
    ("nccl", "is nccl, which cannot be used: it is not installed"),
    ("post", "is 'post', want one of nccl, mpi, host"),
])
def test_a_way_to_gather_that_there_is_not_is_refused(monkeypatch, asked, says):
    with pytest.raises(MinisrcnnError, match=says):
        gather_asked_for(monkeypatch, asked)


@pytest.mark.parametrize("name, says", [
    ("seed", "seed is 5 on rank 1, want 4 as on rank 0"),
    ("resume", "resume is 5 on rank 1, want False as"),
    ("the pictures' checksum", "the pictures' checksum is 5 on rank 1, want "),
])
def test_ranks_of_two_trainings_are_refused(place, monkeypatch, name, says):
    class Other(Ranks):
        size = 2

        def collect(self, value):
            return [value, {**value, **({name: 5} if name in value else {})}]

    monkeypatch.setattr(loop, "find_ranks", Other)
    with pytest.raises(MinisrcnnError, match=says):
        train(TrainSettings(data=str(place / "pictures"), backend="numba", scale=2, seed=4,
                            out=place / "other"), lambda text: None)
    assert not (place / "other").exists()


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_that_mpi_did_not_find_are_refused(monkeypatch, name):
    """As of another MPI's mpiexec, or srun without --mpi: each would train for itself."""
    for other in ("PMI_RANK", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(other, raising=False)

    class Alone(Ranks):
        library = "MPICH"

    monkeypatch.setattr(ranks_of_mpi, "MPIRanks", Alone)
    monkeypatch.setenv(name, "1")
    assert find_ranks().size == 1
    monkeypatch.setenv(name, "4")
    with pytest.raises(MinisrcnnError, match=f"{name} is 4, but MPICH.* has found 1 process: want"):
        find_ranks()


def test_a_rank_without_memory_is_a_line(monkeypatch, capfd):
    calls = []
    rank = object.__new__(MPIRanks)
    rank.rank, rank.size = 1, 2
    rank._world = SimpleNamespace(Abort=calls.append)
    with monkeypatch.context() as patch:
        patch.setattr(ranks_of_mpi.os, "_exit", calls.append)
        with rank.guarded():
            raise MemoryError
    assert calls == [1, 1]
    assert capfd.readouterr().err == ("minisrcnn: rank 1 of 2 has not enough memory; the last "
                                      "checkpoint, if there is one, is kept\n")


def begun(place, out, *more):
    child = subprocess.Popen(
        command(2, *TRAIN, "--epochs", "100000", "--out", out, *more), stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, cwd=place, env=environment())
    path, deadline = place / out / "log.jsonl", time.monotonic() + 900
    while not path.exists() or path.read_text().count("\n") < 2:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return child


def children(pid):
    import psutil

    return [p for p in psutil.Process(pid).children(recursive=True)
            if "minisrcnn" in " ".join(p.cmdline()) and "python" in p.name()]


def test_a_rank_that_dies_ends_the_job(place):
    pytest.importorskip("psutil", reason="finds the ranks of the job")
    child = begun(place, "dead")
    children(child.pid)[-1].kill()
    child.communicate(timeout=900)
    assert child.returncode != 0
    done = ranks(place, 1, "train", "--resume", "--max-minutes", "0", "--out", "dead")
    assert done.returncode == 0 and "Going on with dead at step" in done.stderr


FAILING = """
import sys
from minisrcnn.training import steppers
from minisrcnn.training.ranks import find_ranks
true, steps = steppers.HostStepper.step, []
def step(self):
    steps.append(self)
    if self.ranks.rank == 1 and len(steps) == 2:
        raise ArithmeticError("a fault of one rank")
    true(self)
steppers.HostStepper.step = step
from minisrcnn.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_job_with_a_line(place):
    done = subprocess.run([str(MPIEXEC), "-n", "2", sys.executable, "-c", FAILING, *TRAIN, "--out",
                           "failed"], capture_output=True, text=True, cwd=place, timeout=900,
                          env=environment())
    assert done.returncode != 0
    assert "minisrcnn: rank 1 of 2 failed (ArithmeticError); the last checkpoint" in done.stderr
    assert (place / "failed/checkpoint.safetensors").exists()


@pytest.mark.slow
def test_a_second_signal_leaves_the_checkpoint(place):
    pytest.importorskip("psutil", reason="finds the ranks of the job")
    child = begun(place, "at-once")
    for _ in range(2):
        for rank in children(child.pid):
            rank.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, rest = child.communicate(timeout=60)
    assert child.returncode != 0 and "Traceback" not in rest
    assert "was interrupted at once; the last checkpoint" in rest or "saved at" in rest
    done = ranks(place, 1, "train", "--resume", "--max-minutes", "0", "--out", "at-once")
    assert done.returncode == 0, done.stderr
    assert (place / "at-once/model.safetensors").exists()


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_on_all(place):
    pytest.importorskip("psutil", reason="finds the ranks of the job")
    child = begun(place, "stopped")
    children(child.pid)[-1].send_signal(signal.SIGTERM)
    _, rest = child.communicate(timeout=900)
    assert "interrupted and saved at step" in rest and child.returncode != 0
    assert (place / "stopped/model.safetensors").exists()


@pytest.mark.slow
def test_ctrl_c_saves(place):
    child = begun(place, "ctrl-c")
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=900)
    assert "interrupted and saved at step" in rest
    assert (place / "ctrl-c/model.safetensors").exists()
