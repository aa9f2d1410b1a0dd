"""The monitor beside everything that models are trained with."""

import copy
import csv
import json
import math
import pickle
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from torch import nn

from conditioned_attention import ConditionMonitor, condition_number, precondition
from conditioned_attention.measure.monitoring import monitor
from conditioned_attention.measure.monitoring.alarms import Alarm, Unchanged
from conditioned_attention.measure.monitoring.records import HeadRecord, summary
from conditioned_attention.measure.monitoring.sinks import read_records
from conditioned_attention.measure.probing.attention_weights import attention_weights_spectra
from conditioned_attention.measure.probing.probe import head_outputs
from tests.measure import ranks
from tests.models import build, images, inputs
from tests.processes import Forked


def monitor_of(model=None, batch=None, **options):
    return ConditionMonitor(model or build("timm_vit"), images() if batch is None else batch, **options)


def places(records):
    return [(record.layer, record.head) for record in records]


def test_layers_heads_and_samples_may_be_chosen():
    whole = monitor_of().measure(0)
    assert monitor_of(layers=[1]).measure(0) == whole[4:]
    assert monitor_of(layers=1).measure(0) == whole[:4]
    assert places(monitor_of(layers=2, heads=2).measure(0)) == [(0, 0), (0, 3), (1, 0), (1, 3)]
    assert monitor_of(heads=[2]).measure(0) == [whole[2], whole[6]]
    batch = torch.cat([images(), images() * 2 + 1, images() * 0.3])
    first, _, _, last = (call.before[:, 0] for call in head_outputs(build("timm_vit"), batch)[:1] for _ in range(4))
    chosen = monitor_of(batch=batch, samples=2).measure(0)[0]
    assert chosen.samples == 2
    assert chosen.kappa_before == condition_number(torch.stack([first[0], last[5]])).min().item()


def test_what_is_not_there_cannot_be_chosen():
    with pytest.raises(ValueError, match=r"layers=\[2\]: the forward pass has 2 attention calls"):
        monitor_of(layers=[2]).measure(0)
    with pytest.raises(ValueError, match=r"heads=\[1, 4\]: layer 0 has 4 heads"):
        monitor_of(heads=[1, 4]).measure(0)
    for options, error, words in (
        ({"layers": 0}, ValueError, "layers must be at least 1"),
        ({"heads": "all"}, TypeError, "heads must be a number, a sequence of positions or None, got str"),
        ({"heads": [-1]}, ValueError, "heads must be positions from 0"),
        ({"layers": []}, ValueError, "at least one"),
        ({"samples": 0}, ValueError, "samples must be at least 1"),
        ({"keep": 2.0}, TypeError, "keep must be an integer number of measurements"),
        ({"dtype": torch.bfloat16}, ValueError, "dtype must be torch.float32, torch.float64 or None"),
    ):
        with pytest.raises(error, match=words):
            monitor_of(**options)


def test_records_hold_more_than_kappa():
    model = build("timm_vit")
    record = monitor_of(model, samples=1).measure(3)[5]
    before = head_outputs(model, images())[1].before[0, 1].double()
    sigma = torch.linalg.svdvals(before)
    norms = before.norm(dim=-1)
    assert (record.rows, record.columns, record.samples) == (17, 8, 1)
    assert record.sigma_max_before == pytest.approx(sigma[0].item())
    assert record.sigma_min_before == pytest.approx(sigma[-1].item())
    assert record.stable_rank_before == pytest.approx((sigma.square().sum() / sigma[0] ** 2).item())
    assert record.row_spread_before == pytest.approx((norms.max() / norms.min()).item())
    assert record.row_spread_after == pytest.approx(1, rel=1e-5)
    assert record.resolution == pytest.approx(1 / (17 * 2.0**-23))


def test_a_half_precision_model_is_measured_in_float32():
    model = build("timm_vit").bfloat16()
    weights = [p.data_ptr() for p in model.parameters()]
    exact = copy.deepcopy(model).float()
    found = monitor_of(model, batch=images().bfloat16()).measure(0)
    assert found == monitor_of(exact, batch=images().bfloat16().float()).measure(0)
    assert [p.data_ptr() for p in model.parameters()] == weights
    assert model(images().bfloat16()).dtype == torch.bfloat16
    rounded = monitor_of(model, batch=images().bfloat16(), dtype=None).measure(0)
    assert all(math.isinf(record.kappa) for record in rounded)
    assert rounded[0].resolution < 10


def test_float64_tells_apart_what_is_at_the_floor_of_float32():
    model = build("timm_vit")
    for block in model.blocks:  # values that are one direction and a little of the others
        weight = block.attn.qkv.weight.data[64:]
        weight.copy_(torch.outer(weight[:, 0], weight[0]) + 1e-8 * weight)
        block.attn.qkv.bias.data.zero_()
    single, double = monitor_of(model).measure(0), monitor_of(model, dtype=torch.float64).measure(0)
    assert all(math.isinf(record.kappa) for record in single)
    assert all(1e5 < record.kappa < 1e12 for record in double)
    assert next(model.parameters()).dtype == torch.float32
    exact = copy.deepcopy(model).double()
    assert monitor_of(exact, batch=images().double()).measure(0) == double


@pytest.mark.one_in(2)
@pytest.mark.parametrize("how", ["submodule", "in place"])
def test_compiled_parts_run_as_they_were_written_and_are_not_compiled_again(how):
    plain = monitor_of().measure(0)
    model = build("timm_vit")
    torch._dynamo.reset()
    if how == "submodule":
        model.blocks[1] = torch.compile(model.blocks[1], backend="aot_eager")
    else:
        model.compile(backend="aot_eager")
    model(images()).sum().backward()
    monitor = monitor_of(model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        measured = monitor.measure(0)
        model(images()).sum().backward()
        assert monitor.measure(0) == measured
    names = {record.module: record.module.replace("_orig_mod.", "") for record in measured}
    assert [vars(r) | {"module": names[r.module]} for r in measured] == [vars(record) for record in plain]


def test_under_autocast_and_gradient_checkpointing():
    plain = monitor_of().measure(0)
    model = build("timm_vit").train()
    model.set_grad_checkpointing()
    monitor = monitor_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images()).float().sum()
        assert monitor.measure(0) == plain
        loss.backward()
    assert len(monitor.records) == 8, "recomputation measures nothing"


def test_memory_is_bounded():
    monitor = monitor_of(keep=2)
    monitor.measure(0)
    monitor.measure(1)
    with pytest.warns(RuntimeWarning, match="only the last 2 measurements are kept: give a path"):
        monitor.measure(2)
    assert {record.step for record in monitor.records} == {1, 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.measure(3)
        nothing = monitor_of(keep=0)
        assert nothing.measure(0)
        nothing.measure(1)
    assert nothing.records == []


def test_no_two_layers_are_held_at_one_time(monkeypatch):
    held, alive = [], weakref.WeakSet()
    original = monitor.head_records

    def noted(*args):
        alive.update(tensor for tensor in args if isinstance(tensor, torch.Tensor))
        held.append(len(alive))
        return original(*args)

    monkeypatch.setattr(monitor, "head_records", noted)
    monitor_of().measure(0)
    assert held == [2, 2], "one layer's, before and after"


class Talkative(nn.Module):
    """Counts how often its end is reached."""

    def __init__(self):
        super().__init__()
        self.body, self.ended = build("timm_vit"), []

    def forward(self, x):
        result = self.body(x)
        self.ended.append(1)
        return result


def test_the_forward_pass_ends_with_the_last_attention():
    model = Talkative().train()
    plain = monitor_of().measure(0)
    monitor = monitor_of(model)
    for ended in (1, 1, 1):  # the first time the calls are counted
        assert [r.kappa for r in monitor.measure(0)] == [r.kappa for r in plain]
        assert len(model.ended) == ended
    assert model.training
    monitor_of(model, layers=[0]).measure(0)
    assert len(model.ended) == 1
    model.body.norm.register_forward_hook(lambda *_: None)  # somebody waits for an end
    monitor.measure(0)
    assert len(model.ended) == 2
    model(images()).sum().backward()


class Exploding(nn.Module):
    """The second image comes out as NaN."""

    def __init__(self):
        super().__init__()
        self.body = build("timm_vit")

    def forward(self, x):
        return self.body(x / torch.tensor([1.0, 0.0]).view(2, 1, 1, 1) * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))


def test_alarms_name_what_happened(tmp_path):
    alarms: list[Alarm] = []
    bounds = {"max_kappa": 5.0, "max_scale": 0.5, "on_alarm": alarms.append}
    model = Exploding()
    records = monitor_of(model, **bounds).measure(7)
    kinds = {alarm.kind: alarm for alarm in alarms}
    assert set(kinds) == {"not finite", "kappa", "scale"}
    assert all(record.not_finite == 0.5 and math.isfinite(record.sigma_max_before) for record in records)
    assert len(kinds["not finite"].heads) == 8
    above = sorted((record.kappa for record in records if record.kappa > 5), reverse=True)
    assert [record.kappa for record in kinds["kappa"].heads] == above
    worst = kinds["kappa"].heads[0]
    expected = f"step 7: κ is above 5 in {len(above)} of 8 heads, most in {worst.module}, head {worst.head}"
    assert str(kinds["kappa"]).startswith(expected)
    path = tmp_path / "log.jsonl"
    with pytest.warns(RuntimeWarning, match="head outputs are not finite in 8 of 8 heads"):
        monitor_of(model, path=path, max_kappa=1e30).measure(0)

    def stop(alarm):
        raise StopIteration(str(alarm))

    with pytest.raises(StopIteration, match="not finite"):
        monitor_of(model, path=path, on_alarm=stop).measure(1)
    assert {record.step for record in read_records(path)} == {0, 1}, "written before the alarm"


def test_a_head_of_nothing_but_nan_is_not_taken_for_the_floor():
    model = build("timm_vit")
    model.blocks[1].attn.qkv.bias.data.fill_(math.nan)
    with pytest.warns(RuntimeWarning, match="not finite in 4 of 8 heads"):
        records = monitor_of(model).measure(0)
    assert math.isnan(records[4].kappa)
    assert math.isnan(HeadRecord.from_json(json.loads(json.dumps(records[4].to_json()))).kappa)
    assert records[4].floor_before == 0
    assert summary(records)["log10_kappa"] == pytest.approx(summary(records[:4])["log10_kappa"])
    assert math.isnan(summary(records[4:])["log10_kappa"])


@pytest.mark.parametrize("name", ["log.jsonl", "log.parquet"])
def test_files_are_read_back(tmp_path, name):
    monitor = monitor_of(path=tmp_path / name, every=2)
    for step in range(5):
        monitor.step(step)
    assert read_records(tmp_path / name) == monitor.records
    with warnings.catch_warnings(action="error"):
        monitor.measure(0)
        monitor_of(path=tmp_path / name).measure(4)  # a run that went on from an earlier checkpoint
    assert read_records(tmp_path / name) == monitor.records[:-8]
    with pytest.warns(RuntimeWarning, match="holds records of an earlier training"):
        monitor_of(path=tmp_path / name).measure(0)


def test_parquet_is_what_pandas_reads(tmp_path):
    import pandas

    monitor = monitor_of(path=tmp_path / "log.parquet")
    monitor.measure(0)
    monitor.measure(100)
    table = pandas.read_parquet(tmp_path / "log.parquet")
    assert len(table) == 16
    assert table.groupby("step").kappa_before.max().loc[100] == max(r.kappa_before for r in monitor.records)
    (tmp_path / "file.parquet").write_text("")
    with pytest.raises(ValueError, match="is a file; Parquet records are a folder"):
        monitor_of(path=tmp_path / "file.parquet")


def test_parquet_that_begins_at_the_floor_is_read_back(tmp_path):
    """κ is None in all rows of the first file, and a number in the second."""
    model = build("timm_vit")
    bias, weight = (block.clone() for block in (model.blocks[0].attn.qkv.bias, model.blocks[0].attn.qkv.weight))
    monitor = monitor_of(model, path=tmp_path / "log.parquet", layers=[0])
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[64:], model.blocks[0].attn.qkv.bias[64:] = 0.0, 0.0  # W_V
        assert math.isinf(monitor.measure(0)[0].kappa)
        model.blocks[0].attn.qkv.weight.copy_(weight), model.blocks[0].attn.qkv.bias.copy_(bias)
    assert math.isfinite(monitor.measure(1)[0].kappa)
    assert read_records(tmp_path / "log.parquet") == monitor.records


def test_half_a_line_of_a_killed_process_costs_that_line_only(tmp_path):
    path = tmp_path / "log.jsonl"
    monitor = monitor_of(path=path)
    monitor.measure(0)
    path.write_bytes(path.read_bytes()[:-40])
    monitor.measure(1)
    assert read_records(path) == monitor.records[:7] + monitor.records[8:]
    path.write_text('{"steps": 1}\n')
    with pytest.raises(ValueError, match="holds a line that is no record of a head"):
        read_records(path)
    with pytest.raises(FileNotFoundError, match="there are no records at"):
        read_records(tmp_path / "other")


def test_older_files_are_read():
    old = monitor_of().measure(0)[0].to_json()
    old = dict(list(old.items())[:12])
    assert math.isnan(HeadRecord.from_json(old).sigma_max_before)


def test_several_processes(tmp_path):
    """Each measures what one process would, and the first one alone writes."""
    alone = ConditionMonitor(ranks.model(), images()).measure(0)
    processes = Forked(tmp_path / "said.txt", ranks.main, tmp_path)
    assert processes.wait() == 0, processes.said.read_text()
    ddp, first, fsdp2 = (read_records(tmp_path / f"{name}.jsonl") for name in ("ddp", "first", "fsdp2"))
    assert len((tmp_path / "ddp.jsonl").read_text().splitlines()) == 16, "8 heads, 2 steps, one process"
    assert ddp[:8] == first == alone
    for found, expected in zip(fsdp2, [*alone, *ddp[8:]]):
        assert found.kappa == pytest.approx(expected.kappa, rel=1e-3)
        assert found.conditioned is expected.conditioned


def test_attention_weights_of_chosen_layers():
    model = build("timm_vit")
    seen = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    model(images())
    for fused in (False, True):
        for block in model.blocks:
            block.attn.fused_attn = fused
        (found,) = attention_weights_spectra(model, images(), [1])
        assert (found.layer, found.module) == (1, "blocks.1.attn")
        exact = torch.linalg.svdvals(seen[1].double())
        torch.testing.assert_close(found.spectrum.singular_values, exact, rtol=1e-5, atol=1e-6)
    precondition(model)
    (after,) = attention_weights_spectra(model, images(), [0])
    exact = torch.linalg.svdvals(seen[0].double())
    torch.testing.assert_close(after.spectrum.singular_values, exact, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"layers=\[2\]: the forward pass has 2 attention calls"):
        attention_weights_spectra(model, images(), [0, 2])


def test_attention_weights_with_masks():
    model = build("bert")
    model.set_attn_implementation("eager")
    attentions = model(**inputs(model), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    found = attention_weights_spectra(model, inputs(model), [0, 1])
    for layer, weights in zip(found, attentions):
        torch.testing.assert_close(
            layer.spectrum.singular_values, torch.linalg.svdvals(weights.detach().double()), rtol=1e-5, atol=1e-7
        )


class Steps:
    """What a tracker was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, numbers, step):
        self.seen.append((step, numbers["log10_kappa"]))


def test_numbers_for_a_tracker():
    steps = Steps()
    monitor = monitor_of(log=steps, every=10)
    for step in range(11):
        monitor.step(step)
    middle = summary(monitor.records[:8])["log10_kappa"]
    assert steps.seen == [(0, middle), (10, middle)]
    assert middle == pytest.approx(math.log10(sorted(r.kappa for r in monitor.records[:8])[3]), abs=0.2)


def trainer_of(folder, **options):
    """Hugging Face's Trainer of a small ViT with dropout, six steps."""
    from transformers import Trainer, TrainingArguments

    data = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(images().repeat(6, 1, 1, 1))]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=6, per_device_train_batch_size=2, report_to=[], logging_steps=2, use_cpu=True
    )
    return Trainer(args=arguments, train_dataset=data, **options)


def with_dropout():
    model = build("vit")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return model


def test_in_hugging_faces_trainer(tmp_path):
    """Its numbers are logged; the trainer's own, weights and random numbers are those of a run without it."""
    trainers, chances = [], []
    for watched in (False, True):
        trainer = trainer_of(tmp_path, model=with_dropout())
        if watched:
            monitor = ConditionMonitor(trainer.model, {"pixel_values": images()}, every=4)
            trainer.add_callback(monitor.trainer_callback(trainer))
        trainer.train()
        trainers.append(trainer)
        chances.append(torch.get_rng_state())
    assert sorted({record.step for record in monitor.records}) == [0, 4, 6]
    plain, watched = (trainer.state.log_history for trainer in trainers)
    logged = {row["step"]: row["conditioning/log10_kappa"] for row in watched if "conditioning/log10_kappa" in row}
    assert logged == {
        step: summary([r for r in monitor.records if r.step == step])["log10_kappa"] for step in (0, 4, 6)
    }
    own = [[(row["step"], row["loss"]) for row in rows if "loss" in row] for rows in (plain, watched)]
    assert own[0] == own[1]
    assert [step for step, _ in own[0]] == [2, 4, 6]
    assert torch.equal(*chances)
    assert all(map(torch.equal, *(trainer.model.state_dict().values() for trainer in trainers)))
    assert trainers[1].model.training == trainers[0].model.training
    assert all(p.requires_grad for p in trainers[1].model.parameters())


def test_another_model_than_the_trained_one_is_noticed(tmp_path):
    trainer = trainer_of(tmp_path, model_init=with_dropout)
    monitor = ConditionMonitor(trainer.model, {"pixel_values": images()})
    trainer.add_callback(monitor.trainer_callback(trainer))
    with pytest.raises(ValueError, match="A Trainer with model_init builds another model"):
        trainer.train()
    part = trainer_of(tmp_path, model=with_dropout())
    monitor = ConditionMonitor(part.model.vit, {"pixel_values": images()}, every=6)
    part.add_callback(monitor.trainer_callback())
    part.train()
    assert monitor.records


@pytest.mark.parametrize("trains", [True, False])
def test_a_model_that_does_not_train_is_noticed_in_any_loop(trains):
    """By its numbers: whoever calls `step` may have a copy of the model, and nothing else tells."""
    model = build("timm_vit")
    monitor = monitor_of(model if trains else copy.deepcopy(model), every=3)
    said = pytest.warns(RuntimeWarning, match="step 3: all numbers are those of step 0, to the last bit")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings() if trains else said as caught:
        warnings.simplefilter("error" if trains else "always")
        for step in range(10):
            monitor.step(step)
            model(images()).square().mean().backward()
            optimizer.step()
    assert trains or len(caught) == 1, "once"


def test_a_first_step_at_a_rate_of_0_is_no_reason_to_warn():
    watched = Unchanged()
    records = monitor_of().measure(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched.look(records)
        watched.look([replace(record, step=1) for record in records])
        watched.look([replace(record, step=2, kappa_before=1.0) for record in records])
    with pytest.warns(RuntimeWarning, match="step 9: all numbers are those of step 2"):
        watched.look([replace(record, step=9, kappa_before=1.0) for record in records])


@pytest.mark.parametrize("copied", [lambda thing: pickle.loads(pickle.dumps(thing)), copy.deepcopy])
def test_callbacks_go_to_other_processes_with_their_model(tmp_path, copied):
    model = build("timm_vit")
    monitor = monitor_of(model, path=tmp_path / "log.jsonl")
    for make in (monitor.trainer_callback, monitor.lightning_callback):
        there, callback = copied((model, make()))
        assert callback.due.monitor.model is there, "the one that trains"
        assert callback.due.monitor.model is not model
        callback.due.check(there)
        assert callback.due.numbers(4, last=True)
        assert isinstance(callback, type(make()))
    assert len(read_records(tmp_path / "log.jsonl")) == 8


class Lit(lightning.LightningModule):
    """At the top of this file, so that other processes find it."""

    def __init__(self):
        super().__init__()
        self.body = build("timm_vit")

    def forward(self, x):
        return self.body(x)

    def training_step(self, batch):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.slow
def test_in_processes_that_lightning_starts(tmp_path):
    """``ddp_spawn`` pickles the trainer, with everything that hangs on it."""
    module, path = Lit(), tmp_path / "log.jsonl"
    trainer = lightning.Trainer(
        max_steps=3, accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, enable_checkpointing=False,
        callbacks=[ConditionMonitor(module, images(), every=2, path=path).lightning_callback()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(images().repeat(4, 1, 1, 1)))
    records = read_records(path)
    assert [record.step for record in records] == [0] * 8 + [2] * 8 + [3] * 8, "of the first process alone"
    assert records[0].kappa != records[8].kappa, "it trains"


def test_in_lightning(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    module = Lit()
    monitor = ConditionMonitor(module.body, images(), every=2)
    logger = CSVLogger(tmp_path)
    trainer = lightning.Trainer(
        max_steps=3, accumulate_grad_batches=2, accelerator="cpu", logger=logger, enable_checkpointing=False,
        callbacks=[monitor.lightning_callback()], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(images().repeat(4, 1, 1, 1)))
    assert sorted({record.step for record in monitor.records}) == [0, 2, 3]
    other = ConditionMonitor(build("timm_vit"), images())
    with pytest.raises(ValueError, match="is not part of the Lit that is trained"):
        lightning.Trainer(callbacks=[other.lightning_callback()], accelerator="cpu", logger=False).fit(
            module, torch.utils.data.DataLoader(images())
        )
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    kept = {int(row["step"]): float(row["conditioning/log10_kappa"]) for row in rows}
    assert set(kept) == {0, 2, 3}
    assert kept[3] == pytest.approx(summary([r for r in monitor.records if r.step == 3])["log10_kappa"])


def test_a_parquet_file_of_a_killed_process_is_passed_by(tmp_path):
    import pandas

    monitor = monitor_of(path=tmp_path / "log.parquet")
    monitor.measure(0)
    (tmp_path / "log.parquet" / ".step-000000000100.parquet").write_bytes(b"PAR1 half of it")
    assert read_records(tmp_path / "log.parquet") == monitor.records
    assert len(pandas.read_parquet(tmp_path / "log.parquet")) == 8
