"""What recipes have in common that fine-tune a pretrained model on labelled texts."""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conditioned_attention.choices import Choices
from conditioned_attention.experiments.data.text.labelled import TextSets
from conditioned_attention.experiments.data.text.wordpiece import for_classifiers
from conditioned_attention.experiments.models.built import build_again
from conditioned_attention.experiments.models.text_classifier import FromRun, Pretrained
from conditioned_attention.experiments.tasks.labelled_text import LabelledText, Score
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.files import read_json
from conditioned_attention.storage.settings import place


def cramming_training(**changes: Any) -> Training:
    """Fine-tuning of JonasGeiping/cramming, ``eval=GLUE_sane``: the same for all tasks."""
    published: dict[str, Any] = {
        "epochs": 5, "batch_size": 16, "lr": 4e-5, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0,
        "clip": None, "schedule": "cosine", "warmup": 0.1, "final_lr": 0.0, "precision": "bf16",
    }  # fmt: skip
    return Training(**{**published, **changes})


@dataclass(frozen=True)
class FineTuning(Choices):
    """The settings that all recipes on labelled texts have.

    Attributes:
        pretrained: the model to start with: a folder of Hugging Face's ``save_pretrained`` with its tokenizer.
            Variants are applied after it has been loaded.  Instead, ``training.start_from`` can name a run
            of ``crammed_bert`` or ``small_bert``, or, with ``{variant}`` and ``{seed}``, each variant's own.
        dropout: dropout of embeddings, attention weights, blocks and classifier; None keeps that of the pretrained
            model.
        length: number of tokens per text, or per pair of texts; longer ones are cut.
        training: how it is trained.
    """

    pretrained: Path | None = place(None)
    dropout: float | None = 0.1
    length: int = 128
    training: Training = field(default_factory=cramming_training)

    def fine_tuned(self, read: Callable[[], TextSets], score: Score, *, tuning: bool) -> LabelledText:
        """The task, once what it starts with is known to be there: large texts take a while to read."""
        model, tokenizer = self._start()
        longest = model.classifier.config.get("max_position_embeddings", self.length)
        if not 8 <= self.length <= longest:
            raise ValueError(
                f"length must be between 8 and the {longest} tokens that the model takes, got {self.length}"
            )
        sets = read()
        return LabelledText(sets.for_tuning() if tuning else sets, model, tokenizer, self.length, score)

    def _start(self) -> tuple[Pretrained | FromRun, Any]:
        """The pretrained model and its tokenizer."""
        pattern = self.training.start_from
        if (self.pretrained is None) == (pattern is None):
            raise ValueError(
                "what to start with is pretrained=…, a folder of Hugging Face's save_pretrained, or start_from=…, a "
                f"run of crammed_bert or small_bert; got {'neither' if pattern is None else 'both'}"
            )
        if self.pretrained is not None:
            model = Pretrained(self.pretrained.expanduser(), self.dropout)
            return model, model.tokenizer()
        return _of_run(str(pattern), self.dropout)


def _of_run(pattern: str, dropout: float | None) -> tuple[FromRun, Any]:
    """The shape and the tokenizer of a run of ours; those of a comparison have the same."""
    from tokenizers import Tokenizer

    anything = glob.escape(str(Path(pattern).expanduser())).replace("{variant}", "*").replace("{seed}", "*")
    found = [Path(folder) for folder in sorted(glob.glob(anything))]
    folder = next((one for one in found if (one / "tokenizer.json").is_file()), None)
    if folder is None:
        raise FileNotFoundError(
            f"start_from={pattern!r}: there is no folder with a tokenizer.json, which a run of crammed_bert or "
            "small_bert has when it has finished"
        )
    built_of = read_json(folder / "model.json", dict[str, Any])["built_of"]
    if built_of is None:
        raise ValueError(f"start_from={pattern!r}: nothing of this package has built the model of {folder}")
    return FromRun(build_again(built_of), dropout), for_classifiers(Tokenizer.from_file(str(folder / "tokenizer.json")))
