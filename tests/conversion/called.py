"""Which modules are called, and with what: a hook on any of them is how maps are read and parts switched off."""

from contextlib import contextmanager

import torch
from torch import nn


def calls(model, run):
    """Every call of every module, in order, with the shapes of the tensors that it gets."""
    found = []

    def note(name):
        return lambda module, args: found.append((name, [tuple(a.shape) for a in args if torch.is_tensor(a)]))

    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    run(model)
    for handle in handles:
        handle.remove()
    return found


@contextmanager
def spoiled(model, name):
    """What a module returns is doubled where it is positive: whoever passes the hook by computes something else."""

    def spoil(module, args, output):
        return output + output.relu() if torch.is_tensor(output) else None

    handle = model.get_submodule(name).register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def leaves(model):
    """The names of the modules that hold no others, and of no lists."""
    return [name for name, m in model.named_modules() if name and not list(m.children()) and type(m) is not nn.Identity]
