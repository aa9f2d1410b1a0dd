"""Fine-tuning on GLUE: scores by hand, what a batch holds, a rule that is learnt, and the model in another process."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import PreTrainedConfig

from conditioned_attention import conditioning, precondition
from conditioned_attention.experiments.commands import train_recipe
from conditioned_attention.experiments.data.text.encoded import EncodedTexts
from conditioned_attention.experiments.data.text.labelled import LabelledTexts
from conditioned_attention.experiments.data.text.wordpiece import CLS, SEP, for_classifiers
from conditioned_attention.experiments.exported import export_run
from conditioned_attention.experiments.models.crammed_bert import CrammedBert
from conditioned_attention.experiments.models.text_classifier import with_dropout
from conditioned_attention.experiments.recipes.glue import GlueRecipe
from conditioned_attention.experiments.recipes.labelled_text import LabelledTextRecipe
from conditioned_attention.experiments.recipes.masked_language import SmallBert
from conditioned_attention.experiments.runs.run import read_run
from conditioned_attention.experiments.tasks.labelled_text import logits_of, score_of
from conditioned_attention.experiments.trained import load_run
from conditioned_attention.experiments.training.evaluation import evaluate
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from tests.experiments.labelled_texts import sentence, tokenizer, write_bert, write_glue, write_nouns, write_rated

QUICK = Training(epochs=8, batch_size=8, lr=3e-3, schedule="cosine", final_lr=0.0, evaluate_every=4, monitor_every=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """GLUE's folders and a pretrained model."""
    root = tmp_path_factory.mktemp("glue")
    write_glue(root / "glue", train=48)
    write_bert(root / "bert")
    return root


def recipe(files, name="sst2", **changes):
    settings = {"pretrained": files / "bert", "length": 32, "training": QUICK, **changes}
    return GlueRecipe(glue_task=name, data_dir=files / "glue", **settings)


def test_scores_by_hand():
    labels, said = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1, 0, 0])  # 2 true positives, 1 false
    assert score_of("accuracy", said, labels) == {"score": 62.5}
    assert score_of("f1", said, labels) == pytest.approx({"score": 100 * 4 / 7, "accuracy": 62.5})
    matthews = (2 * 3 - 1 * 2) / np.sqrt(3 * 4 * 4 * 5)
    assert score_of("matthews", said, labels) == pytest.approx({"score": 100 * matthews, "accuracy": 62.5})
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.5, 5.0])
    assert score_of("pearson", x, y) == pytest.approx(
        {"score": 100 * np.corrcoef(x, y)[0, 1], "spearman": 100 * (1 - 6 * 2 / (4 * 15))}
    )
    assert np.isnan([*score_of("pearson", np.ones(4), y).values(), *score_of("pearson", x, np.ones(4)).values()]).all()
    for score in ("f1", "matthews"):
        assert score_of(score, np.zeros(8, int), labels)["score"] == 0


def test_a_text_is_never_paired_with_an_empty_one():
    made = for_classifiers(tokenizer())
    one = EncodedTexts({"train": LabelledTexts(["the cat", "the sea is"], [], [0, 1])}, made, 32)
    batch = one.__getitems__([1, 0])
    assert made.convert_ids_to_tokens(batch["input_ids"][1][:4]) == ["<cls>", "the", "cat", "<sep>"]
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [5, 4]
    assert batch["labels"].tolist() == [1, 0]
    assert "token_type_ids" not in batch
    pairs = LabelledTexts(["the cat"] * 2, ["the sea is odd today", "the dog"], [0.5, 3])
    cut = EncodedTexts({"a": pairs, "b": pairs}, made, 8, regression=True)
    batch = cut.__getitems__([0, 3])
    assert batch["input_ids"][0].tolist().count(SEP) == 2
    assert batch["input_ids"][0][0] == CLS
    assert batch["set"].tolist() == [0, 1]
    assert batch["labels"].tolist() == [0.5, 3.0]
    assert batch["labels"].dtype == torch.float32
    assert cut.cut == 2
    assert one[0]["input_ids"].shape == (8,)


@pytest.mark.parametrize("name", ["mnli", "stsb"])
def test_tasks_know_their_score_and_their_sets(files, name):
    task = recipe(files, name).task()
    assert len(task.eval_data()) == (40 if name == "mnli" else 20)
    model = task.build_model().eval()
    count = len(task.eval_data())
    batches = [task.eval_data().__getitems__(range(first, min(first + 8, count))) for first in range(0, count, 8)]
    found = evaluate(task, model, batches, lambda tensors: tensors, 0)
    if name == "mnli":
        assert list(found) == ["score", "eval_loss", "mismatched"]
        assert task.classes == ("entailment", "neutral", "contradiction")
        matched = task.eval_data().__getitems__(range(20))
        loss = task.loss_of(logits_of(model, matched), matched["labels"])
        assert found["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    else:
        assert list(found) == ["score", "spearman", "eval_loss"]
        batch = task.eval_data().__getitems__(range(20))
        errors = logits_of(model, batch)[:, 0].detach() - batch["labels"]
        assert found["eval_loss"] == pytest.approx(float((errors**2).mean()), rel=1e-5)
    lengths = task.probe()["attention_mask"].sum(1)
    assert lengths.min() >= torch.from_numpy(task.eval_data().lengths).sort(descending=True).values[7]
    tuned = recipe(files, name).task(tuning=True)
    assert (len(tuned.train_data()), len(tuned.eval_data())) == (43, 5)


def test_it_starts_from_the_pretrained_weights_and_a_fresh_head(files):
    task = recipe(files, dropout=0.2).task()
    torch.manual_seed(0)
    model = task.build_model()
    saved = {name: tensor for name, tensor in _saved(files / "bert").items() if name.startswith("bert.")}
    assert len(saved) > 15
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in saved.items())
    torch.manual_seed(0)
    assert torch.equal(task.build_model().classifier.weight, model.classifier.weight)
    assert not torch.equal(task.build_model().classifier.weight, model.classifier.weight)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.2}
    with torch.device("meta"):
        assert task.build_model().classifier.weight.is_meta, "which an estimate counts"
    other = write_bert(files / "other")
    assert task.fingerprint() != recipe(files, dropout=0.2, pretrained=other).task().fingerprint()


def _saved(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_a_rule_is_learnt_and_the_model_comes_back_in_another_process(files, tmp_path):
    folder = train_recipe(recipe(files), VARIANTS["preconditioned"], 0, folder=tmp_path / "run", show=len)
    last = read_run(folder / "result.json")["history"][-1]
    assert last["score"] > 85, "the majority has 50"
    task = recipe(files).task()
    (tmp_path / "batch.json").write_text(json.dumps(task.probe()["input_ids"].tolist()))
    program = f"""
import json, torch
from tokenizers import Tokenizer
from conditioned_attention import conditioning
from conditioned_attention.experiments.trained import load_run
model = load_run({str(folder)!r})
assert "row_norm" in str(conditioning(model)).lower() or "rownorm" in str(conditioning(model)).lower()
ids = Tokenizer.from_file({str(folder / "tokenizer.json")!r}).encode("the sun number 7 is fine today").ids
with torch.no_grad():
    print(model(torch.tensor([ids])).logits.argmax(-1).item())
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "1", said.stderr
    assert sentence(0, 1).endswith("is fine today")


def test_each_variant_goes_on_from_its_own_pretraining(files, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(sentence(i, i % 3) for i in range(700)))
    bert = CrammedBert(context=16, hidden_size=32, layers=1, heads=2, mlp_size=32, init="width")
    training = Training(epochs=1, batch_size=32, order="stored", monitor_every=0, max_steps=2)
    pretraining = SmallBert("files", text, vocabulary=300, model=bert, training=training, cache_dir=tmp_path)
    for name in ("baseline", "preconditioned"):
        train_recipe(pretraining, VARIANTS[name], 3, folder=tmp_path / f"{name}-3", show=len)
    training = dataclasses.replace(QUICK, epochs=1, start_from=f"{tmp_path}/{{variant}}-{{seed}}")
    changes = {"pretrained": None, "length": 16, "training": training}
    folder = train_recipe(recipe(files, **changes), VARIANTS["preconditioned"], 3, folder=tmp_path / "fine", show=len)
    start = json.loads((folder / "start.json").read_text())
    assert start["from"]["variant"] == "preconditioned"
    assert all(name.startswith(("pooler.", "classifier.")) for name in start["fresh"])
    exported = export_run(tmp_path / "preconditioned-3", tmp_path / "exported")
    training = dataclasses.replace(training, start_from=str(exported))
    changes["training"] = training
    again = train_recipe(recipe(files, **changes), VARIANTS["preconditioned"], 3, folder=tmp_path / "b", show=len)
    one, other = (read_run(run / "result.json")["history"][-1] for run in (folder, again))
    assert (one["score"], one["train_loss"]) == (other["score"], other["train_loss"])
    one, other = (logits_of(load_run(run), recipe(files, **changes).task().probe()) for run in (folder, again))
    assert torch.equal(one, other)
    assert json.loads((again / "start.json").read_text())["taken"] == start["taken"]
    with pytest.raises(ValueError, match="length must be between 8 and the 16 tokens"):
        recipe(files, **changes | {"length": 17}).task()


def test_a_conditioned_model_stays_conditioned(files, tmp_path):
    folder = write_bert(tmp_path / "bert", precondition)
    model, plain = (recipe(files, pretrained=one).task().build_model() for one in (folder, files / "bert"))
    assert conditioning(model) != conditioning(plain)
    VARIANTS["preconditioned"].apply(plain)
    assert conditioning(model) == conditioning(plain)
    own = write_bert(tmp_path / "gain", VARIANTS["qk_norm_temperature"].apply)
    with pytest.raises(ValueError, match="is conditioned with weights of its own"):
        recipe(files, pretrained=own).task().build_model()


def test_what_to_start_with_is_asked_for(files, tmp_path):
    both = dataclasses.replace(QUICK, start_from="x")
    for changes, error, words in (
        ({"pretrained": None}, ValueError, "what to start with is pretrained=.*got neither"),
        ({"training": both}, ValueError, "got both"),
        ({"training": both, "pretrained": None}, FileNotFoundError, "there is no folder with a tokenizer.json"),
        ({"pretrained": tmp_path}, FileNotFoundError, "there is no config.json"),
        ({"length": 64}, ValueError, "length must be between 8 and the 32 tokens"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)"),
    ):
        with pytest.raises(error, match=words):
            recipe(files, **changes).task()
    with pytest.raises(ValueError, match="has none; None leaves it"):
        with_dropout(PreTrainedConfig(), 0.1)


def test_the_published_protocol():
    settings = GlueRecipe().training
    assert (settings.epochs, settings.batch_size, settings.lr, settings.betas) == (5, 16, 4e-5, (0.9, 0.98))
    assert (settings.eps, settings.weight_decay, settings.clip) == (1e-6, 0.0, None)
    assert (settings.schedule, settings.warmup, settings.final_lr) == ("cosine", 0.1, 0.0)
    assert (GlueRecipe().dropout, GlueRecipe().length) == (0.1, 128)
    assert settings.steps(8551) == 5 * 534


def test_texts_of_packages_go_the_same_way(files, tmp_path):
    rated = LabelledTextRecipe(files / "bert", length=32, path=write_rated(tmp_path / "rated"), training=QUICK)
    assert rated.training.precision == LabelledTextRecipe().training.precision == "no"
    task = dataclasses.replace(rated, samples=20).task()
    assert (len(task.train_data()), task.metric.name, task.classes) == (20, "accuracy (%)", ("negative", "positive"))
    task = dataclasses.replace(rated, target="mean").task(tuning=True)
    assert (task.metric.name, task.regression, task.eval_data().names) == (
        "Pearson correlation × 100",
        True,
        ["held_out"],
    )
    pairs = dataclasses.replace(rated, text="hypernyms", path=write_nouns(tmp_path / "wordnet")).task()
    assert pairs.classes == ("another's", "hypernym")
    assert pairs.build_model()(**pairs.calibration()).logits.shape[1] == 2
    for changes, words in (
        ({"samples": 0}, "samples must be at least 1"),
        ({"text": "hypernyms", "target": "mean"}, "target='mean' is for texts that are rated"),
        ({"text": "news", "path": None}, "text='news' needs a path. The texts are in the source distribution"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            dataclasses.replace(rated, **changes).task()
