"""How large logits and attention are before training, by the scale of the start: writes start.csv beside this file.

For each start of the comparisons in run.sh, and for a ViT-B/16, each layer's numbers, mean of three seeds:

* logits: standard deviation of q kᵀ / √d over the keys of a row, root mean square over rows and heads;
* branch: root mean square of what attention adds to the tokens, over that of the tokens;
* branch_with_c: the same with preconditioned attention in this layer.

Digits see eight training images, the ViT-B the two photographs of scikit-learn at 224 × 224.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images

from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.small_images import Digits
from conditioned_attention.preconditioner import RowNorm

SEEDS = range(3)
DIGITS = VisionTransformer(library="timm")
VIT_B = VisionTransformer(library="timm", patch_size=16, hidden_size=768, layers=12, heads=12)
STARTS = {
    **{f"init-{std:g}": replace(DIGITS, init=std) for std in (0.01, 0.02, 0.04, 0.0693, 0.125, 0.25)},
    **{f"qk-{factor:g}": replace(DIGITS, qk_scale=factor) for factor in (0.29, 3.6)},
    **{f"vo-{factor:g}": replace(DIGITS, vo_scale=factor) for factor in (0.29, 3.6)},
    "ViT-B": VIT_B,
    "ViT-B, timm's start": replace(VIT_B, init="library"),
}


def photographs() -> torch.Tensor:
    images = np.stack(load_sample_images().images)  # (2, 427, 640, 3)
    scaled = F.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2).float(), (224, 224), mode="area")
    return scaled / 127.5 - 1


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@torch.no_grad()
def layers_of(start: VisionTransformer, images: torch.Tensor, classes: int, seed: int) -> np.ndarray:
    """(layers, 3): logits, branch and branch_with_c."""
    torch.manual_seed(seed)
    model = start.build(images.shape[-1], images.shape[1], classes).eval()
    tokens: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    model(images)
    rows = []
    for block, x in zip(model.blocks, tokens, strict=True):
        attention, b, n = block.attn, *x.shape[:2]
        q, k, v = attention.qkv(block.norm1(x)).view(b, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT * q.shape[-1] ** -0.5
        heads = logits.softmax(-1) @ v
        added = [attention.proj(h.transpose(1, 2).reshape(b, n, -1)) for h in (heads, RowNorm()(heads))]
        rows.append([logits.var(-1, correction=0).mean().sqrt().item(), *(rms(a) / rms(x) for a in added)])
    return np.array(rows)


def main() -> None:
    digits, photos = Digits().task().calibration(), photographs()
    with (Path(__file__).parent / "start.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["start", "layer", "logits", "branch", "branch_with_c"])
        for name, start in STARTS.items():
            images, classes = (photos, 1000) if start.layers == VIT_B.layers else (digits, 10)
            mean = np.mean([layers_of(start, images, classes, seed) for seed in SEEDS], axis=0)
            writer.writerows([name, layer, *(f"{x:.4g}" for x in row)] for layer, row in enumerate(mean, 1))


if __name__ == "__main__":
    main()
