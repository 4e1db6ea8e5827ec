"""Prune, distil, repeat: targets that are met, rounds that are kept, interruptions, bad input."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from potstill import distributed, measure
from potstill.assembly.load import load_experiment
from potstill.cli import app
from potstill.config import dump, from_mapping, load, parse_yaml
from potstill.errors import UserError
from potstill.files import write_json
from potstill.folder import RunFolder
from potstill.prune import gauge
from potstill.rounds.loop import Rounds
from potstill.rounds.shapes import round_at_size
from potstill.run import load_student, run
from potstill.train.loop import Training
from potstill.train.stepping import Stepper

NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, width, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(maps + self.conv2(torch.relu(self.norm(self.conv1(maps)))))


class Residual(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.stage = nn.Sequential(*(Block(4) for _ in range(3)))
        self.head = nn.Linear(4 * 9, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.stage(self.stem(images))
        return self.head(torch.nn.functional.avg_pool2d(maps, 2).flatten(1))
"""
RECIPE = """task: classification
data: {kind: arrays, path: blobs}
teacher: {model: "wide.py:Residual", weights: wide.safetensors, mean: [0.5], std: [0.25]}
distill:
  labels: {weight: 0.1}
  kl: {weight: 0.9, temperature: 2}
prune: {target: {macs: 0.5}, steps: 2, calibration: 40, candidates: 3, trial_steps: 2}
train: {steps: 6, batch_size: 16, learning_rate: 0.02, precision: float32, checkpoint_every: 2}
"""


@pytest.fixture
def project(tiny: Any) -> Any:
    """The tiny project with a teacher of three residual blocks, trained for a moment."""
    (tiny.root / "wide.py").write_text(NETS)
    (tiny.root / "prune.yaml").write_text(RECIPE)
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    torch.manual_seed(0)
    model: nn.Module = scope["Residual"]()
    images = torch.from_numpy(np.load(tiny.data / "train_images.npy")).float().div(255).unsqueeze(1)
    labels = torch.from_numpy(np.load(tiny.data / "train_labels.npy"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model((images - 0.5) / 0.25), labels).backward()
        optimizer.step()
    from potstill.models.weights import save_weights

    save_weights(model, tiny.root / "wide.safetensors")
    return tiny


def go(project: Any, out: Path, *overrides: str, resume: bool = False, **options: Any) -> Any:
    return run(
        project.root / "prune.yaml",
        data=project.root,
        out=out,
        overrides=overrides,
        resume=resume,
        echo=options.pop("echo", lambda line: None),
        **options,
    )


@pytest.mark.parametrize(("size", "number"), [(0.8, 1), (9.0, 1), (1100.0, 1), (1112.0, 2), (1400.0, 2)])
def test_a_size_in_tokens_a_second_is_the_least(size: float, number: int, tmp_path: Path) -> None:
    """1000 tokens a second of 20 tokens take 20 ms; 9 is as easy as any other that the first round holds."""
    folder = RunFolder(tmp_path)
    rows = [{"round": 1, "cost": 18.0}, {"round": 2, "cost": 14.0}]
    target = {"key": "tokens_per_second", "value": 1400.0, "absolute": 20_000 / 1400, "whole": 22.5}
    folder.recipe.write_text("{}")
    write_json(folder.result, {"prune": {"target": target, "quantity": "latency", "rounds": rows}})
    assert round_at_size(folder, size) == number
    with pytest.raises(UserError, match=r"no round got to 10 ms; there are 18, 14"):
        round_at_size(folder, 2000.0)


def test_a_run_meets_its_target_and_every_round_is_kept(project: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = go(project, out, "seeds=2")
    found = result.data["prune"]
    student, teacher = (result.data["models"][name] for name in ("student", "teacher"))
    assert found["target"] == {
        "key": "macs",
        "value": 0.5,
        "absolute": teacher["macs"] / 2,
        "whole": teacher["macs"],
    }
    assert found["reached"] == student["macs"] <= 0.5 * teacher["macs"]
    assert [row["round"] for row in found["rounds"]] == [1, 2]
    assert found["rounds"][0]["cost"] <= 0.5**0.5 * teacher["macs"]
    assert result.verdict in ("better", "same", "worse")
    assert student["macs"] == result.data["models"]["control"]["macs"]
    for row in found["rounds"]:
        assert row["cost"] == row["candidates"][0]["cost"] <= row["budget"]
        assert len(row["validation"]["student"]) == len(row["validation"]["control"]) == 2
        losses = [candidate["loss"] for candidate in row["candidates"]]
        assert row["flipped"] == (losses[0] > min(losses))
    loaded = load_student(out)
    images = loaded.preprocessing.normalise(loaded.samples(4))
    assert result.student is not None
    assert torch.equal(loaded.student(images), result.student(images))
    assert measure.macs(loaded.student, images[:1]) == student["macs"]
    first = load_student(out, round_number=1)
    assert measure.macs(first.student, images[:1]) == found["rounds"][0]["cost"]
    sizes = [row["cost"] / found["target"]["whole"] for row in found["rounds"]]
    for size, row in ((sizes[0], 0), (found["rounds"][1]["cost"], 1), (0.999 * sizes[0], 1)):
        picked = load_student(out, at_size=size).student
        assert measure.macs(picked, images[:1]) == found["rounds"][row]["cost"]
    with pytest.raises(UserError, match=r"--at-size: no round got to .* macs; there are"):
        load_student(out, at_size=0.1)
    with pytest.raises(UserError, match="--at-size: chooses the round; leave --round out"):
        load_student(out, at_size=0.9, round_number=1)
    for option, macs in ((["--round", "1"], found["rounds"][0]["cost"]), ([], student["macs"])):
        made = CliRunner().invoke(app, ["measure", str(out), "--data", str(project.root), *option])
        assert made.exit_code == 0, made.output
        assert f" {round(macs):,} " in made.output
    wrong = CliRunner().invoke(app, ["export", str(out), "--data", str(project.root), "--at-size", "0.01"])
    assert wrong.exit_code == 2
    assert "--at-size: no round got to" in wrong.output
    page = (out / "report.html").read_text()
    for heading in ("Rounds", "Loss against size", "What was lost, and what came back"):
        assert heading in page
    assert load(out / "recipe.yaml") == from_mapping(parse_yaml(dump(load(out / "recipe.yaml")), "again"))
    assert go(project, out, "seeds=2", resume=True).data == result.data


def test_the_teachers_answers_are_kept_over_rounds_and_trials(project: Any, tmp_path: Path) -> None:
    (project.root / "prune.yaml").write_text(
        RECIPE.replace("std: [0.25]}", f"std: [0.25], cache: {{views: 2, path: {tmp_path / 'cache'}}}}}")
    )
    lines: list[str] = []
    go(project, tmp_path / "kept", echo=lines.append)
    assert any(line.startswith("cache: ") for line in lines)
    (project.root / "prune.yaml").write_text(RECIPE)
    go(project, tmp_path / "live")
    rows = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("kept", "live")]
    assert rows[0]["models"]["student"]["accuracy"] == rows[1]["models"]["student"]["accuracy"]


def test_the_control_loses_the_same_parts(project: Any, tmp_path: Path) -> None:
    go(project, tmp_path / "run", "train.steps=1", "prune.steps=1")
    cells = tmp_path / "run" / "rounds" / "1" / "checkpoints"
    student, control = (load_file(cells / f"{arm}-0" / "last.safetensors") for arm in ("student", "control"))
    assert {name: tensor.shape for name, tensor in student.items()} == {
        name: tensor.shape for name, tensor in control.items()
    }
    assert any(not torch.equal(student[name], control[name]) for name in student)


@pytest.mark.parametrize("saves", [1, 3, 5, 8, 12])
def test_a_killed_run_goes_on_at_the_same_round_and_step(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    go(project, tmp_path / "whole")
    killed_and_resumed(project, tmp_path, monkeypatch, saves)


@pytest.mark.parametrize("step", [2, 3, 8])
def test_ctrl_c_in_a_trial_leaves_its_round_to_go_on(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Steps 2 and 3 are in the two trials of the first round, 8 in one of the second."""
    go(project, tmp_path / "whole", control=False)
    taken, take = [0], Stepper.take

    def interrupted(stepper: Stepper, *batch: Any) -> Any:
        taken[0] += 1
        if taken[0] == step:
            signal.raise_signal(signal.SIGINT)
        return take(stepper, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", interrupted)
        assert go(project, tmp_path / "cut", control=False).interrupted
    place = tmp_path / "cut" / "rounds" / ("1" if step < 5 else "2")
    assert (place / "trials").is_dir()
    assert not (place / "round.json").exists()
    go(project, tmp_path / "cut", control=False, resume=True)
    whole, cut = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    rows = [json.loads((tmp_path / name / "result.json").read_text())["prune"] for name in ("whole", "cut")]
    assert rows[0] == rows[1]


def killed_and_resumed(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int, *overrides: str
) -> None:
    """Kill a run at a checkpoint, go on, and compare it with the one in ``whole``."""
    real, left = Training.save, [saves]

    def save(self: Training) -> None:
        real(self)
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("killed")

    monkeypatch.setattr(Training, "save", save)
    with pytest.raises(RuntimeError, match="killed"):
        go(project, tmp_path / "cut", *overrides)
    monkeypatch.setattr(Training, "save", real)
    steps: list[int] = []
    restore = Training.restore

    def note(self: Training) -> None:
        restore(self)
        steps.append(self.step)

    monkeypatch.setattr(Training, "restore", note)
    go(project, tmp_path / "cut", *overrides, resume=True)
    assert steps[0] > 0  # in the middle of a training, not at its start
    whole, cut = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    rows = [json.loads((tmp_path / name / "result.json").read_text())["prune"] for name in ("whole", "cut")]
    assert rows[0] == rows[1]


def fake_clock(floor: float) -> Callable[..., dict[str, measure.Latency]]:
    """A stopwatch for which a network takes a floor and a microsecond a parameter."""

    def timed(models: Any, **options: Any) -> dict[str, measure.Latency]:
        del options

        def milliseconds(model: nn.Module) -> float:
            blocks = floor if any(name == "stage" for name, _ in model.named_children()) else 0.0
            return 1e-3 * measure.parameters(model) + blocks * len(list(model.modules())) / 20

        found = {name: milliseconds(model) for name, (model, _) in models.items()}
        return {name: measure.Latency(value, value, value, 3) for name, value in found.items()}

    return timed


@pytest.mark.parametrize("floor", [0.0, 0.3], ids=["predictable", "not"])
def test_a_latency_target_holds_as_measured(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: float
) -> None:
    clock = fake_clock(floor)
    monkeypatch.setattr(gauge.measure, "latency", clock)
    teacher = go(project, tmp_path / "run", "prune.target={latency: 0.7}", "train.steps=1").data["prune"]
    assert 0.9 * 0.7 <= teacher["reached"] / teacher["target"]["whole"] <= 0.7
    model = load_student(tmp_path / "run").student
    example = torch.zeros(1, 1, 6, 6)
    assert clock({"it": (model, example)})["it"].median_ms == pytest.approx(teacher["reached"])


def test_a_latency_that_noise_hides_is_refused(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(models: Any, **options: Any) -> dict[str, measure.Latency]:
        del options
        return {name: measure.Latency(1.0 + place, 1.0, 3.0, 3) for place, name in enumerate(models)}

    monkeypatch.setattr(gauge.measure, "latency", noisy)
    with pytest.raises(UserError, match=r"prune\.target\.latency: cannot be resolved: the same network.*50"):
        go(project, tmp_path / "run", "prune.target={latency: 0.5}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "prune.target={macs: 0.001}",
            r"prune\.target\.macs: cannot be reached: the smallest .* is [\d,]+ MACs",
        ),
        ("prune.target={parameters: 99999}", r"prune\.target\.parameters: must be below the model's own"),
        ("prune.target={macs: 1}", r"prune\.target\.macs: must be below the model's own"),
        ("prune.target={macs: 0.5, bytes: 0.5}", r"prune\.target: expected one of .*got macs and bytes"),
        ("prune.target={}", r"prune\.target: expected one of parameters, .*got none"),
        ("prune.target={speed: 2}", r"prune\.target\.speed: unknown key"),
        ("prune.axes=[width]", r"prune\.axes: expected"),
        ("prune.axes=[]", r"prune\.axes: expected one or more, each once, got none"),
        ("prune.axes=[layers, layers]", r"prune\.axes: expected one or more, each once, got layers, layers"),
        ("prune.axes=[mlp]", r"prune\.axes: mlp has no meaning for Residual"),
        ("prune.axes=[heads]", r"prune\.axes: nothing can be removed from Residual"),
        ("prune.target={latency_ms: 9999}", r"prune\.target\.latency_ms: must be below the model's own"),
        ("prune.target={tokens_per_second: 9}", r"tokens_per_second: has a meaning for texts alone"),
        ("prune={steps: 1}", r"prune\.target: missing; expected how small, or prune\.weights"),
        ("prune.weights=1.5", r"prune\.weights: expected a share above 0 and below 1, or N:M"),
        ("prune.weights='2:4'", r"prune\.multiple: must be a multiple of 4 for prune\.weights: 2:4, got 1"),
        ("prune={weights: '2:3'}", r"prune\.weights: .*conv1.* has 4 inputs, no multiple of 3"),
        ("prune={weights: 0.5, axes: [layers]}", r"prune\.axes: has no meaning where single weights go"),
        ("prune={weights: 0.5, keep: 0.5}", r"prune\.keep: has no meaning where single weights go and no"),
        ("prune={weights: 1e-6}", r"prune\.weights: 1e-06 of a layer's weights is less than one"),
        ("prune={weights: 0.5, rivals: [scratch]}", r"prune\.rivals: have no meaning beside prune\.weights"),
        ("scheme=mutual", r"teacher: has no meaning|prune: has no meaning"),
        (
            "student={model: 'wide.py:Residual'}",
            r"student\.weights: missing; what is pruned must have learnt",
        ),
    ],
)
def test_what_a_recipe_may_not_ask(project: Any, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        go(project, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()  # nothing to clear away before the next try


def test_several_processes_are_refused(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = rounds_of(project)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="prune: runs in one process, got 2"):
        loop.check()


def test_a_rival_that_cannot_be_made_anew_is_refused_first(project: Any, tmp_path: Path) -> None:
    (project.root / "scaled.py").write_text(
        NETS.replace("self.head =", "self.scale = nn.Parameter(torch.ones(1))\n        self.head =").replace(
            "maps = self.stage(", "maps = self.scale * self.stage("
        )
    )
    state = load_file(project.root / "wide.safetensors")
    save_file({**state, "scale": torch.ones(1)}, project.root / "scaled.safetensors")
    overrides = ("teacher.model='scaled.py:Residual'", "teacher.weights=scaled.safetensors")
    with pytest.raises(
        UserError, match=r"prune\.rivals: scratch cannot be made: Residual has no reset_param"
    ):
        go(project, tmp_path / "run", *overrides, "prune.rivals=[scratch]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("target", ["bytes: 0.6", "latency_ms: 1.2"])
def test_layers_alone_go_until_the_target_holds(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(gauge.measure, "latency", fake_clock(0.0))  # the whole takes 1.963 ms
    short = ("prune.steps=1", "prune.axes=[layers]", "prune.trial_steps=0", "train.steps=1")
    found = go(project, tmp_path / "run", f"prune.target={{{target}}}", *short).data["prune"]
    assert found["reached"] <= found["target"]["absolute"] < found["target"]["whole"]
    chosen = found["rounds"][0]["candidates"][0]
    assert len(chosen["blocks"]) == 2
    assert not chosen["units"]
    small = load_student(tmp_path / "run").student
    sizes = {"bytes": measure.size_bytes(small), "latency": 1e-3 * measure.parameters(small)}
    assert found["reached"] == pytest.approx(sizes[found["quantity"]])


def test_averages_and_adapters_of_every_round_fit_what_is_left(project: Any, tmp_path: Path) -> None:
    hint = "distill.hint={loss: feature_mse, weight: 0.01, layers: [stage.0.conv1, stage.1.conv1]}"
    result = go(
        project, tmp_path / "run", hint, "train.ema=0.5", "prune.axes=[channels]", "prune.trial_steps=0"
    )
    found = result.data["prune"]
    units = []
    for number in (1, 2):
        student = load_student(tmp_path / "run", round_number=number).student
        blocks = list(student.stage)  # type: ignore[arg-type]
        units.append(sum(block.conv1.out_channels for block in blocks))
        assert measure.macs(student, torch.zeros(1, 1, 6, 6)) == found["rounds"][number - 1]["cost"]
    assert 3 * 8 > units[0] > units[1]


def zeros(folder: Path) -> dict[str, Tensor]:
    """Where the matrices of a run's student are zero."""
    state = load_file(folder / "student.safetensors")
    return {name: tensor == 0 for name, tensor in state.items() if tensor.dim() > 1}


@pytest.mark.parametrize("kind", ["magnitude", "input"])
def test_single_weights_become_zero_and_stay(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    section = f"prune={{weights: 0.5, weight_importance: {kind}, calibration: 40}}"
    out = tmp_path / "whole"
    result = go(project, out, section)
    gone = zeros(out)
    for name, mask in gone.items():
        row = mask.flatten(1).sum(dim=1)
        share = mask.numel() // 2 if kind == "magnitude" else len(mask) * round(0.5 * mask[0].numel())
        assert int(row.sum()) == share, name
    found = result.data["prune"]
    assert found["zeros"] == {
        "pattern": 0.5,
        "importance": kind,
        "count": sum(int(mask.sum()) for mask in gone.values()),
        "of": sum(mask.numel() for mask in gone.values()),
    }
    assert found["reached"] == found["zeros"]["of"] - found["zeros"]["count"]
    control = load_file(out / "rounds/1/checkpoints/control-0/last.safetensors")
    assert all(not control[name][mask].any() for name, mask in gone.items())
    start, student = load_file(project.root / "wide.safetensors"), load_file(out / "student.safetensors")
    assert all(not torch.equal(student[name][~mask], start[name][~mask]) for name, mask in gone.items())
    assert "of the weights</b> of its layers are zero and stayed so" in (out / "report.html").read_text()
    killed_and_resumed(project, tmp_path, monkeypatch, 2, section)


def test_single_weights_go_after_the_last_removal(project: Any, tmp_path: Path) -> None:
    overrides = (
        "prune.weights='2:4'",
        "prune.axes=[channels]",
        "prune.multiple=4",
        "prune.target={macs: 0.7}",
    )
    result = go(project, tmp_path / "run", *overrides)
    assert result.data["prune"]["reached"] <= 0.7 * result.data["models"]["teacher"]["macs"]
    student = load_student(tmp_path / "run").student
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d) and name != "stem":
            inputs = module.weight.detach().movedim(1, -1)
            assert bool(((inputs.unflatten(-1, (-1, 4)) != 0).sum(dim=-1) <= 2).all())
    first = load_student(tmp_path / "run", round_number=1).student
    assert all(bool((each != 0).all()) for name, each in first.named_parameters() if "conv" in name)


def test_a_round_that_is_not_there_is_named(project: Any, tmp_path: Path) -> None:
    go(project, tmp_path / "run", "train.steps=1", "prune.steps=1")
    with pytest.raises(UserError, match="round: expected one of 1, got 3"):
        load_student(tmp_path / "run", round_number=3)


def test_scores_of_other_samples_are_others(project: Any, tmp_path: Path) -> None:
    """Runs may share a folder of scores: they belong to what the data hold, not to how they are called."""
    kept = f"prune.scores={tmp_path / 'scores'}"
    for number in range(3):
        go(project, tmp_path / str(number), kept, only="importance")
        assert len(list((tmp_path / "scores").glob("*.safetensors"))) == 1 + number // 2
        if number == 1:
            path = project.data / "train_images.npy"
            np.save(path, 255 - np.load(path))


def rounds_of(project: Any) -> Rounds:
    experiment = load_experiment(load(project.root / "prune.yaml"), [project.root])
    folder = RunFolder(project.root / "x")
    return Rounds(experiment, folder, lambda *_: None, control=False, echo=lambda line: None)


def test_calibration_losses_are_the_tasks(project: Any) -> None:
    loop = rounds_of(project)
    losses: list[Tensor] = list(loop.decider.losses(loop.original))
    assert [len(one) for one in losses] == [16, 16, 8]
