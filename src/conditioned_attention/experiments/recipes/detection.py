"""Mask R-CNN with FPN on XCiT: COCO 2017 as XCiT's repository trains it, and scenes that are composed here.

The paper's section 6 describes the protocol of XCiT's repository, which is the one here; its appendix B.0.2 names
matterport/Mask_RCNN, a ResNet in Keras with SGD, which cannot be what was run.  What is not as in XCiT's repository:
mixed precision is bfloat16 and not float16, and the model; see `experiments/models/mask_rcnn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from conditioned_attention.experiments.data.coco.cutouts import STAMPS, read_cutouts, read_photographs
from conditioned_attention.experiments.data.coco.pictures import CocoPictures, read_pictures
from conditioned_attention.experiments.data.coco.scenes import ANNOTATIONS, Scenes, composed
from conditioned_attention.experiments.data.coco.transforms import Augment
from conditioned_attention.experiments.data.split import TUNING, hold_out
from conditioned_attention.experiments.models.classification_weights import checksum_of_weights, load_classification
from conditioned_attention.experiments.models.mask_rcnn import XCiTMaskRCNN
from conditioned_attention.experiments.tasks.dense_detection import DenseDetection
from conditioned_attention.experiments.tasks.detection import Detection
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place

# detection/configs of facebookresearch/xcit: the names of its norms alone do not decay, and gradients are not clipped
_PUBLISHED: dict[str, Any] = {
    "optimizer": "adamw", "betas": (0.9, 0.999), "lr": 1e-4, "weight_decay": 0.05, "decays": "all", "clip": None,
    "schedule": "milestones", "gamma": 0.1, "warmup_steps": 500, "warmup_from": 1e-7, "batch_size": 16,
    "precision": "bf16",
}  # fmt: skip
_PICTURES, _USUAL = (117_266, 5000), (640, 864)  # with an object, and those of val2017; pixels, padded
_FALLS = {36: (27, 33), 12: (8, 11)}  # epochs after which the rate falls, of so many: mmdetection's 3x and 1x


def published_training(epochs: int = 36, **others: Any) -> Training:
    """XCiT's schedule of 36 epochs, or mmdetection's of 12.

    Raises:
        ValueError: another number of epochs.

    >>> published_training(12).milestones
    (0.6666666666666666, 0.9166666666666666)
    """
    if epochs not in _FALLS:
        raise ValueError(f"epochs must be 36 or 12, got {epochs}")
    return Training(epochs=epochs, milestones=tuple(step / epochs for step in _FALLS[epochs]), **_PUBLISHED, **others)


@dataclass(frozen=True)
class DetectionXCiTS12:
    """Mask R-CNN on XCiT-S12/16, 36 epochs: 45.3 box AP and 40.8 mask AP in XCiT's repository.

    For twelve epochs, use ``--epochs 12 --milestones 0.6667 0.9167``.  For patches of 8 (47.0 and 42.3),
    use ``--backbone xcit_small_12_p8_224 --pretrained xcit_small_12_p8_384.fb_dist_in1k``.

    Attributes:
        data_dir: folder with ``annotations/instances_train2017.json`` and ``…_val2017.json``, ``train2017``
            and ``val2017``.
        pretrained: classifier whose weights it starts from: a name of timm's, which timm downloads, a file, or a folder
            of ``conditioned-attention export``; None for fresh weights.  To start each variant from its own run of a
            classifier made here, use ``start_from``.
        empty_pictures: also train on pictures without an object; the published configuration leaves them out.
        max_unreadable: more unreadable pictures than this are an error.
        cache_dir: where the list of readable pictures is kept; default ~/.cache/conditioned-attention.
        augment: augmentation of training pictures.
        model: the detector.
        training: how it is trained.
    """

    data_dir: Path = place(Path("coco"))
    pretrained: str | None = "xcit_small_12_p16_384.fb_dist_in1k"
    empty_pictures: bool = False
    max_unreadable: int = place(10)
    cache_dir: Path | None = place(None)
    augment: Augment = field(default_factory=Augment)
    model: XCiTMaskRCNN = field(default_factory=partial(XCiTMaskRCNN, "xcit_small_12_p16_224", drop_path=0.05))
    training: Training = field(default_factory=published_training)

    def task(self, *, tuning: bool = False) -> Detection:
        train, notes = self._set("train2017")
        evaluation, more = (train, list[str]()) if tuning else self._set("val2017")
        train, evaluation = _split(train) if tuning else (train, evaluation)
        return _task(train, evaluation, self, [*notes, *more])

    def stand_in(self) -> DenseDetection:
        """The arithmetic of a step, on blank pictures of COCO's number and usual size, for a plan."""
        note = f"counted for COCO's {_PICTURES[0]:,} training pictures at their usual size, 640 × 853"
        return DenseDetection(_PICTURES, _USUAL, 80, self.model, note)

    def _set(self, name: str) -> tuple[CocoPictures, list[str]]:
        root = self.data_dir.expanduser()
        file = root / "annotations" / f"instances_{name}.json"
        if not file.is_file():
            parts = "annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/ and val2017/"
            raise FileNotFoundError(f"there is no {file}: data_dir={self.data_dir} must hold COCO 2017, with {parts}")
        return read_pictures(file, root / name, max_unreadable=self.max_unreadable, cache_dir=self.cache_dir)


@dataclass(frozen=True)
class DetectionXCiTM24(DetectionXCiTS12):
    """Mask R-CNN on XCiT-M24/16, 36 epochs: 46.7 box AP and 42.0 mask AP in XCiT's repository."""

    pretrained: str | None = "xcit_medium_24_p16_384.fb_dist_in1k"
    model: XCiTMaskRCNN = field(default_factory=partial(XCiTMaskRCNN, "xcit_medium_24_p16_224", drop_path=0.15))


@dataclass(frozen=True)
class ComposedScenes:
    """A small Mask R-CNN on scenes of cut-outs in front of photographs, evaluated on cut-outs that it has not seen.

    Settings are chosen on a tenth of the training scenes, which show the same cut-outs as the others; unlike the
    evaluation, this rewards a model that memorises them.

    Attributes:
        cutouts: folder with one folder of cut-outs per class, or Debian's stamps of Tux Paint, in eight classes.
        photographs: folder with the photographs behind them.
        cache_dir: where the scenes are kept; default ~/.cache/conditioned-attention.
        samples: number of scenes to train on.
        eval_samples: number of scenes to evaluate on.
        scenes: what the scenes are like.
        augment: augmentation of training scenes.
        pretrained: as for ``detection_xcit_s12``.
        empty_pictures: as for ``detection_xcit_s12``.
        model: the detector; the default has an XCiT of six layers, 64 wide, with patches of 8.
        training: how it is trained.
    """

    cutouts: Path = place(Path("/usr/share/tuxpaint/stamps"))
    photographs: Path = place(Path("/usr/share/backgrounds/mate/nature"))
    cache_dir: Path | None = place(None)
    samples: int = 2000
    eval_samples: int = 400
    scenes: Scenes = field(default_factory=Scenes)
    augment: Augment = field(default_factory=partial(Augment, sides=(), cut=None))
    pretrained: str | None = None
    empty_pictures: bool = True
    model: XCiTMaskRCNN = field(
        default_factory=partial(
            XCiTMaskRCNN, small=(64, 6), channels=64, box_width=256, mask_layers=2, anchors=128, regions=64,
            proposals=200, test_side=128, test_longest=256,
        )
    )  # fmt: skip
    training: Training = field(
        default_factory=partial(Training, epochs=12, batch_size=8, lr=1e-3, evaluate_every=2, monitor_every=4)
    )

    def task(self, *, tuning: bool = False) -> Detection:
        cutouts = read_cutouts(self.cutouts.expanduser())
        behind = read_photographs(self.photographs.expanduser())
        folders = composed(cutouts, behind, self.scenes, (self.samples, self.eval_samples), self.cache_dir)
        (train, notes), (evaluation, _) = (
            read_pictures(folder / ANNOTATIONS, folder, cache_dir=self.cache_dir) for folder in folders
        )
        train, evaluation = _split(train) if tuning else (train, evaluation)
        split = f"{len(cutouts.train)} cut-outs in the scenes to train on, {len(cutouts.evaluation)} others to evaluate"
        return _task(train, evaluation, self, [split, *cutouts.notes, *notes])

    def stand_in(self) -> DenseDetection:
        """The same arithmetic, on blank scenes and eight classes, for a plan."""
        size = (self.scenes.side, self.scenes.side)
        return DenseDetection(
            (self.samples, self.eval_samples), size, len(STAMPS), self.model, "counted for blank scenes"
        )


def _split(train: CocoPictures) -> tuple[CocoPictures, CocoPictures]:
    rest, held = hold_out([0] * len(train), TUNING)
    return train.subset(rest), train.subset(held)


def _task(train: CocoPictures, evaluation: CocoPictures, recipe: Any, notes: list[str]) -> Detection:
    kept = train if recipe.empty_pictures else train.with_objects()
    if left := len(train) - len(kept):
        notes = [*notes, f"{left:,} training pictures without an object are left out"]
    data = replace(kept, transform=recipe.augment), evaluation
    if recipe.pretrained is None:
        return Detection(data, recipe.model, notes)
    start = partial(_start, recipe.pretrained)
    return Detection(data, recipe.model, notes, start, checksum_of_weights(recipe.pretrained))


def _start(source: str, model: nn.Module) -> str:
    return load_classification(model.get_submodule("backbone.xcit"), source, convert=False).in_words()
