"""Stopping in a CUDA kernel, at one thread of one block: the transcript in the docs is produced."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minisrcnn.engine.emulator import unavailable_reason

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "cuda-emulator.md"

pytestmark = [
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
    pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed"),
]

KERNEL = """\
// Sum of a block's numbers, by halves.
extern "C" __global__ void block_sum(const float* x, float* sums) {
  __shared__ float part[8];
  const int t = threadIdx.x;
  part[t] = x[blockIdx.x * 8 + t];
  __syncthreads();
  for (int half = 4; half > 0; half /= 2) {
    if (t < half) part[t] += part[t + half];
    __syncthreads();
  }
  if (t == 0) sums[blockIdx.x] = part[0];
}
"""
PROGRAM = """\
from pathlib import Path
from minisrcnn.engine.emulator import cupy_standin as xp

code = '#line 1 "block_sum.cu"\\n' + Path("block_sum.cu").read_text()
kernel = xp.RawModule(code=code).get_function("block_sum")
x, sums = xp.arange(24, dtype="float32"), xp.empty(3, "float32")
kernel((3,), (8,), (x, sums))
print(sums)
"""
COMMANDS = """\
break block_sum.cu:8 if blockIdx.x == 1 && threadIdx.x == 2
run
print threadIdx
print blockIdx
print blockDim
print part
print half
next
print part
backtrace 1
delete
continue
"""
PREPARATION = ["set breakpoint pending on", "set pagination off", "set confirm off",
               "set debuginfod enabled off", "set print thread-events off", "set width 0"]


def transcript(folder):
    """Run gdb in batch mode; every command is shown before what it prints."""
    (folder / "block_sum.cu").write_text(KERNEL)
    (folder / "program.py").write_text(PROGRAM)
    script = PREPARATION.copy()
    for command in COMMANDS.splitlines():
        script += [f"echo (gdb) {command}\\n", command]
    (folder / "commands.gdb").write_text("\n".join(script))
    done = subprocess.run(
        ["gdb", "-batch", "-iex", "set auto-load off", "-x", "commands.gdb",
         "--args", sys.executable, "program.py"],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "MINISRCNN_EMULATOR_DEBUG": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("this machine does not allow debugging (ptrace)")
    return done.stdout + done.stderr


def clean(text):
    """Keep what is the same on every machine."""
    kept = []
    for line in text.splitlines():
        if re.match(r"\[|Using host|warning:|No source file|Make breakpoint|$", line):
            continue
        line = re.sub(r"0x[0-9a-f]+", "0x...", line)
        line = re.sub(r"at \S*/(\w+\.cu)", r"at \1", line)
        kept.append(re.sub(r"Thread \d+ \"[^\"]*\" hit ", "", line))
    return kept


def documented():
    """The transcript in the docs."""
    blocks = re.findall(r"^```text\n(\(gdb\).*?)^```$", DOC.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 1
    return blocks[0].splitlines()


def test_gdb_stops_at_one_thread_of_one_block(tmp_path):
    lines = clean(transcript(tmp_path))
    text = "\n".join(lines)
    # Block 1 holds 8..15; its threads 0 and 1 have been here before thread 2, and stopped nobody.
    assert "= {x = 2, y = 0, z = 0}" in text
    assert "= {x = 1, y = 0, z = 0}" in text
    assert "= {20, 22, 10, 11, 12, 13, 14, 15}" in text  # 8 + 12 and 9 + 13
    assert "[ 28.,  92., 156.]" in text  # 0+..+7, 8+..+15, 16+..+23
    assert lines == documented()


def test_the_program_in_the_docs_is_the_one_that_was_run():
    text = DOC.read_text("utf-8")
    for part in (KERNEL, PROGRAM):
        assert part in text
