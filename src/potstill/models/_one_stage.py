"""Detectors of one stage, as torchvision's RetinaNet, FCOS and SSD: what the head says of all anchors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from potstill.batch import Signals
from potstill.models._rows import IGNORED, listed, packed, shapes, size_of

__all__ = ["answers", "raw_answers", "signals"]


def answers(
    model: Any, images: Tensor, raw: dict[str, Tensor], anchors: list[Tensor], rows: list[int]
) -> Tensor:
    """The boxes ``(N, 100, 6)`` that the detector's own choice leaves."""
    sizes = [(images.shape[2], images.shape[3])] * len(images)
    if hasattr(model, "neg_to_pos_ratio"):  # SSD takes all levels at once
        return packed(model.postprocess_detections(raw, anchors, sizes), images)
    levels = {name: list(torch.split(each, rows, dim=1)) for name, each in raw.items()}
    by_level = [list(torch.split(each, rows)) for each in anchors]
    return packed(model.postprocess_detections(levels, by_level, sizes), images)


def raw_answers(
    model: Any, images: Tensor, maps: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
    """What the head says, the anchors of each image, and the anchors of each level."""
    levels = list(maps.values())
    raw = {name: each.float() for name, each in model.head(levels).items()}
    anchors = model.anchor_generator(listed(images), shapes(levels))
    places = [each.shape[2] * each.shape[3] for each in levels]
    each_place = raw["cls_logits"].shape[1] // max(sum(places), 1)
    rows = [count * each_place for count in places]
    return raw, anchors, rows


def signals(
    model: Any,
    images: Tensor,
    maps: Mapping[str, Tensor],
    targets: list[dict[str, Tensor]] | None,
    *,
    answering: bool,
) -> Signals:
    """What the head says of all anchors; with targets also what they say, and the loss of each image."""
    raw, anchors, rows = raw_answers(model, images, maps)
    softmax = hasattr(model, "neg_to_pos_ratio")
    form = "classes" if softmax else "scores"
    taps = {
        "size": size_of(images),
        f"box.{form}": raw["cls_logits"],
        "box.boxes": raw["bbox_regression"],
        "box.anchors": torch.stack(anchors),
        "box.corners": _corners(model, raw["bbox_regression"], anchors),
    }
    if hasattr(model, "center_sampling_radius"):
        taps["points"] = images.new_tensor(float(model.center_sampling_radius))  # its anchors are places
    elif hasattr(model.box_coder, "weights"):
        taps["box.coding"] = images.new_tensor(model.box_coder.weights)
    if answering:
        with torch.no_grad():
            taps["answers"] = answers(model, images, raw, anchors, rows)
    if targets is None:
        return Signals(raw["cls_logits"], taps)
    losses, labels, deltas = [], [], []
    for place, target in enumerate(targets):
        one = {name: each[place : place + 1] for name, each in raw.items()}
        matched = _matched(model, target, one, anchors[place], rows)
        losses.append(_loss(model, target, one, anchors[place], matched))
        label, delta = _wanted(model, target, anchors[place], matched)
        labels.append(_mined(raw["cls_logits"][place], label) if softmax else label)
        deltas.append(delta)
    taps |= {"box.labels": torch.stack(labels), "box.deltas": torch.stack(deltas)}
    return Signals(torch.stack(losses), taps)


def _corners(model: Any, deltas: Tensor, anchors: list[Tensor]) -> Tensor:
    """Boxes ``(N, R, 4)`` by corners in pixels, from their deltas."""
    coder = model.box_coder
    decode = coder.decode_single if hasattr(coder, "decode_single") else coder.decode
    each = [decode(some, mine) for some, mine in zip(deltas, anchors, strict=True)]
    return torch.stack(each).view(len(anchors), -1, 4)


def _matched(
    model: Any, target: dict[str, Tensor], raw: dict[str, Tensor], anchors: Tensor, rows: list[int]
) -> Tensor:
    """Which true box each anchor stands for, below 0 for none, ``(R,)``, as the model's own loss says."""
    if len(target["boxes"]) == 0:
        return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    if hasattr(model, "compute_loss") and not hasattr(model, "neg_to_pos_ratio"):
        # Its loss is asked with a head that only tells how anchors were matched.
        own = SimpleNamespace(
            head=SimpleNamespace(compute_loss=lambda _targets, _raw, _anchors, matched: matched[0]),
            proposal_matcher=getattr(model, "proposal_matcher", None),
            center_sampling_radius=getattr(model, "center_sampling_radius", None),
        )
        levels = [rows] if len(inspect.signature(model.compute_loss).parameters) > 3 else []
        found: Tensor = type(model).compute_loss(own, [target], raw, [anchors], *levels)
        return found
    from torchvision.ops import box_iou

    matched: Tensor = model.proposal_matcher(box_iou(target["boxes"], anchors))
    return matched


def _loss(
    model: Any, target: dict[str, Tensor], raw: dict[str, Tensor], anchors: Tensor, matched: Tensor
) -> Tensor:
    head = model if hasattr(model, "neg_to_pos_ratio") else model.head
    if len(target["boxes"]) == 0 and head is model:  # SSD mines negatives beside positives alone
        return raw["cls_logits"].sum() * 0 + raw["bbox_regression"].sum() * 0
    parts = head.compute_loss([target], raw, [anchors], [matched])
    return torch.stack(list(parts.values())).sum()


def _wanted(model: Any, target: dict[str, Tensor], anchors: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
    """Labels ``(R,)`` and deltas ``(R, 4)`` of the anchors."""
    labels = torch.where(matched == -2, IGNORED, 0)
    deltas = torch.zeros_like(anchors)
    some = matched >= 0
    if bool(some.any()):
        chosen, mine = target["boxes"][matched[some]], anchors[some]
        labels[some] = target["labels"][matched[some]]
        coder = model.box_coder
        if hasattr(coder, "encode_single"):
            deltas[some] = coder.encode_single(chosen, mine)
        else:  # FCOS: distances of the middle from the sides, in sides of the anchor
            deltas[some] = coder.encode(mine, chosen)
    return labels, deltas


def _mined(logits: Tensor, labels: Tensor) -> Tensor:
    """The labels, only the hardest negatives left: three for each object, as SSD's loss takes them."""
    background = labels == 0
    wanted = min(3 * max(int((labels > 0).sum()), 1), int(background.sum()))
    hardness = cross_entropy(logits.detach().float(), labels.clamp(min=0), reduction="none")
    hardest = hardness.masked_fill(~background, -torch.inf).topk(wanted).indices
    left = torch.where(background, IGNORED, labels)
    left[hardest] = 0
    return left
