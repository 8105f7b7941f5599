"""What is said to a user: exceptions that mean "the request was wrong", and text that is safe."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text as one line without control characters: names of files can hold any.

    They are escaped, line breaks and what is no character at all too.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
                   for c in text)


class MinisrcnnError(Exception):
    """A request that cannot be carried out, explained in one line.

    The command line prints the message and exits with code 2, never with a traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


class BackendUnavailableError(MinisrcnnError):
    """A backend that this machine cannot run; the message says why and what to install."""


def reason(error: BaseException) -> str:
    """Return the first line of what an exception says: the part of a message in parentheses."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0][:200]
