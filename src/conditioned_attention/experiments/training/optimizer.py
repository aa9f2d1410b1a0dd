"""Builds the optimizer of a model, and decides which of its weights decay."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from conditioned_attention.environment import needs
from conditioned_attention.experiments.training.settings import Optimization


def build_optimizer(
    model: nn.Module, settings: Optimization, no_weight_decay: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Builds the optimizer of a model's trainable weights.

    ``no_weight_decay`` are patterns of parameter names that a task exempts from weight decay, such as
    ``"*.pos_embed"``, in addition to those that the model itself exempts.

    Raises:
        ValueError: timm has no such optimizer.
    """
    every = settings.decays == "all"
    inside = settings.optimizer != "timm"  # timm asks the model alone, so temperatures of XCiT decay there
    still = {name for name, _ in model.named_parameters() if any(fnmatch(name, each) for each in no_weight_decay)}
    if not every:
        still |= _exempt_by_name(model, inside=inside)
    groups = parameter_groups(model, settings.weight_decay, still, vectors=every)
    if settings.optimizer == "timm":
        return _timm(groups, settings)
    if settings.optimizer == "sgd":
        momentum = 0.9 if settings.momentum is None else settings.momentum
        return torch.optim.SGD(groups, lr=settings.lr, momentum=momentum, nesterov=momentum > 0)
    if settings.optimizer == "muon":
        return MuonAndAdamW(model, groups, settings)
    return torch.optim.AdamW(groups, lr=settings.lr, **_adam(settings))


def parameter_groups(
    model: nn.Module, weight_decay: float, still: Collection[str] = (), *, vectors: bool = False
) -> list[dict[str, Any]]:
    """Returns two groups: parameters that decay, and those that do not.

    Matrices decay, and with ``vectors`` also vectors and scalars (biases, norms), but none that ``still`` names.
    """
    decaying: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = (vectors or parameter.dim() > 1) and name not in still
            (decaying if decays else others).append(parameter)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _exempt_by_name(model: nn.Module, *, inside: bool) -> set[str]:
    """The parameters that a module which contains them exempts from weight decay, by its ``no_weight_decay()``.

    Without ``inside`` only the model itself is asked.  timm's models name whole parameters (``cls_token``) or the ends
    of their names (``relative_position_bias_table``).
    """
    exempt = set()
    modules: Any = model.named_modules() if inside else [("", model)]
    for place, module in modules:
        named = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
        for path, _ in module.named_parameters() if named else ():
            if any(fnmatch(path, each) or fnmatch(path.rpartition(".")[2], each) for each in named):
                exempt.add(f"{place}.{path}".lstrip("."))
    return exempt


def _adam(settings: Optimization) -> dict[str, Any]:
    """Returns the arguments of AdamW that the settings give; the others keep PyTorch's defaults."""
    return {name: value for name in ("betas", "eps") if (value := getattr(settings, name)) is not None}


def _timm(groups: list[dict[str, Any]], settings: Optimization) -> torch.optim.Optimizer:
    """Builds an optimizer of timm; the groups say which weights decay."""
    with needs("timm"):
        optimizers: Any = import_module("timm.optim")
    valid = optimizers.list_optimizers()
    if settings.timm_optimizer not in valid:
        raise ValueError(f"timm_optimizer={settings.timm_optimizer!r} is unknown to timm; valid are {', '.join(valid)}")
    momentum = {} if settings.momentum is None else {"momentum": settings.momentum}
    optimizer: torch.optim.Optimizer = optimizers.create_optimizer_v2(
        groups, settings.timm_optimizer, lr=settings.lr, weight_decay=0.0, **_adam(settings), **momentum
    )
    return optimizer


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for a model's weight matrices, and AdamW for its other weights.

    AdamW takes embeddings, vectors, weights with more than two dimensions, and the last layer of a model that names it,
    by ``get_output_embeddings`` (decoders, Crammed BERT) or ``get_classifier`` (timm).  In other models the last layer
    is one matrix more for Muon: the classifier of Hugging Face's ViT, with which the digits of ``results/matched/muon``
    were run, and the layers by which `burgers` and `in_context_regression` read in and out.

    The two optimizers share one state and one list of groups, so that schedules and checkpoints see one optimizer.
    Muon's steps are scaled to the root mean square of AdamW's, so that one learning rate and one decay serve both (Liu
    et al. 2025, arXiv 2502.16982).
    """

    def __init__(self, model: nn.Module, groups: list[dict[str, Any]], settings: Optimization) -> None:
        inside = _inner_matrices(model)
        momentum = 0.95 if settings.momentum is None else settings.momentum
        matrices, rest = [
            [{**g, "params": some} for g in groups if (some := [p for p in g["params"] if (id(p) in inside) == ours])]
            for ours in (True, False)
        ]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(matrices, lr=settings.lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=settings.lr, **_adam(settings)))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Makes both parts use this optimizer's groups and state, also those that a checkpoint brings."""
        start = 0
        for part in self._parts:
            count = len(part.param_groups)
            part.param_groups = self.param_groups[start : start + count]
            part.state = self.state
            start += count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss


def _inner_matrices(model: nn.Module) -> set[int]:
    """Ids of the weights (out, in) of all modules but embeddings and, if the model names it, the output layer."""
    head = getattr(model, "get_output_embeddings", lambda: None)() or getattr(model, "get_classifier", lambda: None)()
    left_out = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) or m is head for p in m.parameters()}
    return {id(p) for p in model.parameters() if p.dim() == 2 and id(p) not in left_out}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Returns how many bytes an optimizer holds besides the weights; before its first step it holds nothing."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
