"""A task that trains in a second: real digits, a small vision transformer with dropout, an odd number of batches."""

from dataclasses import dataclass, field

from torch import nn

from conditioned_attention.experiments.data.arrays import ImageArrays
from conditioned_attention.experiments.data.digits import load_digits
from conditioned_attention.experiments.images import ImageClassification, VisionTransformer
from conditioned_attention.experiments.training import Training
from tests.models import timm_vit


class TinyDigits(ImageClassification):
    def __init__(self, *, tuning=False):
        train, test = load_digits()
        if tuning:  # 189 of the 210 images to train on; the others stand in for the 90
            train, test = (
                ImageArrays(train.images[:189], train.labels[:189]),
                ImageArrays(train.images[189:210], train.labels[189:210]),
            )
        super().__init__(
            (ImageArrays(train.images[:210], train.labels[:210]), ImageArrays(test.images[:90], test.labels[:90])),
            VisionTransformer(),
        )

    def build_model(self) -> nn.Module:
        return timm_vit(attn_drop_rate=0.1, proj_drop_rate=0.1)


@dataclass(frozen=True)
class Tiny:
    training: Training = field(
        default_factory=lambda: Training(epochs=3, batch_size=30, accumulation=2, checkpoint_seconds=0.0, log_every=2)
    )

    def task(self, *, tuning=False):
        return TinyDigits(tuning=tuning)
