"""W_Q, W_K and W_V of attention classes that have three children named like q_proj, k_proj and v_proj.

This is only for classes of Hugging Face transformers, where some 450 of 600 are written in this way.  The rule: the
three names are an entry of `_APART`; each child is one matrix (`_path`); whatever else has parameters is in `_BESIDE`,
so that it is known what it does; and the number of query rows is heads times width, so that they are queries alone.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from conditioned_attention.sites.projections import NORMED, Projection, Projections

_NAMES = """
    q_proj k_proj v_proj, query key value, query_proj key_proj value_proj, q_lin k_lin v_lin,
    linear_q linear_k linear_v, project_q project_k project_v, q_head k_head v_head, to_q to_k to_v, Wq Wk Wv, q k v
"""
_APART = tuple(tuple(names.split()) for names in _NAMES.split(","))

RELATIVE = "keys or queries that stand for relative positions stay as they are"

# what has parameters beside the three and leaves W_Q, W_K and W_V what they are, and what a report says about it
_REMARKS: tuple[tuple[str, str], ...] = (
    # the output with its norms and gates, and norms of the input
    ("", "o_proj out_proj o proj projection projection_layer output dense out_lin linear_out linear_o Wo to_out post"),
    ("", "post_proj proj_out attention_out output_projection c_proj LayerNorm layer_norm groupnorm attn_sub_norm"),
    ("", "inner_attn_ln o_norm gate_proj gate_bias g_proj linear_g"),
    ("", "layernorm1 layernorm2 norm global_input_layer_norm pre_norm"),
    # the parameters of this library's own controls, in sites/learned.py
    ("", "head_gain head_gate head_power head_temperature"),
    # what is added to the scores or scales them, whatever queries and keys are
    ("", "sinks sink_proj scaling per_dim_scale logit_scale relative_attention_bias rpb relative_position_bias"),
    ("", "relative_position_bias_table continuous_position_bias_mlp lambda_q1 lambda_k1 lambda_q2 lambda_k2"),
    ("", "pooling_attention_query"),
    (
        NORMED,
        "q_norm k_norm v_norm qk_norm q_layernorm k_layernorm query_layernorm key_layernorm q_layer_norm k_layer_norm "
        "q_l2_clip k_l2_clip",
    ),
    (
        RELATIVE,
        "linear_pos pos_bias_u pos_bias_v relative_k_proj bias_u bias_v distance_embedding rel_pos_emb r_proj "
        "rel_logits_proj rel_l2_clip r_kernel r_w_bias r_r_bias r_s_bias seg_embed emb_rel_k emb_rel_v pos_proj "
        "pos_q_proj pos_key_proj pos_query_proj relative_position_embedding relative_pos_embeddings rel_attn_embed "
        "gru_rel_pos_const gru_rel_pos_linear global_relative_attention_bias rel_pos_h rel_pos_w",
    ),
    ("keys and values pass through a convolution as well", "sequence_reduction spatial_reduction sr k_sconv v_sconv"),
    (
        "queries or values go into a convolution beside the attention too",
        "conv fsmn key_conv_attn_layer conv_kernel_layer conv_out_layer",
    ),
    ("the values make part of the mask too", "A dt_proj"),
    ("what lies along a token's own value is taken off its output", "exclusive_self_attention"),
    ("the projections that choose the keys to look at stay as they are", "indexer"),
)
_BESIDE = {name: remark for remark, names in _REMARKS for name in names.split()}

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_attn_heads", "no_heads")
_WIDTHS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "qk_channels_per_head", "c_hidden")

# what some attention classes have instead of three projections -> why that is no place for W + λ I
_LOW_RANK = "makes its keys and values, or its queries, with a product of low rank"
_INSTEAD = {
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa", "kv_b_proj"), _LOW_RANK),
    "sampling_offsets": "finds the places to look at from its queries alone, and has no keys",
}


def recognise(module: nn.Module) -> Projections | str | None:
    """Three projections by their names; the reason if something speaks against them; None if there are none."""
    instead = next((reason for name, reason in _INSTEAD.items() if hasattr(module, name)), None)
    return instead or next((apart(names, module) for names in _APART if hasattr(module, names[0])), None)


def apart(names: tuple[str, ...], module: Any, *, heads: int = 0, beside: tuple[str, ...] = ()) -> Projections | str:
    """Three matrices; the module may also have parameters with the names in ``beside`` and in `_BESIDE`."""
    missing = [name for name in names if getattr(module, name, None) is None]
    if missing:
        return f"has {names[0]} and no {' and '.join(missing)}: one matrix makes two of them, or another module does"
    paths = {name: _path(module, name) for name in names}
    for name, path in paths.items():
        if path is None:
            return f"{name} is a {type(getattr(module, name)).__name__}, which is not one matrix"
    unknown = [name for name in _with_parameters(module) if name not in (*names, *beside, *_BESIDE)]
    if unknown:
        return f"has {', '.join(unknown)} beside {', '.join(names)}, whose effect is unknown"
    weights = tuple(Projection(path, role) for path, role in zip(paths.values(), "qkv") if path is not None)
    rows, width = weights[0].rows(module)["q"].count, _first(module, _WIDTHS)
    heads = heads or heads_of(module) or (rows // width if width else 0)
    if not heads or heads * (width or rows // heads) != rows:
        return f"has {rows} rows of queries, which are not {heads} heads" + (f" of width {width}" if width else "")
    return Projections(weights, heads, remark_of(module))


def _path(module: nn.Module, name: str) -> str | None:
    """The path of a child's matrix: the child itself, or the one in a wrapper (Gemma 4, Moshi); None if it has none."""
    for path in (name, f"{name}.linear"):
        try:
            child = Projection(path).owner(module)
        except AttributeError:
            continue
        if isinstance(child, nn.Linear):
            return path
        if isinstance(child, (nn.Conv1d, nn.Conv2d)) and prod(child.kernel_size) == child.groups == 1:
            return path
    return None


def _with_parameters(module: nn.Module) -> list[str]:
    """The names of the parameters of a module, and of its children that have any."""
    children = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
    return [*(name for name, parameter in module._parameters.items() if parameter is not None), *children]


def remark_of(module: nn.Module) -> str:
    """What a report says about the other parts of a module, beside its projections."""
    children = [name for name, child in module.named_children() if not isinstance(child, nn.Identity)]
    return "; ".join(
        dict.fromkeys(remark for name in [*module._parameters, *children] if (remark := _BESIDE.get(name)))
    )


def heads_of(module: Any) -> int:
    """The number of query heads: the module's, or else that of its config; 0 if neither has it."""
    return _first(module, _HEADS) or _first(getattr(module, "config", None), _HEADS) or 0


def _first(holder: Any, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(holder, name, None), int)), None)
