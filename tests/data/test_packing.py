"""Packing: every token predicted once, no attention across documents, right masks at the borders."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.encoding import Encoded
from potstill.data.packing import PADDING, pack
from potstill.models.causal import packable
from potstill.models.characters import tiny_llama


def plain(*lengths: int) -> list[Encoded]:
    """Documents whose tokens count on: no two tokens are equal."""
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    return [
        Encoded(list(range(10 + start, 10 + start + length)), [True] * length)
        for start, length in zip(starts, lengths, strict=True)
    ]


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=12), length=st.integers(2, 16))
@settings(max_examples=60, deadline=None)
def test_every_token_but_the_first_is_predicted_exactly_once_and_from_its_own_document(lengths, length):
    documents = plain(*lengths)
    packed = pack(documents, length, padding=0)
    predicted = []
    for row in range(len(packed.tokens)):
        for place in range(length):
            if packed.counted[row, place]:
                here, following = packed.tokens[row, place : place + 2]
                assert following == here + 1
                assert packed.documents[row, place] == packed.documents[row, place + 1]
                predicted.append(int(following))
    assert sorted(predicted) == [token for document in documents for token in document.ids[1:]]


def test_rows_are_filled_and_padding_is_a_piece_of_its_own():
    packed = pack(plain(3, 5, 4), 8, padding=7)
    assert packed.tokens.shape == (2, 8)
    assert packed.documents.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [2, 2, 2, 2, *[PADDING] * 4]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert packed.counted.sum(axis=1).tolist() == [6, 3]
    assert packed.tokens[1, 4:].tolist() == [7] * 4


def test_a_row_each_where_documents_cannot_stand_together():
    packed = pack(plain(3, 5), 8, padding=0, together=False)
    assert packed.documents[:, 0].tolist() == [0, 1]
    assert packed.counted.sum() == 6


def test_a_conversation_is_cut_at_its_end_and_dropped_where_its_question_fills_the_row():
    short = Encoded([1, 2, 3, 4, 5, 6], [False, False, True, True, True, True])
    long = Encoded([1, 2, 3, 4, 5, 6], [False] * 5 + [True])
    packed = pack([short, long], 4, padding=0)
    assert packed.dropped == (1,)
    assert packed.tokens.tolist() == [[1, 2, 3, 4]]
    assert packed.counted.tolist() == [[False, True, True, False]]


def test_too_short_a_row_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        pack(plain(3), 1, padding=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_logits_of_a_packed_row_equal_those_of_each_document_alone(implementation):
    torch.manual_seed(0)
    model = tiny_llama(60, hidden=32, attn_implementation=implementation).eval()
    documents = plain(9, 5, 7, 4)
    packed = pack(documents, 16, padding=0)
    with torch.no_grad():
        rows = model(
            input_ids=torch.from_numpy(packed.tokens).long(),
            position_ids=torch.from_numpy(packed.positions).long(),
            use_cache=False,
        ).logits
        for number, document in enumerate(documents):
            alone = model(input_ids=torch.tensor([document.ids])).logits[0]
            torch.testing.assert_close(
                rows[torch.from_numpy(packed.documents == number)], alone, rtol=1e-4, atol=1e-5
            )


def test_which_models_can_have_documents_side_by_side():
    torch.manual_seed(0)
    model = tiny_llama(60, hidden=32)
    assert packable(model, 60)
    assert model.training

    class Blind(torch.nn.Module):
        """Takes positions and looks at everything before."""

        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Embedding(60, 60)

        def forward(self, input_ids, position_ids=None):
            return self.inner(input_ids).cumsum(dim=1)

    assert not packable(Blind(), 60)
    assert not packable(torch.nn.Embedding(60, 60), 60)
