"""κ of the Jacobian of a head, against autograd's Jacobian of the head written out; and the bound of Theorem 3.4."""

import math

import pytest
import torch

from conditioned_attention.experiments.data.images.digits import load_digits
from conditioned_attention.measure.numbers.jacobian import METHODS, WRT, jacobian_bound, jacobian_condition
from tests.models import build


def head(x, w_q, w_k, w_v, is_causal=False, scale=None):
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    logits = q @ k.T * (w_q.shape[0] ** -0.5 if scale is None else scale)
    if is_causal:
        logits = logits + torch.full_like(logits, -math.inf).triu(1)
    return logits.softmax(-1) @ v


def jacobian(x, weights, wrt, **options):
    """(n e, numbers in the weights that ``wrt`` names), by autograd in float64."""
    x, weights = x.double(), [w.double() for w in weights]
    argnums = tuple(1 + WRT.index(name) for name in wrt)
    parts = torch.func.jacrev(lambda *args: head(*args, **options), argnums)(x, *weights)
    return torch.cat([part.flatten(2).flatten(0, 1) for part in parts], dim=1)


def drawn(n=6, features=7, d=3, e=3):
    generator = torch.Generator().manual_seed(7)
    x, *weights = (torch.randn(rows, features, generator=generator) for rows in (n, d, d, e))
    return x, [w / 2 for w in weights]


def head_of_a_vit():
    """What the second block's attention of a small ViT gets from a picture of a digit, and its third head's weights."""
    model, seen = build("timm_vit"), []
    qkv = model.blocks[1].attn.qkv
    qkv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(load_digits()[0].images[:1])
    return seen[0][0], [w[16:24] for w in qkv.weight.detach().chunk(3)]


CASES = {
    "plain": (drawn(), {}),
    "causal": (drawn(), {"is_causal": True}),
    "another scale": (drawn(), {"scale": 1.7}),
    "wide values": (drawn(e=5), {}),
    "narrow values, causal, another scale": (drawn(d=4, e=2), {"is_causal": True, "scale": 0.2}),
    "more tokens than features": (drawn(n=9, features=4), {}),
    "a digit in a ViT": (head_of_a_vit(), {}),
}
SEVERAL = [("query",), ("key",), ("value",), ("value", "query"), WRT]


@pytest.mark.parametrize("wrt", SEVERAL, ids="+".join)
@pytest.mark.parametrize("case", CASES)
def test_it_is_that_of_the_jacobian_of_autograd(case, wrt):
    (x, weights), options = CASES[case]
    matrix = jacobian(x, weights, wrt, **options)
    values, rank = torch.linalg.svdvals(matrix), int(torch.linalg.matrix_rank(matrix))
    found = jacobian_condition(x, *weights, wrt=wrt, method="svd", **options)
    assert found.exact
    assert found.zeros == len(values) - rank
    assert found.largest == pytest.approx(values[0].item(), rel=1e-10)
    assert found.smallest == pytest.approx(values[rank - 1].item(), rel=1e-6)
    assert found.kappa == pytest.approx((values[0] / values[rank - 1]).item(), rel=1e-6)
    assert jacobian_condition(x, *weights, wrt=wrt, **options) == found, "so small that auto is svd"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("wrt", SEVERAL, ids="+".join)
@pytest.mark.parametrize("case", CASES)
def test_the_other_methods_agree(case, wrt):
    (x, weights), options = CASES[case]
    exact = jacobian_condition(x, *weights, wrt=wrt, method="svd", **options)
    gram = jacobian_condition(x, *weights, wrt=wrt, method="gram", **options)
    assert gram.largest == pytest.approx(exact.largest, rel=1e-10)
    assert gram.exact
    if exact.kappa < 1e7:  # more it does not resolve
        assert gram.zeros == exact.zeros
        assert gram.kappa == pytest.approx(exact.kappa, rel=1e-2)
    else:
        assert gram.zeros > exact.zeros
        assert 1e6 < gram.kappa < exact.kappa
    everything = jacobian_condition(x, *weights, wrt=wrt, method="lanczos", steps=10**6, **options)
    assert everything.largest == pytest.approx(exact.largest, rel=1e-6)
    assert everything.kappa == pytest.approx(exact.kappa, rel=1e-6)
    assert (everything.zeros, everything.exact) == (None, False)


def test_few_steps_of_lanczos_give_a_lower_bound():
    (x, weights), _ = CASES["a digit in a ViT"]
    exact = jacobian_condition(x, *weights)
    found = [jacobian_condition(x, *weights, method="lanczos", steps=steps) for steps in (1, 5, 20, 60, 120)]
    kappas = [condition.kappa for condition in found]
    assert kappas == sorted(kappas)
    assert 1 <= kappas[0] < kappas[2] < exact.kappa * (1 - 1e-3)
    assert all(condition.largest <= exact.largest * (1 + 1e-12) for condition in found)
    assert found[2].largest == pytest.approx(exact.largest, rel=1e-6), "the largest value comes first"


def test_zeros_that_are_known_by_hand():
    """The first causal token attends to itself whatever W_Q and W_K are; the second moves along v_1 - v_2 alone."""
    x, weights = drawn(n=4, e=2)
    for method in ("svd", "gram"):
        assert jacobian_condition(x, *weights, wrt=("query", "key"), is_causal=True, method=method).zeros == 2 + 1
        assert jacobian_condition(x, *weights, is_causal=True, method=method).zeros == 0
    for method in METHODS:
        alone = jacobian_condition(x[:1], *weights, wrt="query", method=method)
        assert (alone.kappa, alone.largest, alone.smallest) == (math.inf, 0.0, 0.0)


@pytest.mark.parametrize("gap", [20.0, 46.0])
def test_sharp_attention_is_not_lost_in_rounding(gap):
    """Two tokens: M_i = s a (1 - a) (v_1 - v_2) (k_1 - k_2)ᵀ with a = σ(gap); v and k are far from zero."""
    one = torch.eye(2, dtype=torch.float64)
    w_k, w_v = gap * one + 100.3, 1e3 + torch.tensor([[1.1, 0.0], [0.0, 2.2], [0.7, 0.7]], dtype=torch.float64)
    largest = sigmoid(gap) * sigmoid(-gap) * math.hypot(1.1, 2.2) * math.hypot(gap, gap)
    found = jacobian_condition(one, one, w_k, w_v, wrt="query", scale=1.0)
    assert found.largest == pytest.approx(largest, rel=1e-9)
    assert (found.kappa, found.zeros) == (pytest.approx(1.0), 2)


def test_auto_takes_the_first_method_that_is_small_enough(monkeypatch):
    from conditioned_attention.measure.numbers import jacobian as module

    x, weights = drawn()
    exact = jacobian_condition(x, *weights)
    monkeypatch.setattr(module, "_LARGEST_SVD", 10)
    assert jacobian_condition(x, *weights) == jacobian_condition(x, *weights, method="gram") != exact
    monkeypatch.setattr(module, "_LARGEST_GRAM", 10)
    assert not jacobian_condition(x, *weights).exact


def test_half_precision_is_computed_in_double():
    x, weights = drawn()
    x, weights = x.bfloat16(), [w.bfloat16().requires_grad_() for w in weights]
    found = jacobian_condition(x, *weights)
    assert found == jacobian_condition(x.double(), *(w.double() for w in weights))


# Theorem 3.4, as far as it goes


def kappa_of_two(a, b):
    """κ of [[a, 1 - a], [1 - b, b]], its singular values by the trace and determinant of its square."""
    trace, root = a * a + (1 - a) ** 2 + b * b + (1 - b) ** 2, abs(a + b - 1)
    difference = math.sqrt(trace**2 - 4 * root**2)
    return math.sqrt((trace + difference) / (trace - difference))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_the_bound_by_hand():
    """X = diag(2, 1) and diagonal weights: logits are diag(12 s, 5 s), and Λ_i has the one eigenvalue 2 p (1 - p)."""
    x, w_q, w_k, w_v = (torch.diag(torch.tensor(t)) for t in ([2.0, 1.0], [3.0, 1.0], [1.0, 5.0], [7.0, 2.0]))
    for scale in (None, 0.1):
        s = 2**-0.5 if scale is None else scale
        a, b = sigmoid(12 * s), sigmoid(5 * s)
        softmax = b * (1 - b) / (a * (1 - a))
        by_hand = 2**3 * softmax * (7 / 2) * (3 + 5) + 2 * kappa_of_two(a, b)
        assert jacobian_bound(x, w_q, w_k, w_v, scale=scale) == pytest.approx(by_hand, rel=1e-6)
    b = sigmoid(5 * 0.1)  # causal: the first token's Λ is zero, which is left out
    by_hand = 2**3 * 1 * (7 / 2) * (3 + 5) + 2 * kappa_of_two(1.0, b)
    assert jacobian_bound(x, w_q, w_k, w_v, scale=0.1, is_causal=True) == pytest.approx(by_hand, rel=1e-6)


def orthogonal(rows, columns):
    return torch.nn.init.orthogonal_(torch.empty(rows, columns))


def test_the_part_of_the_values_keeps_below_its_term():
    """κ(P X) ≤ κ(P) κ(X) holds, and κ(P) κ(X) is a term of the bound."""
    for n, features in ((4, 8), (8, 4), (5, 5)):
        x, weights = torch.randn(n, features), [orthogonal(3, features) for _ in range(3)]
        assert jacobian_condition(x, *weights, wrt="value").kappa <= jacobian_bound(x, *weights)


def test_the_bound_is_none_for_large_values():
    """X = W_Q = W_K = I, W_V = v I, with zeros left out: κ(J)² = (1 + 8 v² (s a (1 - a))²) / (2 a - 1)², a = σ(s).

    The bound is 2 + 1 / (2 a - 1) for every v, and κ(J) grows with v: two of three matrices side by side are v times
    as large.
    """
    one, s = torch.eye(2), 2**-0.5
    a = sigmoid(s)
    for v, holds in ((1.0, True), (100.0, False)):
        kappa = math.sqrt(1 + 8 * (v * s * a * (1 - a)) ** 2) / (2 * a - 1)
        assert jacobian_condition(one, one, one, v * one).kappa == pytest.approx(kappa, rel=1e-9)
        assert jacobian_bound(one, one, one, v * one) == pytest.approx(2 + 1 / (2 * a - 1), rel=1e-6)
        assert (kappa <= 2 + 1 / (2 * a - 1)) is holds


GOOD = {"x": torch.ones(5, 4), "w_q": torch.ones(3, 4), "w_k": torch.ones(3, 4), "w_v": torch.ones(2, 4)}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": torch.ones(2, 5, 4)}, ValueError, r"x must be a matrix, got shape \(2, 5, 4\)"),
        ({"x": torch.ones(0, 4)}, ValueError, r"x must be a matrix, got shape \(0, 4\)"),
        ({"w_v": torch.ones(4)}, ValueError, r"w_v must be a matrix, got shape \(4,\)"),
        ({"w_k": torch.ones(3, 7)}, ValueError, r"w_k has 7 columns, and x 4: they must be equal"),
        ({"w_k": torch.ones(2, 4)}, ValueError, r"w_q and w_k must have one shape, got \(3, 4\) and \(2, 4\)"),
        ({"w_q": [[1.0]]}, TypeError, "w_q must be a tensor of real numbers, got list"),
        ({"x": torch.ones(5, 4, dtype=torch.complex64)}, TypeError, r"x must be .* real numbers, got torch.complex64"),
    ],
)
def test_wrong_matrices(changes, error, words):
    for function in (jacobian_condition, jacobian_bound):
        with pytest.raises(error, match=words):
            function(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wrt": "output"}, r"wrt='output' is unknown; valid are \('query', 'key', 'value'\)"),
        ({"wrt": ("query", "x")}, "wrt='x' is unknown"),
        ({"wrt": ()}, r"wrt must name at least one of .*, each once; got \[\]"),
        ({"wrt": ("key", "key")}, r"each once; got \['key', 'key'\]"),
        ({"method": "qr"}, r"method='qr' is unknown; valid are \('auto', 'svd', 'gram', 'lanczos'\)"),
        ({"method": "lanczos", "steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_wrong_options(changes, words):
    with pytest.raises(ValueError, match=words):
        jacobian_condition(**GOOD, **changes)
