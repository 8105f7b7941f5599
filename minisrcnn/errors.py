"""The exceptions that mean "the request was wrong": their message is all that a user needs."""


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
