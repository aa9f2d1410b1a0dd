"""Image classification as in the papers: one recipe for each model of their tables, with the settings of its source.

What all of them have in common with the published loops: timm's network, transforms, mixup, decay and cosine.  What is
not as there, for all: mixed precision is bfloat16 and not float16, since that needs no scaling of the loss; mixup draws
once for a whole batch and not once a GPU; XCiT's batch norms are those of each GPU.  DeiT and XCiT also keep a moving
average of the weights with decay 0.99996, and report the weights without it: it is evaluated beside them, as
``ema_score``, and with FSDP2 it has to be left out (``ema_beside=None``).  The papers' own text says "original papers"
and "timm", and no numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from conditioned_attention.experiments.data.images.blank import BlankImages
from conditioned_attention.experiments.data.images.imagenet import imagenet
from conditioned_attention.experiments.data.images.mixing import Mixing
from conditioned_attention.experiments.data.images.source import ImageSource
from conditioned_attention.experiments.data.images.transforms import Augment
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.tasks.classification import ImageClassification
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place

# DeiT's main.py at 7e160fe: 5e-4 for 512 images, so 1e-3 for 1,024; the cosine is told the epoch that has ended.
_ADAMW: dict[str, Any] = {"optimizer": "timm", "timm_optimizer": "adamw", "betas": (0.9, 0.999), "eps": 1e-8}
_COMMON: dict[str, Any] = _ADAMW | {"batch_size": 1024, "lr": 1e-3, "weight_decay": 0.05, "precision": "bf16"}
_BY_EPOCH: dict[str, Any] = {"schedule_per": "epoch", "cosine_from": "run"}
_DEIT: dict[str, Any] = (
    _COMMON
    | _BY_EPOCH
    | {"clip": None, "warmup_from": 1e-6, "final_lr": 0.01, "schedule_lag": 1, "order": "repeated", "repeats": 3}
    | {"ema_beside": 0.99996}
)
_MIXED, _SMOOTHED, _AS_THEY_ARE = Mixing(mixup=0.8, cutmix=1.0, smoothing=0.1), Mixing(smoothing=0.1), Mixing()
_CLASSES, _IMAGES = 1000, (1_281_167, 50_000)  # of ImageNet-1k, to train and to evaluate


@dataclass(frozen=True)
class ImageNet(ImageFolder):
    """A recipe on ImageNet-1k, or on other images in its place.

    Attributes:
        data_dir: folder with the images; see `ImageFolder`.  A dry run needs none.
        val_labels: the list of the classes of the validation images, if these are all in one folder, as they are
            distributed; see `imagenet`.  Without a list, they are in class folders, or the data are a saved data set or
            parquet files.
        classes: required number of classes; another number is an error before any image is read.  If the number of
            images is not ImageNet's, this is reported, but no error.
    """

    data_dir: Path = place(Path("imagenet"))
    val_labels: Path | None = place(None)
    classes: int = place(_CLASSES)
    augment: Augment = "strong"
    mixing: Mixing = _MIXED

    def _source(self) -> ImageSource:
        if self.val_labels is None:
            source = super()._source()
        else:
            source = imagenet(self.data_dir.expanduser(), self.val_labels.expanduser(), self.eval_split)
        if (found := len(source.classes)) != self.classes:  # before a million images are read
            raise ValueError(f"{self.data_dir} has {found} classes, and classes={self.classes} were expected")
        counts = len(source.train), len(source.evaluation)
        if self.classes != _CLASSES or counts == _IMAGES:
            return source
        note = "{:,} images to train and {:,} to evaluate; ImageNet-1k has {:,} and {:,}".format(*counts, *_IMAGES)
        return replace(source, notes=[*source.notes, note])

    def stand_in(self) -> ImageClassification | None:
        """The task on as many blank images as ImageNet-1k has, for a plan; None where there is a ``data_dir``."""
        if self.data_dir.expanduser().exists():
            return None
        note = f"there is no {self.data_dir}: counted for the {_IMAGES[0]:,} training images of ImageNet-1k"
        train, evaluation = (BlankImages(count, self.image_size) for count in _IMAGES)
        return self._task((train, evaluation), self.classes, [note])


@dataclass(frozen=True)
class DeiTB(ImageNet):
    """DeiT-B without distillation: 300 epochs, 81.8 % (facebookresearch/deit, main.py and README_deit)."""

    timm_model: str | None = "deit_base_patch16_224"
    drop_path: float = 0.1
    training: Training = field(default_factory=partial(Training, epochs=300, warmup=5 / 300, **_DEIT))


@dataclass(frozen=True)
class ViTB(DeiTB):
    """ViT-B/16 by DeiT's recipe, which is the same network.

    The paper says that its ViT-B follows the original and reports 80.2 %; the original recipe (`vit_b_original`) does
    not come near on ImageNet-1k alone, and DeiT's is what "ViT-B from scratch" has come to mean.  This is DeiT-B under
    another name; the paper does not say what distinguishes its two rows.
    """

    timm_model: str | None = "vit_base_patch16_224"


@dataclass(frozen=True)
class ViTBOriginal(ImageNet):
    """ViT-B/16 by the original ViT paper's recipe for ImageNet-1k alone.

    The settings are those in DeiT's table of recipes (not checked in the original code): batch 4,096, weight decay 0.3,
    dropout 0.1, 10,000 steps of warm-up, no strong augmentation.
    """

    timm_model: str | None = "vit_base_patch16_224"
    augment: Augment = "light"
    mixing: Mixing = _AS_THEY_ARE
    dropout: float = 0.1
    training: Training = field(
        default_factory=partial(
            Training,
            epochs=300,
            **_COMMON | {"batch_size": 4096, "lr": 3e-3, "weight_decay": 0.3, "clip": 1.0},
            warmup_steps=10_000,
            final_lr=0.0,
        )
    )


@dataclass(frozen=True)
class SwinB(ImageNet):
    """Swin-B: 300 epochs, 83.5 % (microsoft/Swin-Transformer, swin_base_patch4_window7_224.yaml).

    Its learning rate changes with every step, and the cosine begins after 20 epochs of warm-up.
    """

    timm_model: str | None = "swin_base_patch4_window7_224"
    drop_path: float = 0.5
    training: Training = field(
        default_factory=partial(
            Training, epochs=300, **_COMMON, clip=5.0, warmup=20 / 300, warmup_from=1e-6, final_lr=0.01, schedule_lag=1
        )
    )


@dataclass(frozen=True)
class XCiT(ImageNet):
    """XCiT with patches of 16: 400 epochs (facebookresearch/xcit, main.py and README; evaluation with --full_crop).

    The rows of its attention are channels, so C has one entry per channel.

    Attributes:
        class_attention: whether the variants also act in the last two layers, in which the class token alone attends.
            The paper does not say; it multiplies "each attention matrix", so by default they do.
    """

    class_attention: bool = True
    crop: float = 1.0
    training: Training = field(default_factory=partial(Training, epochs=400, warmup=5 / 400, **_DEIT))

    def _task(self, *given: Any) -> ImageClassification:
        task = super()._task(*given)
        task.left_alone = () if self.class_attention else ("cls_attn_blocks.*",)
        return task


@dataclass(frozen=True)
class XCiTS12(XCiT):
    """XCiT-S12/16: 400 epochs, 82.0 %, drop path 0.05 (its README)."""

    timm_model: str | None = "xcit_small_12_p16_224"
    drop_path: float = 0.05


@dataclass(frozen=True)
class XCiTM24(XCiT):
    """XCiT-M24/16: 400 epochs, 82.7 %, drop path 0.15 (its detection configurations)."""

    timm_model: str | None = "xcit_medium_24_p16_224"
    drop_path: float = 0.15


@dataclass(frozen=True)
class DaViTB(ImageNet):
    """DaViT-B: 300 epochs and 10 at the lowest rate, 84.6 %, by its code (dingmyu/davit, train.py and README).

    The defaults of its code are DeiT's, except that the learning rate changes with every step, no sample is repeated,
    and gradients are clipped.

    Batch size, learning rate and clipping are those of the README's command for one machine, which trains the tiny
    model; the drop path of 0.4 is that of open-mmlab/mmpretrain (davit-base.py), since the code's default is 0.1 for
    all sizes.  Half of the layers attend over channels; there, the rows of attention are channels.
    """

    timm_model: str | None = "davit_base"
    drop_path: float = 0.4
    crop: float = 0.9
    training: Training = field(
        default_factory=partial(
            Training,
            epochs=310,
            **_COMMON,
            clip=1.0,
            warmup=5 / 310,
            warmup_from=1e-6,
            final_lr=0.01,
            cosine_from="run",
            schedule_lag=-1,
            cooldown=10 / 310,
        )
    )


@dataclass(frozen=True)
class VOLOD1(ImageNet):
    """VOLO-D1 by its code (sail-sg/volo, main.py and README), 300 epochs and 10 at the lowest rate.

    It is trained without token labels, which need another network and are part of its 84.2 %.  Training images are
    scaled by bicubic interpolation here, and by one of two interpolations at random in its code.

    Attributes:
        outlooks: whether the variants also act in its outlook attention, which computes its weights from one token
            alone.  This has no queries and keys, so λ I is refused there; by default no variant acts in it.
    """

    outlooks: bool = False
    timm_model: str | None = "volo_d1_224"
    drop_path: float = 0.1
    mixing: Mixing = _SMOOTHED
    crop: float = 0.96
    training: Training = field(
        default_factory=partial(
            Training,
            epochs=310,
            **_COMMON | _BY_EPOCH | {"lr": 1.6e-3, "clip": None},
            warmup=20 / 310,
            warmup_from=1e-6,
            final_lr=1e-5 / 1.6e-3,
            cooldown=10 / 310,
        )
    )

    def task(self, *, tuning: bool = False) -> ImageClassification:
        task = super().task(tuning=tuning)
        task.left_alone = () if self.outlooks else ("network.0.*",)
        return task
