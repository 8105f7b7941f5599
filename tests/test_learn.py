"""The exercises: solutions pass, skeletons are open, every known mistake gets its own hint."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from minisrcnn.engine.emulator import unavailable_reason
from minisrcnn.learn.course import exercise, exercises
from minisrcnn.learn.grading import grade, judge, load

ALL = pytest.mark.parametrize("task", exercises(), ids=lambda task: task.name)
MISTAKES = [pytest.param(task, *mistake, id=f"{task.number}-{k}")
            for task in exercises()
            for k, mistake in enumerate(load(task.grading, "grading").MISTAKES)]


def test_they_are_numbered_from_1():
    assert [task.number for task in exercises()] == list(range(1, len(exercises()) + 1))
    assert len(exercises()) >= 15


@ALL
def test_the_solution_passes(task):
    verdict = judge(task, task.solution)
    if verdict.status == "skipped":
        pytest.skip(verdict.text)
    assert verdict.status == "passed", verdict


@ALL
def test_the_skeleton_is_open_and_says_what_is_missing(task):
    verdict = judge(task, task.skeleton)
    if verdict.status == "skipped":
        pytest.skip(verdict.text)
    assert verdict.status == "open"
    assert verdict.text.startswith("not written yet: ")


@ALL
def test_skeleton_and_solution_differ_in_the_gaps_alone(task):
    added = [line[2:].strip() for line in difflib.ndiff(task.solution.splitlines(),
                                                        task.skeleton.splitlines())
             if line.startswith("+ ")]
    gaps = task.text.count(" gap: ")
    assert gaps >= 1
    assert len(added) == 2 * gaps
    assert all(line.startswith(("# your code: ", "// your code: ", "raise NotImplementedError",
                                "#error ")) for line in added)
    assert "grading" not in task.skeleton and " gap: " not in task.solution


@pytest.mark.parametrize(("task", "old", "new", "hint"), [
    pytest.param(*mistake.values, id=mistake.id, marks=[pytest.mark.slow] if i % 2 else [])
    for i, mistake in enumerate(MISTAKES)])
def test_a_known_mistake_gets_its_own_hint(task, old, new, hint):
    verdict = judge(task, task.planted(old, new))
    if verdict.status == "skipped":
        pytest.skip(verdict.text)
    assert verdict.status == "wrong", verdict
    assert verdict.hint == hint, verdict


@pytest.mark.skipif(unavailable_reason() is not None, reason=f"no emulator: {unavailable_reason()}")
def test_what_is_read_outside_of_a_kernels_arrays_is_nan():
    """Whatever lies in the memory there: so that a known mistake always gives the same."""
    task = exercise(15)
    grader = load(task.grading, "grading")
    (dx,) = grader.probe(load(task.planted(*grader.MISTAKES[4][:2]), "probed"))
    assert np.isnan(dx[0, :, :2]).any(axis=2).all() and np.isnan(dx[-1, :, -2:]).any(axis=2).all()
    assert not np.isnan(dx[:, :, 2:-2]).any()


def test_the_checker_names_the_mistake_too():
    task = exercise(7)
    verdict = judge(task, task.planted("dw[f, c, u, v] =", "dw[f, c, KH - 1 - u, KW - 1 - v] ="))
    assert "flipped" in verdict.text


def test_another_way_to_write_it_passes():
    source = ("import numpy as np\n\ndef conv2d_backward_weight(x, dy):\n"
              "    w = np.lib.stride_tricks.sliding_window_view(x, dy.shape[2:], (2, 3))\n"
              "    return np.einsum('nfij,ncuvij->fcuv', dy, w)\n")
    assert judge(exercise(7), source).status == "passed"


# --- files that do as they like -----------------------------------------------------------------


@pytest.mark.parametrize(("source", "says"), [
    ("while True: pass", "not finished after"),
    ("import sys; sys.exit(0)", "sys.exit"),
    ("import os; os._exit(3)", "exit code 3"),
    ("def convolve(x, w, b:\n", "line 1: SyntaxError"),
    ("convolve = 3", "not callable"),
    ("x = 1", "no attribute 'convolve'"),
    ("def convolve(x, w, b):\n    y = 0\n    return y / z", "line 3: NameError"),
    ("def convolve(x, w, b):\n    return None", "shape ()"),
    ("def convolve(x, w, b):\n    print('{' * 3)\n    return [0]", "shape (1,)"),
])
def test_whatever_the_file_does_the_verdict_is_one_line(tmp_path, source, says):
    file = tmp_path / "mine.py"
    file.write_text(source)
    verdict = grade(1, file, seconds=2 if "while" in source else 60)
    assert verdict.status == "wrong"
    assert says in verdict.text


# --- the command --------------------------------------------------------------------------------


def run(*arguments, cwd):
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "100"}
    return subprocess.run([sys.executable, "-m", "minisrcnn", "learn", *map(str, arguments)],
                          cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_from_start_to_a_passed_exercise(tmp_path):
    folder = tmp_path / "my exercises"
    started = run("start", folder, cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    assert f"cd '{folder}' && minisrcnn learn check 1\n" in started.stdout
    assert len(list(folder.glob("*.py"))) == len(exercises())
    first = run("check", 1, cwd=folder)
    assert first.returncode == 1
    assert "not written yet" in first.stdout
    task = exercise(1)
    file = folder / f"{task.name}.py"
    file.write_text(task.planted(*load(task.grading, "g").MISTAKES[0][:2]))
    wrong = run("check", 1, cwd=folder)
    assert wrong.returncode == 1
    assert "The kernel is flipped" in wrong.stdout
    file.write_text(task.solution)
    assert run("check", 1, cwd=folder).returncode == 0
    assert json.loads((folder / ".progress.json").read_text()) == {task.name: "passed"}
    listed = run("list", cwd=folder)
    assert "passed" in listed.stdout
    again = run("start", folder, cwd=tmp_path)  # nothing of the student's is overwritten
    assert again.returncode == 0
    assert file.read_text() == task.solution
    file.unlink()
    missing = run("check", 1, "--dir", folder.name, cwd=tmp_path)
    assert missing.returncode == 2
    assert "`minisrcnn learn start 'my exercises'` copies it again" in missing.stderr


def test_solution_is_printed_on_request(tmp_path):
    shown = run("solution", 8, cwd=tmp_path)
    assert shown.returncode == 0
    assert "dx[n, :, i:i + KH, j:j + KW] += " in shown.stdout


@pytest.mark.parametrize(("arguments", "says"), [
    (("check", "99"), "exercise is 99, want 1 to"),
    (("check", "1"), "no exercises here"),
    (("solution", "0"), "exercise is 0"),
])
def test_wrong_requests(tmp_path, arguments, says):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
