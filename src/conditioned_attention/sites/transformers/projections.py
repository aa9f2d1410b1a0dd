"""W_Q, W_K and W_V of the attention classes of Hugging Face transformers.  Nothing of it is imported here.

Most classes have three children with names like q_proj, k_proj and v_proj and are known by them; see
`by_name`.  The others are listed here one by one: those with a fused weight, whose rows can be in any order, and
those whose names would be misleading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from conditioned_attention.sites.projections import NORMED, Projection, Projections, made_by
from conditioned_attention.sites.site import NoAttention
from conditioned_attention.sites.transformers.by_name import RELATIVE, apart, heads_of, recognise, remark_of
from conditioned_attention.sites.transformers.heads import _REFUSED, NO_SOFTMAX, by_class

__all__ = ["FOUND", "recognise"]

_QKV = ("query", "key", "value")


def _these(places: Any, module: Any) -> Projections:
    """The weights of a module at ``places``, as in `made_by`."""
    return made_by(module, places, heads_of(module), remark_of(module))


def _fewer_keys(path: str, module: Any) -> Projections:
    """[Q | K | V] with fewer key heads than query heads."""
    heads = heads_of(module)
    keys = (getattr(module, "kv_heads", 0) or module.num_key_value_heads) * module.head_dim
    return made_by(module, {path: ("qkv", (heads * module.head_dim, keys, keys))}, heads)


def _gpt2(module: Any) -> Projections:
    """[Q | K | V], and for cross-attention [K | V] beside ``q_attn``."""
    return _these({"q_attn": "q", "c_attn": "kv"} if module.is_cross_attention else {"c_attn": "qkv"}, module)


def _gpt_bigcode(module: Any) -> Projections | str:
    """[Q | K | V] where there is one key head, else head by head."""
    if module.is_cross_attention:
        return "does not run as cross-attention in transformers itself: it splits keys and values at a wrong width"
    return _fewer_keys("c_attn", module) if module.multi_query else _these({"c_attn": "H*qkv"}, module)


def _falcon(module: Any) -> Projections:
    """For each key head its queries, its key and its value: one key head, or as many as heads, or in between."""
    key_heads = module.num_kv_heads if module.new_decoder_architecture or not module.multi_query else 1
    sizes = (module.num_heads // key_heads * module.head_dim, module.head_dim, module.head_dim)
    return Projections((Projection("query_key_value", sizes=sizes, groups=key_heads),), module.num_heads)


def _codegen(module: Any) -> Projections:
    """Four parts, in each of which the values stand before the keys."""
    return Projections((Projection("qkv_proj", "qvk", groups=4),), heads_of(module))


def _levit(module: Any) -> Projections:
    """Head by head, with values wider than keys; queries have a weight of their own if they are of fewer tokens."""
    width, values = module.key_dim, module.attention_ratio * module.key_dim
    places: dict[str, Any] = {"queries_keys_values.linear": ("H*qkv", (width, width, values))}
    if hasattr(module, "queries"):
        places = {"queries.linear": "q", "keys_values.linear": ("H*kv", (width, values))}
    return made_by(module, places, heads_of(module), NORMED)


def _for_other_tokens(more: dict[str, str], module: Any) -> Projections | str:
    """Several matrices for one role, each for a different kind of tokens."""
    found = apart(_QKV, module, beside=tuple(more))
    if isinstance(found, str):
        return found
    weights = (Projection(name, role) for name, role in more.items() if hasattr(module, name))
    return replace(found, weights=(*found.weights, *weights))


def _layoutlmv2(module: Any) -> Projections | str:
    return _these({"qkv_linear": "qkv"}, module) if module.fast_qkv else apart(_QKV, module)


def _cvt(module: Any) -> Projections:
    weights = {"projection_query": "q", "projection_key": "k", "projection_value": "v"}
    return made_by(module, weights, heads_of(module), "the input of the projections passes through convolutions first")


def _xlnet(module: Any) -> Projections:
    """Parameters of the module itself, (in, heads, width)."""
    return Projections(tuple(Projection("", role, parameter=role) for role in "qkv"), heads_of(module), RELATIVE)


def _channels(module: Any) -> Projections:
    """Attention between channels, in groups."""
    return made_by(module, {"qkv": "qkv"}, module.groups)


# what makes queries, keys and values -> classes
_LISTED: dict[Callable[[Any], Projections | str], str] = {
    partial(_these, {"qkv": "qkv"}): """
        blip.BlipAttention blip_2.Blip2Attention cohere_compass.CohereCompassVisionAttention
        deepseek_ocr2.DeepseekOcr2SamVisionAttention deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention
        dots3_note.Dots3NoteVisionAttention ernie4_5_vl_moe.Ernie4_5_VLMoeVisionAttention
        florence2.Florence2VisionWindowAttention glm4v.Glm4vVisionAttention glm4v_moe.Glm4vMoeVisionAttention
        glm5_next.Glm5NextVisionAttention glm_image.GlmImageVisionAttention glm_ocr.GlmOcrVisionAttention
        got_ocr2.GotOcr2VisionAttention hiera.HieraMaskUnitAttention instructblip.InstructBlipAttention
        instructblipvideo.InstructBlipVideoAttention mgp_str.MgpstrAttention pp_formulanet.PPFormulaNetVisionAttention
        pp_ocrv5_mobile_rec.PPOCRV5MobileRecAttention pp_ocrv5_server_rec.PPOCRV5ServerRecAttention
        pp_ocrv6_small_rec.PPOCRV6SmallRecAttention qwen2_5_vl.Qwen2_5_VLVisionAttention qwen2_vl.VisionAttention
        qwen3_5.Qwen3_5VisionAttention qwen3_5_moe.Qwen3_5MoeVisionAttention
        qwen3_omni_moe.Qwen3OmniMoeVisionAttention qwen3_vl.Qwen3VLVisionAttention
        qwen3_vl_moe.Qwen3VLMoeVisionAttention qwen4_exp.Qwen4ExpVisionAttention sam.SamVisionAttention
        sam.SamVisionSdpaAttention sam2.Sam2MultiScaleAttention sam_hq.SamHQVisionAttention
        sam_hq.SamHQVisionSdpaAttention seggpt.SegGptAttention slanext.SLANeXtVisionAttention
        timesformer.TimesformerSelfAttention unlimited_ocr.UnlimitedOcrSamVisionAttention
        unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention vitdet.VitDetAttention
    """,
    _channels: "florence2.Florence2VisionChannelAttention",
    partial(_these, {"Wqkv": "qkv"}): "modernbert.ModernBertAttention mpt.MptAttention",
    partial(_these, {"att_proj": "qkv"}): "bark.BarkSelfAttention bark.BarkSelfFlashAttention2",
    partial(_these, {"c_attn": "qkv"}): "openai.Attention",
    partial(_these, {"to_q": "q", "to_kv": "kv"}): "granite_speech.GraniteSpeechConformerAttention",
    partial(_these, {"to_q": "q", "to_kv": "kv"}): "granite_speech_plus.GraniteSpeechPlusConformerAttention",
    _gpt2: "gpt2.GPT2Attention decision_transformer.DecisionTransformerGPT2Attention imagegpt.ImageGPTAttention",
    _gpt_bigcode: "gpt_bigcode.GPTBigCodeAttention",
    partial(_these, {"query_key_value": "H*qkv"}): """
        bloom.BloomAttention gpt_neox.GPTNeoXAttention gpt_neox_japanese.GPTNeoXJapaneseAttention
        persimmon.PersimmonAttention
    """,
    partial(_these, {"in_proj": "H*qkv"}): "deberta.DisentangledSelfAttention",
    partial(_these, {"proj": "H*qkv"}): "esm.modeling_esmfold.EsmFoldSelfAttention",
    partial(_fewer_keys, "qkv_proj"): "phi3.Phi3Attention phi4_multimodal.Phi4MultimodalAttention",
    partial(_fewer_keys, "Wqkv"): "dbrx.DbrxAttention",
    partial(_fewer_keys, "qkv"): "exaone4_5.Exaone4_5_VisionAttention",
    _falcon: "falcon.FalconAttention falcon.FalconFlashAttention2",
    _codegen: "codegen.CodeGenAttention",
    _levit: "levit.LevitAttention levit.LevitAttentionSubsample",
    _layoutlmv2: "layoutlmv2.LayoutLMv2SelfAttention",
    _cvt: "cvt.CvtSelfAttention",
    _xlnet: "xlnet.XLNetRelativeAttention",
    # a query and a gate for each head
    partial(_these, {"q_proj": "H*q-", "k_proj": "k", "v_proj": "v"}): """
        qwen3_5.Qwen3_5Attention qwen3_5_moe.Qwen3_5MoeAttention qwen3_next.Qwen3NextAttention
        qwen4_exp.Qwen4ExpTextAttention
    """,
    partial(apart, ("q", "k", "v"), heads=1): "chameleon.ChameleonVQVAEEncoderAttnBlock janus.JanusVQVAEAttnBlock",
    partial(_for_other_tokens, {"query_global": "q", "key_global": "k", "value_global": "v"}): """
        led.LEDEncoderSelfAttention longformer.LongformerSelfAttention
    """,
    partial(_for_other_tokens, {"w2e_query": "q", "e2w_query": "q", "e2e_query": "q"}): "luke.LukeSelfAttention",
}

# why W + λ I has no place -> classes
_REFUSALS: dict[str, str] = {
    "is linear attention, without softmax(q kᵀ)": """
        bailing_hybrid.BailingHybridDeltaAttention glm5_next.Glm5NextTextLinearAttention
        kimi_linear.KimiLinearDeltaAttention minimax.MiniMaxLightningAttention
        mobilevitv2.MobileViTV2LinearSelfAttention olmo_hybrid.OlmoHybridGatedDeltaNet
    """,
    "computes weights, and no heads": "visual_bert.VisualBertRegionToPhraseAttention",
    "attends in both directions at once, so that its queries are keys as well": """
        grounding_dino.GroundingDinoBiMultiHeadAttention mm_grounding_dino.MMGroundingDinoBiMultiHeadAttention
    """,
    "adds projections of content and of position": """
        conditional_detr.ConditionalDetrDecoderSelfAttention conditional_detr.ConditionalDetrDecoderCrossAttention
    """,
    "gets its queries, keys and values from the layer around it": "dab_detr.DabDetrAttention",
    "has a trained query in place of W_Q": "aimv2.Aimv2AttentionPoolingHead",
    "projects twice: its own projections stand before those of a MultiheadAttention": "aria.AriaCrossAttention",
    "makes its queries with experts": "jetmoe.JetMoeAttention",
    "makes queries and keys of each other, with convolutions": "zaya.ZayaAttention",
    "has a second stream, for layout, with projections of another width": "lilt.LiltSelfAttention",
    "makes queries and keys with one weight": "reformer.LSHSelfAttention",
    "attends to points in space as well": "esm.modeling_esmfold.EsmFoldInvariantPointAttention",
    "has no queries and keys": "esmfold2.EsmFold2MSAPairWeightedAveraging",
}


# class -> what makes its queries, keys and values, or why W + λ I has no place there
FOUND: dict[str, Callable[[Any], Projections | str] | str] = {
    **by_class(_LISTED),
    **{name: reason for name, reason in _REFUSED.items() if reason == NO_SOFTMAX or isinstance(reason, NoAttention)},
    **by_class(_REFUSALS),
}
