"""Decoders: byte pairs, a Llama by hand, the loss of a byte, fine-tuning that is scored before it begins."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache

from conditioned_attention import calibrate, conditioning, precondition
from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.data.text.byte_pairs import (
    BYTES,
    bytes_of_tokens,
    train_byte_pairs,
    without_template,
)
from conditioned_attention.experiments.data.text.wordpiece import train_wordpiece
from conditioned_attention.experiments.models.gpt import GPT
from conditioned_attention.experiments.models.llama import Llama
from conditioned_attention.experiments.planning.dry_run import task_to_plan
from conditioned_attention.experiments.planning.estimate import estimate
from conditioned_attention.experiments.recipes.decoders import GPTRecipe, LlamaRecipe
from conditioned_attention.experiments.recipes.fine_tune import FineTune
from conditioned_attention.experiments.trained import load_run
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.preconditioner import RowNorm
from conditioned_attention.sites.transformers.packed import register_packed
from conditioned_attention.storage.json_lines import JsonLines
from tests.experiments.decoders import TEXT, write_decoder, write_text
from tests.experiments.training.test_distributed import torchrun

SELDOM = Launch(log_every=1)
OFTEN = Launch(checkpoint_seconds=0.0, log_every=1)
SHORT = Training(epochs=1, batch_size=32, lr=1e-2, evaluate_every=0.5, monitor_every=0)
SMALL = LlamaRecipe(
    text="files",
    vocabulary=300,
    eval_blocks=16,
    model=Llama(context=16, hidden_size=32, layers=2, heads=4, key_heads=2, mlp_size=48),
    training=dataclasses.replace(SHORT, epochs=3, evaluate_every=1),
)


def recipe(folder, **changes):
    path = write_text(folder / "text.txt")
    return dataclasses.replace(SMALL, path=path, cache_dir=folder / "cache", **changes)


def fine_tune(folder, wrap=lambda model: model, **changes):
    path, start = write_text(folder / "text.txt"), write_decoder(folder / "start", wrap)
    training = dataclasses.replace(SHORT, evaluate_first=True, lr=1e-3)
    settings = {"context": 16, "eval_blocks": 16, "cache_dir": folder / "cache", "training": training} | changes
    return FineTune(text="files", path=path, pretrained=start, **settings)


# Tokens


def test_no_byte_is_lost_whatever_the_vocabulary():
    text = "Straße, 猫 \x00\n\n  ``naïve''"
    for vocabulary in (BYTES, 300):
        tokenizer = train_byte_pairs([TEXT, text], vocabulary)
        assert tokenizer.get_vocab_size() == vocabulary
        ids, sizes = tokenizer.encode(text).ids, bytes_of_tokens(tokenizer)
        assert ids[-1] == 0
        assert tokenizer.decode(ids) == text
        assert sizes[ids].sum() == len(text.encode())
        assert (sizes[1:BYTES] == 1).all()
    assert len(train_byte_pairs([TEXT], BYTES).encode(text).ids) == len(text.encode()) + 1
    assert without_template(tokenizer).encode(text).ids == ids[:-1]
    assert bytes_of_tokens(train_wordpiece([TEXT], 300)) is None
    assert train_byte_pairs([TEXT], 300).to_str() == train_byte_pairs([TEXT], 300).to_str()
    with pytest.raises(ValueError, match="vocabulary must be at least 257, all bytes"):
        train_byte_pairs([TEXT], 256)


# Models


def turned(x, theta):
    """Rotary positions of (B, H, N, D): complex numbers of the first and the second half of each row."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * theta ** (-torch.arange(half) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    return torch.cat([z.real, z.imag], -1)


def llama_by_hand(weights, ids, settings):
    def normed(x, name):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weights[name]

    def split(x, name, heads):
        return (x @ weights[name].T).unflatten(-1, (heads, -1)).transpose(1, 2)

    x = weights["model.embed_tokens.weight"][ids]
    for i in range(settings.layers):
        layer = f"model.layers.{i}."
        y = normed(x, layer + "input_layernorm.weight")
        q = turned(split(y, layer + "self_attn.q_proj.weight", settings.heads), settings.rope_theta)
        k = turned(split(y, layer + "self_attn.k_proj.weight", settings.key_heads), settings.rope_theta)
        v = split(y, layer + "self_attn.v_proj.weight", settings.key_heads)
        k, v = (t.repeat_interleave(settings.heads // settings.key_heads, 1) for t in (k, v))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        logits = logits.masked_fill(torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool(), -math.inf)
        heads = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + heads @ weights[layer + "self_attn.o_proj.weight"].T
        y = normed(x, layer + "post_attention_layernorm.weight")
        gate, up = (y @ weights[layer + f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ weights[layer + "mlp.down_proj.weight"].T
    return normed(x, "model.norm.weight") @ weights["lm_head.weight"].T


def test_llama_is_llama():
    settings = Llama(context=8, hidden_size=32, layers=2, heads=4, key_heads=2, mlp_size=48, rope_theta=100.0)
    model = settings.build(50).double().eval()
    ids = torch.randint(50, (2, 8))
    with torch.no_grad():
        ours = llama_by_hand(model.state_dict(), ids, settings)
        torch.testing.assert_close(model(ids).logits, ours, rtol=1e-5, atol=1e-6)  # cos and sin are float32's there
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert sum(p.numel() for p in model.parameters()) == 50 * 32 + 2 * layer + 32
    untied = dataclasses.replace(settings, tied=False).build(50)
    assert sum(p.numel() for p in untied.parameters()) == 2 * 50 * 32 + 2 * layer + 32
    width = 0.02 * math.sqrt(768 / 32)
    for name, factor in (("q_proj", 1.0), ("o_proj", 0.5)):
        weight = getattr(model.model.layers[0].self_attn, name).weight
        assert weight.std().item() == pytest.approx(factor * width, rel=0.1), "the start, and depth"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"key_heads": 3}, "key_heads divide heads"), ({"heads": 128}, "even width"), ({"rope_theta": 1.0}, "above 1")],
)
def test_wrong_models(changes, words):
    with pytest.raises(ValueError, match=words):
        Llama(**changes)


# Training


@pytest.mark.slow
def test_it_learns_says_what_a_byte_costs_and_goes_on(tmp_path):
    asked = recipe(tmp_path)
    task = asked.task()
    expected = list(train(task, asked.training, VARIANTS["preconditioned"], 0, tmp_path / "whole", SELDOM))
    last = expected[-1]
    assert last["score"] < 0.6 * math.log(300)
    tokenizer = Tokenizer.from_file(str(tmp_path / "whole" / "tokenizer.json"))
    ids = task.eval_data().__getitems__(range(16))[:, 1:].flatten().tolist()
    size = len(tokenizer.decode(ids).encode())
    assert last["nats_per_byte"] == pytest.approx(last["score"] * len(ids) / size, rel=1e-6)
    assert last["bits_per_byte"] == pytest.approx(last["nats_per_byte"] / math.log(2))
    prompt, _, told = (tmp_path / "whole" / "sample.txt").read_text().partition("|")
    assert prompt == tokenizer.decode(task.eval_data()[0][:8].tolist(), skip_special_tokens=False)
    assert told
    rows = train(task, asked.training, VARIANTS["preconditioned"], 0, tmp_path / "broken", OFTEN)
    next(rows)
    del rows
    resumed = list(train(task, asked.training, VARIANTS["preconditioned"], 0, tmp_path / "broken", OFTEN))
    assert [row["score"] for row in resumed] == [row["score"] for row in expected]


def test_bytes_and_byte_pairs_have_one_unit(tmp_path):
    """A model that guesses costs log2(V) bits a token, and of bytes 8 bits a byte but for what ends a document."""
    asked = recipe(tmp_path, vocabulary=BYTES, eval_blocks=None)
    task = asked.task()

    class Guesses(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, BYTES)})

    evaluator = task.evaluator()
    evaluator.update(Guesses(), task.eval_data().__getitems__(range(len(task.eval_data()))), lambda x: x)
    scores = evaluator.compute()
    assert scores["score"] == pytest.approx(math.log(BYTES), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(math.log2(BYTES) * (28 / 27), rel=0.01)
    assert task.metric.name == "loss (nats a token)"
    gpt = GPTRecipe(**{f.name: getattr(asked, f.name) for f in dataclasses.fields(asked) if f.name != "model"})
    assert dataclasses.replace(gpt, model=GPT(context=16)).task().fingerprint() == task.fingerprint()
    with pytest.raises(ValueError, match="eval_blocks must be at least 1"):
        recipe(tmp_path, eval_blocks=0).task()


# Fine-tuning


def test_curves_begin_before_the_first_step(tmp_path):
    """With what the plain model has on the same blocks, and what a conversion makes of it."""
    asked = fine_tune(tmp_path)
    task = asked.task()
    model = AutoModelForCausalLM.from_pretrained(asked.pretrained).eval()
    ids = task.eval_data().__getitems__(range(16))
    tokenizer = AutoTokenizer.from_pretrained(asked.pretrained)
    text = tokenizer.decode(task.train_data().__getitems__(range(40)).flatten().tolist())
    assert text == TEXT[: len(text)], "as it stands"

    @torch.no_grad()
    def loss():
        return F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()).item()

    expected = {"baseline": loss()}
    with pytest.warns(UserWarning, match="these weights come from a checkpoint"):
        precondition(model)
    expected["preconditioned"] = loss()
    calibrate(model, task.calibration())
    expected["preconditioned_calibrated"] = loss()
    for name, value in expected.items():
        rows = list(train(task, asked.training, VARIANTS[name], 0, tmp_path / name, SELDOM))
        assert [row["step"] for row in rows] == [0, 6, 11]
        assert rows[0]["score"] == pytest.approx(value, rel=1e-5)
        assert rows[-1]["score"] < rows[0]["score"]
        assert asked.training.evaluations(len(task.train_data()), 16) == 3
    assert len({round(value, 3) for value in expected.values()}) == 3
    again = load_run(tmp_path / "preconditioned_calibrated")
    with torch.no_grad():
        found = F.cross_entropy(again(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert found == pytest.approx(rows[-1]["score"], rel=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupted_run_is_measured_once_before_the_first_step(tmp_path, at):
    asked = fine_tune(tmp_path, training=dataclasses.replace(SHORT, evaluate_first=True, monitor_every=0.5))
    task = asked.task()
    expected = list(train(task, asked.training, VARIANTS["baseline"], 0, tmp_path / "whole", SELDOM))
    rows = train(task, asked.training, VARIANTS["baseline"], 0, tmp_path / "broken", OFTEN)
    for _ in range(at + 1):
        next(rows)
    del rows
    resumed = list(train(task, asked.training, VARIANTS["baseline"], 0, tmp_path / "broken", OFTEN))
    assert [row["score"] for row in resumed] == [row["score"] for row in expected]
    logs = [JsonLines(tmp_path / name / "conditions.jsonl").read() for name in ("whole", "broken")]
    assert [[row["step"], row["head"]] for row in logs[0]] == [[row["step"], row["head"]] for row in logs[1]]


def test_adapters_are_all_that_lora_trains(tmp_path):
    asked = fine_tune(tmp_path, trains="lora", lora_rank=2, lora_targets=("q_proj", "o_proj"))
    task = asked.task()
    start = {name: weight.clone() for name, weight in task.build_model().state_dict().items()}
    plain = AutoModelForCausalLM.from_pretrained(asked.pretrained).state_dict()
    assert all(
        torch.equal(start[f"base_model.model.{k}"], v) for k, v in plain.items() if "q_" not in k and "o_" not in k
    )
    rows = list(train(task, asked.training, VARIANTS["spectral"], 0, tmp_path / "run", SELDOM))
    assert rows[-1]["score"] < rows[0]["score"]
    state = load_run(tmp_path / "run").state_dict()
    changed = {name for name in start if not torch.equal(state[name], start[name])}
    assert changed == {name for name in start if "lora_" in name}
    (row,) = estimate(task, asked.training, ["preconditioned_calibrated"], measure=False)
    assert row.trainable == 2 * 2 * 2 * (32 + 32) < row.parameters


def test_what_was_saved_conditioned_stays_so(tmp_path):
    asked = fine_tune(tmp_path, precondition)
    task = asked.task()
    assert [entry["kind"] for entry in conditioning(task.build_model())["transforms"]] == [RowNorm.kind]
    plain = dataclasses.replace(asked, pretrained=write_decoder(tmp_path / "plain"))
    ids = task.eval_data().__getitems__([0])
    losses = [each.loss(each.build_model().eval(), ids).item() for each in (task, plain.task())]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert task.fingerprint() == plain.task().fingerprint()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"pretrained": None}, ValueError, "what to start with is pretrained="),
        ({"context": 65}, ValueError, "context must be between 2 and the 64 tokens that the model takes, got 65"),
        ({"lora_rank": 0}, ValueError, "lora_rank must be at least 1, got 0"),
        ({"lora_targets": ("q",)}, ValueError, "goes with trains='lora', got trains='all'"),
    ],
)
def test_wrong_settings(tmp_path, changes, error, words):
    asked = fine_tune(tmp_path)
    with pytest.raises(error, match=words):
        dataclasses.replace(asked, **changes).task()
    (asked.pretrained / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json in "):
        asked.task()


@pytest.mark.slow
def test_a_comparison_has_curves_from_step_0_on(tmp_path):
    result = compare_recipe(
        fine_tune(tmp_path), ["baseline", "preconditioned"], 2, tmp_path / "runs", cost=False, progress=False, threads=1
    )
    assert {row["step"] for row in result.runs["baseline"][0]} == {0, 6, 11}


# Large scale


@pytest.mark.slow
def test_a_plan_of_a_real_size():
    """Llama 3.2 1B, whose number of parameters is public, with a context of 65,536."""
    sizes = {"hidden_size": 2048, "layers": 16, "heads": 32, "key_heads": 8, "mlp_size": 8192, "rope_theta": 500_000.0}
    asked = LlamaRecipe(text="files", vocabulary=128_256, model=Llama(context=65_536, **sizes))
    training = Training(epochs=1, batch_size=8, accumulation=8, precision="bf16")
    how = {"gpu": "H100", "measure": False, "launch": Launch(recompute=True)}
    (row,) = estimate(asked.stand_in(), training, ["preconditioned"], **how)
    assert row.parameters == 1_235_814_400
    assert row.tokens == pytest.approx(1e9, rel=1e-3)
    assert row.gpu_hours > 1


@pytest.mark.slow
def test_a_plan_needs_no_text():
    asked = LlamaRecipe(text="files", vocabulary=300, model=Llama(context=64, hidden_size=32, layers=1, heads=2))
    task = asked.stand_in()
    assert task.notes == ["there is no path: counted for 1,000,000,000 tokens"]
    training = Training(epochs=1, batch_size=8)
    (row,) = estimate(task, training, ["preconditioned"], measure=False)
    assert row.tokens == pytest.approx(1e9, rel=0.02)
    assert dataclasses.replace(asked, text="topics").stand_in() is None
    (apart,) = estimate(task_to_plan(dataclasses.replace(asked, apart=True)), training, ["baseline"], measure=False)
    assert apart.parameters == row.parameters, "as if they were not apart"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("variant", ["baseline", "preconditioned", "head_rmsnorm", "qk_norm"])
@pytest.mark.parametrize("model", [SMALL.model, GPT(context=16, hidden_size=32, layers=2, heads=2)])
@torch.no_grad()
def test_documents_that_are_apart_are_as_alone(tmp_path, model, variant):
    asked = recipe(tmp_path, apart=True)
    task = GPTRecipe(**{f.name: getattr(asked, f.name) for f in dataclasses.fields(asked) if f.name != "model"})
    task = dataclasses.replace(task, model=model).task()
    packed = task.build_model().eval()
    alone = model.build(task.eval_data().vocabulary).eval()
    alone.load_state_dict(packed.state_dict())
    for each in (packed, alone):
        VARIANTS[variant].apply(each)
    blocks = task.eval_data().__getitems__([0, 1])
    assert ((blocks == 0).sum(1) > 0).all(), "a block holds more than one document"
    losses = []
    for block in blocks:
        start = 0
        for end in [*(block[:-2] == 0).nonzero().flatten().tolist(), 15]:
            logits = alone(block[None, start : end + 1]).logits[0]
            losses += F.cross_entropy(logits, block[start + 1 : end + 2], reduction="none").tolist()
            start = end + 1
    assert len(losses) == 32
    assert task.loss(packed, blocks).item() == pytest.approx(sum(losses) / 32, rel=1e-5)
    together = F.cross_entropy(alone(blocks[:, :-1]).logits.flatten(0, 1), blocks[:, 1:].flatten()).item()
    assert together != pytest.approx(sum(losses) / 32, rel=1e-4)


def test_documents_apart_train_and_padding_is_refused(tmp_path):
    asked = recipe(tmp_path, apart=True, training=dataclasses.replace(SHORT, max_steps=2))
    task = asked.task()
    (row,) = train(task, asked.training, VARIANTS["preconditioned"], 0, tmp_path / "run", SELDOM)
    assert math.isfinite(row["score"])
    assert load_run(tmp_path / "run").config.get_text_config()._attn_implementation == "conditioned_sdpa"
    model, ids = task.build_model(), torch.ones(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="packed_sdpa knows no padding"):
        model(ids, attention_mask=torch.tensor([[0] + 7 * [1], 8 * [1]]))
    with pytest.raises(ValueError, match="packed sequences come as one row, got a batch of 2"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 8]).int(), cu_seq_lens_k=torch.tensor([0, 8]).int())


@pytest.mark.parametrize("conditioned", [False, True])
@torch.no_grad()
def test_tokens_on_top_of_a_cache_are_as_in_one_pass(conditioned):
    model, ids = SMALL.model.build(64).eval(), torch.randint(64, (1, 10))
    model.set_attn_implementation(register_packed())
    if conditioned:
        precondition(model)
    whole = model(ids).logits
    for cache in (DynamicCache(), StaticCache(model.config, max_cache_len=16)):
        parts = [model(part, past_key_values=cache).logits for part in ids.split([4, 5, 1], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole)
    ends = torch.tensor([0, 5]).int()
    with pytest.raises(ValueError, match="packed sequences come without attention_mask"):
        model(ids[:, 5:], past_key_values=cache, cu_seq_lens_q=ends, cu_seq_lens_k=ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_two_ranks_share_a_model(name, tmp_path):
    """FSDP2 in bfloat16 over gloo, to its end: the sample, too."""
    options = (
        f"--text files --path {write_text(tmp_path / 'text.txt')} --cache-dir {tmp_path} --vocabulary 300 --context 16"
    )
    options += " --hidden-size 32 --layers 2 --batch-size 8 --max-steps 3 --precision bf16 --parallel fsdp2"
    command = f"-m conditioned_attention train {name} --variant preconditioned --folder {tmp_path / 'run'} {options}"
    done = torchrun(*command.split())
    assert done.returncode == 0, done.stderr
    assert {"sample.txt", "tokenizer.json", "result.json"} <= {file.name for file in (tmp_path / "run").iterdir()}
    assert math.isfinite(json.loads((tmp_path / "run" / "result.json").read_text())["history"][-1]["score"])
