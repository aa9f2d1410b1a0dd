"""The recipes of the papers' models, held against timm's own factories called with the published arguments."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from timm import create_model
from timm.data import Mixup
from timm.data.transforms_factory import create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from conditioned_attention.experiments.models.timm_model import TimmModel
from conditioned_attention.experiments.recipes import imagenet
from conditioned_attention.experiments.recipes.registry import RECIPES, recipe_class
from conditioned_attention.experiments.tasks.classification import ImageClassification
from conditioned_attention.experiments.training.optimizer import build_optimizer
from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.variants.catalogue import find_variant
from tests.experiments.pictures import digit

NAMES = [name for name, (file, _) in RECIPES.items() if file == "imagenet"]
STEPS = 1_281_167 // 1024  # an epoch of ImageNet-1k

# As published: what timm's factories are called with.  Epochs; of the schedule in epochs; options of the model
PUBLISHED = {
    "vit_b": ("vit_base_patch16_224", 300, {"warmup_t": 5}, {"drop_path_rate": 0.1}),
    "deit_b": ("deit_base_patch16_224", 300, {"warmup_t": 5}, {"drop_path_rate": 0.1}),
    "xcit_s12": ("xcit_small_12_p16_224", 400, {"warmup_t": 5}, {"drop_path_rate": 0.05}),
    "xcit_m24": ("xcit_medium_24_p16_224", 400, {"warmup_t": 5}, {"drop_path_rate": 0.15}),
    "swin_b": ("swin_base_patch4_window7_224", 300, {"warmup_t": 20, "warmup_prefix": True}, {"drop_path_rate": 0.5}),
    "davit_b": ("davit_base", 310, {"warmup_t": 5}, {"drop_path_rate": 0.4}),
    "volo_d1": ("volo_d1_224", 310, {"warmup_t": 20}, {"drop_path_rate": 0.1}),
}
PARAMETERS = {
    "vit_b": 86_567_656, "vit_b_original": 86_567_656, "deit_b": 86_567_656, "xcit_s12": 26_253_304,
    "xcit_m24": 84_395_752, "swin_b": 87_768_224, "davit_b": 87_954_408, "volo_d1": 26_632_040,
}  # fmt: skip


def recipe(name, root="unused", **changes):
    return recipe_class(name)(root, **changes)


def model_of(of):
    with torch.device("meta"):
        return of._model().build(of.image_size, 3, 1000)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", NAMES)
def test_every_variant_of_the_papers_goes_on_it(name):
    model = model_of(recipe(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    report = find_variant("preconditioned").apply_structure(model)
    assert len(report.converted) >= 12
    if name == "volo_d1":
        with pytest.raises(ValueError, match="OutlookAttention makes its attention weights from queries alone"):
            find_variant("spectral").apply_structure(model_of(recipe(name)))
    else:
        assert find_variant("spectral").apply_structure(model_of(recipe(name))).converted == report.converted


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", PUBLISHED)
def test_drop_path_is_that_of_timm(name):
    timm_name, _, _, options = PUBLISHED[name]
    with torch.device("meta"):
        expected = create_model(timm_name, **options)
    found = model_of(recipe(name))
    assert rates_of(found) == pytest.approx(rates_of(expected))
    assert max(rates_of(found)) == pytest.approx(options["drop_path_rate"])
    if name.startswith("xcit"):
        assert min(rates_of(found)) == options["drop_path_rate"], "alike in all layers"


def rates_of(model):
    return [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", PUBLISHED)
def test_groups_of_decay_are_those_of_timm(name):
    of = recipe(name)
    model = model_of(of)
    ours = build_optimizer(model, of.training)
    theirs = create_optimizer_v2(model, "adamw", lr=of.training.lr, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999))
    assert type(ours) is type(theirs) is torch.optim.AdamW
    assert decays(ours, model) == decays(theirs, model)
    assert {key: ours.defaults[key] for key in ("eps", "betas")} == {"eps": 1e-8, "betas": (0.9, 0.999)}


def decays(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_learning_rate_is_that_of_timm(name):
    """As the published loops step it: DeiT, XCiT and Swin with what has ended, DaViT one ahead."""
    training = recipe(name).training
    _, epochs, options, _ = PUBLISHED[name]
    assert (training.epochs, training.batch_size) == (epochs, 1024)
    scale = 1 if training.schedule_per == "epoch" else STEPS
    ticks, warmup = epochs * scale, options["warmup_t"] * scale
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.6e-3 if name == "volo_d1" else 1e-3)
    prefix = options.get("warmup_prefix", False)
    cosine = ticks - warmup if prefix else ticks - 10 * scale if epochs == 310 else ticks
    theirs = CosineLRScheduler(
        optimizer, cosine, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6,
        warmup_prefix=prefix,
    )  # fmt: skip
    own = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=training.lr)
    [share] = build_schedule(own, training, ticks).lr_lambdas
    late = {"volo_d1": 0, "davit_b": -1}.get(name, 1)
    for tick in {*range(0, ticks, max(1, ticks // 400)), 1, warmup, warmup + 1, cosine - 1, cosine, ticks - 1}:
        [expected] = theirs._get_values(max(0, tick - late))
        assert training.lr * share(tick) == pytest.approx(expected), tick


def test_the_first_papers_recipe():
    training = recipe("vit_b_original").training
    assert (training.batch_size, training.lr, training.weight_decay, training.clip) == (4096, 3e-3, 0.3, 1.0)
    assert (training.warmup_steps, training.final_lr) == (10_000, 0)
    model = model_of(recipe("vit_b_original"))
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.0, 0.1}
    assert model.blocks[0].attn.attn_drop.p == 0, "not on the weights of attention"


def test_clipping_repeats_crops_and_averages():
    of = {name: recipe(name) for name in NAMES}
    assert {name: r.training.clip for name, r in of.items()} == dict.fromkeys(NAMES) | {
        "swin_b": 5.0, "davit_b": 1.0, "vit_b_original": 1.0,
    }  # fmt: skip
    repeated = {name for name, r in of.items() if r.training.order == "repeated"}
    assert repeated == {"vit_b", "deit_b", "xcit_s12", "xcit_m24"}
    crops = {"xcit_s12": 1.0, "xcit_m24": 1.0, "davit_b": 0.9, "volo_d1": 0.96}
    assert {name: r.crop for name, r in of.items()} == dict.fromkeys(NAMES, 0.875) | crops
    assert {r.image_size for r in of.values()} == {224}
    averages = {name: r.training.ema_beside for name, r in of.items()}
    assert averages == dict.fromkeys(NAMES) | dict.fromkeys(repeated, 0.99996)
    assert {r.training.ema for r in of.values()} == {None}, "what counts are the weights"


# Pictures


@pytest.fixture
def folder(tmp_path):
    """Four classes of eight pictures to train on, and four of each in one folder, as ImageNet's come."""
    for label in range(4):
        for i in range(8):
            path = tmp_path / "train" / f"n{label:04}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            digit(10 * i + label).resize((40, 32)).save(path)
    (tmp_path / "val").mkdir()
    for i in range(16):
        digit(100 + i).resize((40, 32)).save(tmp_path / "val" / f"ILSVRC2012_val_{i + 1:08}.JPEG")
    return tmp_path


LABELS = [3, 0, 2, 1] * 4
LISTS = {
    "names and classes": [f"ILSVRC2012_val_{i + 1:08}.JPEG n{label:04}" for i, label in enumerate(LABELS)][::-1],
    "names and indices": [f"ILSVRC2012_val_{i + 1:08}.JPEG {label}" for i, label in enumerate(LABELS)],
    "classes": [f"n{label:04}" for label in LABELS],
    "the kit's numbers": [str(10 - label) for label in LABELS],
}


def small(root, **changes):
    training = dataclasses.replace(recipe("deit_b").training, batch_size=8, epochs=1)
    options = {"classes": 4, "image_size": 32, "training": training, "cache_dir": root / "cache", **changes}
    return recipe("deit_b", root, **options)


@pytest.mark.parametrize("kind", LISTS)
def test_validation_images_in_one_folder(folder, kind):
    (folder / "list.txt").write_text("\n".join(LISTS[kind]) + "\n")
    synsets = np.array(
        [(10 - label, f"n{label:04}") for label in range(4)], dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")]
    )
    savemat(folder / "meta.mat", {"synsets": synsets})
    before = sorted(folder.rglob("*"))
    source = small(folder, val_labels=folder / "list.txt")._source()
    assert [source.labels[row] for row in source.evaluation] == LABELS
    assert [source.names[row][-12:] for row in source.evaluation][:2] == ["00000001.JPEG"[-12:], "00000002.JPEG"[-12:]]
    assert (len(source.train), source.read(source.evaluation[0]).size) == (32, (40, 32))
    task = small(folder, val_labels=folder / "list.txt").task()
    assert len(task.eval_data()) == 16
    assert sorted(path for path in folder.rglob("*") if "cache" not in str(path)) == before, "nothing is moved"


def test_classes_that_are_named_by_numbers(folder):
    for label, name in enumerate(("0", "1", "2", "10")):
        (folder / "train" / f"n{label:04}").rename(folder / "train" / name)
    names = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(16)]
    listed = {"classes": ["0", "1", "10", "2"] * 4, "indices": ["0", "1", "2", "3"] * 4}
    for values in listed.values():  # in the order of their names 10 comes before 2
        (folder / "list.txt").write_text("\n".join(map(" ".join, zip(names, values))))
        source = small(folder, val_labels=folder / "list.txt")._source()
        assert [source.classes[source.labels[row]] for row in source.evaluation] == ["0", "1", "10", "2"] * 4


def test_one_file_name_in_two_places_is_refused(folder):
    names = [f"ILSVRC2012_val_{i + 1:08}.JPEG n0001" for i in range(16)]
    (folder / "list.txt").write_text("\n".join([*names[:15], names[0]]))
    with pytest.raises(ValueError, match=r"list.txt names ILSVRC2012_val_00000001.JPEG more than once"):
        small(folder, val_labels=folder / "list.txt")._source()
    (folder / "list.txt").write_text("\n".join(names))
    (folder / "val" / "more").mkdir()
    (folder / "val" / "ILSVRC2012_val_00000016.JPEG").rename(folder / "val/more/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(ValueError, match=r"among the images there is ILSVRC2012_val_00000001.JPEG more than once"):
        small(folder, val_labels=folder / "list.txt")._source()


def test_a_class_may_have_one_image_where_none_is_to_be_held_out(folder):
    (folder / "list.txt").write_text("\n".join(LISTS["classes"]))
    for path in (folder / "train").glob("*/[1-7].png"):
        path.unlink()
    assert len(small(folder, val_labels=folder / "list.txt")._source().train) == 4


@pytest.mark.parametrize(
    ("lines", "error", "match"),
    [
        (LISTS["classes"][:-1], ValueError, "has 15 lines, and there are 16 images"),
        (["n0009", *LISTS["classes"][1:]], ValueError, "'n0009' is none of the 4 classes"),
        (["other.JPEG n0001", *LISTS["names and classes"][1:]], ValueError, r"does not name .*00000016\.JPEG"),
        (LISTS["the kit's numbers"], FileNotFoundError, "the development kit's own numbers, in another order"),
        (["a b c"] * 16, ValueError, "a line is 'NAME CLASS'"),
    ],
)
def test_lists_that_do_not_fit(folder, lines, error, match):
    (folder / "list.txt").write_text("\n".join(lines))
    with pytest.raises(error, match=match):
        small(folder, val_labels=folder / "list.txt").task()


def test_another_number_of_classes_is_refused(folder):
    (folder / "list.txt").write_text("\n".join(LISTS["classes"]))
    with pytest.raises(ValueError, match="has 4 classes, and classes=1000 were expected"):
        small(folder, val_labels=folder / "list.txt", classes=1000).task()
    with pytest.raises(ValueError, match="even number of images at a time, got batch_size=6 with accumulation=2"):
        small(folder, training=dataclasses.replace(small(folder).training, batch_size=6, accumulation=2))


def test_pictures_are_transformed_as_timm_does(folder):
    (folder / "list.txt").write_text("\n".join(LISTS["classes"]))
    task = small(folder, val_labels=folder / "list.txt").task()
    options = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "re_count": 1}
    training = create_transform(32, is_training=True, interpolation="bicubic", color_jitter=0.3, **options)
    evaluation = create_transform(32, interpolation="bicubic", crop_pct=0.875)
    data = task.train_data()
    for index in range(4):
        picture = data.source.read(data.rows[index])
        assert torch.equal(drawn(lambda: data[index][0]), drawn(lambda: training(picture)))  # noqa: B023
    held = task.eval_data()
    assert torch.equal(held[0][0], evaluation(held.source.read(held.rows[0])))
    whole = recipe("xcit_s12", folder, classes=4, image_size=32, val_labels=folder / "list.txt", cache_dir=folder / "c")
    full = create_transform(32, interpolation="bicubic", crop_pct=1.0)
    held = whole.task().eval_data()
    assert torch.equal(held[0][0], full(held.source.read(held.rows[0])))


def drawn(make, seed=3):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what timm draws from
    torch.manual_seed(seed)
    return make()


def test_batches_are_mixed_as_timm_does():
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(4, (8,))
    before = images.clone()
    task = ImageClassification(([], [(images[0], 0)]), TimmModel("vit_tiny_patch16_224"), 4, mixing=imagenet._MIXED)
    mix = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    for seed in range(6):  # both kinds among them
        mixed, soft = drawn(lambda: task.collate_train((images, labels)), seed)
        expected, target = drawn(lambda: mix(before.clone(), labels), seed)
        assert torch.equal(mixed, expected)
        torch.testing.assert_close(soft, target)
        torch.testing.assert_close(task.loss(model, (mixed, soft)), SoftTargetCrossEntropy()(model(mixed), target))
    assert torch.equal(images, before), "the batch it was given is as it was"
    with pytest.raises(ValueError, match="even number of images a batch, got 7"):
        task.collate_train((images[:7], labels[:7]))


def test_smoothing_without_mixing():
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(4, (8,))
    task = ImageClassification(([], [(images[0], 0)]), TimmModel("vit_tiny_patch16_224"), 4, mixing=imagenet._SMOOTHED)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    batch = task.collate_train((images, labels))
    assert torch.equal(batch[1], labels)
    log = model(images).log_softmax(-1)
    expected = (0.9 * -log[range(8), labels] + 0.1 * -log.mean(-1)).mean()
    torch.testing.assert_close(task.loss(model, batch), expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("name", "option", "counts"), [("xcit_s12", "class_attention", (14, 12)), ("volo_d1", "outlooks", (20, 16))]
)
def test_what_the_paper_leaves_open_may_be_left_alone(folder, name, option, counts):
    (folder / "list.txt").write_text("\n".join(LISTS["classes"]))
    options = {"classes": 4, "image_size": 32, "val_labels": folder / "list.txt", "cache_dir": folder / "c"}
    for kept, expected in zip((True, False), counts):
        task = recipe(name, folder, **options, **{option: kept}).task()
        variant = find_variant("preconditioned").leaving(task.left_alone)
        with torch.device("meta"):
            assert len(variant.apply_structure(task.build_model()).converted) == expected
    assert Image.open(folder / "val" / "ILSVRC2012_val_00000001.JPEG").size == (40, 32)
