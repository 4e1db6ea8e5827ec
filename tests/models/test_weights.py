"""Weights in and out: what fits loads, what does not is named, and nothing is ever unpickled."""

from __future__ import annotations

import collections
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from potstill.errors import UserError
from potstill.models import fingerprint, load_weights, save_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def equal(first: nn.Module, second: nn.Module) -> bool:
    both = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in both)


def test_saved_weights_load_to_equal_ones(tmp_path: Path) -> None:
    one, two = network(), network()
    save_weights(one, tmp_path / "w.safetensors", {"seed": "3"})
    load_weights(two, tmp_path / "w.safetensors", "teacher.weights")
    assert equal(one, two)
    with safe_open(tmp_path / "w.safetensors", "pt") as stored:
        assert stored.metadata() == {"seed": "3"}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("nest", [None, "state_dict", "model", "both"])
def test_checkpoints_of_all_shapes_load(tmp_path: Path, prefix: str, nest: str | None) -> None:
    one, two = network(), network()
    state: Any = collections.OrderedDict((prefix + name, tensor) for name, tensor in one.state_dict().items())
    if nest == "both":
        state = {"epoch": 3, "model": {"state_dict": state}}
    elif nest:
        state = {nest: state, "epoch": 3, "best": 0.5}
    torch.save(state, tmp_path / "w.pt")
    load_weights(two, tmp_path / "w.pt", "teacher.weights")
    assert equal(one, two)


def test_half_precision_is_cast_and_counters_may_be_missing(tmp_path: Path) -> None:
    one, two = network(), network()
    state = {name: tensor.half() for name, tensor in one.state_dict().items() if "tracked" not in name}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors", "teacher.weights")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in two.state_dict().values())
    torch.testing.assert_close(two.state_dict()["3.weight"], one.state_dict()["3.weight"].half().float())


def test_shared_tensors_are_saved(tmp_path: Path) -> None:
    one, two = (nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}) for _ in range(2))
    one["b"].weight = one["a"].weight
    save_weights(one, tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors", "w")
    assert torch.equal(two["b"].weight, one["a"].weight)


def test_a_full_network_that_was_pickled_is_not_loaded(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "net.pt")
    with pytest.raises(UserError, match="would run code, which Potstill never does"):
        load_weights(network(), tmp_path / "net.pt", "teacher.weights")


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("beside", [False, True])
def test_code_in_a_pickle_never_runs(tmp_path: Path, protocol: int, beside: bool) -> None:
    code = Code(tmp_path / "ran")
    content = {"state_dict": dict(network().state_dict()), "args": code} if beside else code
    (tmp_path / "w.pt").write_bytes(pickle.dumps(content, protocol=protocol))
    message = "damaged or no checkpoint: not written by torch" if protocol < 2 else "would run code"
    with pytest.raises(UserError, match=message):
        load_weights(network(), tmp_path / "w.pt", "teacher.weights")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_name_is_told_on_one_line(tmp_path: Path) -> None:
    for state in ({"convolution\n.weight": torch.ones(2)}, {"some\nthing": 1}):
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(UserError) as caught:
            load_weights(network(), tmp_path / "w.pt", "teacher.weights")
        assert "\n" not in str(caught.value)
        assert "\\n" in str(caught.value)


@pytest.mark.parametrize("text", ["<!DOCTYPE html>", "version https://git-lfs.github.com/spec/v1"])
def test_text_is_not_taken_for_code(tmp_path: Path, text: str) -> None:
    (tmp_path / "w.pt").write_text(text)
    with pytest.raises(UserError, match=r"w\.pt is damaged or no checkpoint: not written by torch$"):
        load_weights(network(), tmp_path / "w.pt", "teacher.weights")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_flipped_and_missing_bytes_never_surprise(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_weights(network(), path)
    else:
        torch.save(network().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content, rng = path.read_bytes(), random.Random(0)
    refused: list[str] = []
    for number in range(300):
        damaged = bytearray(content)
        if number % 3:
            for _ in range(rng.choice([1, 3, 20])):
                damaged[rng.randrange(min(len(damaged), 500))] = rng.randrange(256)
        else:
            del damaged[rng.randrange(1, len(damaged)) :]
        path.write_bytes(damaged)
        try:
            load_weights(network(), path, "teacher.weights")
        except UserError as error:
            refused.append(str(error))
    assert not any("\n" in message for message in refused)
    assert len(refused) >= 100  # a byte in the middle of a number may go unseen; a cut may not


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "folder", "missing"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"w.{suffix}"
    if suffix == "pt":
        torch.save(network().state_dict(), path)
    else:
        save_weights(network(), path)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "text": b"hello"}[damage])
    with pytest.raises(UserError, match=r"^teacher\.weights: .*w\."):
        load_weights(network(), path, "teacher.weights")


def test_no_tensors_is_said(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"expected named tensors \(a state_dict\), got keys epoch"):
        load_weights(network(), tmp_path / "w.pt", "teacher.weights")


def test_differences_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Identity(), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 3))
    save_weights(other, tmp_path / "w.safetensors")
    target = network()
    before = fingerprint(target)
    with pytest.raises(UserError) as caught:
        load_weights(target, tmp_path / "w.safetensors", "teacher.weights")
    for part in ("missing: 1.weight", "unexpected: 4.", "0.weight expected (2, 1, 3, 3), got (4, 1, 3, 3)"):
        assert part in str(caught.value)
    assert fingerprint(target) == before


def test_the_fingerprint_sees_every_weight_and_buffer() -> None:
    one = network()
    before = fingerprint(one)
    assert fingerprint(one) == before
    one[1].running_mean[0] += 1e-7
    assert fingerprint(one) != before
