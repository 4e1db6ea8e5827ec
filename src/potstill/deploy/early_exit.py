"""A network with exits that stops computing: samples that leave are taken out, the rest goes on."""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.deploy.exit_runtime import POLICY_FORMAT, Judge, Policy, read_policy
from potstill.errors import UserError
from potstill.files import write_json
from potstill.models.exits import EXIT, WithExits
from potstill.models.segments import cut
from potstill.models.weights import fingerprint

__all__ = ["EarlyExit", "Left", "load_policy", "save_policy"]


@dataclass(frozen=True)
class Left:
    """Answers in the order of the inputs.

    Attributes:
        logits: ``(N, classes)``, of the exit that each sample took.
        exits: ``(N,)`` int64, the number of that exit, from 0; the last is the whole network.
    """

    logits: Tensor
    exits: Tensor


class EarlyExit(nn.Module):
    """Answers stage by stage and stops where the policy says so.

    A network that cannot be cut at its exits is computed whole, with a warning: its exits then save nothing.

    Args:
        network: The classifier with its exits, in eval mode from here on; its weights are copied where that
            makes it quicker, so change none afterwards.
        policy: When a sample leaves.
        example: A small batch of inputs, ``(N, ...)``.

    Attributes:
        reason: Why the network could not be cut, empty where it was.

    Raises:
        UserError: If the policy is for another number of exits.

    >>> from potstill.models.cifar import resnet8
    >>> images = torch.zeros(3, 3, 32, 32)
    >>> network = EarlyExit(WithExits(resnet8(), "auto", images), Policy("probability", (0.0, 0.0)), images)
    >>> network(images).exits
    tensor([0, 0, 0])
    """

    def __init__(self, network: WithExits, policy: Policy, example: Tensor) -> None:
        super().__init__()
        if len(policy.thresholds) != len(network.paths):
            raise UserError(
                "policy", f"expected thresholds for {len(network.paths)} exits, got {len(policy.thresholds)}"
            )
        self.policy = policy
        self.network = network.eval()
        self.segments = cut(network.model, network.paths, example, quick=True)
        self.reason = self.segments.reason
        if self.reason:
            warnings.warn(
                f"the network is computed whole, its exits save no time: it cannot be cut at them, as "
                f"{self.reason}",
                stacklevel=2,
            )
        self.heads = self._heads(example)
        self.eval()

    @torch.no_grad()
    def _heads(self, example: Tensor) -> Sequence[nn.Module]:
        """The exits, made as quick as the segments."""
        needed: Sequence[Tensor] = (example,)
        heads = []
        for part, head in zip(self.segments.parts, self.network.exits, strict=False):
            output, *needed = part(*needed)
            quick = cut(head, (), output, quick=True)
            heads.append(quick.parts[0] if quick.parts else head)
        return heads

    def train(self, mode: bool = True) -> EarlyExit:
        """Stay in eval mode whatever ``mode`` says."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Left:
        """Answer to a batch of any size.

        Args:
            inputs: What the network takes, ``(N, ...)``.

        Returns:
            Logits and exits, in the order of the inputs.
        """
        judge = Judge(self.policy)
        rows = torch.arange(len(inputs), device=inputs.device)
        exits = torch.zeros_like(rows)
        answers: list[Tensor] = []
        order: list[Tensor] = []
        stages = self._whole(inputs) if self.reason else self._stages(inputs)
        number, logits = next(stages)
        while True:
            leaving = torch.from_numpy(judge.leaving(number, logits.float().cpu().numpy())).to(rows.device)
            exits[rows[leaving]] = number
            answers.append(logits[leaving])
            order.append(rows[leaving])
            kept = (~leaving).nonzero().squeeze(1)
            rows = rows[kept]
            if not len(rows):
                return Left(torch.cat(answers)[torch.cat(order).argsort()], exits)
            number, logits = stages.send(kept)

    def _stages(self, inputs: Tensor) -> Generator[tuple[int, Tensor], Tensor, None]:
        """Number and logits of one exit after the other; it is sent the samples that stay."""
        needed: Sequence[Tensor] = (inputs,)
        last = len(self.network.paths)
        for number, part in enumerate(self.segments.parts):
            output, *needed = part(*needed)
            if self.policy.asks(number):
                count = len(output)
                kept = yield number, output if number == last else self.heads[number](output)[0]
                if len(kept) < count:
                    needed = self.segments.keep(number, needed, kept)

    def _whole(self, inputs: Tensor) -> Generator[tuple[int, Tensor], Tensor, None]:
        signals = self.network(inputs)
        rows = torch.arange(len(inputs), device=inputs.device)
        early = [signals.taps[EXIT + path] for path in self.network.paths]
        for number, logits in enumerate([*early, signals.output]):
            if self.policy.asks(number):
                rows = rows[(yield number, logits[rows])]


def save_policy(path: Path, policy: Policy, network: WithExits, **notes: Any) -> None:
    """Write a policy with the fingerprint of the network that it was chosen for.

    Args:
        path: Where to.
        policy: What to write.
        network: The network with its exits.
        notes: Anything that JSON can hold, such as what was promised.
    """
    content = {"format": POLICY_FORMAT, "weights": fingerprint(network), "policy": policy.to_json()}
    write_json(path, {**content, **json.loads(json.dumps(notes))})


def load_policy(path: Path, network: WithExits) -> Policy:
    """A policy from a file.

    Raises:
        UserError: If there is no such file, it is damaged, or of another network.
    """
    try:
        return read_policy(path, fingerprint(network))
    except ValueError as error:
        where, _, message = str(error).partition(": ")
        raise UserError(where, message) from error
