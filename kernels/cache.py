"""Where compiled kernels are kept: in a folder of this user's that nobody else can write to.

What lies there is loaded into the process and run. So a folder that belongs to somebody else, that
others may write to, or that is a link to elsewhere, is refused.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

_ROOM = 32_000_000  # bytes; what `minisrcnn train` and `upscale` compile takes a tenth of it


class Refused(PermissionError):
    """There is no folder that compiled code could be kept in; the text is one line for the user."""


def is_private(found: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else can write to it."""
    return not hasattr(os, "geteuid") or (
        found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def user() -> int:
    """Return this user's number; 0 on systems without."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def private_folder(name: str, *variables: str) -> tuple[Path, str]:
    """Return a folder for compiled code, made if need be, and why it is not the usual one.

    Parameters
    ----------
    name : str
        Of the folder.
    *variables : str
        Environment variables, the first of which that is set names the folder that holds it. Else
        that is ``$XDG_CACHE_HOME/minisrcnn`` or ``~/.cache/minisrcnn``; and where nothing can be
        made there, ``minisrcnn-UID`` in the system's folder for temporary files.

    Returns
    -------
    folder : Path
    problem : str
        One line for the user; empty where the folder is the usual one.

    Raises
    ------
    Refused
        If it can be made nowhere, or is not private.
    """
    named = next(filter(None, map(os.environ.get, variables)), None)
    root = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "minisrcnn"))
    try:
        root = root.expanduser()
        root.mkdir(parents=True, exist_ok=True)
        folder = _private(root / name)
        return folder, _too_full(folder)
    except Refused:
        raise
    except (OSError, RuntimeError) as error:  # a RuntimeError: there is no home
        words = getattr(error, "strerror", None) or error
        problem = f"compiled kernels cannot be kept in {root} ({words})"
    try:
        other = _private(Path(tempfile.gettempdir()) / f"minisrcnn-{user()}")
        folder = _private(other / name)
    except Refused:
        raise
    except OSError:
        raise Refused(f"{problem}: set MINISRCNN_CACHE to a folder that you can write to") from None
    return folder, f"{problem}, but for a while in {other}: set MINISRCNN_CACHE to choose a folder"


def _too_full(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    return "" if free >= _ROOM else (
        f"compiled kernels may find no room in {folder} ({free // 10**6} MB are free, want "
        f"{_ROOM // 10**6})")


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    is_folder = stat.S_ISDIR(found.st_mode)
    if not is_folder or not is_private(found):
        cure = "chmod 700 it, or " if is_folder and found.st_uid == user() else ""
        raise Refused(
            f"will not load compiled kernels from {folder}: it is not a folder of yours alone "
            f"(owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}); {cure}set "
            "MINISRCNN_CACHE to a folder of yours")
    return folder
