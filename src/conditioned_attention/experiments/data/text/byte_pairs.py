"""Byte-pair encoding (BPE) trained on the text at hand, like GPT-2's: it encodes every text, and no byte is lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from conditioned_attention.environment import needs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<end>"  # the end of a document, id 0
BYTES = 257  # the smallest vocabulary: every byte, and the end of a document


def train_byte_pairs(texts: Iterable[str], vocabulary: int = 4096) -> Tokenizer:
    """Trains a tokenizer of bytes and frequent sequences of bytes, which ends every text with ``<end>``.

    Args:
        texts: to train it on.
        vocabulary: largest number of tokens; 257 are the bytes alone.  A small text gives fewer: see
            ``get_vocab_size()``.

    Raises:
        ValueError: ``vocabulary`` is below 257.

    >>> tokenizer = train_byte_pairs(["the cat, the mat"], 260)
    >>> ids = tokenizer.encode("the Ä").ids
    >>> tokenizer.decode(ids), bytes_of_tokens(tokenizer)[ids].tolist()
    ('the Ä', [3, 1, 1, 1, 0])
    """
    if vocabulary < BYTES:
        raise ValueError(f"vocabulary must be at least {BYTES}, all bytes and the end of a document, got {vocabulary}")
    with needs("transformers"):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    return tokenizer  # type: ignore[no-any-return]


def without_template(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, but one that adds no tokens of its own to a text and neither truncates nor pads it."""
    from tokenizers import Tokenizer, processors

    plain: Any = Tokenizer.from_str(tokenizer.to_str())
    plain.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    plain.no_truncation()
    plain.no_padding()
    return plain  # type: ignore[no-any-return]


def bytes_of_tokens(tokenizer: Tokenizer) -> np.ndarray | None:
    """How many bytes of text each token stands for, (V,), int64; 0 for special tokens.

    None for tokenizers that do not work on bytes (such as WordPiece, which loses capitals), where this is not known.
    """
    from tokenizers import decoders

    known: Any = tokenizer
    if not isinstance(known.decoder, decoders.ByteLevel):
        return None
    special = {i for i, token in known.get_added_tokens_decoder().items() if token.special}
    tokens = {i: token for token, i in known.get_vocab().items()}
    found = np.zeros(max(tokens) + 1, np.int64)
    for i, token in tokens.items():
        found[i] = 0 if i in special else len(token)  # the tokenizer writes each byte as one letter
    return found
