"""Kernels that are wrong on purpose: each is caught, by the tool that should catch it.

Every file in ``broken_kernels`` says what is wrong and who should notice. Compiled with
``-DFIXED`` the same file is right, and nobody may complain.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from minisrcnn.engine.emulator import KernelError, configure, sanitize, unavailable_reason

pytestmark = pytest.mark.skipif(
    unavailable_reason() is not None, reason=f"no emulator: {unavailable_reason()}"
)
FOLDER = Path(__file__).parent / "broken_kernels"
spec = importlib.util.spec_from_file_location("run_broken_kernels", FOLDER / "run.py")
zoo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(zoo)

ORDERS = ("forward", "reverse", 1, 2, 3)
RACES = ("missing_barrier", "missing_second_barrier", "missing_warp_barrier", "cross_block_race")
OUTSIDE = {
    "shared_off_by_one": r"shared_off_by_one\.cu:1[24]:.*insufficient space|global-buffer-overflow",
    "dynamic_shared_off_by_one": r"use-after-poison.*\n(.*\n)*?.*dynamic_shared_off_by_one\.cu:11",
    "global_off_by_one": r"heap-buffer-overflow.*\n(.*\n)*?.*global_off_by_one\.cu:8",
    "misaligned_float4": r"misaligned_float4\.cu:10:.*misaligned address",
}
X = np.arange(192, dtype=np.float32) / 7
REVERSED = X.reshape(3, 64)[:, ::-1].ravel()
RIGHT = {  # what the kernels are meant to compute, worked out without them
    "missing_barrier": REVERSED,
    "missing_second_barrier": np.tile(X[:64][::-1] + X[64:128][::-1], 3),
    "missing_warp_barrier": X.reshape(-1, 2)[:, ::-1].ravel(),
    "divergent_barrier": REVERSED,
    "divergent_shuffle": X + np.where(np.arange(192) % 32 < 16, np.roll(X, -1), 0),
    "shared_off_by_one": REVERSED,
    "dynamic_shared_off_by_one": REVERSED,
    "global_off_by_one": np.append(np.diff(X), -X[-1]),
    "misaligned_float4": np.repeat(X.reshape(-1, 4).sum(1), 4),
    "cross_block_race": np.concatenate([np.full(64, 3), np.zeros(128)]),
    "uninitialised_shared": REVERSED,
    "order_of_atomics": X,
}


def watched(sanitizer, *arguments):
    reason = sanitize.unavailable_reason(sanitizer)
    if reason is not None:
        pytest.skip(reason)
    done = subprocess.run(
        sanitize.command(sanitizer, [str(FOLDER / "run.py"), *arguments]),
        env=sanitize.environment(sanitizer), capture_output=True, text=True, check=False,
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer cannot live with this kernel's address randomisation")
    return done


def reports(done):
    """Split what was printed by kernel."""
    parts = re.split(r"^== (\w+)$", done.stderr, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_list_is_complete():
    files = {path.stem for path in FOLDER.glob("*.cu")}
    assert files == {*RIGHT, "wrong_argument"}


@pytest.mark.parametrize("name", RIGHT)
def test_fixed_kernels_are_right_in_every_order(name):
    for order in ORDERS:
        with configure(order=order):
            np.testing.assert_allclose(zoo.run(name, fixed=True), RIGHT[name], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["missing_barrier", "missing_second_barrier", "missing_warp_barrier"]
)
def test_missing_barriers_give_wrong_numbers_in_every_order(name):
    for order in ORDERS:
        with configure(order=order):
            assert not np.allclose(zoo.run(name), RIGHT[name], equal_nan=True)


def test_uninitialised_shared_memory_is_nan():
    """The four elements that nobody wrote, in every block: no block sees the last one's."""
    y = zoo.run("uninitialised_shared").reshape(3, 64)
    assert np.isnan(y[:, :4]).all()
    np.testing.assert_array_equal(y[:, 4:], REVERSED.reshape(3, 64)[:, 4:])


def test_a_race_between_blocks_does_not_show_in_the_numbers():
    """That is why the thread sanitizer is needed at all."""
    for order in ORDERS:
        with configure(order=order):
            np.testing.assert_array_equal(zoo.run("cross_block_race"), RIGHT["cross_block_race"])


def test_sums_by_atomics_differ_between_schedules():
    sums = set()
    for order in ORDERS:
        with configure(order=order):
            sums.add(zoo.run("order_of_atomics")[0].tobytes())
    assert len(sums) > 1


def test_divergent_barrier_is_named():
    with pytest.raises(KernelError) as caught:
        zoo.run("divergent_barrier")
    assert str(caught.value) == (
        "broken: divergent __syncthreads in block (0,0,0): thread (0,0,0) waits at line 12 "
        "with 60 of 64 threads of the block, 4 have left the kernel"
    )


def test_divergent_shuffle_is_named():
    with pytest.raises(KernelError, match=r"divergent warp operation in block \(0,0,0\): thread "
                       r"\(0,0,0\) waits at line 10 with 16 of 32 threads of the warp, 16 have"):
        zoo.run("divergent_shuffle")


def test_the_emulator_works_after_a_failure():
    for name in ("divergent_barrier", "divergent_shuffle"):
        with pytest.raises(KernelError):
            zoo.run(name)
    np.testing.assert_array_equal(zoo.run("divergent_barrier", fixed=True), REVERSED)


@pytest.mark.slow
def test_thread_sanitizer_finds_the_races():
    done = watched("thread", *RACES, "order_of_atomics")
    found = reports(done)
    for name in RACES:
        assert re.search(rf"data race .*{name}\.cu:\d+ in broken", found[name]), done.stderr
    assert not found["order_of_atomics"].strip()  # atomics are not a race, whatever else they are
    assert done.returncode == 66


@pytest.mark.parametrize("name", OUTSIDE)
def test_address_and_undefined_sanitizers_stop_bad_accesses(name):
    done = watched("address,undefined", name)
    assert done.returncode != 0
    assert re.search(OUTSIDE[name], done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "names"), [("thread", RACES), ("address,undefined", tuple(OUTSIDE))])
def test_sanitizers_are_silent_about_the_fixed_kernels(sanitizer, names):
    done = watched(sanitizer, "--fixed", *names)
    assert done.returncode == 0, done.stderr
    assert "".join(reports(done).values()).strip() == ""


def arguments(**changes):
    """The right arguments of wrong_argument.cu, by position, and some of them replaced."""
    xp = zoo.xp
    right = {"x": xp.zeros(64, xp.float32), "y": xp.zeros(64, xp.float32),
             "scale": np.float32(2), "n": np.int32(64)}
    return tuple({**right, **changes}.values())


xp = zoo.xp
WRONG = {
    "python float": ({"scale": 2.0}, TypeError, "argument 2 is passed as double.*wants float"),
    "python int": ({"n": 64}, TypeError, "argument 3 is passed as long long.*wants int"),
    "double array": ({"x": xp.zeros(64)}, TypeError, r"argument 0 is a float64 array.*float\*"),
    "host array": ({"y": np.zeros(64, "f4")}, TypeError, "argument 1 is a ndarray"),
    "strided array": ({"x": xp.zeros((64, 2), "f4")[:, 0]}, ValueError, "not C-contiguous"),
    "number for array": ({"x": np.float32(1)}, TypeError, r"wants const float\*"),
    "array for number": ({"n": xp.zeros((), "i4")}, TypeError, "argument 3 is a ndarray.*int"),
    "float for int": ({"n": np.float32(64)}, TypeError, "passed as float.*wants int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    changes, error, message = WRONG[name]
    kernel = zoo.load("wrong_argument")
    kernel((1,), (64,), arguments())
    with pytest.raises(error, match=message):
        kernel((1,), (64,), arguments(**changes))


def test_wrong_launches_are_refused():
    kernel = zoo.load("wrong_argument")
    for grid, block, args, error, message in [
        ((1,), (64,), arguments()[:3], TypeError, "3 arguments for 4 parameters"),
        ((1,), (64,), (*arguments(), np.int32(1)), TypeError, "5 arguments for 4 parameters"),
        ((1,), (64,), list(arguments()), TypeError, "wanted a tuple"),
        ((0,), (64,), arguments(), ValueError, "grid is .*empty"),
        ((1,), (0,), arguments(), ValueError, "block is .*empty"),
        ((1,), (1025,), arguments(), ValueError, "1025 threads"),
        ((1, 65536), (64,), arguments(), ValueError, "over CUDA's limits"),
        (1, (64,), arguments(), TypeError, "grid is 1"),
    ]:
        with pytest.raises(error, match=message):
            kernel(grid, block, args)
