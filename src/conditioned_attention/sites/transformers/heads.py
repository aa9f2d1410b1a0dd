"""Hugging Face transformers: attention on its interface, and classes with attention of their own.

Nothing of transformers is imported here; the conditioned subclasses are in `forwards`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from conditioned_attention.sites.hook import Hook, Layout
from conditioned_attention.sites.site import Mechanism, NoAttention, class_name, plain_class
from conditioned_attention.sites.swap import derived_reason, swap_in
from conditioned_attention.sites.transformers import interface


def by_class(table: Mapping[Any, str]) -> dict[str, Any]:
    """What a table has for each class; its ``bert.BertAttention`` is transformers.models.bert.modeling_bert's."""
    found = {}
    for what, names in table.items():
        for name in names.split():
            model, _, cls = name.partition(".")
            found[f"transformers.models.{model}.{cls if '.' in cls else f'modeling_{model}.{cls}'}"] = what
    return found


# the file that holds their conditioned subclasses -> classes
_SWAPS = {
    "transformers.forwards": """
        convbert.ConvBertSelfAttention lilt.LiltSelfAttention luke.LukeSelfAttention
        nystromformer.NystromformerSelfAttention squeezebert.SqueezeBertSelfAttention xlnet.XLNetRelativeAttention
    """
}
_SWAPPED: dict[str, str] = by_class(_SWAPS)

# where the heads are -> classes
_SITES: dict[Hook, str] = {
    Hook(None, "num_attention_heads"): """
        bros.BrosSelfAttention canine.CanineSelfAttention clap.ClapAudioSelfAttention
        deberta.DisentangledSelfAttention deberta_v2.DisentangledSelfAttention
        donut.modeling_donut_swin.DonutSwinSelfAttention layoutlmv2.LayoutLMv2SelfAttention
        layoutlmv3.LayoutLMv3SelfAttention maskformer.modeling_maskformer_swin.MaskFormerSwinSelfAttention
        pp_doclayout_v2.PPDocLayoutV2ReadingOrderSelfAttention pvt.PvtEfficientSelfAttention
        superglue.SuperGlueSelfAttention swin2sr.Swin2SRSelfAttention swinv2.Swinv2SelfAttention
    """,
    # Their forwards go by the width of a head, and the number of heads follows from the size of the weights.
    Hook(None, "num_attention_heads", width="attention_head_size"): """
        big_bird.BigBirdSelfAttention bigbird_pegasus.BigBirdPegasusSelfAttention
        blip.modeling_blip_text.BlipTextSelfAttention
        data2vec.modeling_data2vec_vision.Data2VecVisionSdpaSelfAttention
        data2vec.modeling_data2vec_vision.Data2VecVisionSelfAttention flava.FlavaSelfAttention
        git.GitSelfAttention glpn.GLPNEfficientSelfAttention lxmert.LxmertAttention
        megatron_bert.MegatronBertSelfAttention mobilevit.MobileViTSelfAttention rembert.RemBertSelfAttention
        roformer.RoFormerSelfAttention tapas.TapasSelfAttention vilt.ViltSelfAttention
        visual_bert.VisualBertSelfAttention
    """,
    Hook(None): """
        cvt.CvtSelfAttention led.LEDEncoderSelfAttention longformer.LongformerSelfAttention
        perceiver.PerceiverSelfAttention timesformer.TimesformerSelfAttention
    """,
    Hook(None, layout=Layout("B N H D")): "gemma3n.Gemma3nAudioAttention",
    Hook("out_proj"): """
        bark.BarkSelfAttention clvp.ClvpSelfAttention dab_detr.DetrAttention fsmt.Attention gpt_neo.GPTNeoSelfAttention
        groupvit.GroupViTAttention led.LEDDecoderAttention mask2former.Mask2FormerAttention mvp.MvpAttention
        oneformer.OneFormerAttention pegasus_x.PegasusXGlobalLocalAttention speecht5.SpeechT5Attention
        table_transformer.TableTransformerAttention trocr.TrOCRAttention vits.VitsAttention xglm.XGLMAttention
    """,
    Hook("out_proj", "num_attention_heads"): """
        codegen.CodeGenAttention gptj.GPTJAttention grounding_dino.GroundingDinoMultiheadAttention
        mm_grounding_dino.MMGroundingDinoMultiheadAttention omdet_turbo.OmDetTurboMultiheadAttention
        zoedepth.ZoeDepthMultiheadAttention
    """,
    Hook("out_proj", "n_heads"): "mpt.MptAttention",
    Hook("out_proj", "num_attn_heads"): "prophetnet.ProphetNetAttention prophetnet.ProphetNetNgramSelfAttention",
    Hook("proj"): """
        hiera.HieraMaskUnitAttention mgp_str.MgpstrAttention oneformer.OneFormerTextMapperAttention
        vitdet.VitDetAttention
    """,
    Hook("proj", "num_attention_heads"): """
        deepseek_ocr2.DeepseekOcr2SamVisionAttention deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention
        got_ocr2.GotOcr2VisionAttention pp_formulanet.PPFormulaNetVisionAttention pvt_v2.PvtV2SelfAttention
        sam.SamVisionAttention sam.SamVisionSdpaAttention sam_hq.SamHQVisionAttention sam_hq.SamHQVisionSdpaAttention
        seggpt.SegGptAttention slanext.SLANeXtVisionAttention unlimited_ocr.UnlimitedOcrSamVisionAttention
        unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention
    """,
    Hook("dense"): "bloom.BloomAttention falcon.FalconAttention",
    Hook("dense", "num_attention_heads"): "gpt_neox_japanese.GPTNeoXJapaneseAttention tvp.TvpAttention",
    Hook("out_lin", "n_heads"): "flaubert.MultiHeadAttention xlm.MultiHeadAttention",
    Hook("o", "n_heads"): "longt5.LongT5LocalAttention longt5.LongT5TransientGlobalAttention",
    Hook("o", "num_attention_heads", width="attention_head_size"): "mpnet.MPNetSelfAttention",
    Hook("c_proj", "n_head"): "openai.Attention",
    Hook("c_proj"): "imagegpt.ImageGPTAttention",
    Hook("activation", "num_attention_heads"): "levit.LevitAttention levit.LevitAttentionSubsample",
    # On the interface, in a file that compares the implementation's name.
    Hook("o_proj", "config.num_attention_heads", width="head_dim"): "gemma4.Gemma4TextAttention",
    Hook("projection"): "blip.BlipAttention",
    Hook("post"): "gemma4.Gemma4AudioAttention",
    Hook("attention_out"): "cpmant.CpmAntAttention",
    Hook("linear_out"): "fastspeech2_conformer.FastSpeech2ConformerAttention",
    Hook("to_out"): "granite_speech.GraniteSpeechConformerAttention",
    Hook("output_proj"): "aimv2.Aimv2AttentionPoolingHead",
    Hook("output_proj", "attention_heads"): "dab_detr.DabDetrAttention",
    Hook("post_proj", "config.n_head"): "funnel.FunnelRelMultiheadAttention",
    Hook("proj_out", 1, Layout("B H*D N")): "chameleon.ChameleonVQVAEEncoderAttnBlock janus.JanusVQVAEAttnBlock",
}
_HOOKED: dict[str, Hook] = by_class(_SITES)

NO_SOFTMAX = "does not compute softmax(q kᵀ) v"

# why heads cannot be reached, or why there are none -> classes
_REFUSALS: dict[str, str] = {
    NoAttention("computes weights, and no heads"): """
        conditional_detr.ConditionalDetrMHAttentionMap dab_detr.DabDetrMHAttentionMap detr.DetrMHAttentionMap
        maskformer.MaskFormerDetrMHAttentionMap
    """,
    "is replaced by its model when a short input comes: call model.set_attention_type('original_full') first": """
        big_bird.BigBirdBlockSparseAttention bigbird_pegasus.BigBirdPegasusBlockSparseAttention
    """,
    "attends in both directions at once, with an output projection for each": """
        grounding_dino.GroundingDinoBiMultiHeadAttention mm_grounding_dino.MMGroundingDinoBiMultiHeadAttention
    """,
    "gates or mixes its heads in its own forward": """
        esm.modeling_esmfold.EsmFoldInvariantPointAttention esm.modeling_esmfold.EsmFoldSelfAttention
        granite_speech_plus.GraniteSpeechPlusConformerAttention
    """,
    "fills in averages of the values for queries that it does not look at": "informer.InformerProbSparseAttention",
    "returns its heads together with their scale of quantisation": "ibert.IBertSelfAttention",
    NO_SOFTMAX: """
        groupvit.GroupViTAssignAttention mra.MraSelfAttention swiftformer.SwiftFormerEfficientAdditiveAttention
        yoso.YosoSelfAttention
    """,
    "gives its output projection's weight to torch.nn.functional, so that no module gets the heads": """
        wavlm.WavLMAttention
    """,
}
_REFUSED: dict[str, str] = by_class(_REFUSALS)
_KNOWN = {*_SWAPPED, *_HOOKED, *_REFUSED}


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of transformers, or the reason why there is none; None if it is no attention."""
    cls = plain_class(module)
    name = class_name(cls)
    if name in _SWAPPED:
        return swap_in(_SWAPPED[name], cls)
    if name in _HOOKED:
        return _HOOKED[name].missing(module) or _passed_by(module) or _HOOKED[name]
    if name in _REFUSED:
        return type(_REFUSED[name])(f"{cls.__qualname__} {_REFUSED[name]}")
    return interface.recognise(module) or derived_reason(cls, _KNOWN)


def _passed_by(module: nn.Module) -> str:
    """Why the submodule at the hook would not be called; empty if it is."""
    if getattr(module, "slow_but_exact", False) and getattr(module, "pretraining_tp", 1) > 1:  # Bloom's
        return "slow_but_exact with pretraining_tp > 1 reads the weight of the output projection instead of calling it"
    return ""
