"""Every scheme as a recipe, from start to finish; interruptions in the middle; what a recipe may not ask."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim import SGD, AdamW
from torch.utils.data import TensorDataset

from potstill import distill
from potstill.assembly.load import load_experiment
from potstill.compare import compare_methods
from potstill.config import dump, from_mapping, load, parse_yaml
from potstill.errors import UserError
from potstill.loaded import load_student
from potstill.models.exits import WithExits
from potstill.run import run
from potstill.schemes import Offline
from potstill.teachers import Ensemble
from potstill.train.learners import Learners
from potstill.train.optimise import learning_rate
from tests.killing import killed_after

TEACHER = 'teacher: {model: "nets.py:big", weights: teacher.safetensors, mean: [0.5], std: [0.25]}\n'
DEEPER = '''

class Staged(nn.Module):
    """Two stages, for exits."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(images)).mean(dim=(2, 3)))


def wide(num_classes: int = 3) -> nn.Module:
    return Net(4, num_classes)
'''
EXITS = "{kind: deep_supervision, exits: [first]}"
CHAIN = '{kind: born_again, networks: [{model: "nets.py:wide"}]}'
MIXED = '{kind: mutual, peers: 3, networks: [{model: "nets.py:wide"}]}'


def write(
    tiny: Any, scheme: str, *, teacher: str = "", distill: str = "", student: str = "small", **train: Any
) -> Path:
    """A recipe of the tiny project."""
    options = {"epochs": 1, "batch_size": 16, "learning_rate": 0.05, "precision": "float32", **train}
    nets = tiny.root / "nets.py"
    if "Staged" not in nets.read_text():
        nets.write_text(nets.read_text() + DEEPER)
    path: Path = tiny.root / "scheme.yaml"
    path.write_text(
        f"task: classification\ndata: {{kind: arrays, path: blobs}}\nscheme: {scheme}\n{teacher}"
        f'student: {{model: "nets.py:{student}"}}\n{distill}train: {json.dumps(options)}\n'
    )
    return path


def go(
    tiny: Any, out: Path, scheme: str, *, resume: bool = False, overrides: Any = (), **options: Any
) -> Any:
    path = write(tiny, scheme, **options)
    return run(path, data=tiny.root, out=out, resume=resume, overrides=overrides, echo=lambda line: None)


@pytest.mark.parametrize(
    ("scheme", "networks", "options"),
    [
        ("mutual", ["peer1", "peer2"], {}),
        (MIXED, ["peer1", "peer2", "peer3"], {}),
        ("{kind: born_again, generations: 2}", ["generation1", "generation2"], {}),
        ("{kind: born_again, generations: 2, knowledge: permuted}", ["generation1", "generation2"], {}),
        ("{kind: born_again, generations: 2, knowledge: weighted}", ["generation1", "generation2"], {}),
        (CHAIN, ["generation1", "generation2"], {"teacher": TEACHER}),
        (EXITS, ["first", "deepest"], {"student": "Staged"}),
        (
            "{kind: deep_supervision, taught_by: ensemble, exits: [first]}",
            ["first", "deepest"],
            {"student": "Staged"},
        ),
        ("mean_teacher", ["student", "average"], {}),
        ("{kind: smoothed_labels, correct: 0.9}", [], {}),
    ],
)
def test_every_scheme_runs_from_a_recipe(
    tiny: Any, tmp_path: Path, scheme: str, networks: list[str], options: dict[str, Any]
) -> None:
    out = tmp_path / "run"
    result = go(tiny, out, scheme, overrides=["seeds=2"], **options)
    assert result.verdict in ("better", "same", "worse")
    assert set(result.data["models"]) == {"control", "student"} | (
        {"teacher"} if options.get("teacher") else set()
    )
    assert list(result.data.get("networks", {})) == networks
    assert all(len(values) == 2 for values in result.data.get("networks", {}).values())
    assert ("ensemble" in result.data) == ("mutual" in scheme or "born_again" in scheme)
    kept = {path.stem for path in (out / "checkpoints" / "student-0").glob("*.safetensors")}
    assert kept == {"last", "best"} | (set() if "deep" in scheme else set(networks))
    page = (out / "report.html").read_text()
    assert ("All networks" in page) == bool(networks)
    assert all(name in page for name in networks)
    loaded = load_student(out)
    answer = loaded.student(loaded.preprocessing.normalise(loaded.samples(4)))
    assert isinstance(loaded.student, WithExits) == ("deep" in scheme)
    assert (answer.output if isinstance(loaded.student, WithExits) else answer).shape == (4, 3)
    assert load(out / "recipe.yaml") == from_mapping(parse_yaml(dump(load(out / "recipe.yaml")), "again"))


@pytest.mark.parametrize(
    ("scheme", "term", "student"),
    [
        ("mutual", "attention_transfer: {layers: [conv]}", "small"),
        ("{kind: born_again, generations: 2}", "feature_mse: {weight: 1, layers: [conv]}", "small"),
        (EXITS, "similarity_preserving: {}", "Staged"),
        ("mean_teacher", "feature_mse: {weight: 1, layers: [conv]}", "small"),
    ],
)
def test_every_scheme_matches_features_by_a_line(
    tiny: Any, tmp_path: Path, scheme: str, term: str, student: str
) -> None:
    block = f"distill:\n  kl: {{weight: 1, temperature: 1}}\n  {term}\n"
    go(tiny, tmp_path / "run", scheme, distill=block, student=student)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    name = term.partition(":")[0]
    assert any(key.endswith(name) for row in rows for key in row.get("parts", {}))


@pytest.mark.parametrize("scheme", ["mean_teacher", "smoothed_labels"])
def test_weights_are_measured_where_one_student_learns(tiny: Any, tmp_path: Path, scheme: str) -> None:
    block = "distill: {labels: {weight: 1}, kl: {weight: auto}}\n"
    result = go(tiny, tmp_path / "run", scheme, distill=block)
    (weight,) = result.data["models"]["student"]["weights"]["kl"]
    assert weight > 0


def test_the_student_is_the_best_peer_with_its_architecture(tiny: Any, tmp_path: Path) -> None:
    result = go(tiny, tmp_path / "run", MIXED, epochs=3)
    row = json.loads((tmp_path / "run" / "checkpoints" / "student-0" / "trained.json").read_text())
    last = row["history"][-1]
    assert {"peer1.accuracy", "peer3.accuracy", "agreement", "ensemble"} <= set(last)
    best = max(("peer1", "peer2"), key=lambda name: last[f"{name}.accuracy"])
    assert row["chosen"] == best == result.data["chosen"][0]
    assert last["accuracy"] == last[f"{best}.accuracy"]
    assert result.data["models"]["student"]["per_seed"] == result.data["networks"][best]
    kept = load_file(tmp_path / "run" / "student.safetensors")
    peer = load_file(tmp_path / "run" / "checkpoints" / "student-0" / f"{best}.safetensors")
    assert all(torch.equal(kept[key], peer[key]) for key in kept)
    over = result.data["over_control"]
    assert list(over) == ["peer1", "peer2", "peer3", "ensemble"]
    assert over[best] == {key: result.data[key] for key in ("gain", "interval", "verdict")}
    control, together = result.data["models"]["control"]["accuracy"], result.data["ensemble"][0]
    assert over["ensemble"]["gain"] == pytest.approx(together - control)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "validation accuracy of peer1, peer2, peer3, control, ensemble over the epochs" in page
    assert "agreement of the peers over the epochs" in page


def test_every_exit_has_a_verdict_and_none_without_a_control(tiny: Any, tmp_path: Path) -> None:
    result = go(tiny, tmp_path / "run", EXITS, student="Staged")
    assert list(result.data["over_control"]) == ["first", "deepest"]
    assert result.data["over_control"]["deepest"]["gain"] == result.gain
    assert "Over the control, " in (tmp_path / "run" / "report.html").read_text()
    path = write(tiny, "mutual")
    alone = run(path, data=tiny.root, out=tmp_path / "alone", control=False, echo=lambda line: None)
    assert "over_control" not in alone.data
    assert "Over the control, " not in (tmp_path / "alone" / "report.html").read_text()


def test_the_first_generation_without_a_teacher_learns_as_the_control(tiny: Any, tmp_path: Path) -> None:
    """The same batches, views and schedule; one generation alone is the control to the bit."""
    result = go(tiny, tmp_path / "run", "{kind: born_again, generations: 1}")
    assert result.gain == 0.0
    places = [
        tmp_path / "run" / "checkpoints" / f"{arm}-0" / "last.safetensors" for arm in ("control", "student")
    ]
    control, student = (load_file(place) for place in places)
    assert all(torch.equal(control[key], student[key]) for key in control)


def test_peers_learn_from_modules_in_memory(tmp_path: Path) -> None:
    images, labels = torch.randn(90, 1, 4, 4), torch.arange(90) % 3
    result = distill(
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)),
        train=TensorDataset(images, labels),
        scheme={"kind": "mutual", "peers": 3},
        epochs=1,
        batch_size=16,
        out=tmp_path / "run",
        echo=lambda line: None,
    )
    assert list(result.data["networks"]) == ["peer1", "peer2", "peer3"]
    assert result.student is not None


def test_a_module_in_memory_is_one_network_for_all_peers(tmp_path: Path) -> None:
    """It keeps its weights, so peers that see the same would never differ."""
    data = TensorDataset(torch.randn(90, 1, 4, 4), torch.arange(90) % 3)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with pytest.raises(UserError, match=r"scheme.peers: peer1 and peer2 start from the very same weights"):
        distill(network, train=data, scheme="mutual", batch_size=16, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_modules_in_memory_have_other_networks_beside_them(tiny: Any, tmp_path: Path) -> None:
    write(tiny, "mutual")
    result = distill(
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)),
        train=TensorDataset(torch.randn(90, 1, 6, 6), torch.arange(90) % 3),
        scheme={"kind": "born_again", "networks": [{"model": f"{tiny.root / 'nets.py'}:wide"}]},
        epochs=1,
        batch_size=16,
        out=tmp_path / "run",
        echo=lambda line: None,
    )
    assert list(result.data["networks"]) == ["generation1", "generation2"]
    first = load_file(tmp_path / "run" / "checkpoints" / "student-0" / "generation1.safetensors")
    assert first["conv.weight"].shape[0] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scheme=deep_supervision", "distill={}"], "scheme: deep_supervision needs task: classification"),
        (["scheme=smoothed_labels"], "scheme: smoothed_labels needs one label a sample, got task: language"),
        (
            ["scheme={kind: born_again, knowledge: permuted}"],
            "scheme.knowledge: permuted has no meaning with task: language_modeling",
        ),
    ],
)
def test_what_sorts_samples_is_not_for_tokens(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load("shakespeare-characters", ["teacher=null", "correct=null", *settings])


def test_a_peer_may_have_an_optimiser_and_a_schedule_of_its_own(tiny: Any) -> None:
    """Each peer's first steps are those of a loop by hand with its own optimiser and learning rates."""
    own = "{learning_rate: 0.01, optimizer: adamw, schedule: constant, warmup: 0, weight_decay: 0.1}"
    recipe = load(write(tiny, "mutual"), [f"train.others={{peer2: {own}}}", "train.steps=3"])
    assert from_mapping(parse_yaml(dump(recipe), "recipe")) == recipe
    experiment = load_experiment(recipe, [tiny.root])
    assert any("peer2 learns in its own way" in note for note in experiment.notes)
    scheme = experiment.scheme("student", 3)
    learners = Learners(scheme, recipe.train)
    assert [type(each) for each in learners.optimizers.values()] == [SGD, AdamW]
    by_hand = copy.deepcopy(scheme)
    mine = [
        SGD(by_hand.parts["peer1"].parameters(), lr=1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        AdamW(by_hand.parts["peer2"].parameters(), lr=0.01, weight_decay=0.1),
    ]
    loader, prepare = experiment.training(seed=3)
    for step in range(3):
        batch = prepare(*loader.read([step, 9, 2, 7], 0), 0)
        for each, optimizer in ((scheme, None), (by_hand, mine)):
            found = each(batch)
            found.loss_over(each.counts(batch)).backward()
            if optimizer is None:
                learners.set_learning_rate(step, 3)
                learners.update(["peer1", "peer2"])
            else:
                mine[0].param_groups[0]["lr"] = learning_rate(recipe.train, step, 3)
                for one in mine:
                    one.step()
                    one.zero_grad()
    for name, weight in by_hand.state_dict().items():
        torch.testing.assert_close(scheme.state_dict()[name], weight, rtol=1e-5, atol=1e-7)
    alone = Learners(experiment.scheme("control", 3), recipe.train)
    assert [type(each) for each in alone.optimizers.values()] == [SGD]


def test_peers_may_see_views_of_their_own(tiny: Any) -> None:
    """Pure functions of (seed, view, sample): the rest of the batch does not matter; labels are shared."""
    path = write(tiny, "{kind: mutual, peers: 3, views: own}")
    experiment = load_experiment(load(path, ["augment={crop: 2, flip: 0.5}"]), [tiny.root])
    loader, prepare = experiment.training(seed=3)
    whole, part = (prepare(*loader.read(rows, 5), 5) for rows in ([4, 9, 2, 7], [2, 4]))
    assert list(whole.inputs) == ["student", "peer2", "peer3"]
    views = [whole.tensor(name) for name in ("peer1", "peer2", "peer3")]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(views, 2))
    for name in whole.inputs:
        assert torch.equal(part.tensor(name), whole.tensor(name)[[2, 0]])
        assert not torch.equal(prepare(*loader.read([2, 4], 6), 6).tensor(name), part.tensor(name))
    _, alone = experiment.training(seed=3, arm="control")
    control = alone(*loader.read([4, 9, 2, 7], 5), 5)
    assert list(control.inputs) == ["student"]
    assert torch.equal(control.tensor("student"), whole.tensor("peer1"))
    assert torch.equal(control.target, whole.target)


@pytest.mark.parametrize("scheme", ["mutual", "{kind: born_again, generations: 2}", EXITS])
def test_a_dry_run_tells_the_stages(tiny: Any, tmp_path: Path, scheme: str) -> None:
    lines: list[str] = []
    path = write(tiny, scheme, student="Staged")
    run(path, data=tiny.root, out=tmp_path / "run", dry=True, echo=lines.append)
    text = "\n".join(lines)
    assert "stages in lengths of the training: " in text
    assert ("generation1 (1), generation2 (1)" in text) == ("born" in scheme)
    assert ("x 6 and 12 steps" in text) == ("born" in scheme)
    assert "teacher:" not in text


def test_methods_are_compared_within_a_scheme_that_has_a_teacher(tiny: Any, tmp_path: Path) -> None:
    path = write(tiny, "{kind: born_again, generations: 2}", teacher=TEACHER)
    found = compare_methods(path, "kl", data=tiny.root, out=tmp_path / "all", echo=lambda line: None)
    assert not found.failed
    write(tiny, "mutual")
    with pytest.raises(
        UserError, match="teacher: missing; compare is for recipes in which a trained teacher"
    ):
        compare_methods(path, "kl", data=tiny.root, out=tmp_path / "none", echo=lambda line: None)


@pytest.mark.parametrize(
    ("scheme", "student", "steps", "ema"),
    [
        ("{kind: born_again, generations: 3}", "small", (12, 15), 0.5),
        ("{kind: born_again, generations: 3}", "Staged", (13, 14), None),
        ("{kind: born_again, generations: 2, knowledge: weighted}", "small", (16,), None),
        ("mutual", "Staged", (7,), 0.5),
        ("{kind: mutual, views: own}", "small", (7,), None),
        ("mean_teacher", "Staged", (7,), None),
        (EXITS, "Staged", (7,), None),
    ],
)
def test_a_killed_scheme_goes_on_to_the_same_weights(
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    student: str,
    steps: tuple[int, ...],
    ema: float | None,
) -> None:
    options: dict[str, Any] = {"student": student, "epochs": 2, "ema": ema, "checkpoint_every": 5}
    options["overrides"] = ["augment.flip=0.5"]
    go(tiny, tmp_path / "whole", scheme, **options)
    for step in steps:
        with killed_after(step, monkeypatch):
            go(tiny, tmp_path / "cut", scheme, resume=True, **options)
    go(tiny, tmp_path / "cut", scheme, resume=True, **options)
    for path in (tmp_path / "whole" / "checkpoints" / "student-0").glob("*.safetensors"):
        ours, theirs = load_file(path), load_file(tmp_path / "cut" / "checkpoints" / "student-0" / path.name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), path.name
    rows = [
        json.loads((tmp_path / name / "checkpoints" / "student-0" / "trained.json").read_text())
        for name in ("whole", "cut")
    ]
    assert rows[0]["history"] == rows[1]["history"]


def test_the_last_generation_is_drawn_over_the_control(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "run", "{kind: born_again, generations: 2}", epochs=2)
    content = json.loads((tmp_path / "run" / "report.json").read_text())
    epochs = {one["arm"]: [row["epoch"] for row in one["rows"]] for one in content["histories"]}
    assert epochs == {"control": [1, 2], "student": [1, 2]}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows if row["arm"] == "student" and "learning_rate" in row]
    half = len(rates) // 2
    assert rates[:half] == rates[half:]


def test_a_trained_backbone_stays_as_it_is(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "first", EXITS, student="Staged")
    state = load_file(tmp_path / "first" / "checkpoints" / "control-0" / "last.safetensors")
    scheme = "{kind: deep_supervision, exits: [first], train_backbone: false}"
    weights = f"student.weights={tmp_path / 'first' / 'checkpoints' / 'control-0' / 'last.safetensors'}"
    go(tiny, tmp_path / "run", scheme, student="Staged", overrides=[weights])
    kept = load_file(tmp_path / "run" / "student.safetensors")
    assert all(torch.equal(kept[f"tapped.model.{key}"], tensor) for key, tensor in state.items())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["models"]) == {"student"}  # trained on, a control would be another network
    assert result["reason"] == "no control was trained: the network stays as it came, only its exits learn"


def test_the_whole_network_of_a_student_with_exits_is_exported(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from potstill.deploy import export_onnx

    go(tiny, tmp_path / "run", EXITS, student="Staged")
    exported = export_onnx(load_student(tmp_path / "run"), tmp_path / "student.onnx")
    assert exported.path.stat().st_size > 0


def test_a_generation_whose_weights_are_gone_is_named(tiny: Any, tmp_path: Path) -> None:
    scheme = "{kind: born_again, generations: 2}"
    go(tiny, tmp_path / "run", scheme)
    (tmp_path / "run" / "checkpoints" / "student-0" / "generation1.safetensors").unlink()
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UserError, match=r"student-0/generation1: no such file: .*generation1.safetensors"):
        go(tiny, tmp_path / "run", scheme, resume=True)


def test_all_generations_together_teach_a_small_student(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "chain", CHAIN, epochs=6)
    weights = tmp_path / "chain" / "checkpoints" / "student-0"
    first = f'{{model: "nets.py:wide", weights: {weights / "generation1.safetensors"}}}'
    second = f'{{model: "nets.py:small", weights: {weights / "generation2.safetensors"}}}'
    options: dict[str, Any] = {
        "teacher": f"teacher: {first}\nco_teachers: [{second}]\n",
        "distill": "distill: {kl: {}, feature_mse: {weight: 1, layers: [conv]}}\n",
    }
    result = go(tiny, tmp_path / "run", "offline", **options)
    experiment = load_experiment(load(tmp_path / "run" / "recipe.yaml"), [tiny.root])
    assert isinstance(experiment.teacher, Ensemble)
    batch, networks = experiment.example(), experiment.teacher.networks
    mean = torch.stack([network(batch.tensor("teacher")).softmax(1) for network in networks]).mean(0)
    torch.testing.assert_close(experiment.teacher(batch).output, mean.log())
    torch.testing.assert_close(experiment.teacher(batch.tensor("teacher")).output, mean.log())
    sizes = [sum(each.numel() for each in network.parameters()) for network in networks]
    assert result.data["models"]["teacher"]["parameters"] == sum(sizes)
    assert "small taught by wide and 1 more" in (tmp_path / "run" / "report.html").read_text()
    scheme = experiment.scheme("student", 0)
    assert isinstance(scheme, Offline)
    assert scheme.teacher.network.conv.out_channels == 4  # layers are the first's


CO_TEACHERS = {
    "gone": (
        '{model: "nets.py:big", weights: gone.safetensors}',
        "co_teachers.0.weights: .*gone.safetensors",
    ),
    "untrained": ('{model: "nets.py:big"}', "co_teachers.0.weights: missing; a teacher with random weights"),
    "other classes": (
        '{model: "nets.py:stubborn", weights: stubborn.safetensors}',
        r"co_teachers.0.model: expected logits \(2, 3\) for the data's 3 classes, got \(2, 7\)",
    ),
    "other images": (
        '{model: "nets.py:big", weights: teacher.safetensors, mean: [0.1]}',
        "co_teachers.0: must take the images that the teacher takes",
    ),
}


@pytest.mark.parametrize("name", CO_TEACHERS)
def test_bad_co_teachers_are_named(tiny: Any, tmp_path: Path, name: str) -> None:
    other, message = CO_TEACHERS[name]
    path = write(tiny, "offline", teacher=f"{TEACHER}co_teachers: [{other}]\n")
    if name == "other classes":
        shapes = {"conv.weight": (2, 1, 3, 3), "conv.bias": (2,), "head.weight": (7, 72), "head.bias": (7,)}
        state = {key: torch.zeros(shape) for key, shape in shapes.items()}
        save_file(state, tiny.root / "stubborn.safetensors")
    with pytest.raises(UserError, match=message):
        run(path, data=tiny.root, out=tmp_path / "run", echo=lambda line: None)
    assert not (tmp_path / "run").exists()


def test_co_teachers_need_a_teacher(tiny: Any, tmp_path: Path) -> None:
    path = write(tiny, "{kind: born_again}", teacher='co_teachers: [{model: "nets.py:big"}]\n')
    with pytest.raises(UserError, match="co_teachers: has no meaning without a teacher"):
        run(path, data=tiny.root, out=tmp_path / "run", echo=lambda line: None)
    with pytest.raises(UserError, match="co_teachers: is for task: classification"):
        load("shakespeare-characters", ["co_teachers=[{model: m}]"])
    with pytest.raises(UserError, match=r"teacher.cache: keeps what one network answers"):
        load(write(tiny, "offline", teacher=f"{TEACHER}co_teachers: [{{model: m}}]\n"), ["teacher.cache={}"])


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown kind": ("mutul", {}, "scheme: expected one of offline, .*'mutul'; did you mean 'mutual'"),
    "unknown kind in a mapping": (
        "{kind: mutul}",
        {},
        "scheme.kind: expected one of .*did you mean 'mutual'",
    ),
    "other kind's option": (
        "{kind: mutual, decay: 0.9}",
        {},
        "scheme.decay: unknown key; it belongs to kind: mean_t",
    ),
    "misspelt option": ("{kind: mutual, pers: 3}", {}, "scheme.pers: unknown key; did you mean 'peers'"),
    "no generation": ("{kind: born_again, generations: 0}", {}, "scheme.generations: must be >= 1, got 0"),
    "one peer": ("{kind: mutual, peers: 1}", {}, "scheme.peers: must be >= 2, got 1"),
    "generations and networks": (
        '{kind: born_again, generations: 5, networks: [{model: "nets.py:wide"}]}',
        {},
        "scheme.generations: must be 2, 1 networks and the student, got 5",
    ),
    "no peer like the student": (
        '{kind: mutual, peers: 2, networks: [{model: "nets.py:wide"}, {model: "nets.py:wide"}]}',
        {},
        "scheme.networks: must leave a peer",
    ),
    "a network without a model": (
        "{kind: mutual, networks: [{weights: here}]}",
        {},
        "scheme.networks.0.model: missing",
    ),
    "a teacher for peers": ("mutual", {"teacher": TEACHER}, "teacher: has no meaning with scheme: mutual"),
    "views that are all the same": (
        "{kind: mutual, views: own}",
        {},
        "scheme.views: own has no meaning without augment",
    ),
    "views that mix otherwise": (
        "{kind: mutual, views: own}",
        {"overrides": ["augment={flip: 0.5, mixup: 0.2}"]},
        "augment.mixup: mixes labels, which peers with scheme.views: own share",
    ),
    "a peer that is none": (
        "mutual",
        {"overrides": ["train.others={peer3: {learning_rate: 0.1}}"]},
        "train.others.peer3: names no network beside the student; expected peer2",
    ),
    "the student apart from its control": (
        "mutual",
        {"overrides": ["train.others={peer1: {learning_rate: 0.1}}"]},
        "train.others.peer1: names no network beside the student; expected peer2",
    ),
    "a peer's length": (
        "mutual",
        {"overrides": ["train.others={peer2: {epochs: 3}}"]},
        "train.others.peer2.epochs: unknown key",
    ),
    "others where there are none": (
        "mean_teacher",
        {"overrides": ["train.others={average: {learning_rate: 0.1}}"]},
        "train.others.average: names no network beside the student; only the student learns",
    ),
    "no teacher": ("offline", {}, "teacher: missing; scheme: offline needs one"),
    "other classes": (
        '{kind: mutual, networks: [{model: "nets.py:stubborn"}]}',
        {},
        r"scheme.networks.0.model: expected logits \(2, 3\) for the data's 3 classes, got \(2, 7\)",
    ),
    "a mapping in place of a list": (
        '{kind: mutual, networks: {model: "nets.py:wide"}}',
        {},
        "scheme.networks: expected a list of mappings, got {'model'",
    ),
    "peers that are one network": (
        "mutual",
        {"overrides": ["student.weights=small.safetensors"]},
        "scheme.peers: peer1 and peer2 start from the very same weights and see the same views",
    ),
    "peers with nothing to match": (
        "mutual",
        {"distill": "distill: {labels: {weight: 1}}\n"},
        "distill: nothing is matched: with scheme: mutual labels alone would teach",
    ),
    "generations with nothing to match": (
        "{kind: born_again, generations: 2}",
        {"distill": "distill: {}\n"},
        "distill: nothing is matched: with scheme: born_again",
    ),
    "nothing to permute": (
        "{kind: born_again, generations: 2, knowledge: permuted}",
        {"distill": "distill: {feature_mse: {weight: 1, layers: [conv]}}\n"},
        "scheme.knowledge: permuted has no meaning where no term compares logits",
    ),
    "nobody's confidence": (
        "{kind: born_again, generations: 1, knowledge: weighted}",
        {},
        "scheme.knowledge: weighted has no meaning for one generation without a teacher",
    ),
    "an ensemble that teaches nothing": (
        "{kind: deep_supervision, exits: [first], taught_by: ensemble}",
        {"student": "Staged", "distill": "distill: {labels: {weight: 1}, feature_mse: {weight: 1}}\n"},
        "scheme.taught_by: ensemble has no meaning where no term compares logits",
    ),
    "one exit that is to be patient": (
        "{kind: deep_supervision, exits: [first], policy: patience}",
        {"student": "Staged"},
        "scheme.policy: patience counts exits that agree, and there is one: 'first'",
    ),
    "an exit in place of a list": (
        "{kind: deep_supervision, exits: first}",
        {"student": "Staged"},
        "scheme.exits: expected auto or a list of text, got 'first'",
    ),
    "numbers in place of layers": (
        "{kind: deep_supervision, exits: [1]}",
        {"student": "Staged"},
        r"scheme.exits: expected auto or a list of text, got \[1\]",
    ),
    "two exits at one place": (
        "{kind: deep_supervision, exits: [first, first.2]}",
        {"student": "Staged"},
        "scheme.exits: two exits at one place: 'first.2' gives the very tensor of 'first'",
    ),
    "part of an image": (
        "{kind: deep_supervision, exits: [first], calibrate_on: 2.5}",
        {"student": "Staged"},
        "scheme.calibrate_on: expected a share below 1 or a whole number of samples, got 2.5",
    ),
    "all images there are": (
        "{kind: deep_supervision, exits: [first], calibrate_on: .inf}",
        {"student": "Staged"},
        "scheme.calibrate_on: expected a share below 1 or a whole number of samples, got inf",
    ),
    "weights of a generation are gone": (
        '{kind: born_again, networks: [{model: "nets.py:wide", weights: gone.safetensors}]}',
        {},
        "scheme.networks.0.weights: .*gone.safetensors",
    ),
    "its own mean": (
        '{kind: mutual, networks: [{model: "nets.py:wide", mean: [0.1]}]}',
        {},
        "scheme.networks.0.mean: has no meaning; all networks see the student's images",
    ),
    "unknown exit": (
        "{kind: deep_supervision, exits: [frst]}",
        {"student": "Staged"},
        "scheme.exits: no layer 'frst'",
    ),
    "exit at the end": (
        "{kind: deep_supervision, exits: [second]}",
        {"student": "Staged"},
        "scheme.exits: layer 'second' is at or after the last features",
    ),
    "untrained backbone": (
        "{kind: deep_supervision, exits: [first], train_backbone: false}",
        {"student": "Staged"},
        "student.weights: missing; with scheme.train_backbone: false",
    ),
    "patience over stages": (
        "{kind: born_again, generations: 2}",
        {"patience": 2},
        r"train.patience: has no meaning for a training in several stages \(generation1, generation2\)",
    ),
    "measured weights": (
        "mutual",
        {"distill": "distill: {kl: {weight: auto}}\n"},
        "distill.kl.weight: auto has no meaning with scheme: mutual",
    ),
    "measured weights of generations": (
        "{kind: born_again, generations: 2}",
        {"distill": "distill: {kl: {weight: auto}}\n"},
        "distill.kl.weight: auto has no meaning with scheme: born_again",
    ),
    "measured weights of exits": (
        EXITS,
        {"student": "Staged", "distill": "distill: {kl: {weight: auto}}\n"},
        "distill.kl.weight: auto has no meaning with scheme: deep_supervision",
    ),
    "terms beside weighted": (
        "{kind: born_again, knowledge: weighted}",
        {"distill": "distill: {kl: {}}\n"},
        "distill.kl: has no meaning with scheme.knowledge: weighted",
    ),
    "layers of smoothed labels": (
        "smoothed_labels",
        {"distill": "distill: {feature_mse: {weight: 1}}\n"},
        "distill.feature_mse: smoothed labels have no layers to compare",
    ),
    "too sure of nothing": (
        "{kind: smoothed_labels, correct: 0.2}",
        {},
        "scheme.correct: must lie between chance",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_schemes_are_refused_before_anything_is_written(tiny: Any, tmp_path: Path, name: str) -> None:
    scheme, options, message = BAD[name]
    shapes = {"conv.weight": (2, 1, 3, 3), "conv.bias": (2,), "head.weight": (3, 72), "head.bias": (3,)}
    state = {key: torch.ones(shape) for key, shape in shapes.items()}
    save_file(state, tiny.root / "small.safetensors")
    with pytest.raises(UserError, match=message):
        go(tiny, tmp_path / "run", scheme, **options)
    assert not (tmp_path / "run").exists()
