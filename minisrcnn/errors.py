"""What is said to a user: exceptions that mean "the request was wrong", and text that is safe."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text with its control characters escaped: names of files can hold any."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape",
                   "surrogatepass").decode() for c in text)


class MinisrcnnError(Exception):
    """A request that cannot be carried out, explained in one line.

    The command line prints the message and exits with code 2, never with a traceback.
    """


class BackendUnavailableError(MinisrcnnError):
    """A backend that this machine cannot run; the message says why and what to install."""


def reason(error: BaseException) -> str:
    """Return the first line of what an exception says: the part of a message in parentheses."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0][:200]
