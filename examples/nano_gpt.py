"""A loop in the style of nanoGPT: batches out of one long text, clipping, torch.compile by a flag.

python examples/nano_gpt.py
"""

import inspect
import math

import torch
from torch import nn
from torch.nn import functional as F

from conditioned_attention import preconditioned_attention

CONDITIONED, COMPILE, STEPS, CONTEXT, WIDTH, HEADS = True, False, 40, 32, 64, 4
text = torch.tensor(list(inspect.getsource(nn.modules.activation).encode("ascii", "ignore")))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        q, k, v = self.attend(self.norm_1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attention = preconditioned_attention if CONDITIONED else F.scaled_dot_product_attention  # the only change
        x = x + self.project(attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.token, self.place = nn.Embedding(128, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(layers))), nn.LayerNorm(WIDTH)

    def forward(self, ids, targets):
        x = self.norm(self.blocks(self.token(ids) + self.place.weight[: ids.shape[1]]))
        return F.cross_entropy((x @ self.token.weight.T / math.sqrt(WIDTH)).flatten(0, 1), targets.flatten())


torch.manual_seed(0)
model = GPT()
run = torch.compile(model) if COMPILE else model
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
for step in range(STEPS):
    starts = torch.randint(len(text) - CONTEXT - 1, (16,))
    window = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
    loss = run(window[:, :-1], window[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step}, loss {loss.item():.2f}")
