"""Data sets: where they are found, and the downloads, against a server on this machine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from minisrcnn.errors import MinisrcnnError
from minisrcnn.imaging import datasets
from minisrcnn.imaging.datasets import (
    Entry,
    cache_dir,
    dataset_name,
    fallback_photographs,
    fetch,
    list_datasets,
    load_dataset,
    load_datasets,
    registry,
    verify,
)
from minisrcnn.imaging.files import read_image, write_image

# --- a small registry of the same form, its files, and a server that holds them


def make_files():
    rng = np.random.default_rng(0)
    counts = {"T91": 3, "Set5": 2, "Set14": 1}
    return {
        f"{name}/{k}_GT.bmp": rng.bytes(5000) for name, n in counts.items() for k in range(1, n + 1)
    }


FILES = make_files()
SETS = {
    name: [
        Entry(file, hashlib.sha256(body).hexdigest(), "Test/" + file)
        for file, body in FILES.items()
        if file.startswith(name + "/")
    ]
    for name in ("T91", "Set5", "Set14")
}


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A machine without any data: nothing around, an empty cache, the small registry."""
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")
    monkeypatch.setenv("MINISRCNN_CACHE", str(tmp_path / "cache"))
    for name in ("MINISRCNN_DATA", "MINISRCNN_DATA_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(datasets, "_registry", lambda: ("http://127.0.0.1:9/nowhere", SETS))
    return tmp_path


class Server:
    """Serves FILES; `special` maps a path to what goes wrong with it."""

    def __init__(self):
        server = self
        self.asked = []
        self.special = {}
        self.sent = 0
        self.stop = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                fault = server.special.get(self.path)
                body = FILES.get(self.path.removeprefix("/mirror/Test/"))
                if isinstance(fault, int) or body is None:
                    self.send_error(fault or 404)
                    return
                if fault == "moved":  # with a body that requests would read into memory
                    del server.special[self.path]
                    self.send_response(302)
                    self.send_header("Location", self.path)
                    self.end_headers()
                    with contextlib.suppress(ConnectionError):
                        while server.sent < 256 << 20:
                            self.wfile.write(bytes(1 << 20))
                            server.sent += 1 << 20
                    return
                self.send_response(200)
                while fault == "headers" and not server.stop.wait(0.02):
                    self.send_header("X", "more")
                    self.flush_headers()
                if fault != "no length":
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if fault == "corrupted":
                    body = body[:2000] + b"\0" + body[2001:]
                if fault in ("truncated", "no length", "stalls"):
                    body = body[:2000]
                if fault == "drips":
                    for k in range(len(body)):
                        self.wfile.write(body[k : k + 1])
                        self.wfile.flush()
                        if server.stop.wait(0.02):
                            return
                self.wfile.write(body)
                if fault == "stalls":
                    self.wfile.flush()
                    server.stop.wait(600)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/mirror"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.stop.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(empty):
    served = Server()
    yield served
    served.close()


def cached():
    root = cache_dir()
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def of(name):
    return {file: body for file, body in FILES.items() if file.startswith(name + "/")}


# --- downloads


def test_a_good_server(server, capfd):
    progress = []
    found = fetch("Set5", server.url, progress=lambda *counts: progress.append(counts))
    assert cached() == of("Set5")
    assert found.name == "Set5"
    assert found.registered
    assert [path.name for path in found.paths] == ["1_GT.bmp", "2_GT.bmp"]
    assert found.titles == ["1", "2"]
    assert progress == [(0, 2), (1, 2), (2, 2)]
    assert server.asked == ["/mirror/Test/Set5/1_GT.bmp", "/mirror/Test/Set5/2_GT.bmp"]
    assert fetch("set5", server.url) == found
    assert len(server.asked) == 2  # what is there is not asked for again
    assert capfd.readouterr() == ("", "")


def test_load_downloads_from_the_mirror_in_the_environment(server, monkeypatch):
    monkeypatch.setenv("MINISRCNN_DATA_URL", server.url + "/")
    progress = []
    assert len(load_dataset("T91", progress=lambda *counts: progress.append(counts))) == 3
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert cached() == of("T91")
    server.close()
    assert load_dataset("T91").registered  # from the cache, without the server


FAULTS = {
    "corrupted": "SHA-256 differs",
    "no length": "SHA-256 differs",
    "truncated": "breaks off",
    404: "answers 404",
    403: "answers 403",
    500: "answers 500",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_one_line_and_leaves_nothing_partial(server, fault, capfd):
    server.special["/mirror/Test/Set5/2_GT.bmp"] = fault
    with pytest.raises(MinisrcnnError, match=FAULTS[fault]) as error:
        fetch("Set5", server.url, retries=0)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("Set5: ")
    assert f"{server.url}/Test/Set5/2_GT.bmp" in message
    assert cached() == {"Set5/1_GT.bmp": FILES["Set5/1_GT.bmp"]}  # the good one stays
    assert capfd.readouterr() == ("", "")
    server.special.clear()
    fetch("Set5", server.url)
    assert cached() == of("Set5")
    assert server.asked.count("/mirror/Test/Set5/1_GT.bmp") == 1  # and is not fetched again


def test_a_file_that_fails_once_is_tried_again(server, monkeypatch):
    naps = []
    monkeypatch.setattr("time.sleep", naps.append)
    path = "/mirror/Test/Set14/1_GT.bmp"
    server.special[path] = 503
    with pytest.raises(MinisrcnnError, match="503"):
        fetch("Set14", server.url, retries=2)
    assert server.asked.count(path) == 3
    assert len(naps) == 2


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_dead_server(empty):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(MinisrcnnError, match="no answer from the server") as error:
        fetch("Set5", url, retries=0)
    assert "\n" not in str(error.value)
    assert cached() == {}


def test_a_server_that_says_nothing(empty, monkeypatch):
    monkeypatch.setattr(datasets, "_TIMEOUT", (0.2, 0.2))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises(MinisrcnnError, match="in time"):
            fetch("Set5", f"http://127.0.0.1:{s.getsockname()[1]}", retries=0)
    assert cached() == {}


def test_a_server_that_falls_silent_half_way(server, monkeypatch):
    monkeypatch.setattr(datasets, "_TIMEOUT", (0.3, 0.3))
    server.special["/mirror/Test/Set14/1_GT.bmp"] = "stalls"
    with pytest.raises(MinisrcnnError, match="in time") as error:
        fetch("Set14", server.url, retries=0)
    assert "\n" not in str(error.value)
    assert cached() == {}


def test_a_server_that_sends_too_much(server, monkeypatch):
    monkeypatch.setattr(datasets, "_LARGEST", 1 << 10)
    with pytest.raises(MinisrcnnError, match=r"1_GT.bmp has over 0 MB, want a picture"):
        fetch("Set14", server.url, retries=0)
    assert cached() == {}


def test_a_server_that_sends_byte_after_byte(server, monkeypatch):
    monkeypatch.setattr(datasets, "_SECONDS", 0.2)  # 5000 bytes, 50 a second
    server.special["/mirror/Test/Set14/1_GT.bmp"] = "drips"
    with pytest.raises(MinisrcnnError, match=r"takes over 0.2 s to download"):
        fetch("Set14", server.url, retries=0)
    assert cached() == {}


def test_a_server_that_sends_header_after_header(server, monkeypatch):
    monkeypatch.setattr(datasets, "_SECONDS", 0.2)
    server.special["/mirror/Test/Set14/1_GT.bmp"] = "headers"
    with pytest.raises(MinisrcnnError, match=r"takes over 0.2 s to download"):
        fetch("Set14", server.url, retries=0)
    assert cached() == {}


def test_a_redirect_is_followed_without_its_body(server):
    server.special["/mirror/Test/Set14/1_GT.bmp"] = "moved"
    fetch("Set14", server.url, retries=0)
    assert cached() == of("Set14")
    assert server.sent < 256 << 20


@pytest.mark.parametrize("fault", [404, "corrupted", "truncated", "stalls"])
def test_no_password_is_printed(server, fault, monkeypatch):
    monkeypatch.setattr(datasets, "_TIMEOUT", (0.3, 0.3))
    server.special["/mirror/Test/Set14/1_GT.bmp"] = fault
    with pytest.raises(MinisrcnnError, match=r"127.0.0.1") as error:
        fetch("Set14", server.url.replace("//", "//ann:secret@"), retries=0)
    assert "secret" not in str(error.value)
    assert "ann" not in str(error.value)


@pytest.mark.parametrize("url", [
    "bob:secret@127.0.0.1", "ftp://bob:secret@127.0.0.1", "http://bob:sec/secret@127.0.0.1",
    "http://bob:se#secret@127.0.0.1", "http://bob:secret@[::1"])
def test_no_password_is_printed_of_an_address_that_cannot_be(empty, url):
    with pytest.raises(MinisrcnnError, match=r"127.0.0.1|::1") as error:
        fetch("Set14", url, retries=0)
    assert "secret" not in str(error.value) and "bob" not in str(error.value)


@pytest.mark.parametrize("url", ["http://a..b", "http://127.0.0.1:99999999", "http://[::1"])
def test_an_address_that_cannot_be(empty, url):
    with pytest.raises(MinisrcnnError, match=r"^Set14: cannot download http://.*\(InvalidURL\)$"):
        fetch("Set14", url, retries=0)


def test_a_mirror_with_a_version_in_its_address_is_named_whole(empty):
    url = f"http://127.0.0.1:{free_port()}/repository@main"
    with pytest.raises(MinisrcnnError, match=f"no answer from the server for {url}/Test"):
        fetch("Set14", url, retries=0)


def test_leftovers_of_a_killed_download_go_at_the_next_start(server):
    folder = cache_dir() / "Set14"
    folder.mkdir(parents=True)
    old, young, other = folder / "tmpabc123", folder / "tmpdef456", folder / "mine.txt"
    for path in (old, young, other):
        path.write_bytes(b"half a picture")
    for path in (old, other):
        os.utime(path, (0, 0))
    fetch("Set14", server.url)
    assert not old.exists()
    assert young.exists()  # may be another process's, at work
    assert other.exists()


def test_a_name_that_does_not_resolve(empty):
    with pytest.raises(MinisrcnnError, match="no answer"):
        fetch("Set5", "http://minisrcnn.invalid", retries=0)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "file:///etc", "127.0.0.1"])
def test_only_http(empty, url):
    with pytest.raises(MinisrcnnError, match="http"):
        fetch("Set5", url)


def test_a_damaged_cache_is_mended_and_never_used(server, monkeypatch):
    fetch("Set5", server.url)
    path = cache_dir() / "Set5" / "1_GT.bmp"
    path.write_bytes(b"half")
    with pytest.raises(MinisrcnnError, match="not found in"):
        load_dataset("Set5", download=False)
    monkeypatch.setenv("MINISRCNN_DATA_URL", server.url)
    load_dataset("Set5")
    assert cached() == of("Set5")


def test_a_cache_that_cannot_be_written_to(empty, server, monkeypatch):
    (empty / "file").write_bytes(b"")
    monkeypatch.setenv("MINISRCNN_CACHE", str(empty / "file" / "cache"))
    with pytest.raises(MinisrcnnError, match="cannot write to the cache") as error:
        fetch("Set5", server.url)
    assert "\n" not in str(error.value)


def test_a_cache_of_somebody_else(empty, server, monkeypatch):
    """Pooch tries the folder with a temporary file; to root no folder is closed."""
    import pooch.utils

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", "/cache/tmp")

    monkeypatch.setattr(pooch.utils.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(MinisrcnnError) as error:
        fetch("Set5", server.url)
    assert str(error.value) == (
        f"Set5: cannot write to the cache {cache_dir()} (Permission denied): set MINISRCNN_CACHE "
        "to a folder that you can write to, or name one that has the set with --data")


def test_several_fetch_at_once(server):
    outcomes = []

    def one():
        try:
            outcomes.append(len(fetch("T91", server.url, retries=0)))
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert outcomes == [3] * 6
    assert cached() == of("T91")


KILLED = """
import sys
from minisrcnn.imaging import datasets
url, sha256 = sys.argv[1:]
entry = datasets.Entry("Set14/1_GT.bmp", sha256, "Test/Set14/1_GT.bmp")
datasets._registry = lambda: (url, {"Set14": [entry]})
datasets.fetch("Set14", retries=0)
"""


def test_killed_in_the_middle_of_a_download(server):
    server.special["/mirror/Test/Set14/1_GT.bmp"] = "stalls"
    entry = SETS["Set14"][0]
    process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, entry.sha256])
    give_up = time.monotonic() + 600
    folder = cache_dir() / "Set14"
    while not (server.asked and any(folder.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "1_GT.bmp").exists()
    server.special.clear()
    assert fetch("Set14", server.url).paths[0].read_bytes() == FILES["Set14/1_GT.bmp"]


# --- where data is found


def put(place, name, change=None):
    for file, body in of(name).items():
        path = Path(place) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((change or {}).get(file, body))


def test_the_order_of_places(empty, monkeypatch):
    asked, environment = empty / "asked", empty / "environment"
    cache, shared, data = cache_dir(), Path("..", "shared", "data"), Path("data")
    for place in (cache, shared, data, environment, asked):
        put(place, "Set5")
        if place == environment:
            monkeypatch.setenv("MINISRCNN_DATA", str(environment))
        found = load_dataset("Set5", data_dir=asked if place == asked else None, download=False)
        assert found.paths[0].parent == place / "Set5"
        assert found.registered
    # a place that was named and does not hold the set: the next one
    put(shared, "T91")
    assert load_dataset("T91", data_dir=asked).paths[0].parent == shared / "T91"


def test_nowhere_to_be_found(empty):
    with pytest.raises(MinisrcnnError, match=r"not found in data, .*minisrcnn data fetch T91"):
        load_dataset("T91", download=False)
    with pytest.raises(MinisrcnnError, match="no answer"):
        load_dataset("T91")


def test_a_named_place_must_exist(empty, monkeypatch):
    with pytest.raises(MinisrcnnError, match="nowhere: no such folder"):
        load_dataset("Set5", data_dir="nowhere")
    monkeypatch.setenv("MINISRCNN_DATA", "lost")
    with pytest.raises(MinisrcnnError, match="MINISRCNN_DATA: lost: no such folder"):
        load_dataset("Set5")


def test_an_incomplete_set_is_not_taken_for_whole(empty):
    put("data", "T91")
    Path("data/T91/1_GT.bmp").unlink()
    with pytest.raises(MinisrcnnError, match=r"incomplete, lacks 1_GT.bmp$"):
        load_dataset("T91")
    Path("data/T91/3_GT.bmp").unlink()
    with pytest.raises(MinisrcnnError, match=r"lacks 1_GT.bmp and 1 more"):
        load_dataset("T91")


def test_the_set_under_other_file_names(empty):
    Path("data/Set5").mkdir(parents=True)
    write_image("data/Set5/baby.png", np.zeros((4, 4), np.uint8))
    found = load_dataset("Set5")
    assert found.titles == ["baby"]
    assert not found.registered


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "x" * 5000, "a\0b"])
def test_names_that_cannot_be(name):
    for load in (load_dataset, lambda name: datasets.load_datasets([name], ["T91"])):
        with pytest.raises(MinisrcnnError, match="neither a folder nor one of T91, Set5, Set14"):
            load(name)
    with pytest.raises(MinisrcnnError, match="no such folder"):
        load_dataset("Set5", data_dir=name)


def test_folders_and_names(empty):
    Path("mine/inner").mkdir(parents=True)
    for name in ("b.png", "a.png"):
        write_image(Path("mine", name), np.zeros((4, 4), np.uint8))
    found = load_dataset("mine")
    assert (found.name, found.titles, found.registered) == ("mine", ["a", "b"], False)
    assert len(found) == 2
    with pytest.raises(MinisrcnnError, match="without pictures"):
        load_dataset("mine/inner")
    with pytest.raises(MinisrcnnError, match="Set9: neither a folder nor one of T91, Set5, Set14"):
        load_dataset("Set9")


def test_what_data_on_the_command_line_stands_for(empty):
    for name in ("T91", "Set5", "Set14"):
        put("all", name)
        put("data", name)
    Path("mine").mkdir()
    write_image("mine/a.png", np.zeros((4, 4), np.uint8))

    def load(values, wanted):
        return [str(d.paths[0].parent) for d in load_datasets(values, wanted, download=False)]

    assert load(["all"], ["T91"]) == ["all/T91"]
    assert load(["all"], ["Set5", "Set14"]) == ["all/Set5", "all/Set14"]
    assert load(["all/Set5"], ["Set5", "Set14"]) == ["all/Set5"]
    assert load(["mine", "set14"], ["Set5"]) == ["mine", "data/Set14"]
    assert load([], ["Set5", "Set14"]) == ["data/Set5", "data/Set14"]


def test_names_in_any_case():
    assert [dataset_name(n) for n in ("t91", "SET5", "Set14")] == ["T91", "Set5", "Set14"]
    assert dataset_name("./Set5") is None
    assert dataset_name("") is None


def test_verify(empty):
    put("data", "T91", change={"T91/2_GT.bmp": b"other"})
    Path("data/T91/3_GT.bmp").unlink()
    rows = verify("T91")
    assert [row.status for row in rows] == ["ok", "corrupt", "missing"]
    assert [row.file for row in rows] == list(of("T91"))
    assert rows[0].path == Path("data/T91/1_GT.bmp")
    assert {row.status for row in verify("Set5")} == {"missing"}
    with pytest.raises(MinisrcnnError, match="Set9: no such data set, want one of T91"):
        verify("Set9")


def test_list(empty):
    put("data", "T91")
    put(cache_dir(), "Set5")
    (cache_dir() / "Set5" / "1_GT.bmp").unlink()
    rows = {row.name: (row.images, row.place, row.present) for row in list_datasets()}
    assert rows == {
        "T91": (3, Path("data/T91"), 3),
        "Set5": (2, cache_dir() / "Set5", 1),
        "Set14": (1, None, 0),
    }


# --- the registry itself


def test_the_registry_holds_110_pinned_files():
    base, _ = datasets._registry()
    commit = "78be1a24697935fc39a3a8cf59a6632264afade7"
    assert base == f"https://raw.githubusercontent.com/tegg89/SRCNN-Tensorflow/{commit}"
    entries = [entry for name in datasets.NAMES for entry in registry(name)]
    assert [len(registry(name)) for name in datasets.NAMES] == [91, 5, 14]
    assert len({entry.file for entry in entries}) == 110
    for entry in entries:
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.source.endswith("/" + entry.file.split("/")[1])
        assert ".." not in entry.file + entry.source


@pytest.mark.parametrize("name", datasets.NAMES)
def test_the_real_files_are_the_pinned_ones(name):
    root = Path(__file__).parents[1]
    places = [os.environ.get("MINISRCNN_DATA"), root / "data", root / ".." / "shared" / "data"]
    place = next((p for p in places if p and Path(p, name).is_dir()), None)
    if place is None:
        pytest.skip(f"{name} is not there: set MINISRCNN_DATA to the folder that holds it")
    assert {row.status for row in verify(name, data_dir=place)} == {"ok"}


def test_the_cache_is_the_platforms(monkeypatch, tmp_path):
    import pooch

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINISRCNN_CACHE", raising=False)
    assert cache_dir() == Path(pooch.os_cache("minisrcnn"))


def test_photographs_without_any_network(monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setattr(socket, "socket", None)  # a download would fail here
    found = fallback_photographs()
    assert len(found) >= 5
    assert not found.registered
    for path in found.paths:
        assert min(read_image(path).shape[:2]) >= 300


def test_photographs_that_are_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MinisrcnnError, match="not installed"):
        fallback_photographs()


def test_importing_the_picture_wing_loads_nothing_heavy():
    code = """
import sys
from minisrcnn.imaging import color, datasets, files, metrics, patches, prepare, resize
heavy = {"PIL", "imageio", "matplotlib", "numba", "pooch", "requests", "scipy", "skimage"}
print(sorted(heavy & set(sys.modules)), "minisrcnn.engine" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[] False\n"
