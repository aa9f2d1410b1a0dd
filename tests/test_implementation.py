"""`implementation`: what "auto" means for a while, on tensors and in converted models, and what it refuses."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from timm.models.xcit import XCA
from torch import nn

from conditioned_attention import (
    MultiheadAttention,
    explain,
    implementation,
    precondition,
    preconditioned_attention,
    preconditioned_attention_varlen,
)
from tests.models import build, inputs, timm_vit

CONVERTED = ["timm_vit", "gpt2", "llama", "torch_mha", "torchvision_vit"]


@pytest.fixture
def ran(monkeypatch):
    """Which implementations were called, in order."""
    from conditioned_attention import functional

    called = []
    for name, function in (("composed", functional.composed.attend), ("lean", functional.lean.attend)):
        module = getattr(functional, name)
        monkeypatch.setattr(module, "attend", lambda *a, n=name, f=function: (called.append(n), f(*a))[1])
    return called


def test_on_tensors_it_says_what_auto_means(ran):
    q = torch.randn(1, 2, 5, 8)  # so small that auto is composed
    plain = preconditioned_attention(q, q, q)
    for name in ("lean", "composed", "lean"):
        with implementation(name):
            assert explain(q, q, q).impl == name
            torch.testing.assert_close(preconditioned_attention(q, q, q), plain)
            with implementation("auto"):
                assert explain(q, q, q).impl == "composed"
            preconditioned_attention(q, q, q, impl="composed")
            assert explain(q, q, q, impl="composed").impl == "composed", "a call's own word wins"
    assert explain(q, q, q).impl == "composed"
    assert ran == ["composed", "lean", "composed", "composed", "composed", "lean", "composed"]


@pytest.mark.parametrize("name", CONVERTED)
def test_in_converted_models(name, ran):
    model = build(name).eval()
    precondition(model)
    with torch.no_grad():
        model(**inputs(model))
        with implementation("lean"):
            model(**inputs(model))
    half = len(ran) // 2
    assert ran == ["composed"] * half + ["lean"] * half != []


def test_in_a_module_and_on_packed_sequences(ran):
    x, starts = torch.randn(5, 2, 8), torch.tensor([0, 3, 5], dtype=torch.int32)
    attention = MultiheadAttention(8, 2)
    with implementation("lean"):
        attention(x, x, x, need_weights=False)
        preconditioned_attention_varlen(x, x, x, starts, starts)
    assert ran == ["lean"] * 3


def test_it_refuses_as_an_explicit_request_does():
    q = torch.randn(1, 2, 5, 8)
    with pytest.raises(ValueError) as asked:  # noqa: PT011 - its words are compared
        preconditioned_attention(q, q, q, dropout_p=0.5, impl="lean")
    with implementation("lean"), pytest.raises(ValueError, match="cannot run here") as meant:
        preconditioned_attention(q, q, q, dropout_p=0.5)
    assert str(asked.value) == str(meant.value)
    model = timm_vit(attn_drop_rate=0.1).train()
    precondition(model)
    with implementation("lean"), pytest.raises(ValueError, match=r"impl='lean' cannot run here: .*dropout"):
        model(torch.randn(2, 1, 8, 8))


def test_attention_that_a_module_computes_itself_is_refused():
    """C is applied behind it, which is no implementation of ours: composed, if any."""
    model = nn.Sequential(XCA(16, 2))
    precondition(model)
    x = torch.randn(2, 7, 16)
    with implementation("composed"):
        model(x)
    with (
        implementation("lean"),
        pytest.raises(ValueError, match=r"implementation\('lean'\) cannot run here: this module"),
    ):
        model(x)
    layer = nn.MultiheadAttention(8, 2)
    precondition(layer)
    x = torch.randn(3, 1, 8)
    with implementation("lean"), pytest.raises(ValueError, match="cannot run here"):
        layer(x, x, x, need_weights=True)


def test_whatever_happens_it_ends():
    with pytest.raises(ValueError, match=r"impl='flash' is unknown; valid are .*'lean'"):
        implementation("flash")  # already here, and not where it is entered
    with pytest.raises(KeyError), implementation("lean"):
        raise KeyError
    q = torch.randn(1, 2, 5, 8)
    assert explain(q, q, q).impl == "composed"


class Graphs(list):
    """What torch.compile makes: for each graph the implementations in it."""

    def backend(self, graph, _):
        targets = [str(node.target) for node in graph.graph.nodes]
        names = {"lean_forward": "lean", "scaled_dot_product_attention": "composed"}
        self.append([name for target in targets for part, name in names.items() if part in target])
        return graph.forward


@pytest.mark.slow
def test_a_compiled_function_follows_it_without_a_break():
    graphs = Graphs()
    q = torch.randn(1, 2, 5, 8)
    compiled = torch.compile(lambda t: preconditioned_attention(t, t, t), backend=graphs.backend, fullgraph=True)
    plain = compiled(q)
    for _ in range(2):
        with implementation("lean"):
            torch.testing.assert_close(compiled(q), plain)
        torch.testing.assert_close(compiled(q), plain)
    assert graphs == [["composed"], ["lean"]], "compiled once for each"


def test_a_compiled_function_may_enter_it():
    graphs = Graphs()
    q = torch.randn(1, 2, 5, 8)

    @torch.compile(backend=graphs.backend, fullgraph=True)
    def both(t):
        with implementation("lean"):
            inside = preconditioned_attention(t, t, t)
        return inside, preconditioned_attention(t, t, t)

    torch.testing.assert_close(*both(q))
    assert graphs == [["lean", "composed"]]
    assert explain(q, q, q).impl == "composed", "it has ended"


def test_other_threads_see_it():
    """Among them those that autograd computes backward in, and with it what checkpointing left to be computed again."""
    q = torch.randn(1, 2, 5, 8)
    with implementation("lean"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(explain, q, q, q).result().impl == "lean"
