"""The CUDA kernels compiled for real GPUs, without one: they compile, and stay in their limits."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from minisrcnn.engine.backends.cupy_emulated import compile_configurations
from minisrcnn.engine.emulator import nvrtc

FILES = sorted(nvrtc.kernel_folder().glob("*.cu"))
wheel = pytest.mark.skipif(
    nvrtc.unavailable_reason() is not None, reason=str(nvrtc.unavailable_reason())
)
# What the everyday suite compiles: the general sources, and what the net 9-1-5 needs.
LAYERS = [{"-DCONV_C=1", "-DCONV_F=64", "-DCONV_KH=9"}, {"-DCONV_C=64", "-DCONV_KH=1"},
          {"-DCONV_C=32", "-DCONV_F=1", "-DCONV_KH=5"}, {"-DDCT_SIDE=9"}]
CONFIGURATIONS = compile_configurations()
USUAL = [(file, options) for file, options in CONFIGURATIONS if "-DREAL=float" in options
         and (len(options) == 2 or any(layer <= {*options} for layer in LAYERS))]


def compile_all(configurations, architecture):
    """Compile and return what is over a limit, and the kernels seen."""
    def one(job):
        file, options = job
        path = nvrtc.kernel_folder() / file
        limits = nvrtc.read_limits(path.read_text("utf-8"))
        results = nvrtc.compile_file(path, options, [architecture])
        broken = [f"{line} {options}" for r in results for line in limits[r.kernel].broken_by(r)]
        return broken, {r.kernel for r in results}

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(one, configurations))
    return [line for broken, _ in done for line in broken], set().union(*(s for _, s in done))


def test_every_source_is_in_the_configurations():
    assert {file for file, _ in CONFIGURATIONS} == {path.name for path in FILES}
    assert {file for file, _ in USUAL} == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_kernel_has_limits(path):
    text = path.read_text("utf-8")
    assert len(nvrtc.read_limits(text)) == len(re.findall(r"\b__global__\b", text))


@wheel
@pytest.mark.slow  # .ci/run compiles every configuration before the tests
@pytest.mark.parametrize("architecture", [75, 90])
def test_the_usual_kernels_stay_in_their_limits(architecture):
    broken, seen = compile_all(USUAL, architecture)
    assert not broken
    assert seen == {name for path in FILES for name in nvrtc.read_limits(path.read_text("utf-8"))}


@wheel
@pytest.mark.slow
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_all_kernels_stay_in_their_limits(architecture):
    if architecture not in nvrtc.supported_architectures():
        pytest.skip(f"NVRTC {nvrtc.version()} does not know sm_{architecture}")
    broken, _ = compile_all(CONFIGURATIONS, architecture)
    assert not broken


@wheel
def test_nvrtc_knows_all_architectures_that_we_promise():
    if nvrtc.version() < (12, 8):
        pytest.skip(f"NVRTC {nvrtc.version()} is older than sm_120")
    assert {*nvrtc.ARCHITECTURES} <= {*nvrtc.supported_architectures()}


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) greedy(const float* x, float* y) {
  __shared__ double tile[256];
  float a[120];
#pragma unroll
  for (int i = 0; i < 120; ++i) a[i] = x[i * 1024 + threadIdx.x];
  tile[threadIdx.x % 256] = a[0];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 120; ++i) a[i] = fmaf(a[i * 7 % 120], a[i], a[119 - i]);
#pragma unroll
  for (int i = 0; i < 120; ++i) y[i * 1024 + threadIdx.x] = a[i] + tile[0];
}
"""


@wheel
def test_spills_are_seen():
    """2048 threads on a multiprocessor leave 32 registers each: 120 numbers cannot stay there."""
    binary, (found,) = nvrtc.compile_text(SPILLING, "greedy.cu", 90, ["--std=c++17"])
    assert binary[:4] == b"\x7fELF"
    assert (found.kernel, found.architecture, found.shared) == ("greedy", 90, 2048)
    assert found.registers == 32
    assert found.spill_stores > 0 and found.spill_loads > 0 and found.stack > 0
    broken = nvrtc.Limit(registers=31, shared=2047, spills=0).broken_by(found)
    assert len(broken) == 3 and "32 registers, the limit is 31" in broken[0]
    assert not nvrtc.Limit(32, 2048, found.spills).broken_by(found)


@wheel
def test_compile_errors_name_the_line():
    with pytest.raises(RuntimeError, match=r'wrong.cu\(2\): error: identifier "y" is undefined'):
        nvrtc.compile_text('extern "C" __global__ void k(float* x) {\n  x[0] = y;\n}', "wrong.cu",
                           90)


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_120'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


def test_the_assemblers_report_is_read():
    assert nvrtc.parse_log(LOG) == [nvrtc.Resources("one", 90, 40, 1024, 8, 12, 16),
                                    nvrtc.Resources("two", 120, 8, 0, 0, 0, 0)]
    with pytest.raises(ValueError, match="unknown form"):
        nvrtc.parse_log("ptxas info : Compiling entry function 'one' for 'sm_90'\nUsed: 40 regs")


def test_limits_are_read():
    text = "// limits: conv registers<=64 shared<=16384 spills=0\nextern"
    assert nvrtc.read_limits(text) == {"conv": nvrtc.Limit(64, 16384, 0)}
