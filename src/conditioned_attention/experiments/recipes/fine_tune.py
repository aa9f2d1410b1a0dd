"""Fine-tuning of a pretrained decoder: the recipe ``fine_tune``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conditioned_attention.experiments.data.text.byte_pairs import without_template
from conditioned_attention.experiments.models.decoder import PretrainedDecoder
from conditioned_attention.experiments.recipes.packed_text import PackedText
from conditioned_attention.experiments.tasks.next_token import NextToken
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place


def fine_tuning() -> Training:
    """Short, and scored before the first step."""
    return Training(
        epochs=1, batch_size=8, lr=5e-5, weight_decay=0.0, evaluate_every=0.1, evaluate_first=True, monitor_every=0
    )


@dataclass(frozen=True)
class FineTune(PackedText):
    """Fine-tune a pretrained decoder on your text: what does conditioning do to it, and does it recover?

    The first evaluation is before any training, so that curves begin with the effect of the conversion alone.  Text is
    read as it is, one document after another, by the model's own tokenizer.

    Attributes:
        pretrained: the model to start with: a folder of Hugging Face's ``save_pretrained`` with its tokenizer, for any
            model that ``AutoModelForCausalLM`` supports.  Variants are applied after it has been loaded.
        trains: ``"all"`` weights, or ``"lora"``, low-rank adapters alone (peft).
        lora_rank: rank of the adapters.
        lora_targets: names of the layers that get an adapter; if empty, peft chooses them for the model.
        context: number of tokens in a training sequence.
        training: how it is trained.
    """

    pretrained: Path | None = place(None)
    trains: Literal["all", "lora"] = "all"
    lora_rank: int = 8
    lora_targets: tuple[str, ...] = ()
    context: int = 256
    training: Training = field(default_factory=fine_tuning)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, got {self.lora_rank}")
        if self.lora_targets and self.trains != "lora":
            raise ValueError(f"lora_targets={self.lora_targets} goes with trains='lora', got trains={self.trains!r}")

    def task(self, *, tuning: bool = False) -> Task:
        if self.pretrained is None:
            raise ValueError("what to start with is pretrained=…, a folder of Hugging Face's save_pretrained")
        rank = self.lora_rank if self.trains == "lora" else None
        model = PretrainedDecoder(self.pretrained.expanduser(), self.context, rank, self.lora_targets)
        notes: list[str] = []
        tokenizer = without_template(model.tokenizer())
        how = [tokenizer.to_str()]
        data, _ = self.blocks(
            self.context + 1,
            lambda _: tokenizer,
            how,
            notes,
            tuning=tuning,
            trained=False,
            behind=self.between.decode(),
        )
        return _FromPretrained(data, model, self.eval_blocks, notes, tokenizer)


class _FromPretrained(NextToken):
    """Which weights a run began with is part of what it is."""

    def fingerprint(self) -> dict[str, object]:
        assert isinstance(self._model, PretrainedDecoder)
        return {**self._model.identity(), **super().fingerprint()}
