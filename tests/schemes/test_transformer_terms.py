"""Terms inside transformers, from a BERT of more layers, with padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.schemes import Offline

transformers = pytest.importorskip("transformers")
VALID = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False], [True] * 5])


def supervised(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None
    return cross_entropy(signals.output, batch.target, reduction="none")


def bert(layers: int, heads: int = 2, attention: str = "eager") -> nn.Module:
    torch.manual_seed(layers)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8 * layers,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=3,
        attn_implementation=attention,
    )
    return transformers.BertForSequenceClassification(config)


def batch_of(where: Tensor | None = None) -> Batch:
    ids = torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(0))
    return Batch({"student": ids}, torch.arange(4) % 3, where, torch.arange(4))


def scheme_of(terms: dict[str, Any], where: Tensor | None = None) -> Offline:
    objective = Objective(terms, None)
    return Offline(bert(2), bert(4, heads=4), objective, example=batch_of(where))


TERMS: list[dict[str, Any]] = [
    {"attention_maps": {}},
    {"attention_maps": {"variant": "mse", "weight": 25}},
    {"minilm_relation": {}},
    {
        "minilm_relation": {
            "layers": {
                "bert.encoder.layer.1.attention.self.value": "bert.encoder.layer.3.attention.self.value"
            },
            "relation_heads": 2,
        }
    },
    {"gradient_attention": {"layers": ["bert.embeddings"], "variant": "map"}},
    {"rkd_distance": {}},
]


@pytest.mark.parametrize("terms", TERMS)
def test_a_term_trains_and_falls(terms: dict[str, Any]) -> None:
    scheme, batch = scheme_of(terms), batch_of()
    scheme.eval()  # without dropout, so that the values of steps can be compared
    optimizer = torch.optim.Adam(scheme.parameters(), lr=3e-3)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        step = scheme(batch)
        step.loss.backward()
        optimizer.step()
        values.append(float(step.loss.detach()))
    assert values[-1] < values[0]


@pytest.mark.parametrize("name", ["attention_maps", "minilm_relation"])
def test_padding_of_a_batch_does_not_count(name: str) -> None:
    scheme = scheme_of({name: {}}, VALID).eval()
    batch = batch_of(VALID)
    part = scheme(batch).parts[name]
    assert part.count == 4
    teacher = scheme.teacher
    assert teacher is not None
    student, answer = scheme(batch).output, teacher(batch)
    term = scheme.objective.terms[name]
    total = sum(
        term.function(
            student.taps[pair.student], answer.taps[pair.teacher], where=VALID, **term.options
        ).sum()
        for pair in scheme.objective.plan
    ) / len(scheme.objective.plan)
    torch.testing.assert_close(part.total, total)
    assert float(part.total.detach()) != float(scheme(batch_of()).parts[name].total.detach())


def test_attention_of_a_fused_student_is_refused_when_the_plan_is_made() -> None:
    with pytest.raises(UserError, match=r"^distill.attention_maps.layers: .*in the student; .*'eager'"):
        Offline(bert(2, attention="sdpa"), bert(4), Objective({"attention_maps": {}}), example=batch_of())
