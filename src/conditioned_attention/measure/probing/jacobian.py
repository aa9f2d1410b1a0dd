"""κ of the Jacobian of every attention head of a model, on inputs that the heads really get (arXiv 2603.07162)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.measure.numbers.jacobian import JacobianCondition, jacobian_condition
from conditioned_attention.measure.probing.probe import attention_inputs, head_outputs
from conditioned_attention.measure.probing.projections import known_projections, role_matrices
from conditioned_attention.sites import Site
from conditioned_attention.sites.corrected import shown
from conditioned_attention.sites.projections import Projections

_SLACK = 1e-3  # largest relative difference between the model's heads and those of the formula


@dataclass(frozen=True)
class JacobianRecord:
    """κ of the Jacobian of one head, on the first sample of the probe.

    Attributes:
        module, head: the name of the attention module, and the index of the head in it.
        query, key, value: κ of the Jacobian with respect to W_Q, W_K and W_V, with biases as further columns.
        together: κ of the Jacobian with respect to all three.
    """

    module: str
    head: int
    query: JacobianCondition
    key: JacobianCondition
    value: JacobianCondition
    together: JacobianCondition


def jacobian_records(model: nn.Module, probe: Any, *, method: str = "auto", steps: int = 300) -> list[JacobianRecord]:
    """Computes `jacobian_condition` for every head of a model, with W as the model uses it: corrected, if it is.

    Attention must be softmax(q kᵀ / √d) v of its input and nothing more, which is checked by its output: raises
    ValueError if there is something else in it (positions, masks, a bias), or if no projections are known.  The model
    is called with ``probe``, as for `ConditionMonitor`, and left as it was; ``method`` and ``steps`` are passed on.

    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    >>> [record.head for record in jacobian_records(layer, torch.randn(1, 5, 16))]
    [0, 1]
    """
    known = known_projections(model)
    if not known:
        raise ValueError(f"{type(model).__name__} holds no attention whose projections are known")
    inputs = {name: x[0].double() for name, x in attention_inputs(model, probe, [site for site, _ in known]).items()}
    outputs = {output.module: output.before[0] for output in head_outputs(model, probe)}
    return [
        record
        for site, projections in known
        if site.name in inputs and site.name in outputs
        for record in _records(site, projections, inputs[site.name], outputs[site.name], method, steps)
    ]


def _records(
    site: Site, projections: Projections, x: Tensor, expected: Tensor, method: str, steps: int
) -> Iterator[JacobianRecord]:
    with shown(site.module):
        matrices = role_matrices(site.module, projections, biases=True)
    widths = projections.head_widths(site.module)
    x = torch.cat((x, torch.ones_like(x[:, :1])), dim=1)
    heads = {role: matrix.double().unflatten(0, (-1, widths[role])) for role, matrix in matrices.items()}
    shared = projections.heads // len(heads["k"])
    for h in range(projections.heads):
        w_q, w_k, w_v = heads["q"][h], heads["k"][h // shared], heads["v"][h // shared]
        if any(w.shape[1] != x.shape[1] for w in (w_q, w_k, w_v)):
            raise ValueError(
                f"{site.name or 'the model'}: queries, keys and values are computed from inputs of different widths "
                "here, and the formula of the Jacobian is of one input"
            )
        ours = (x @ w_q.t() @ (x @ w_k.t()).t() / w_q.shape[0] ** 0.5).softmax(-1) @ (x @ w_v.t())
        if ours.shape != expected[h].shape or (ours - expected[h]).norm() > _SLACK * ours.norm():
            raise ValueError(
                f"{site.name or 'the model'}: attention here is more than softmax(q kᵀ / √d) v of its input, so the "
                "formula of the Jacobian does not hold"
            )
        parts = [
            jacobian_condition(x, w_q, w_k, w_v, wrt=wrt, method=method, steps=steps)
            for wrt in ("query", "key", "value", ("query", "key", "value"))
        ]
        yield JacobianRecord(site.name, h, *parts)
