"""A run's model comes back without its recipe and its data: from the run's folder, and from what was exported of it."""

import dataclasses
import json
import pkgutil
import shutil
from importlib import import_module

import pytest
import timm
import torch

from conditioned_attention import apply_conditioning, conditioning
from conditioned_attention.experiments import models
from conditioned_attention.experiments.commands import recorded, train_recipe
from conditioned_attention.experiments.exported import export_run
from conditioned_attention.experiments.models.built import build_again, built_of
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.small_family import SmallFamily
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.runs.run import read_run
from conditioned_attention.experiments.trained import load_run
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.start import weights_in
from conditioned_attention.experiments.variants.catalogue import VARIANTS, find_variant
from conditioned_attention.storage.ownership import checkpoints_in
from tests.experiments.pictures import write_digits
from tests.experiments.tiny import OFTEN, ShakenDigits
from tests.processes import Forked
from tests.test_cli import call

# on the heads, on the projections, on both; and two whose numbers come from training or from data alone
NAMES = ["preconditioned", "spectral=0.3", "preconditioned+spectral", "qk_norm_temperature", "constant_gain"]
OF_PLAIN_WEIGHTS = [name for name in NAMES if name != "qk_norm_temperature"]
TRAINING = Training(epochs=1, batch_size=30, max_steps=3, ema_beside=0.5, monitor_every=0)


def test_whatever_builds_a_model_is_remembered():
    files = (import_module(f"{models.__name__}.{found.name}") for found in pkgutil.iter_modules(models.__path__))
    builders = {cls for file in files for cls in vars(file).values() if hasattr(cls, "__dataclass_fields__")}
    builders = {cls for cls in builders if "build" in vars(cls)}
    assert SmallFamily in builders
    assert [cls for cls in builders if not hasattr(cls.build, "__wrapped__")] == []
    model = SmallFamily("davit", depth=4).build(28, 1, 3)
    again = build_again(built_of(model))
    assert {name: t.shape for name, t in model.state_dict().items()} == {
        n: t.shape for n, t in again.state_dict().items()
    }


def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits_of(model):
    with torch.no_grad():
        return model(images()).tolist()  # of float32, which JSON keeps to the bit


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of a tiny model of timm for each variant, and no data any more."""
    root = tmp_path_factory.mktemp("trained")
    write_digits(root / "data" / "train", 0, 60, 4)
    write_digits(root / "data" / "val", 400, 30, 4)
    recipe = ImageFolder(
        root / "data", image_size=32, augment="none", timm_model="test_vit", training=TRAINING, cache_dir=root / "cache"
    )
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(TRAINING, batch_size=8))
    task = recipe.task()
    task.finish = lambda model: {"logits.json": json.dumps(logits_of(model))}
    for name in NAMES:
        list(train(task, recipe.training, find_variant(name), 0, root / name, OFTEN))
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "cache")
    return root


def reload(root):
    """In a process of its own, which has no recipe: logits of every exported folder, by our call and by timm's."""
    found = {}
    for name in NAMES:
        exported = root / f"{name}.exported"
        found[name] = [logits_of(load_run(exported))]
        if name in OF_PLAIN_WEIGHTS:
            plain = timm.create_model(f"local-dir:{exported}", pretrained=True)
            by_file = timm.create_model(
                "test_vit", img_size=32, num_classes=4, checkpoint_path=exported / "model.safetensors"
            )
            apply_conditioning(plain, exported)
            apply_conditioning(by_file, exported / "conditioning.json")
            found[name] += [logits_of(plain.eval()), logits_of(by_file.eval())]
    (root / "found.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_exported_models_are_the_trained_ones_in_a_new_process(runs):
    for name in NAMES:
        assert call("export", str(runs / name), "--output", str(runs / f"{name}.exported")) == 0
    process = Forked(runs / "said", reload, runs)
    assert process.wait(120) == 0, process.said.read_text()
    found = json.loads((runs / "found.json").read_text())
    for name in NAMES:
        trained = json.loads((runs / name / "logits.json").read_text())
        assert len(found[name]) == (3 if name in OF_PLAIN_WEIGHTS else 1)
        assert all(logits == trained for logits in found[name]), name
    plain = timm.create_model(f"local-dir:{runs / 'preconditioned.exported'}", pretrained=True)
    assert logits_of(plain.eval()) != found["preconditioned"][0], "C matters"
    about = json.loads((runs / "spectral=0.3.exported" / "model.json").read_text())
    assert about["classes"] == list("0123")
    assert (about["from"]["variant"], about["from"]["step"]) == ("spectral=0.3", 3)
    assert timm.data.resolve_model_data_config(plain)["input_size"] == (3, 32, 32)


def test_a_run_gives_its_weights_and_their_average(runs):
    folder = runs / "preconditioned+spectral"
    model, state = load_run(folder), torch.get_rng_state()
    average = load_run(folder, weights="average")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert conditioning(model) == conditioning(average)
    assert {entry["kind"] for entry in conditioning(model)["transforms"]} == {"row_norm", "spectral"}
    newest = checkpoints_in(folder)[-1]
    for one, which in ((model, "run"), (model, "model"), (average, "average")):
        assert torch.equal(one.head.weight, weights_in(newest, which)["head.weight"])
    assert not torch.equal(model.head.weight, average.head.weight)
    earlier = load_run(folder, step=2)
    assert not torch.equal(model.head.weight, earlier.head.weight)
    exported = export_run(folder, runs / "average", weights="average")
    assert torch.equal(load_run(exported).head.weight, average.head.weight)


def test_what_cannot_be_loaded_or_exported(runs, tmp_path):
    folder = runs / "preconditioned"
    with pytest.raises(FileNotFoundError, match=r"step=7: .* holds checkpoint-00000002, checkpoint-00000003"):
        load_run(folder, step=7)
    with pytest.raises(ValueError, match="weights='best' is unknown; valid are 'run', 'model', 'average'"):
        load_run(folder, weights="best")
    with pytest.raises(ValueError, match="those of another model than VisionTransformer"):
        load_run(folder, model=timm.create_model("test_vit", img_size=32, num_classes=5))
    with pytest.raises(ValueError, match="not all of VisionTransformer: there is no blocks"):
        load_run(folder, model=timm.create_model("test_vit", img_size=32, num_classes=4, depth=9))
    with pytest.raises(ValueError, match="holds a run"):
        export_run(folder, runs / "spectral=0.3")
    shutil.copytree(folder, tmp_path / "copy")
    (checkpoints_in(tmp_path / "copy")[-1] / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is damaged .*step=… takes another"):
        load_run(tmp_path / "copy")
    (tmp_path / "copy" / "model.json").unlink()
    with pytest.raises(ValueError, match=r"has no model\.json"):
        load_run(tmp_path / "copy")


def test_a_model_of_ones_own_task_is_given(tmp_path):
    rows = list(
        train(
            ShakenDigits(), dataclasses.replace(TRAINING, ema_beside=None), find_variant("preconditioned"), 0, tmp_path
        )
    )
    with pytest.raises(ValueError, match="a custom task built this model"):
        load_run(tmp_path)
    task = ShakenDigits()
    model = load_run(tmp_path, model=task.build_model())
    scorer = task.evaluator()
    with torch.no_grad():
        scorer.update(model, task.eval_data()[:], lambda both: both)
    assert scorer.compute()["score"] == rows[-1]["score"]
    with pytest.raises(ValueError, match="has none; only runs with ema or ema_beside"):
        load_run(tmp_path, weights="average", model=task.build_model())


def test_models_remember_what_they_were_built_of():
    for settings, sizes in ((VisionTransformer(layers=1, norm="post"), (8, 1, 10)), (GPT(layers=1), (64,))):
        model = settings.build(*sizes)
        data = json.loads(json.dumps(built_of(model)))
        again = build_again(data)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }
        assert built_of(again) == data
    for name in ("os.system", "gpt.Nothing", "gpt"):
        with pytest.raises(ValueError, match="this version cannot build"):
            build_again({"model": name, "settings": {}, "arguments": {}})


def test_a_run_goes_on_by_its_folder_alone(tmp_path, capsys):
    """Killed after a step; recipe, variant, seed and data are those of the folder, and the data may have moved."""
    write_digits(tmp_path / "data" / "train", 0, 60, 4)
    write_digits(tmp_path / "data" / "val", 400, 30, 4)
    recipe = ImageFolder(tmp_path / "data", image_size=32, timm_model="test_vit", cache_dir=tmp_path / "cache")
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(TRAINING, batch_size=8, evaluate_steps=1))
    how = {"launch": OFTEN, "show": lambda row: None}
    whole = train_recipe(recipe, VARIANTS["spectral"], 5, folder=tmp_path / "whole", **how)

    def killed(row):
        raise Killed

    broken = tmp_path / "broken"
    with pytest.raises(Killed):
        train_recipe(recipe, VARIANTS["spectral"], 5, folder=broken, launch=OFTEN, show=killed)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert call("resume", str(broken)) == 2
    assert "data" in capsys.readouterr().err
    assert call("resume", str(broken), "--data-dir", str(tmp_path / "moved")) == 0
    assert len(history(broken)) == 3
    assert history(broken) == history(whole)
    (broken / "places.json").unlink()
    with pytest.raises(ValueError, match="does not say where the data of its run lie"):
        recorded(broken)
    with pytest.raises(FileNotFoundError, match="no run has begun in"):
        recorded(tmp_path)


class Killed(BaseException):
    """Nothing in the library catches it."""


def history(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_run(folder / "result.json")["history"]]
