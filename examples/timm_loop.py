"""A timm model in a loop of your own, with averaged weights, and a guard in its checkpoint.

python examples/timm_loop.py
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.utils import ModelEmaV3

from conditioned_attention import apply_conditioning, precondition

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.images).float().unsqueeze(1) / 8 - 1, torch.tensor(digits.target)


def build():
    sizes = dict(img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=2, num_heads=4, num_classes=10)
    return timm.create_model("vit_tiny_patch16_224", **sizes)


model = build()
precondition(model, guard=True)  # before anything copies the model or holds its parameters
average = ModelEmaV3(model, decay=0.9)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

for batch in torch.randperm(1400).split(100):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()
    average.update(model)

torch.save(average.module.state_dict(), "average.pt")

# Somewhere else: the guard makes a plain model refuse the weights, and says how to load them.
loaded = build()
state = torch.load("average.pt")
try:
    loaded.load_state_dict(state)
except RuntimeError as error:
    print("refused by a plain model:", "apply_conditioning" in str(error))
apply_conditioning(loaded, state)
loaded.load_state_dict(state)

loaded.eval(), average.module.eval()
with torch.no_grad():
    print("the same output:", torch.equal(loaded(x[1400:]), average.module(x[1400:])))
