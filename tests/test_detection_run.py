"""Detectors from a recipe to a result, on shapes and on a few real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from potstill.assembly.load import load_experiment
from potstill.compare import compare_methods
from potstill.config import from_mapping, load
from potstill.errors import UserError
from potstill.folder import RunFolder
from potstill.measure import parameters
from potstill.report import ReportContent
from potstill.report._format import percent
from potstill.run import Result, execute
from potstill.tasks import Detection
from tests.shapes import SIDE, tiny, write_shapes

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")
LEVEL = "model.backbone.fpn.layer_blocks."
DATA = {"path": "shapes.json", "size": [SIDE, SIDE]}
TRAIN = {
    "steps": 4,
    "batch_size": 8,
    "optimizer": "adamw",
    "learning_rate": 5e-3,
    "precision": "float32",
    "clip": 10,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shapes")
    write_shapes(made, {"train": 48, "val": 8, "test": 16})
    return made


def ran(raw: dict[str, Any], folder: Path, out: Path, *, resume: bool = False) -> Result:
    experiment = load_experiment(from_mapping(raw), [folder])
    return execute(experiment, RunFolder(out), resume=resume, control=True, echo=lambda line: None)


@pytest.fixture(scope="module")
def taught(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A teacher that has learnt the shapes a little."""
    out = tmp_path_factory.mktemp("teacher")
    raw = {
        "task": "detection",
        "data": DATA,
        "scheme": "labels",
        "student": tiny(),
        "train": {**TRAIN, "steps": 100},
    }
    return out, ran(raw, folder, out)


def recipe(weights: Path, **more: Any) -> dict[str, Any]:
    return {
        "task": "detection",
        "data": DATA,
        "augment": {"flip": 0.5, "crop": 4},
        "teacher": {**tiny(), "weights": str(weights / "student.safetensors")},
        "student": tiny(arguments={"width_mult": 0.1}),
        "distill": {
            "weighted_classes": {"hard": 0},
            "bounded_regression": {},
            "region_hint": {"regions": "split", "layers": [LEVEL + "0", LEVEL + "1"]},
            "sure": {"loss": "region_hint", "regions": "confident", "layers": [LEVEL + "0"]},
        },
        "train": TRAIN,
        **more,
    }


def test_a_tiny_detector_learns_shapes(taught: tuple[Path, Result]) -> None:
    student = taught[1].data["models"]["student"]
    assert student["map50"] > 0.15
    assert set(student["by_class"]) == {"square", "disc"}
    for name in ("bootstrap", "bootstrap50"):
        assert 0 <= student[name][0] < student[name][1] <= 1
    assert student["bootstrap50"][0] > student["bootstrap"][0]


def test_a_detector_is_taught_and_compared(folder: Path, taught: tuple[Path, Result], tmp_path: Path) -> None:
    found = ran(recipe(taught[0]), folder, tmp_path / "run")
    assert found.data["metric"] == "map"
    assert found.data["verdict"] in ("better", "same", "worse")
    models = found.data["models"]
    assert set(models) == {"teacher", "control", "student"}
    assert models["student"]["parameters"] < models["teacher"]["parameters"]
    assert models["teacher"]["map"] == pytest.approx(taught[1].data["models"]["student"]["map"], abs=1e-4)
    assert found.gain == pytest.approx(models["student"]["map"] - models["control"]["map"])
    _check_page(found, tmp_path / "run")


def _check_page(found: Result, run: Path) -> None:
    """The page shows boxes, curves and where hints were taken; regions add up to their terms."""
    content = ReportContent.load(run / "report.json")
    shown = content.detected
    assert shown is not None
    assert {row.name for row in shown.counts} == {"square", "disc"}
    for row in shown.counts:
        assert row.found["student"] - row.found["control"] == pytest.approx(
            (row.gained or 0) - (row.lost or 0)
        )
    assert [curve.objects for curve in shown.curves] == [row.objects for row in shown.counts]
    for arm in ("teacher", "control", "student"):  # the areas are average precisions
        areas = [sum(curve.precision[arm][1]) / 101 for curve in shown.curves]
        assert sum(areas) / len(areas) == pytest.approx(found.data["models"][arm]["map50"], abs=1e-4)
    assert {hint.term for hint in shown.hints} == {"region_hint", "sure"} or not shown.scenes
    assert [row.name for row in content.differences] == ["square", "disc"]
    page = found.report.read_text()
    ends = found.data["models"]["student"]["bootstrap50"]
    assert " to ".join(percent(each, 1) for each in ends) in page
    for name in ("scenes", "classes", "curves", "regions"):
        assert f'<section id="{name}">' in page
    assert page.count("<use href=") == 3 * len(shown.scenes)
    assert (run / "views.png").is_file()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [row for row in rows if "regions" in row]
    assert {row["arm"] for row in told} == {"student"}
    for name in ("weighted_classes", "bounded_regression", "region_hint"):
        for row in told:
            parts = [value for key, value in row["regions"].items() if key.partition("/")[0] == name]
            assert len(parts) >= 2
            assert sum(parts) == pytest.approx(row["weighted"][name], rel=1e-3, abs=1e-6)


def test_methods_are_compared(folder: Path, taught: tuple[Path, Result], tmp_path: Path) -> None:
    """No teacher's answer is kept for another method: each student has regions of its own."""
    raw = recipe(taught[0], train={**TRAIN, "steps": 2})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    rows = {
        "hints": {"region_hint": {"regions": "none", "layers": [LEVEL + "0"]}},
        "heads": {"weighted_classes": {}, "bounded_regression": {}},
        "final": {"response": {}},
    }
    found = compare_methods(tmp_path / "recipe.yaml", rows=rows, data=folder, out=tmp_path / "out", seeds=1)
    assert found.failed == []
    assert set(found.scores) >= set(rows)


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(
    folder: Path, taught: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = recipe(taught[0], train={**TRAIN, "checkpoint_every": 1})
    ran(raw, folder, tmp_path / "whole")
    plain, calls = Detection.training_batch, [0]

    def breaking(task: Detection, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise OSError("power cut")
        return plain(task, *given)

    monkeypatch.setattr(Detection, "training_batch", breaking)
    with pytest.raises(OSError, match="power cut"):
        ran(raw, folder, tmp_path / "cut")
    monkeypatch.undo()
    ran(raw, folder, tmp_path / "cut", resume=True)
    whole, cut = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_detectors_with_a_sigmoid_for_each_class_are_taught(folder: Path, tmp_path: Path) -> None:
    """RetinaNet by its scores; the teacher is not asked how good it is before it teaches."""
    torch.manual_seed(0)
    raw = recipe(tmp_path, student=tiny("retinanet"))
    raw["teacher"] = tiny("retinanet")
    raw["distill"] = {"weighted_scores": {}, "bounded_regression": {}}
    experiment = load_experiment(from_mapping(raw), [folder])
    scheme = experiment.scheme("student", 0)
    loader, prepare = experiment.training(0)
    step = scheme(prepare(*next(iter(loader.epoch(0))), 0))
    step.loss.backward()
    assert set(step.parts) == {"labels", "weighted_scores", "bounded_regression"}
    assert all(bool(part.total.isfinite()) for part in step.parts.values())
    assert all(parameter.grad is not None for parameter in scheme.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "faster_rcnn"])
def test_images_without_labels_teach_by_what_the_teacher_finds(
    folder: Path, taught: tuple[Path, Result], tmp_path: Path, kind: str
) -> None:
    """They have no loss of their own and no labels, but the teacher's boxes pull."""
    for number in (1, 2, 3):
        (tmp_path / f"more{number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    data = {**DATA, "unlabelled": str(tmp_path)}
    raw = recipe(taught[0], data=data, student=tiny(kind), distill={"response": {}}, augment={})
    experiment = load_experiment(from_mapping(raw), [folder])
    train = experiment.splits.train
    assert len(train) == 48 + 3
    assert any("3 images without labels" in note for note in experiment.notes)
    task = experiment.task.seeded(0, len(train))
    rows = train.__getitems__([48, 49, 50])
    assert rows[1][:, 0, 4].tolist() == [-1.0] * 3
    scheme = experiment.scheme("student", 0)
    step = scheme(task.training_batch(*rows, 0))
    assert float(step.parts["labels"].total.detach()) == 0.0
    assert set(step.output.taps["box.labels"].unique().tolist()) <= {-1, -2}
    assert float(step.parts["response"].total.detach()) > 0.0
    step.loss.backward()
    assert any(bool(each.grad.any()) for each in scheme.student.parameters() if each.grad is not None)
    mixed = task.training_batch(*train.__getitems__([0, 48]), 0)
    assert float(scheme(mixed).parts["labels"].total.detach()) > 0.0


@pytest.mark.parametrize("kind", ["retinanet", "ssdlite", "fcos", "faster_rcnn"])
def test_a_teacher_of_another_kind_teaches_by_its_final_boxes(
    folder: Path, taught: tuple[Path, Result], kind: str
) -> None:
    raw = recipe(taught[0], student=tiny(kind), distill={"response": {}})
    if kind == "faster_rcnn":
        raw["distill"] |= {"teacher_boxes": {}, "by_sides": {"loss": "teacher_boxes", "form": "l1"}}
    experiment = load_experiment(from_mapping(raw), [folder])
    scheme = experiment.scheme("student", 0)
    optimiser = torch.optim.AdamW(scheme.parameters(), lr=1e-3)
    loader, prepare = experiment.training(0)
    batch, values = prepare(*next(iter(loader.epoch(0))), 0), []
    for _ in range(10):
        step = scheme(batch)
        optimiser.zero_grad()
        step.parts["response"].mean.backward()
        optimiser.step()
        values.append(float(step.parts["response"].mean.detach()))
    assert set(step.parts) == {"labels", *raw["distill"]}
    assert all(bool(part.total.isfinite()) for part in step.parts.values())
    told = sum(map(float, step.parts["response"].regions.values()))
    assert told == pytest.approx(float(step.parts["response"].total.detach()), rel=1e-3)
    assert min(values) < 0.9 * values[0]  # not the last: a step of AdamW on one batch may leap


@pytest.mark.parametrize("scheme", ["mutual", {"kind": "born_again", "generations": 2}, "mean_teacher"])
@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_detectors_teach_each_other(folder: Path, scheme: Any, kind: str) -> None:
    """Those of one stage by all terms; of two stages, whose regions are each its own, by maps and boxes."""
    raw: dict[str, Any] = {"task": "detection", "data": DATA, "scheme": scheme, "train": TRAIN}
    raw["student"] = tiny(kind)
    raw["distill"] = {"region_hint": {"regions": "split", "layers": [LEVEL + "0"]}, "response": {}}
    regions = {"weighted_scores": {}, "bounded_regression": {}}
    raw["distill"] |= regions if kind == "retinanet" else {}
    experiment = load_experiment(from_mapping(raw), [folder])
    scheme_made = experiment.scheme("student", 0)
    loader, prepare = experiment.training(0)
    stage = scheme_made.stages[-1]
    scheme_made.enter(stage.name)
    step = scheme_made(prepare(*next(iter(loader.epoch(0))), 0), stage.phases[0])
    step.loss.backward()
    assert {name.rpartition(".")[2] for name in step.parts} == {"labels", *raw["distill"]}
    assert all(bool(part.total.isfinite()) for part in step.parts.values())
    assert any(float(part.total.detach()) > 0 for name, part in step.parts.items() if "hint" in name)
    if kind == "faster_rcnn":
        raw["distill"] = {"weighted_classes": {}}
        with pytest.raises(UserError, match=r"weighted_classes: the student's regions are its own proposals"):
            load_experiment(from_mapping(raw), [folder])


def test_a_teacher_that_finds_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)  # its weights, whatever tests came before
    raw = recipe(tmp_path)
    raw["teacher"] = tiny()
    with pytest.raises(UserError, match="finds next to nothing"):
        ran(raw, folder, tmp_path / "run")


def test_classes_of_the_teacher_are_matched_by_name(
    folder: Path, taught: tuple[Path, Result], tmp_path: Path
) -> None:
    """In another order they mean the same; one that the teacher lacks is refused."""
    raw = json.loads((folder / "shapes.json").read_text())
    for category in raw["categories"]:
        category["name"] = {"square": "disc", "disc": "square"}[category["name"]]
    number = {3: 7, 7: 3}
    for note in raw["annotations"]:
        note["category_id"] = number[note["category_id"]]
    (tmp_path / "shapes.json").write_text(json.dumps(raw))
    given = recipe(taught[0], data={**DATA, "images": str(folder), "path": str(tmp_path / "shapes.json")})
    experiment = load_experiment(from_mapping(given), [folder])
    part = experiment.splits.test
    assert part.class_names == ("disc", "square")
    assert experiment.teacher is not None
    answers = experiment.task.predict(experiment.teacher, experiment.evaluation(part), "teacher").numpy()
    reached = taught[1].data["models"]["student"]["map"]
    assert experiment.task.value(answers, part) == pytest.approx(reached, abs=1e-4)
    raw["categories"][0]["name"] = "triangle"
    (tmp_path / "shapes.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"teacher\.weights: knows .* square, disc; .* lacks triangle"):
        load_experiment(from_mapping(given), [folder])


def test_detectors_of_torchvision_and_of_users_know_the_datas_classes(folder: Path, tmp_path: Path) -> None:
    """torchvision counts the background among the classes; a function of the user's may have forgotten it."""
    name = "torchvision:ssdlite320_mobilenet_v3_large"
    raw: dict[str, Any] = {"task": "detection", "data": DATA, "scheme": "labels", "train": TRAIN}
    raw["student"] = {"model": name, "arguments": {"weights_backbone": None}}
    experiment = load_experiment(from_mapping(raw), [folder])
    scheme = experiment.scheme("student", 0)
    loader, prepare = experiment.training(0)
    step = scheme(prepare(*next(iter(loader.epoch(0))), 0))
    assert step.output.taps["box.classes"].shape[-1] == 3
    assert float(step.loss.detach()) > 0
    (tmp_path / "mine.py").write_text(
        "from torchvision.models.detection import ssdlite320_mobilenet_v3_large\n"
        "def network(num_classes):\n"
        "    return ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=num_classes)\n"
    )
    raw["student"] = {"model": "mine.py:network"}
    with pytest.raises(UserError, match=r"student\.model: its heads tell 2 classes; expected 3"):
        load_experiment(from_mapping(raw), [tmp_path, folder])


def test_a_detector_of_the_users_is_taught(folder: Path, taught: tuple[Path, Result], tmp_path: Path) -> None:
    """A file of theirs makes it, with heads and anchors that only torchvision's contract says."""
    (tmp_path / "own.py").write_text(
        "import torchvision\n"
        "from torchvision.models.detection import FasterRCNN\n"
        "from torchvision.models.detection.anchor_utils import AnchorGenerator\n"
        "def network(num_classes):\n"
        "    body = torchvision.models.mobilenet_v2(weights=None, width_mult=0.1).features\n"
        "    body.out_channels = 1280\n"
        "    anchors = AnchorGenerator(((16, 24),), ((1.0,),))\n"
        "    return FasterRCNN(body, num_classes + 1, rpn_anchor_generator=anchors,\n"
        "        rpn_post_nms_top_n_train=20, rpn_post_nms_top_n_test=20, box_batch_size_per_image=16)\n"
    )
    raw = recipe(taught[0], student={"model": "own.py:network"}, distill={"response": {}})
    experiment = load_experiment(from_mapping(raw), [tmp_path, folder])
    scheme = experiment.scheme("student", 0)
    loader, prepare = experiment.training(0)
    step = scheme(prepare(*next(iter(loader.epoch(0))), 0))
    step.loss.backward()
    assert step.output.taps["box.classes"].shape[-1] == 3
    assert float(step.parts["response"].total.detach()) > 0
    answers = experiment.task.predict(
        scheme.student, experiment.evaluation(experiment.splits.test), "student"
    )
    assert answers.shape == (16, 100, 6)


def test_hints_are_taken_on_backbone_and_pyramid(folder: Path, taught: tuple[Path, Result]) -> None:
    """A layer of each by its path, or whatever stands for a stage by itself."""
    paths = ["model.backbone.stages.6", LEVEL + "0"]
    hints = {"region_hint": {"regions": "near", "layers": paths}, "all": {"loss": "region_hint"}}
    raw = recipe(taught[0], student=tiny(channels=16), distill=hints)
    experiment = load_experiment(from_mapping(raw), [folder])
    scheme = experiment.scheme("student", 0)
    pairs = [(pair.term, pair.student, pair.teacher) for pair in scheme.objective.plan]
    assert pairs[:2] == [("region_hint", path, path) for path in paths]
    assert {path.split(".")[2] for term, path, _ in pairs if term == "all"} == {"stages", "fpn"}
    loader, prepare = experiment.training(0)
    step = scheme(prepare(*next(iter(loader.epoch(0))), 0))
    (step.parts["region_hint"].mean + step.parts["all"].mean).backward()
    assert all(float(step.parts[name].total.detach()) > 0 for name in hints)
    adapters = {name: each for name, each in scheme.named_parameters() if "adapters" in name}
    assert any(each.shape == (32, 16, 1, 1) for each in adapters.values())  # a 1x1 convolution
    assert all(each.grad is not None for each in adapters.values())


class Quarter(nn.Module):
    """Answers with one box, the left upper quarter of what it sees."""

    def forward(self, images: torch.Tensor, **_: Any) -> torch.Tensor:
        found = torch.zeros(len(images), 100, 6)
        found[:, 0] = torch.tensor([0, 0, images.shape[3] / 2, images.shape[2] / 2, 0.9, 1])
        return found


def test_each_network_sees_the_view_at_its_own_size(folder: Path, taught: tuple[Path, Result]) -> None:
    """Boxes go with the student's image, and found ones come back in pixels of the data's."""
    raw = recipe(taught[0], data={**DATA, "size": [SIDE, 96]})
    raw["teacher"] |= {"size": 128}
    raw["student"] = {**tiny(anchors=[6, 9]), "size": 48}  # as shares of the image those of the teacher
    experiment = load_experiment(from_mapping(raw), [folder])
    loader, prepare = experiment.training(0)
    batch = prepare(*next(iter(loader.epoch(0))), 0)
    ours, theirs = batch.inputs["student"], batch.inputs["teacher"]
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    assert (ours["images"].shape[2:], theirs["images"].shape[2:]) == ((48, 48), (128, 128))
    assert batch.target is not None
    there = ours["labels"] > 0
    torch.testing.assert_close(ours["boxes"][there], 48 * batch.target[..., :4][there])
    step = experiment.scheme("student", 0)(batch)
    assert all(bool(part.total.isfinite()) for part in step.parts.values())
    for role in ("student", "teacher"):
        found = experiment.task.predict(Quarter(), experiment.evaluation(experiment.splits.test), role)
        assert found[:, 0].tolist() == [pytest.approx([0, 0, 48, 32, 0.9, 1])] * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": {"mixup": 0.2}}, r"augment\.mixup: mixes labels"),
        (
            {"scheme": "deep_supervision", "teacher": None},
            r"scheme: deep_supervision needs task: classification",
        ),
        ({"scheme": "mutual", "teacher": None, "distill": {"kl": {}}}, r"distill\.kl: compares logits"),
        (
            {"data": {**DATA, "test_with_validation": True}, "train": {**TRAIN, "select": "best"}},
            r"test_with_val",
        ),
        ({"data": {**DATA, "size": [8, 8]}}, r"data\.size"),
        ({"teacher": {**tiny(), "cache": {"views": 2}}}, r"teacher\.cache: keeps one answer an image"),
        ({"student": tiny(anchors=[3])}, r"student\.arguments\.anchors: expected one size a level"),
        (
            {"student": {"model": "torchvision:resnet18"}},
            r"student\.model: expected a detector as torchvision's",
        ),
        ({"distill": {"weighted_scores": {}}}, r"distill\.weighted_scores: .*answers with boxes and classes"),
        ({"distill": {"kl": {}}}, r"distill\.kl: compares logits"),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(
    folder: Path, taught: tuple[Path, Result], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment(from_mapping({**recipe(taught[0]), **change}), [folder])


def test_a_few_real_images_are_learnt(data_root: Path) -> None:
    overrides = [
        "data.limit=16",
        "data.size=[96, 128]",
        "train.steps=6",
        "train.batch_size=8",
        "train.precision=float32",
        "student.arguments={anchors: [16, 24, 48], channels: 16, hidden: 32, arguments: {width_mult: 0.2}}",
    ]
    experiment = load_experiment(load("bccd-teacher", overrides), [data_root])
    assert experiment.splits.train.class_names == ("RBC", "WBC", "Platelets")
    assert parameters(experiment.student(0)) < 300_000
    scheme = experiment.scheme("student", 0)
    optimiser = torch.optim.AdamW(scheme.parameters(), lr=5e-3)
    loader, prepare = experiment.training(0)
    losses = []
    for epoch in range(6):
        for rows in loader.epoch(epoch):
            step = scheme(prepare(*rows, epoch))
            optimiser.zero_grad()
            step.loss.backward()
            optimiser.step()
            losses.append(float(step.loss.detach()))
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
