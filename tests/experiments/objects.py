"""Small data with objects: cut-outs and photographs to compose scenes of, COCO's folders, and a quick detector."""

import json

import numpy as np
from PIL import Image

from conditioned_attention.experiments.data.coco.scenes import Scenes
from conditioned_attention.experiments.models.mask_rcnn import XCiTMaskRCNN
from conditioned_attention.experiments.recipes.detection import ComposedScenes
from conditioned_attention.experiments.training.settings import Training

TINY = XCiTMaskRCNN(
    small=(16, 2), channels=8, box_width=16, mask_layers=1, anchors=32, regions=16, proposals=20, test_side=64,
    test_longest=96,
)  # fmt: skip
SHAPES = {
    "bar": lambda y, x: abs(y - 12) < 5,
    "disc": lambda y, x: (y - 12) ** 2 + (x - 12) ** 2 < 130,
    "ring": lambda y, x: abs((y - 12) ** 2 + (x - 12) ** 2 - 90) < 50,
}


def write_cutouts(folder, each=6):
    y, x = np.mgrid[:25, :25]
    for i, (name, shape) in enumerate(SHAPES.items()):
        (folder / name).mkdir(parents=True)
        for j in range(each):
            pixels = np.full((25, 25, 4), (40 * j, 80 * i, 255 - 30 * j, 0), np.uint8)
            pixels[..., 3] = 255 * shape(y, x)
            Image.fromarray(pixels).save(folder / name / f"{j}.png")
    return folder


def write_photographs(folder, count=3):
    folder.mkdir()
    for i in range(count):
        noise = np.random.RandomState(i).randint(0, 255, (9, 12, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((120, 90), Image.Resampling.BILINEAR).save(folder / f"{i}.png")
    return folder


def scenes(folder, **changes):
    """The recipe, on data that are written below the folder."""
    if not (folder / "cutouts").exists():
        write_cutouts(folder / "cutouts")
        write_photographs(folder / "photographs")
    training = Training(epochs=2, batch_size=4, lr=1e-3, monitor_every=0)
    small = {"samples": 8, "eval_samples": 5, "scenes": Scenes(side=64), "model": TINY, "training": training}
    places = {"cutouts": folder / "cutouts", "photographs": folder / "photographs", "cache_dir": folder / "cache"}
    return ComposedScenes(**{**places, **small, **changes})


def square(id_, picture, category, left, top, side, **more):
    """An annotation whose mask fills its box."""
    points = [left, top, left + side, top, left + side, top + side, left, top + side]
    return {
        "id": id_, "image_id": picture, "category_id": category, "bbox": [left, top, side, side], "area": side**2,
        "segmentation": [points], "iscrowd": 0, **more,
    }  # fmt: skip


# ids with holes, as COCO's own
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]


def coco(pictures, annotations, side=64):
    images = [{"id": i, "file_name": f"{i}.png", "height": side, "width": side + 8} for i in pictures]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_coco(root, name, data):
    """``annotations/instances_NAME.json`` and the pictures, of noise."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / name).mkdir()
    (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(data))
    for image in data["images"]:
        if isinstance(image.get("height"), int):
            size = (image["height"], image["width"], 3)
            Image.fromarray(np.random.RandomState(image["id"]).randint(0, 255, size).astype(np.uint8)).save(
                root / name / image["file_name"]
            )


def write_small_coco(root, count=6):
    for name, first in (("train2017", 1), ("val2017", 100)):
        ids = range(first, first + count)
        things = [square(i, i, (1, 13, 90)[i % 3], 5 + i % 7, 9, 20 + i % 11) for i in ids if i % 4]
        write_coco(root, name, coco(ids, things))
    return root
