"""Detection from end to end: COCO's evaluator against pycocotools, recipes, a run that is killed while it evaluates."""

import base64
import contextlib
import dataclasses
import io
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as oracle_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from conditioned_attention.experiments.commands import train_recipe
from conditioned_attention.experiments.recipes.detection import (
    DetectionXCiTM24,
    DetectionXCiTS12,
    published_training,
)
from conditioned_attention.experiments.report.write import read_subjects, write_reports
from conditioned_attention.experiments.tasks.average_precision import AveragePrecision
from conditioned_attention.experiments.tasks.drawn import side_by_side
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.optimizer import build_optimizer
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.files import read_json
from conditioned_attention.storage.ownership import checkpoints_in
from tests.experiments.objects import TINY, coco, scenes, square, write_small_coco
from tests.experiments.planning.test_reproduce import parsed
from tests.experiments.xcit_classifier import TinyXCiT
from tests.processes import Forked

QUICK = Launch(checkpoint_seconds=0.0, log_every=1)


def truth_and_outputs():
    """Pictures with objects of all sizes, a crowd, and none; and what a detector might say, with equal scores."""
    chance = np.random.RandomState(0)
    side, pictures = 200, range(1, 9)
    things = []
    for picture in pictures:
        for _ in range(0 if picture in (3, 4) else 4):
            category, size = chance.choice([1, 13, 90]), chance.choice([8, 40, 110])
            left, top = (int(n) for n in chance.randint(0, side - size, 2))
            things.append(square(len(things) + 1, picture, int(category), left, top, int(size)))
    runs = [0, 100 * side, (side + 8) * side - 100 * side]
    crowd = {"size": [side, side + 8], "counts": runs}
    things.append(square(len(things) + 1, 1, 1, 0, 0, 100, segmentation=crowd, iscrowd=1, area=100 * side))
    outputs = {}
    for picture in pictures:
        if picture == 4:
            outputs[picture] = []
            continue
        near = [thing for thing in things if thing["image_id"] == picture and not thing["iscrowd"]]
        boxes = [[b + s for b, s in zip(thing["bbox"], chance.randint(-3, 4, 4))] for thing in near for _ in range(2)]
        boxes += [[*chance.randint(0, 100, 2), *chance.randint(5, 90, 2)] for _ in range(3)]
        outputs[picture] = [
            (max(0, x), max(0, y), max(2, w), max(2, h), int(chance.randint(1, 4)), round(chance.rand(), 1))
            for x, y, w, h in boxes
        ]
    return coco(pictures, things, side), outputs


def as_tensors(found, size):
    masks = torch.zeros(len(found), 1, *size)
    for mask, (x, y, w, h, _, _) in zip(masks, found):
        mask[0, y : y + h, x : x + w - 1] = 0.9  # a little narrower than the box
        mask[0, y : y + h, x + w - 1 : x + w] = 0.4
    boxes = [[x, y, x + w, y + h] for x, y, w, h, _, _ in found]
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([one[4] for one in found], dtype=torch.int64),
        "scores": torch.tensor([one[5] for one in found]),
        "masks": masks,
    }


def of_pycocotools(truth, outputs, pictures, kind):
    ids, size = [1, 13, 90], (200, 208)
    results = []
    for picture in pictures:
        for (x, y, w, h, label, score), mask in zip(outputs[picture], as_tensors(outputs[picture], size)["masks"]):
            one = {"image_id": picture, "category_id": ids[label - 1], "score": float(np.float32(score))}
            rle = oracle_mask.encode(np.asfortranarray((mask[0] >= 0.5).numpy().astype(np.uint8)))
            results.append({**one, "bbox": [x, y, w, h]} if kind == "bbox" else {**one, "segmentation": rle})
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truth
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(results), kind)
        evaluation.params.imgIds = list(pictures)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[:6]


@pytest.mark.parametrize("pictures", [range(1, 9), range(2, 5)])
def test_average_precision_is_that_of_pycocotools(pictures):
    truth, outputs = truth_and_outputs()
    evaluator = AveragePrecision(truth)
    for picture in pictures:
        targets = [{"image_id": torch.tensor(picture)}]
        evaluator.update(
            lambda images: [as_tensors(outputs[int(images)], (200, 208))], (torch.tensor(picture), targets), list
        )
    found = evaluator.compute()
    for kind, what in (("bbox", "box"), ("segm", "mask")):
        ours = [found[f"{what}_{name}"] for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")]
        theirs = of_pycocotools(truth, outputs, pictures, kind)
        assert ours == pytest.approx(theirs.tolist(), abs=1e-9)
        assert 0 < ours[0] < ours[1] < 100
    assert found["score"] == found["box_ap"]
    assert found["mask_ap"] != found["box_ap"]


def test_nothing_found_is_nought_and_without_objects_there_is_no_number():
    truth = coco([1, 2], [square(1, 1, 1, 5, 5, 50)])
    evaluator = AveragePrecision(truth)
    nothing = as_tensors([], (64, 72))
    evaluator.update(lambda images: [nothing, nothing], (None, [{"image_id": torch.tensor(i)} for i in (1, 2)]), list)
    found = evaluator.compute()
    assert (found["score"], found["mask_ap_medium"]) == (0, 0)
    assert found.keys().isdisjoint({"box_ap_small", "mask_ap_large"})
    empty = AveragePrecision(coco([1, 2], []))
    empty.update(lambda images: [nothing], (None, [{"image_id": torch.tensor(1)}]), list)
    assert np.isnan(empty.compute()["score"])


def test_what_decays_is_what_decays_in_the_published_optimizer():
    """mmcv's paramwise_cfg {'norm': decay_mult 0}: all but parameters with 'norm' in their names."""
    model = TINY.build(2)
    task = type("Any", (), {"no_weight_decay": lambda self: ("*norm*",)})()
    groups = build_optimizer(model, published_training(), task.no_weight_decay()).param_groups
    decaying = {id(p) for p in groups[0]["params"]}
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    names = {name: id(p) in decaying for name, p in model.named_parameters()}
    assert {name for name, decays in names.items() if not decays} == {name for name in names if "norm" in name}
    for name in ("attn.temperature", "gamma1", "local_mp.bn.weight", "attn.qkv.bias"):
        assert names[f"backbone.xcit.blocks.0.{name}"], name


def test_the_published_schedules():
    long = DetectionXCiTS12().training
    assert (long.epochs, long.milestones, long.warmup_steps, long.lr) == (36, (27 / 36, 33 / 36), 500, 1e-4)
    assert (long.batch_size, long.clip, long.optimizer) == (16, None, "adamw")
    words = ["train", "detection_xcit_s12", "--epochs", "12", "--milestones", "0.6667", "0.9167"]
    short, epoch = parsed(words).asked.recipe.training, 117_266 // 16
    assert [round(share * 12 * epoch) // epoch for share in short.milestones] == [8, 11]
    assert published_training(12).milestones == (8 / 12, 11 / 12)
    with pytest.raises(ValueError, match="epochs must be 36 or 12, got 24"):
        published_training(24)
    assert [kind().model.drop_path for kind in (DetectionXCiTS12, DetectionXCiTM24)] == [0.05, 0.15]


def small(kind, folder, **changes):
    settings = {"model": TINY, "pretrained": None, "cache_dir": folder / "cache"}
    training = dataclasses.replace(published_training(), epochs=1, batch_size=2, precision="no", monitor_every=0)
    training = dataclasses.replace(training, warmup_steps=1)
    augment = dataclasses.replace(kind().augment, sides=(48, 64), longest=90, cut=(30, 50), sides_before=(56,))
    return kind(folder / "coco", **{**settings, "training": training, "augment": augment, **changes})


def test_coco_from_its_folders(tmp_path):
    write_small_coco(tmp_path / "coco")
    recipe = small(DetectionXCiTS12, tmp_path)
    task = recipe.task()
    assert task.data_in_words()[0] == "3 classes: person, stop sign, toothbrush; 5 to train, 6 to evaluate"
    assert "1 training pictures without an object are left out" in task.notes
    assert len(dataclasses.replace(recipe, empty_pictures=True).task().train_data()) == 6
    rows = list(train(task, recipe.training, VARIANTS["spectral"], 0, tmp_path / "run", QUICK))
    assert rows[-1].keys() >= {"score", "box_ap50", "mask_ap", "train_loss/mask", "train_loss/objectness"}
    held = recipe.task(tuning=False).eval_data()
    assert held.picture(0).id == 100
    fingerprint = task.fingerprint()
    (tmp_path / "coco" / "val2017" / "100.png").write_bytes((tmp_path / "coco" / "val2017" / "101.png").read_bytes())
    assert recipe.task().fingerprint()["evaluation"] != fingerprint["evaluation"]
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json"):
        small(DetectionXCiTS12, tmp_path / "elsewhere").task()


def test_a_tenth_is_held_out_for_tuning(tmp_path):
    recipe = scenes(tmp_path, samples=20)
    rest, held = recipe.task(tuning=True).train_data(), recipe.task(tuning=True).eval_data()
    assert (len(rest), len(held)) == (18, 2)
    assert not {rest.picture(i).id for i in range(18)} & {held.picture(i).id for i in range(2)}
    assert held.folder == recipe.task().train_data().folder != recipe.task().eval_data().folder


def test_it_starts_from_the_classifier_of_its_variant(tmp_path):
    """A run of the same XCiT as a classifier; what fits is under the name that it has in the detector."""
    task = scenes(tmp_path).task()
    classifier = tmp_path / "classifier"
    list(train(TinyXCiT(), Training(epochs=1, batch_size=8, monitor_every=0), VARIANTS["baseline"], 0, classifier))
    training = Training(epochs=1, batch_size=4, monitor_every=0, lr=1e-12, start_from=str(classifier))
    list(train(task, training, VARIANTS["baseline"], 0, tmp_path / "run"))
    note = read_json(tmp_path / "run" / "start.json")
    assert "backbone.xcit.blocks.0.attn.qkv.weight" in note["taken"]
    assert all(name.startswith("backbone.xcit.") for name in note["taken"])
    assert {name.split(".")[0] for name in note["fresh"]} == {"backbone", "rpn", "roi_heads"}
    assert not [name for name in note["fresh"] if name.startswith("backbone.xcit.")]


def test_it_starts_from_a_file_and_says_so(tmp_path):
    file = tmp_path / "xcit.pth"
    torch.save({"model": TinyXCiT().build_model().state_dict()}, file)
    recipe = scenes(tmp_path, pretrained=str(file))
    task = recipe.task()
    left, right = (task.build_model().backbone.xcit.blocks[1].mlp.fc1.weight for _ in range(2))
    assert torch.equal(left, right)
    assert [line for line in task.data_in_words() if "classifier's weights" in line] == [task.notes[-1]]
    assert task.notes[-1].startswith(
        f"classifier's weights: {len(dict(task.build_model().backbone.xcit.state_dict()))} "
    )
    before = task.fingerprint()
    torch.save({"model": TinyXCiT().build_model().state_dict()}, file)
    assert recipe.task().fingerprint()["start"] != before["start"]


def run(folder, data):
    recipe = scenes(data)
    return list(train(recipe.task(), recipe.training, VARIANTS["preconditioned"], 0, folder, QUICK))


def struck(folder, data, number, strikes):
    """The same, in a process that gets this signal in the middle of its first evaluation."""
    update, calls = AveragePrecision.update, []

    def strikes_then(self, *args):
        update(self, *args)
        calls.append(1)
        if len(calls) == strikes:
            os.kill(os.getpid(), number)

    AveragePrecision.update = strikes_then
    run(folder, data)


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp("unbroken"), []
    recipe = scenes(folder)
    train_recipe(recipe, VARIANTS["preconditioned"], 0, folder=folder / "run", launch=QUICK, show=rows.append)
    return folder, rows


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_killed_while_it_evaluates_it_goes_on_to_the_bit(unbroken, tmp_path, number):
    data, rows = unbroken
    process = Forked(tmp_path / "said", struck, tmp_path / "run", data, number, 1)
    codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}
    assert process.wait(timeout=120) == codes[number], (tmp_path / "said").read_text()
    assert checkpoints_in(tmp_path / "run")[-1].name == "checkpoint-00000002"
    assert without_time(run(tmp_path / "run", data)) == without_time(rows)
    ours, theirs = (folder / "run" / "truth_and_detections.png" for folder in (tmp_path, data))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_surest_is_drawn_over_the_others():
    boxes, masks = torch.tensor([[10.0, 10, 60, 60]] * 3), torch.zeros(3, 1, 64, 64)
    found = {"boxes": boxes, "masks": masks, "labels": torch.tensor([3, 1, 6]), "scores": torch.tensor([0.9, 0.6, 0.4])}
    truth = {"boxes": boxes[:0], "masks": masks[:0, 0], "labels": found["labels"][:0]}
    png = side_by_side([torch.zeros(3, 64, 64)], [truth], [found], list("abcdef"))
    left, right = np.split(np.asarray(Image.open(io.BytesIO(png)))[4:260, 4:-4], [258], 1)
    green = (right == (0, 158, 115)).all(2)
    assert not left[:, :256].any()
    assert green[240, 60:230].all(), "the frame of what has a score of 0.9"
    assert not (right == (230, 159, 0)).all(2).any(), "that of 0.6 is below it; that of 0.4 is not drawn"


@pytest.mark.slow
def test_pictures_of_what_was_found_beside_the_truth(unbroken):
    picture = Image.open(unbroken[0] / "run" / "truth_and_detections.png")
    assert picture.size == (4 * (256 + 4) + 4, 3 * (256 + 4) + 4), "two pairs in each row, five in all"
    left, right = (np.asarray(picture)[4:260, start : start + 256] for start in (4, 264))
    assert (left != right).any(), "the truth has objects"
    assert (left == right).mean() > 0.3, "of the same picture"
    write_reports(read_subjects([unbroken[0] / "run"]), [unbroken[0] / "run"])
    page = (unbroken[0] / "run" / "report.html").read_text()
    data = base64.b64encode((unbroken[0] / "run" / "truth_and_detections.png").read_bytes()).decode()
    assert f'src="data:image/png;base64,{data}"' in page
