"""A forward on the instance, or on the class, that is not the one the tables know: converted, or refused by name."""

import copy
import functools
import pickle
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from timm.layers.attention import Attention
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb

from conditioned_attention import precondition, register_attention, restore
from conditioned_attention.sites import registered
from tests import models
from tests.conversion.hugging_face_tiny import call, tiny
from tests.conversion.test_hook import OwnAttention
from tests.models import output
from tests.oracle import NormalisedHeads


def truth(model, run=output):
    """The plain output and the right one."""
    plain = run(model).detach()
    with NormalisedHeads():
        right = run(model).detach()
    assert (plain - right).abs().max() > 0.01 * plain.abs().max(), "the comparison would be vacuous"
    return plain, right


def assert_close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def attentions(model):
    names = ("Attention", "LlamaAttention", "BertSelfAttention", "XLNetRelativeAttention", "RemBertSelfAttention")
    return [m for m in model.modules() if type(m).__name__.removeprefix("Conditioned") in names]


@pytest.mark.parametrize("name", ["timm_vit", "bert", "llama"])
def test_offloaded_by_accelerate(name):
    """Weights are elsewhere until a module is called: its hooks stand in the place of forwards.

    A plain ``nn.MultiheadAttention`` does not run so, because it reads a weight of a module that it does not call.
    """
    model = models.build(name)
    plain, right = truth(model)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device="cpu")
    precondition(offloaded, strict=True)
    assert_close(output(offloaded), right)
    restore(offloaded)
    assert_close(output(offloaded), plain)
    precondition(model, strict=True)
    model = cpu_offload(model, execution_device="cpu")
    assert_close(output(model), right)
    restore(model)
    assert_close(output(model), plain)
    remove_hook_from_module(model, recurse=True)
    assert_close(output(model), plain)
    precondition(model)
    assert_close(output(model), right)


def test_several_hooks_of_accelerate_one_after_the_other():
    model = models.build("timm_vit")
    plain, right = truth(model)
    for attention in attentions(model):
        add_hook_to_module(attention, ModelHook())
        add_hook_to_module(attention, AlignDevicesHook(io_same_device=True), append=True)
    precondition(model, strict=True)
    assert_close(output(model), right)
    for attention in attentions(model):
        remove_hook_from_module(attention)
        add_hook_to_module(attention, ModelHook())
    assert_close(output(model), right)
    restore(model)
    assert (output(model) == plain).all()
    assert all(type(attention) is Attention for attention in attentions(model))


def test_a_class_whose_inner_method_is_written_again():
    """XLNet's heads come from ``rel_attn_core``; a method of that name on the instance goes along, another raises."""
    model = tiny("xlnet")
    plain, right = truth(model, call)
    for attention in attentions(model):
        attention.rel_attn_core = attention.rel_attn_core
    precondition(model, strict=True)
    assert_close(call(model), right)
    restore(model)
    assert (call(model) == plain).all()
    precondition(model, strict=True)
    core = type(attention).__mro__[1].rel_attn_core
    attention.rel_attn_core = MethodType(lambda self, *args, **kwargs: core(self, *args, **kwargs), attention)
    with pytest.raises(RuntimeError, match="attention was not reached in the forward of this ConditionedXLNet"):
        call(model)


def own_attention(self, hidden_states, position_embeddings=None, **_):
    """As SelfExtend and StreamingLLM write it: with a kernel of its own."""
    shape = hidden_states.shape[:-1]
    q, k, v = (
        projection(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
        for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return self.o_proj(y.transpose(1, 2).reshape(*shape, -1)), None


def eager_attention_forward(*args, scaling, **kwargs):
    """Not the one of the class's own file."""
    return modeling_llama.eager_attention_forward(*args, scaling=2 * scaling, **kwargs)


def on_the_interface(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
    """As ms-swift writes it: with something before the attention function of the config."""
    shape = hidden_states.shape[:-1]
    q, k, v = (
        projection(hidden_states).view(*shape, -1, self.head_dim).transpose(1, 2)
        for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    q, k = apply_rotary_pos_emb(1.5 * q, k, *position_embeddings)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
    y, weights = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling)
    return self.o_proj(y.reshape(*shape, -1)), weights


def llama_with(forward):
    model = models.build("llama")
    for attention in attentions(model):
        attention.forward = MethodType(forward, attention)
    return model


def test_another_forward_is_refused_by_name():
    model = llama_with(own_attention)
    plain = output(model)
    report = "its forward has been replaced by tests.conversion.test_instance_forward.own_attention"
    with pytest.raises(ValueError, match=report):
        precondition(model, strict=True)
    with pytest.raises(ValueError, match=report):
        precondition(model)
    assert (output(model) == plain).all()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", ["output", "weights"])
def test_another_forward_on_the_interface_is_converted(implementation, rows):
    model = llama_with(on_the_interface)
    model.set_attn_implementation(implementation)
    plain = output(model)
    with NormalisedHeads(rows):
        right = output(llama_eager(model) if rows == "weights" else model).detach()
    model.set_attn_implementation(implementation)
    assert (plain - right).abs().max() > 0.01 * plain.abs().max(), "the comparison would be vacuous"
    precondition(model, rows=rows, strict=True)
    assert_close(output(model), right)
    restore(model)
    assert (output(model) == plain).all()
    assert not any(name.startswith("_head") for m in model.modules() for name in vars(m))


def llama_eager(model):
    model.set_attn_implementation("eager")  # whose softmax the oracle sees
    return model


def test_another_forward_after_the_conversion_raises():
    model = models.build("llama")
    plain = output(model)
    precondition(model)
    output(model)
    for attention in attentions(model):
        attention.forward = MethodType(own_attention, attention)
    for _ in range(2):
        with pytest.raises(
            RuntimeError,
            match=r"no attention function .* LlamaAttention, .*own_attention, so it would run unconditioned",
        ):
            output(model)
    with pytest.raises(ValueError, match="own_attention"):
        precondition(model)
    restore(model)
    for attention in attentions(model):
        del attention.forward
    assert (output(model) == plain).all()


def test_one_on_the_interface_after_the_conversion_is_conditioned():
    model = llama_with(on_the_interface)
    _, right = truth(model)
    for attention in attentions(model):
        del attention.forward
    precondition(model)
    for attention in attentions(model):
        attention.forward = MethodType(on_the_interface, attention)
    assert_close(output(model), right)


def test_a_forward_on_the_class_of_a_library(monkeypatch):
    """Also one that functools.wraps makes look like the original."""

    @functools.wraps(Attention.forward)
    def forward(self, x, **_):
        return self.proj(2 * x)

    model = models.build("timm_vit")
    monkeypatch.setattr(Attention, "forward", forward)
    name = r"Attention has been replaced by tests.conversion.test_instance_forward.\S*forward, which may compute"
    with pytest.raises(ValueError, match=name):
        precondition(model)
    metaformer = tiny("rembert")
    cls = type(attentions(metaformer)[0])
    monkeypatch.setattr(cls, "forward", lambda self, x, *_, **__: (x,))
    with pytest.raises(ValueError, match="RemBertSelfAttention has been replaced by"):
        precondition(metaformer)


def test_one_on_the_class_after_the_conversion(monkeypatch):
    """Not noticed where a class was swapped, which needs it no more; on the interface it has to call that."""
    llama, vit = models.build("llama"), models.build("timm_vit")
    _, right = truth(vit)
    precondition(llama)
    precondition(vit)
    monkeypatch.setattr(LlamaAttention, "forward", own_attention)
    with pytest.raises(RuntimeError, match=r"no attention function .* in the forward of this LlamaAttention"):
        output(llama)
    monkeypatch.setattr(Attention, "forward", lambda self, x, **_: x)
    assert_close(output(vit), right)


def decorated(method, before=lambda: None):
    @functools.wraps(method)
    def forward(*args, **kwargs):
        before()
        return method(*args, **kwargs)

    return forward


@pytest.mark.parametrize("wrap", [decorated, functools.partial], ids=["closure", "partial"])
def test_wrappers_around_wrappers(wrap):
    """Exact on the interface; around a swapped class if they come after it, and then restore is exact as well."""
    for name in ("llama", "timm_vit"):
        model = models.build(name)
        plain, right = truth(model)
        for attention in attentions(model):
            attention.forward = wrap(decorated(attention.forward))
        if name == "timm_vit":
            with pytest.raises(ValueError, match="convert first, and put that around it then"):
                precondition(model)
            for attention in attentions(model):
                del attention.forward
            precondition(model, strict=True)
            for attention in attentions(model):
                attention.forward = wrap(decorated(attention.forward))
        precondition(model, strict=True)
        assert_close(output(model), right)
        restore(model)
        assert (output(model) == plain).all()
        precondition(model, strict=True)
        assert_close(output(model), right)


@pytest.mark.parametrize("class_is_decorated", [False, True])
def test_a_wrapper_of_another_module_is_no_wrapper_of_this_one(class_is_decorated, monkeypatch):
    """As deepcopy leaves it: functions are not copied, and go on to call the first model's module."""
    if class_is_decorated:  # as transformers 5.24 does, for names of arguments that it gives up
        monkeypatch.setattr(LlamaAttention, "forward", decorated(LlamaAttention.forward))
    model = models.build("llama")
    for attention in attentions(model):
        attention.forward = decorated(attention.forward)
    copied = copy.deepcopy(model)
    precondition(model, strict=True)
    with pytest.raises(ValueError, match="its forward has been replaced by"):
        precondition(copied)


def test_a_wrapper_that_passes_the_module_by_is_noticed_when_it_runs():
    model = models.build("llama")
    for attention in attentions(model):
        method = attention.forward
        forward = functools.partial(own_attention, attention, unused=decorated(method))
        attention.forward = forward
    precondition(model, strict=True)
    with pytest.raises(RuntimeError, match="no attention function of transformers was called"):
        output(model)


def test_hooks_on_an_own_class(monkeypatch):
    monkeypatch.setattr(registered, "_registered", {})
    register_attention(OwnAttention, at="out", heads="heads")
    torch.manual_seed(0)
    model, x = nn.Sequential(OwnAttention(), nn.GELU(), OwnAttention()), torch.randn(2, 7, 32)
    plain, right = truth(model, lambda model: model(x))
    for attention in (model[0], model[2]):
        add_hook_to_module(attention, ModelHook())
    precondition(model, strict=True)
    assert_close(model(x), right)
    model[0].forward = MethodType(lambda self, x: self.out(x), model[0])
    with pytest.raises(RuntimeError, match="was converted, but its forward has been replaced by"):
        model(x)
    restore(model)
    remove_hook_from_module(model[2])
    del model[0].forward
    assert (model(x) == plain).all()


def test_pickles_and_copies_look_for_themselves():
    model = models.build("timm_vit")
    _, right = truth(model)
    precondition(model)
    output(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        attention = attentions(copied)[0]
        assert vars(attention)["_heads_reached"].under is None  # a function that pickle could not take, maybe
        attention.forward = MethodType(lambda self, x, **_: x, attention)
        with pytest.raises(RuntimeError, match="was not reached"):
            output(copied)
    assert_close(output(model), right)
