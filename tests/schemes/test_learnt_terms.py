"""Losses with parameters or memory inside a scheme and a loop: exact resumes, any number of processes."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from potstill import distributed
from potstill.batch import Batch
from potstill.errors import UserError
from potstill.losses.contrastive import Contrastive
from potstill.losses.factors import FactorTransfer
from potstill.matching.objective import Objective
from potstill.schemes import Offline
from potstill.train import TrainConfig
from tests.train import parts

TERMS: dict[str, dict[str, Any]] = {
    "contrastive": {"contrastive": {"embedding": 6, "num_negatives": 12, "temperature": 0.5}},
    "factor_transfer": {"factor_transfer": {"layers": ["0"], "weight": 5}},
    "variational_information": {"variational_information": {"layers": ["0"]}},
    "all": {
        "contrastive": {"embedding": 6, "num_negatives": 12, "temperature": 0.5, "from": 0.3},
        "factor_transfer": {"layers": ["0"], "weight": 5, "until": 0.6},
        "variational_information": {"layers": ["0"], "until": 0.6},
        "kl": {},
    },
}
every_term = pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"batch_size": 8, "learning_rate": 0.05, "warmup": 0.0, "steps": 20, **options})


def scheme_of(terms: dict[str, Any], *, samples: int | None = 48) -> Offline:
    torch.manual_seed(0)
    student, teacher = parts.network(2), parts.network(6)
    objective = Objective(terms, parts.supervised)
    return Offline(student, teacher, objective, example=batch_of(2), samples=samples).double()


def batch_of(rows: int, first: int = 0) -> Batch:
    return parts.in_float64(*parts.data().__getitems__(list(range(first, first + rows))), 0)


def state_of(scheme: Offline) -> dict[str, torch.Tensor]:
    return {name.replace(".module.", "."): tensor.clone() for name, tensor in scheme.state_dict().items()}


def interrupted_at(number: int) -> Any:
    """A ``prepare`` during whose batch ``number``, from 1, the user presses Ctrl-C."""
    seen: list[int] = []

    def prepare(*rows: Any) -> Batch:
        seen.append(1)
        if len(seen) == number:
            signal.raise_signal(signal.SIGINT)
        return parts.in_float64(*rows)

    return prepare


@pytest.mark.parametrize("cut", [1, 2, 11])
@every_term
def test_a_resumed_training_is_the_same_bit_for_bit(tmp_path: Path, terms: dict[str, Any], cut: int) -> None:
    whole, _, _ = parts.train_small(tmp_path / "whole", config(), terms=terms)
    broken, trained, _ = parts.train_small(
        tmp_path / "cut", config(), terms=terms, prepare=interrupted_at(cut)
    )
    assert trained.interrupted
    assert 0 < trained.steps < 20
    resumed, _, _ = parts.train_small(tmp_path / "cut", config(), terms=terms, resume=True)
    expected, found = state_of(whole), state_of(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(state_of(broken)[name], tensor) for name, tensor in expected.items())


def _one_of_two(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name, terms in TERMS.items():
        scheme, _, log = parts.train_small(Path(folder) / name, config(), terms=terms)
        found[name] = state_of(scheme), [row["parts"] for row in log.rows if "parts" in row]
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.stop()


def test_two_processes_equal_one(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath))
        multiprocessing.spawn(_one_of_two, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, terms in TERMS.items():
            scheme, _, log = parts.train_small(tmp_path / f"one {name} {rank}", config(), terms=terms)
            state, rows = both[name]
            for key, tensor in state_of(scheme).items():
                torch.testing.assert_close(state[key], tensor, rtol=0, atol=1e-9)
            expected = [row["parts"] for row in log.rows if "parts" in row]
            assert len(rows) == len(expected) == 20
            for mine, theirs in zip(expected, rows, strict=True):
                assert theirs == pytest.approx(mine, abs=1e-9)


def test_the_paraphraser_learns_first_and_then_stays_while_the_student_learns(tmp_path: Path) -> None:
    terms = {"factor_transfer": {"layers": ["0"], "weight": 5}}
    fresh = state_of(scheme_of(terms))
    first, trained, log = parts.train_small(tmp_path, config(), terms=terms, prepare=interrupted_at(2))
    assert trained.steps == 2  # a tenth of 20
    assert [sorted(row["parts"]) for row in log.rows if "parts" in row] == [["paraphraser"]] * 2
    last, _, log = parts.train_small(tmp_path, config(), terms=terms, resume=True)
    rows = [sorted(row["parts"]) for row in log.rows if "parts" in row]
    assert rows == [["factor_transfer", "labels"]] * 18
    for name, tensor in state_of(first).items():
        assert torch.equal(state_of(last)[name], tensor) == name.startswith("parts.paraphraser."), name
    assert any("paraphraser" in name for name in fresh)


def test_stages_parts_and_counts_of_factor_transfer() -> None:
    scheme, batch = scheme_of(TERMS["factor_transfer"]), batch_of(8)
    assert [(stage.name, stage.share, stage.phases) for stage in scheme.stages] == [
        ("paraphraser", 0.1, ("paraphraser",)),
        ("train", 0.9, ("train",)),
    ]
    first = scheme.trainable("paraphraser", "paraphraser")
    second = scheme.trainable("train", "train")
    assert list(first) == ["paraphraser"]
    assert list(second) == ["student"]
    theirs = [{id(p) for part in each.values() for p in part.parameters()} for each in (first, second)]
    assert not theirs[0] & theirs[1]
    assert theirs[0] | theirs[1] == {id(p) for p in scheme.parameters()}
    step = scheme(batch, "paraphraser")
    assert scheme.counts(batch, "paraphraser") == {"paraphraser": 8.0}
    step.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in first["paraphraser"].parameters())
    assert all(p.grad is None for p in second["student"].parameters())
    with pytest.raises(ValueError, match=r"the phases \['paraphraser', 'train'\], got 'generator'"):
        scheme(batch, "generator")


def test_masked_samples_count_for_nothing_in_the_paraphrasers_phase() -> None:
    scheme, batch = scheme_of(TERMS["factor_transfer"]), batch_of(8)
    where = torch.tensor([True, False, True, True, True, False, True, True])
    masked = Batch(batch.inputs, batch.target, where, batch.index)
    subset = Batch({"student": batch.inputs["student"][where]}, None, None, batch.index[where])
    assert scheme.counts(masked, "paraphraser") == {"paraphraser": 6.0}
    torch.testing.assert_close(scheme(masked, "paraphraser").loss, scheme(subset, "paraphraser").loss)


@every_term
def test_every_parameter_has_a_gradient_in_every_step(terms: dict[str, Any]) -> None:
    windows = {name: {**options, "from": 0.0, "until": 0.5} for name, options in terms.items()}
    for progress in (0.1, 0.9):
        scheme = scheme_of(windows)
        scheme.progress = progress
        scheme(batch_of(8)).loss.backward()
        student = scheme.trainable("train", "train")["student"]
        assert all(parameter.grad is not None for parameter in student.parameters())
        learnt = [parameter.grad for parameter in student.matchers.parameters()]  # type: ignore[union-attr]
        assert all(bool(gradient.any()) == (progress < 0.5) for gradient in learnt)


@every_term
def test_a_copy_learns_and_remembers_on_its_own(terms: dict[str, Any]) -> None:
    scheme, batch = scheme_of(terms), batch_of(8)
    other = copy.deepcopy(scheme)
    before = state_of(scheme)
    for stage in other.stages:
        for phase in stage.phases:
            learning = other.trainable(stage.name, phase).values()
            optimizer = torch.optim.SGD([p for part in learning for p in part.parameters()], lr=0.1)
            other.progress = 0.5
            other(batch, phase).loss.backward()
            optimizer.step()
    assert all(torch.equal(scheme.state_dict()[name], tensor) for name, tensor in before.items())
    changed = [name for name, tensor in before.items() if not torch.equal(other.state_dict()[name], tensor)]
    assert any("matchers" in name for name in changed)


def test_the_memory_follows_the_training_but_not_an_evaluation() -> None:
    scheme, batch = scheme_of(TERMS["contrastive"]), batch_of(8, first=3)
    contrast = next(module for module in scheme.modules() if isinstance(module, Contrastive))
    before = contrast.teacher_memory.clone()
    scheme.eval()
    scheme(batch)
    assert torch.equal(contrast.teacher_memory, before)
    scheme.train()
    scheme(batch)
    changed = (contrast.teacher_memory != before).any(dim=1).nonzero().flatten()
    assert changed.tolist() == list(range(3, 11))
    assert int(contrast.step) == 1


def test_ddp_does_not_send_the_memories_about() -> None:
    part = scheme_of(TERMS["contrastive"]).parts["student"]
    ignored = part._ddp_params_and_buffers_to_ignore
    assert isinstance(ignored, list)
    buffers = {name for name, _ in part.named_buffers()}
    assert set(ignored) == {name for name in buffers if name.startswith("matchers.")} != set()


@every_term
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_may_run_in_half_precision(terms: dict[str, Any], dtype: torch.dtype) -> None:
    scheme = scheme_of(terms).float()
    inputs = {"student": batch_of(8).inputs["student"].float()}
    batch = Batch(inputs, batch_of(8).target, None, torch.arange(8))
    scheme.progress = 0.5
    for stage in scheme.stages:
        with torch.autocast("cpu", dtype=dtype):
            step = scheme(batch, stage.phases[0])
        step.loss.backward()
        learnt = [part for name, part in step.parts.items() if name != "labels"]
        assert all(part.total.dtype == torch.float32 for part in learnt)
        assert bool(torch.isfinite(step.loss))


def test_what_cannot_be_is_said_at_its_key() -> None:
    with pytest.raises(UserError, match=r"^distill.contrastive: remembers every .* samples=.* got None"):
        scheme_of({"contrastive": {}}, samples=None)
    with pytest.raises(UserError, match=r"^distill.contrastive: index: .* 4 samples, 0 to 3, got 0 to 7"):
        scheme_of({"contrastive": {}}, samples=4)(batch_of(8))
    with pytest.raises(UserError, match=r"num_negative: unknown option; did you mean 'num_negatives'"):
        Objective({"contrastive": {"num_negative": 5}})
    with pytest.raises(UserError, match=r"^distill.factor_transfer.rate: must be <= 1, got 2"):
        Objective({"factor_transfer": {"rate": 2}})
    for option in ("samples", "variance", "index", "student_memory"):
        with pytest.raises(UserError, match=f"distill.contrastive.{option}: unknown option"):
            Objective({"contrastive": {option: 5}})


def test_options_reach_the_module_and_the_plan() -> None:
    scheme = scheme_of({"contrastive": {"momentum": 0.9}, "factor_transfer": {"layers": ["0"], "rate": 1}})
    contrast = next(module for module in scheme.modules() if isinstance(module, Contrastive))
    assert (contrast.momentum, contrast.num_negatives) == (0.9, 48)
    assert contrast.student_memory.shape == (48, 128)
    text = "\n".join(scheme.objective.describe())
    assert "embedding 128, num_negatives 16384, momentum 0.9" in text
    factors = next(module for module in scheme.modules() if isinstance(module, FactorTransfer))
    assert factors.paraphraser.encoder(torch.zeros(1, 6, 4, 4).double()).shape == (1, 6, 4, 4)
    paraphrasers = scheme.parts["paraphraser"].paraphrasers
    assert isinstance(paraphrasers, nn.ModuleDict)
    assert factors.paraphraser in paraphrasers.values()
