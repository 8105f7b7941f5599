"""The benchmarks run, refuse wrong results, count the work as the paper would, and judge fairly.

Nothing here is timed: statistics are tested on synthetic samples.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    ab,
    cases,
    gpu_session,
    machine,
    ours,
    pictures,
    report,
    results,
    runner,
    scaling,
    verdicts,
)
from benchmarks.__main__ import main
from benchmarks.registry import all_implementations
from benchmarks.results import Row, Run
from minisrcnn.training.ranks import Ranks

ROOT = Path(__file__).resolve().parent.parent


def make_run(rows, noisy="", **machine_facts):
    return Run(["ops"], "2026-01-01T00:00:00Z", 1.0, {"processor": "a", "gpu": "none"}
               | machine_facts, {"threads": 2, "clock": "wall"}, rows, [], noisy)


def row_of(turns, name="case", who="production", **more):
    return Row("ops", name, "group", 32, who, samples=[[t] for t in turns], mflop=100.0, **more)


# ---- what is measured ------------------------------------------------------------------------


def test_work_of_a_patch_is_counted_by_hand():
    # 9-1-5 on 33x33: outputs of 25, 25 and 21 pixels; 2 FLOP a multiply-add.
    forward = [2 * 625 * 81 * 64, 2 * 625 * 64 * 32, 2 * 441 * 25 * 32]
    want = (2 * forward[0] + 3 * forward[1] + 3 * forward[2]) * 1e-6
    assert cases.Training("9-1-5", 1).mflop == pytest.approx(want)
    assert cases.Training("9-1-5", 128).mflop == pytest.approx(128 * 22.76, abs=1)
    assert cases.Inference("9-1-5", 10, 20).mflop == pytest.approx(200 * 16064e-6)


def test_winograd_does_fewer_operations():
    # F(2x2, 5x5): 36 multiplications for 4 pixels, not 100; 21 rows are 11 tiles, not 10.5.
    c = cases.Convolution("forward", 1, 64, 32, 5, 25, 25)
    want = 2e-6 * 64 * 32 * 11 * 11 * 36
    assert ours.done_by_production(c) == pytest.approx(want)
    # 9 rows as three F(4, 3): 18 multiplications for 4 rows, not 36; 25 rows are 7 groups.
    first = cases.Convolution("forward", 1, 1, 64, 9, 33, 33)
    assert ours.done_by_production(first) == pytest.approx(2e-6 * 64 * 7 * 18 * 9 * 25)
    one = cases.Convolution("forward", 1, 64, 32, 1, 25, 25)
    assert ours.done_by_production(one) == one.mflop


@pytest.mark.parametrize("case", [
    cases.Convolution("weight gradient", 9, 2, 3, 3, 7, 6), cases.Training("3-1-3", 9, 11),
    cases.Inference("3-3", 90, 70), cases.Transfer("to the host", 4), cases.Roof("sgemm", 8),
])
def test_cases_travel_as_json(case):
    again = cases.from_json(json.loads(json.dumps(cases.to_json(case))))
    assert again == case and again.label == case.label


def test_answers_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: no oracle")
    case = cases.Training("3-1-3", 9, 9)
    values = [torch.tensor(v, dtype=torch.float64).requires_grad_() for v in case.params.values()]
    y = torch.tensor(case.data["x"], dtype=torch.float64)
    for i in range(0, len(values), 2):
        y = torch.nn.functional.conv2d(y, values[i], values[i + 1])
        y = torch.relu(y) if i < len(values) - 2 else y
    loss = ((y - torch.tensor(case.data["t"])) ** 2).mean()
    loss.backward()
    answer = case.answer()
    assert answer["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)
    for key, value in zip(case.params, values, strict=True):
        np.testing.assert_allclose(answer[key], value.grad.numpy(), rtol=1e-9, atol=1e-14)


def test_an_error_is_not_hidden_by_another():
    case = cases.Inference("3-3", 90, 90)
    want = case.answer()
    image = np.zeros((1, 90, 90))
    assert cases.error_of(case, image, want) > 0.9
    image[0, 85, 85] = np.nan
    assert np.isnan(cases.error_of(case, image, want))
    with pytest.raises(ValueError, match="has shape"):
        cases.error_of(cases.Convolution("forward", 1, 1, 1, 1, 2, 2), np.zeros(3),
                       {"result": np.zeros(4)})


# ---- measuring -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run over one small convolution: numpy, production, and a file with a fault."""
    folder = tmp_path_factory.mktemp("run")
    mine = folder / "mine.py"
    mine.write_text("""
from minisrcnn.engine.backends import get_backend
print("a library that talks")
def conv2d_forward(x, w, b):
    return get_backend("numpy").conv2d_forward(x, w, b) * 1.001
def conv2d_backward_input(dy, w):
    raise RuntimeError("no such kernel")
def conv2d_backward_weight(x, dy):
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
""")
    out = folder / "out.json"
    code = main(["ops", "--shape", "2,3,8,3,9,9", "--with", str(mine), "--filter",
                 r"^ops.* (numpy|production|mine)$", "--rounds", "2", "--threads", "1",
                 "--out", str(out)])
    assert code == 0
    return out


def rows_of(run, who, timing="warm"):
    return {row.case.split(", ")[1]: row for row in run.rows
            if row.implementation == who and row.timing == timing}


def test_every_sample_is_stored(measured):
    run = results.load(measured)
    for who in ("numpy", "production"):
        rows = rows_of(run, who)
        assert set(rows) == set(cases.OPERATIONS)
        for row in rows.values():
            assert row.status == "ok" and row.error < 1e-5 and (row.threads or 1) < 1.3
            assert len(row.samples) == 3 and all(t > 0 for turn in row.samples for t in turn)
        assert all(len(row.samples) == 1 for row in rows_of(run, who, "first").values())
    assert len(run.noise) == 9 and all(n["calibration"] > 0 for n in run.noise)
    assert {"pressure", "steal", "noisy"} <= set(run.noise[0])
    assert run.machine["processor"] and run.machine["versions"]["numpy"]
    assert run.settings["threads"] == 1


def test_what_is_wrong_or_breaks_is_reported_and_not_timed(measured):
    rows = rows_of(results.load(measured), "mine")
    assert rows["forward"].status == "wrong" and "off by 1.0e-03" in rows["forward"].reason
    assert rows["input gradient"].reason == "RuntimeError: no such kernel"
    assert rows["weight gradient"].reason == "its process ended (SIGKILL)"
    assert not any(row.samples for row in rows.values())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_who_has_no_turn_is_stopped_and_all_have_the_same_processors(tmp_path):
    side = runner.Side(all_implementations()["numpy"], "numpy")
    with open(tmp_path / "log", "w") as log:
        worker = runner.Worker(side, runner.Settings(threads=1), tmp_path, log)
    try:
        assert worker.ask("hello") == {"status": "ok"}
        pid = worker.process.pid
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        assert state == "T"
        assert os.sched_getaffinity(pid) == set(machine.choose_cpus(1))
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"OPENBLAS_NUM_THREADS=1" in environment and b"NUMBA_NUM_THREADS=1" in environment
        worker.process.kill()
        worker.process.wait()
        assert worker.ask("hello")["reason"] == "its process ended (SIGKILL)"
    finally:
        worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
def test_stopped_processes_end_with_the_one_that_directs_them(tmp_path):
    code = """
import sys
from pathlib import Path
from benchmarks import registry, runner
side = runner.Side(registry.all_implementations()["numpy"], "numpy")
worker = runner.Worker(side, runner.Settings(threads=1), Path("."), sys.stderr)
worker.ask("hello")
print(worker.process.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}) as director:
        pid = int(director.stdout.readline())
        director.kill()
    for _ in range(60_000):
        place = Path(f"/proc/{pid}/stat")
        if not place.exists() or place.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("a stopped process outlived the one that directs it")


def test_every_column_can_be_listed(capsys):
    assert main(["all", "--list"]) == 0
    listed = capsys.readouterr().out
    for name in ("reference", "numpy", "v1_loops", "production", "cupy", "CUDA v1", "PyTorch",
                 "PyTorch compile", "ONNX Runtime", "OpenVINO", "ncnn", "LiteRT"):
        assert name in listed
    assert "4096x4096" in listed and "triad" in listed


@pytest.mark.parametrize(("words", "message"), [
    (["ops", "--shape", "1,2,3"], "want 6 numbers"),
    (["ops", "--shape", "1,1,1,5,3,3"], "larger than its image"),
    (["ops", "--threads", "4096"], "threads is 4096, want 1 to"),
    (["ops", "--with", "nowhere.py"], "does not exist"),
    (["ops", "--filter", "nothing like it"], "want a pattern"),
    (["compare", "nowhere.json", "nowhere.json"], "No such file"),
])
def test_a_wrong_request_is_one_line(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["PyTorch", "ONNX Runtime", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("OpenVINO", "ncnn", "LiteRT"))])
def test_peers_give_the_right_numbers(name):
    """Each in a process of its own, as in a run: two of them in one have been seen to crash."""
    code = f"""
import sys
from benchmarks import cases, registry
columns = registry.all_implementations()
found = [columns[n] for n in ({name!r}, {name!r} + " channels-last") if n in columns]
chosen = [cases.Inference("5-1-3", 40, 36), cases.Training("3-1-3", 32, 12)]
chosen += [cases.Convolution(o, 3, 2, 4, 3, 8, 9) for o in cases.OPERATIONS]
for column, case in [(column, case) for column in found for case in chosen]:
    if case.suite in column.suites:
        try:
            prepared = column.prepare(case, 1)
        except ImportError as missing:
            sys.exit(f"missing: {{missing}}")
        want = case.answer()
        for setting, call in prepared.calls.items():
            error = cases.error_of(case, prepared.fetch(call()), want)
            assert error < 1e-5, (case.label, setting, error)
print("right")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if "missing: " in done.stderr:
        pytest.skip(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    assert done.stdout.endswith("right\n"), done.stderr[-2000:]


def test_noise_is_marked():
    quiet = [{"case": "a", "pressure": 0.2, "steal": 0.0, "calibration": 1.0} for _ in range(20)]
    assert machine.mark_noise(quiet) == "" and not any(n["noisy"] for n in quiet)
    for fault in ({"pressure": 0.5}, {"steal": 0.1}, {"calibration": 1.3}):
        noisy = quiet[:16] + [quiet[0] | fault for _ in range(4)]
        assert "4 of 20 rounds" in machine.mark_noise(noisy)
        assert [n["noisy"] for n in noisy] == [False] * 16 + [True] * 4
    assert "others kept 1.0 processors busy" in machine.mark_noise(quiet, 1.0)
    unknown = [{"case": "a", "pressure": None, "steal": None, "calibration": None}] * 3
    assert machine.mark_noise(unknown) == ""


def test_a_filter_keeps_what_matches():
    sides = [runner.Side(c, n) for n, c in all_implementations().items()]
    chosen, kept = runner.select(cases.standard("ops"), sides, r"1x1.*weight.*128.*production")
    assert [c.label for c in chosen] == ["1x1 64->32 on 25x25, weight gradient, 128 patches"]
    assert [s.name for s in kept] == ["production"]


# ---- the file --------------------------------------------------------------------------------


def test_a_file_says_what_is_wrong_with_it(tmp_path, measured):
    path = tmp_path / "a.json"
    run = results.load(measured)
    results.save(run, path)
    assert results.load(path) == run
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a result file"):
        results.load(path)
    path.write_text('{"schema": 1}')
    with pytest.raises(ValueError, match="has schema 1, want 2"):
        results.load(path)


def test_csv_has_a_line_a_row(tmp_path):
    run = make_run([row_of([1.0, 3.0, 2.0]), row_of([], who="b", status="wrong", reason="off")])
    results.write_csv(run, tmp_path / "a.csv")
    lines = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert float(lines[0]["median_ms"]) == 2 and float(lines[0]["gflops"]) == 50
    assert lines[1]["median_ms"] == "" and lines[1]["reason"] == "off"


# ---- verdicts --------------------------------------------------------------------------------


def synthetic(rng, rows, turns, slowdown=None):
    """Times as they are seen: of each turn its own mood, of some turns an interruption."""
    made = []
    for i in range(rows):
        times = (1 + 0.1 * i) * (1 + 0.01 * rng.standard_normal(turns))
        times *= 1 + 0.2 * (rng.random(turns) < 0.1) * rng.random(turns)
        made.append(row_of(times * (slowdown or {}).get(i, 1.0), name=f"case {i}"))
    return make_run(made)


def test_two_runs_of_the_same_raise_no_alarm():
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(60):
        comparison = verdicts.compare(synthetic(rng, 12, 9), synthetic(rng, 12, 9))
        alarms += any(v.word in ("SLOWER", "FASTER") for v in comparison.verdicts)
    # 5 % are allowed: 3 of 60 expected, more than 8 has a chance of half a percent.
    assert alarms <= 8


def test_a_slowdown_of_three_percent_is_found():
    rng, found = np.random.default_rng(2), 0
    for _ in range(30):
        after = synthetic(rng, 12, 15, {3: 1.03, 4: 1.03, 5: 0.9})
        comparison = verdicts.compare(synthetic(rng, 12, 15), after)
        words = {v.key[0]: v.word for v in comparison.verdicts}
        found += (words["case 3"] == "SLOWER") + (words["case 4"] == "SLOWER")
        assert words["case 5"] == "FASTER"
        assert {v.key[0] for v in comparison.slower} >= {k for k, w in words.items()
                                                         if w == "SLOWER"}
    assert found >= 0.8 * 60


def test_the_interval_covers_the_true_ratio():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        _, low, high = verdicts.ratio_of_medians(1 + 0.02 * rng.standard_normal(15),
                                                 1.05 + 0.02 * rng.standard_normal(15))
        covered += low <= 1.05 <= high
    assert covered >= 0.9 * 200


@pytest.mark.parametrize(("ratio", "low", "high", "p", "word"), [
    (1.05, 1.03, 1.07, 0.001, "SLOWER"), (0.9, 0.88, 0.92, 0.001, "FASTER"),
    (1.05, 0.99, 1.12, 0.3, "UNCLEAR"), (1.005, 0.99, 1.01, 0.4, "SAME"),
    (1.01, 1.005, 1.015, 0.0001, "SAME"), (1.015, 1.005, 1.03, 0.0001, "UNCLEAR"),
])
def test_words(ratio, low, high, p, word):
    assert verdicts.judge(ratio, low, high, p, 0.02, 0.05) == word


def test_compare_ends_with_1_on_a_slowdown(tmp_path, capsys):
    rng = np.random.default_rng(4)
    before, after = synthetic(rng, 5, 15), synthetic(rng, 5, 15, {2: 1.2})
    results.save(before, tmp_path / "a.json")
    results.save(replace(after, machine={"processor": "b", "gpu": "none"}), tmp_path / "b.json")
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(["compare", *files]) == 1
    text = capsys.readouterr().out
    assert re.search(r"case 2 .*SLOWER", text) and "1 SLOWER" in text
    assert "another processor: a before, b after" in text
    assert main(["compare", *files, "--threshold", "0.5"]) == 0
    assert main(["compare", files[0], files[0]]) == 0
    results.save(make_run([row_of([1.0], name="another")]), tmp_path / "c.json")
    assert main(["compare", files[0], str(tmp_path / "c.json")]) == 2


def test_turns_taken_side_by_side_are_compared_as_pairs():
    rng, alarms, found = np.random.default_rng(5), 0, 0
    for _ in range(30):
        mood = 1 + 0.3 * rng.random(15)  # of a machine that others use as well
        rows = [row_of(mood * (1 + 0.005 * rng.standard_normal(15)) * slowdown, f"case {i}",
                       f"production, {side}")
                for i in range(10) for side, slowdown in (("before", 1.0),
                                                          ("after", 1.03 if i == 0 else 1.0))]
        before, after = ab.split(make_run(rows))
        words = {v.key[0]: v.word for v in verdicts.compare(before, after, paired=True).verdicts}
        found += words.pop("case 0") == "SLOWER"
        alarms += bool({"SLOWER", "FASTER"} & set(words.values()))
    assert found >= 27 and alarms <= 4


def test_growth_is_the_exponent():
    sizes = [2**i for i in range(8, 20, 2)]
    fit = verdicts.growth(sizes, [3.0 * s**1.5 for s in sizes])
    assert fit.exponent == pytest.approx(1.5) and fit.error < 1e-9
    assert fit.factor == pytest.approx(3.0)
    noisy = verdicts.growth(sizes, [s * f for s, f in zip(sizes, (1, 1.1, 0.9, 1, 1.1, 0.95),
                                                          strict=True)])
    assert abs(noisy.exponent - 1) < 3 * noisy.error and noisy.error > 0
    assert verdicts.growth([1, 2], [1, 2]) is None


def test_crossover_is_where_the_gpu_starts_to_win_for_good():
    cpu = {n: 0.1 * n for n in (16, 32, 64, 128)}
    gpu = {n: 4.0 + 0.01 * n for n in cpu}  # equal at 44.4
    found = verdicts.crossover(cpu, gpu)
    assert 32 < found < 64 and found == pytest.approx(44.4, rel=0.1)
    assert verdicts.crossover(cpu, dict.fromkeys(cpu, 0.01)) == 16
    assert verdicts.crossover(cpu, dict.fromkeys(cpu, 99.0)) is None
    assert verdicts.crossover(cpu, {}) is None
    # A lucky small size does not count: from 64 on it wins for good.
    assert 32 < verdicts.crossover(cpu, {16: 1.0, 32: 9.0, 64: 5.0, 128: 6.0}) < 64


# ---- two revisions, reports, documents -------------------------------------------------------


def test_ab_times_this_checkout_in_turns_with_itself(tmp_path, capsys):
    """Both sides are this checkout as it stands, so it also works where there is no git."""
    out = tmp_path / "ab.json"
    code = main(["ab", ".", ".", "--filter", "^ops 3x3 3->8.*forward", "--rounds", "4",
                 "--threads", "1", "--columns", "numpy", "--out", str(out)])
    text = capsys.readouterr().out
    assert code in (0, 1) and text.count("| numpy |") == 1
    before, after = ab.split(results.load(out))
    assert len(before.timed()) == len(after.timed()) == 1
    assert len(before.timed()[0].samples) == 4
    assert "before: " in report.BLOCKS["ab"](results.load(out))


def test_ab_refuses_what_git_does_not_know(capsys):
    assert main(["ab", "no-such-revision", "."]) == 2
    assert "no-such-revision" in capsys.readouterr().err


def pretended():
    """A run with rows of every kind; nothing in it was measured."""
    rows = [Row("roofs", "sgemm", "sgemm", 1, "roof", kind="roof", mflop=2e5, samples=[[1e3]]),
            Row("roofs", "fma", "fma", 1, "roof", kind="roof", mflop=3e5, samples=[[1e3]]),
            Row("roofs", "triad", "triad", 1, "roof", kind="roof", mbyte=4e4, samples=[[1e3]])]
    people = [("production", "ours", "cpu", 1.0), ("PyTorch", "peer", "cpu", 2.0),
              ("cupy", "ours", "gpu", 0.1)]
    for N in (16, 32, 128):
        for who, kind, device, factor in people:
            row = Row("training", f"step, {N} patches", "step", N, who, device, kind,
                      samples=[[factor * N / 10]] * 5, mflop=20.0 * N, mbyte=0.1 * N, error=1e-6)
            rows.append(row)
            if device == "gpu":
                rows.append(replace(row, timing="end to end", samples=[[4.0 + N / 100]] * 5))
    for who, kind, factor in (("v1_loops", "lesson", 9), ("v10_fast", "lesson", 2),
                              ("production", "ours", 1), ("PyTorch", "peer", 0.5)):
        rows.append(Row("ops", "layer on 5x5, forward, 32 patches", "layer on 5x5, forward", 32,
                        who, kind=kind, samples=[[factor * 1.0]], mflop=100.0, mbyte=1.0,
                        error=2e-7))
    rows.append(Row("ops", "layer on 5x5, forward, 32 patches", "layer on 5x5, forward", 32,
                    "mine", kind="yours", status="wrong", reason="off by 1e-1"))
    return make_run(rows)


def test_tables_say_what_was_measured():
    run = pretended()
    assert "| step, 128 patches | 12.8 ms | 25.6 ms, PyTorch | 2.0x |" in report.speed(run)
    assert "| layer on 5x5, forward | 1 / 0.5, **0.50x** |" in report.ops(run)
    assert "| nominal GFLOP/s | v1_loops | v10_fast | production |" in report.ladder(run)
    assert "| layer on 5x5, forward, 32 patches | 11.1 | 50 | 100 |" in report.ladder(run)
    assert "| step | production | 1.000 ± 0.000 | 16 to 128 |" in report.growth(run)
    assert re.search(r"\| step \| 4\d \|", report.crossover(run))
    assert "wrong: off by 1e-1" in report.untimed(run)
    assert "100%" in report.summary(run) and "1e-06" in report.summary(run)
    noisy = replace(run, noisy="9 of 9 rounds were noisy")
    assert "noisy" in report.speed(noisy) and "noisy" in report.machine(noisy)
    cpu_only = replace(run, rows=[r for r in run.rows if r.device == "cpu"])
    for table in (report.gpu, report.crossover):
        assert table(cpu_only) == "Not yet run on a GPU.\n"


def test_a_report_has_tables_and_plots(tmp_path):
    text = report.write(report.merge([pretended(), make_run([])]), tmp_path)
    assert (tmp_path / "report.md").read_text() == text
    assert (tmp_path / "rows.csv").read_text().count("\n") > 10
    for name in ("ladder", "ratio_to_peers", "roofline", "growth"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / f"{name}.svg").read_text().count("<path") > 5
        assert f"({name}.png)" in text


def test_documents_have_the_numbers_of_the_committed_results():
    differing = report.update_documents(write=False)
    assert not differing, f"{differing} differ: run python -m benchmarks report --update"
    if missing := report.missing_results():
        pytest.skip(f"the rest is not measured yet: {', '.join(missing)}")


def test_a_number_changed_by_hand_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "_load", lambda name: pretended())
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (tmp_path / "cpu.json").touch()
    text = "a\n<!-- benchmarks: speed cpu.json -->\n12 ms\n<!-- /benchmarks -->\nb\n"
    new = report.render(text)
    assert "12.8 ms" in new and new.startswith("a\n<!--") and new.endswith("-->\nb\n")
    assert report.render(new) == new
    assert report.render(new.replace("12.8", "11.8")) == new
    with pytest.raises(ValueError, match="has the table 'sped'"):
        report.render(text.replace("speed", "sped"))


def test_the_example_of_ones_own_kernel_is_right(tmp_path):
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    case = cases.Convolution("forward", 2, 3, 4, 3, 8, 9)
    prepared = ours.your_file(tmp_path / "mine.py").prepare(case, 1)
    assert cases.error_of(case, prepared.calls[""](), case.answer()) < 1e-6


def test_the_commands_of_the_document_are_accepted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    commands = re.findall(r"^python -m benchmarks ((?:all|ops|training|inference) .*?)(?:  +#.*)?$",
                          text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert main([*shlex.split(command.removesuffix("&&")), "--list"]) == 0, command
        assert "production" in capsys.readouterr().out


# ---- picture files ----------------------------------------------------------------------------


def test_a_program_must_make_its_pictures(tmp_path):
    def task(program, count=1):
        return pictures.Task("case", "it", [sys.executable, "-c", program], tmp_path / "o", count)

    write = f"open({str(tmp_path / 'o/a')!r}, 'w').write('x')"
    wall, cpu, peak = pictures.take(task(write))
    assert cpu > 0 and wall > 0 and peak > 1
    for bad, words in ((task(write + "; 1 / 0"), "ZeroDivisionError"),
                       (task(write, 2), "it made 1 of 2 pictures"), (task("pass"), "made 0 of 1")):
        with pytest.raises(ValueError, match=words):
            pictures.take(bad)


def test_the_table_of_picture_files():
    run = make_run([Row("files", "one", "one", 1, "ours", samples=[[1500.0]], threads=1.5,
                        peak_mb=480.2),
                    Row("files", "one", "one", 1, "theirs", kind="peer", samples=[[900.0]],
                        threads=1.9, peak_mb=90.0)])
    run.missing["another"] = "No module named 'it'"
    text = report.files(run)
    assert "| one | ours | 1.50 s | 1.5 | 480 MB |" in text
    assert "| one | theirs | 900 ms | 1.9 | 90 MB |" in text
    assert "Not measured: another: No module named 'it'." in text
    assert report.files(make_run([])) == ""


def test_the_table_of_packed_sets():
    """The ratio is that of turns taken one after the other, not of the medians."""
    rows = [Row("packed", "T91", "T91", 16, "in memory", samples=[[4.0], [8.0], [5.0]]),
            Row("packed", "T91", "T91", 16, "packed", samples=[[5.0], [8.0], [4.0]], peak_mb=300),
            Row("packed peak", "T91", "T91", 9, "in memory", peak_mb=3000.0)]
    text = report.packed_sets(make_run(rows))
    assert "| T91 | in memory | 3,200 |  |  |" in text
    assert "| T91 | packed | 3,200 | +0.0% | 300 MB |" in text
    assert "| T91 | in memory |  |  | 3,000 MB |" in text
    assert report.packed_sets(make_run([])) == ""


# ---- ranks ---------------------------------------------------------------------------------


def ranks_run(model, works, cores=2):
    """Return a run whose times are exactly a model's."""
    rows = []
    for w in works:
        group = scaling.group_of(w.arch, w.N)
        for n in (1, 2, 3, 4):
            parts = {"step": model.step(w, n), "exchange": model.exchange(w, n),
                     "update": model.update[w.arch]}
            rows += [Row("scaling", f"{group}, {n} ranks", group, n, part, samples=[[ms]] * 3)
                     for part, ms in parts.items()]
    run = make_run(rows)
    run.settings |= {"processors": cores, "works": [
        vars(w) | {"group": scaling.group_of(w.arch, w.N)} for w in works]}
    return run


WORKS = [scaling.Work("9-1-5", 128, 4, 32, 18_704), scaling.Work("9-1-5", 2048, 16, 128, 18_704),
         scaling.Work("9-5-5", 512, 16, 32, 103_824)]
MODEL = scaling.Model({"9-1-5": 0.09, "9-5-5": 0.4}, {"9-1-5": 0.3, "9-5-5": 0.5}, 2e-7, 0.02,
                      3e-7)


def test_the_model_of_ranks_is_found_again():
    run = ranks_run(MODEL, WORKS)
    found = scaling.fit(run)
    assert found.patch == pytest.approx(MODEL.patch) and found.update == MODEL.update
    assert (found.add, found.message, found.number) == pytest.approx((2e-7, 0.02, 3e-7))
    assert scaling.deviation(run, found) < 1e-9
    run.rows[3].samples = [[2 * MODEL.step(WORKS[0], 2)]] * 3  # a step that the parts do not give
    assert scaling.deviation(run, scaling.fit(run)) == pytest.approx(0.5)


def test_numbers_of_an_exchange_are_counted_by_hand():
    # 4 chunks of 10 numbers, 2 ranks: two chunks' 5 columns of the other, then its 5 sums.
    work = scaling.Work("3-1", 8, 2, 4, 10)
    assert work.numbers(2) == 2 * 5 + 5
    assert work.numbers(4) == pytest.approx(3 * 2.5 + 3 * 2.5)
    assert [work.messages(n) for n in (2, 3, 4)] == [1 + 2, 2 + 4, 3 + 4]


def test_ranks_pay_no_further_than_chunks():
    free = replace(MODEL, add=0.0, message=0.0, number=0.0, update={"9-1-5": 0.0})
    assert scaling.pays_up_to(free, WORKS[0]) == 32
    assert scaling.pays_up_to(free, WORKS[1]) == 128
    assert scaling.pays_up_to(replace(free, message=1e3), WORKS[1]) == 1


def test_projections_are_called_so():
    run = ranks_run(MODEL, WORKS)
    text = report.projection(run)
    assert text.count("**Projection**") == 2 and "assumed links" in text
    assert "9-1-5, 16,384 patches, 1,024 chunks" in text and "deviation" in text
    table = report.ranks(run)
    assert "4 ranks (no core each)" in table and table.count("\n") == 2 + len(WORKS)
    for block in (report.ranks, report.projection, report.workers):
        assert block(make_run([])) == ""


def test_a_rank_times_steps_and_exchanges():
    found = scaling.time_case("3-1-3", 40, Ranks(), 0.0)
    assert (found["size"], found["chunks"]) == (2, 20)
    assert all(len(found[part]) == 1 and found[part][0] > 0 for part in scaling.PARTS)


@pytest.mark.slow
def test_ranks_and_workers_are_measured():
    pytest.importorskip("mpi4py", reason="needs mpi4py and an MPI: pip install '.[mpi]'")
    run = scaling.measure([("3-1-3", 40)], (1, 2), 1, 5, ["scaling"], seconds=0.0)
    assert {(r.suite, r.size, r.implementation) for r in run.timed()} == {
        *(("scaling", n, part) for n in (1, 2) for part in scaling.PARTS),
        ("workers", 1, "upscale"), ("workers", 2, "upscale")}
    assert "5 pictures of 32x24, 2 workers" in report.workers(run)
    assert scaling.fit(run).patch["3-1-3"] > 0


# ---- whoever has a GPU -----------------------------------------------------------------------


def test_a_session_without_a_gpu_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("minisrcnn.engine.backends.unavailable_reason", lambda name: "no GPU here")
    assert main(["gpu-session", "--out", str(tmp_path)]) == 0
    summary = (tmp_path / "summary.md").read_text()
    for part in ("tests", "memcheck", "racecheck", "benchmarks", "profile", "report"):
        assert f"| {part} | skipped: no GPU here |" in summary


def test_a_session_goes_on_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr("minisrcnn.engine.backends.unavailable_reason", lambda name: None)
    python = sys.executable
    monkeypatch.setattr(gpu_session, "parts", lambda *_: [
        gpu_session.Part("breaks", [python, "-c", "raise SystemExit('no kernel')"], 900),
        gpu_session.Part("hangs", [python, "-c", "import time; time.sleep(60)"], 0.5),
        gpu_session.Part("is not there", ["no-such-program"], 900),
        gpu_session.Part("works", [python, "-c", "print('fine')"], 900)])
    assert gpu_session.run(tmp_path) == 1
    summary = (tmp_path / "summary.md").read_text()
    assert "| breaks | failed: exit code 1, see breaks.log: no kernel |" in summary
    assert "| hangs | failed: longer than 0 s, see hangs.log |" in summary
    assert "| is not there | failed:" in summary
    assert "| works | done, see works.log |" in summary
    assert (tmp_path / "works.log").read_text() == "fine\n"


def test_the_limits_of_a_session_are_under_ten_minutes():
    assert sum(p.limit for p in gpu_session.parts(Path("x"), "cupy", "")) < 600
