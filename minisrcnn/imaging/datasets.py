"""The data sets by name (T91, Set5, Set14) or folder: found, downloaded, verified.

``registry.txt`` pins every file by its SHA-256. A set is looked for, in this order, in

1. the folder that was asked for,
2. the folder that ``MINISRCNN_DATA`` names,
3. ``./data``, then ``../shared/data``,
4. the user's cache (``MINISRCNN_CACHE``, or what the platform has for it),

each holding ``T91/``, ``Set5/``, ``Set14/``, and else downloaded into the cache. A download goes to
a temporary name, is checked, and only then moved into place: what lies under a file's own name is
whole, however many processes fetch at once and wherever one is killed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import MinisrcnnError, reason
from .files import find_images

NAMES = ("T91", "Set5", "Set14")

_TIMEOUT = (10, 30)  # seconds to connect, seconds without a byte
_LARGEST = 16 << 20  # bytes of one file; the largest picture of the registry has 1.1 MB
_SECONDS = 300  # for one file

# Of the pictures inside scikit-image's wheel, the photographs (no drawings, text or microscopy).
_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "motorcycle_left.png",
    "rocket.jpg",
)


@dataclass(frozen=True)
class Dataset:
    """A named list of pictures.

    Attributes
    ----------
    name : str
    paths : tuple of Path
    registered : bool
        Whether these are the registry's files, by name: scores then compare with published ones.
    """

    name: str
    paths: tuple[Path, ...]
    registered: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def titles(self) -> list[str]:
        """A short name for each picture: ``baby`` for ``baby_GT.bmp``."""
        return [path.stem.removesuffix("_GT") for path in self.paths]


@dataclass(frozen=True)
class Entry:
    """One file of the registry."""

    file: str
    sha256: str
    source: str


@dataclass(frozen=True)
class FileStatus:
    """What `verify` found of one file: status is "ok", "missing" or "corrupt"."""

    file: str
    status: str
    path: Path


@dataclass(frozen=True)
class Listing:
    """A row of `list_datasets`: `place` is the folder where the set was found, or None."""

    name: str
    images: int
    place: Path | None
    present: int


@functools.cache
def _registry() -> tuple[str, dict[str, list[Entry]]]:
    """Return the address of the public repository at its commit, and the entries of each set."""
    header: dict[str, str] = {}
    sets: dict[str, list[Entry]] = {name: [] for name in NAMES}
    for line in Path(__file__).with_name("registry.txt").read_text("utf-8").splitlines():
        words = line.split()
        if line.startswith("#"):
            if len(words) == 3:
                header[words[1]] = words[2]
        elif words:
            entry = Entry(*words)
            sets[entry.file.split("/")[0]].append(entry)
    return f"https://raw.githubusercontent.com/{header['repository']}/{header['commit']}", sets


def registry(name: str) -> list[Entry]:
    """Return the registry's entries of a data set; MinisrcnnError for an unknown name."""
    return _registry()[1][_known(name)]


def dataset_name(value: str | os.PathLike[str]) -> str | None:
    """T91, Set5 or Set14 as the registry writes it, whatever the case; None for anything else."""
    text = os.fspath(value).lower()
    return next((name for name in NAMES if name.lower() == text), None)


def _known(name: str) -> str:
    found = dataset_name(name)
    if found is None:
        raise MinisrcnnError(f"{name}: no such data set, want one of {', '.join(NAMES)}")
    return found


def cache_dir() -> Path:
    """Where downloads are kept: ``MINISRCNN_CACHE``, or the platform's folder for caches."""
    chosen = os.environ.get("MINISRCNN_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    import pooch

    try:
        return Path(pooch.os_cache("minisrcnn"))
    except RuntimeError:  # a user without a home
        return Path(os.sep, "nonexistent", "minisrcnn")


def _places(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to look in, before the cache. One that was named must exist."""
    places = []
    for asked, by in ((data_dir, ""), (os.environ.get("MINISRCNN_DATA"), "MINISRCNN_DATA: ")):
        if asked:
            place = Path(os.path.expanduser(asked))
            if not os.path.isdir(place):
                raise MinisrcnnError(f"{by}{asked}: no such folder")
            places.append(place)
    return [*places, Path("data"), Path("..", "shared", "data")]


def _find(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset | None:
    """Return a data set on disk, the cache apart."""
    for place in _places(data_dir):
        folder = place / name
        if not folder.is_dir():
            continue
        paths = tuple(place / entry.file for entry in registry(name))
        lacking = [path.name for path in paths if not path.is_file()]
        if not lacking:
            return Dataset(name, paths, registered=True)
        if len(lacking) < len(paths):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise MinisrcnnError(f"{folder}: incomplete, lacks {lacking[0]}{more}")
        own = find_images(folder, problems=[])
        if own:  # the same set under other file names, or someone's own
            return Dataset(name, tuple(own))
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _status(entry: Entry, path: Path) -> str:
    try:
        return "ok" if _sha256(path) == entry.sha256 else "corrupt"
    except OSError:
        return "corrupt" if path.exists() else "missing"


def load_dataset(
    name_or_path: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Return a data set by its name, or the pictures of a folder.

    Parameters
    ----------
    name_or_path : str or path
        "T91", "Set5", "Set14" (a folder of such a name: write ``./Set5``), or a folder of pictures.
    data_dir : path, optional
        The first place to look for a name in; must exist.
    download : bool
        Whether a name that is nowhere on disk may be downloaded.
    progress : callable, optional
        As for `fetch`; called only where something is downloaded.

    Raises
    ------
    MinisrcnnError
        Where it cannot be had: not found, incomplete, or the download failed.
    """
    name = dataset_name(name_or_path)
    if name is None:
        folder = Path(os.path.expanduser(name_or_path))
        if not os.path.isdir(folder):
            raise MinisrcnnError(
                f"{os.fspath(name_or_path)}: neither a folder nor one of {', '.join(NAMES)}"
            )
        return Dataset(folder.resolve().name, tuple(find_images(folder)))
    found = _find(name, data_dir)
    if found is not None:
        return found
    cache = cache_dir()
    paths = tuple(cache / entry.file for entry in registry(name))
    if all(_status(entry, path) == "ok" for entry, path in zip(registry(name), paths, strict=True)):
        return Dataset(name, paths, registered=True)
    if not download:
        looked = ", ".join(str(place) for place in [*_places(data_dir), cache])
        raise MinisrcnnError(
            f"{name}: not found in {looked}; get it with `minisrcnn data fetch {name}` "
            f"or name its folder with --data"
        )
    return fetch(name, progress=progress)


def load_datasets(
    values: Iterable[str | os.PathLike[str]],
    wanted: Iterable[str],
    download: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Dataset]:
    """Return what ``--data`` asks for: names, folders that hold named sets, folders of pictures.

    Parameters
    ----------
    values : names and folders
        A folder that holds any of `wanted` as subfolders stands for those; any other folder for
        the pictures in it.
    wanted : names
        What the job is about (T91 for training, Set5 and Set14 for evaluation): what a folder of
        data sets stands for, and all that is loaded where `values` is empty.
    download, progress
        As for `load_dataset`.

    Raises
    ------
    MinisrcnnError
        As `load_dataset`.
    """
    wanted = [_known(name) for name in wanted]
    loaded: list[Dataset] = []
    values = list(values)
    for value in values or wanted:
        folder = Path(os.path.expanduser(value))
        held = [] if dataset_name(value) else [n for n in wanted if os.path.isdir(folder / n)]
        if held:
            loaded += [load_dataset(name, data_dir=value, download=False) for name in held]
        else:
            loaded.append(load_dataset(value, download=download, progress=progress))
    return loaded


def _download(url: str, target: str, pooch: object) -> None:
    """Download one file, no larger and no slower than a picture of the registry can be."""
    # Of a server that sends header after header no timeout of requests makes an end.
    outcome: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(url, outcome), daemon=True).start()
    try:
        received = outcome.get(timeout=_SECONDS)
    except queue.Empty:
        raise MinisrcnnError(f"{_without_password(url)} takes over {_SECONDS} s to download, "
                             "want a faster server") from None
    if isinstance(received, Exception):
        raise received
    Path(target).write_bytes(received)


def _receive(url: str, outcome: queue.SimpleQueue[bytes | Exception]) -> None:
    """Put what a server sends, or what went wrong, into a queue."""
    import requests
    import urllib3

    def close_redirect(response: requests.Response, **_: object) -> None:
        if response.is_redirect:  # requests would read its body, of any size
            response.close()

    deadline = time.monotonic() + _SECONDS  # nobody waits for longer
    body = bytearray()
    try:
        # Asked for as it is: a compressed body could unpack to any size.
        with requests.get(url, timeout=_TIMEOUT, stream=True, hooks={"response": close_redirect},
                          headers={"Accept-Encoding": "identity"}) as response:
            response.raise_for_status()
            while piece := response.raw.read1(1 << 16):  # what has arrived, without waiting for all
                body += piece
                if len(body) > _LARGEST:
                    raise MinisrcnnError(
                        f"{_without_password(url)} has over {_LARGEST >> 20} MB, want a picture "
                        "of the registry")
                if time.monotonic() > deadline:
                    return
        outcome.put(bytes(body))
    except (requests.RequestException, MinisrcnnError) as error:
        outcome.put(error)
    except urllib3.exceptions.ReadTimeoutError as error:
        outcome.put(requests.Timeout(error))
    except ValueError as error:  # an address that cannot be, here or in a redirect
        outcome.put(requests.exceptions.InvalidURL(error))
    except urllib3.exceptions.HTTPError as error:
        outcome.put(requests.exceptions.ChunkedEncodingError(error))
    except Exception as error:
        outcome.put(MinisrcnnError(
            f"{_without_password(url)} cannot be downloaded ({reason(error)})"))


def _without_password(url: str) -> str:
    """Return a URL as it may be printed: without user and password, even one with a slash in it."""
    return re.sub(r"^(https?://)([^/?#]*|[^/?#:]*:(?!\d*[/?#]).*)@", r"\1", url)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of downloads that were killed: older than any can last."""
    for path in folder.glob("tmp*"):
        with contextlib.suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > 2 * _SECONDS:
                path.unlink()


def fetch(
    name: str,
    base_url: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    retries: int = 1,
) -> Dataset:
    """Download into the cache what is missing or damaged there, each file checked.

    Parameters
    ----------
    name : str
        T91, Set5 or Set14.
    base_url : str, optional
        What stands before each file's path in the public repository: a mirror. Else
        ``MINISRCNN_DATA_URL``, else the repository itself, at the pinned commit.
    progress : callable, optional
        Called with (files done, files in all), first with 0 done.
    retries : int
        How often a file that failed is tried again.

    Raises
    ------
    MinisrcnnError
        Where the server is unreachable or does not have a file, a file arrives changed, cut
        short, larger than 16 MB or slower than in 5 minutes, or the cache cannot be written to.
        Nothing partial is left under a file's name.
    """
    import pooch
    import requests

    name = _known(name)
    entries = registry(name)
    base = (base_url or os.environ.get("MINISRCNN_DATA_URL") or _registry()[0]).rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise MinisrcnnError(
            f"MINISRCNN_DATA_URL is {base.rpartition('@')[2]}, want http:// or https://")
    cache = cache_dir()
    downloads = pooch.create(
        path=cache,
        base_url=base + "/",
        registry={entry.file: f"sha256:{entry.sha256}" for entry in entries},
        urls={entry.file: f"{base}/{entry.source}" for entry in entries},
        retry_if_failed=retries,
    )
    _remove_leftovers(cache / name)
    pooch.get_logger().setLevel(logging.WARNING)
    for done, entry in enumerate(entries):
        if progress is not None:
            progress(done, len(entries))
        url = _without_password(downloads.get_url(entry.file))
        try:
            (cache / entry.file).parent.mkdir(parents=True, exist_ok=True)
            downloads.fetch(entry.file, downloader=_download)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "?"
            raise MinisrcnnError(f"{name}: the server answers {status} for {url}") from None
        except requests.Timeout:
            raise MinisrcnnError(f"{name}: the server does not answer in time for {url}") from None
        except requests.exceptions.ChunkedEncodingError:
            raise MinisrcnnError(f"{name}: the download breaks off at {url}") from None
        except requests.exceptions.SSLError:
            raise MinisrcnnError(
                f"{name}: the server's certificate is not accepted for {url}") from None
        except requests.exceptions.ProxyError:
            raise MinisrcnnError(f"{name}: no answer from the proxy for {url}") from None
        except requests.ConnectionError:
            raise MinisrcnnError(f"{name}: no answer from the server for {url}") from None
        except requests.RequestException as error:
            raise MinisrcnnError(
                f"{name}: cannot download {url} ({type(error).__name__})") from None
        except ValueError:
            raise MinisrcnnError(
                f"{name}: what comes from {url} is not the pinned file (its SHA-256 differs)"
            ) from None
        except OSError as error:
            # Pooch wraps what the system says in a longer text of its own.
            said = error if error.strerror or error.__cause__ is None else error.__cause__
            raise MinisrcnnError(
                f"{name}: cannot write to the cache {cache} ({reason(said)}): set MINISRCNN_CACHE "
                "to a folder that you can write to, or name one that has the set with --data"
            ) from None
    if progress is not None:
        progress(len(entries), len(entries))
    return Dataset(name, tuple(cache / entry.file for entry in entries), registered=True)


def _holder(name: str, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the first place, the cache among them, that holds any of a set's files."""
    for place in [*_places(data_dir), cache_dir()]:
        if any((place / entry.file).is_file() for entry in registry(name)):
            return place
    return None


def verify(name: str, data_dir: str | os.PathLike[str] | None = None) -> list[FileStatus]:
    """Check every file of a set against its SHA-256, where `load_dataset` finds it.

    Parameters
    ----------
    name : str
        T91, Set5 or Set14.
    data_dir : path, optional
        As for `load_dataset`.

    Returns
    -------
    list of FileStatus
        One for each file of the registry, in its order.

    Raises
    ------
    MinisrcnnError
        For a name that the registry does not hold, or a `data_dir` that does not exist.
    """
    name = _known(name)
    place = _holder(name, data_dir) or cache_dir()
    return [
        FileStatus(entry.file, _status(entry, place / entry.file), place / entry.file)
        for entry in registry(name)
    ]


def list_datasets(data_dir: str | os.PathLike[str] | None = None) -> list[Listing]:
    """Every data set of the registry: how many pictures, where on disk, how many of them there."""
    rows = []
    for name in NAMES:
        entries = registry(name)
        place = _holder(name, data_dir)
        present = sum((place / e.file).is_file() for e in entries) if place else 0
        rows.append(Listing(name, len(entries), place / name if place else None, present))
    return rows


def fallback_photographs() -> Dataset:
    """Return the photographs inside scikit-image's wheel: to train on without any network.

    Raises
    ------
    MinisrcnnError
        Where scikit-image, or all of its pictures, is missing.
    """
    spec = importlib.util.find_spec("skimage")
    folders = list(spec.submodule_search_locations or []) if spec else []
    paths = [Path(folder, "data", file) for folder in folders for file in _PHOTOGRAPHS]
    present = tuple(path for path in paths if path.is_file())
    if not present:
        raise MinisrcnnError("scikit-image's photographs are not installed")
    return Dataset("scikit-image photographs", present)
