"""W_Q, W_K and W_V of transformers' attention classes: which rows of which weights they are, told by what they do."""

import copy
import importlib
from collections import Counter

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING

from conditioned_attention.sites import find_sites
from conditioned_attention.sites.corrected import correct, uncorrect
from conditioned_attention.sites.projections import Projections, as_matrix
from conditioned_attention.sites.site import class_name
from conditioned_attention.sites.table import find_projections
from conditioned_attention.sites.transformers import projections as table
from conditioned_attention.sites.transformers.by_name import recognise
from conditioned_attention.spectral import Spectral
from tests.conversion.hugging_face_families import SECONDS, limited
from tests.conversion.hugging_face_families import build as build_on_meta
from tests.conversion.hugging_face_tiny import CASES, MODULES, attention, call, first_tensor, tiny

VARIANTS = [
    *(
        (model_type, {})
        for model_type in CASES
        if model_type not in ("lilt", "squeezebert", "aimv2_vision_model", "canine")
    ),
    ("squeezebert", {"q_groups": 1, "k_groups": 1, "v_groups": 1}),
    ("aimv2_vision_model", {"use_head": False}),
    ("falcon", {"multi_query": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("gpt_neox", {}),
    ("gpt_bigcode", {}),
    ("gpt_bigcode", {"multi_query": False}),
    ("persimmon", {}),
    ("phi3", {"num_key_value_heads": 2}),
    ("distilbert", {"dim": 32, "hidden_dim": 64}),
    ("ctrl", {"dff": 64}),
    ("longt5", {"encoder_attention_type": "transient-global"}),
    ("deberta-v2", {"share_att_key": True}),
]

TOKEN = 2  # of the first sequence: it sees others and is seen by others under causal masks and local ones

# The projections do not get, or the module does not return, one token after the other.
NOT_TOKEN_BY_TOKEN = ("cvt", "hiera", "perceiver", "squeezebert")

# Attention class -> the child behind its heads that is not affine; so the heads are what goes into it.
BEHIND = {
    "XLNetRelativeAttention": "layer_norm",
    "FunnelRelMultiheadAttention": "layer_norm",
    "TvpAttention": "layer_norm",
    "DiffLlamaAttention": "groupnorm",
    "LevitAttention": "activation",
    "LevitAttentionSubsample": "activation",
}


def spectral(strength=0.7, **options):
    return Spectral(strength, **options)


def sites_of(model):
    """The attention modules with projections, by name."""
    found = {site.name: (site.module, find_projections(site.module)) for site in find_sites(model) if site.known}
    reasons = [projections for _, projections in found.values() if isinstance(projections, str)]
    assert found
    assert not reasons
    return found


def rows_of(module, projections):
    """The matrices (out, in) that hold rows of q, k or v, with these rows: (matrix, role, rows)."""
    for projection in projections.weights:
        owner = projection.owner(module)
        matrix = as_matrix(owner, getattr(owner, projection.parameter).data)
        for role, rows in projection.rows(module).items():
            yield matrix, role, rows.indices()


def add_identity(module, projections, strength):
    """W + λ I, once and for all."""
    for matrix, _, rows in rows_of(module, projections):
        for column, row in enumerate(rows[: matrix.shape[1]]):
            matrix[row, column] += strength


@torch.no_grad()
def assert_computes_with_the_correction(model, forward):
    """For all of its attention modules at once: as a copy with W + C in place of W, and the plain model again."""
    found = sites_of(model)
    plain = forward(model)
    written = copy.deepcopy(model)
    for module, projections in sites_of(written).values():
        add_identity(module, projections, 0.7)
    expected = forward(written)
    for module, projections in found.values():
        correct(module, projections, spectral())
    result = forward(model)
    tolerance = 1e-10 if plain.dtype == torch.float64 else 1e-4
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()
    assert (result - plain).abs().max() > 1e-3 * plain.abs().max()
    for module, _ in found.values():
        assert uncorrect(module)
    assert (forward(model) == plain).all()


@pytest.mark.one_in(8)
@pytest.mark.parametrize(("model_type", "changes"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_models(model_type, changes):
    model = tiny(model_type, **changes)
    model.config.use_cache = model_type == "fsmt"  # which builds no mask for float64 without
    assert_computes_with_the_correction(model, call)
    for module, arguments in calls_of(model):
        if model_type in NOT_TOKEN_BY_TOKEN:
            assert_affine_in_the_values_alone(module, arguments)
        else:
            assert_roles(module, arguments, affine=model_type != "gemma4_text")  # whose values are normalised


@torch.no_grad()
def calls_of(model):
    """The first module of each attention class, with what it is called with."""
    calls = {}

    def remember(module, args, kwargs):
        if type(module) not in calls:
            calls[type(module)] = module, changed((args, kwargs), torch.clone)

    hooks = [m.register_forward_pre_hook(remember, with_kwargs=True) for m, _ in sites_of(model).values()]
    call(model)
    for hook in hooks:
        hook.remove()
    return list(calls.values())


REFUSED_MODULES = ("dab_detr.modeling_dab_detr.DabDetrAttention",)


@pytest.mark.parametrize("name", [name for name in MODULES if name not in REFUSED_MODULES])
def test_modules(name):
    module, arguments = attention(name)
    assert_computes_with_the_correction(module, lambda m: first_tensor(m(*arguments)))
    if name.endswith(("LevitAttentionSubsample", "GraniteSpeechConformerAttention", "AttnBlock")):
        assert_affine_in_the_values_alone(module, (arguments, {}))
    else:
        assert_roles(module, (arguments, {}))


# Roles, told by what a change in one feature of one token does.


def assert_roles(module, arguments, *, affine=True):
    """One token alone has the last feature; so a change of that column of W changes its q, its k or its v alone.

    Its query makes its own output alone, its key and its value those of other tokens too, the value in an affine way.
    """
    matrices = first_of_each_role(module)
    widths = {matrix.shape[1] for matrix, _ in matrices.values()}
    arguments = changed(arguments, lambda value: last_feature_at_one_token(value) if is_input(value, widths) else value)
    tokens = next(value for value in tensors(arguments) if is_input(value, widths)).flatten(0, -2).shape[0]
    for role, (matrix, rows) in matrices.items():
        first, second, rounding = differences(module, arguments, matrix, rows, [-1])
        others = first.reshape(tokens, -1)[[i for i in range(tokens) if i != TOKEN]].abs().max()
        assert first.abs().max() > 10 * rounding, f"{role} does nothing"
        assert (others <= rounding) == (role == "q"), f"{role} acts on other tokens as no {role} does"
        if affine or role != "v":
            assert (second.abs().max() <= rounding) == (role == "v"), f"{role} acts as no {role} does"


def assert_affine_in_the_values_alone(module, arguments):
    for role, (matrix, rows) in first_of_each_role(module).items():
        first, second, rounding = differences(module, arguments, matrix, rows, slice(None))
        assert first.abs().max() > 10 * rounding, f"{role} does nothing"
        assert (second.abs().max() <= rounding) == (role == "v"), f"{role} acts as no {role} does"


def first_of_each_role(module):
    """role: (matrix, rows); without the matrices for tokens of other kinds that Longformer and Luke have."""
    found = {}
    for matrix, role, rows in rows_of(module, find_projections(module)):
        found.setdefault(role, (matrix, rows))
    assert set(found) == set("qkv")
    return found


@torch.no_grad()
def differences(module, arguments, matrix, rows, columns):
    """f(W + E) - f(W), f(W + 2E) - 2 f(W + E) + f(W), and what is rounding in them."""
    before, step = matrix.clone(), torch.zeros_like(matrix)
    step[:, columns] = 0.3 * torch.randn(step[:, columns].shape, dtype=step.dtype)
    step[[row for row in range(len(step)) if row not in rows]] = 0
    outputs = []
    for times in range(3):
        matrix.copy_(before + times * step)
        outputs.append(heads_of(module, *changed(arguments, torch.clone)))
    matrix.copy_(before)
    rounding = (1e-11 if outputs[0].dtype == torch.float64 else 3e-6) * outputs[0].abs().max()
    return outputs[1] - outputs[0], outputs[2] - 2 * outputs[1] + outputs[0], rounding


def heads_of(module, args, kwargs):
    """The module's output, or what goes into the child that is not affine."""
    seen = []
    behind = getattr(module, BEHIND.get(type(module).__name__, ""), None)
    hook = behind and behind.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    output = module(*args, **kwargs)
    output = first_tensor(list(output.values()) if isinstance(output, dict) else output)  # SqueezeBert's
    if hook:
        hook.remove()
    return seen[0] if hook else output


def changed(arguments, change):
    """The arguments of a call with this done to every tensor, and copies of all else."""
    if isinstance(arguments, torch.Tensor):
        return change(arguments.detach())
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(changed(value, change) for value in arguments)
    if isinstance(arguments, dict):
        return {name: changed(value, change) for name, value in arguments.items()}
    return copy.deepcopy(arguments)


def tensors(arguments):
    found = []
    changed(arguments, found.append)
    return found


def is_input(value, widths):
    return value.is_floating_point() and value.shape[-1] in widths


def last_feature_at_one_token(value):
    value = value.clone(memory_format=torch.contiguous_format)
    value[..., -1] = 0
    value.flatten(0, -2)[TOKEN, -1] = 1
    return value


# Matrices for tokens of other kinds


@pytest.mark.parametrize("model_type", ["longformer", "led"])
def test_global_projections_are_corrected_too(model_type):
    model = tiny(model_type)
    mask = torch.zeros(2, 8, dtype=torch.long)
    mask[:, 0] = 1
    assert_computes_with_the_correction(model, lambda model: call(model, global_attention_mask=mask))
    names = {p.path for module, ps in sites_of(model).values() for p in ps.weights if "global" in p.path}
    assert names == {"query_global", "key_global", "value_global"}


# What is refused, and what is not known


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("lilt", {}, "second stream"),
        ("squeezebert", {}, "query is a Conv1d, which is not one matrix"),
        ("ibert", {}, "query is a QuantLinear, which is not one matrix"),
        ("yoso", {}, "does not compute softmax"),
        ("gemma4_text", {"attention_k_eq_v": True}, "has q_proj and no v_proj"),
        ("gpt_bigcode", {"multi_query": False, "add_cross_attention": True}, "does not run as cross-attention"),
        ("deepseek_v3", {"n_routed_experts": 4, "kv_lora_rank": 8, "q_lora_rank": 8}, "product of low rank"),
    ],
)
def test_refused_with_the_reason(model_type, changes, reason):
    found = [find_projections(site.module) for site in find_sites(tiny(model_type, **changes)) if site.known]
    assert any(isinstance(projections, str) and reason in projections for projections in found), found


def test_a_gate_is_not_taken_for_queries():
    """By its names alone Qwen3-Next's attention would have twice the queries."""
    ((module, arguments),) = calls_of(tiny("qwen3_next"))
    assert "which are not 4 heads of width 8" in recognise(module)
    assert find_projections(module).heads == 4
    # A gate acts on its own token alone, as a query does; but where all tokens are the same, no query does anything.
    arguments = changed(arguments, lambda x: x[:, :1].expand_as(x) if is_input(x, {32}) else x)
    matrix, rows = first_of_each_role(module)["q"]
    first, _, rounding = differences(module, arguments, matrix, rows, slice(None))
    assert first.abs().max() <= rounding
    gates = [row for row in range(64) if row not in rows]
    first, _, rounding = differences(module, arguments, matrix, gates, slice(None))
    assert first.abs().max() > 10 * rounding


def test_what_stands_beside_and_is_not_known_is_refused():
    module = find_sites(tiny("bert"))[0].module
    assert isinstance(recognise(module), Projections)
    module.mixer = nn.Linear(2, 2)
    assert recognise(module) == "has mixer beside query, key, value, whose effect is unknown"


def test_names_count_for_classes_of_transformers_alone():
    module = find_sites(tiny("bert"))[0].module
    own = type("BertSelfAttention", (type(module),), {"__module__": "own"})
    module.__class__ = own
    assert "not in the table" in find_projections(module)


@pytest.mark.parametrize(("model_type", "remark"), [("gemma4_text", "before the norm"), ("deberta", "relative")])
def test_remarks(model_type, remark):
    assert all(remark in projections.remark for _, projections in sites_of(tiny(model_type)).values())


@pytest.mark.slow
def test_every_class_of_the_table_is_one_of_transformers():
    for path in table.FOUND:
        module, _, name = path.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), name), nn.Module)


@pytest.mark.slow
def test_every_class_that_is_preconditioned_has_projections_or_a_reason(monkeypatch):
    """In a model of each type from its default config, on the meta device."""
    monkeypatch.undo()  # a poisoned torch.empty is none that the meta device knows: models would be built in memory
    torch.utils._device._device_constructors.cache_clear()
    counts, neither = Counter(), set()
    for module in one_of_each_class():
        found = find_projections(module)
        if isinstance(found, Projections):
            found.head_widths(module)  # raises where rows and heads do not come out even
        elif "not in the table" in found:
            neither.add(class_name(type(module)))
        counts["found" if isinstance(found, Projections) else "refused"] += 1
    assert not neither
    assert counts["found"] > 420, counts
    assert 15 < counts["refused"] < 40, counts


def one_of_each_class():
    seen = {}
    for model_type in sorted(CONFIG_MAPPING):
        try:
            with limited(SECONDS):
                sites = find_sites(build_on_meta(model_type))
        except (Exception, SystemExit):
            continue  # parts of other models, mostly
        seen |= {class_name(type(site.module)): site.module for site in sites if site.reachable}
    return [module for name, module in seen.items() if name.startswith("transformers.")]  # timm has its own table
