"""The emulator of CUDA C: the language, the build cache, the stand-in for CuPy, captured graphs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minisrcnn.engine import emulator
from minisrcnn.engine.emulator import KernelError, build, configure
from minisrcnn.engine.emulator import cupy_standin as xp
from minisrcnn.errors import MinisrcnnError

needs_compiler = pytest.mark.skipif(
    emulator.unavailable_reason() is not None, reason=str(emulator.unavailable_reason())
)
ORDERS = ("forward", "reverse", 0, 7, 8)


def kernel(body, parameters="float* y", name="k", before="", options=(), bounds=""):
    code = f'{before}\nextern "C" __global__ void {bounds} {name}({parameters}) {{ {body} }}'
    return xp.RawModule(code=code, options=options).get_function(name)


# ------------------------------------------------------------------------------------ the language
@needs_compiler
@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_runs_once_and_knows_where_it_is(order):
    k = kernel("""int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        y[b * 24 + t] += b * 24 + t + 1;""")
    y = xp.zeros(24 * 30, "float32")
    with configure(order=order):
        k((2, 3, 5), (4, 3, 2), (y,))
    np.testing.assert_array_equal(y.get(), np.arange(1, 24 * 30 + 1))


SHUFFLES = {  # lane by lane, from the definition
    "__shfl_sync(~0u, v, 5)": lambda lane, w: 5,
    "__shfl_sync(~0u, v, (lane + 3) % 32)": lambda lane, w: (lane + 3) % 32,
    "__shfl_down_sync(~0u, v, 4)": lambda lane, w: lane + 4 if lane + 4 < 32 else lane,
    "__shfl_up_sync(~0u, v, 3)": lambda lane, w: lane - 3 if lane >= 3 else lane,
    "__shfl_xor_sync(~0u, v, 16)": lambda lane, w: lane ^ 16,
    "__shfl_down_sync(~0u, v, 2, 8)": lambda lane, w: lane + 2 if lane % 8 + 2 < 8 else lane,
    "__shfl_up_sync(~0u, v, 1, 4)": lambda lane, w: lane - 1 if lane % 4 else lane,
    "__shfl_sync(~0u, v, 1, 16)": lambda lane, w: lane // 16 * 16 + 1,
}


@needs_compiler
@pytest.mark.parametrize("real", ["float", "double"])
def test_warp_shuffles(real):
    body = "int t = threadIdx.x, lane = t % 32; (void)lane; real v = x[t]; real* out = y + t;"
    for i, expression in enumerate(SHUFFLES):
        body += f"out[{i * 96}] = {expression};"
    k = kernel(body, "const real* x, real* y", before=f"typedef {real} real;")
    x = np.random.default_rng(0).normal(size=96).astype("f4" if real == "float" else "f8")
    want = np.stack([[x[t // 32 * 32 + source(t % 32, 32)] for t in range(96)]
                     for source in SHUFFLES.values()])
    for order in ORDERS:
        y = xp.empty((len(SHUFFLES), 96), x.dtype)
        with configure(order=order):
            k((1,), (96,), (xp.asarray(x), y))
        np.testing.assert_array_equal(y.get(), want)


@needs_compiler
def test_votes_and_values_of_lanes_that_do_not_exist():
    k = kernel("""int t = threadIdx.x; y[t] = __ballot_sync(~0u, t % 3 == 0);
        y[40 + t] = 10 * __any_sync(~0u, t == 33) + __all_sync(~0u, t < 32);
        y[80 + t] = __shfl_down_sync(~0u, 1.f, 8);""")
    y = xp.empty(120, "float32")
    k((1,), (40,), (y,))  # a second warp of eight threads
    first = sum(1 << i for i in range(0, 32, 3))
    second = sum(1 << i for i in range(8) if (32 + i) % 3 == 0)
    got = y.get()
    np.testing.assert_array_equal(got[:40], np.float32([first] * 32 + [second] * 8))
    np.testing.assert_array_equal(got[40:80], [1] * 32 + [10] * 8)
    assert np.isnan(got[80 + 32:]).all() and (got[80:112] == 1).all()


@needs_compiler
def test_atomics_on_every_type():
    k = kernel("""atomicAdd(f, 0.5f); atomicAdd(d, 0.25); atomicAdd(i, 2); atomicAdd(u, 3);
        atomicMax(i + 1, (int)threadIdx.x); atomicMin(i + 2, -(int)threadIdx.x);
        atomicSub(i + 3, 1); atomicOr(u + 1, 1ull << threadIdx.x);
        for (int old = i[4], seen;; old = seen) {
          seen = atomicCAS(&i[4], old, old + 1); if (seen == old) break; }
        if (threadIdx.x == 9) i[5] = atomicExch(i + 6, 4);""",
               "float* f, double* d, int* i, unsigned long long* u")
    f, d = xp.zeros(1, "float32"), xp.zeros(1, "float64")
    i, u = xp.zeros(7, "int32"), xp.zeros(2, "uint64")
    i[6] = 11
    k((3,), (32,), (f, d, i, u))
    assert (float(f[0]), float(d[0])) == (48.0, 24.0)
    # the three blocks each store what atomicExch gave them: 11 first, then 4
    assert i.get().tolist() == [192, 31, -31, -96, 96, 4, 4]
    assert u.get().tolist() == [288, 2**32 - 1]


@needs_compiler
def test_dynamic_shared_memory_of_any_name_and_type():
    body = """{declaration}
        tile[threadIdx.x] = make_double2(y[threadIdx.x], 1); __syncthreads();
        y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x].x + tile[0].y;"""
    for declaration in ("extern __shared__ double2 tile[];",
                        "extern __shared__ __align__(16) double2 tile [ ];",
                        "extern  __shared__\ndouble2\ntile[];"):
        k = kernel(body.replace("{declaration}", declaration))
        y = xp.arange(32, dtype="float32")
        k((1,), (32,), (y,), shared_mem=32 * 16)
        np.testing.assert_array_equal(y.get(), np.arange(32)[::-1] + 1)


@needs_compiler
def test_dynamic_shared_memory_starts_as_nan_and_has_limits():
    k = kernel("extern __shared__ float s[]; y[blockIdx.x] = s[0]; s[0] = 1;")
    y = xp.zeros(3, "float32")
    k((3,), (1,), (y,), shared_mem=4)
    assert np.isnan(y.get()).all()
    with pytest.raises(ValueError, match="over 49152 bytes; raise max_dynamic_shared_size_bytes"):
        k((3,), (1,), (y,), shared_mem=50000)
    k.max_dynamic_shared_size_bytes = 100_000
    k((3,), (1,), (y,), shared_mem=50000)
    with pytest.raises(RuntimeError):
        k.max_dynamic_shared_size_bytes = 300_000


@needs_compiler
def test_launch_bounds_are_enforced():
    k = kernel("y[threadIdx.x] = 1;", bounds="__launch_bounds__(8 * SIDE, 2)",
               options=("-DSIDE=4",))
    assert k.max_threads_per_block == 32
    k((1,), (32,), (xp.zeros(64, "float32"),))
    with pytest.raises(ValueError, match="64 threads; the kernel allows 32"):
        k((1,), (64,), (xp.zeros(64, "float32"),))


@needs_compiler
def test_macros_change_the_kernel_and_nothing_else():
    """Names of one letter too: the header is full of them."""
    k = kernel("T v = N; y[0] = v + F;", options=("-DN=3", "-DT=float", "-DF=0.5f", "-DA", "-DU=1"))
    y = xp.zeros(1, "float32")
    k((1,), (1,), (y,))
    assert float(y[0]) == 3.5


@needs_compiler
def test_templates_inline_functions_and_vectors():
    before = """template <int K, class T> __device__ __forceinline__ T power(T x) {
          T p = 1;
        #pragma unroll
          for (int i = 0; i < K; ++i) p *= x;
          return p; }
        template <class T> __global__ void scale(T* y, T by) { y[threadIdx.x] *= by; }"""
    k = kernel("""float4 v = *reinterpret_cast<const float4*>(y);
        float2 w = make_float2(v.x, v.w);
        *reinterpret_cast<float4*>(y) = make_float4(power<3>(w.x), fmaxf(v.y, 7.f), min(2.5f, v.z),
                                                    fmaf(w.y, 2.f, rsqrtf(4.f)));""", before=before)
    y = xp.asarray(np.float32([2, 3, 4, 5]))
    k((1,), (1,), (y,))
    np.testing.assert_array_equal(y.get(), [8, 7, 2.5, 10.5])
    module = xp.RawModule(code=before, name_expressions=("scale<double>",))
    d = xp.asarray(np.arange(4.0))
    module.get_function("scale<double>")((1,), (4,), (d, 2.0))
    np.testing.assert_array_equal(d.get(), [0, 2, 4, 6])


@needs_compiler
def test_barriers_on_two_lines_are_divergent():
    k = kernel("if (threadIdx.x < 3) {\n __syncthreads();\n } else {\n __syncthreads();\n }")
    with pytest.raises(KernelError, match=r"thread \(0,0,0\) waits at line 3 with 3 of 8 threads.*"
                                          r"5 wait elsewhere: thread \(7,0,0\) at line 5"):
        k((1,), (8,), (xp.zeros(1, "float32"),))


@needs_compiler
def test_masks_of_a_part_of_the_warp_are_refused():
    k = kernel("y[threadIdx.x] = __shfl_xor_sync(\n0xffffu, 1.f, 1);")
    for _ in range(2):
        with pytest.raises(KernelError, match="k: warp operation with the mask 0x0000ffff at line"):
            k((1,), (32,), (xp.zeros(32, "float32"),))


@needs_compiler
def test_compile_errors_name_the_line():
    with pytest.raises(xp.cuda.compiler.CompileException, match=r"kernel.cu:3.*\n?.*nothing"):
        kernel("\ny[0] = nothing;").compile()
    with pytest.raises(xp.cuda.compiler.CompileException, match="a kernel is declared as"):
        xp.RawModule(code="__global__ int k(float* y) { return 1; }").compile()
    with pytest.raises(AttributeError, match=r"no kernel 'other'.*'k'"):
        xp.RawModule(code='extern "C" __global__ void k() {}').get_function("other").compile()


@needs_compiler
def test_ucontext_and_debug_builds_do_the_same():
    k = kernel("""__shared__ float s[64]; int t = threadIdx.x; s[t] = y[t]; __syncthreads();
        float v = s[63 - t]; y[t] = v + __shfl_xor_sync(~0u, v, 1) / 3;""")
    x = np.random.default_rng(0).normal(size=64).astype("f4")
    v = x[::-1]
    want = v + v.reshape(-1, 2)[:, ::-1].ravel() / np.float32(3)
    for changes in ({"debug": False}, {"debug": True}, {"portable": True},
                    {"portable": True, "order": 3}):
        y = xp.asarray(x)
        with configure(**changes):
            k((1,), (64,), (y,))
        np.testing.assert_array_equal(y.get(), want)


# ------------------------------------------------------------------------------ settings and cache
def test_settings_come_from_the_environment_and_from_configure(monkeypatch):
    monkeypatch.setenv("MINISRCNN_EMULATOR_ORDER", "12")
    monkeypatch.setenv("MINISRCNN_EMULATOR_SANITIZE", "address,undefined")
    monkeypatch.setenv("MINISRCNN_EMULATOR_DEBUG", "1")
    assert emulator.settings() == build.Settings(12, "address,undefined", True)
    with configure(order="reverse", debug=False) as inside:
        assert inside == emulator.settings() == build.Settings("reverse", "address,undefined")
    assert emulator.settings().order == 12
    for wrong in ("backward", -1, True):
        with pytest.raises(ValueError, match="order is"):
            build.Settings(order=wrong)


def test_the_compiler_is_not_watched_by_the_sanitizer(monkeypatch, tmp_path):
    """It would take three times as long; what is loaded for other reasons is left alone."""
    wrapper, said = tmp_path / "cxx", tmp_path / "said"
    wrapper.write_text(f'#!/bin/sh\necho "=$LD_PRELOAD" >> {said}\nunset LD_PRELOAD\n'
                       'exec g++ "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    monkeypatch.setenv("MINISRCNN_CACHE", str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", "/nowhere/libtsan.so.2")
    build.compile_library('extern "C" __global__ void k(float* y) { y[0] = 1; }')
    monkeypatch.setenv("LD_PRELOAD", "/nowhere/libother.so")
    build.compile_library('extern "C" __global__ void k(float* y) { y[0] = 2; }')
    assert said.read_text().split() == ["="] * 3 + ["=/nowhere/libother.so"] * 2


def test_without_a_compiler_one_sentence_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    reason = emulator.unavailable_reason()
    assert "needs a C++17 compiler" in reason and "no-such-compiler" in reason
    assert "\n" not in reason
    with pytest.raises(MinisrcnnError, match="install g\\+\\+"):
        build.load('extern "C" __global__ void k() {}')


def test_the_cache_is_private(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISRCNN_CACHE", str(tmp_path))
    folder = build.cache_directory()[0]
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(MinisrcnnError, match="not a folder of yours alone"):
        build.cache_directory()[0]
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(MinisrcnnError, match="not a folder of yours alone"):
        build.cache_directory()[0]


def test_the_cache_is_no_link_to_elsewhere(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cuda-on-cpu").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("MINISRCNN_CACHE", str(tmp_path))
    with pytest.raises(MinisrcnnError, match="not a folder of yours alone"):
        build.cache_directory()[0]


@needs_compiler
def test_what_is_compiled_is_found_again_and_anything_else_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISRCNN_CACHE", str(tmp_path))
    code = 'extern "C" __global__ void k(float* y) { y[0] = VALUE; }'
    first = build.compile_library(code, ("-DVALUE=1",))
    stamp = first.stat().st_mtime_ns
    assert build.compile_library(code, ("-DVALUE=1",)) == first
    assert first.stat().st_mtime_ns == stamp
    other = build.Settings(debug=not build.settings().debug)
    others = [build.compile_library(code, ("-DVALUE=2",)),
              build.compile_library(code + " ", ("-DVALUE=1",)),
              build.compile_library(code, ("-DVALUE=1",), wanted=other)]
    assert len({first, *others}) == 4
    assert not list(first.parent.glob("building-*"))


@needs_compiler
@pytest.mark.parametrize("damage", [
    lambda whole: b"", lambda whole: b"no library", lambda whole: whole[:-1000],
    lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])])
def test_a_damaged_library_is_compiled_anew(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("MINISRCNN_CACHE", str(tmp_path))
    code = 'extern "C" __global__ void k(float* y) { y[0] = 5; }'
    library = build.compile_library(code)
    library.write_bytes(damage(library.read_bytes()))
    damaged = library.read_bytes()
    assert list(build.load(code)) == ["k"]
    assert library.read_bytes() != damaged


@needs_compiler
def test_two_processes_may_compile_the_same_kernel_at_once(tmp_path):
    program = textwrap.dedent("""
        import numpy as np
        from minisrcnn.engine.emulator import cupy_standin as xp
        y = xp.zeros(1, "float32")
        code = 'extern "C" __global__ void k(float* y) { y[0] = 5; }'
        xp.RawModule(code=code).get_function("k")((1,), (1,), (y,))
        assert float(y[0]) == 5
    """)
    environment = {**os.environ, "MINISRCNN_CACHE": str(tmp_path)}
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment,
                                stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        assert process.communicate()[1] == "" and process.returncode == 0
    names = [path.suffix for path in Path(tmp_path, "cuda-on-cpu").iterdir()]
    assert sorted(names) == [".cpp", ".so"]


# ------------------------------------------------------------------------------- captured graphs
@pytest.fixture
def double():
    reason = emulator.unavailable_reason()
    if reason is not None:
        pytest.skip(reason)
    return kernel("y[threadIdx.x] *= 2;")


def test_a_graph_is_recorded_and_replayed(double):
    y = xp.ones(4, "float32")
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        assert stream.is_capturing()
        double((1,), (4,), (y,))
        y += 1
        y[0] = 0
        graph = stream.end_capture()
        assert y.get().tolist() == [1, 1, 1, 1]  # nothing has been executed
        graph.launch(stream)
        graph.launch()
    assert y.get().tolist() == [0, 7, 7, 7]  # (1 * 2 + 1) * 2 + 1


FORBIDDEN = {
    "allocation": lambda a, s: xp.empty(3),
    "a result": lambda a, s: a + 1,
    "a copy to the host": lambda a, s: a.get(),
    "a number": lambda a, s: float(a[0]),
    "a copy from the host": lambda a, s: a.set(np.zeros(4, "float32")),
    "asarray": lambda a, s: xp.asarray(np.zeros(4)),
    "waiting": lambda a, s: s.synchronize(),
    "waiting for the device": lambda a, s: xp.cuda.Device().synchronize(),
    "capturing twice": lambda a, s: s.begin_capture(),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_cannot_be_captured_raises(what):
    a = xp.zeros(4, "float32")
    with xp.cuda.Stream() as stream:
        stream.begin_capture()
        with pytest.raises(xp.cuda.runtime.CUDARuntimeError):
            FORBIDDEN[what](a, stream)
        a[1:].reshape(3, 1)  # a view allocates nothing
        stream.end_capture()


def test_the_default_stream_cannot_be_captured_nor_used_during_a_capture(double):
    with pytest.raises(xp.cuda.runtime.CUDARuntimeError):
        xp.cuda.get_current_stream().begin_capture()
    y, stream = xp.ones(1, "float32"), xp.cuda.Stream()
    stream.begin_capture()
    try:
        with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="legacy stream"):
            double((1,), (1,), (y,))
    finally:
        stream.end_capture()
    double((1,), (1,), (y,))


def test_a_graph_whose_arrays_are_gone_is_refused(double):
    y = xp.ones(4, "float32")
    with xp.cuda.Stream() as stream:
        stream.begin_capture()
        double((1,), (2,), (y[2:],))
        graph = stream.end_capture()
        graph.launch()
        assert y.get().tolist() == [1, 1, 2, 2]
        del y
        with pytest.raises(KernelError, match="freed"):
            graph.launch()


def test_the_current_stream_is_that_of_the_thread_and_the_one_before_comes_back():
    current = xp.cuda.get_current_stream
    one, other = xp.cuda.Stream(), xp.cuda.Stream()
    with one:
        with other:
            with one:
                pass
            assert current() is other
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(current).result() is xp.cuda.Stream.null
        assert current() is one
    assert current() is xp.cuda.Stream.null


# ---------------------------------------------------------------------------------------- arrays
def test_empty_is_nan_and_arrays_keep_their_kind():
    a = xp.empty((2, 3), "float32")
    assert np.isnan(a.get()).all() and (a.dtype, a.shape, a.size) == (np.float32, (2, 3), 6)
    assert a.flags.c_contiguous and not a.T.flags.c_contiguous
    b = xp.asarray(a)
    assert b is a and xp.asarray(a, "float64") is not a
    assert a.data.ptr % 16 == 0 and a[1].data.ptr == a.data.ptr + 12
    assert isinstance(a.sum(), xp.ndarray) and isinstance(xp.sum(a), xp.ndarray)
    host = a.get()
    host[:] = 1
    assert np.isnan(a.get()).all()  # get() copies
    with pytest.raises(TypeError, match="float64 array cannot be set to float32"):
        a.set(np.zeros((2, 3)))
