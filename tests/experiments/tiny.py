"""Tasks that train in a second: real digits, a small vision transformer with dropout, an odd number of batches."""

import dataclasses
import functools
import random
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from conditioned_attention.experiments.data.images.arrays import ImageArrays
from conditioned_attention.experiments.data.images.digits import load_digits
from conditioned_attention.experiments.data.lra.listops import ListOpsTrees
from conditioned_attention.experiments.models.lra_encoder import LRAEncoder
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.long_range_arena import ListOps
from conditioned_attention.experiments.tasks.classification import ImageClassification
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.settings import Training
from tests.models import timm_vit

_digits = functools.cache(load_digits)  # scikit-learn reads them from text, in longer than some of these tasks train
SELDOM = Launch(log_every=2)  # a checkpoint at the end alone, since each takes as long as some steps
OFTEN = Launch(checkpoint_seconds=0.0, log_every=2)


class TinyDigits(ImageClassification):
    def __init__(self, dropout=0.1, *, tuning=False):
        train, test = _digits()
        if tuning:  # 189 of the 210 images to train on; the others stand in for the 90
            train, test = (
                ImageArrays(train.images[:189], train.labels[:189]),
                ImageArrays(train.images[189:210], train.labels[189:210]),
            )
        super().__init__(
            (ImageArrays(train.images[:210], train.labels[:210]), ImageArrays(test.images[:90], test.labels[:90])),
            VisionTransformer(),
        )
        self.dropout = dropout

    def build_model(self) -> nn.Module:
        return timm_vit(attn_drop_rate=self.dropout, proj_drop_rate=self.dropout)


class Shaken(Dataset):
    """Pictures one by one, moved and made noisy by all three global generators, as augmentation libraries do."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        image, label = self.arrays[index]
        moved = image.roll((random.randint(-1, 1), int(np.random.randint(-1, 2))), (1, 2))  # noqa: NPY002
        return moved + 0.1 * torch.randn(moved.shape), label


class ShakenDigits(TinyDigits):
    """With chance in the items, in the batch and in the model; it draws without a thought of resuming."""

    def train_data(self):
        return Shaken(super().train_data())

    def collate_train(self, items):
        images, labels = super().collate_train(items)
        return images * (1 + 0.1 * torch.rand(len(images), 1, 1, 1)), labels


TREES = ListOpsTrees(longer_than=4, shorter_than=33, max_depth=4)


def tiny_lists(folder, **changes):
    """ListOps with lists of at most 32 tokens, which are kept in the folder, and a model that fits them."""
    model = LRAEncoder(length=32, hidden_size=16, mlp_size=16, landmarks=8, convolution=3)
    sizes = {"samples": 60, "eval_samples": 20, "test_samples": 30}
    return ListOps(**{**sizes, "trees": TREES, "model": model, "cache_dir": folder, **changes})


def six_steps(recipe, **changes):
    """The recipe's own protocol, of micro-batches, in six steps."""
    sizes = {"max_steps": 6, "batch_size": 8, "accumulation": 2, "warmup_steps": 2, "evaluate_steps": 2}
    return dataclasses.replace(recipe.training, evaluate_batches=None, lr=1e-2, **sizes, **changes)


@dataclass(frozen=True)
class Tiny:
    training: Training = field(default_factory=lambda: Training(epochs=3, batch_size=30, accumulation=2))

    def task(self, *, tuning=False):
        return TinyDigits(tuning=tuning)
