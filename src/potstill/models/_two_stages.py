"""Detectors of two stages, as torchvision's Faster R-CNN: regions are proposed, then scored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from potstill.batch import Signals
from potstill.errors import UserError
from potstill.models._rows import IGNORED, listed, packed, padded, shapes, size_of

__all__ = ["found", "signals"]

SMOOTH = 1 / 9
"""Where the smooth L1 of torchvision's two-stage detectors turns linear."""


def found(model: Any, images: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
    """The boxes ``(N, 100, 6)`` that the detector's own choice leaves."""
    maps = OrderedDict((name, each.float()) for name, each in maps.items())  # its anchors' type
    images_listed = listed(images)
    modes = model.rpn.training, model.roi_heads.training
    model.rpn.training = model.roi_heads.training = False  # a peer that learns tells its boxes too
    try:
        regions, _ = model.rpn(images_listed, maps)
        boxes, _ = model.roi_heads(maps, regions, images_listed.image_sizes)
    finally:
        model.rpn.training, model.roi_heads.training = modes
    return packed(boxes, images)


def signals(
    model: Any,
    images: Tensor,
    maps: Mapping[str, Tensor],
    targets: list[dict[str, Tensor]] | None,
    proposals: Tensor | None,
    *,
    answering: bool,
) -> Signals:
    """What both parts say of anchors and regions; with targets also what they say, and each image's loss."""
    listed_images = listed(images)
    taps, regions = _regions(model, listed_images, maps, propose=targets is not None)
    loss = images.new_zeros(len(images))
    if targets is not None:
        loss = _learn_regions(model, taps, targets)
        regions, _, labels, deltas = model.roi_heads.select_training_samples(regions, targets)
        taps["box.labels"] = padded(labels, IGNORED)
        taps["box.deltas"] = padded(deltas, 0)
    elif proposals is not None:
        if proposals.shape[1] == 0:
            raise UserError(
                "teacher",
                "a detector of two stages answers to its student's regions: it needs scheme: offline "
                "and no cache; those of one stage (RetinaNet, FCOS, SSD) have fixed anchors",
            )
        regions = list(proposals)
    taps["size"] = size_of(images)
    taps["box.anchors"] = padded(regions, 0)
    counts = [len(each) for each in regions]
    pooled = model.roi_heads.box_roi_pool(maps, regions, listed_images.image_sizes)
    logits, boxes = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    logits, boxes = logits.float(), boxes.float().view(len(boxes), -1, 4)
    taps["box.classes"] = padded(list(logits.split(counts)), 0)
    taps["box.boxes"] = padded(list(boxes.split(counts)), 0)
    taps["box.coding"] = images.new_tensor(model.roi_heads.box_coder.weights)
    corners = model.roi_heads.box_coder.decode(boxes.flatten(1), regions).view(boxes.shape)
    taps["box.corners"] = padded(list(corners.split(counts)), 0)
    if answering:
        with torch.no_grad():
            taps["answers"] = found(model, images, maps)
    if targets is None:
        return Signals(taps["box.classes"], taps)
    rows = zip(logits.split(counts), boxes.split(counts), labels, deltas, strict=True)
    return Signals(loss + torch.stack([_of_regions(*each) for each in rows]), taps)


def _regions(
    model: Any, images: Any, maps: Mapping[str, Tensor], *, propose: bool
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What the region proposal part says, and what it proposes, if it is asked to."""
    from torchvision.models.detection.rpn import concat_box_prediction_layers

    rpn, levels = model.rpn, list(maps.values())
    objectness, deltas = rpn.head(levels)
    anchors = rpn.anchor_generator(images, shapes(levels))
    per_level = [each.shape[1] * each.shape[2] * each.shape[3] for each in objectness]
    objectness, deltas = (each.float() for each in concat_box_prediction_layers(objectness, deltas))
    count = len(anchors)
    rows, boxes = objectness.view(count, -1), deltas.view(count, -1, 4)
    taps = {
        # of two classes, background and object: a softmax over (0, z) is the sigmoid of z
        "rpn.classes": torch.stack([torch.zeros_like(rows), rows], dim=-1),
        "rpn.boxes": boxes,
        "rpn.anchors": torch.stack(anchors),
        "rpn.coding": deltas.new_tensor(rpn.box_coder.weights),
        "rpn.corners": rpn.box_coder.decode(deltas, anchors).view(count, -1, 4),
    }
    if not propose:
        return taps, []
    decoded = taps["rpn.corners"].detach()
    regions, _ = rpn.filter_proposals(decoded, objectness, images.image_sizes, per_level)
    return taps, regions


def _learn_regions(model: Any, taps: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """The loss of the region proposal part, ``(N,)``, on rows that it draws; others get no label."""
    rpn, anchors = model.rpn, list(taps["rpn.anchors"])
    labels, boxes = rpn.assign_targets_to_anchors(anchors, targets)
    deltas = rpn.box_coder.encode(boxes, anchors)
    positive, negative = rpn.fg_bg_sampler(labels)
    losses, kept = [], []
    for place, wanted in enumerate(deltas):
        some, none = positive[place].bool(), negative[place].bool()
        drawn = some | none
        label = torch.where(drawn, labels[place].long(), IGNORED)
        objectness = taps["rpn.classes"][place, :, 1]
        found = binary_cross_entropy_with_logits(objectness[drawn], label[drawn].to(objectness))
        given = taps["rpn.boxes"][place][some]
        off = smooth_l1_loss(given, wanted[some], beta=SMOOTH, reduction="sum")
        losses.append(found + off / drawn.sum().clamp(min=1))
        kept.append(label)
    taps["rpn.labels"], taps["rpn.deltas"] = torch.stack(kept), torch.stack(list(deltas))
    return torch.stack(losses)


def _of_regions(logits: Tensor, boxes: Tensor, labels: Tensor, deltas: Tensor) -> Tensor:
    """The loss of the box head in one image, 0-d."""
    some = labels > 0
    mine = boxes[some, labels[some]] if boxes.shape[1] > 1 else boxes[some, 0]
    off = smooth_l1_loss(mine, deltas[some], beta=SMOOTH, reduction="sum")
    return cross_entropy(logits, labels) + off / max(len(labels), 1)
