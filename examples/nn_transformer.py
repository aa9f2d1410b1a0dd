"""torch.nn.Transformer, encoder and decoder: learn to turn a sequence round.

python examples/nn_transformer.py
"""

import torch
from torch import nn

from conditioned_attention import ConditionMonitor, precondition


class Reverse(nn.Module):
    """Digits in, the same digits from behind out."""

    def __init__(self, width=32):
        super().__init__()
        self.embed, self.place = nn.Embedding(11, width), nn.Parameter(torch.randn(9, width) / width**0.5)
        self.transformer = nn.Transformer(width, 4, 1, 1, 64, dropout=0.0, batch_first=True)
        self.say = nn.Linear(width, 11)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        source, target = (self.embed(t) + self.place[: t.shape[1]] for t in (source, target))
        return self.say(self.transformer(source, target, tgt_mask=mask, tgt_is_causal=True))


torch.manual_seed(0)
model = Reverse()
print(precondition(model))  # self-attention and cross-attention; include="*.multihead_attn" would take the latter alone
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def batch(size):
    digits = torch.randint(10, (size, 8))
    answer = torch.cat([torch.full((size, 1), 10), digits.flip(1)], 1)  # 10 begins the answer
    return digits, answer[:, :-1], answer[:, 1:]


monitor = ConditionMonitor(model, batch(4)[:2], every=50)
for step in range(101):
    monitor.step(step)
    source, so_far, answer = batch(64)
    loss = nn.functional.cross_entropy(model(source, so_far).flatten(0, 1), answer.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}, loss {loss.item():.2f}")
print(monitor)
