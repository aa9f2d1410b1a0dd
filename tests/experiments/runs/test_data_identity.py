"""No number is another data set's: what the data are is part of what a run is, on every machine."""

import dataclasses
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from conditioned_attention.experiments import commands
from conditioned_attention.experiments.commands import RecipeTraining, compare_recipe, train_recipe
from conditioned_attention.experiments.data.fingerprint import checksum, classes_in_words, fingerprint_of
from conditioned_attention.experiments.data.linear_functions import LinearFunctions
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.burgers import Burgers
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.recipes.next_byte import NextByteRecipe
from conditioned_attention.experiments.recipes.registry import RECIPES, default_recipe, recipe_class
from conditioned_attention.experiments.recipes.small_images import Digits
from conditioned_attention.experiments.report.write import read_report, read_subjects, write_report, write_reports
from conditioned_attention.experiments.runs.gather import gather
from conditioned_attention.experiments.runs.run import run_folder
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.folder import FINGERPRINT
from tests.experiments.data.lra.files import write_cifar10, write_pairs, write_reviews
from tests.experiments.decoders import write_decoder, write_text
from tests.experiments.labelled_texts import write_bert, write_glue, write_rated
from tests.experiments.objects import scenes, write_small_coco
from tests.experiments.pictures import digit, write_digits, write_emoji

BOTH = ["baseline", "preconditioned"]
TINY = VisionTransformer(patch_size=4, hidden_size=16, layers=1, heads=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def digits(tmp_path):
    write_digits(tmp_path / "digits" / "train", 0, 100)
    write_digits(tmp_path / "digits" / "val", 100, 60)
    return tmp_path / "digits"


def recipe(folder):
    return ImageFolder(
        folder, image_size=8, augment="none", model=TINY, training=Training(epochs=1, batch_size=50, monitor_every=0)
    )


def fingerprint(folder):
    return recipe(folder).task().fingerprint()


def compared(folder, data, seeds=1, variants=BOTH, **options):
    return compare_recipe(
        recipe(data), variants, seeds, folder, **{"cost": False, "progress": False, "threads": 1, **options}
    )


def files_of(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != ".lock"}


def other_picture(data):
    """In place, of the same size in bytes and of the same time."""
    file = data / "train" / "0" / "0.bmp"
    os.utime(file, ns=(1, 1))
    fingerprint(data)
    digit(10).save(file)
    os.utime(file, ns=(2, 2))


CHANGES = {
    "a picture more": (lambda d: digit(0).save(d / "train" / "0" / "new.png"), "train.items: 101 there, 102 now"),
    "a picture less": (lambda d: (d / "val" / "0" / "101.png").unlink(), "evaluation.items: 60 there, 59 now"),
    "another name": (lambda d: (d / "train" / "0" / "0.png").rename(d / "train" / "0" / "x.png"), "train.names: "),
    "another class": (lambda d: (d / "train" / "0" / "0.png").rename(d / "train" / "1" / "0.png"), "train.labels: "),
    "another picture": (other_picture, "train.contents: "),
    "another name of a class": (
        lambda d: [(d / s / "9").rename(d / s / "nine") for s in ("train", "val")],
        "classes: 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ),
}


@pytest.mark.one_in(6)
@pytest.mark.parametrize("name", CHANGES)
def test_data_that_changed_are_refused_wherever_runs_are_kept(digits, tmp_path, monkeypatch, name):
    change, words = CHANGES[name]
    monkeypatch.chdir(tmp_path)
    digit(0).save(digits / "train" / "0" / "0.bmp")
    folder, single = Path("runs/image_folder"), train_recipe(recipe(digits), VARIANTS["baseline"], 0, show=len)
    compared(folder, digits)
    change(digits)
    words = r"data_fingerprint\." + words.replace(": 10 classes", ": '?10 classes")
    before = files_of(Path("runs"))
    for call in (
        lambda: compared(folder, digits),
        lambda: compared(folder, digits, seeds=[7]),
        lambda: compared(folder, digits, variants=["head_l2"]),
        lambda: train_recipe(recipe(digits), VARIANTS["baseline"], 0, show=len),
        lambda: train_recipe(recipe(digits), VARIANTS["baseline"], 7, into=folder, show=len),
        lambda: list(train(recipe(digits).task(), recipe(digits).training, VARIANTS["baseline"], 0, single)),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert files_of(Path("runs")) == before
    (single / "result.json").unlink()
    with pytest.raises(ValueError, match=words):
        train_recipe(recipe(digits), VARIANTS["baseline"], 0, show=len)


def test_the_same_data_elsewhere_are_the_same(digits, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(digits, copy, copy_function=shutil.copyfile)
    assert fingerprint(copy) == fingerprint(digits)
    (copy / "train").rename(copy / "x")
    (copy / "x").rename(copy / "train")
    (copy / "train" / "README.txt").touch()
    assert fingerprint(copy) == fingerprint(digits)
    assert recipe(digits).task(tuning=True).fingerprint() != fingerprint(digits)


@pytest.mark.slow
def test_names_that_are_no_utf_8_are_told(digits, tmp_path, capsys):
    for part in ("train", "val"):
        os.rename(os.fsencode(digits / part / "9"), os.fsencode(digits / part) + b"/\xff")
    (digits / "train" / os.fsdecode(b"\xff") / os.fsdecode(b"\xfe.png")).write_bytes(b"x")
    with pytest.warns(UserWarning, match="left out: 1 of 161"):
        result = compared(tmp_path / "runs", digits, progress=True)
    assert r"10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, \udcff; 100 to train" in capsys.readouterr().out
    write_report(result, tmp_path / "runs")
    assert r"train/\udcff/\udcfe.png" in (tmp_path / "runs" / "report.html").read_text()


@pytest.fixture
def quick(monkeypatch):
    """Runs that train nothing."""
    monkeypatch.setattr(commands, "train", lambda *args: [{"score": 1.0 + args[3]}])


def merged(tmp_path, *folders):
    for folder in folders:
        shutil.copytree(folder / "runs", tmp_path / "all" / "runs", dirs_exist_ok=True)
    return tmp_path / "all"


def without_fingerprint(folder):
    """As an earlier version has left it."""
    for file in [*folder.rglob("settings.json"), *folder.rglob("result.json"), *folder.rglob("begun.json")]:
        data = json.loads(file.read_text())
        data.get("settings", data).pop(FINGERPRINT, None)
        file.write_text(json.dumps(data))


def test_runs_of_other_data_are_not_put_together(digits, tmp_path, quick):
    compared(tmp_path / "one", digits, [0])
    compared(tmp_path / "two", digits, [1])
    (digits / "train" / "0" / "0.png").unlink()
    compared(tmp_path / "three", digits, [2])
    compared(tmp_path / "old", digits, [3])
    without_fingerprint(tmp_path / "old")
    folder = merged(tmp_path, tmp_path / "one", tmp_path / "two", tmp_path / "old")
    assert gather(folder).runs["baseline"].keys() == {0, 1, 3}
    shutil.copy(tmp_path / "old" / "settings.json", folder)
    stranger = merged(tmp_path, tmp_path / "three") / "runs" / "baseline" / "seed-2" / "result.json"
    words = rf"{re.escape(str(stranger))} is a run of other settings \(data_fingerprint\.train\.items: 99 there, 100 in"
    with pytest.raises(ValueError, match=words):
        gather(folder)
    with pytest.raises(ValueError, match=words):
        read_subjects([folder])


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.int64])
def test_tensors_are_known_by_every_byte(dtype):
    values, labels = torch.zeros(4, 2).to(dtype), torch.arange(4)
    first = fingerprint_of(ConcatDataset([TensorDataset(values, labels), [1, 2]]))
    assert first == fingerprint_of(ConcatDataset([TensorDataset(values.T.contiguous().T, labels.clone()), [3, 4]]))
    values[3, 1] = 1
    assert first != fingerprint_of(ConcatDataset([TensorDataset(values, labels), [1, 2]]))


def test_a_folder_of_an_earlier_version_gets_one_and_keeps_it(digits, tmp_path, quick):
    compared(tmp_path / "runs", digits)
    without_fingerprint(tmp_path / "runs")
    assert FINGERPRINT not in gather(tmp_path / "runs").settings
    assert compared(tmp_path / "runs", digits, 2).runs["baseline"].keys() == {0, 1}
    settings = json.loads((tmp_path / "runs" / "settings.json").read_text())
    assert settings[FINGERPRINT] == fingerprint(digits)
    (digits / "train" / "0" / "0.png").unlink()
    for seeds in (1, 3):
        with pytest.raises(ValueError, match=r"train\.items: 100 there, 99 now"):
            compared(tmp_path / "runs", digits, seeds)


def test_a_checkpoint_of_an_earlier_version_goes_on(digits, tmp_path):
    task, settings = recipe(digits).task(), recipe(digits).training
    rows = list(train(task, settings, VARIANTS["baseline"], 0, tmp_path / "run"))
    (file,) = (tmp_path / "run").glob("checkpoint-*/position.json")
    position = json.loads(file.read_text())
    assert position["run"].pop(FINGERPRINT) == task.fingerprint()
    file.write_text(json.dumps(position))
    files = json.loads(file.with_name("files.json").read_text())
    files.pop("position.json")
    file.with_name("files.json").write_text(json.dumps(files))
    assert list(train(task, settings, VARIANTS["baseline"], 0, tmp_path / "run")) == rows


@pytest.mark.filterwarnings("ignore:.*widen it", "ignore:All are compared")
def test_tuned_comparisons(digits, tmp_path):
    compared(tmp_path / "runs", digits, variants=["baseline"], tune=(1e-3,))
    shutil.copytree(tmp_path / "runs" / "tuning", tmp_path / "elsewhere" / "tuning")
    (digits / "train" / "0" / "0.png").unlink()
    for call in (
        lambda: compared(tmp_path / "runs", digits, tune=(1e-3,)),
        lambda: compared(tmp_path / "elsewhere", digits, tune=(1e-3,)),
        lambda: train_recipe(recipe(digits), VARIANTS["baseline"], 1, into=tmp_path / "elsewhere"),
    ):
        with pytest.raises(ValueError, match=r"data_fingerprint\.train\.items: 100 there, 99 now"):
            call()


def test_a_worker_that_reads_other_data_than_its_parent_says_so(digits, tmp_path):
    training = RecipeTraining(recipe(digits), tmp_path)
    assert pickle.loads(pickle.dumps(training)).task, "what the data are is not known yet"
    assert training.task
    sent = pickle.dumps(training)
    assert pickle.loads(sent).task
    (digits / "train" / "0" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"data have changed since this comparison began \(train\.items: 100 there"):
        pickle.loads(sent).task  # noqa: B018


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_its_data_are(name, digits, tmp_path):
    """And has training inputs in the form of those that are watched, for variants that look at some."""
    chosen, kind = default_recipe(name), recipe_class(name)
    if issubclass(kind, ImageFolder):
        chosen = kind(digits, image_size=32, **({} if name == "image_folder" else {"classes": 10}))
    if name in ("fashion_mnist", "lra_fashion") and not chosen.data_dir.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    if name == "lra_image":
        write_cifar10(tmp_path / "files")
        chosen = recipe_class(name)(tmp_path / "files")
    if name == "pathfinder32":
        chosen = recipe_class(name)(samples=20, eval_samples=5, test_samples=5, cache_dir=tmp_path)
    if name in ("lra_text", "lra_retrieval"):
        (write_reviews if name == "lra_text" else write_pairs)(tmp_path / "files")
        chosen = recipe_class(name)(tmp_path / "files")
    if name == "composed_scenes":
        chosen = scenes(tmp_path)
    if name.startswith("detection_"):
        chosen = kind(write_small_coco(tmp_path / "coco"), pretrained=None, cache_dir=tmp_path / "cache")
    if name == "emoji":
        chosen = kind(write_emoji(tmp_path))
    if name == "listops":
        chosen = kind(samples=20, eval_samples=5, test_samples=5, cache_dir=tmp_path)
    if name == "burgers":
        chosen = Burgers(samples=20, eval_samples=5, cache_dir=tmp_path)
    if name == "fine_tune":
        path, start = write_text(tmp_path / "text.txt"), write_decoder(tmp_path / "start")
        chosen = kind(text="files", path=path, pretrained=start, context=16, cache_dir=tmp_path)
    if name in ("gpt", "llama"):
        chosen = kind(text="files", path=write_text(tmp_path / "text.txt"), vocabulary=300, cache_dir=tmp_path)
        chosen = dataclasses.replace(chosen, model=dataclasses.replace(chosen.model, context=16))
    if name in ("crammed_bert", "small_bert"):
        chosen = kind(text="topics", cache_dir=tmp_path)
    if name == "labelled_text":
        chosen = kind(write_bert(tmp_path / "bert"), length=32, path=write_rated(tmp_path / "rated"))
    if name == "glue":
        write_glue(tmp_path / "files", ["cola"])
        chosen = kind(write_bert(tmp_path / "bert"), length=32, data_dir=tmp_path / "files")
    task = chosen.task()
    found = task.fingerprint()
    assert found == json.loads(json.dumps(found))
    assert all(found[part] for part in ("train", "evaluation"))
    assert found["train"] != found["evaluation"]
    assert chosen.task().fingerprint() == found
    assert f"{len(task.train_data()):,} to train, {len(task.eval_data()):,} to evaluate" in task.data_in_words()[0]
    probe, calibration = task.probe(), task.calibration()
    assert type(calibration) is type(probe)
    assert pickle.dumps(calibration) != pickle.dumps(probe), "of training"


def test_texts_by_their_bytes(tmp_path):
    file = tmp_path / "a.txt"
    chosen = NextByteRecipe(text="files", path=file, model=GPT(context=8))
    file.write_bytes(b"ab" * 4000)
    first = chosen.task().fingerprint()
    file.write_bytes(b"ac" + b"ab" * 3999)
    assert chosen.task().fingerprint()["evaluation"] == first["evaluation"]
    assert chosen.task().fingerprint()["train"] != first["train"]
    file.write_bytes(b"ab" * 3600 + b"c" * 300 + b"ab" * 250)
    assert chosen.task().fingerprint()["evaluation"] != first["evaluation"]


@pytest.mark.slow
def test_functions_and_sequences_by_their_settings(tmp_path):
    found = [
        Burgers(points=points, samples=samples, eval_samples=3, cache_dir=tmp_path).task(tuning=tuning).fingerprint()
        for points, samples, tuning in ((64, 20, False), (32, 20, False), (64, 21, False), (64, 20, True))
    ]
    assert all(found.count(one) == 1 for one in found)
    data = LinearFunctions(samples=9, dimension=2, points=4)
    assert fingerprint_of(Subset(data, [1, 2])) != fingerprint_of(Subset(data, [1, 3]))
    assert fingerprint_of(Subset(data, [1, 2])).items() > data.fingerprint().items()
    assert fingerprint_of(iter(())) == {}


def test_pixels_as_they_were_stored():
    """Scaled ones are rounded otherwise on other machines."""
    train, held = Digits().task().train_data(), Digits().task(tuning=True).eval_data()
    train.images += 1e-7
    assert train.fingerprint() == Digits().task().train_data().fingerprint()
    assert held.fingerprint()["pixels"] == train.fingerprint()["pixels"]


def test_names_are_the_same_on_every_file_system():
    assert checksum(["caf\N{LATIN SMALL LETTER E WITH ACUTE}"]) == checksum(["cafe\N{COMBINING ACUTE ACCENT}"])
    assert checksum([os.fsdecode(b"\xff.png")]), "no UTF-8"
    assert checksum(["ab", "c"]) != checksum(["a", "bc"])
    assert classes_in_words([str(n) for n in range(1000)]) == "1000 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, …, 999"
    assert classes_in_words(["a"]) == "1 class: a"


def test_what_the_data_are_is_said_and_recorded(digits, tmp_path, capsys):
    (digits / "train" / "0" / "broken.png").write_bytes(b"x")
    with pytest.warns(UserWarning, match="left out: 1 of 161"):
        result = compared(tmp_path / "runs", digits, progress=True)
    lines = [
        "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; 100 to train, 60 to evaluate",
        "trained on train, evaluated on val",
        "left out, unreadable: train/0/broken.png (UnidentifiedImageError: it is no image that Pillow knows)",
    ]
    assert capsys.readouterr().out.splitlines()[:3] == lines
    assert result.data == lines
    write_report(result, tmp_path / "runs")
    page = (tmp_path / "runs" / "report.html").read_text()
    assert all(line in page for line in lines)
    assert gather(tmp_path / "runs").data == lines
    assert read_report(tmp_path / "runs").data == lines
    told = json.loads((run_folder(tmp_path / "runs", "baseline", 0) / "data.json").read_text())
    assert told["in_words"] == lines
    with pytest.warns(UserWarning, match="left out: 1 of 161"):
        single = train_recipe(recipe(digits), VARIANTS["baseline"], 0, folder=tmp_path / "single", show=len)
    assert lines[2] in write_reports(read_subjects([single]), [single]).read_text()
