"""Pretrained models of Hugging Face transformers with a fresh head that classifies texts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.conversion import apply_conditioning
from conditioned_attention.environment import needs
from conditioned_attention.experiments.models.built import remembered

_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "classifier_dropout_prob", "dropout",
    "attention_dropout", "embedding_dropout", "mlp_dropout", "seq_classif_dropout", "pooler_dropout",
)  # fmt: skip
# What a config says about an earlier head, and about its conditioning.
LEFT_OUT = (
    "id2label", "label2id", "conditioned_attention", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal",
)  # fmt: skip


@dataclass(frozen=True)
class TextClassifier:
    """A model of Hugging Face transformers that classifies texts, with fresh weights.

    Attributes:
        config: the content of its ``config.json``, including ``model_type``.
    """

    config: dict[str, Any]

    @remembered
    def build(self, labels: int) -> nn.Module:
        """The model; its logits are (B, labels)."""
        with needs("transformers"):
            from transformers import AutoConfig, AutoModelForSequenceClassification

        known = {name: value for name, value in self.config.items() if name not in LEFT_OUT}
        if known["model_type"] == "crammed_bert":
            import conditioned_attention.experiments.models.crammed_bert_network  # noqa: F401 - makes Auto classes know it
        config = AutoConfig.for_model(**{**known, "num_labels": labels, "problem_type": None})
        from_config: Any = AutoModelForSequenceClassification.from_config
        model: nn.Module = from_config(config)
        return model


def with_dropout(config: Any, dropout: float | None) -> dict[str, Any]:
    """Returns a config as plain data, with all its dropout probabilities set to ``dropout``; None leaves them.

    Raises:
        ValueError: ``dropout`` is not in [0, 1), or the config has no dropout.
    """
    found: dict[str, Any] = config.to_dict()
    if dropout is None:
        return found
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    names = [name for name in _DROPOUTS if name in found]
    if not names:
        raise ValueError(f"dropout={dropout}: {type(config).__name__} has none; None leaves it as it is")
    return found | dict.fromkeys(names, dropout)


class Pretrained:
    """A pretrained model from a folder of Hugging Face's ``save_pretrained``, conditioned as it was saved.

    Args:
        folder: the folder, with ``config.json`` and ``model.safetensors``, of any model that transformers can classify
            with.
        dropout: probability wherever the model has dropout; None leaves its own.

    Raises:
        FileNotFoundError: there is no such folder, or no config in it.
    """

    def __init__(self, folder: Path, dropout: float | None = None) -> None:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"there is no config.json in {folder}: it is no folder of save_pretrained")
        with needs("transformers"):
            from transformers import AutoConfig

            import conditioned_attention.experiments.models.crammed_bert_network  # noqa: F401 - as above
        self.folder = folder
        config = AutoConfig.from_pretrained(folder)
        self.record: dict[str, Any] | None = getattr(config, "conditioned_attention", None)
        self.classifier = TextClassifier(with_dropout(config, dropout))

    def tokenizer(self) -> Any:
        """Returns the tokenizer in the folder; raises ValueError if it has no token for padding."""
        from transformers import AutoTokenizer

        found: Any = AutoTokenizer.from_pretrained(self.folder)
        if found.pad_token is None:
            raise ValueError(f"the tokenizer in {self.folder} has no token for padding")
        return found

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        """The weights of the body, by their names in the classifier; the head's are left to `build`."""
        from transformers import AutoModelForSequenceClassification

        with torch.random.fork_rng(), quiet():
            model, about = AutoModelForSequenceClassification.from_pretrained(
                self.folder, output_loading_info=True, num_labels=2, ignore_mismatched_sizes=True
            )
        parts = {name for name, _ in model.base_model.named_children()}
        prefix = f"{model.base_model_prefix}."
        lost = [key for key in about["unexpected_keys"] if key.removeprefix(prefix).split(".")[0] in parts]
        if self.record and lost:
            raise ValueError(
                f"{self.folder} is conditioned with weights of its own ({sorted(lost)[0]}), which would be lost; train "
                "from the run that has them, with start_from"
            )
        left_out = {*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])}
        found = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
        body = {f"{prefix}{name}" for name in model.base_model.state_dict()}
        if not (found := {name: tensor for name, tensor in found.items() if name in body}):
            raise ValueError(f"no weight in {self.folder} fits {type(model).__name__}")
        return found

    def build(self, labels: int) -> nn.Module:
        """Returns the model with a fresh head, from torch's generator; on PyTorch's meta device, without weights."""
        model = self.classifier.build(labels)
        if self.record:
            apply_conditioning(model, self.record)
        if not any(parameter.is_meta for parameter in model.parameters()):
            model.load_state_dict(self._weights, strict=False)
        return model

    def identity(self) -> dict[str, Any]:
        """A checksum of the weights and of their names."""
        return {"pretrained": checksum_of_weights(self._weights)}


def checksum_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Returns a checksum of the names and the bytes of tensors on the CPU."""
    sums = [zlib.crc32(name.encode()) for name in weights]
    sums += [zlib.crc32(t.contiguous().view(torch.uint8).numpy().data) for t in weights.values() if t.dim()]
    return f"{zlib.crc32(str(sums).encode()):08x}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bar and its table of missing weights, since a head is meant to be fresh."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


class FromRun:
    """The shape of a model that an earlier run has trained; its weights are loaded by `Training.start_from`.

    Args:
        model: the run's model, built again; its config gives the shape.
        dropout: probability wherever the model has dropout; None leaves its own.
    """

    def __init__(self, model: Any, dropout: float | None) -> None:
        self.classifier = TextClassifier(with_dropout(model.config, dropout))

    def build(self, labels: int) -> nn.Module:
        """The model with fresh weights."""
        return self.classifier.build(labels)

    def identity(self) -> dict[str, Any]:
        """Returns an empty dictionary, since the run records where its weights come from."""
        return {}
