"""Hugging Face transformers: attention on its interface, and classes with attention of their own.

Nothing of transformers is imported here; the classes that are swapped stand in `forwards`.
"""

from __future__ import annotations

from torch import nn

from conditioned_attention.sites.hook import Hook, Layout
from conditioned_attention.sites.site import Mechanism, NoAttention, class_name, plain_class
from conditioned_attention.sites.swap import derived_reason, swap_in
from conditioned_attention.sites.transformers import interface

_MODELS = "transformers.models."

# class -> its conditioned subclass in `forwards`
_SWAPPED = {
    _MODELS + "convbert.modeling_convbert.ConvBertSelfAttention": "ConditionedConvBert",
    _MODELS + "lilt.modeling_lilt.LiltSelfAttention": "ConditionedLilt",
    _MODELS + "luke.modeling_luke.LukeSelfAttention": "ConditionedLuke",
    _MODELS + "nystromformer.modeling_nystromformer.NystromformerSelfAttention": "ConditionedNystromformer",
    _MODELS + "squeezebert.modeling_squeezebert.SqueezeBertSelfAttention": "ConditionedSqueezeBert",
    _MODELS + "xlnet.modeling_xlnet.XLNetRelativeAttention": "ConditionedXLNet",
}

# where the heads are -> classes
_SITES: tuple[tuple[Hook, tuple[str, ...]], ...] = (
    (
        Hook(None, "num_attention_heads"),
        (
            "big_bird.modeling_big_bird.BigBirdSelfAttention",
            "bigbird_pegasus.modeling_bigbird_pegasus.BigBirdPegasusSelfAttention",
            "blip.modeling_blip_text.BlipTextSelfAttention",
            "bros.modeling_bros.BrosSelfAttention",
            "canine.modeling_canine.CanineSelfAttention",
            "clap.modeling_clap.ClapAudioSelfAttention",
            "data2vec.modeling_data2vec_vision.Data2VecVisionSdpaSelfAttention",
            "data2vec.modeling_data2vec_vision.Data2VecVisionSelfAttention",
            "deberta.modeling_deberta.DisentangledSelfAttention",
            "deberta_v2.modeling_deberta_v2.DisentangledSelfAttention",
            "donut.modeling_donut_swin.DonutSwinSelfAttention",
            "flava.modeling_flava.FlavaSelfAttention",
            "git.modeling_git.GitSelfAttention",
            "glpn.modeling_glpn.GLPNEfficientSelfAttention",
            "layoutlmv2.modeling_layoutlmv2.LayoutLMv2SelfAttention",
            "layoutlmv3.modeling_layoutlmv3.LayoutLMv3SelfAttention",
            "lxmert.modeling_lxmert.LxmertAttention",
            "maskformer.modeling_maskformer_swin.MaskFormerSwinSelfAttention",
            "megatron_bert.modeling_megatron_bert.MegatronBertSelfAttention",
            "mobilevit.modeling_mobilevit.MobileViTSelfAttention",
            "pp_doclayout_v2.modeling_pp_doclayout_v2.PPDocLayoutV2ReadingOrderSelfAttention",
            "pvt.modeling_pvt.PvtEfficientSelfAttention",
            "rembert.modeling_rembert.RemBertSelfAttention",
            "roformer.modeling_roformer.RoFormerSelfAttention",
            "superglue.modeling_superglue.SuperGlueSelfAttention",
            "swin2sr.modeling_swin2sr.Swin2SRSelfAttention",
            "swinv2.modeling_swinv2.Swinv2SelfAttention",
            "tapas.modeling_tapas.TapasSelfAttention",
            "vilt.modeling_vilt.ViltSelfAttention",
            "visual_bert.modeling_visual_bert.VisualBertSelfAttention",
        ),
    ),
    (
        Hook(None),
        (
            "cvt.modeling_cvt.CvtSelfAttention",
            "led.modeling_led.LEDEncoderSelfAttention",
            "longformer.modeling_longformer.LongformerSelfAttention",
            "perceiver.modeling_perceiver.PerceiverSelfAttention",
            "timesformer.modeling_timesformer.TimesformerSelfAttention",
        ),
    ),
    (Hook(None, layout=Layout("B N H D")), ("gemma3n.modeling_gemma3n.Gemma3nAudioAttention",)),
    (
        Hook("out_proj"),
        (
            "bark.modeling_bark.BarkSelfAttention",
            "clvp.modeling_clvp.ClvpSelfAttention",
            "dab_detr.modeling_dab_detr.DetrAttention",
            "fsmt.modeling_fsmt.Attention",
            "gpt_neo.modeling_gpt_neo.GPTNeoSelfAttention",
            "groupvit.modeling_groupvit.GroupViTAttention",
            "led.modeling_led.LEDDecoderAttention",
            "mask2former.modeling_mask2former.Mask2FormerAttention",
            "mvp.modeling_mvp.MvpAttention",
            "oneformer.modeling_oneformer.OneFormerAttention",
            "pegasus_x.modeling_pegasus_x.PegasusXGlobalLocalAttention",
            "speecht5.modeling_speecht5.SpeechT5Attention",
            "table_transformer.modeling_table_transformer.TableTransformerAttention",
            "trocr.modeling_trocr.TrOCRAttention",
            "vits.modeling_vits.VitsAttention",
            "xglm.modeling_xglm.XGLMAttention",
        ),
    ),
    (
        Hook("out_proj", "num_attention_heads"),
        (
            "codegen.modeling_codegen.CodeGenAttention",
            "gptj.modeling_gptj.GPTJAttention",
            "grounding_dino.modeling_grounding_dino.GroundingDinoMultiheadAttention",
            "mm_grounding_dino.modeling_mm_grounding_dino.MMGroundingDinoMultiheadAttention",
            "omdet_turbo.modeling_omdet_turbo.OmDetTurboMultiheadAttention",
            "zoedepth.modeling_zoedepth.ZoeDepthMultiheadAttention",
        ),
    ),
    (Hook("out_proj", "n_heads"), ("mpt.modeling_mpt.MptAttention",)),
    (
        Hook("out_proj", "num_attn_heads"),
        (
            "prophetnet.modeling_prophetnet.ProphetNetAttention",
            "prophetnet.modeling_prophetnet.ProphetNetNgramSelfAttention",
        ),
    ),
    (
        Hook("proj"),
        (
            "hiera.modeling_hiera.HieraMaskUnitAttention",
            "mgp_str.modeling_mgp_str.MgpstrAttention",
            "oneformer.modeling_oneformer.OneFormerTextMapperAttention",
            "vitdet.modeling_vitdet.VitDetAttention",
        ),
    ),
    (
        Hook("proj", "num_attention_heads"),
        (
            "deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2SamVisionAttention",
            "deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2SamVisionSdpaAttention",
            "got_ocr2.modeling_got_ocr2.GotOcr2VisionAttention",
            "pp_formulanet.modeling_pp_formulanet.PPFormulaNetVisionAttention",
            "pvt_v2.modeling_pvt_v2.PvtV2SelfAttention",
            "sam.modeling_sam.SamVisionAttention",
            "sam.modeling_sam.SamVisionSdpaAttention",
            "sam_hq.modeling_sam_hq.SamHQVisionAttention",
            "sam_hq.modeling_sam_hq.SamHQVisionSdpaAttention",
            "seggpt.modeling_seggpt.SegGptAttention",
            "slanext.modeling_slanext.SLANeXtVisionAttention",
            "unlimited_ocr.modeling_unlimited_ocr.UnlimitedOcrSamVisionAttention",
            "unlimited_ocr.modeling_unlimited_ocr.UnlimitedOcrSamVisionSdpaAttention",
        ),
    ),
    (Hook("dense"), ("bloom.modeling_bloom.BloomAttention", "falcon.modeling_falcon.FalconAttention")),
    (
        Hook("dense", "num_attention_heads"),
        ("gpt_neox_japanese.modeling_gpt_neox_japanese.GPTNeoXJapaneseAttention", "tvp.modeling_tvp.TvpAttention"),
    ),
    (
        Hook("out_lin", "n_heads"),
        ("flaubert.modeling_flaubert.MultiHeadAttention", "xlm.modeling_xlm.MultiHeadAttention"),
    ),
    (
        Hook("o", "n_heads"),
        ("longt5.modeling_longt5.LongT5LocalAttention", "longt5.modeling_longt5.LongT5TransientGlobalAttention"),
    ),
    (Hook("o", "num_attention_heads"), ("mpnet.modeling_mpnet.MPNetSelfAttention",)),
    (Hook("c_proj", "n_head"), ("openai.modeling_openai.Attention",)),
    (Hook("c_proj"), ("imagegpt.modeling_imagegpt.ImageGPTAttention",)),
    (
        Hook("activation", "num_attention_heads"),
        ("levit.modeling_levit.LevitAttention", "levit.modeling_levit.LevitAttentionSubsample"),
    ),
    # On the interface, in a file that compares the implementation's name.
    (Hook("o_proj", "config.num_attention_heads"), ("gemma4.modeling_gemma4.Gemma4TextAttention",)),
    (Hook("projection"), ("blip.modeling_blip.BlipAttention",)),
    (Hook("post"), ("gemma4.modeling_gemma4.Gemma4AudioAttention",)),
    (Hook("attention_out"), ("cpmant.modeling_cpmant.CpmAntAttention",)),
    (Hook("linear_out"), ("fastspeech2_conformer.modeling_fastspeech2_conformer.FastSpeech2ConformerAttention",)),
    (Hook("to_out"), ("granite_speech.modeling_granite_speech.GraniteSpeechConformerAttention",)),
    (Hook("output_proj"), ("aimv2.modeling_aimv2.Aimv2AttentionPoolingHead",)),
    (Hook("output_proj", "attention_heads"), ("dab_detr.modeling_dab_detr.DabDetrAttention",)),
    (Hook("post_proj", "config.n_head"), ("funnel.modeling_funnel.FunnelRelMultiheadAttention",)),
    (
        Hook("proj_out", 1, Layout("B H*D N")),
        ("chameleon.modeling_chameleon.ChameleonVQVAEEncoderAttnBlock", "janus.modeling_janus.JanusVQVAEAttnBlock"),
    ),
)
_HOOKED = {_MODELS + name: hook for hook, names in _SITES for name in names}

# why heads cannot be reached, or why there are none -> classes
_REFUSALS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        NoAttention("computes weights, and no heads"),
        (
            "conditional_detr.modeling_conditional_detr.ConditionalDetrMHAttentionMap",
            "dab_detr.modeling_dab_detr.DabDetrMHAttentionMap",
            "detr.modeling_detr.DetrMHAttentionMap",
            "maskformer.modeling_maskformer.MaskFormerDetrMHAttentionMap",
        ),
    ),
    (
        "is replaced by its model when a short input comes: call model.set_attention_type('original_full') first",
        (
            "big_bird.modeling_big_bird.BigBirdBlockSparseAttention",
            "bigbird_pegasus.modeling_bigbird_pegasus.BigBirdPegasusBlockSparseAttention",
        ),
    ),
    (
        "attends in both directions at once, with an output projection for each",
        (
            "grounding_dino.modeling_grounding_dino.GroundingDinoBiMultiHeadAttention",
            "mm_grounding_dino.modeling_mm_grounding_dino.MMGroundingDinoBiMultiHeadAttention",
        ),
    ),
    (
        "gates or mixes its heads in its own forward",
        (
            "esm.modeling_esmfold.EsmFoldInvariantPointAttention",
            "esm.modeling_esmfold.EsmFoldSelfAttention",
            "granite_speech_plus.modeling_granite_speech_plus.GraniteSpeechPlusConformerAttention",
        ),
    ),
    (
        "fills in averages of the values for queries that it does not look at",
        ("informer.modeling_informer.InformerProbSparseAttention",),
    ),
    ("returns its heads together with their scale of quantisation", ("ibert.modeling_ibert.IBertSelfAttention",)),
    (
        "does not compute softmax(q kᵀ) v",
        (
            "groupvit.modeling_groupvit.GroupViTAssignAttention",
            "mra.modeling_mra.MraSelfAttention",
            "swiftformer.modeling_swiftformer.SwiftFormerEfficientAdditiveAttention",
            "yoso.modeling_yoso.YosoSelfAttention",
        ),
    ),
    (
        "gives its output projection's weight to torch.nn.functional, so that no module gets the heads",
        ("wavlm.modeling_wavlm.WavLMAttention",),
    ),
)
_REFUSED = {_MODELS + name: reason for reason, names in _REFUSALS for name in names}


def recognise(module: nn.Module) -> Mechanism | str | None:
    """The way to the heads of a module of transformers, or the reason why there is none; None if it is no attention."""
    cls = plain_class(module)
    name = class_name(cls)
    if name in _SWAPPED:
        return swap_in("transformers.forwards", _SWAPPED[name])
    if name in _HOOKED:
        return _HOOKED[name].missing(module) or _passed_by(module) or _HOOKED[name]
    if name in _REFUSED:
        return type(_REFUSED[name])(f"{cls.__qualname__} {_REFUSED[name]}")
    return interface.recognise(module) or derived_reason(cls, {*_SWAPPED, *_HOOKED, *_REFUSED})


def _passed_by(module: nn.Module) -> str:
    """Why the submodule at the hook would not be called; empty if it is."""
    if getattr(module, "slow_but_exact", False) and getattr(module, "pretraining_tp", 1) > 1:  # Bloom's
        return "slow_but_exact with pretraining_tp > 1 reads the weight of the output projection instead of calling it"
    return ""
