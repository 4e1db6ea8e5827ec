"""What a recipe says is checked at its key; weights follow the course; sums and counts are right."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from potstill import losses
from potstill.batch import Batch, Share, Signals, Step
from potstill.errors import UserError
from potstill.losses._declare import matches
from potstill.matching.objective import LabelsConfig, Objective, Term, TermConfig, parse_terms
from potstill.matching.recording import record
from potstill.matching.terms import weight_at


def supervised(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None
    logits = signals.output
    return cross_entropy(logits.movedim(-1, 1), batch.target, reduction="none")


def batch_of(rows: int, where: Tensor | None = None, positions: tuple[int, ...] = ()) -> Batch:
    torch.manual_seed(rows)
    target = torch.randint(0, 3, (rows, *positions))
    return Batch({"student": torch.randn(rows, 4)}, target, where, torch.arange(rows))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"kll": {}}, "distill.kll: unknown loss; did you mean 'kl'?"),
        ({"second": {"loss": "kll"}}, "distill.second.loss: unknown loss 'kll'; did you mean 'kl'?"),
        ({"kl": {"temprature": 4}}, "distill.kl.temprature: unknown option; did you mean 'temperature'?"),
        ({"kl": {"wieght": 4}}, "distill.kl.wieght: unknown option; did you mean 'weight'?"),
        ({"kl": {"temperature": -1}}, "distill.kl.temperature: must be > 0, got -1"),
        ({"kl": {"temperature": "4"}}, "distill.kl.temperature: expected a number, got '4'"),
        ({"kl": {"temperature": True}}, "distill.kl.temperature: expected a number, got True"),
        ({"kl": {"temperature": float("nan")}}, "distill.kl.temperature: expected a number, got nan"),
        ({"kl": {"standardize": 1}}, "distill.kl.standardize: expected true or false, got 1"),
        ({"kl": {"weight": -0.1}}, "distill.kl.weight: must be >= 0, got -0.1"),
        ({"kl": {"where": 1}}, "distill.kl.where: unknown option"),
        ({"kl": 0.9}, "distill.kl: expected a mapping such as {weight: 0.9}, got 0.9"),
        (
            {"kl": {"schedule": "cosin"}},
            "distill.kl.schedule: expected one of constant, linear, cosine, got 'cosin'",
        ),
        ({"kl": {"warmup": 2}}, "distill.kl.warmup: must be <= 1, got 2"),
        ({"kl": {"from": 0.5, "until": 0.5}}, "distill.kl.until: must be after from (0.5), got 0.5"),
        (
            {"kl": {"until": 0.2, "warmup": 0.3}},
            "distill.kl.warmup: must end before until (at most 0.2), got 0.3",
        ),
        ({"kl": {"layers": ["a"]}}, "distill.kl.layers: has no meaning for a loss that compares logits"),
        ({"feature_mse": {"layers": "a"}}, "distill.feature_mse.layers: expected auto, [path, ...]"),
        ({"feature_mse": {"layers": [["a"]]}}, "distill.feature_mse.layers: expected auto, [path, ...]"),
        (
            {"attention_transfer": {"variant": "x"}},
            "distill.attention_transfer.variant: expected one of mean, paper",
        ),
        ({"labels": {"wait": 1}}, "distill.labels.wait: unknown key; did you mean 'weight'?"),
        ({"labels": {"weight": "much"}}, "distill.labels.weight: expected a number, got 'much'"),
    ],
)
def test_mistakes_in_a_recipe(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_terms(raw)
    assert str(caught.value).startswith(message)


def test_parsing_keeps_what_was_said() -> None:
    labels, terms = parse_terms(
        {
            "labels": {"weight": 1, "from": 0.2},
            "kl": None,
            "late": {"loss": "kl", "temperature": 2, "weight": 3, "from": 0.5, "schedule": "cosine"},
            "feature_mse": {"layers": {"a": "b"}},
        }
    )
    assert labels == LabelsConfig(weight=1, start=0.2)
    assert terms == {
        "kl": TermConfig(loss="kl", until=1.0),
        "late": TermConfig(
            loss="kl", options={"temperature": 2}, weight=3, start=0.5, until=1.0, schedule="cosine"
        ),
        "feature_mse": TermConfig(loss="feature_mse", layers={"a": "b"}, until=1.0),
    }


def test_terms_know_their_defaults() -> None:
    objective = Objective({"kl": {"standardize": True}, "attention_transfer": {}}, supervised)
    assert {name: (term.weight, term.options) for name, term in objective.terms.items()} == {
        "kl": (0.9, {"temperature": 4.0, "standardize": True}),
        "attention_transfer": (1000.0, {"variant": "mean"}),
    }
    assert (objective.labels, objective.without_terms().labels, Objective({"kl": {}}).labels) == (
        0.1,
        1.0,
        0.0,
    )


def test_python_configs_are_checked_too() -> None:
    with pytest.raises(UserError, match=r"distill.soft.temperature: must be > 0"):
        Objective({"soft": TermConfig(loss="kl", options={"temperature": 0})})
    with pytest.raises(UserError, match=r"distill.labels: given twice"):
        Objective({"labels": {"weight": 1}, "kl": {}}, supervised, labels=0.5)


def test_default_weights_come_from_the_losses() -> None:
    assert Objective({}, supervised).active(0) == {"labels": 1.0}
    assert Objective({"kl": {}}, supervised).active(0) == {"labels": 0.1, "kl": 0.9}
    assert Objective({"attention_transfer": {}}, supervised).active(0) == {
        "labels": 1.0,
        "attention_transfer": 1000,
    }
    both = Objective({"kl": {}, "attention_transfer": {}}, supervised)
    assert both.active(0)["labels"] == 0.1
    assert Objective({"labels": {"weight": 2}, "kl": {}}, supervised).active(0)["labels"] == 2
    assert Objective({"kl": {}}, supervised, labels=0.4).active(0)["labels"] == 0.4
    assert Objective({"kl": {}}, None).active(0) == {"kl": 0.9}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {0: 2, 0.5: 2, 1: 2}),
        ({"schedule": "linear"}, {0: 2, 0.25: 1.5, 1: 0}),
        ({"schedule": "cosine"}, {0: 2, 0.5: 1, 1: 0}),
        ({"warmup": 0.2}, {0: 0.002, 0.1: 1, 0.2: 2, 1: 2}),
        ({"warmup": 0.2, "schedule": "linear"}, {0.1: 1, 0.2: 2, 0.6: 1, 1: 0}),
        ({"start": 0.5}, {0: 0, 0.49: 0, 0.5: 2, 1: 2}),
        ({"until": 0.2}, {0: 2, 0.19: 2, 0.2: 0, 1: 0}),
        ({"start": 0.2, "until": 0.6, "schedule": "linear"}, {0.1: 0, 0.2: 2, 0.4: 1, 0.6: 0}),
        ({"start": 0.5, "warmup": 0.5}, {0.5: 0.002, 0.75: 1, 1: 2}),
    ],
)
def test_weight_over_the_run(config: dict[str, Any], expected: dict[float, float]) -> None:
    term = Term("kl", TermConfig(loss="kl", weight=2.0, **config))
    assert {
        progress: weight_at(term.weight, term.config, progress) for progress in expected
    } == pytest.approx(expected)


@pytest.mark.parametrize(
    ("terms", "labels", "text"),
    [
        ({}, 0.0, "between 0 and 1"),
        ({"kl": {"until": 0.5}}, 0.0, "between 0.5 and 1"),
        ({"labels": {"from": 0.3}, "kl": {"until": 0.2}}, None, "between 0.2 and 0.3"),
    ],
)
def test_a_time_without_anything_to_learn_is_refused(
    terms: dict[str, Any], labels: float | None, text: str
) -> None:
    with pytest.raises(UserError, match=f"distill: nothing has a weight above 0 {text} of the run"):
        Objective(terms, supervised, labels)


def test_parts_are_plain_sums_of_the_formula() -> None:
    batch, student, teacher = batch_of(6), torch.randn(6, 3), torch.randn(6, 3)
    objective = Objective({"kl": {"temperature": 2}}, supervised)
    parts = objective.shares(Signals(student), Signals(teacher), batch)
    assert batch.target is not None
    torch.testing.assert_close(parts["labels"].total, cross_entropy(student, batch.target, reduction="sum"))
    targets = (teacher / 2).softmax(1)
    expected = 4 * kl_div((student / 2).log_softmax(1), targets, reduction="sum")
    torch.testing.assert_close(parts["kl"].total, expected)
    assert {name: (part.count, part.weight) for name, part in parts.items()} == {
        "labels": (6, 0.1),
        "kl": (6, 0.9),
    }


def test_term_out_of_its_window_is_not_computed() -> None:
    objective = Objective({"kl": {"until": 0.5}}, supervised)
    assert list(objective.shares(Signals(torch.randn(2, 3)), None, batch_of(2), 0.5)) == ["labels"]


@pytest.mark.parametrize("positions", [(), (5,)])
def test_masked_parts_equal_the_valid_rows_alone(positions: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, *positions, 3), torch.randn(4, *positions, 3)
    where = torch.rand(4, *positions) > 0.5
    batch = batch_of(4, where, positions)
    objective = Objective({"kl": {}}, supervised)
    parts = objective.shares(Signals(student), Signals(teacher), batch)
    assert batch.target is not None
    valid = Batch(
        {"student": torch.zeros(int(where.sum()), 1)},
        batch.target[where],
        None,
        torch.arange(int(where.sum())),
    )
    subset = objective.shares(Signals(student[where]), Signals(teacher[where]), valid)
    for name in ("labels", "kl"):
        torch.testing.assert_close(parts[name].total, subset[name].total)
        assert parts[name].count == subset[name].count == float(where.sum())


def test_nothing_valid_gives_zero_and_a_gradient_of_zero() -> None:
    student = torch.randn(4, 3, requires_grad=True)
    batch = batch_of(4, torch.zeros(4, dtype=torch.bool))
    parts = Objective({"kl": {}}, supervised).shares(Signals(student), Signals(torch.randn(4, 3)), batch)
    sum(part.mean for part in parts.values()).backward()  # type: ignore[union-attr]
    assert [float(part.mean.detach()) for part in parts.values()] == [0, 0]
    assert student.grad is not None
    assert not student.grad.any()


def test_counts_are_those_of_the_parts() -> None:
    where = torch.tensor([True, False, True, True])
    for mask in (None, where):
        batch = batch_of(4, mask)
        objective = Objective({"kl": {}, "logit_mse": {}}, supervised)
        parts = objective.shares(Signals(torch.randn(4, 3)), Signals(torch.randn(4, 3)), batch)
        assert objective.counts(batch) == {name: part.count for name, part in parts.items()}


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)

    def net(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(width * 16, 3),
        )

    return net(2), net(4)


def test_plan_names_layers_adapters_and_reasons() -> None:
    student, teacher = networks()
    terms = {"feature_mse": {"layers": ["0", "1"]}, "attention_transfer": {"layers": ["1"]}, "kl": {}}
    objective = Objective(terms, supervised)
    images = torch.randn(2, 1, 8, 8)
    adapters = objective.build(student, images, lambda: record(teacher, images))
    assert list(adapters) == ["feature_mse:0", "feature_mse:1"]
    assert [(pair.term, pair.student, pair.teacher, pair.key, pair.adapter) for pair in objective.plan] == [
        ("feature_mse", "0", "0", "feature_mse:0", "1x1 conv 2->4"),
        ("feature_mse", "1", "1", "feature_mse:1", "1x1 conv 2->4"),
        ("attention_transfer", "1", "1", "1", ""),
    ]
    assert objective.student_paths == objective.teacher_paths == ("0", "1")
    assert objective.describe() == [
        "labels: weight 0.1",
        "feature_mse: weight 100, compares features",
        "  0 (2, 8, 8) <- 0 (4, 8, 8); 1x1 conv 2->4; as listed",
        "  1 (2, 4, 4) <- 1 (4, 4, 4); 1x1 conv 2->4; as listed",
        "attention_transfer: weight 1000, variant mean, compares maps",
        "  1 (2, 4, 4) <- 1 (4, 4, 4); no adapter; as listed",
        "kl: weight 0.9, temperature 4, standardize False, compares logits",
    ]


def test_maps_loss_refuses_vectors() -> None:
    student, teacher = networks()
    images = torch.randn(2, 1, 8, 8)
    objective = Objective({"attention_transfer": {"layers": ["2"]}}, supervised)
    with pytest.raises(
        UserError, match=r"distill.attention_transfer.layers: .*student's '2' gives \(2, 32\)"
    ):
        objective.build(student, images, lambda: record(teacher, images))


def test_layers_add_up_or_average_as_the_loss_says() -> None:
    torch.manual_seed(0)
    taps = [{name: torch.randn(2, 3, 4, 4) for name in "ab"} for _ in range(2)]
    student, teacher = (Signals(torch.zeros(2, 3), each) for each in taps)
    for name, combine in (("attention_transfer", "sum"), ("feature_mse", "mean")):
        objective = Objective({name: {"layers": ["a", "b"]}}, None)
        model, example = nn.Sequential(), torch.zeros(2, 3, 4, 4)
        model.a, model.b = nn.Identity(), nn.Identity()
        objective.build(model, example, partial(record, copy.deepcopy(model), example))
        total = objective.shares(student, teacher, batch_of(2))[name].total
        each = [getattr(losses, name)(taps[0][path], taps[1][path]).sum() for path in "ab"]
        expected = torch.stack(each).sum() if combine == "sum" else torch.stack(each).mean()
        torch.testing.assert_close(total, expected)


def test_mask_over_positions_keeps_a_sample_with_any_valid_one() -> None:
    model = nn.Sequential(nn.Identity())
    objective = Objective({"feature_mse": {"layers": ["0"]}}, None)
    example = torch.zeros(3, 3, 4, 4)
    objective.build(model, example, partial(record, copy.deepcopy(model), example))
    student, teacher = (Signals(torch.zeros(3, 2, 3), {"0": torch.randn(3, 3, 4, 4)}) for _ in range(2))
    where = torch.tensor([[True, False], [False, False], [True, True]])
    part = objective.shares(student, teacher, batch_of(3, where, (2,)))["feature_mse"]
    each = losses.feature_mse(student.taps["0"], teacher.taps["0"])
    torch.testing.assert_close(part.total, each[[0, 2]].sum())
    assert part.count == 2


@pytest.fixture
def set_loss(monkeypatch: pytest.MonkeyPatch) -> str:
    """A loss over the whole batch, as recipes would name it."""

    @matches("logits", weight=2.0, over_set=True)
    def spread(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
        if where is not None:
            student, teacher = student[where], teacher[where]
        return (student.std() - teacher.std()).square()

    monkeypatch.setattr(losses, "spread", spread, raising=False)
    monkeypatch.setattr(losses, "__all__", [*losses.__all__, "spread"])
    return "spread"


def test_loss_over_a_set_counts_once(set_loss: str) -> None:
    student, teacher, batch = torch.randn(5, 3), torch.randn(5, 3), batch_of(5)
    objective = Objective({set_loss: {}}, None)
    part = objective.shares(Signals(student), Signals(teacher), batch)[set_loss]
    assert (part.count, part.weight) == (1.0, 2.0)
    assert objective.counts(batch)[set_loss] == 1.0
    torch.testing.assert_close(part.total, (student.std() - teacher.std()).square())


def test_mixed_precision_does_not_round_the_sum_of_the_parts() -> None:
    parts = {"one": Share(torch.tensor(1.0009765625), 1.0, 1.0), "two": Share(torch.tensor(3.0), 2.0, 0.1)}
    step = Step(parts, Signals(torch.zeros(1, 2)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = step.loss
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1.0009765625 + 0.15, rel=1e-6)


def test_loss_that_cannot_compare_names_its_term() -> None:
    objective = Objective({"kl": {}}, None)
    with pytest.raises(UserError, match=r"^distill.kl: "):
        objective.shares(Signals(torch.randn(2, 3)), Signals(torch.randn(2, 4)), batch_of(2))


def test_control_learns_from_labels_alone_at_full_weight() -> None:
    objective = Objective({"labels": {"weight": 0.1, "from": 0.5}, "kl": {}}, supervised).without_terms()
    assert objective.active(0) == {"labels": 1.0}
    assert objective.supervised is supervised
    assert not objective.needs_layers


def test_two_terms_may_share_a_loss() -> None:
    objective = Objective(
        {"sharp": {"loss": "kl", "temperature": 1}, "soft": {"loss": "kl", "temperature": 8}}, None
    )
    student, teacher = Signals(torch.randn(3, 3)), Signals(torch.randn(3, 3))
    parts = objective.shares(student, teacher, batch_of(3))
    expected = losses.kl(student.output, teacher.output, temperature=8).sum()
    torch.testing.assert_close(parts["soft"].total, expected)
    assert parts["sharp"].total != parts["soft"].total


def test_a_loss_that_only_starts_a_training_ends_by_itself() -> None:
    assert Term("fsp", TermConfig(loss="fsp")).config.until == 0.2
    assert Term("fsp", TermConfig(loss="fsp", until=1.0)).config.until == 1.0
    assert Term("fsp", TermConfig(loss="fsp", start=0.5)).config.until == 1.0
    assert Term("kl", TermConfig(loss="kl")).config.until == 1.0
