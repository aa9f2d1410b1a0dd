"""What tells queries, keys and values apart by numbers alone, without a look at the table that names their rows.

Rows of a role are those that ``Projections`` says.  Inputs are shaped (B, N, C), (B, C, height, width) or
(B, ..., C); a position is one of all but C.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

from conditioned_attention.sites.corrected import correct, uncorrect
from conditioned_attention.sites.projections import as_matrix
from conditioned_attention.sites.table import find_projections
from conditioned_attention.spectral import Spectral

BETWEEN = ("LayerNorm", "LayerNorm2d", "GroupNorm1", "RmsNorm", "GELU", "ReLU", "SiLU", "Hardswish", "Sigmoid")
BIASES = ("bias", "q_bias", "k_bias", "v_bias", "in_proj_bias")
BIASES += ("rel_pos_h", "rel_pos_w", "rel_pos_t", "height_rel", "width_rel")  # which meet the queries


@dataclass
class Subject:
    """An attention module, in float64 and evaluation mode, and what it is called with."""

    module: nn.Module
    args: tuple
    keywords: dict = field(default_factory=dict)

    def __post_init__(self):
        self.module.double().eval()
        self.projections = find_projections(self.module)
        assert not isinstance(self.projections, str), self.projections

    def output(self):
        with torch.no_grad():
            result = self.module(*self.args, **self.keywords)
        return result[0] if isinstance(result, tuple) else result

    def weights(self, role):
        """Matrices (out, in) that share memory with the weights, each with the indices of the rows of a role."""
        for weight in self.projections.weights:
            owner = weight.owner(self.module)
            if role in weight.roles:
                matrix = as_matrix(owner, getattr(owner, weight.parameter).detach())
                yield matrix, weight.rows(self.module)[role].indices()

    def rows(self, role):
        return torch.cat([matrix[indices] for matrix, indices in self.weights(role)])

    def output_with(self, **changed):
        """The output with other rows for some roles."""
        before = {role: self.rows(role) for role in changed}
        self._set(changed)
        try:
            return self.output()
        finally:
            self._set(before)

    def _set(self, rows_of):
        for role, rows in rows_of.items():
            places = list(self.weights(role))
            for (matrix, indices), part in zip(places, rows.split([len(indices) for _, indices in places])):
                matrix[indices] = part

    def linear(self):
        """Itself with nothing behind queries, keys and values, or around attention, that is not linear."""
        for parent in list(self.module.modules()):
            for name, child in parent.named_children():
                if type(child).__name__ in BETWEEN:
                    setattr(parent, name, nn.Identity())
                elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                    nn.init.ones_(child.weight)
        for name in ("residual_pooling", "residual_pool"):  # queries that go past attention
            if hasattr(self.module, name):
                setattr(self.module, name, False)
        return self

    def without_biases(self):
        """Itself with zeros where something is added to queries, keys or values, or to logits for the queries."""
        for name, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            if name.rpartition(".")[2] in BIASES:
                tensor.detach().zero_()
        return self

    def feature(self, values):
        """Itself, called with this first feature in every tensor: one number, or "here" for 1 at one position only."""
        self.args = tuple(with_feature(x, values) if torch.is_tensor(x) else x for x in self.args)
        return self


def feature_dim(x):
    return 1 if x.dim() == 4 and x.shape[1] > x.shape[-1] else -1


def with_feature(x, values):
    x = x.clone()
    feature = x.select(feature_dim(x), 0)
    if values == "here":
        feature.zero_()
        feature[tuple(size // 2 for size in feature.shape)] = 1
    else:
        feature.fill_(values)
    return x


def random_like(rows):
    return torch.randn(rows.shape, generator=torch.Generator().manual_seed(7), dtype=rows.dtype)


def size(x):
    return x.abs().max()


def equal(a, b):
    return bool(size(a - b) <= 1e-9 * size(b))


def different(a, b):
    return bool(size(a - b) > 1e-3 * size(b))


def assert_values(subject):
    """The output is affine in the rows of the values, and in no other rows."""
    for role in "qkv":
        rows = subject.rows(role)
        step = 0.3 * rows.std() * random_like(rows)
        f0, f1, f2 = (subject.output_with(**{role: rows + n * step}) for n in range(3))
        assert different(f1, f0), f"{role} does nothing"
        curved = size(f2 - 2 * f1 + f0) / size(f1 - f0)
        assert curved < 1e-9 if role == "v" else curved > 1e-4, f"{role}: {curved}"


def assert_keys_by_shift(subject):
    """One vector added to all keys changes nothing, as softmax does not see q · u; added to all queries it does."""
    subject.feature(1.0)
    before = subject.output()
    for role in "qk":
        rows = subject.rows(role)
        shifted = rows.clone()
        shifted[:, 0] += 3 * rows.std() * random_like(rows)[:, 0]
        after = subject.output_with(**{role: shifted})
        assert equal(after, before) if role == "k" else different(after, before), role


def assert_keys_by_reach(subject):
    """A query that changes changes the output in its own place, a key or a value in others."""
    subject.feature("here")
    before, reach = subject.output(), {}
    for role in "qkv":
        rows = subject.rows(role)
        shifted = rows.clone()
        shifted[:, 0] += 3 * rows.std() * random_like(rows)[:, 0]
        moved = (subject.output_with(**{role: shifted}) - before).abs().amax(feature_dim(before))
        reach[role] = int((moved > 1e-9 * size(before)).sum())
    assert reach["q"] < min(reach["k"], reach["v"]), reach


def assert_keys_between_channels(subject):
    """Attention over channels: keys and values of a head, permuted alike, change nothing; other pairs do."""
    subject.without_biases()
    widths = subject.projections.head_widths(subject.module)
    assert len(set(widths.values())) == 1

    def permuted(roles, heads=1):
        return {
            role: subject.rows(role).unflatten(0, (-1, heads * widths[role])).flip(1).flatten(0, 1) for role in roles
        }

    before = subject.output()
    assert equal(subject.output_with(**permuted("kv")), before)
    assert different(subject.output_with(**permuted("qv")), before)
    assert different(subject.output_with(**permuted("qk")), before)
    assert different(subject.output_with(**permuted("kv", heads=2)), before)


def assert_heads(subject):
    """Turning the queries and keys of each head alike changes no logit; turning two heads as if they were one does."""
    subject.without_biases()
    width = subject.projections.head_widths(subject.module)["q"]
    q, k = subject.rows("q"), subject.rows("k")
    before = subject.output()
    turned = {"q": turn(q, width), "k": turn(k, width)}
    assert equal(subject.output_with(**turned), before)
    assert width == 1 or different(subject.output_with(q=turned["q"]), before)
    if len(k) > width:
        assert different(subject.output_with(q=turn(q, 2 * width), k=turn(k, 2 * width)), before)


def assert_heads_by_norm(subject):
    """A norm behind each head hides the length of its values, and no norm those of half of them."""
    width = subject.projections.head_widths(subject.module)["v"]
    before, v = subject.output(), subject.rows("v")
    for rows, hidden in ((width, True), (width // 2, False)):
        lengths = torch.linspace(0.5, 2, len(v) // rows).double().repeat_interleave(rows)
        after = subject.output_with(v=v * lengths[:, None])
        assert equal(after, before) if hidden else different(after, before)


def turn(rows, width):
    """Every ``width`` rows times one orthogonal matrix."""
    matrix = torch.linalg.qr(random_like(rows.new_empty(width, width)))[0]
    return (matrix @ rows.unflatten(0, (-1, width))).flatten(0, 1)


def assert_pairs(subject, one_for_a_head=False):
    """Row i of a head's queries meets row i of its keys, and no other: factors there and one over them here cancel.

    Also where each row is pooled by itself; with one factor for a whole head, where its rows are rotated by position.
    """
    subject.without_biases()
    width = subject.projections.head_widths(subject.module)["q"]
    q, k = subject.rows("q"), subject.rows("k")
    heads, key_heads = len(q) // width, len(k) // width
    draws = torch.randint(0, 4, (key_heads, 1 if one_for_a_head else width), generator=torch.Generator().manual_seed(9))
    draws[0, 0], draws[-1, -1] = 0, 3
    factors = (2.0**draws).double().expand(key_heads, width)
    before = subject.output()
    scaled = q * factors.repeat_interleave(heads // key_heads, 0).reshape(-1, 1)
    assert equal(subject.output_with(q=scaled, k=k / factors.reshape(-1, 1)), before)
    assert different(subject.output_with(q=scaled), before)


def assert_corrected(subject, strength=0.7):
    """While it is corrected the module computes what one with W + C for W does, and afterwards what it did before."""
    before, by_hand = subject.output(), copy.deepcopy(subject)
    seen = set()
    for weight in by_hand.projections.weights:
        matrix, rows = as_matrix(weight.owner(by_hand.module), parameter(by_hand, weight)), weight.rows(by_hand.module)
        for role, its_rows in rows.items():
            seen.add(role)
            for i, row in enumerate(its_rows.indices()[: matrix.shape[1]]):
                matrix[row, i] += strength
    assert seen == set("qkv")
    state = {name: tensor.clone() for name, tensor in subject.module.state_dict().items()}
    correct(subject.module, subject.projections, Spectral(strength))
    assert equal(subject.output(), by_hand.output())
    assert different(subject.output(), before)
    assert uncorrect(subject.module)
    assert (subject.output() == before).all()
    assert all((tensor == state[name]).all() for name, tensor in subject.module.state_dict().items())


def parameter(subject, weight):
    return getattr(weight.owner(subject.module), weight.parameter).detach()
