"""The command on real files: what is kept, batches, shards, manifests, signals."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corpus import XMP, classify, exif, identity, scene, srgb
from PIL import Image, features

from minisrcnn import MinisrcnnError
from minisrcnn.checkpoint import save_model
from minisrcnn.imaging.files import remove_leftovers
from minisrcnn.imaging.metadata import edit_exif, exif_orientation, without_orientation
from minisrcnn.upscale import batch
from minisrcnn.upscale.batch import Manifest, Outcome, run_jobs, run_workers, shard_of
from minisrcnn.upscale.plan import Job, find_sources, make_plan
from minisrcnn.upscale.run import Options, upscale_file

pytest.importorskip("numba", reason="the network is Numba's")


def colours(seed=0, H=20, W=30):
    return Image.fromarray((np.roll(scene(H, W), seed, 1)[..., :3] >> 8).astype(np.uint8))


def upscaled(source, target, **options):
    chosen = Options(**{"scale": 2, **options})
    return upscale_file(Job(Path(source), Path(target), True), lambda f: [(identity(), 2)], chosen)


@pytest.fixture
def model(tmp_path):
    save_model(tmp_path / "m.safetensors", identity(), {"scale": "2"})
    return tmp_path / "m.safetensors"


def command(*args, cwd=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "minisrcnn", "upscale", *map(str, args)], cwd=cwd, timeout=900,
        capture_output=True, **options)


# --- the start -----------------------------------------------------------------------------------

SLOW_TO_IMPORT = ("pydantic", "rich", "scipy.linalg", "scipy.signal", "numba.np.arrayobj", "torch",
                  "matplotlib", "skimage", "pooch", "requests")


def test_a_start_with_kept_kernels_imports_little(tmp_path, model):
    """Each of these takes a twentieth of the start or more."""
    colours().save(tmp_path / "a.png")
    code = f"""
import sys
import typer  # older ones bring rich
theirs = set(sys.modules)
from minisrcnn.cli import main
words = ["upscale", "a.png", "-o", "o.png", "--overwrite", "--jobs", "1", "--model", {str(model)!r}]
try:
    main(words)
except SystemExit as end:
    assert not end.code, end
print(*[m for m in {SLOW_TO_IMPORT} if m in sys.modules and m not in theirs])
"""
    for _ in range(2):  # the first one may compile
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["o.png", ""], done.stderr


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_metadata_is_kept_and_the_orientation_reset(tmp_path, suffix):
    colours().save(tmp_path / "a.jpg", exif=exif(6), xmp=XMP, dpi=(300, 300), icc_profile=srgb())
    result = upscaled(tmp_path / "a.jpg", tmp_path / f"o.{suffix}")
    assert result.notes == ([".webp holds no DPI"] if suffix == "webp" else [])
    with Image.open(tmp_path / f"o.{suffix}") as picture:
        picture.load()
        assert picture.size == (40, 60)
        block = picture.getexif()
        assert block.get(0x0112, 1) == 1 and block[0x010F] == "Maker"
        assert block.get_ifd(0x8825)[1] == "N" and block.get_ifd(0x8769)[0x829A] is not None
        assert picture.info["icc_profile"] == srgb()
        if suffix != "webp":
            assert [round(float(v)) for v in picture.info["dpi"]] == [300, 300]
    upscaled(tmp_path / "a.jpg", tmp_path / f"s.{suffix}", strip=True, scale_dpi=True)
    with Image.open(tmp_path / f"s.{suffix}") as picture:
        assert 0x010F not in picture.getexif() and "xmp" not in picture.info
        if suffix != "webp":
            assert round(float(picture.info["dpi"][0])) == 600


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_exif_stays_as_it_is_in_avif(tmp_path):
    block = exif(6, {0x927C: b"its maker's own offsets"})
    colours().save(tmp_path / "a.jpg", exif=block)
    upscaled(tmp_path / "a.jpg", tmp_path / "o.avif")
    with Image.open(tmp_path / "a.jpg") as before, Image.open(tmp_path / "o.avif") as after:
        assert after.size == (40, 60)
        raw = before.info["exif"], after.info["exif"][-len(before.info["exif"]):]
        tags = [picture.getexif() for picture in (before, after)]
        assert dict(tags[1]) == {k: v for k, v in tags[0].items() if k != 0x0112}
    assert raw[0].index(b"its maker's") == raw[1].index(b"its maker's")
    data = edit_exif(raw[0][6:], 5, 5)
    for cut in range(len(data)):  # damaged ones as well
        assert len(without_orientation(data[:cut])) == cut
    assert exif_orientation(without_orientation(raw[0][6:])) == 1


def test_exif_is_edited_in_place():
    data = exif(8, {0xA002: 30}).tobytes()[6:]
    assert exif_orientation(data) == 8
    edited = edit_exif(data, 90_000, 40)
    assert exif_orientation(edited) == 1 and len(edited) == len(data)
    again = Image.Exif()
    again.load(b"Exif\0\0" + edited)
    assert again.get_ifd(0x8769)[0xA002] == 90_000
    for cut in range(0, len(data), 3):  # damaged blocks do no harm
        edit_exif(data[:cut], 5, 5)
        exif_orientation(data[:cut])


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_animations_keep_frames_and_timing(tmp_path, suffix):
    frames = [colours(5 * i) for i in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:],
                   duration=[100, 250, 40], loop=0)
    result = upscaled(tmp_path / "a.png", tmp_path / f"o.{suffix}")
    assert result.frames == 3
    with Image.open(tmp_path / f"o.{suffix}") as picture:
        assert picture.n_frames == 3 and picture.info["loop"] == 0
        for number, duration in enumerate([100, 250, 40]):
            picture.seek(number)
            picture.load()
            assert picture.info["duration"] == duration
            got = np.asarray(picture.convert("RGB")).astype(int)[::2, ::2]
            limit = 40 if suffix == "gif" else 12
            assert np.abs(got - np.asarray(frames[number])).mean() < limit
    result = upscaled(tmp_path / "a.png", tmp_path / "o.jpg")
    assert "all but the first of 3 frames" in result.notes[0]
    assert upscaled(tmp_path / "a.png", tmp_path / "p.png", first_frame=True).frames == 1


def test_gif_has_one_bit_of_transparency_and_steps_of_10_ms(tmp_path):
    soft = [Image.fromarray((np.roll(scene(), i, 1) >> 8).astype(np.uint8)) for i in (0, 8)]
    soft[0].save(tmp_path / "one.png")
    soft[0].save(tmp_path / "two.png", save_all=True, append_images=soft[1:], duration=[33, 40])
    for name, count in (("one", 1), ("two", 2)):
        result = upscaled(tmp_path / f"{name}.png", tmp_path / "o.gif")
        upscaled(tmp_path / f"{name}.png", tmp_path / "o.png")
        with Image.open(tmp_path / "o.gif") as got, Image.open(tmp_path / "o.png") as want:
            for number in range(count):
                got.seek(number)
                want.seek(number)
                a, b = np.asarray(got.convert("RGBA")), np.asarray(want.convert("RGBA"))
                seen = b[..., 3] >= 128
                assert np.array_equal(a[..., 3] == 255, seen)
                assert np.abs(a[seen].astype(int) - b[seen])[:, :3].mean() < 20
            assert count == 1 or got.info["duration"] == 40
        assert "more than one bit of transparency" in result.notes[0]
        assert result.notes[1:] == ["timing is rounded to what .gif can say"][: count - 1]


@pytest.mark.parametrize("suffix", ["jp2", "j2k", "tga", "pcx", "sgi", "qoi", "dib", "pgm"])
def test_the_same_format_is_written(tmp_path, suffix):
    Image.init()
    if suffix == "qoi" and "QOI" not in Image.SAVE:
        pytest.skip("this Pillow does not write QOI")
    for mode in ("L", "RGB", "RGBA"):
        picture = Image.fromarray((scene() >> 8).astype(np.uint8)).convert(mode)
        if (suffix, mode) == ("pgm", "RGB") or (suffix in ("pcx", "dib", "pgm") and mode == "RGBA"):
            continue
        path = tmp_path / f"{mode}.{suffix}"
        (picture.convert("RGB") if suffix == "qoi" and mode == "L" else picture).save(path)
        plan = make_plan(find_sources([str(path)], False, [], []), None, "_x2", "same")
        assert plan.jobs[0].target.suffix == path.suffix and not plan.notes
        assert classify(path, tmp_path, identity(), path.suffix)[0] in ("kept", "named")  # PCX: DPI
    picture.convert("RGB").save(tmp_path / "a.ico")
    plan = make_plan(find_sources([str(tmp_path / "a.ico")], False, [], []), None, "_x2", "same")
    assert plan.notes == [f"{tmp_path / 'a.ico'}: .ico cannot be written; it becomes .png"]


def test_a_tiff_compressed_as_webp(tmp_path, capfd):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs", reason="compresses and reads it")
    for name, C in (("rgb", 3), ("rgba", 4)):
        pixels = (scene()[..., :C] >> 8).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", compression="webp",
                         extrasamples=["unassalpha"] if C == 4 else None)
        capfd.readouterr()  # of another reader
        upscaled(tmp_path / f"{name}.tif", tmp_path / f"{name}.png")
        assert capfd.readouterr().err == ""  # libtiff prints what it cannot do
        assert classify(tmp_path / f"{name}.tif", tmp_path, identity()) == ("kept", "")


def test_pages_of_a_tiff(tmp_path):
    pages = [colours(), colours(3, 12, 40), colours(4).convert("L")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    made = make_plan(find_sources([str(tmp_path / "a.tif")], False, [], []), None, "_x2")
    assert made.jobs[0].target.name == "a_x2.tif"
    upscaled(tmp_path / "a.tif", tmp_path / "o.tif")
    with Image.open(tmp_path / "o.tif") as picture:
        assert picture.n_frames == 3
        for number, page in enumerate(pages):
            picture.seek(number)
            assert picture.size == (2 * page.width, 2 * page.height) and picture.mode == page.mode


def test_jpeg_in_bands_is_one_jpeg(tmp_path):
    """Wider and higher than a band: libjpeg and Pillow read the same, progressive or not."""
    pixels = (np.tile(scene(200, 300), (3, 4, 1))[..., :3] >> 8).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    result = upscaled(tmp_path / "a.png", tmp_path / "o.jpg", quality=97)
    assert result.size == (2400, 1200)
    with Image.open(tmp_path / "o.jpg") as picture:
        got = np.asarray(picture).astype(int)
    upscaled(tmp_path / "a.png", tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as picture:
        assert np.abs(got - np.asarray(picture)).mean() < 2
    imagecodecs = pytest.importorskip("imagecodecs", reason="a second JPEG decoder")
    other = imagecodecs.jpeg8_decode((tmp_path / "o.jpg").read_bytes())
    assert np.abs(got - other).max() <= 2


def test_a_jpeg_without_its_end_marker_and_one_that_is_cut(tmp_path):
    buffer = io.BytesIO()
    colours(0, 80, 90).save(buffer, "JPEG")
    data = buffer.getvalue()
    (tmp_path / "a.jpg").write_bytes(data[:-2])
    result = upscaled(tmp_path / "a.jpg", tmp_path / "o.png")
    assert "lacks its end marker" in result.notes[0]
    for missing in (20, 200, 600):
        (tmp_path / "a.jpg").write_bytes(data[:-missing])
        with pytest.raises(MinisrcnnError, match="truncated"):
            upscaled(tmp_path / "a.jpg", tmp_path / "o.png")


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="the extra heif")
    heif.register_heif_opener()
    colours().save(tmp_path / "a.heic", exif=exif(), quality=95)
    assert upscaled(tmp_path / "a.heic", tmp_path / "o.png").size == (60, 40)
    assert upscaled(tmp_path / "a.heic", tmp_path / "o.heic").size == (60, 40)


def test_limits_are_known_before_the_work(tmp_path):
    colours().save(tmp_path / "a.png")
    with pytest.raises(MinisrcnnError, match="30x20 = 600 pixels, want at most the limit of 599"):
        upscaled(tmp_path / "a.png", tmp_path / "o.png", max_pixels=599)
    with pytest.raises(MinisrcnnError, match="want at most 2,000"):
        upscaled(tmp_path / "a.png", tmp_path / "o.png", max_output=2000)
    with pytest.raises(MinisrcnnError, match="larger than --size"):
        upscaled(tmp_path / "a.png", tmp_path / "o.png", box=(20, None))
    assert upscaled(tmp_path / "a.png", tmp_path / "o.png", box=(45, 100)).size == (45, 30)


# --- batches -------------------------------------------------------------------------------------


def test_shards_are_disjoint_and_whole(tmp_path):
    for i in range(11):
        colours(i).save(tmp_path / f"{i}.png")
    sources = find_sources([str(tmp_path)], False, [], [])
    jobs = make_plan(sources, str(tmp_path / "o"), "").jobs
    parts = []
    for i in range(3):  # results that come meanwhile change nothing
        made = make_plan(sources, str(tmp_path / "o"), "", part=(i, 3))
        parts.append(made.jobs + made.existing)
        for job in parts[-1][::2]:
            job.target.write_bytes(b"x")
    assert sorted(itertools.chain(*parts), key=str) == sorted(jobs, key=str)
    assert shard_of("1/3") == (1, 3) and shard_of(None, {}) == (0, 1)
    assert shard_of(None, {"PMI_RANK": "2", "PMI_SIZE": "4"}) == (2, 4)
    assert shard_of(None, {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}) == (0, 2)
    assert shard_of(None, {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}) == (3, 8)
    assert shard_of(None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == (0, 1)  # a job's script
    for bad in ("3/3", "a/2", "1", "-1/2", "0/0"):
        with pytest.raises(MinisrcnnError, match="want I/N"):
            shard_of(bad)
    with pytest.raises(MinisrcnnError, match="PMI_RANK/PMI_SIZE is 'x/2', want I/N"):
        shard_of(None, {"PMI_RANK": "x", "PMI_SIZE": "2"})


def test_one_picture_is_the_first_shards_alone(tmp_path):
    """Under mpiexec every rank has the whole command line: one of them writes the file."""
    colours().save(tmp_path / "a.png")
    for picture, out in (("a.png", tmp_path / "o.png"), ("a.png", "-"), ("-", None),
                         ("-", tmp_path / "o.png")):
        sources = find_sources([picture if picture == "-" else str(tmp_path / picture)], False,
                               [], [])
        jobs = [make_plan(sources, out and str(out), "_x2", part=(i, 3)).jobs for i in range(3)]
        assert [len(found) for found in jobs] == [1, 0, 0], (picture, out)


def test_a_torn_manifest_is_read(tmp_path):
    manifest = Manifest(tmp_path / "m.jsonl")
    (tmp_path / "b.png").write_bytes(b"x")
    good = {"input": "a.png", "output": str(tmp_path / "b.png"), "error": None}
    gone = {"input": "c.png", "output": str(tmp_path / "gone.png"), "error": None}
    (tmp_path / "m.jsonl").write_text(
        json.dumps(good) + "\n" + json.dumps(gone) + "\n" + '{"input": "d.p')
    assert manifest.finished() == {("a.png", str(tmp_path / "b.png"))}


def test_a_part_reads_the_manifests_of_all_parts(tmp_path):
    """However many there were; of two lines about a picture the later file's holds."""
    (tmp_path / "x.png").touch()
    jobs = [Job(Path(f"{i}.png"), tmp_path / "x.png") for i in range(5)]

    def write(part, job, error, when):
        with Manifest(tmp_path / "m.x.jsonl", part) as manifest:
            manifest.add(Outcome(job, None, error))
        os.utime(manifest.path, (when, when))

    write((0, 1), jobs[0], None, 5)
    write((2, 3), jobs[1], None, 2)
    write((7, 100), jobs[1], "failed later", 3)
    write((1, 3), jobs[2], "failed first", 1)
    write((6, 100), jobs[2], None, 4)
    for name in ("m.jsonl", "m.x.0-of-3.jsonl.bak", "m.x.a-of-3.jsonl", "mmx.0-of-3.jsonl"):
        (tmp_path / name).write_text(json.dumps(
            {"input": "3.png", "output": str(tmp_path / "x.png"), "error": None}))
    done = {(str(job.source), str(job.target)) for job in (jobs[0], jobs[2])}
    for part in ((0, 1), (1, 2), (2, 3)):
        assert Manifest(tmp_path / "m.x.jsonl", part).finished() == done
    assert Manifest(tmp_path / "m.x.jsonl").finished({("0.png", str(tmp_path / "x.png"))}) == {
        ("0.png", str(tmp_path / "x.png"))}


def test_results_within_the_folder_are_no_sources(tmp_path):
    """Whatever part was first: all parts share out the same pictures."""
    for name in ("a.png", "b/c.png", "d.png", "out/b/c_x2.png", "out/e.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        colours(0).save(tmp_path / "in" / name)

    def plan(folder, out):
        return make_plan(find_sources([str(tmp_path / folder)], True, [], []),
                         str(tmp_path / out), "_x2")

    found = plan("in", "in/out")
    assert [job.source.name for job in found.jobs] == ["a.png", "d.png"]
    assert [job.source.name for job in found.existing] == ["c.png"]
    assert found.pictures == 3 and "Skipping 2 pictures in" in found.notes[0]
    assert plan("in", "elsewhere").pictures == 5
    assert plan("in/out", "in").pictures == plan("in/out", "in/out").pictures == 2


def test_pictures_side_by_side_come_in_order(tmp_path):
    jobs = some_jobs(tmp_path, 12)
    (tmp_path / "05.png").write_bytes(b"no picture")
    seen: list[float] = []
    outcomes = list(run_jobs(jobs, lambda f: [(identity(), 2)], Options(scale=2), seen.append))
    assert [o.job for o in outcomes] == jobs
    assert [o.error is None for o in outcomes] == [i != 5 for i in range(12)]
    assert max(seen) == 12


def test_workers_shards_manifest_and_resume(tmp_path, model):
    (tmp_path / "in/deep").mkdir(parents=True)
    for i in range(6):
        colours(i).save(tmp_path / f"in/{'deep/' if i % 2 else ''}{i}.jpg")
    (tmp_path / "in/notes.txt").write_text("x")
    done = command("in", "-r", "-o", "out", "--model", model, "--jobs", 2, "--manifest", "m.jsonl",
                   "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"notes.txt" in done.stderr
    report = json.loads(done.stdout)["pictures"]
    assert len(report) == 6 and all(p["error"] is None for p in report)
    assert (tmp_path / "out/deep/1_x2.png").exists() and (tmp_path / "out/0_x2.png").exists()
    (tmp_path / "out/0_x2.png").unlink()
    (tmp_path / "out/.0_x2.png.99999999-0123abcd.part").write_bytes(b"left by a kill")
    args = ["in", "-r", "-o", "out", "--model", model, "--manifest", "m.jsonl", "--resume",
            "--overwrite"]
    done = command(*args, cwd=tmp_path)
    assert b"5 of 6 pictures are done" in done.stderr
    assert done.stdout.decode().split() == ["out/0_x2.png"]
    assert not list((tmp_path / "out").glob(".*"))
    done = command("in", "-r", "-o", "o2", "--model", model, "--shard", "1/4", "--manifest",
                   "m.jsonl", cwd=tmp_path)
    assert b"Part 1 of 4: 2 of 6" in done.stderr and (tmp_path / "m.1-of-4.jsonl").exists()
    # Gone on with in two parts, named one by one; one result came just before a kill.
    named = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "in").glob("*.jpg"))
    for name in named[:2]:
        (tmp_path / "o2" / f"{Path(name).stem}_x2.png").write_bytes(b"kept")
    (tmp_path / "m.2-of-4.jsonl").write_text(json.dumps(
        {"input": named[0], "output": f"o2/{Path(named[0]).stem}_x2.png", "error": None}))
    done = command(*named, "-o", "o2", "--model", model, "--shard", "0/2", "--manifest", "m.jsonl",
                   "--resume", cwd=tmp_path)
    assert done.returncode == 0 and b"Part 0 of 2: 1 of 3" in done.stderr, done.stderr
    assert done.stdout.decode().split() == [f"o2/{Path(named[2]).stem}_x2.png"]
    assert (tmp_path / f"o2/{Path(named[0]).stem}_x2.png").read_bytes() == b"kept"


forked = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")


def networks(factor):
    return [(identity(), 2)]


def some_jobs(folder, count):
    for i in range(count):
        colours(i).save(folder / f"{i:02}.png")
    return [Job(folder / f"{i:02}.png", folder / f"{i:02}_x2.png") for i in range(count)]


@forked
def test_a_worker_killed_after_its_last_write_fails_nothing(tmp_path, monkeypatch):
    """The result is there, and nobody was told: the second try replaces it."""
    jobs = some_jobs(tmp_path, 4)
    true = batch.upscale_file

    def upscale(job, *more):
        result = true(job, *more)
        with contextlib.suppress(FileExistsError):
            (tmp_path / "died").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkeypatch.setattr(batch, "upscale_file", upscale)
    outcomes = list(run_workers(jobs, networks, lambda: networks, Options(scale=2), 2, [].append))
    assert [outcome.error for outcome in outcomes] == [None] * 4


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux says who is dead")
def test_parts_of_a_process_that_is_dead_and_not_waited_for_are_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    part = tmp_path / f".a.png.{process.pid}-0123abcd.part"
    part.touch()
    remove_leftovers([tmp_path / "a.png"])
    process.wait()
    assert not part.exists()


@forked
def test_a_picture_that_kills_its_worker_fails_alone(tmp_path, monkeypatch):
    """Twice, the second time with no other picture under way; no other one is blamed."""
    jobs = []
    for i in range(12):
        colours(i).save(tmp_path / f"{i:02}.png")
        jobs.append(Job(tmp_path / f"{i:02}.png", tmp_path / f"{i:02}_x2.png"))
    true = batch.upscale_file

    def upscale(job, *more):
        if job.source.stem in ("03", "04", "11"):
            (tmp_path / f".{job.target.name}.{os.getpid()}-0123abcd.part").touch()
            (tmp_path / f"{job.source.stem}.{os.getpid()}.died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return true(job, *more)

    monkeypatch.setattr(batch, "upscale_file", upscale)
    seen = []
    outcomes = list(run_workers(jobs, networks, lambda: networks, Options(scale=2), 2, seen.append))
    assert sorted(o.job.source.stem for o in outcomes) == [f"{i:02}" for i in range(12)]
    assert {o.job.source.stem: o.error for o in outcomes if o.error} == {
        n: f"{tmp_path / n}.png: its worker process died twice (exit code -9)"
        for n in ("03", "04", "11")}
    assert seen == list(range(1, 13))
    assert len(list(tmp_path.glob("*_x2.png"))) == 9 and not list(tmp_path.glob("*.part"))
    assert all(len(list(tmp_path.glob(f"{n}.*.died"))) <= 2 for n in ("03", "04", "11"))


def die():
    os._exit(7)


def refuse():
    raise MinisrcnnError("m.safetensors: is gone")


@forked
@pytest.mark.parametrize("load, says", [
    (die, r"3 worker processes died at their start, one after another \(exit code 7\)"),
    (refuse, "a worker process cannot start: m.safetensors: is gone"),
])
def test_workers_that_cannot_start_end_the_run(tmp_path, load, says):
    jobs = [Job(tmp_path / f"{i}.png", tmp_path / f"{i}_x2.png") for i in range(20)]
    with pytest.raises(MinisrcnnError, match=says):
        list(run_workers(jobs, networks, load, Options(scale=2), 2))


def test_standard_input_and_output(tmp_path, model):
    colours().save(tmp_path / "a.png")
    done = command("-", "-o", "-", "--format", "jpg", "--model", model, cwd=tmp_path,
                   input=(tmp_path / "a.png").read_bytes())
    assert done.returncode == 0, done.stderr
    with Image.open(io.BytesIO(done.stdout)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (60, 40))


def test_dry_run_formats_suffix_sheet_and_names(tmp_path, model):
    colours().save(tmp_path / "a.png")
    colours().save(tmp_path / "b\x1b[31m.bmp")
    done = command("a.png", "b\x1b[31m.bmp", "--dry-run", "--format", "same", "--suffix", "-big",
                   "-o", "new", "--model", model, cwd=tmp_path)
    assert done.stdout.decode().splitlines() == [
        "a.png -> new/a-big.png", "b\\x1b[31m.bmp -> new/b\\x1b[31m-big.bmp"]
    assert not (tmp_path / "new").exists()
    done = command("a.png", "--scale", "1.5", "--model", model, "--contact-sheet", "sheet.png",
                   cwd=tmp_path)
    assert done.stdout == b"a_x1.5.png\n" and (tmp_path / "sheet.png").exists()
    with Image.open(tmp_path / "a_x1.5.png") as picture:
        assert picture.size == (45, 30)
    for bad in (["--format", "doc"], ["--size", "axb"], ["--resume"], ["--shard", "2/2"]):
        done = command("a.png", *bad, "--model", model, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith(b"minisrcnn: --")
    assert command("", cwd=tmp_path).returncode == 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_no_part_of_a_file(tmp_path, model, number):
    Image.fromarray(np.tile(np.asarray(colours()), (100, 100, 1))).save(tmp_path / "a.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "minisrcnn", "upscale", "a.png", "--model", str(model)],
        cwd=tmp_path, stderr=subprocess.PIPE)
    until = time.monotonic() + 900
    while not list(tmp_path.glob(".a_x2*.part")) and time.monotonic() < until:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, text = process.communicate(timeout=900)
    assert process.returncode == 128 + number and b"stopped by SIG" in text
    assert not list(tmp_path.glob(".a_x2*")) and not (tmp_path / "a_x2.png").exists()


@pytest.mark.parametrize("line", [
    "[" * 100_000, '{"input": ["a"], "output": ["b"]}', '{"input": null, "output": null}',
    '{"input": "a", "output": "\\ud800"}', '{"input": 1, "output": 1}', "\\xff",
])
def test_odd_lines_of_a_manifest_are_passed_over(tmp_path, line):
    (tmp_path / "b.png").touch()
    good = json.dumps({"input": "a.png", "output": str(tmp_path / "b.png"), "error": None})
    (tmp_path / "m.jsonl").write_text(f"{line}\n{good}\n")
    assert Manifest(tmp_path / "m.jsonl").finished() == {("a.png", str(tmp_path / "b.png"))}


def test_a_manifest_that_cannot_be_written_is_refused_before_a_picture_is_made(tmp_path, model):
    colours(0).save(tmp_path / "a.png")
    done = command("a.png", "--model", model, "--manifest", "no/such/m.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert b"no/such/m.jsonl: cannot be written (No such file" in done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on this system")
def test_a_pipe_is_no_manifest_to_resume_from(tmp_path):
    os.mkfifo(tmp_path / "m.jsonl")
    with pytest.raises(MinisrcnnError, match=r"m\.jsonl: not a plain file"):
        Manifest(tmp_path / "m.jsonl").finished()


@pytest.mark.slow
def test_nothing_is_lost_when_workers_or_the_run_are_killed(tmp_path, model):
    psutil = pytest.importorskip("psutil", reason="finds the workers")
    (tmp_path / "in").mkdir()
    for i in range(60):
        colours(i, 120, 160).save(tmp_path / f"in/{i}.png")
    args = [sys.executable, "-m", "minisrcnn", "upscale", "in", "-o", "out", "--model", str(model),
            "--jobs", "2", "--manifest", "m.jsonl", "--resume"]

    def begun(count):
        process = subprocess.Popen(args, cwd=tmp_path, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 900
        while len(list((tmp_path / "out").glob("*.png"))) < count and time.monotonic() < until:
            time.sleep(0.01)
        return process

    process = begun(5)
    workers = [p for p in psutil.Process(process.pid).children()
               if "resource_tracker" not in str(p.cmdline())]
    workers[0].kill()
    while len(list((tmp_path / "out").glob("*.png"))) < 15:
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert not psutil.wait_procs(workers, timeout=60)[1], "workers go on without the run"
    assert begun(60).wait() == 0
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert {line["input"] for line in lines if line["error"] is None} == {
        f"in/{i}.png" for i in range(60)}
    assert sorted(os.listdir(tmp_path / "out")) == sorted(f"{i}_x2.png" for i in range(60))
    for path in (tmp_path / "out").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (320, 240)


def test_an_unfinished_reader_lets_python_end():
    """At the end of Python 3.13 other threads stand still; waiting for one would never end."""
    code = "from minisrcnn.imaging.pages import ahead; left = ahead(range(9)); next(left)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
