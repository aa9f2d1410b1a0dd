"""What a converted model survives, for every way in which heads are reached; `docs/survival.md` is this as a table."""

import copy
import io
import json
import os
import pickle
import sys
import threading
from contextlib import nullcontext, suppress
from tempfile import TemporaryDirectory
from types import MethodType

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from conditioned_attention import apply_conditioning, conditioning, precondition, restore
from conditioned_attention.sites.projections import as_matrix
from tests.conversion import ranks, survival_table
from tests.conversion.survivors import (
    SURVIVORS,
    assert_close,
    assert_conditioned,
    assert_gradients,
    assert_plain,
    build,
    convert,
    converted,
    gradients,
    inputs,
    loss_of,
    oracle,
    output,
    run,
    truth,
)
from tests.processes import Forked


def deep_copied(name):
    model = copy.deepcopy(converted(name))
    assert_conditioned(model, name)
    restore(model)
    assert_plain(model, name)


def pickled(name):
    model = pickle.loads(pickle.dumps(converted(name)))
    assert_conditioned(model, name)
    restore(model)
    assert_plain(model, name)


def state_dict_saved(name):
    file = io.BytesIO()
    torch.save(converted(name).state_dict(), file)
    file.seek(0)
    model = build(name)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    model.load_state_dict(torch.load(file))
    assert_plain(model, name)
    convert(model, name)
    assert_conditioned(model, name)


def errors_elsewhere(folder, quick):
    """What two other processes find wrong, thing by thing and model by model; of the quick suite, or of the others.

    They start once: test processes beside this one wait for what they write.
    """
    names = [name for name in SURVIVORS if (name in _ELSEWHERE) == quick]
    file = folder / f"ranks-{quick}.json"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            models = file.with_suffix(".pt")
            torch.save({name: converted(name) for name in names}, models)
            processes = Forked(file.with_suffix(".txt"), ranks.main, str(models), str(file), names)
            assert processes.wait(300) == 0, processes.said.read_text()[-3000:]
    return json.loads(file.read_text())


class Wrapped(nn.Module):
    """A module whose output is a tensor, whatever the model's is."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **kwargs):
        return output(self.model, **kwargs)


def compiled(name):
    torch.compiler.reset()
    assert_conditioned(torch.compile(converted(name), fullgraph=True, backend="aot_eager"), name)


def compiled_first(name):
    torch.compiler.reset()
    model = build(name)
    compiled_model = torch.compile(model, fullgraph=True, backend="eager")  # half the time; `compiled` has the other
    assert_plain(compiled_model, name)
    convert(model, name)
    assert_conditioned(compiled_model, name)
    restore(model)
    assert_plain(compiled_model, name)


def exported(name, strict=False):
    program = torch.export.export(Wrapped(converted(name)), (), inputs(name), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_close(torch.export.load(file).module()(**inputs(name)), truth(name)[0])


def exported_strictly(name):
    if name == _OWN and torch.__version__ < (2, 14):
        pytest.skip("Dynamo of PyTorch 2.9 takes no keyword of an nn.Sequential; 2.14 does, between them nobody looked")
    exported(name, strict=True)


def close_enough(ours, name):
    """Rounded it differs far less from the conditioned model than that differs from the plain one."""
    result, _, plain = truth(name)
    assert (ours - result).norm() < 0.2 * (plain - result).norm()


def autocast(name):
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = run(converted(name), name), run(build(name), name)
    assert ours.dtype == plain.dtype
    close_enough(ours, name)


def checkpointed(name, use_reentrant=True):
    model = converted(name)
    for path in SURVIVORS[name].blocks:
        block = model.get_submodule(path)
        block.forward = _checkpointed(block.forward, use_reentrant)
    assert_conditioned(model, name)


def _checkpointed(forward, use_reentrant):
    def checkpointed_forward(*args, **kwargs):
        args = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_leaf else x for x in args]
        return checkpoint(lambda *x: forward(*x, **kwargs), *args, use_reentrant=use_reentrant)

    return checkpointed_forward


def checkpointed_without_reentry(name):
    checkpointed(name, use_reentrant=False)


def functional_call(name):
    """With other parameters than the model's own."""
    model, plain = converted(name), build(name)
    others = {key: 1.1 * value.detach() for key, value in model.named_parameters()}
    plain.load_state_dict(others, strict=False)
    with oracle(plain, name):
        expected = run(plain, name)
    ours = output(lambda **kwargs: torch.func.functional_call(model, others, (), kwargs), **inputs(name))
    assert_close(ours, expected)
    assert_conditioned(model, name)


def quantized(name):
    model = quantize_dynamic(converted(name), {nn.Linear}, torch.qint8)
    assert any("quantized" in type(m).__module__ for m in model.modules())
    close_enough(run(model, name), name)


def quantized_and_restored(name):
    model = quantize_dynamic(converted(name), {nn.Linear}, torch.qint8)
    with suppress(RuntimeError):  # it need not run to be restored
        run(model, name)
    restore(model)
    if SURVIVORS[name].change == "precondition":
        assert (run(model, name) == run(quantize_dynamic(build(name), {nn.Linear}, torch.qint8), name)).all()
    else:  # corrected projections are left as they are
        result, _, plain = truth(name)
        assert (run(model, name) - plain).norm() < 0.2 * (plain - result).norm()


def in_threads(name):
    """Every thread gets, and learns from, what one alone would."""
    model, results = converted(name), []

    def work():
        for _ in range(5):
            result = run(model, name)
            results.append((result.detach(), torch.autograd.grad(loss_of(result), first)[0]))

    first, expected = next(iter(model.named_parameters()))[1], truth(name)
    before, workers = sys.getswitchinterval(), [threading.Thread(target=work) for _ in range(3)]
    sys.setswitchinterval(1e-6)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert len(results) == 15
    gradient = expected[1][next(iter(model.named_parameters()))[0]]
    for result, ours in results:
        assert_close(result, expected[0])
        assert_gradients({"first": ours}, {"first": gradient})


def adapted(model, targets, **options):
    torch.manual_seed(2)
    return get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **options))


def dora_on_qkv(name):
    """An adapter that multiplies W by a number a row."""
    targets = SURVIVORS[name].qkv
    plain = adapted(build(name), targets, use_dora=True).merge_and_unload()
    with oracle(plain, name):
        expected = run(plain, name)
    assert (expected - truth(name)[0]).norm() > 0.01 * expected.norm(), "adapters without effect"
    wrapped = adapted(converted(name), targets, use_dora=True)
    assert_close(run(wrapped, name), expected)
    assert_close(run(wrapped.merge_and_unload(), name), expected)


def adapted_truth(name, targets):
    """The output of the plain model with the adapters merged, under the oracle, and the gradients of the adapters.

    Of ``W + s · B A`` they follow from those of W; torchvision's Swin would not even call an adapter.
    """
    wrapped = adapted(build(name), targets)
    adapters = {n: m for n, m in wrapped.base_model.model.named_modules() if hasattr(m, "lora_A")}
    factors = {
        n: (m.lora_A["default"].weight, m.lora_B["default"].weight, m.scaling["default"]) for n, m in adapters.items()
    }
    plain = wrapped.merge_and_unload().requires_grad_()
    with oracle(plain, name):
        result = run(plain, name)
        loss_of(result).backward()
    expected = {}
    for path, (a, b, scale) in factors.items():
        module = plain.get_submodule(path.replace(".base_layer", ""))
        weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
        gradient = as_matrix(module, weight.grad)
        expected[f"{path}.lora_A.default.weight"] = scale * b.T @ gradient
        expected[f"{path}.lora_B.default.weight"] = scale * gradient @ a.T
    assert (result - truth(name)[0]).norm() > 0.01 * result.norm(), "adapters without effect"
    return result.detach(), {key: value.detach() for key, value in expected.items()}


def check_adapted(wrapped, name, targets):
    result, expected = adapted_truth(name, targets)
    ours = run(wrapped, name)
    found = gradients(wrapped, ours) if ours.requires_grad else {}
    merged = wrapped.merge_and_unload()
    assert conditioning(merged) == conditioning(converted(name))
    assert_close(run(merged, name), result)
    restore(merged)
    with oracle(merged, name):
        assert_close(run(merged, name), result)
    assert found, "the model does not call its adapters"
    assert_close(ours, result)
    assert_gradients(found, expected)


def converted_then_adapted(name, targets):
    check_adapted(adapted(converted(name), targets), name, targets)


def adapted_then_converted(name, targets):
    wrapped = adapted(build(name), targets)
    convert(wrapped, name)
    check_adapted(wrapped, name, targets)


def attention_of(model, name):
    return model.get_submodule(SURVIVORS[name].attention)


def hooked_by_accelerate(name):
    model = converted(name)
    add_hook_to_module(attention_of(model, name), ModelHook())
    assert_conditioned(model, name)
    restore(model)
    assert_plain(model, name)
    remove_hook_from_module(attention_of(model, name))
    assert_plain(model, name)
    convert(model, name)
    assert_conditioned(model, name)


def hooked_by_accelerate_first(name):
    model = build(name)
    add_hook_to_module(attention_of(model, name), ModelHook())
    convert(model, name)
    assert_conditioned(model, name)
    copied = copy.deepcopy(model)
    restore(copied)
    assert_plain(copied, name)
    remove_hook_from_module(attention_of(model, name))  # leaves the method in the instance's __dict__
    model = pickle.loads(pickle.dumps(model))
    assert_conditioned(model, name)
    restore(model)
    assert_plain(model, name)


def compiled_method(name):
    torch.compiler.reset()
    model = converted(name)
    attention = attention_of(model, name)
    attention.forward = torch.compile(attention.forward, backend="eager")
    assert_conditioned(model, name)
    restore(model)
    assert_plain(model, name)
    convert(model, name)
    assert_conditioned(model, name)


def compiled_method_first(name):
    torch.compiler.reset()
    model = build(name)
    attention = attention_of(model, name)
    attention.forward = torch.compile(attention.forward, backend="eager")
    assert_plain(model, name)
    convert(model, name)
    assert_conditioned(model, name)
    restore(model)
    assert_plain(model, name)


def put_another_forward(model, name):
    """One that computes the same, of which nobody can know that it does."""
    attention, known = attention_of(model, name), type(attention_of(build(name), name)).forward
    attention.forward = MethodType(lambda self, *args, **kwargs: known(self, *args, **kwargs), attention)


def another_forward(name):
    model = converted(name)
    assert_conditioned(model, name)
    put_another_forward(model, name)
    try:
        assert_conditioned(model, name)
    finally:
        restore(model)
        assert_plain(model, name)


def another_forward_first(name):
    model = build(name)
    put_another_forward(model, name)
    assert_plain(model, name)
    convert(model, name)
    assert_conditioned(model, name)


def lora_on_qkv(name):
    converted_then_adapted(name, SURVIVORS[name].qkv)


def lora_on_qkv_first(name):
    adapted_then_converted(name, SURVIVORS[name].qkv)


def lora_on_the_output(name):
    converted_then_adapted(name, SURVIVORS[name].proj)


def lora_on_the_output_first(name):
    adapted_then_converted(name, SURVIVORS[name].proj)


def recorded(name):
    """A converted model, and what tells `apply_conditioning` how: its guard, or where it can have none its record."""
    model = converted(name)
    if SURVIVORS[name].change == "precondition":
        precondition(model, guard=True)
        return model, model.state_dict()
    return model, conditioning(model)


def averaged(name):
    model, _ = recorded(name)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9999), use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    state, loaded = average.module.state_dict(), build(name)
    integers = {key: value for key, value in model.state_dict().items() if not value.is_floating_point()}
    state.update(integers)  # AveragedModel rounds the averages of Swin's indices down, converted or not
    apply_conditioning(loaded, state if SURVIVORS[name].change == "precondition" else conditioning(average.module))
    loaded.load_state_dict(state)
    assert_conditioned(loaded, name)
    model.load_state_dict(state)
    assert_conditioned(model, name)


def on_meta(name):
    model, data = recorded(name)
    with torch.device("meta"):
        loaded = SURVIVORS[name].build().eval()
    apply_conditioning(loaded, data)
    loaded.load_state_dict(model.state_dict(), assign=True)
    for module, plain in zip(loaded.modules(), model.modules()):
        for key in module._non_persistent_buffers_set:  # which no state_dict brings
            module._buffers[key] = plain._buffers[key]
    if hasattr(loaded, "tie_weights"):  # assign=True has untied them
        loaded.tie_weights()
    assert_conditioned(loaded.requires_grad_(), name)


def saved_by_distributed_checkpoint(name):
    model, data = recorded(name)
    loaded = build(name)
    for parameter in loaded.parameters():
        nn.init.ones_(parameter)
    apply_conditioning(loaded, data)
    with TemporaryDirectory() as folder:
        dcp.save(model.state_dict(), checkpoint_id=folder)
        state = loaded.state_dict()
        dcp.load(state, checkpoint_id=folder)
    loaded.load_state_dict(state)
    assert_conditioned(loaded, name)


def change_places(model, name):
    """The two blocks of a model."""
    places = [
        (model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in SURVIVORS[name].blocks
    ]
    (first, one), (second, two) = places
    first._modules[one], second._modules[two] = second._modules[two], first._modules[one]
    return model


def rearranged(name):
    """The record follows a module that has moved since it was converted."""
    model, _ = recorded(name)
    restore(model.get_submodule(SURVIVORS[name].blocks[1]))
    change_places(model, name)
    loaded, state = change_places(build(name), name), model.state_dict()
    apply_conditioning(loaded, state if SURVIVORS[name].change == "precondition" else conditioning(model))
    loaded.load_state_dict(state)
    assert (run(loaded, name) == run(model, name)).all()
    plain = change_places(build(name), name)
    assert (run(plain, name) - run(model, name)).norm() > 0.01 * run(plain, name).norm()


def wrapped_for_checkpointing(name):
    model = build(name)
    inside = [model.get_submodule(path) for path in SURVIVORS[name].blocks]
    apply_activation_checkpointing(model, check_fn=lambda module: any(module is block for block in inside))
    convert(model, name)
    loaded = build(name)
    apply_conditioning(loaded, conditioning(model))
    loaded.load_state_dict(model.state_dict())
    assert_conditioned(loaded, name)
    assert_close(run(model, name), truth(name)[0])


def adapter_alone(name):
    """Put on the plain model again, and that converted as the adapter's config says."""
    torch.manual_seed(2)
    options = {"target_modules": SURVIVORS[name].qkv, "init_lora_weights": False, "task_type": "FEATURE_EXTRACTION"}
    wrapped = get_peft_model(converted(name), LoraConfig(r=2, **options)).eval()
    with TemporaryDirectory() as folder:
        wrapped.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(build(name), folder).eval()
    apply_conditioning(loaded)
    assert_close(run(loaded.get_base_model(), name), run(wrapped.get_base_model(), name))


THINGS = {
    "copy.deepcopy": deep_copied,
    "pickle": pickled,
    "state_dict saved, loaded into a plain model, converted again": state_dict_saved,
    ranks.LOADED: None,  # by the other processes, as `ranks.THINGS`
    "torch.compile(fullgraph=True), forward and backward": compiled,
    "conversion, and restore, after the first compiled call": compiled_first,
    "torch.export(strict=False), save, load": exported,
    "torch.export(strict=True), save, load": exported_strictly,
    "autocast to bfloat16": autocast,
    "activation checkpointing, reentrant": checkpointed,
    "activation checkpointing, not reentrant": checkpointed_without_reentry,
    "torch.func.functional_call": functional_call,
    "accelerate's hooks on the attention of a converted model; restore": hooked_by_accelerate,
    "accelerate's hooks, then conversion; copies; hooks taken off; restore": hooked_by_accelerate_first,
    "torch.compile of the attention's forward in a converted model; restore": compiled_method,
    "torch.compile of the attention's forward, then conversion; restore": compiled_method_first,
    "another forward (MethodType) on the attention of a converted model": another_forward,
    "another forward (MethodType), then conversion": another_forward_first,
    "LoRA (PEFT) on q, k, v of a converted model; merge": lora_on_qkv,
    "LoRA on q, k, v, then conversion; merge": lora_on_qkv_first,
    "LoRA on the output projection of a converted model; merge": lora_on_the_output,
    "LoRA on the output projection, then conversion; merge": lora_on_the_output_first,
    "LoRA saved alone, loaded onto the plain model, `apply_conditioning`": adapter_alone,
    "averages of weights and buffers (AveragedModel), loaded into a plain and into a converted model": averaged,
    "built on the meta device, `apply_conditioning`, filled with assign=True": on_meta,
    "saved and loaded by torch.distributed.checkpoint": saved_by_distributed_checkpoint,
    "a converted block changes places with a plain one; its record": rearranged,
    "checkpoint_wrapper on every block, then conversion; its record": wrapped_for_checkpointing,
    "DoRA (PEFT) on q, k, v of a converted model; merge": dora_on_qkv,
    "three threads that call one model": in_threads,
    "quantize_dynamic of a converted model": quantized,
    "restore of a quantized model": quantized_and_restored,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """One for all test processes."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "survival"
    path.mkdir(exist_ok=True)
    return path


def expectation(thing, name):
    """What survives raises nothing; what does not says why."""
    _, error = survival_table.NO.get((thing, name), ("", None))
    return nullcontext() if error is None else pytest.raises(Exception, match=error)


# Tracing takes a second or two a model: in the quick suite every mechanism goes through some of it, and one layout of
# a weight for all, as the compiler sees C only when it has been added.
_SWAP, _OWN, _BERT = "class swap: timm ViT", "hook on the output: a class of one's own", "interface: BERT"
_FUSED, _POLAR, _LLAMA = "fused weight: timm ViT", "polar: timm ViT", "three weights: Llama"
_READ = "weight that is read: torchvision Swin"
QUICK = {
    compiled: {_SWAP, _OWN, _FUSED},
    compiled_first: {_SWAP, _POLAR},
    exported: {"hook: timm CAFormer", _BERT, _READ, _POLAR},
    exported_strictly: {_SWAP, _OWN},
    compiled_method: {_SWAP, _OWN, _BERT, _FUSED},
    compiled_method_first: {_SWAP, _OWN, _BERT, _FUSED},
    quantized_and_restored: {*SURVIVORS},  # not traced: torch.ao moves hooks as it likes
}


# Adapters, records and copies do not care which of two models of a mechanism it is.
_SECOND = {"class swap: torchvision Swin", "interface: Llama", "hook: timm CAFormer"}

# In other processes, where what counts is how heads are reached and that q, k and v are one weight or three
_ELSEWHERE = [_SWAP, _OWN, _BERT, _FUSED, _LLAMA]


def cells():
    """Every cell of the table that is tested in this process."""
    for thing, function in THINGS.items():
        for name in SURVIVORS if function is not None else ():
            slow = name not in QUICK[function] if function in QUICK else name in _SECOND
            quick = () if function in (compiled_method, quantized_and_restored) else pytest.mark.one_in(12)
            yield pytest.param(thing, name, marks=pytest.mark.slow if slow else quick)


@pytest.mark.parametrize(("thing", "name"), cells())
def test_survives(thing, name):
    with expectation(thing, name):
        THINGS[thing](name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _ELSEWHERE else pytest.mark.slow) for name in SURVIVORS]
)
@pytest.mark.parametrize("thing", [ranks.LOADED, *ranks.THINGS])
def test_survives_in_two_other_processes(thing, name, folder):
    with expectation(thing, name):
        error = errors_elsewhere(folder, name in _ELSEWHERE)[thing][name]
        if error:
            raise RuntimeError(error)


def test_the_table_in_the_documentation_is_this_one():
    things = [*THINGS, *ranks.THINGS]
    assert {thing for thing, _ in survival_table.NO} <= set(things)
    assert survival_table.FILE.read_text() == survival_table.page(things), (
        "run python -m tests.conversion.survival_table"
    )
