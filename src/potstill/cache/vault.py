"""A folder of a teacher's answers: a header that says of whom and how, the records, a manifest at the end.

header.json     whose answers, the code of each tensor, how close it comes on the first batch
view000-....bin records, see :mod:`potstill.cache.store`
manifest.json   written last: all is there; what a run asks of the teacher besides
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.cache.codes import Float, code_from
from potstill.cache.fidelity import Fidelity, candidates, choose
from potstill.cache.identity import Identity, sealed, unsealed
from potstill.cache.layout import OUTPUT, Field, Layout
from potstill.cache.settings import CacheConfig
from potstill.cache.store import Store
from potstill.cache.tokens import TokenFidelity, Tokens, word_code
from potstill.errors import UserError
from potstill.files import read_json, write_json, write_once
from potstill.losses.heads import Projected

__all__ = ["FORMAT", "Vault"]

FORMAT = "1"
"""Of headers, records and codes, and of the views that are stored."""
USUAL_TEMPERATURES = (1.0, 4.0)
Index = NDArray[np.int64]


class Vault:
    """The cache of one seed and one set of layers.

    Args:
        folder: Where it is, or is made once there is something to keep.
        identity: Whose answers it may hold.
        config: What is stored, and how close it must come.
        samples: Number of training samples.
        temperatures: Those of the losses, at which the bound holds; 1 where there is none.
        say: Told what a user should know.

    Attributes:
        asked_for: The temperatures as they were given.
        layout: What a record holds; ``None`` until the first answers decided it.
        writing: Whether what is missing may be written.
        fidelity: How close what was written here came.

    Raises:
        UserError: If the folder holds another cache, or a damaged header.
    """

    layout: Layout | None
    store: Store

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        config: CacheConfig,
        *,
        samples: int,
        temperatures: Sequence[float] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.identity, self.config, self.samples = folder, identity, config, samples
        self.asked_for = tuple(temperatures)
        self.temperatures = self.asked_for or (1.0,)
        self.say = say
        self.writing = True
        self.layout = None
        self.header: dict[str, Any] = {}
        self.fidelity: Fidelity | TokenFidelity = Fidelity([*USUAL_TEMPERATURES, *self.temperatures])
        self._broken = False
        self._damaged = 0
        if self._header_path.exists():
            self._open()

    @property
    def _header_path(self) -> Path:
        return self.folder / "header.json"

    @property
    def manifest_path(self) -> Path:
        """Written last."""
        return self.folder / "manifest.json"

    # What is there ---------------------------------------------------------------------------------

    def _open(self) -> None:
        """Take the header as it is there, if it is for this teacher, and check how close it comes."""
        header = unsealed(self._header_path)
        self.identity.refuse_other(Identity(header["identity"]), str(self.folder))
        self.header = header
        self._take(Layout.from_plain(header["fields"]))
        for temperature in () if self._tokens else self.temperatures:
            kl = header["fidelity"]["kl"].get(f"{temperature:g}", 0.0)
            if kl > self.config.fidelity and not code_from(header["fields"][0]["code"]) == Float(32):
                raise UserError(
                    "teacher.cache.fidelity",
                    f"{self.folder} is within {kl:.1e} at temperature {temperature:g}, and the recipe asks "
                    f"for {self.config.fidelity:.1e}; name another path, or remove it",
                )

    @property
    def _tokens(self) -> bool:
        """Whether it holds words of a language model, whose room is bounded and not their error."""
        return self.layout is not None and self.layout.tokens is not None

    def _take(self, layout: Layout) -> None:
        self.layout = layout
        if layout.tokens is not None:
            self.fidelity = TokenFidelity(layout.tokens)
        key = self.identity.digest + json.dumps(layout.plain())
        self.store = Store(self.folder, samples=self.samples, size=layout.size, key=key)

    def read(self, view: int, index: Index) -> tuple[Tensor, NDArray[np.bool_]]:
        """Records ``(N, size)`` and whether each is there, ``(N,)``."""
        if self.layout is None:
            return torch.zeros(len(index), 0, dtype=torch.uint8), np.zeros(len(index), np.bool_)
        records, there = self.store.read(view % self.config.views, index)
        if self.store.damaged > self._damaged:
            self.say(
                f"cache: {self.store.damaged - self._damaged} damaged records of view "
                f"{view % self.config.views} in {self.folder} are made again"
            )
            self._damaged = self.store.damaged
        return torch.from_numpy(records), there

    def missing(self, view: int) -> Index:
        """Samples that lack a whole record of ``view``."""
        return np.arange(self.samples) if self.layout is None else self.store.missing(view)

    # What is made ----------------------------------------------------------------------------------

    def keep(self, view: int, index: Index, tensors: Mapping[str, Tensor | Projected]) -> Tensor:
        """Write answers, where that is possible, and give their records ``(N, size)``.

        Args:
            view: Number of the view.
            index: Samples ``(N,)``.
            tensors: Tensors ``(N, ...)`` by path, the output under the empty one; a language model's as
                hidden states and head.

        Raises:
            UserError: If they are not finite, or of another shape than before.
        """
        layout = self.layout or self._make(tensors, index)
        records = layout.encode(tensors, index)
        if not self.fidelity.enough:
            _compare(self.fidelity, tensors[OUTPUT], layout, records)
        if self.writing and not self._broken:
            try:
                self.store.write(view % self.config.views, index, records.numpy())
            except OSError as error:
                self._give_up(f"{self.folder}: {error.strerror}")
        return records

    def _make(self, tensors: Mapping[str, Tensor | Projected], index: Index) -> Layout:
        """Choose the codes by the first answers, and write the header unless another process was first."""
        layout = self.chosen(tensors)
        header = {
            "identity": dict(self.identity.facts),
            "fields": layout.plain(),
            "bytes": layout.size + 4,
            "fidelity": self.foreseen(layout, tensors, index),
        }
        written = True
        try:
            written = not self.writing or write_once(self._header_path, sealed(header))
        except UserError as error:
            self._give_up(str(error))
        if not written:
            self._open()
            assert self.layout is not None, "an open cache has a layout"
            return self.layout
        self.header = header
        self._take(layout)
        return layout

    def foreseen(
        self, layout: Layout, tensors: Mapping[str, Tensor | Projected], index: Index
    ) -> dict[str, Any]:
        """How close answers to samples ``(N,)`` are kept in a layout."""
        fidelity: Fidelity | TokenFidelity = Fidelity([*USUAL_TEMPERATURES, *self.temperatures])
        if layout.tokens is not None:
            fidelity = TokenFidelity(layout.tokens)
        _compare(fidelity, tensors[OUTPUT], layout, layout.encode(tensors, index))
        return fidelity.figures()

    def chosen(self, tensors: Mapping[str, Tensor | Projected]) -> Layout:
        """The fields that suit answers ``(N, ...)`` by path, the output under the empty one."""
        output = tensors[OUTPUT]
        if isinstance(output, Projected):
            words = word_code(
                self.config.words, self.config.bytes, output.head.size, float(self.temperatures[0])
            )
            return Layout([Tokens(output.hidden.shape[1], output.head.size, words), *self._taps(tensors)])
        live = output.detach().cpu().float()
        codes = candidates(live.shape[-1], self.config.top)
        code = choose(live, codes, self.config.fidelity, self.temperatures)
        return Layout([Field(OUTPUT, tuple(live.shape[1:]), code), *self._taps(tensors)])

    def _taps(self, tensors: Mapping[str, Tensor | Projected]) -> list[Field]:
        code = code_from(self.config.taps)
        return [
            Field(path, tuple(tensor.shape[1:]), code, tensor.dtype)
            for path, tensor in tensors.items()
            if path != OUTPUT and isinstance(tensor, Tensor)
        ]

    def _give_up(self, reason: str) -> None:
        """Say once that nothing more is stored."""
        self._broken = True
        self.say(
            f"warning: cache: {reason}; training goes on with the live teacher, and nothing more is kept"
        )

    # The end ---------------------------------------------------------------------------------------

    @property
    def broken(self) -> bool:
        """Whether the disk took no more."""
        return self._broken

    def finish(self, teacher: Mapping[str, Any]) -> None:
        """Write the manifest: every view of every sample is there.

        Args:
            teacher: What a run asks of the teacher besides its answers.

        Raises:
            UserError: If it cannot be written.
        """
        self.store.sync()
        first = self.header["fidelity"]
        write_json(
            self.manifest_path,
            {
                "identity": self.identity.digest,
                "views": self.config.views,
                "samples": self.samples,
                "bytes": self.header["bytes"],
                "fidelity": self.fidelity.figures() if self.fidelity.rows > first["measured"] else first,
                "teacher": dict(teacher),
            },
        )

    def manifest(self) -> dict[str, Any] | None:
        """What :meth:`finish` wrote, if it is for as many views as the recipe asks for."""
        if self.layout is None or not self.manifest_path.is_file():
            return None
        found = read_json(self.manifest_path)
        whole = found.get("identity") == self.identity.digest and found.get("samples") == self.samples
        return found if whole and found.get("views", 0) >= self.config.views else None

    def figures(self) -> dict[str, Any]:
        """Size and fidelity as far as they are known; empty where nothing is."""
        if self.layout is None:
            return {}
        known = self.manifest() or self.header
        return {"bytes": known["bytes"], "fidelity": known["fidelity"]}


def _compare(
    fidelity: Fidelity | TokenFidelity, output: Tensor | Projected, layout: Layout, records: Tensor
) -> None:
    """Count how close records come to what was answered."""
    if isinstance(fidelity, TokenFidelity):
        assert layout.tokens is not None, "it is of this layout"
        assert isinstance(output, Projected), "language models give hidden states"
        fidelity.add(output, records[:, : layout.tokens.width])
        return
    assert isinstance(output, Tensor), "all others give tensors"
    fidelity.add(output.detach().cpu().float(), layout.decode(records)[OUTPUT].float())
