"""Language models small enough for a test: a tokenizer of single characters, and a tiny Llama."""

from __future__ import annotations

from typing import Any

from torch import nn

from potstill.models.causal import need_transformers

__all__ = ["character_tokenizer", "tiny_llama"]

END = "<end>"
UNKNOWN = "<unknown>"


def character_tokenizer(text: str) -> Any:
    """A fast tokenizer with one token a character of ``text``, an end token and one for all else.

    Raises:
        UserError: If transformers is not installed.

    >>> tokenizer = character_tokenizer("to be")
    >>> tokenizer("bet?")["input_ids"], tokenizer.decode(tokenizer("to be")["input_ids"])
    ([3, 4, 6, 1], 'to be')
    """
    transformers = need_transformers()
    import tokenizers

    words = [END, UNKNOWN, *sorted(set(text))]
    model = tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=UNKNOWN)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(
    vocab_size: int, *, layers: int = 2, hidden: int = 64, heads: int = 4, context: int = 256, **options: Any
) -> nn.Module:
    """A Llama with random weights.

    Args:
        vocab_size: Number of tokens.
        layers: Number of decoder layers.
        hidden: Width; the feed-forward part is three times as wide.
        heads: Attention heads; half as many keys and values.
        context: Longest sequence.
        options: Whatever else ``LlamaConfig`` takes.

    Raises:
        UserError: If transformers is not installed.
    """
    transformers = need_transformers()
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        max_position_embeddings=context,
        **{"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **options},
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model
