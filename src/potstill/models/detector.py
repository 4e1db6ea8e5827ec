"""One way to call torchvision's detectors: boxes for users, raw answers of the heads for terms.

A detector is a network with ``backbone`` and either ``rpn`` and ``roi_heads`` (two stages, as torchvision's
Faster R-CNN) or ``head``, ``anchor_generator`` and ``postprocess_detections`` (one stage: RetinaNet, FCOS,
SSD). Images come as one batch of one size, normalised; the detector's own resizing is never used.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from potstill.batch import Signals
from potstill.errors import UserError

__all__ = ["IGNORED", "Detector"]

IGNORED = -1
"""Label of a row that counts in no loss; 0 is background, objects are counted from 1."""
MOST = 100
"""Boxes of an image that are answered, as COCO counts them."""
SMOOTH = 1 / 9
"""Where the smooth L1 of torchvision's two-stage detectors turns linear."""


class Detector(nn.Module):
    """A detector of torchvision, or one that follows its contract.

    Called with images alone it answers with boxes; with ``boxes`` and ``labels`` (in training) or with
    ``proposals`` (of another network) with the raw answers of its heads, as :class:`Signals` whose taps are,
    for each head (``rpn``, where there is one, and ``box``)::

        HEAD.classes (N, R, C)  logits of a softmax whose first class is the background, or
        HEAD.scores  (N, R, C)  logits of a sigmoid each
        HEAD.boxes   (N, R, 4) or, one for each class, (N, R, C, 4)
        HEAD.anchors (N, R, 4)  what boxes are deltas of, in pixels
        HEAD.labels  (N, R)     what the labels say of each row (0 background, -1 not asked)
        HEAD.deltas  (N, R, 4)  what they say of its box

    The last two only in training. ``answers`` (N, 100, 6) are the boxes that it would answer with.

    Args:
        model: The network.
        answering: Also give ``answers`` beside raw answers: what the teacher is confident of.
    """

    def __init__(self, model: nn.Module, *, answering: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.answering = answering
        self.two_stages = hasattr(model, "rpn") and hasattr(model, "roi_heads")
        missing = [name for name in ("backbone", "head", "anchor_generator") if not hasattr(model, name)]
        if missing and not (self.two_stages and hasattr(model, "backbone")):
            raise UserError(
                "model",
                f"expected a detector as torchvision's: backbone with rpn and roi_heads, or with head and "
                f"anchor_generator; {type(model).__name__} lacks {', '.join(missing)}",
            )

    def forward(
        self,
        images: Tensor,
        boxes: Tensor | None = None,
        labels: Tensor | None = None,
        proposals: Tensor | None = None,
    ) -> Tensor | Signals:
        """Answer to a batch.

        Args:
            images: ``(N, 3, H, W)``, normalised.
            boxes: True boxes ``(N, n, 4)`` in pixels, for training.
            labels: Their classes ``(N, n)``, counted from 1; 0 fills rows without a box.
            proposals: Regions to score, ``(N, R, 4)``; a detector of one stage scores its anchors instead.

        Returns:
            Boxes ``(N, 100, 6)``: left, top, right, bottom, score, class counted from 1; rows of zeros where
            there are fewer. In training :class:`Signals` with the loss of each image ``(N,)`` as output;
            with proposals the same without a loss.
        """
        maps = self.model.backbone(images)
        maps = OrderedDict([("0", maps)]) if isinstance(maps, Tensor) else maps
        if boxes is not None and labels is not None:
            targets = [
                {"boxes": some[which > 0], "labels": which[which > 0]}
                for some, which in zip(boxes, labels, strict=True)
            ]
            return (self._two if self.two_stages else self._one)(images, maps, targets, None)
        if proposals is not None:
            return (self._two if self.two_stages else self._one)(images, maps, None, proposals)
        return self._found(images, maps)

    def beside(self, inputs: Mapping[str, Tensor], given: Signals) -> dict[str, Tensor]:
        """The same inputs, to be scored on the regions of another network, at this one's resolution."""
        theirs = given.taps.get("box.anchors")
        size = given.taps.get("size")
        if not self.two_stages or theirs is None or size is None:
            return dict(inputs)
        height, width = inputs["images"].shape[2:]
        scale = theirs.new_tensor([width, height, width, height]) / size.repeat(2)
        return {**inputs, "proposals": theirs * scale}

    # Boxes ------------------------------------------------------------------------------------------

    def _found(self, images: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        if self.two_stages:
            maps = OrderedDict((name, each.float()) for name, each in maps.items())  # its anchors' type
            listed = _listed(images)
            regions, _ = self.model.rpn(listed, maps)
            found, _ = self.model.roi_heads(maps, regions, listed.image_sizes)
            return _packed(found, images)
        return self._answers(images, *self._raw(images, maps))

    def _answers(
        self, images: Tensor, raw: dict[str, Tensor], anchors: list[Tensor], rows: list[int]
    ) -> Tensor:
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        if hasattr(self.model, "neg_to_pos_ratio"):  # SSD takes all levels at once
            return _packed(self.model.postprocess_detections(raw, anchors, sizes), images)
        levels = {name: list(torch.split(each, rows, dim=1)) for name, each in raw.items()}
        by_level = [list(torch.split(each, rows)) for each in anchors]
        return _packed(self.model.postprocess_detections(levels, by_level, sizes), images)

    # One stage --------------------------------------------------------------------------------------

    def _raw(
        self, images: Tensor, maps: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """What the head says, the anchors of each image, and the anchors of each level."""
        levels = list(maps.values())
        raw = {name: each.float() for name, each in self.model.head(levels).items()}
        anchors = self.model.anchor_generator(_listed(images), _shapes(levels))
        places = [each.shape[2] * each.shape[3] for each in levels]
        each_place = raw["cls_logits"].shape[1] // max(sum(places), 1)
        rows = [count * each_place for count in places]
        return raw, anchors, rows

    def _one(
        self,
        images: Tensor,
        maps: Mapping[str, Tensor],
        targets: list[dict[str, Tensor]] | None,
        proposals: Tensor | None,
    ) -> Signals:
        raw, anchors, rows = self._raw(images, maps)
        softmax = hasattr(self.model, "neg_to_pos_ratio")
        form = "classes" if softmax else "scores"
        taps = {
            "size": _size(images),
            f"box.{form}": raw["cls_logits"],
            "box.boxes": raw["bbox_regression"],
            "box.anchors": torch.stack(anchors),
        }
        if self.answering:
            with torch.no_grad():
                taps["answers"] = self._answers(images, raw, anchors, rows)
        if targets is None:
            return Signals(raw["cls_logits"], taps)
        losses, labels, deltas = [], [], []
        for place, target in enumerate(targets):
            one = {name: each[place : place + 1] for name, each in raw.items()}
            matched = self._matched(target, one, anchors[place], rows)
            losses.append(self._loss(target, one, anchors[place], matched))
            label, delta = self._wanted(target, anchors[place], matched)
            labels.append(_mined(raw["cls_logits"][place], label) if softmax else label)
            deltas.append(delta)
        taps |= {"box.labels": torch.stack(labels), "box.deltas": torch.stack(deltas)}
        return Signals(torch.stack(losses), taps)

    def _matched(
        self, target: dict[str, Tensor], raw: dict[str, Tensor], anchors: Tensor, rows: list[int]
    ) -> Tensor:
        """Which true box each anchor stands for, below 0 for none, ``(R,)``, as the model's own loss says."""
        if len(target["boxes"]) == 0:
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        if hasattr(self.model, "compute_loss") and not hasattr(self.model, "neg_to_pos_ratio"):
            # Its loss is asked with a head that only tells how anchors were matched.
            own = SimpleNamespace(
                head=SimpleNamespace(compute_loss=lambda _targets, _raw, _anchors, matched: matched[0]),
                proposal_matcher=getattr(self.model, "proposal_matcher", None),
                center_sampling_radius=getattr(self.model, "center_sampling_radius", None),
            )
            levels = [rows] if len(inspect.signature(self.model.compute_loss).parameters) > 3 else []
            found: Tensor = type(self.model).compute_loss(own, [target], raw, [anchors], *levels)
            return found
        from torchvision.ops import box_iou

        matched: Tensor = self.model.proposal_matcher(box_iou(target["boxes"], anchors))
        return matched

    def _loss(
        self, target: dict[str, Tensor], raw: dict[str, Tensor], anchors: Tensor, matched: Tensor
    ) -> Tensor:
        head = self.model if hasattr(self.model, "neg_to_pos_ratio") else self.model.head
        if len(target["boxes"]) == 0 and head is self.model:  # SSD mines negatives beside positives alone
            return raw["cls_logits"].sum() * 0 + raw["bbox_regression"].sum() * 0
        parts = head.compute_loss([target], raw, [anchors], [matched])
        return torch.stack(list(parts.values())).sum()

    def _wanted(self, target: dict[str, Tensor], anchors: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
        """Labels ``(R,)`` and deltas ``(R, 4)`` of the anchors."""
        labels = torch.where(matched == -2, IGNORED, 0)
        deltas = torch.zeros_like(anchors)
        some = matched >= 0
        if bool(some.any()):
            chosen, mine = target["boxes"][matched[some]], anchors[some]
            labels[some] = target["labels"][matched[some]]
            coder = self.model.box_coder
            if hasattr(coder, "encode_single"):
                deltas[some] = coder.encode_single(chosen, mine)
            else:  # FCOS: distances of the middle from the sides, in sides of the anchor
                deltas[some] = coder.encode(mine, chosen)
        return labels, deltas

    # Two stages -------------------------------------------------------------------------------------

    def _two(
        self,
        images: Tensor,
        maps: Mapping[str, Tensor],
        targets: list[dict[str, Tensor]] | None,
        proposals: Tensor | None,
    ) -> Signals:
        listed = _listed(images)
        taps, regions = self._regions(listed, maps, propose=targets is not None)
        loss = images.new_zeros(len(images))
        if targets is not None:
            loss = self._learn_regions(taps, targets)
            regions, _, labels, deltas = self.model.roi_heads.select_training_samples(regions, targets)
            taps["box.labels"] = _padded(labels, IGNORED)
            taps["box.deltas"] = _padded(deltas, 0)
        elif proposals is not None:
            if proposals.shape[1] == 0:
                raise UserError(
                    "teacher",
                    "a detector of two stages answers to its student's regions: it needs scheme: offline "
                    "and no cache; those of one stage (RetinaNet, FCOS, SSD) have fixed anchors",
                )
            regions = list(proposals)
        taps["size"] = _size(images)
        taps["box.anchors"] = _padded(regions, 0)
        counts = [len(each) for each in regions]
        pooled = self.model.roi_heads.box_roi_pool(maps, regions, listed.image_sizes)
        logits, boxes = self.model.roi_heads.box_predictor(self.model.roi_heads.box_head(pooled))
        logits, boxes = logits.float(), boxes.float().view(len(boxes), -1, 4)
        taps["box.classes"] = _padded(list(logits.split(counts)), 0)
        taps["box.boxes"] = _padded(list(boxes.split(counts)), 0)
        if self.answering:
            with torch.no_grad():
                taps["answers"] = self._found(images, maps)
        if targets is None:
            return Signals(taps["box.classes"], taps)
        rows = zip(logits.split(counts), boxes.split(counts), labels, deltas, strict=True)
        return Signals(loss + torch.stack([_of_regions(*each) for each in rows]), taps)

    def _regions(
        self, listed: Any, maps: Mapping[str, Tensor], *, propose: bool
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """What the region proposal part says, and what it proposes, if it is asked to."""
        from torchvision.models.detection.rpn import concat_box_prediction_layers

        rpn, levels = self.model.rpn, list(maps.values())
        objectness, deltas = rpn.head(levels)
        anchors = rpn.anchor_generator(listed, _shapes(levels))
        per_level = [each.shape[1] * each.shape[2] * each.shape[3] for each in objectness]
        objectness, deltas = (each.float() for each in concat_box_prediction_layers(objectness, deltas))
        count = len(anchors)
        rows, boxes = objectness.view(count, -1), deltas.view(count, -1, 4)
        taps = {
            # of two classes, background and object: a softmax over (0, z) is the sigmoid of z
            "rpn.classes": torch.stack([torch.zeros_like(rows), rows], dim=-1),
            "rpn.boxes": boxes,
            "rpn.anchors": torch.stack(anchors),
        }
        if not propose:
            return taps, []
        decoded = rpn.box_coder.decode(deltas.detach(), anchors).view(count, -1, 4)
        regions, _ = rpn.filter_proposals(decoded, objectness, listed.image_sizes, per_level)
        return taps, regions

    def _learn_regions(self, taps: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        """The loss of the region proposal part, ``(N,)``, on rows that it draws; others get no label."""
        rpn, anchors = self.model.rpn, list(taps["rpn.anchors"])
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


def _listed(images: Tensor) -> Any:
    from torchvision.models.detection.image_list import ImageList

    return ImageList(images, [(images.shape[2], images.shape[3])] * len(images))


def _shapes(levels: list[Tensor]) -> list[Tensor]:
    """Maps in name alone: anchors take their type, and in half precision would miss whole pixels."""
    return [torch.zeros((), device=each.device).expand(each.shape) for each in levels]


def _size(images: Tensor) -> Tensor:
    """Width and height, ``(2,)``."""
    return torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32, device=images.device)


def _padded(rows: list[Tensor], fill: int) -> Tensor:
    """Tensors of different lengths as one, ``(N, longest, ...)``."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)


def _packed(found: list[dict[str, Tensor]], images: Tensor) -> Tensor:
    """Boxes with score and class, the best first, ``(N, 100, 6)``."""
    rows = []
    for each in found:
        columns = [each["boxes"], each["scores"][:, None], each["labels"][:, None]]
        row = torch.cat([column.detach().float() for column in columns], dim=1)
        if not torch.jit.is_tracing():  # ONNX has no stable sort; torchvision's boxes come sorted
            row = row[row[:, 4].argsort(descending=True, stable=True)]
        rows.append(torch.cat([row, row.new_zeros(MOST, 6)])[:MOST])
    return torch.stack(rows) if rows else images.new_zeros(0, MOST, 6)


def _of_regions(logits: Tensor, boxes: Tensor, labels: Tensor, deltas: Tensor) -> Tensor:
    """The loss of the box head in one image, 0-d."""
    some = labels > 0
    mine = boxes[some, labels[some]] if boxes.shape[1] > 1 else boxes[some, 0]
    off = smooth_l1_loss(mine, deltas[some], beta=SMOOTH, reduction="sum")
    return cross_entropy(logits, labels) + off / max(len(labels), 1)


def _mined(logits: Tensor, labels: Tensor) -> Tensor:
    """The labels, only the hardest negatives left: three for each object, as SSD's loss takes them."""
    background = labels == 0
    wanted = min(3 * max(int((labels > 0).sum()), 1), int(background.sum()))
    hardness = cross_entropy(logits.detach().float(), labels.clamp(min=0), reduction="none")
    hardest = hardness.masked_fill(~background, -torch.inf).topk(wanted).indices
    left = torch.where(background, IGNORED, labels)
    left[hardest] = 0
    return left
