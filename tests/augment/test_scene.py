"""Boxes, masks and paired images go where the image's pixels go, against an oracle that draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.augment import Augment, AugmentConfig, Scene
from potstill.augment.geometry import turned
from potstill.augment.scene import moved_boxes
from potstill.errors import UserError

HEIGHT, WIDTH, COUNT, BOXES = 48, 64, 60, 3
INDEX = torch.arange(COUNT) + 11

# Of those that keep sides upright, a mask's bounds are a box's to the pixel; of others they lie inside it.
UPRIGHT: dict[str, dict[str, Any]] = {
    "flip": {"flip": 0.5},
    "vertical_flip": {"vertical_flip": 0.5},
    "crop": {"crop": 9},
    "resized_crop": {"resized_crop": {"least": 0.3}},
    "several": {"crop": 5, "flip": 0.5, "resized_crop": {"least": 0.5}},
}
TILTED: dict[str, dict[str, Any]] = {
    "rotation": {"rotation": {"degrees": 30}},
    "rand_augment": {"rand_augment": {"magnitude": 20}},
    "trivial_augment": {"trivial_augment": {}},
}


def config(given: dict[str, Any]) -> AugmentConfig:
    from potstill.sections import read_section

    return read_section(AugmentConfig, given, "augment")


def drawn(boxes: Tensor) -> Tensor:
    """Each box as a mask of its own, pixel by pixel, ``(N, n, H, W)``."""
    masks = torch.zeros(*boxes.shape[:2], HEIGHT, WIDTH, dtype=torch.uint8)
    for row, some in enumerate(boxes.tolist()):
        for place, (left, top, right, bottom) in enumerate(some):
            masks[row, place, int(top) : int(bottom), int(left) : int(right)] = 1
    return masks


def bounds(mask: Tensor) -> list[float] | None:
    """Of the pixels that are set, ``None`` without any."""
    rows, columns = mask.nonzero(as_tuple=True)
    if len(rows) == 0:
        return None
    ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [float(end) for end in ends]


def scene(*, inside: int = 0) -> Scene:
    """Images with three whole-pixel boxes each, drawn as masks too, and a paired image that is the first."""
    generator = torch.Generator().manual_seed(4)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (COUNT, BOXES), generator=generator)

    left, top = whole(inside, WIDTH - 14 - inside), whole(inside, HEIGHT - 14 - inside)
    boxes = torch.stack([left, top, left + whole(4, 14), top + whole(4, 14)], dim=-1).float()
    images = torch.randint(0, 256, (COUNT, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
    there = torch.ones(COUNT, BOXES, dtype=torch.bool)
    return Scene(images=images, boxes=boxes, there=there, masks=drawn(boxes), paired=images.clone())


@pytest.mark.parametrize("name", UPRIGHT)
def test_boxes_are_the_bounds_of_what_was_drawn(name: str) -> None:
    before = scene()
    after = Augment(config(UPRIGHT[name] | {"least_visible": 0.0}), seed=1).together(before, INDEX, view=2)
    assert after.boxes is not None
    assert after.there is not None
    assert after.masks is not None
    assert not torch.equal(after.boxes, before.boxes)
    exact = "resized" not in str(UPRIGHT[name])
    checked = 0
    for box, there, mask in zip(
        after.boxes.flatten(0, 1), after.there.flatten(), after.masks.flatten(0, 1), strict=True
    ):
        expected = bounds(mask)
        if not there:
            assert expected is None or min(box[2] - box[0], box[3] - box[1]) < 1
            continue
        assert expected is not None
        # a pixel of a stretched image is set where its middle lies in the box
        torch.testing.assert_close(box, torch.tensor(expected), atol=0.0 if exact else 1.01, rtol=0.0)
        checked += 1
    assert checked > 0.5 * COUNT * BOXES


@pytest.mark.parametrize("name", TILTED)
def test_tilted_boxes_hold_what_was_drawn_and_no_more_than_their_corners_need(name: str) -> None:
    before = scene(inside=8)
    after = Augment(config(TILTED[name]), seed=1).together(before, INDEX, view=2)
    assert after.boxes is not None
    assert after.there is not None
    assert after.masks is not None
    assert after.visible is not None
    slack = []
    for box, there, whole, mask in zip(
        after.boxes.flatten(0, 1),
        after.there.flatten(),
        after.visible.flatten() == 1,
        after.masks.flatten(0, 1),
        strict=True,
    ):
        expected = bounds(mask)
        if not there or expected is None:
            continue
        held = torch.tensor(expected)
        assert bool((held[:2] >= box[:2] - 1.01).all() and (held[2:] <= box[2:] + 1.01).all())
        if whole:
            slack.append(float((held - box).abs().max()))
    assert len(slack) > 20
    assert sorted(slack)[len(slack) // 2] < 1.6  # corners between pixels


@pytest.mark.parametrize("name", UPRIGHT | TILTED)
def test_a_paired_image_and_masks_move_by_the_images_draws(name: str) -> None:
    before, augment = scene(), Augment(config((UPRIGHT | TILTED)[name]), seed=1)
    after = augment.together(before, INDEX, view=2)
    assert torch.equal(after.images, augment(before.images, INDEX, view=2))
    assert after.paired is not None
    assert after.masks is not None
    if name in UPRIGHT or name == "rotation":  # policies also change how the image looks
        assert torch.equal(after.paired, after.images)
    assert set(after.masks.unique().tolist()) <= {0, 1}
    assert not torch.equal(after.masks, before.masks)


@pytest.mark.parametrize("name", UPRIGHT | TILTED)
def test_a_scene_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    before, augment = scene(), Augment(config((UPRIGHT | TILTED)[name]), seed=1)
    after = augment.together(before, INDEX, view=2)
    for row in (0, 7, COUNT - 1):
        alone = augment.together(before.rows(torch.tensor([row])), INDEX[row : row + 1], view=2)
        wanted = after.rows(torch.tensor([row]))
        for part in ("images", "boxes", "there", "masks", "paired", "visible"):
            assert torch.equal(getattr(alone, part), getattr(wanted, part)), part


def test_colours_and_coverings_change_the_image_alone() -> None:
    looks = config({"colour": {"brightness": 0.5}, "cutout": 9, "erasing": 1.0})
    before = scene()
    after = Augment(looks, seed=0).together(before, INDEX, view=0)
    assert not torch.equal(after.images, before.images)
    for part in ("boxes", "there", "masks", "paired"):
        assert torch.equal(getattr(after, part), getattr(before, part))


def test_what_is_left_of_a_box_decides_whether_it_stays() -> None:
    """A box of 8 x 8 at the left border, the image moved by hand."""
    box = torch.tensor([[[0.0, 4.0, 8.0, 12.0]]])
    for step, share in ((0.0, 1.0), (2.0, 0.75), (6.0, 0.25), (8.0, 0.0), (20.0, 0.0)):
        matrix = torch.tensor([[[1.0, 0.0, step], [0.0, 1.0, 0.0]]], dtype=torch.float64)
        found, left = moved_boxes(box, matrix, 16, 16)
        assert float(left) == pytest.approx(share)
        assert found[0, 0].tolist() == [0.0, 4.0, max(8.0 - step, 0.0), 12.0]
    there = torch.tensor([[True]])
    moved = Scene(images=torch.zeros(1, 1, 16, 16), boxes=box, there=there, visible=torch.tensor([[0.25]]))
    assert bool(moved.dropped(0.25).there)
    assert not bool(moved.dropped(0.26).there)


def test_a_quarter_turn_by_hand() -> None:
    """Counter-clockwise, what was at the right is at the top."""
    found, left = moved_boxes(
        torch.tensor([[[12.0, 6.0, 16.0, 8.0]]]), turned(torch.tensor([90.0], dtype=torch.float64)), 16, 16
    )
    torch.testing.assert_close(found, torch.tensor([[[6.0, 0.0, 8.0, 4.0]]]))
    assert float(left) == pytest.approx(1.0)


def test_no_boxes_at_all_are_fine() -> None:
    empty = Scene(
        images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        boxes=torch.zeros(2, 0, 4),
        there=torch.zeros(2, 0, dtype=torch.bool),
    )
    after = Augment(config({"flip": 0.5, "rotation": 20}), seed=0).together(empty, torch.arange(2), view=0)
    assert after.boxes is not None
    assert after.boxes.shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"masks": torch.zeros(2, 1, 4, 5)}, "masks"),
        ({"paired": torch.zeros(1, 1, 4, 4)}, "paired"),
        ({"boxes": torch.zeros(2, 1, 4)}, "there"),
        ({"boxes": torch.zeros(2, 1, 4), "there": torch.zeros(2, 2, dtype=torch.bool)}, "boxes"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(given: dict[str, Tensor], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Scene(images=torch.zeros(2, 3, 4, 4), **given)


def test_a_function_of_the_users_must_say_that_it_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def darker(images, draws):\n    return images // 2\n")
    before = scene()
    for still in (False, True):
        own = config({"own": {"call": "mine.py:darker", "still": still}})
        augment = Augment(own, seed=0, search=[tmp_path])
        assert torch.equal(augment(before.images, INDEX, view=0), before.images // 2)
        if still:
            after = augment.together(before, INDEX, view=0)
            assert torch.equal(after.images, before.images // 2)
            assert after.boxes is not None
            assert before.boxes is not None
            assert torch.equal(after.boxes, before.boxes)
        else:
            with pytest.raises(UserError, match=r"augment\.own: .*still: true"):
                augment.together(before, INDEX, view=0)
