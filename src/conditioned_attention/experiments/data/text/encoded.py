"""Labelled texts as token ids in memory, padded batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.fingerprint import checksum_of_bytes
from conditioned_attention.experiments.data.text.labelled import LabelledTexts

_MULTIPLE = 8  # batches are padded to a multiple of so many tokens
_AT_A_TIME = 1024  # texts that are encoded


class EncodedTexts(Dataset[dict[str, Tensor]]):
    """Labelled texts as token ids, all in one array one after another.

    `__getitems__` returns whole batches: ``input_ids``, ``attention_mask`` and, for tokenizers that tell the two texts
    of a pair apart by them, ``token_type_ids``, all (B, N), int64, where N is the longest length of the batch rounded
    up to a multiple of 8; ``labels`` (B,), int64, or float32 for regression; and ``set`` (B,), the number of the set
    that a text belongs to, if several sets follow each other.

    Args:
        sets: by name; all of single texts, or all of pairs.
        tokenizer: of transformers.
        length: largest number of tokens of a text, or of both texts of a pair together, of which the longer one is cut.
        regression: whether labels are numbers to predict (regression) instead of classes.
    """

    def __init__(
        self, sets: Mapping[str, LabelledTexts], tokenizer: Any, length: int, *, regression: bool = False
    ) -> None:
        self.names, self.pad = list(sets), tokenizer.pad_token_id or 0
        parts = [_encoded(texts, tokenizer, length) for texts in sets.values()]
        self.ids, self.types, self.lengths = (np.concatenate(arrays) for arrays in zip(*parts))
        self.has_types = "token_type_ids" in tokenizer.model_input_names
        self.length, self.cut = length, int((self.lengths == length).sum())
        labels = [label for texts in sets.values() for label in texts.labels]
        self.labels = np.array(labels, np.float32 if regression else np.int64)
        self.sets = np.repeat(np.arange(len(sets)), [len(texts) for texts in sets.values()])
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen = np.asarray(indices)
        longest = -(-int(self.lengths[chosen].max()) // _MULTIPLE) * _MULTIPLE
        ids = np.full((len(chosen), longest), self.pad, np.int64)
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, (end, count) in enumerate(zip(self._ends[chosen], self.lengths[chosen])):
            ids[row, :count], types[row, :count] = self.ids[end - count : end], self.types[end - count : end]
            mask[row, :count] = 1
        found = {"input_ids": ids, "attention_mask": mask, **({"token_type_ids": types} if self.has_types else {})}
        found |= {"labels": self.labels[chosen], "set": self.sets[chosen]}
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def fingerprint(self) -> dict[str, Any]:
        """The number of texts, their sets, their largest length, and a checksum of all ids and labels."""
        arrays = self.ids, self.types, self.lengths, self.labels, self.sets.astype(np.int64)
        sums = "-".join(checksum_of_bytes(np.ascontiguousarray(array)) for array in arrays)
        return {"items": len(self), "sets": self.names, "length": self.length, "checksum": sums}


def _encoded(texts: LabelledTexts, tokenizer: Any, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and types of the tokens of all texts, one text after another, and the length of each text."""
    ids, types, lengths = [np.empty(0, np.int32)], [np.empty(0, np.int8)], []
    for begin in range(0, len(texts), _AT_A_TIME):
        some = slice(begin, begin + _AT_A_TIME)
        pair = [texts.seconds[some]] if texts.seconds else []
        found = tokenizer(texts.firsts[some], *pair, truncation=True, max_length=length, return_token_type_ids=True)
        ids += [np.array(one, np.int32) for one in found["input_ids"]]
        types += [np.array(one, np.int8) for one in found["token_type_ids"]]
        lengths += [len(one) for one in found["input_ids"]]
    return np.concatenate(ids), np.concatenate(types), np.array(lengths, np.int64)
