"""Pretrained decoders of Hugging Face transformers, as they are or with low-rank adapters (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.conversion import apply_conditioning
from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.built import remembered
from conditioned_attention.experiments.models.text_classifier import LEFT_OUT, checksum_of_weights, quiet


@dataclass(frozen=True)
class Decoder:
    """A causal language model of Hugging Face transformers with fresh weights.

    Attributes:
        config: the content of its ``config.json``, including ``model_type``.
        lora_rank: rank of LoRA's adapters (peft), which then are all that is trained; None trains every weight.
        lora_targets: names of the layers that get an adapter; if empty, those that peft chooses for such a model.
    """

    config: dict[str, Any]
    lora_rank: int | None = None
    lora_targets: tuple[str, ...] = ()

    @remembered
    def build(self) -> nn.Module:
        """The model in float32; it maps ids (B, L), int64, to logits (B, L, V)."""
        with needs("transformers"):
            from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(
            **{name: v for name, v in self.config.items() if name not in (*LEFT_OUT, "dtype")}
        )
        from_config: Any = AutoModelForCausalLM.from_config
        return self._adapted(from_config(config, dtype=torch.float32))

    def _adapted(self, model: Any) -> nn.Module:
        if self.lora_rank is None:
            return model  # type: ignore[no-any-return]
        try:
            from peft import LoraConfig, get_peft_model
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("LoRA needs peft: pip install peft", name="peft") from error
        targets = list(self.lora_targets) or None
        lora: nn.Module = get_peft_model(
            model,
            LoraConfig(task_type="CAUSAL_LM", r=self.lora_rank, lora_alpha=self.lora_rank, target_modules=targets),
        )
        return lora


class PretrainedDecoder:
    """A decoder from a folder of Hugging Face's ``save_pretrained``, conditioned as it was saved.

    Args:
        folder: the folder, with ``config.json``, ``model.safetensors`` and a tokenizer.
        context: number of tokens that it is trained on at a time.
        lora_rank, lora_targets: as in `Decoder`.

    Raises:
        FileNotFoundError: there is no such folder, or no config in it.
        ValueError: the model takes fewer tokens than ``context``.
    """

    def __init__(
        self, folder: Path, context: int, lora_rank: int | None = None, lora_targets: tuple[str, ...] = ()
    ) -> None:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"there is no config.json in {folder}: it is no folder of save_pretrained")
        with needs("transformers"):
            from transformers import AutoConfig

        config: Any = AutoConfig.from_pretrained(folder)
        longest = getattr(config, "max_position_embeddings", context)
        if not 2 <= context <= longest:
            raise ValueError(f"context must be between 2 and the {longest} tokens that the model takes, got {context}")
        self.folder, self.context = folder, context
        self.record: dict[str, Any] | None = getattr(config, "conditioned_attention", None)
        self.decoder = Decoder(config.to_dict(), lora_rank, lora_targets)

    def tokenizer(self) -> Any:
        """Returns the tokenizer in the folder, as one of the library ``tokenizers``.

        Raises:
            ValueError: it is of another kind.
        """
        from transformers import AutoTokenizer

        found: Any = AutoTokenizer.from_pretrained(self.folder)
        if not hasattr(found, "backend_tokenizer"):
            raise ValueError(f"the tokenizer in {self.folder} is not one of the tokenizers library (no tokenizer.json)")
        return found.backend_tokenizer

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(), quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=torch.float32, attn_implementation="sdpa" if self.record else None
            )
        found: dict[str, Tensor] = model.state_dict()
        return found

    def build(self, vocabulary: int) -> nn.Module:
        """Returns the model with its pretrained weights; on PyTorch's meta device, without weights.

        Raises:
            ValueError: the model has fewer tokens than ``vocabulary``.
        """
        if vocabulary > self.decoder.config["vocab_size"]:
            size = self.decoder.config["vocab_size"]
            raise ValueError(f"the tokenizer in {self.folder} has {vocabulary} tokens, and the model {size}")
        model = self.decoder.build()
        inner: Any = model.get_base_model() if self.decoder.lora_rank is not None else model  # type: ignore[operator]
        if self.record:
            apply_conditioning(model, self.record)
        if not any(parameter.is_meta for parameter in model.parameters()):
            there = inner.state_dict(keep_vars=True)
            with torch.no_grad():
                for name, weight in self._weights.items():
                    there[name if name in there else _wrapped(name)].copy_(weight)
        return model

    def identity(self) -> dict[str, Any]:
        """A checksum of the weights and of their names."""
        return {"pretrained": checksum_of_weights(self._weights)}


def _wrapped(name: str) -> str:
    """The name of a weight in a layer that has an adapter."""
    layer, _, parameter = name.rpartition(".")
    return f"{layer}.base_layer.{parameter}"
