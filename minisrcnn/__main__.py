"""``python -m minisrcnn`` is ``minisrcnn``: a process that a Ctrl-C ends with no traceback."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Load the command line and run it; the entry point of ``minisrcnn``."""
    try:
        from .cli import main

        main()
    except KeyboardInterrupt:  # while it is loaded
        print("minisrcnn: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:  # one more, while threads and workers are waited for, ends the process at once
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
