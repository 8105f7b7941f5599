"""The benchmarks run, refuse wrong results, and count the work as the paper would."""

from __future__ import annotations

import json

import numpy as np
import pytest
from minisrcnn.kernels.cpu import VERSIONS

from benchmarks import inference, measure, networks, ops, training
from benchmarks.__main__ import main


def test_work_of_a_patch_is_counted_by_hand():
    # 9-1-5 on 33x33: outputs of 25, 25 and 21 pixels; 2 FLOP a multiply-add.
    forward = [2 * 625 * 81 * 64, 2 * 625 * 64 * 32, 2 * 441 * 25 * 32]
    want = 2 * forward[0] + 3 * forward[1] + 3 * forward[2]
    params = networks.make_params("9-1-5")
    assert networks.training_mflop(params, 33) == pytest.approx(want * 1e-6)
    assert networks.training_mflop(params, 33) == pytest.approx(22.76, abs=0.01)
    assert networks.inference_mflop(params, 10, 20) == pytest.approx(200 * 16064e-6)


def test_training_benchmark_runs(tmp_path):
    path = tmp_path / "training.json"
    main(["training", "--quick", "--rounds", "1", "--threads", "1", "--json", str(path)])
    report = json.loads(path.read_text())
    assert report["machine"]["threads"] == 1 and report["machine"]["versions"]["numba"]
    (result,) = report["results"]
    names = [row["name"] for row in result["candidates"]]
    assert "minisrcnn (numba, fused)" in names and "sgemm" in names
    assert result["share_of_sgemm"] > 0 and not result["refused"]


def test_inference_benchmark_runs():
    (result,) = inference.run(1, 1, archs=("9-1-5",), sizes=(40,))
    assert result["candidates"][0]["name"] == "minisrcnn (numba, fused)"
    assert all(row["median_ms"] > 0 for row in result["candidates"])


def test_wrong_results_are_reported_and_not_timed(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: there is no peer to break")
    right = training.get_backend("numba")

    class Wrong:
        @staticmethod
        def chain_loss_and_gradients(params, x, t):
            loss, grads = right.chain_loss_and_gradients(params, x, t)
            grads["conv2.weight"] = grads["conv2.weight"] * np.float32(1.001)
            return loss, grads

    monkeypatch.setattr(training, "get_backend", lambda name: Wrong)
    (result,) = training.run(1, 1, archs=("9-1-5",), batch=2, size=15, compiled=False)
    assert result["refused"][0]["name"].startswith("minisrcnn")
    assert "wrong by" in result["refused"][0]["refused"]
    assert not any(row["name"].startswith("minisrcnn") for row in result["candidates"])


def test_operations_benchmark_lists_every_version(monkeypatch):
    monkeypatch.setattr(ops, "LAYERS", {"small": (3, 5, 2, 6)})
    results = ops.run(1, 1, batches=(2,))
    assert len(results) == 3
    for result in results:
        names = {row["name"] for row in result["candidates"]}
        assert set(VERSIONS) <= names
        assert not result["refused"]


def test_candidates_take_turns():
    calls = []
    seconds = measure.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
                                 rounds=3)
    assert len(seconds["a"]) == len(seconds["b"]) == 3
    order = "".join(calls)
    assert "a" in order[order.index("b") + 2:], "b had all its turns after a"
