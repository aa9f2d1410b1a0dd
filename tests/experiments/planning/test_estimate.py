"""What a dry run says, against formulas, published counts, real runs and real checkpoints."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conditioned_attention.cli import main
from conditioned_attention.experiments.planning.cost import measure_cost
from conditioned_attention.experiments.planning.counting import _autocast_forward, count_step
from conditioned_attention.experiments.planning.dry_run import print_estimates
from conditioned_attention.experiments.planning.estimate import OPERATION_SECONDS, UTILISATION, estimate
from conditioned_attention.experiments.planning.gpus import GPUS, find_gpu
from conditioned_attention.experiments.recipes.registry import recipe_class
from conditioned_attention.experiments.training.blocks import recompute_blocks
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.profiling.memory import held_bytes
from tests.experiments.light import Numbers
from tests.experiments.tiny import TinyDigits
from tests.models import timm_vit

BASELINE = VARIANTS["baseline"]


def test_what_a_variant_costs_is_measured_on_a_stream_too():
    class Stream:
        def __init__(self, data):
            self.data = data

        def __iter__(self):
            return iter(self.data)

    class Streamed(Numbers):
        def train_data(self):
            return Stream(super().train_data())

    settings = Training(order="streamed", max_steps=2, batch_size=8, accumulation=2, evaluate_steps=1)
    found = measure_cost(Streamed(), settings, [BASELINE], rounds=1, threads=torch.get_num_threads())
    assert found["variants"]["baseline"]["time_ratio"] == 1
    assert (found["micro_batch"], found["accumulation"]) == (4, 2)


def toy(build, loss=lambda model, batch: model(batch).sum()):
    """As much of a task as counting needs."""
    return SimpleNamespace(
        build_model=build, loss=loss, tokens_per_sample=1, causal=False, left_alone=(), no_weight_decay=tuple
    )


class Attend(nn.Module):
    """Causal attention of 3 heads of width 5, dropout included, and nothing else."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = x * self.scale
        return F.scaled_dot_product_attention(x, x, x, is_causal=True, dropout_p=0.1)


def gpt2(layers, width=768, heads=12):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads, use_cache=False))


def language_loss(model, ids):
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


def classification_loss(model, images):
    return F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.int64))


def test_linear_layers():
    """2 m k n forward; the first needs no gradient of its input, the second both: 2 m k n each."""
    count = count_step(toy(lambda: nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 2))), BASELINE, torch.ones(3, 7))
    assert count.forward_flops == 2 * 3 * 7 * 11 + 2 * 3 * 11 * 2
    assert count.backward_flops == 2 * 3 * 7 * 11 + 2 * 2 * 3 * 11 * 2
    assert (count.parameters, count.weight_bytes) == (7 * 11 + 11 + 11 * 2 + 2, 4 * (7 * 11 + 11 + 11 * 2 + 2))


@pytest.mark.parametrize("gpu", [True, False])
def test_attention_with_dropout_is_counted_the_same_fused_and_not(gpu):
    """4 n m d a head and batch forward, twice that backward: no recomputation, and the causal half not left out."""
    count = count_step(toy(Attend), BASELINE, torch.ones(2, 3, 40, 5), gpu=gpu)
    assert count.forward_flops == 2 * 3 * 4 * 40 * 40 * 5
    assert count.backward_flops == 2 * count.forward_flops
    weights = 4 * 2 * 3 * 40 * 40
    assert (count.activation_bytes < weights) == gpu  # only an unfused one holds a number a pair of tokens


@pytest.mark.slow
def test_a_layer_of_torch_is_fused_too():
    """nn.MultiheadAttention calls attention out of sight; without C it holds less than with it."""

    def build():
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 3, 48, batch_first=True), 1)

    counts = [count_step(toy(build), VARIANTS[name], torch.ones(2, 40, 24)) for name in ("baseline", "preconditioned")]
    assert counts[0].forward_flops == counts[1].forward_flops
    assert counts[0].activation_bytes <= counts[1].activation_bytes


def test_grouped_convolution():
    def build():
        return nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6))

    count = count_step(toy(build), BASELINE, torch.ones(2, 6, 8, 8))
    pointwise, depthwise = 2 * 2 * 64 * 6 * 6, 2 * 2 * 64 * 6 * 9
    assert count.forward_flops == pointwise + depthwise
    assert count.backward_flops == pointwise + 2 * depthwise  # the images need no gradient


def test_views_are_no_operations():
    """Forward: linear, sum.  Backward: weight gradient, bias gradient, and the one that starts it; sum is expanded."""
    count = count_step(toy(lambda: nn.Linear(4, 4)), BASELINE, torch.ones(3, 4))
    assert count.operations == 2 + 3


@pytest.mark.slow
def test_vit_base_has_the_published_number_of_operations():
    """17.6 billion multiply-adds and 86.6 million parameters (timm's and torchvision's tables)."""
    from timm.models.vision_transformer import VisionTransformer

    count = count_step(toy(VisionTransformer, classification_loss), BASELINE, torch.ones(2, 3, 224, 224))
    assert count.forward_flops / 2 / 2 == pytest.approx(17.6e9, rel=0.005)
    assert count.parameters == 86_567_656
    assert count.backward_flops / count.forward_flops == pytest.approx(2, rel=0.005)


@pytest.mark.slow
def test_gpt2_agrees_with_the_formula_and_counts_the_tied_head_once():
    d, n, layers, words = 768, 256, 12, 50257
    count = count_step(toy(lambda: gpt2(layers), language_loss), BASELINE, torch.zeros(2, n, dtype=torch.int64))
    token = 2 * (12 * layers * d * d + words * d) + 4 * layers * n * d
    assert count.forward_flops == 2 * n * token
    assert count.backward_flops == 2 * count.forward_flops
    assert count.parameters == 124_439_808


@pytest.mark.slow
def test_a_model_larger_than_this_machine_takes_no_memory():
    """GPT-2 XL, 1.56 billion parameters, conditioned, in bf16: its weights alone would be 6 GB."""
    task = toy(lambda: gpt2(48, 1600, 25), language_loss)
    count = count_step(
        task, VARIANTS["preconditioned"], torch.zeros(1, 1024, dtype=torch.int64), Training(precision="bf16")
    )
    assert count.parameters == 1_557_611_200
    assert count.weight_bytes == 4 * count.parameters
    assert count.forward_flops == pytest.approx(2 * 1.5576e9 * 1024, rel=0.12)  # 2 N a token, and the attention


# One for each thing that a variant may hold for its gradient: rows, weights, C, gates, normed queries
HOLDING = {
    "baseline", "preconditioned", "preconditioned_weights", "preconditioned_learned", "d_optimal", "spectral",
    "head_rmsnorm_gain", "constant_gain", "sigmoid_gate", "qk_norm_temperature",
}  # fmt: skip


@pytest.mark.one_in(20)
@pytest.mark.parametrize(
    ("variant", "precision"),
    [pytest.param(name, "no", marks=() if name in HOLDING else pytest.mark.slow) for name in VARIANTS]
    + [pytest.param(name, "bf16", marks=pytest.mark.slow) for name in ("spectral", "qk_norm")]
    + [(name, "bf16") for name in ("baseline", "preconditioned")],
)
def test_activations_are_those_of_a_real_step(variant, precision):
    """To 1 %: the same storages in float32; under autocast kernels keep statistics of other dtypes than fake ones."""
    task = TinyDigits()
    batch = task.train_data().__getitems__(range(15))
    model, variant = task.build_model(), VARIANTS[variant]
    variant.apply(model, task.probe())
    model.train()
    _autocast_forward(model, precision)
    held = held_bytes(lambda: task.loss(model, batch), [*model.parameters(), *model.buffers()])
    assert count_step(task, variant, batch, Training(precision=precision), gpu=False).activation_bytes == pytest.approx(
        held, rel=0.01
    )


@pytest.mark.slow
def test_counting_leaves_no_trace():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    estimate(TinyDigits(), Training(epochs=1, batch_size=30), ["baseline", "preconditioned"])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert type(timm_vit().patch_embed.proj.weight.data) is torch.Tensor


@pytest.mark.slow
def test_a_run_is_its_steps(tmp_path):
    """Steps, samples and the checkpoint against a run; the file has a few headers besides."""
    settings = Training(epochs=3, batch_size=50, accumulation=2, ema_beside=0.9)
    rows = estimate(TinyDigits(), settings, ["baseline", "preconditioned"])
    assert [row.variant for row in rows] == ["baseline", "preconditioned"]
    assert rows[0].flops == rows[1].flops  # the norm is no matrix product
    assert rows[0].activation_bytes < rows[1].activation_bytes
    row = rows[1]
    assert list(train(TinyDigits(), settings, VARIANTS["preconditioned"], 0, tmp_path))[-1]["step"] == row.steps == 12
    assert (row.samples, row.micro_batch, row.tokens) == (600, 25, None)
    assert row.flops == 12 * 2 * row.micro_batch_flops
    assert row.timing.seconds > 0
    assert row.measured_seconds == 12 * row.timing.seconds
    checkpoint = next(tmp_path.glob("checkpoint-*"))
    written = sum(file.stat().st_size for file in checkpoint.iterdir())
    tensors = len(list(timm_vit().parameters()))
    assert 0 < written - row.checkpoint_bytes < 1000 * tensors + 50_000  # a header each, and random states
    json.dumps(row.to_json(), allow_nan=False)


def test_hours_on_a_gpu_are_the_slowest_of_what_bounds_them():
    task = toy(lambda: nn.Linear(4096, 4096, bias=False))
    task.train_data = lambda: [torch.ones(4096)] * 8192
    task.collate_train = torch.stack
    settings = Training(epochs=1, batch_size=8192, precision="bf16")
    (row,) = estimate(task, settings, ["baseline"], gpu="h100", measure=False)
    assert row.gpu == "H100"
    assert row.gpu_seconds == pytest.approx(row.flops / (UTILISATION * 989e12))
    assert 0 < row.least_gpu_seconds <= row.gpu_seconds
    (full,) = estimate(task, settings, ["baseline"], gpu="H100", utilisation=1.0, measure=False)
    assert row.least_gpu_seconds <= full.gpu_seconds < row.gpu_seconds
    small = dataclasses.replace(settings, batch_size=2)
    (row,) = estimate(task, small, ["baseline"], gpu="H100", measure=False)
    # weights, gradients and state of AdamW: 7 numbers of 4 bytes a parameter and step are read or written
    assert row.gpu_seconds == pytest.approx(4096 * (28 * 4096**2 + 2 * row.activation_bytes) / 3350e9)
    assert row.least_gpu_seconds == row.gpu_seconds
    digits = Training(epochs=2, batch_size=30, accumulation=2)
    (row,) = estimate(TinyDigits(), digits, ["baseline"], gpu="H100", measure=False)
    assert row.gpu_seconds == pytest.approx(2 * 7 * 2 * row.operations * OPERATION_SECONDS)
    assert row.least_gpu_seconds < row.gpu_seconds


@pytest.mark.slow
def test_float32_uses_no_tensor_cores_and_old_ones_have_no_bf16():
    assert GPUS["H100"].flops_a_second("no") == 67e12
    assert GPUS["T4"].flops_a_second("bf16") is None
    settings = Training(epochs=1, batch_size=30, precision="bf16")
    (row,) = estimate(TinyDigits(), settings, ["baseline"], gpu="T4", measure=False)
    assert row.gpu_seconds is None


@pytest.mark.slow
def test_average_budgets_and_tokens():
    settings = Training(epochs=30, batch_size=30, ema=0.999, seconds=1e-3, tokens=20 * 30 * 8)
    task = TinyDigits()
    task.tokens_per_sample = 8
    (row,) = estimate(task, settings, ["baseline"])
    assert (row.steps, row.samples, row.tokens) == (20, 600, 4800)
    assert row.ema_bytes == row.weight_bytes == row.gradient_bytes == 4 * row.trainable
    assert row.checkpoint_bytes == pytest.approx(4 * row.weight_bytes, abs=8 * 40), "AdamW counts its steps, too"
    assert row.measured_seconds == row.budget_seconds == 1e-3
    assert row.timing.seconds * 20 > 1e-3


@pytest.mark.slow
def test_too_large_says_what_helps(capsys):
    settings = Training(epochs=1, batch_size=64, precision="no")
    (row,) = estimate(TinyDigits(), settings, ["baseline"], gpu="RTX 3090", measure=False)
    assert row.fits
    room = GPUS["RTX 3090"].usable_bytes - row.fixed_bytes
    large = dataclasses.replace(row, activation_bytes=int(3.5 * room))
    print_estimates([large])
    printed = " ".join(capsys.readouterr().out.split())
    assert "baseline does not fit: 75.6 GB of 24 GB" in printed
    assert "--accumulation 4 (micro-batches of 16) or --precision bf16" in printed
    print_estimates([dataclasses.replace(row, weight_bytes=10**12)])
    printed = capsys.readouterr().out
    assert "--parallel fsdp2 shards them" in printed
    assert "AdamW" not in printed, "it may be another optimizer"


@pytest.mark.slow
def test_several_gpus_share_a_batch_and_with_fsdp2_the_weights():
    settings, how = Training(epochs=1, batch_size=60, precision="bf16"), {"gpu": "A100-80", "measure": False}
    (one,), (two,), (sharded,) = (
        estimate(TinyDigits(), settings, ["baseline"], **how, **more)
        for more in ({}, {"gpus": 2}, {"gpus": 2, "launch": Launch(parallel="fsdp2")})
    )
    assert (two.micro_batch, two.flops, two.fixed_bytes) == (30, one.flops, one.fixed_bytes)
    assert two.activation_bytes == pytest.approx(one.activation_bytes / 2, rel=0.05)
    assert two.gpu_hours == pytest.approx(2 * one.gpu_hours), "as many operations in each of them"
    assert 2 * sharded.fixed_bytes == pytest.approx(one.fixed_bytes, abs=1)
    with pytest.raises(ValueError, match="gpus must be at least 1 and divide the 60 samples at a time, got 7"):
        estimate(TinyDigits(), settings, ["baseline"], gpus=7)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_memory_of_blocks_that_are_computed_again(dropout):
    """What lies between the blocks, and one block; of real blocks as backward of the last one meets them."""
    task, batch = TinyDigits(dropout=dropout), torch.ones(6, 1, 8, 8)
    task.loss = classification_loss
    plain, again = (count_step(task, BASELINE, batch, gpu=False, recompute=wish) for wish in (False, True))
    model = task.build_model()
    recompute_blocks(model)
    between = held_bytes(lambda: classification_loss(model, batch), [*model.parameters(), batch])
    block, x = task.build_model().blocks[0], torch.ones(6, 17, 32, requires_grad=True)
    inside = held_bytes(lambda: block(x), [*block.parameters(), x])
    assert again.activation_bytes == pytest.approx(between + inside, rel=0.02)
    assert again.activation_bytes < plain.activation_bytes
    work = ("forward_flops", "backward_flops", "operations")
    assert [getattr(again, name) for name in work] == [getattr(plain, name) for name in work]
    assert 0.8 * plain.forward_flops < again.recomputed_flops < plain.forward_flops
    with pytest.raises(ValueError, match="Linear has no list of blocks with known attention"):
        count_step(toy(lambda: nn.Linear(7, 1)), BASELINE, torch.ones(3, 7), recompute=True)


# 10⁹ multiplications and additions of a forward pass, as published (timm's results, and the papers of each model)
PUBLISHED = {
    "vit_b": 17.6, "deit_b": 17.6, "swin_b": 15.4, "xcit_s12": 4.8, "xcit_m24": 16.2, "davit_b": 15.5, "volo_d1": 6.8
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_models_of_the_papers_take_what_is_published(name):
    recipe = recipe_class(name)()
    batch = torch.zeros(1, 3, 224, 224), torch.zeros(1, dtype=torch.int64)
    count = count_step(recipe.stand_in(), BASELINE, batch, recipe.training)
    assert count.forward_flops / 2e9 == pytest.approx(PUBLISHED[name], rel=0.02)


def test_values_in_the_data_cannot_be_foreseen():
    def loss(model, batch):
        return model(batch[batch > 0]).sum()

    with pytest.raises(ValueError, match="depends on values in the data: DynamicOutputShape"):
        count_step(toy(lambda: nn.Linear(1, 1), loss), BASELINE, torch.ones(3, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu": "K80"}, "GPU 'K80' is unknown; valid are T4, V100"),
        ({"utilisation": 0.0}, r"utilisation must be in \(0, 1\]"),
        ({"variants": ["magic"]}, "variant 'magic' is unknown"),
        ({"settings": Training(batch_size=512)}, "leaves no batch of 210 samples"),
    ],
)
def test_wrong_input(changes, words):
    arguments = {"settings": Training(batch_size=30), "variants": ["baseline"], **changes}
    with pytest.raises(ValueError, match=words):
        estimate(TinyDigits(), **arguments)


def test_names_of_gpus_are_read_kindly():
    assert [find_gpu(name) for name in ("h100", "rtx4090", "A100 80")] == ["H100", "RTX 4090", "A100-80"]


def call(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


@pytest.mark.slow
def test_the_commands_say_it_and_write_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["--epochs", "1", "--layers", "1", "--hidden-size", "16", "--heads", "4"]
    assert call("compare", "digits", *quick, "--seeds", "4", "--dry-run", "--gpu", "a100-40") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in ("baseline preconditioned", "All 8 runs", "time on one A100-40", "35% of its peak of 19.5 TFLOP/s"):
        assert words in printed
    tune = ["--tune", "1e-3", "2e-3", "4e-3", "--variants", "baseline", "--seeds", "2"]
    assert call("compare", "digits", *quick, *tune, "--dry-run") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "All 5 runs" in printed
    assert "3 of them tune the learning rate" in printed
    assert call("train", "digits", *quick, "--dry-run", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [run["variant"] for run in data["runs"]] == ["preconditioned"]
    assert data["total"]["flops"] == data["runs"][0]["flops"] > 0
    small = ["--timm-model", "test_vit", "--image-size", "32", "--batch-size", "64"]
    assert call("train", "vit_b", *small, "--gpu", "A100-80", "--gpus", "8", "--recompute", "--dry-run") == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "there is no imagenet: counted for the 1,281,167 training images", "samples 384,345,600", "GPU hours",
        "time on 8 × A100-80", "activations of 8 samples", "computed a second time",
    ):  # fmt: skip
        assert words in printed
    assert call("train", "vit_b", "--data-dir", str(tmp_path), "--dry-run") == 2, "a folder that is there is looked at"
    assert "no class folders" in capsys.readouterr().err
    assert call("train", "digits", "--gpu", "H100") == 2
    assert "add --dry-run" in capsys.readouterr().err
    assert call("train", "digits", "--dry-run", "--gpu", "K80") == 2
    assert "valid are T4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
