"""Run a student's CUDA kernel on the emulator: in several orders, and watched by sanitizers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..engine import emulator
from .grading import Skipped, Wrong, expect

ORDERS: tuple[str | int, ...] = ("forward", "reverse", 1, 2)


@dataclass(frozen=True)
class Launch:
    """A kernel that takes float32 arrays, then ints; the last array is the result.

    Attributes
    ----------
    source, kernel : str
        The text, and the name of the kernel in it.
    blocks, threads : int
    arrays : sequence of ndarray
        The inputs, float32.
    shape : tuple of int
        Of the result, which begins as NaN.
    numbers : sequence of int
    """

    source: str
    kernel: str
    blocks: int
    threads: int
    arrays: Sequence[Any]
    shape: tuple[int, ...]
    numbers: Sequence[int]

    def run(self, order: str | int = "forward", margin: int = 1024) -> np.ndarray:
        """Launch and return the result.

        So many NaN lie before and after each array: what is read outside of it does not depend on
        what happens to be there. The sanitizers, which see it where there are none, get none.
        """
        reason = emulator.unavailable_reason()
        if reason is not None:
            raise Skipped(reason)
        from ..engine.emulator import cupy_standin as cupy

        def place(values: np.ndarray) -> Any:
            wide: Any = cupy.asarray(np.pad(values.ravel(), margin, constant_values=np.nan))
            return wide[margin:margin + values.size].reshape(values.shape)

        result = place(np.full(self.shape, np.nan, np.float32))
        inputs = [place(np.asarray(a, np.float32)) for a in self.arrays]
        with emulator.configure(order=order):
            try:
                kernel = cupy.RawModule(code=self.source).get_function(self.kernel)
                kernel((self.blocks,), (self.threads,),
                       (*inputs, result, *(np.int32(n) for n in self.numbers)))
            except cupy.cuda.compiler.CompileException as error:
                text = str(error)
                missing = re.search(r"not written yet: [^\"\n]*", text)
                if missing:
                    raise NotImplementedError(missing[0]) from None
                lines = [line for line in text.splitlines() if "error" in line]
                raise Wrong(f"it does not compile: {(lines or [text])[0]}") from None
            except emulator.KernelError as error:
                raise Wrong(str(error)) from None
        return cupy.asnumpy(result)

    def check(self, want: np.ndarray) -> None:
        """Compare the result in every order of the threads, then run it under the sanitizers."""
        for order in ORDERS:
            expect(self.run(order), want, f"with the threads in the order {order!r}, the result",
                   1e-5)
        self._sanitize()

    def _sanitize(self) -> None:
        from ..engine.emulator import sanitize

        sanitizer = "address,undefined"
        if sanitize.unavailable_reason(sanitizer) is not None:
            return
        spec = asdict(self) | {"arrays": [np.asarray(a).tolist() for a in self.arrays]}
        done = subprocess.run(
            sanitize.command(sanitizer, ["-m", "minisrcnn.learn.cuda"]),
            env=sanitize.environment(sanitizer), input=json.dumps(spec), capture_output=True,
            text=True, check=False)
        found = re.search(r"AddressSanitizer: ([\w-]+)|runtime error: ([^\n]*)", done.stderr)
        if found:
            raise Wrong(f"right, but the sanitizer saw: {found[1] or found[2]}. A thread reads or "
                        "writes outside of its arrays")


if __name__ == "__main__":
    given = json.load(sys.stdin)
    Launch(**given | {"shape": tuple(given["shape"])}).run(margin=0)
