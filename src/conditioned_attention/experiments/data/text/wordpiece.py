"""WordPiece trained on the text at hand, as in JonasGeiping/cramming; the same text gives the same vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from conditioned_attention.environment import needs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>")  # ids 0 to 6
PAD, _, _, _, CLS, SEP, MASK = range(len(SPECIAL))

# Reserved, since the trainer would number these pieces in the random order of a hash table, and breaks ties by number.
_WITHIN_WORDS = tuple(f"##{chr(code)}" for code in range(33, 127))


def train_wordpiece(texts: Iterable[str], vocabulary: int = 32768) -> Tokenizer:
    """Trains a tokenizer of lowercase ASCII words and pieces of them, with `SPECIAL` at ids 0 to 6.

    One text is encoded as ``text <sep>``, two as ``<cls> first <sep> second <sep>``; ``decode`` puts pieces together.

    Args:
        texts: to train it on.
        vocabulary: largest number of pieces; a small text gives fewer: see ``get_vocab_size()``.

    Raises:
        ValueError: ``vocabulary`` has no room for the special tokens and the letters.

    >>> tokenizer = train_wordpiece(["A cat sat on a mat. The cat sat."])
    >>> tokenizer.encode("The CÁT", "sat").tokens
    ['<cls>', 'the', 'cat', '<sep>', 'sat', '<sep>']
    """
    least = len(SPECIAL) + 2 * len(_WITHIN_WORDS)
    if vocabulary < least:
        raise ValueError(f"vocabulary must be at least {least}, for special tokens and letters, got {vocabulary}")
    with needs("transformers"):
        from tokenizers import trainers
    untrained = _with_rules({})
    reserved = [*SPECIAL, *_WITHIN_WORDS]
    untrained.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=reserved, show_progress=False)
    )
    return _with_rules(untrained.get_vocab())


def _with_rules(vocabulary: dict[str, int]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer: Any = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFD(),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(r"[^\x00-\x7F]+"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <sep>", pair="<cls> $A <sep> $B <sep>", special_tokens=[("<cls>", CLS), ("<sep>", SEP)]
        )
    return tokenizer  # type: ignore[no-any-return]


def for_classifiers(tokenizer: Tokenizer) -> Any:
    """The same tokenizer for transformers, with ``<cls>`` before a single text too, because a classifier reads it.

    The authors get it by passing an empty second text, and so have a second ``<sep>`` at the end.

    >>> made = for_classifiers(train_wordpiece(["A cat sat on a mat. The cat sat."]))
    >>> made.convert_ids_to_tokens(made("The cat")["input_ids"])
    ['<cls>', 'the', 'cat', '<sep>']
    """
    from tokenizers import Tokenizer, processors

    with needs("transformers"):
        import transformers

    made: Any = transformers.PreTrainedTokenizerFast
    ours: Any = Tokenizer.from_str(tokenizer.to_str())
    ours.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", pair="<cls> $A <sep> $B <sep>", special_tokens=[("<cls>", CLS), ("<sep>", SEP)]
    )
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "cls", "sep", "mask")}
    return made(tokenizer_object=ours, model_input_names=["input_ids", "attention_mask"], **names)
