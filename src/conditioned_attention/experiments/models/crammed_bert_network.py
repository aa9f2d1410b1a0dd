"""Crammed BERT as a Hugging Face model, so that it is saved, loaded, converted and fine-tuned like any other.

Geiping and Goldstein 2022 (arXiv 2212.14034), as in JonasGeiping/cramming, except for the layout of two weights: W_Q,
W_K and W_V are three matrices and not one, and the first layer of the MLP returns [value | gate].  Importing this
module registers ``"crammed_bert"`` with ``AutoConfig``, ``AutoModel``, ``AutoModelForMaskedLM`` and
``AutoModelForSequenceClassification``.

Shapes: B batch, N tokens, D width, V vocabulary, K predicted positions of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs


class CrammedBertConfig(PreTrainedConfig):
    """Sizes of a `CrammedBertModel`; the defaults are the published ones, 119,589,889 parameters.

    Args:
        vocab_size: V.
        hidden_size: D, even.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads per block; they must divide D.
        intermediate_size: output width of the first layer of an MLP, even: half of it is a gate for the other half.
        max_position_embeddings: length of the longest sequence.
        hidden_dropout_prob: dropout of embeddings, and of what blocks add.  The authors pretrain with 0 and fine-tune
            with 0.1.
        attention_probs_dropout_prob: dropout of attention weights; the authors use the same values.
        classifier_dropout: dropout before the classifier, which is used in fine-tuning only.
        pooler_size: width between the first token and the classifier.
        initializer_range: standard deviation of the initial weights.
        layer_norm_eps: eps of all layer norms.
        pad_token_id: id of the token whose embedding is 0 and stays so.
        tie_word_embeddings: whether the output layer shares its weights with the embedding.
        kwargs: what every config of transformers takes.

    Raises:
        ValueError: heads do not divide the width, or a size that has to be even is not.
    """

    model_type = "crammed_bert"

    def __init__(
        self,
        vocab_size: int = 32768,
        hidden_size: int = 768,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        max_position_embeddings: int = 128,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        classifier_dropout: float = 0.1,
        pooler_size: int = 1024,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int = 0,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        if hidden_size % num_attention_heads or hidden_size % 2 or intermediate_size % 2:
            raise ValueError(
                "num_attention_heads must divide hidden_size, and hidden_size and intermediate_size be even, got "
                f"{num_attention_heads}, {hidden_size} and {intermediate_size}"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.pooler_size = pooler_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        kwargs.update(pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings)
        super().__init__(**kwargs)


class CrammedBertEmbeddings(nn.Module):
    """Word embeddings plus sines and cosines of the position times one learned number, then a layer norm."""

    def __init__(self, config: CrammedBertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_scale = nn.Parameter(torch.full((1,), width**-0.5))
        self.register_buffer("positions", sinusoids(config.max_position_embeddings, width))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        positions: Any = self.positions
        length = words.shape[1]
        if length > len(positions):
            raise ValueError(f"a sequence may have max_position_embeddings={len(positions)} tokens, got {length}")
        embedded: Tensor = self.dropout(self.norm(words + self.position_scale * positions[:length]))
        return embedded

    @torch.no_grad()
    def start(self) -> None:
        """Sets the factor of the positions and the embedding of padding to their initial values."""
        init.constant_(self.position_scale, self.word_embeddings.embedding_dim**-0.5)
        padding = self.word_embeddings.padding_idx
        if padding is not None and not getattr(self.word_embeddings.weight, "_is_hf_initialized", False):
            self.word_embeddings.weight[padding].zero_()


def sinusoids(length: int, width: int) -> Tensor:
    """Alternating sines and cosines (length, width), of frequencies 10,000^(-2i / width) for i below width / 2."""
    positions = torch.arange(length, dtype=torch.get_default_dtype())[:, None]
    frequencies = torch.exp(torch.arange(0, width, 2, dtype=positions.dtype) * (-math.log(10_000) / width))
    angles = positions * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class CrammedBertAttention(nn.Module):
    """Softmax attention without biases, through transformers' attention interface."""

    is_causal = False

    def __init__(self, config: CrammedBertConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(4)
        )

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Any]:
        shape = (*hidden.shape[:-1], self.num_heads, self.head_dim)
        q, k, v = (layer(hidden).view(shape).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        heads, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.head_dim**-0.5, **kwargs)
        return self.o_proj(heads.reshape(hidden.shape)), weights


class CrammedBertMLP(nn.Module):
    """GEGLU without biases: the first half of the output of ``fc1``, times GELU of the second (Shazeer 2020)."""

    def __init__(self, config: CrammedBertConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size // 2, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        values, gate = self.fc1(hidden).chunk(2, dim=-1)
        found: Tensor = self.fc2(values * F.gelu(gate))
        return found


class CrammedBertBlock(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: CrammedBertConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CrammedBertAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CrammedBertMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        hidden = hidden + self.dropout(self.attention(self.norm1(hidden), attention_mask, **kwargs)[0])
        found: Tensor = hidden + self.dropout(self.mlp(self.norm2(hidden)))
        return found


class CrammedBertPreTrainedModel(PreTrainedModel):
    """The base class of the model and of those with heads."""

    config_class = CrammedBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CrammedBertBlock"]  # noqa: RUF012 - not a class variable there
    _can_record_outputs = {"hidden_states": CrammedBertBlock, "attentions": CrammedBertAttention}  # noqa: RUF012 - not a class variable there

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CrammedBertEmbeddings):
            module.start()
            init.copy_(module.positions, sinusoids(*module.positions.shape))  # type: ignore[arg-type, misc]


class CrammedBertModel(CrammedBertPreTrainedModel):
    """Maps ids (B, N) to hidden states (B, N, D), after the last layer norm."""

    def __init__(self, config: CrammedBertConfig) -> None:
        super().__init__(config)
        self.embeddings = CrammedBertEmbeddings(config)
        self.layers = nn.ModuleList(CrammedBertBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

    @can_return_tuple
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        hidden = self.embeddings(input_ids, inputs_embeds)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=attention_mask)
        for layer in self.layers:
            hidden = layer(hidden, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


class CrammedBertForMaskedLM(CrammedBertPreTrainedModel):
    """Predicts masked tokens, with the embedding as its output layer and no further layer before that.

    With ``masked_positions`` (B, K), int64, it computes logits (B, K, V) only there, and ``labels`` are (B, K); for a
    quarter of the tokens, the largest layer takes a quarter of the time and memory.  Without it, logits are (B, N, V)
    and labels (B, N).  Labels of -100 do not count.
    """

    _tied_weights_keys = {"decoder.weight": "model.embeddings.word_embeddings.weight"}  # noqa: RUF012 - not a class variable there

    def __init__(self, config: CrammedBertConfig) -> None:
        super().__init__(config)
        self.model = CrammedBertModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        masked_positions: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        found = self.model(input_ids, attention_mask, inputs_embeds, **kwargs)
        hidden = found.last_hidden_state
        if masked_positions is not None:
            hidden = hidden.gather(1, masked_positions[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.decoder(hidden)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=found.hidden_states, attentions=found.attentions)


class CrammedBertForSequenceClassification(CrammedBertPreTrainedModel):
    """Computes logits (B, classes) from the first token; the layers after it have biases, as the authors' do.

    With a single label it does regression, and labels are numbers.
    """

    def __init__(self, config: CrammedBertConfig) -> None:
        super().__init__(config)
        self.model = CrammedBertModel(config)
        self.pooler = nn.Linear(config.hidden_size, config.pooler_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.pooler_size, config.num_labels or 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        found = self.model(input_ids, attention_mask, inputs_embeds, **kwargs)
        pooled = torch.tanh(self.pooler(found.last_hidden_state[:, 0]))
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=found.hidden_states, attentions=found.attentions
        )


AutoConfig.register("crammed_bert", CrammedBertConfig)
AutoModel.register(CrammedBertConfig, CrammedBertModel)
AutoModelForMaskedLM.register(CrammedBertConfig, CrammedBertForMaskedLM)
AutoModelForSequenceClassification.register(CrammedBertConfig, CrammedBertForSequenceClassification)
