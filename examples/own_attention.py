"""Your own attention class: say where its heads are, and everything else works on it.

python examples/own_attention.py
"""

import torch
from torch import nn

from conditioned_attention import ConditionMonitor, precondition, register_attention, restore


class MyAttention(nn.Module):
    """Multi-query attention: all heads share one key and one value."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.shared = nn.Linear(width, width), nn.Linear(width, 2 * self.size)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q = self.query(x).unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        k, v = self.shared(x).unsqueeze(1).expand(-1, self.heads, -1, -1).chunk(2, -1)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))  # `out` gets the heads side by side


register_attention(MyAttention, at="out", heads="heads")  # once, before conversion

torch.manual_seed(0)
model = nn.Sequential(MyAttention(32, 4), nn.GELU(), MyAttention(32, 4))
x = torch.randn(2, 9, 32)
plain = model(x)
print(precondition(model))

# Do this once for a class of yours: what `out` gets must consist of rows of length 1.
rows = []
model[0].out.register_forward_pre_hook(lambda module, args: rows.append(args[0].unflatten(-1, (4, 8)).norm(dim=-1)))
model(x)
print("rows have length 1:", torch.allclose(rows[0], torch.ones_like(rows[0])))

monitor = ConditionMonitor(model, x)
monitor.measure(0)
print(monitor)

restore(model)
print("the plain model again:", torch.equal(model(x), plain))
