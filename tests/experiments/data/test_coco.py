"""COCO's files: what is read and what is named; masks against pycocotools; augmentation; and scenes composed here."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as oracle

from conditioned_attention.experiments.data.coco.annotations import read_annotations
from conditioned_attention.experiments.data.coco.cutouts import read_cutouts, read_photographs
from conditioned_attention.experiments.data.coco.masks import decode, encode, why_no_mask
from conditioned_attention.experiments.data.coco.pictures import read_pictures
from conditioned_attention.experiments.data.coco.scenes import ANNOTATIONS, Scenes, compose, composed
from conditioned_attention.experiments.data.coco.transforms import Augment
from tests.experiments.objects import SHAPES, coco, square, write_coco, write_cutouts, write_photographs

BROKEN = {
    11: (square(11, 9, 1, 0, 0, 9), "there is no picture 9"),
    12: (square(12, 1, 2, 0, 0, 9), "there is no category 2"),
    13: (square(13, 1, 1, 0, 0, 9, bbox=[0, 0, 0, 9]), "is no box"),
    14: (square(14, 1, 1, 0, 0, 9, bbox=[0, float("nan"), 9, 9]), "is no box"),
    15: (square(15, 1, 1, 0, 0, 9, bbox=[72, 3, 9, 9]), "lies beside its picture of 72 × 64"),
    16: (square(16, 1, 1, 0, 0, 9, segmentation=[[1, 2, 3, 4]]), "polygons are invalid"),
    17: (square(17, 1, 1, 0, 0, 9, segmentation={"size": [64, 64], "counts": [64 * 64]}), r"of the size \[64, 64\]"),
    18: (square(18, 1, 1, 0, 0, 9, segmentation={"size": [64, 72], "counts": [9, 9]}), "its runs make 18 pixels"),
    19: (square(19, 1, 1, 0, 0, 9, segmentation={"size": [64, 72], "counts": "zz"}), "its mask is damaged"),
    20: ({"id": 20, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}, "it has no mask"),
    21: ({"id": 21, "image_id": "1"}, "no image_id and category_id"),
    22: (square(22, 1, 1, 0, 0, 9, area="large"), "area 'large' is no number"),
    23: (square(23, 1, 1, 0, 0, 9, bbox=[0, 0, 9, 10**400]), "is no box"),
    24: (square(24, 1, 1, 0, 0, 9, segmentation=[[0, 0, 9, 0, 9, 10**400]]), "polygons are invalid"),
}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_ids_with_holes_are_counted_from_one_in_their_order(tmp_path):
    write_coco(tmp_path, "some", coco([7, 3], [square(5, 3, 90, 1, 2, 9), square(5, 3, 1, 1, 2, 9)]))
    found = read_annotations(tmp_path / "annotations" / "instances_some.json")
    assert (found.classes, found.category_ids) == (("person", "stop sign", "toothbrush"), (1, 13, 90))
    assert [picture.id for picture in found.pictures] == [7, 3]
    assert [thing.label for thing in found.things[3]] == [3, 1]
    assert (found.things[7], found.notes) == ([], ())


def test_broken_entries_are_counted_and_named(tmp_path):
    data = coco([1, 2], [square(10, 1, 1, 0, 0, 9), *(entry for entry, _ in BROKEN.values()), "none"])
    data["images"] += [{"id": 2, "file_name": "2.png", "height": 9, "width": 9}, {"id": 3, "file_name": "3.png"}]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(data))
    found = read_annotations(file)
    assert [len(found.things[i]) for i in (1, 2)] == [1, 0]
    pictures, things = found.notes
    assert pictures.startswith(
        "a.json: 2 broken pictures left out, by id: 2 (for the second time), 3 (no id, file_name, "
    )
    assert things.startswith("a.json: 15 broken annotations left out, by id: 11 (there is no picture 9), 12 (")
    for id_, (entry, why) in BROKEN.items():
        file.write_text(json.dumps({**data, "annotations": [square(10, 1, 1, 0, 0, 9), entry]}))
        with_one = read_annotations(file).notes[-1]
        assert with_one.startswith(f"a.json: 1 broken annotations left out, by id: {id_} ("), with_one
        assert re.search(why, with_one), with_one


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": []}, "has no whole picture"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "several categories have the id 1"),
        ({"categories": []}, "there must be one"),
        ({"annotations": None}, "must have the lists images, annotations, categories"),
    ],
)
def test_files_that_are_no_annotations(tmp_path, change, says):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({**coco([1], []), **change}))
    with pytest.raises(ValueError, match=says):
        read_annotations(file)
    file.write_text("{")
    with pytest.raises(ValueError, match="holds no JSON"):
        read_annotations(file)


def test_broken_annotations_are_told_and_must_not_be_all(tmp_path, cache):
    broken = square(11, 9, 1, 0, 0, 9)
    write_coco(tmp_path, "some", coco([1], [square(10, 1, 1, 0, 0, 9), broken]))
    file = tmp_path / "annotations/instances_some.json"
    with pytest.warns(UserWarning, match="1 broken annotations left out, by id: 11"):
        read_pictures(file, tmp_path / "some", cache_dir=cache)
    file.write_text(json.dumps(coco([1], [broken, broken])))
    with pytest.raises(ValueError, match=r"has no whole annotation: 11 \(there is no picture 9\), 11"):
        read_annotations(file)


def test_masks_are_those_of_pycocotools():
    chance = np.random.RandomState(0)
    masks = chance.randint(0, 2, (3, 20, 31)).astype(np.uint8)
    ours = encode(masks)
    theirs = oracle.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    assert [rle["counts"] for rle in ours] == [rle["counts"].decode() for rle in theirs]
    assert all((decode(rle, 20, 31) == mask).all() for rle, mask in zip(ours, masks))
    runs = [7, 13, 20 * 31 - 20]
    polygon = [[2.5, 3, 17, 4, 12.2, 18.9], [20, 1, 45, 1, 45, 50]]  # the second reaches beyond the picture
    for shape in (polygon, {"size": [20, 31], "counts": runs}):
        rle = oracle.frPyObjects(shape, 20, 31)
        merged = oracle.merge(rle) if isinstance(rle, list) else rle
        assert not why_no_mask(shape, 20, 31)
        assert (decode(shape, 20, 31) == oracle.decode(merged)).all()


def test_an_item_has_what_is_to_be_learnt(tmp_path, cache):
    things = [
        square(1, 5, 13, 60, 50, 30),  # beyond the border
        square(2, 5, 1, 4, 4, 10, iscrowd=1, segmentation={"size": [64, 72], "counts": [0, 64 * 72]}),
        square(3, 5, 90, 4, 4, 0.5),
    ]
    write_coco(tmp_path, "some", coco([5, 6], things))
    data, notes = read_pictures(tmp_path / "annotations/instances_some.json", tmp_path / "some", cache_dir=cache)
    image, target = data.with_truth()[0]
    assert (notes, image.shape, image.dtype) == ([], (3, 64, 72), torch.float32)
    assert (target["boxes"].tolist(), target["labels"].tolist()) == ([[60, 50, 72, 64]], [2])
    assert target["masks"].sum() == 12 * 14
    assert data[0][1].keys() == {"image_id"}
    assert data.with_truth()[1][1]["masks"].shape == (0, 64, 72)
    assert [data.with_objects().picture(0).id, len(data.with_objects())] == [5, 1]
    truth = data.ground_truth()
    assert [thing["iscrowd"] for thing in truth["annotations"]] == [0, 1, 0]
    assert truth["annotations"][0]["bbox"] == [60, 50, 30, 30], "as the file has it"


def test_pictures_that_are_missing_or_of_another_size_are_named(tmp_path, cache):
    write_coco(tmp_path, "some", coco([1, 2, 3], []))
    (tmp_path / "some" / "2.png").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "some" / "3.png")
    with pytest.warns(UserWarning, match="2 of 3 items cannot be read: 2.png"):
        data, notes = read_pictures(tmp_path / "annotations/instances_some.json", tmp_path / "some", cache_dir=cache)
    assert len(data) == 1
    assert "3.png (ValueError: it has 9 × 9 pixels, and 72 × 64 by its entry)" in notes[1]
    Image.new("RGB", (72, 64)).save(tmp_path / "some" / "1.png")
    with pytest.raises(RuntimeError, match=r"1\.png has changed"):
        data[0]


def with_a_square(side=100):
    """A picture that is white where its one object is."""
    image, mask = torch.zeros(3, side, side + 20), torch.zeros(1, side, side + 20, dtype=torch.uint8)
    image[:, 30:60, 20:50] = 1
    mask[:, 30:60, 20:50] = 1
    return image, {
        "image_id": torch.tensor(3), "boxes": torch.tensor([[20.0, 30, 50, 60]]), "labels": torch.tensor([2]),
        "masks": mask,
    }  # fmt: skip


def test_picture_boxes_and_masks_go_together():
    augment = Augment(sides=(64, 96, 128), longest=160, cut=(40, 80), sides_before=(60, 90))
    sizes, kept = set(), 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = augment(*with_a_square())
        sizes.add(min(image.shape[1:]))
        assert max(image.shape[1:]) <= 160
        assert target["masks"].shape[1:] == image.shape[1:]
        assert all(type(value) is torch.Tensor for value in (image, *target.values()))
        if len(target["boxes"]):
            kept += 1
            left, top, right, bottom = target["boxes"][0].tolist()
            y, x = torch.where(target["masks"][0] > 0)
            around = [int(n) for n in (x.min(), y.min(), x.max() + 1, y.max() + 1)]
            assert [left, top, right, bottom] == pytest.approx(around, abs=2)
            inside = image[0][target["masks"][0] > 0]
            assert inside.mean() > 0.9
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
    assert {64, 96, 128} <= sizes
    assert 20 < kept < 40, "a cut may leave no object"


def test_a_cut_is_as_large_as_it_may_be_and_the_same_seed_gives_the_same():
    augment = Augment(flip=0, sides=(200,), longest=1000, cut=(40, 60), sides_before=(100,))
    areas = []
    for seed in range(60):
        torch.manual_seed(seed)
        image, _ = augment(*with_a_square())
        torch.manual_seed(seed)
        assert torch.equal(augment(*with_a_square())[0], image)
        assert min(image.shape[1:]) == 200
        areas.append(max(image.shape[1:]) / 200)
    assert sum(ratio == 1.2 for ratio in areas) >= 20, "every second picture is whole"
    assert max(areas) <= 1.5


def test_published_augmentation():
    """XCiT's configuration: eleven short sides, and cuts of 384 to 600."""
    augment = Augment()
    assert (augment.sides, augment.longest) == ((480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), 1333)
    assert (augment.cut, augment.sides_before, augment.flip) == ((384, 600), (400, 500, 600), 0.5)
    with pytest.raises(ValueError, match="cut must be a smallest and a largest"):
        Augment(cut=(9, 3))


@pytest.fixture
def parts(tmp_path):
    return read_cutouts(write_cutouts(tmp_path / "cutouts")), read_photographs(write_photographs(tmp_path / "photos"))


def test_scenes_have_true_masks_and_share_no_object(parts, cache):
    cutouts, photographs = parts
    assert cutouts.classes == tuple(SHAPES)
    assert len(cutouts.train) + len(cutouts.evaluation) == 18
    assert not {one.name for one in cutouts.train} & {one.name for one in cutouts.evaluation}
    assert [len(some) for some in photographs] == [2, 1]
    folders = composed(cutouts, photographs, Scenes(side=64, objects=(0, 3)), (6, 3), cache)
    for folder, count in zip(folders, (6, 3)):
        data, notes = read_pictures(folder / ANNOTATIONS, folder, cache_dir=cache)
        assert (len(data), notes) == (count, [])
        for i in range(count):
            target = data.with_truth()[i][1]
            masks, boxes = target["masks"].bool(), target["boxes"]
            assert (masks.sum(0) <= 1).all(), "a pixel is of one object"
            for mask, box, thing in zip(masks, boxes, data.things(i)):
                y, x = torch.where(mask)
                assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
                assert thing.area == mask.sum()
    assert {len(data.things(i)) for i in range(count)} <= {0, 1, 2, 3}


def test_scenes_are_the_same_again_and_kept(parts, tmp_path):
    cutouts, photographs = parts
    scenes = Scenes(side=64)
    first, again, other = (
        composed(cutouts, photographs, some, (2, 2), tmp_path / name)
        for name, some in (("a", scenes), ("b", scenes), ("c", dataclasses.replace(scenes, stream=1)))
    )
    contents = [[(f / "000001.png").read_bytes() for f in folders] for folders in (first, again, other)]
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[0][1]
    assert contents[0] != contents[2]
    before = (first[0] / ANNOTATIONS).stat().st_mtime_ns
    composed(cutouts, photographs, scenes, (2, 2), tmp_path / "a")
    assert (first[0] / ANNOTATIONS).stat().st_mtime_ns == before


def test_an_object_is_where_its_mask_says(parts):
    """On black, in a grey of its class: what is drawn is what is said to be drawn, and what covers it is no part."""
    cutouts, _ = parts
    colour = [True, True, True, False]  # and not alpha
    grey = [
        dataclasses.replace(one, pixels=np.where(colour, 80 * (one.label + 1), one.pixels).astype(np.uint8))
        for one in cutouts.train
    ]
    black, several = [np.zeros((90, 120, 3), np.uint8)], Scenes(side=64, objects=(4, 6))
    covered = 0
    for seed in range(8):
        pixels, things = compose(grey, black, several, np.random.default_rng(seed))
        masks = [decode(thing["segmentation"], 64, 64) > 0 for thing in things]
        assert (sum(masks) <= 1).all()
        assert ((pixels[..., 0] > 0) >= (sum(masks) > 0)).all()
        for mask, thing in zip(masks, things):
            off = abs(pixels[mask][:, 0].astype(float) - 80 * thing["category_id"])
            assert (off > 60).mean() < 0.2, "but for soft borders"
            covered += mask.sum() < 0.8 * thing["bbox"][2] * thing["bbox"][3]
    assert covered


def test_what_is_missing_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default"):
        read_cutouts(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="mate-backgrounds"):
        read_photographs(tmp_path / "none")
    with pytest.raises(ValueError, match="too few cut-outs of bar, ring"):
        read_cutouts(write_cutouts(tmp_path / "few", each=2))
    Image.new("RGB", (30, 30)).save(write_cutouts(tmp_path / "cutouts") / "disc" / "opaque.png")
    assert "disc/opaque.png (ValueError: it has no transparent pixels" in read_cutouts(tmp_path / "cutouts").notes[0]
