"""A teacher behind a cache: schemes see what is stored, and only what is missing is asked for."""

from __future__ import annotations

import copy
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from potstill.batch import Batch, Inputs
from potstill.cache import CacheConfig, Cached, Identity, Vault
from potstill.cache.store import Store
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.matching.recording import LayerShape
from potstill.schemes import Offline
from potstill.teachers import Frozen
from tests.contracts.test_schemes import batch_of, network, supervised

FACTS = {"teacher": "four", "weights": "abc"}
TERMS = {"kl": {"temperature": 2}, "attention_transfer": {}}


class Bench:
    """A cache in a folder with what it says."""

    def __init__(self, folder: Path, **facts: str) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.loads = 0
        self.facts = {**FACTS, **facts}
        torch.manual_seed(5)
        self.plain = network(4)

    def vault(self, paths: Sequence[str] = (), **config: Any) -> Vault:
        return Vault(
            self.folder,
            Identity({**self.facts, "layers": ", ".join(paths)}),
            CacheConfig(**{"views": 2, **config}),
            samples=40,
            temperatures=(2.0,),
            say=self.lines.append,
        )

    def load(self) -> nn.Module:
        self.loads += 1
        return self.plain

    def teacher(self, **config: Any) -> Cached:
        return Cached(self.load, Place(self, config))


@dataclass
class Place:
    """Where a bench keeps what a teacher answers."""

    bench: Bench
    config: dict[str, Any]

    def vault(self, layers: Sequence[str]) -> Vault:
        return self.bench.vault(layers, **self.config)

    def layers(self, inputs: Inputs, found: Callable[[], Sequence[LayerShape]]) -> Sequence[LayerShape]:
        return found()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "cache")


def rows(batch: Batch, chosen: list[int], view: int = 0) -> Batch:
    place = torch.tensor(chosen)
    inputs = {role: tensor[place] for role, tensor in batch.inputs.items()}
    target = None if batch.target is None else batch.target[place]
    return Batch(inputs, target, None, batch.index[place], view)


def test_answers_are_close_and_the_same_from_then_on(bench: Bench) -> None:
    batch, teacher = batch_of(32), bench.teacher()
    first = teacher(batch)
    live = Frozen(bench.plain)(batch)
    step = (live.output.amax(dim=1) - live.output.amin(dim=1)) / 255
    assert bool(((first.output - live.output).abs() <= 0.51 * step[:, None] + 1e-3).all())
    assert not torch.equal(first.output, live.output)  # the first time, too, what is stored is what counts
    again = bench.teacher()
    assert torch.equal(again(batch).output, first.output)
    assert (teacher.asked, again.asked) == (32, 0)
    shuffled = [31, 4, 4, 17]
    assert torch.equal(again(rows(batch, shuffled)).output, first.output[shuffled])
    assert again.asked == 0


def test_only_what_is_missing_is_asked_for(bench: Bench) -> None:
    batch, teacher = batch_of(32), bench.teacher()
    teacher(rows(batch, list(range(20))))
    whole = teacher(batch)
    assert teacher.asked == 32
    assert torch.equal(bench.teacher()(batch).output, whole.output)
    teacher(rows(batch, [3], view=1))
    assert teacher.asked == 33
    teacher(rows(batch, [3], view=2))  # two views are stored: the third is the first again
    assert teacher.asked == 33


def test_a_batch_that_is_mostly_missing_is_computed_whole(bench: Bench) -> None:
    batch, teacher = batch_of(32), bench.teacher()
    kept = teacher(rows(batch, [0, 1]))
    found = teacher(batch)
    assert teacher.asked == 34
    assert torch.equal(found.output[:2], kept.output)


def scheme(teacher: nn.Module, terms: dict[str, Any]) -> Offline:
    torch.manual_seed(1)
    return Offline(network(2), teacher, Objective(terms, supervised), example=batch_of(2))


@pytest.mark.parametrize("taps", ["float16", "affine8"])
def test_a_scheme_cannot_tell(bench: Bench, taps: str) -> None:
    batch = batch_of(32)
    live = scheme(Frozen(copy.deepcopy(bench.plain)), TERMS)(batch)
    for _ in range(2):
        cached = scheme(bench.teacher(taps=taps), TERMS)
        step = cached(batch)
        step.loss.backward()
        for name, part in live.parts.items():
            assert step.parts[name].mean.item() == pytest.approx(part.mean.item(), rel=0.02), name
    assert isinstance(cached.teacher, Cached)
    assert cached.teacher.asked == 0
    assert not any("teacher" in name for name in cached.state_dict())
    assert not cached.train().teacher.training  # type: ignore[union-attr]


def test_a_scheme_of_outputs_never_loads_the_teacher(bench: Bench) -> None:
    batch = batch_of(32)
    bench.teacher()(batch)
    bench.loads = 0
    scheme(bench.teacher(), {"kl": {}})(batch)
    assert bench.loads == 0


def test_gradients_by_the_input_are_refused_with_the_reason(bench: Bench) -> None:
    with pytest.raises(UserError, match=r"teacher\.cache: .*gradient by its input.*only the live teacher"):
        scheme(bench.teacher(), {"gradient_attention": {}})


@pytest.mark.parametrize("how", ["flipped", "truncated", "removed"])
def test_damage_is_noticed_said_and_mended(bench: Bench, how: str) -> None:
    batch = batch_of(32)
    first = bench.teacher()(batch)
    path = next(bench.folder.glob("*.bin"))
    width = path.stat().st_size // 40
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[5 * width + 2] ^= 64
    path.write_bytes(content[: 10 * width] if how == "truncated" else content)
    if how == "removed":
        path.unlink()
    bench.lines.clear()
    again = bench.teacher()
    found = again(batch)
    torch.testing.assert_close(found.output, first.output, rtol=0, atol=2e-2)
    kept = torch.ones(32, dtype=torch.bool)
    kept[{"flipped": slice(5, 6), "truncated": slice(10, 32), "removed": slice(None)}[how]] = False
    assert torch.equal(found.output[kept], first.output[kept])
    assert ("1 damaged records of view 0" in "".join(bench.lines)) is (how == "flipped")
    assert again.asked == (1 if how == "flipped" else 32)
    assert torch.equal(bench.teacher()(batch).output, found.output)


@pytest.mark.parametrize("when", ["header", "records"])
def test_a_full_disk_is_said_once_and_training_goes_on(
    bench: Bench, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    batch, teacher = batch_of(32), bench.teacher()
    expected = Bench(bench.folder.parent / "other").teacher()(batch)
    if when == "records":
        monkeypatch.setattr(Store, "write", full)
    else:
        monkeypatch.setattr("potstill.files.os.fsync", full)
    for _ in range(3):
        assert torch.equal(teacher(batch).output, expected.output)
    assert teacher.asked == 96
    assert len(bench.lines) == 1
    assert "full" in bench.lines[0] or "No space left" in bench.lines[0]
    assert "live teacher" in bench.lines[0]


def test_another_teachers_cache_is_refused_with_both_fingerprints(bench: Bench) -> None:
    bench.teacher()(batch_of(8))
    other = Bench(bench.folder, weights="xyz")
    mine, theirs = (Identity({**each.facts, "layers": ""}).digest for each in (bench, other))
    with pytest.raises(UserError, match=rf"another weights: abc there, xyz here .*{mine} and {theirs}"):
        other.vault()


def test_a_damaged_header_is_refused(bench: Bench) -> None:
    bench.teacher()(batch_of(8))
    header = bench.folder / "header.json"
    header.write_text(header.read_text().replace("affine8", "float16"))
    with pytest.raises(UserError, match=r"header\.json is damaged"):
        bench.vault()
    header.write_text(header.read_text()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        bench.vault()


def test_the_bound_decides_the_code_and_holds_for_those_who_come_later(bench: Bench) -> None:
    batch = batch_of(32)
    bench.teacher(fidelity=1e-3)(batch)
    vault = bench.vault(fidelity=1e-3)
    assert vault.layout is not None
    assert vault.layout.fields[0].code.name == "affine8"
    kl = vault.header["fidelity"]["kl"]["2"]
    assert 0 < kl < 1e-3 / 2
    with pytest.raises(UserError, match=r"teacher\.cache\.fidelity: .*asks for"):
        bench.vault(fidelity=kl / 2)
    exact = Bench(bench.folder.parent / "exact")
    found = exact.teacher(fidelity=0.0)(batch)
    assert torch.equal(found.output, Frozen(exact.plain)(batch).output)
    assert exact.vault(fidelity=0.0).figures()["fidelity"]["kl"]["2"] == 0.0


def test_of_several_processes_the_first_header_counts(bench: Bench) -> None:
    first, second = bench.teacher(), bench.teacher(fidelity=0.0)
    assert first.vault.layout is second.vault.layout is None
    batch = batch_of(32)
    kept = first(rows(batch, list(range(16))))
    with pytest.raises(UserError, match=r"teacher\.cache\.fidelity"):
        second(rows(batch, list(range(16, 32))))
    third = bench.teacher()
    assert torch.equal(third(batch).output[:16], kept.output)


def test_what_cannot_be_stored_is_refused(bench: Bench) -> None:
    batch, teacher = batch_of(8), bench.teacher()
    teacher(batch)
    bench.plain[-1].bias.data[0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity"):
        teacher(replace(batch, view=1))


def test_a_store_that_may_not_be_written_only_looks(bench: Bench) -> None:
    batch, looking = batch_of(32), bench.teacher()
    looking.vault.writing = False
    assert torch.equal(looking(batch).output, Frozen(bench.plain)(batch).output)
    assert not bench.folder.exists()


def test_a_manifest_is_for_as_many_views_as_it_says(bench: Bench) -> None:
    teacher = bench.teacher()
    everything = Batch({"student": torch.randn(40, 1, 8, 8)}, None, None, torch.arange(40))
    for view in range(2):
        teacher(replace(everything, view=view))
    assert [len(teacher.vault.missing(view)) for view in range(2)] == [0, 0]
    assert teacher.vault.manifest() is None
    teacher.vault.finish({"accuracy": 0.5})
    found = bench.vault().manifest()
    assert found is not None
    assert found["teacher"] == {"accuracy": 0.5}
    assert found["bytes"] == 3 + 4 + 1 + 4
    assert found["fidelity"]["measured"] == 80
    assert bench.vault(views=1).manifest() is not None
    assert bench.vault(views=3).manifest() is None


def answers_in_float16(values: torch.Tensor) -> np.ndarray[Any, Any]:
    return values.half().float().numpy()


def test_layers_come_back_in_their_shape_and_type(bench: Bench) -> None:
    batch = batch_of(16)
    live = Frozen(bench.plain, ["0", "1"])(batch)
    for _ in range(2):
        found = bench.teacher().tapping(["0", "1"])(batch)
        for path, tensor in live.taps.items():
            assert np.array_equal(found.taps[path].numpy(), answers_in_float16(tensor))
            assert found.taps[path].dtype == tensor.dtype


def test_a_layers_mean_is_stored_where_nothing_else_is_asked(bench: Bench) -> None:
    batch = batch_of(16)
    live = Frozen(bench.plain, ["0", "1"])(batch)
    for _ in range(2):
        teacher = bench.teacher().tapping(["0", "1"], pooled={"1"})
        found = teacher(batch)
        assert np.array_equal(found.taps["0"].numpy(), answers_in_float16(live.taps["0"]))
        mean = live.taps["1"].mean(dim=(2, 3))
        assert np.array_equal(found.taps["1"].numpy(), answers_in_float16(mean))
    assert teacher.asked == 0
    assert teacher.vault.identity.facts["layers"] == "0, 1 (mean)"
