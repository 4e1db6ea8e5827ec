"""Perplexity over documents, and closeness to a teacher, against slow formulas."""

import numpy as np
import pytest
import torch

from potstill.metrics.perplexity import document_scores, document_sums, means_by, perplexity, token_closeness
from potstill.metrics.verdict import compare


def test_sums_over_documents_against_a_loop():
    random = np.random.default_rng(0)
    values, counted = random.normal(size=(4, 7)), random.random((4, 7)) < 0.6
    documents = random.integers(0, 5, (4, 7))
    sums, counts = document_sums(values, counted, documents)
    expected = [
        (values[counted & (documents == each)].sum(), (counted & (documents == each)).sum())
        for each in range(5)
    ]
    np.testing.assert_allclose(sums, [total for total, _ in expected])
    np.testing.assert_array_equal(counts, [count for _, count in expected])


def test_the_mean_of_scores_is_that_of_tokens_and_their_variance_that_of_the_ratio():
    random = np.random.default_rng(1)
    counts = random.integers(5, 50, 4000).astype(float)
    losses = random.gamma(3.0, 1.0, 4000) * counts
    scores = document_scores(losses, counts)
    assert -scores.mean() == pytest.approx(losses.sum() / counts.sum())
    drawn = [random.integers(0, 4000, 4000) for _ in range(400)]
    bootstrap = np.std([losses[rows].sum() / counts[rows].sum() for rows in drawn])
    assert scores.std() / np.sqrt(4000) == pytest.approx(bootstrap, rel=0.1)


def test_perplexity_golden():
    found = perplexity([2.0, 2.5, 6.0], [2.0, 2.0, 4.0])
    assert found.value == pytest.approx(np.exp(10.5 / 8))
    assert (found.tokens, found.documents) == (8, 3)
    low, high = found.interval
    assert low < found.value < high


def test_a_model_that_is_better_on_every_document_wins_the_paired_comparison():
    counts = np.array([10.0, 20.0, 15.0, 40.0])
    losses = counts * np.array([1.0, 5.0, 3.0, 2.0])
    better = document_scores((losses - 0.1 * counts)[None], counts)
    verdict = compare(better, document_scores(losses[None], counts))
    assert verdict.verdict == "better"
    assert verdict.gain == pytest.approx(0.1)


def test_closeness_against_the_definitions():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 6), torch.randn(5, 6)
    found = token_closeness(student, teacher)
    ours, theirs = student.double().softmax(-1), teacher.double().softmax(-1)
    torch.testing.assert_close(found["kl"].double(), (theirs * (theirs / ours).log()).sum(-1))
    torch.testing.assert_close(found["overlap"].double(), 1 - (ours - theirs).abs().sum(-1) / 2)
    torch.testing.assert_close(found["agreement"], (student.argmax(-1) == teacher.argmax(-1)).float())
    same = token_closeness(teacher, teacher)
    torch.testing.assert_close(same["overlap"], torch.ones(5))
    torch.testing.assert_close(same["kl"], torch.zeros(5))


def test_the_overlap_is_the_share_of_drafts_that_speculative_sampling_accepts():
    student, teacher = torch.tensor([0.2, -1.0, 1.5]), torch.tensor([1.0, 0.3, -0.5])
    draft, target = student.softmax(0), teacher.softmax(0)
    generator = torch.Generator().manual_seed(0)
    drafts = torch.multinomial(draft, 200_000, replacement=True, generator=generator)
    accepted = torch.rand(len(drafts), generator=generator) < (target / draft)[drafts]
    assert float(token_closeness(student, teacher)["overlap"]) == pytest.approx(
        float(accepted.float().mean()), abs=0.005
    )


def test_means_between_edges():
    rows = means_by([1.0, 2.0, 3.0, 10.0], [0, 1, 1, 70], [0, 1, 4, 64])
    assert rows == [
        {"start": 0, "mean": 1.0, "count": 1},
        {"start": 1, "mean": 2.5, "count": 2},
        {"start": 64, "mean": 10.0, "count": 1},
    ]
