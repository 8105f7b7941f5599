"""Every format, mode and metadata that libraries write: nothing wrong, nothing lost silently."""

from __future__ import annotations

import collections

import corpus
import pytest

from minisrcnn.imaging.decode import quiet


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pytest.importorskip("numba", reason="the network is Numba's")
    folder = tmp_path_factory.mktemp("corpus")
    corpus.make(folder)
    return folder


def classes(folder, out, suffix, every=1):
    counts: dict[str, list[str]] = collections.defaultdict(list)
    net = corpus.identity()
    with quiet():
        for path in sorted(folder.iterdir())[::every]:
            kind, why = corpus.classify(path, out, net, suffix)
            counts[kind].append(f"{path.name}: {why}")
    return counts


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_nothing_is_wrong_and_nothing_lost_silently(made, tmp_path, suffix):
    counts = classes(made, tmp_path, suffix, every=11)
    assert not counts["crash"] and not counts["wrong"] and not counts["silent"]
    assert len(counts["kept"]) > 30 and len(counts["named"]) > 5


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".avif", ".gif"])
def test_the_whole_corpus(made, tmp_path, suffix):
    counts = classes(made, tmp_path, suffix)
    assert not counts["crash"] and not counts["wrong"] and not counts["silent"]


def test_the_classes_can_be_told_apart(made, tmp_path, monkeypatch):
    """A converter that turns colours, and one that drops metadata, are found out."""
    import minisrcnn.imaging.decode as decode
    from minisrcnn.imaging.metadata import Metadata

    path, net = made / "RGB-all.png", corpus.identity()
    assert corpus.classify(path, tmp_path, net)[0] == "kept"
    with monkeypatch.context() as patch:
        patch.setattr(decode, "_metadata", lambda *ignored: Metadata())
        assert corpus.classify(path, tmp_path, net)[0] in ("silent", "wrong")
    with monkeypatch.context() as patch:
        patch.setattr(decode, "_upright", lambda pixels, orientation: pixels[..., ::-1])
        assert corpus.classify(path, tmp_path, net)[0] == "wrong"
    (tmp_path / "no.png").write_bytes(b"no")
    assert corpus.classify(tmp_path / "no.png", tmp_path, net)[0] == "refused"


def test_xmp_of_a_jpeg(tmp_path):
    """Made by hand: Pillow writes and tells it from 11.0 on."""
    import io

    from PIL import Image

    from minisrcnn.imaging.decode import open_picture

    stream = io.BytesIO()
    Image.new("L", (3, 2)).save(stream, "JPEG")
    data = b"http://ns.adobe.com/xap/1.0/\0" + corpus.XMP
    segment = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    path = tmp_path / "x.jpg"
    path.write_bytes(stream.getvalue()[:2] + segment + stream.getvalue()[2:])
    with open_picture(path) as picture:
        assert picture.metadata.xmp == corpus.XMP
    assert corpus.facts(path)["XMP"]
