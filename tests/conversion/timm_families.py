"""Every family of timm's (a file of ``timm.models``), and what becomes of its attention.

``python -m tests.conversion.timm_families`` writes docs/timm.md.
"""

import ast
import functools
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from conditioned_attention.sites.site import class_name, plain_class
from conditioned_attention.sites.table import find_sites
from tests.conversion.answers import WORDS, by_letter, by_reason, count

PAGE = Path(__file__).parents[2] / "docs" / "timm.md"
COMMAND = "python -m tests.conversion.timm_families"

# The smallest member of every family, and further ones where those hold other classes of attention.
FAMILIES = {
    "beit": "beit_base_patch16_224",
    "byoanet": "halonet_h1 lamhalobotnet50ts_256",
    "byobnet": "test_byobnet bat_resnext26ts gcresnext26ts resnet50_clip",
    "cait": "cait_xxs24_224",
    "coat": "coat_tiny",
    "convit": "convit_tiny",
    "convmixer": "convmixer_768_32",
    "convnext": "test_convnext",
    "cpubone": "cpubone_nano",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "davit": "davit_tiny davit_base_fl",
    "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_patch16_224",
    "densenet": "densenet121",
    "dla": "dla46x_c",
    "dpn": "dpn48b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "test_efficientnet gc_efficientnetv2_rw_t",
    "efficientvim": "efficientvim_m1 efficientvim_m1_dist",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "eva": "vit_tiny_patch16_dinov3_qkvb vit_pe_core_tiny_patch16_384",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8 fastvit_mci0",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m",
    "ghostnet": "ghostnet_050",
    "hardcorenas": "hardcorenas_b",
    "hgnet": "hgnetv2_b0",
    "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "test_mambaout",
    "maxxvit": "test_coatnet test_maxvit",
    "metaformer": "poolformerv2_s12 caformer_s18",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv3_small_050 mobilenetv4_hybrid_medium_075",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs mobilevitv2_050",
    "mvitv2": "mvitv2_tiny",
    "naflexvit": "naflexvit_base_patch16_parfac_gap naflexvit_base_patch16_siglip",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "nfnet": "test_nfnet",
    "pit": "pit_ti_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0",
    "qwen3_vit": "qwen3_vit_88m",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m1",
    "res2net": "res2next50",
    "resnest": "resnest14d",
    "resnet": "test_resnet",
    "resnetv2": "resnetv2_18",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m",
    "twins": "twins_svt_small",
    "vgg": "vgg11",
    "visformer": "visformer_tiny",
    "vision_transformer": "test_vit test_vit3 vit_dwee_patch16_reg1_gap_256 vit_dpwee_patch16_reg1_gap_256 "
    "vit_pwee_patch16_reg1_gap_256",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vision_transformer_relpos": "test_vit_relpos",
    "vision_transformer_sam": "samvit_base_patch16_224",
    "vitamin": "vitamin_small_224",
    "volo": "volo_d1_224",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception",
    "xception_aligned": "xception41p",
    "xcit": "xcit_nano_12_p8_224",
}


def build(name):
    """The model without memory: shapes are all that is needed."""
    import timm  # not before torchvision is importable, which a program of its own has to see to

    import tests.models  # noqa: F401  # weights without numbers start at once

    with torch.device("meta"):
        return timm.create_model(name)


@functools.cache
def says_softmax(cls):
    """Whether a class computes attention by the look of its source; knows nothing of this library's tables."""
    if cls is nn.MultiheadAttention:
        return True
    if not cls.__module__.startswith("timm."):
        return False
    source = _sources(cls.__module__)[cls.__name__]
    return "softmax" in source or "scaled_dot_product_attention" in source


@functools.cache
def _sources(module):
    """The source of each class of a file; ``inspect.getsource`` would parse the whole file for each."""
    text = inspect.getsource(sys.modules[module])
    lines = text.splitlines(keepends=True)
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return {node.name: "".join(lines[node.lineno - 1 : node.end_lineno]) for node in classes}


@dataclass(frozen=True, order=True)
class Finding:
    """One class of attention in a family, and what `precondition` does to it."""

    family: str
    name: str
    how: str
    reason: str = ""


@dataclass(frozen=True)
class Survey:
    """What the members of a family hold."""

    findings: list[Finding]
    overlooked: set[str]  # classes that say softmax, and are no site, in no site, and hold none


@functools.cache
def survey(family):
    found, overlooked = set(), set()
    for member in FAMILIES[family].split():
        model = build(member)
        found |= set(_findings(family, model))
        overlooked |= _overlooked(model)
    return Survey(sorted(found), overlooked)


def _overlooked(model):
    sites = find_sites(model)
    near = {id(part) for site in sites for part in (*site.parents, *site.module.modules())}
    return {class_name(type(m)) for m in model.modules() if says_softmax(type(m)) and id(m) not in near}


def _findings(family, model):
    for site in find_sites(model):
        name = class_name(plain_class(site.module))
        if site.mechanism is None:
            yield Finding(family, name, "refused" if site.attention else "no attention", site.reason)
        elif site.opt_in:
            yield Finding(family, name, f"{site.mechanism.name}, on request")
        else:
            yield Finding(family, name, site.mechanism.name)


def page():
    """The text of docs/timm.md."""
    import timm

    found = {family: _ways(survey(family).findings) for family in FAMILIES}
    reasons = {
        _short(finding.name): finding.reason
        for family in FAMILIES
        for finding in survey(family).findings
        if finding.reason
    }
    lines = [
        "# timm, family by family",
        "",
        f"Does `precondition(model)` convert it? For timm {timm.__version__}; a family is a file of `timm.models`.",
        f"Families: {count(found)}.",
        "",
        WORDS,
        "",
        "How:",
        "",
        "- **class swap**: the module gets a forward of ours; it needs as much memory as the plain model.",
        "- **hook**: the heads are rewritten on their way into the module that follows them.",
        "- **hook, on request**: it pools tokens into features, and is converted only if `include` names it.",
        "- **refused** and **no attention**: for the reason given [below](#why-not).",
        "",
        f"Written by `{COMMAND}`; a test checks that it is up to date.",
        "",
        *by_letter(found, "family"),
        "## Why not",
        "",
        *by_reason(reasons),
    ]
    return "\n".join(lines) + "\n"


def _ways(findings):
    return {finding.name.rpartition(".")[2]: finding.how for finding in findings}


def _short(name):
    return name.removeprefix("timm.").removeprefix("models.")


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    sys.stdout.write(f"wrote {PAGE}\n")
