"""`calibrate`: makes a converted model start near what the plain model computed, as far as one number per head allows.

Shapes: B batch, H heads, N tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.conversion.check import check_module
from conditioned_attention.conversion.selection import lines_of
from conditioned_attention.measure.probing.probe import Passing, call, undisturbed
from conditioned_attention.sites import Site, active_transform, find_sites, install
from conditioned_attention.sites.projections import as_matrix, is_offloaded, not_to_add_to

_CALIBRATED = "_calibrated"  # on an attention module whose output projection has been scaled


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`.  Used as a context manager, it makes the calibration temporary.

    Attributes:
        scales: a tensor (H,) for every attention module, by the module's name.

    >>> import torch
    >>> from conditioned_attention import calibrate, precondition
    >>> layer, x = torch.nn.TransformerEncoderLayer(32, 4, 64).eval(), torch.randn(5, 1, 32)
    >>> report, before = precondition(layer), layer.self_attn.out_proj.weight.clone()
    >>> with calibrate(layer, x) as calibration:
    ...     {name: tuple(scales.shape) for name, scales in calibration.scales.items()}
    {'self_attn': (4,)}
    >>> torch.allclose(layer.self_attn.out_proj.weight, before)
    True
    """

    scales: Mapping[str, Tensor]
    _folded: list[tuple[nn.Module, nn.Module, Tensor]] = field(default_factory=list, repr=False, compare=False)

    def undo(self) -> None:
        """Divides by the scales again, which restores the weights up to rounding; a second call does nothing."""
        while self._folded:
            attention, linear, scale = self._folded.pop()
            _fold(linear, 1 / scale)
            attention.__dict__.pop(_CALIBRATED, None)

    def __enter__(self) -> Calibration:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def calibrate(model: nn.Module, batch: Any) -> Calibration:
    """Scales every head of a converted model, once, so that the model starts near what its weights computed without C.

    Weights that were trained without C expect the rows of a head to have the lengths that they had.  For every head
    this function finds the number s that minimises ‖y - s C y‖² over a batch (least squares; y is the plain head's
    output in the plain model, C y the converted one's, and if C gives unit rows, s is the mean length of the rows of
    y).  It multiplies the columns of the output projection W_O that belong to the head by s; where s is 0 or not
    finite, by 1.  Query heads that share keys and values have a scale each.  W_O remains a parameter and its bias is
    unchanged; nothing is added to the model, which is saved, loaded and trained as before.  One number per head cannot
    restore differences in length between the rows of a head.

    Args:
        model: a model that `precondition` has converted, with trained weights.  Set up whatever trains it later (an
            optimizer, LoRA, FSDP) after this call.
        batch: what the model is called with, once and without gradient: a mapping of keywords, a tuple of positional
            arguments, or one tensor.  Use real inputs without padding, because padded rows would count too.

    Returns:
        The scales.  In a ``with`` statement the calibration is temporary.  `restore` does not undo it: call ``undo``
        first, or the plain model will have scaled weights.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: nothing is converted; a module is calibrated already, has a transform that also changes queries and
            keys, or is not reached by the batch; or the heads of a module do not go unchanged into a linear layer of
            its own whose weight is a parameter on this device.  The model is then unchanged.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from conditioned_attention import calibrate, precondition
    >>> sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, intermediate_size=48, **sizes))
    >>> _ = precondition(model)
    >>> calibrate(model, {"input_ids": torch.arange(8)[None]}).scales["model.layers.0.self_attn"].shape
    torch.Size([4])
    """
    check_module(model)
    sites = [site for site in find_sites(model) if active_transform(site) is not None]
    if not sites:
        raise ValueError("no attention of this model is converted: call precondition(model) first")
    _raise_for({site.name: reason for site in sites if (reason := _against(site))})
    heads = _run(model, batch, sites)
    _raise_for({each.site.name: reason for each in heads if (reason := each.against(model, heads))})
    scales, folded = {}, []
    for each in heads:
        scales[each.site.name] = scale = each.scale()
        for linear in each.linears:
            _fold(linear, scale)
            folded.append((each.site.module, linear, scale))
        each.site.module.__dict__[_CALIBRATED] = True
    return Calibration(scales, folded)


def _raise_for(reasons: Mapping[str, str]) -> None:
    if reasons:
        raise ValueError("these cannot be calibrated:\n" + lines_of(reasons))


def _against(site: Site) -> str:
    if _CALIBRATED in site.module.__dict__:
        return "it is calibrated already, and its output projection would be scaled twice: call undo() first"
    transform = active_transform(site)
    if transform is not None and transform.changes_queries:
        return f"{transform} changes queries and keys, so that one run does not have its heads beside the plain ones"
    return ""


class _Looking(Passing, recorded=False):
    """Lets heads pass as the plain model has them, and compares them with what the module's transform makes of them."""

    kind = "looking"

    def __init__(self, site: Site, latest: list[_Looking]) -> None:
        super().__init__(site)
        self.linears: list[nn.Module] = []  # that have got the heads
        self.calls, self.met = 0, 0
        self._latest, self._seen = latest, False
        self._heads = torch.empty(0)  # (B, N, H, D) of the last call, while nobody else has been called
        self._products: Any = 0.0
        self._squares: Any = 0.0

    def __call__(self, output: Tensor, weights: Tensor | None = None) -> Tensor:
        exact = torch.promote_types(output.dtype, torch.float32)
        plain, changed = output.to(exact), super().__call__(output, weights).to(exact)
        self._products += (plain * changed).sum((0, 2, 3))
        self._squares += changed.square().sum((0, 2, 3))
        self._latest[:] = [self]
        self._heads, self._seen, self.calls = output.transpose(1, 2), False, self.calls + 1
        return output

    def meet(self, linear: nn.Module, x: Tensor) -> None:
        """Notes a linear layer that gets the heads of the last call as they are, tokens or samples first."""
        heads = self._heads
        if x.numel() != heads.numel() or x.shape[-1] != heads.shape[2] * heads.shape[3]:
            return
        if any(torch.equal(x.flatten(), rows.flatten()) for rows in (heads, heads.transpose(0, 1))):
            self.linears += [linear] * (linear not in self.linears)
            self.met, self._seen = self.met + (not self._seen), True

    def against(self, model: nn.Module, others: Sequence[_Looking]) -> str:
        """Why the heads cannot be scaled in the weight behind them; empty if they can."""
        if not self.calls:
            return "the batch does not reach it"
        if self.met < self.calls:
            return "its heads do not go into a linear layer (torch.nn.Linear) as they are, so there is no W_O to scale"
        for linear in self.linears:
            weight = linear._parameters.get("weight")
            if weight is None or weight.is_meta or hasattr(weight, "to_local") or is_offloaded(linear):
                return "the weight of its output projection is no parameter with its values on this device"
            if reason := not_to_add_to(weight):
                return f"the weight of its output projection {reason}"
            holders = [m for m in model.modules() for p in m._parameters.values() if p is weight]
            if len(holders) > 1 or sum(linear in other.linears for other in others) > 1:
                return "the weight of its output projection is that of another module too"
        return ""

    def scale(self) -> Tensor:
        """(H,); 1 for a head that is zero."""
        scale: Tensor = self._products / self._squares
        return torch.where(scale.isfinite() & (scale != 0), scale, 1.0)


def _run(model: nn.Module, batch: Any, sites: Sequence[Site]) -> list[_Looking]:
    """One forward of the plain model."""
    latest: list[_Looking] = []
    heads = {id(site.module): _Looking(site, latest) for site in sites}

    def meet(linear: nn.Module, args: tuple[Any, ...]) -> None:
        if latest and args and isinstance(args[0], Tensor):
            latest[0].meet(linear, args[0])

    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.callback(install(sites, lambda site: heads[id(site.module)]))
        for module in filter(_is_linear, model.modules()):
            stack.callback(module.register_forward_pre_hook(meet).remove)
        call(model, batch)
    return list(heads.values())


def _is_linear(module: nn.Module) -> bool:
    """PyTorch's, and the one of transformers whose weight is (in, out)."""
    own = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
    return isinstance(module, nn.Linear) or "transformers.pytorch_utils.Conv1D" in own


@torch.no_grad()
def _fold(linear: nn.Module, scale: Tensor) -> None:
    """Multiplies the columns of each head."""
    weight: Any = linear.weight
    matrix = as_matrix(linear, weight)
    exact = torch.promote_types(weight.dtype, scale.dtype)
    columns = scale.to(weight.device).repeat_interleave(matrix.shape[1] // len(scale))
    matrix.copy_(matrix.to(exact) * columns)
