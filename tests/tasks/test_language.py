"""Language modelling: counted by tokens over any batches, answers against slow formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from potstill.data.documents import Document
from potstill.data.encoding import Encoded, encode
from potstill.data.loader import Loader
from potstill.data.packing import pack
from potstill.data.tokens import IGNORED, TokenSet
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.metrics.verdict import mean_interval
from potstill.models.causal import packable
from potstill.models.characters import character_tokenizer, tiny_llama
from potstill.schemes import Offline
from potstill.tasks import LanguageModeling
from potstill.train import TrainConfig, train
from potstill.train.observe import Many
from potstill.train.precision import choose

TOKENS = 20


def token_set(lengths: list[int], length: int = 12, *, together: bool = True, seed: int = 0) -> TokenSet:
    """Random documents; of every third only the second half is learnt."""
    random = np.random.default_rng(seed)
    documents = [
        Encoded(
            random.integers(1, TOKENS, size).tolist(),
            [number % 3 > 0 or place >= size // 2 for place in range(size)],
        )
        for number, size in enumerate(lengths)
    ]
    return TokenSet(pack(documents, length, padding=0, together=together), beside_teacher=True)


def network(seed: int, layers: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    made = tiny_llama(TOKENS, layers=layers, hidden=16, heads=2, initializer_range=0.3)
    assert packable(made, TOKENS)
    return made


def task(teacher: nn.Module | None = None) -> LanguageModeling:
    return LanguageModeling(
        tokenizer=character_tokenizer("abc"),
        vocabulary=TOKENS,
        teacher=teacher,
        frequencies=np.arange(TOKENS),
    )


def test_a_batch_counts_what_follows_within_its_document() -> None:
    part = TokenSet(pack([Encoded([5, 6, 7], [True] * 3), Encoded([8, 9], [True] * 2)], 6, padding=0))
    batch = task().training_batch(*part.__getitems__([0]), 3)
    assert part.__getitems__([0])[1].tolist() == [[6, 7, IGNORED, 9, IGNORED, IGNORED]]
    assert batch.where is not None
    assert batch.where.tolist() == [[True, True, False, True, False, False]]
    assert batch.view == 3
    objective = Objective({"kl": {}}, task().supervised)
    assert objective.counts(batch) == {"labels": 3.0, "kl": 3.0}


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "generalized_js", "total_variation"])
def test_losses_are_those_of_each_document_alone(name: str) -> None:
    lengths = [5, 4, 9, 3]
    side_by_side, apart = token_set(lengths), token_set(lengths, together=False)
    assert len(side_by_side) < len(apart) == 4
    totals = []
    for part in (side_by_side, apart):
        scheme = Offline(
            network(0), network(1), Objective({"labels": {"weight": 1}, name: {}}, task().supervised)
        )
        step = scheme(task().training_batch(*part.__getitems__(range(len(part))), 0))
        totals.append({key: (share.total.item(), share.count) for key, share in step.parts.items()})
    for key, (total, count) in totals[0].items():
        assert totals[1][key] == (pytest.approx(total, rel=1e-5), count)
        assert count == side_by_side.tokens


def test_the_supervised_loss_against_the_formula_and_its_gradient_at_what_does_not_count() -> None:
    part = token_set([5, 4])
    batch = task().training_batch(*part.__getitems__([0]), 0)
    logits = torch.randn(1, 12, TOKENS, requires_grad=True)
    from potstill.batch import Signals

    values = task().supervised(Signals(logits), batch)
    assert batch.target is not None
    expected = cross_entropy(logits[0], batch.target[0], reduction="none") * batch.where
    torch.testing.assert_close(values, expected)
    values.sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad[~batch.where] == 0).all())


class Silent(Many):
    """Nobody is told."""


def trained_with(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """A student after three steps of SGD on rows with very different numbers of learnt tokens."""
    part = token_set([2, 12, 3, 12, 2, 11, 2, 2] * 3, together=False)
    counts = part.packed.counted.sum(axis=1)
    assert counts.min() == 1
    assert counts.max() > 10
    student = network(0).double()
    scheme = Offline(
        student, network(1).double(), Objective({"labels": {"weight": 0.5}, "kl": {}}, task().supervised)
    )
    config = TrainConfig(steps=3, learning_rate=0.5, warmup=0.0, precision="float32", **options)
    found = train(
        scheme,
        Loader(part, batch_size=config.batch_size, seed=0),
        task().training_batch,
        config,
        precision=choose("float32", torch.device("cpu"), student),
        device=torch.device("cpu"),
        folder=folder,
        observer=Silent(),
        evaluate=lambda networks: {name: {"perplexity": 1.0} for name in networks},
        metric="perplexity",
        resume=False,
        seed=0,
    )
    return found.last_state


def test_one_batch_of_eight_equals_eight_of_one(tmp_path: Path) -> None:
    whole = trained_with(tmp_path / "whole", batch_size=8, accumulate=1)
    pieces = trained_with(tmp_path / "pieces", batch_size=1, accumulate=8)
    start = network(0).double().state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=1e-6, atol=1e-6)
    assert any(float((whole[name] - start[name]).abs().max()) > 1e-2 for name in whole)


def test_answers_against_a_loop_over_tokens() -> None:
    teacher, student = network(1), network(0)
    part = token_set([5, 4, 9, 3])
    answers = task(teacher).predict(student, Loader(part, batch_size=1, seed=0, shuffle=False), "student")
    assert answers.shape == (len(part), 12, 4)
    samples, target, _ = part.__getitems__(range(len(part)))
    with torch.no_grad():
        ours, theirs = (each.eval()(**samples).logits.double() for each in (student, teacher))
    for row in range(len(part)):
        for place in range(12):
            loss, kl, overlap, choice = answers[row, place].double()
            if target[row, place] == IGNORED:
                assert (loss, kl, overlap, choice) == (0, 0, 0, 0)
                continue
            mine, its = ours[row, place].softmax(0), theirs[row, place].softmax(0)
            assert float(loss) == pytest.approx(-math.log(mine[target[row, place]]), rel=1e-4)
            assert float(kl) == pytest.approx(
                float(kl_div(mine.log(), its, reduction="sum")), rel=1e-3, abs=1e-6
            )
            assert float(overlap) == pytest.approx(float(torch.minimum(mine, its).sum()), rel=1e-5)
            assert int(choice) == int(mine.argmax())


def test_figures_of_answers() -> None:
    teacher, student = network(1), network(0)
    part, made = token_set([5, 4, 9, 3]), task(teacher)
    loader = Loader(part, batch_size=2, seed=0, shuffle=False, drop_last=False)
    ours, theirs = (
        made.predict(each, loader, role).numpy()
        for each, role in ((student, "student"), (teacher, "teacher"))
    )
    where = part.packed.counted
    assert made.value(ours, part) == pytest.approx(math.exp(ours[..., 0][where].mean()))
    assert made.score(torch.from_numpy(ours), loader)["perplexity"] == pytest.approx(made.value(ours, part))
    scores = made.per_sample(np.stack([ours, ours]), part)
    assert scores.shape == (2, 4)
    assert math.exp(-scores[0].mean()) == pytest.approx(made.value(ours, part))
    low, high = made.interval(ours[None], part)
    assert low < made.value(ours, part) < high
    assert (-math.log(high), -math.log(low)) == pytest.approx(mean_interval(scores[:1]))
    beside, itself = made.figures(ours[None], theirs, part)
    assert beside["kl_to_teacher"] == pytest.approx(ours[..., 1][where].mean(), rel=1e-5)
    assert 0 < beside["acceptance"] < 1
    assert beside["agreement"] == pytest.approx((ours[..., 3] == theirs[..., 3])[where].mean())
    assert itself == {"tokens": int(where.sum()), "documents": 4}
    alone, _ = made.figures(theirs[None], theirs, part)
    assert alone == {"agreement": 1.0, "kl_to_teacher": 0.0, "acceptance": 1.0}
    assert made.agreement(ours, ours) == 1.0
    joined = made.joined([ours, theirs])
    assert made.value(joined, part) < max(made.value(ours, part), made.value(theirs, part))


def test_evidence_by_position_and_frequency() -> None:
    teacher, student = network(1), network(0)
    part, made = token_set([5, 4, 9, 3]), task(teacher)
    answers = made.predict(student, Loader(part, batch_size=2, seed=0, shuffle=False), "student").numpy()[
        None
    ]
    found = made.evidence({"teacher": answers, "student": answers, "control": answers}, part, 1.0)[
        "divergences"
    ]
    for name in ("position", "frequency"):
        assert set(found[name]) == {"student", "control"}
        rows = found[name]["student"]
        assert sum(row.count for row in rows) == part.tokens
        mean = sum(row.mean * row.count for row in rows) / part.tokens
        assert mean == pytest.approx(answers[0, ..., 1][part.packed.counted].mean(), rel=1e-5)
    assert made.evidence({"student": answers}, part, 1.0) == {}


def test_a_teacher_that_knows_nothing_is_refused() -> None:
    part = token_set([5, 4])
    blind = np.full((*part.packed.counted.shape, 4), math.log(TOKENS), dtype=np.float32)
    with pytest.raises(UserError, match="perplexity below the 20 of a random choice"):
        task().check_teacher(blind, part)
    assert task().check_teacher(blind - 1, part) == pytest.approx(TOKENS / math.e, rel=1e-5)
    blind[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="finite"):
        task().check_teacher(blind, part)


def test_texts_become_rows_whose_tokens_decode_to_them() -> None:
    tokenizer = character_tokenizer("to be or not")
    (encoded,) = encode(tokenizer, [Document("here", "to be or not to be")])
    part = TokenSet(pack([encoded], 8, padding=0))
    rows = [tokenizer.decode(row) for row in part.packed.tokens]
    assert sorted(rows) == sorted(["to be or", "r not to", "o be<end>" + "<end>" * 3])
