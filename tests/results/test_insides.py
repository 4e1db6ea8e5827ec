"""Likeness of layers against slow definitions, and bytes of tensors against a count by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.alive import Alive
from potstill.batch import Batch
from potstill.models.characters import tiny_llama
from potstill.report.content import ReportContent
from potstill.results.insides import alignments, looked_into, same_places
from potstill.run import run
from tests.books import recipe_beside_a_book


def slow_dependence(first: Tensor, second: Tensor) -> float:
    """The estimate without bias as a mean over all ordered quadruples of different samples."""
    count, total, number = len(first), 0.0, 0
    for i in range(count):
        for j in range(count):
            for q in range(count):
                for r in range(count):
                    if len({i, j, q, r}) == 4:
                        number += 1
                        total += float(first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q]))
    return total / number


def test_alignment_is_that_of_all_quadruples() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (torch.randn(7, width, generator=random, dtype=torch.float64) for width in (3, 5))
    one = one + other[:, :3]
    kernels = [each @ each.T for each in (one, other)]
    expected = slow_dependence(*kernels) / np.sqrt(
        slow_dependence(kernels[0], kernels[0]) * slow_dependence(kernels[1], kernels[1])
    )
    assert alignments([one], [other])[0][0] == pytest.approx(expected, rel=1e-9)


def test_alignment_knows_no_rotation_and_finds_nothing_in_noise() -> None:
    random = torch.Generator().manual_seed(0)
    some = torch.randn(40, 30, generator=random)
    turned = some @ torch.linalg.qr(torch.randn(30, 30, generator=random)).Q * 5 + 3
    assert alignments([some], [turned])[0][0] == pytest.approx(1.0, abs=1e-5)
    others = [torch.randn(40, 30, generator=random) for _ in range(30)]
    assert abs(np.mean(alignments([some], others))) < 0.03  # the plain estimate would say 0.43
    with pytest.raises(ValueError, match="4 or more"):
        alignments([some[:3]], [some[:3]])


def test_attention_in_the_same_places() -> None:
    one, other = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.25, 0.75]])
    assert same_places([one, other], [other]) == [[0.375], [1.0]]


def test_bytes_at_once() -> None:
    weight = torch.ones(10, 10)
    with Alive() as alive:
        made = weight.t() @ weight  # 400 bytes; the view of the weight has none of its own
        made.add_(1)
        kept = made[:1]
        del made  # its storage stays with the view
        assert alive.peak == 400
        del kept
        _ = torch.empty(25)
    assert alive.peak == 400


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_network_is_like_itself_layer_by_layer_and_stays_as_it_was(implementation: str) -> None:
    torch.manual_seed(0)
    network = tiny_llama(20, layers=3, hidden=16, heads=2, initializer_range=0.4)
    network.set_attn_implementation(implementation)
    ids = torch.randint(20, (3, 24))
    where = torch.arange(24).expand(3, 24) < 20
    batch = Batch({"student": {"input_ids": ids}}, None, where, torch.arange(3))
    seen = looked_into(network, batch)
    assert [tuple(each.shape) for each in seen["hidden"]] == [(60, 16)] * 3
    assert [tuple(each.shape) for each in seen["attention"]] == [(60, 24)] * 3
    for values in (
        alignments(seen["hidden"], seen["hidden"]),
        same_places(seen["attention"], seen["attention"]),
    ):
        assert np.diag(values) == pytest.approx(1, abs=1e-5)
        assert np.array(values)[~np.eye(3, dtype=bool)].max() < 0.99
    assert network.config._attn_implementation == implementation
    assert network.training


RECIPE = """task: language_modeling
data: {path: book.txt, split_at: "^# ", tokenizer: characters, max_length: 96}
teacher: {model: "potstill.models.characters:tiny_llama", arguments: {layers: 2, hidden: 16, heads: 2}}
student: {model: teacher, init: {layers: [0]}}
correct: {steps: 20, learning_rate: 0.02}
train: {steps: 2, batch_size: 4, optimizer: adamw, learning_rate: 0.001, precision: float32}
"""


def test_a_report_tells_layers_and_what_writing_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_beside_a_book(RECIPE, tmp_path, monkeypatch)
    result = run(recipe, out=tmp_path / "run", echo=lambda line: None)
    content = ReportContent.load(tmp_path / "run" / "report.json")
    for arm in ("control", "student"):
        alike = content.insides[arm]
        assert [(len(rows), len(rows[0])) for rows in (alike["hidden"], alike["attention"])] == [
            (1, 2),
            (1, 2),
        ]
        assert all(0 < value < 1 for value in (*alike["hidden"][0], *alike["attention"][0]))
    assert all(bin.agreement is not None for bin in content.divergences["position"]["student"])
    costs = {name: model["writing"] for name, model in result.data["models"].items()}
    assert set(costs) == {"teacher", "control", "student"}
    assert costs["student"]["peak_bytes"] == costs["control"]["peak_bytes"] < costs["teacher"]["peak_bytes"]
    assert costs["student"]["tokens_per_second"] > 0
    page = result.report.read_text(encoding="utf-8")
    assert 'id="insides"' in page
    assert "Tokens a second" in page
    assert "Drafts accepted" in page
    assert "same</span>" in page
