"""For torchtitan: its Llama keeps the kernel in a module of its own, `inner_attention`, which is all that is exchanged.

There the exchange goes into the model's file, or into an override of it, before its parallelize function. The rest
stands for torchtitan, in its order: meta device, activation checkpointing, FSDP2, weights.
python examples/torchtitan_style.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from conditioned_attention import preconditioned_attention


class ScaledDotProductAttention(nn.Module):  # torchtitan's
    def forward(self, q, k, v, *, scale=None, enable_gqa=False):
        return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=True, enable_gqa=enable_gqa)


class PreconditionedAttention(ScaledDotProductAttention):  # ours, which takes its place
    def forward(self, q, k, v, *, scale=None, enable_gqa=False):
        return preconditioned_attention(q, k, v, scale=scale, is_causal=True, enable_gqa=enable_gqa)


class Block(nn.Module):  # torchtitan's, without rotary positions and MLP
    def __init__(self, width=32, heads=4, kv_heads=2):
        super().__init__()
        self.norm, self.size, self.inner_attention = nn.RMSNorm(width), width // heads, ScaledDotProductAttention()
        self.wq, self.wo = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.wk, self.wv = (nn.Linear(width, kv_heads * self.size, bias=False) for _ in range(2))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (w(y).unflatten(-1, (-1, self.size)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        return x + self.wo(self.inner_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())  # torchrun's, with NCCL, on GPUs
mesh = init_device_mesh("cpu", (1,))
with torch.device("meta"):
    model = nn.Sequential(nn.Embedding(128, 32), Block(), Block(), nn.Linear(32, 128))
for i in (1, 2):
    model[i].inner_attention = PreconditionedAttention()  # the only change; without parameters, so checkpoints fit
    model[i] = fully_shard(checkpoint_wrapper(model[i]), mesh=mesh)
fully_shard(model, mesh=mesh).to_empty(device="cpu")
torch.manual_seed(0)
for module in model.modules():
    module.reset_parameters() if hasattr(module, "reset_parameters") else None
text = torch.tensor(list(("A row of a head has length one. " * 33).encode())).view(-1, 33)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(20):
    loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
    loss.backward(), optimizer.step(), optimizer.zero_grad()
    if step % 5 == 0:
        print(f"step {step}, loss {loss.item():.3f}")
dist.destroy_process_group()
