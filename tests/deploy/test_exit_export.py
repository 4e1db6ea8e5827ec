"""The exported folder answers as the network does, without torch, and refuses what is not its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from potstill.deploy.early_exit import EarlyExit, save_policy
from potstill.deploy.exit_runtime import Judge, OnnxEarlyExit, Policy
from potstill.deploy.segments_export import ExportedExits, export_exits, export_run_exits
from potstill.errors import UserError
from potstill.models.exits import WithExits
from potstill.models.preprocessing import Preprocessing
from tests.deploy.parts import images, network

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

USUAL = Preprocessing((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
RUN = """
import sys
sys.modules["torch"] = None  # importing it fails from here on
{start}
import numpy as np
runtime = OnnxEarlyExit({folder!r}, threads=1)
answer = runtime(np.load({inputs!r}))
np.savez({found!r}, logits=answer.logits, exits=answer.exits)
assert not any(name.startswith("torch.") for name in sys.modules)
{check}
"""


@pytest.fixture(scope="module")
def small() -> WithExits:
    return network()


@pytest.fixture(scope="module")
def policy(small: WithExits) -> Policy:
    with torch.no_grad():
        signals = small(USUAL.normalise(images(200)))
    judge = Judge(Policy("margin", (0.0, 0.0)))
    scores = [judge.score(n, signals.taps[f"exit:{path}"].numpy()) for n, path in enumerate(small.paths)]
    return Policy("margin", (float(np.quantile(scores[0], 0.6)), float(np.quantile(scores[1], 0.5))))


@pytest.fixture(scope="module")
def exported(small: WithExits, policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> ExportedExits:
    folder = tmp_path_factory.mktemp("exported") / "net"
    names = [f"class {number}" for number in range(5)]
    return export_exits(small, policy, images(20), folder, preprocessing=USUAL, class_names=names)


@pytest.mark.parametrize("alone", [False, True], ids=["package", "file"])
def test_it_runs_without_torch_and_answers_alike(
    small: WithExits, policy: Policy, exported: ExportedExits, tmp_path: Path, alone: bool
) -> None:
    inputs = images(1000, seed=9)
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    code = RUN.format(
        start=f"sys.path.insert(0, {str(exported.folder)!r})\nfrom exit_runtime import OnnxEarlyExit"
        if alone
        else "from potstill.deploy.exit_runtime import OnnxEarlyExit",
        folder=str(exported.folder),
        inputs=str(tmp_path / "inputs.npy"),
        found=str(tmp_path / "found.npz"),
        check='assert "potstill" not in sys.modules' if alone else "",
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    expected = EarlyExit(small, policy, images(2))(USUAL.normalise(inputs))
    assert len(expected.exits.unique()) == 3
    assert found["exits"].tolist() == expected.exits.tolist()
    np.testing.assert_allclose(found["logits"], expected.logits.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_batches_of_any_size(exported: ExportedExits, size: int) -> None:
    runtime = OnnxEarlyExit(exported.folder, threads=1)
    inputs = images(35, seed=3).numpy()
    whole, part = runtime(inputs), runtime(inputs[:size])
    assert part.exits.tolist() == whole.exits[:size].tolist()
    np.testing.assert_allclose(part.logits, whole.logits[:size], rtol=1e-4, atol=1e-4)


def test_the_manifest_says_how_to_use_it(exported: ExportedExits, policy: Policy) -> None:
    manifest = json.loads((exported.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["input"] == "float32 (N, 3, 16, 16), in 0..1; normalisation is inside"
    runtime = OnnxEarlyExit(exported.folder, threads=1)
    assert runtime.exits == ("one", "two", "output")
    assert runtime.class_names[4] == "class 4"
    assert runtime.policy == policy
    assert exported.largest_difference < 1e-4
    assert "agrees with the trained network at every exit on 20 samples" in exported.describe()


def test_thresholds_of_another_network_are_refused(
    small: WithExits, exported: ExportedExits, tmp_path: Path
) -> None:
    first = Policy("probability", (0.0, 0.0))
    save_policy(tmp_path / "own.json", first, small)
    runtime = OnnxEarlyExit(exported.folder, tmp_path / "own.json", threads=1)
    assert runtime(images(4).numpy()).exits.tolist() == [0] * 4
    save_policy(tmp_path / "other.json", first, network(seed=1))
    with pytest.raises(ValueError, match=r"other\.json: these thresholds were chosen for another network"):
        OnnxEarlyExit(exported.folder, tmp_path / "other.json")
    with pytest.raises(ValueError, match="expected one for 3 exits, got 2"):
        OnnxEarlyExit(exported.folder, Policy("margin", (0.5,)))


def test_damaged_and_missing_files(
    small: WithExits, exported: ExportedExits, policy: Policy, tmp_path: Path
) -> None:
    for file in filter(Path.is_file, exported.folder.iterdir()):  # a run leaves bytecode beside them
        (tmp_path / file.name).write_bytes(file.read_bytes())
    segment = sorted(tmp_path.glob("segment1-*.onnx"))[0]
    segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(ValueError, match="its checksum differs"):
        OnnxEarlyExit(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "policy": {"kind": "margin"}}))
    with pytest.raises(ValueError, match="policy: expected a kind, thresholds and temperatures"):
        OnnxEarlyExit(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": manifest["format"]}))
    with pytest.raises(ValueError, match="damaged: weights, policy, exits, classes, segments missing"):
        OnnxEarlyExit(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    segment.unlink()
    with pytest.raises(ValueError, match=r"no such file, though manifest\.json names it"):
        OnnxEarlyExit(tmp_path)
    with pytest.raises(ValueError, match=r"manifest\.json: no such file"):
        OnnxEarlyExit(tmp_path / "nowhere")


def test_a_second_export_takes_the_place_of_the_first(tmp_path: Path, policy: Policy) -> None:
    export_exits(network(seed=3), policy, images(4), tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    other = network(seed=4)
    export_exits(other, policy, images(4), tmp_path)
    after = {path.name for path in tmp_path.iterdir()}
    assert len(after) == len(before) == 5
    assert before & after == {"manifest.json", "exit_runtime.py"}
    runtime = OnnxEarlyExit(tmp_path, threads=1)
    expected = EarlyExit(other, policy, images(2))(images(6))
    assert runtime(images(6).numpy()).exits.tolist() == expected.exits.tolist()


def test_a_run_whose_network_cannot_be_cut_says_that_no_exits_are_written(
    policy: Policy, tmp_path: Path
) -> None:
    stubborn = network(choice=True)
    save_policy(tmp_path / "early_exit.json", policy, stubborn)
    run = SimpleNamespace(student=stubborn, samples=images, preprocessing=USUAL, class_names=())
    said = export_run_exits(run, tmp_path / "early_exit.json", tmp_path / "net")  # type: ignore[arg-type]
    assert said.startswith("the exits are not written, the network cannot be cut at them: its forward pass")
    assert not (tmp_path / "net").exists()
    with pytest.raises(UserError, match=r"early_exit\.json: no such file"):
        export_run_exits(run, tmp_path / "gone" / "early_exit.json", tmp_path / "net")  # type: ignore[arg-type]


def test_an_export_that_fails_leaves_nothing(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"the network cannot be cut at its exits: .*; export it without exits"
    ):
        export_exits(network(choice=True), policy, images(4), tmp_path / "net")
    monkeypatch.setattr("potstill.deploy.segments_export.TOLERANCE", -1.0)
    with pytest.raises(UserError, match="onnxruntime disagrees with the trained network at exit 0"):
        export_exits(network(), policy, images(4), tmp_path / "net")
    assert not (tmp_path / "net").exists()
