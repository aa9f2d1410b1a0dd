"""The loss of who knows the frequencies of tokens, and nothing of their context, on what bert is scored on.

python results/language/frequencies.py [CONTEXT EVAL_BLOCKS], by default 64 256; ENGLISH as for run.sh

Of K tokens to predict, K - 2r are hidden, r are random and r stay, with r = round(K / 10).  For a hidden one the best
guess is the frequency p in the training text.  One that is shown as s stayed with probability p(s) / (p(s) + 1 / V).
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch

from conditioned_attention.experiments.data.text.wordpiece import train_wordpiece
from conditioned_attention.experiments.recipes.masked_language import SmallBert
from conditioned_attention.experiments.tasks.masked_tokens import AlwaysMasked
from conditioned_attention.experiments.tasks.next_token import spread

VOCABULARY, SAMPLED = 1024, 20_000
context, count = map(int, sys.argv[1:] or (64, 256))
recipe = SmallBert(text="english", path=Path(os.environ.get("ENGLISH", "/usr/share/dictd")), vocabulary=VOCABULARY)
(train, held), tokenizer = recipe.blocks(context, partial(train_wordpiece, vocabulary=VOCABULARY), [VOCABULARY], [])
seen = train.__getitems__(range(0, len(train), max(1, len(train) // SAMPLED)))
frequency = (torch.bincount(seen.flatten().long(), minlength=VOCABULARY) + 0.5).double()
frequency /= frequency.sum()

mask_id = tokenizer.token_to_id("<mask>")
blocks = held.part(spread(len(held), count, "eval_blocks"))
batch = AlwaysMasked(blocks, mask_id, recipe.masked).__getitems__(range(count))
labels, shown = batch["labels"], batch["input_ids"].gather(1, batch["masked_positions"])
stayed = frequency[shown] / (frequency[shown] + 1 / VOCABULARY) * (shown != mask_id)
loss = -((1 - stayed) * frequency[labels] + stayed * (labels == shown)).log().mean()
print(f"{context} tokens, {count} blocks: {loss:.4f} nats a token")
