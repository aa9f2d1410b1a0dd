"""Random models in random sequences of what people do to models, held against the outside oracle.

    python -m tests.conversion.hunt SECONDS [SEED]

After every step the model computes what the plain one computes under the oracle if it is converted, and what the plain
one computes if it is not; at the end its gradients are those of that one, too.  An operation may be refused by an error
of the library's own, which must leave the model as it was; a model that refuses to run so ends its sequence; and what
fails in the same way on a model that is never converted does not count.  What is found is printed with the sequence
that leads to it.
"""

import copy
import io
import random
import tempfile
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from torch import nn

import conditioned_attention
from conditioned_attention import apply_conditioning, conditioning, fold, precondition, restore, spectral_condition
from tests.conversion.by_hand import STRENGTH, rectangular_identity, weights_by_hand
from tests.hunting import hunt
from tests.models import MODELS, build, inputs, output, weigh
from tests.oracle import NormalisedHeads

LIBRARY = str(Path(conditioned_attention.__file__).parent)
REFUSALS = (ValueError, TypeError, RuntimeError, NotImplementedError)
HUGGING_FACE = {"bert", "gpt2", "llama", "t5", "clip", "vit"}


class Wrapped(nn.Module):
    """A model inside a module of the user's own."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class Situation:
    """A model, whether it is to compute with C and with W + λ I, and a plain twin of the same weights."""

    def __init__(self, name):
        self.name, self.model, self.twin = name, build(name), build(name)
        self.conditioned = self.corrected = False

    @property
    def core(self):
        """The model without what has been put around it."""
        model = self.model
        while True:
            if isinstance(model, Wrapped):
                model = model.model
            elif hasattr(model, "_orig_mod"):
                model = model._orig_mod
            elif type(model).__name__ == "PeftModel":
                model = model.base_model.model
            else:
                return model

    @property
    def should(self):
        return f"it should be with C: {self.conditioned}, λ: {self.corrected}"

    def outputs(self):
        """(what comes out, what should, the model of which it should)."""
        plain = weights_by_hand(copy.deepcopy(self.twin), rectangular_identity) if self.corrected else self.twin
        with NormalisedHeads() if self.conditioned else nullcontext():
            expected = output(plain)
        found = self.model(**inputs(self.twin))
        return found if isinstance(found, torch.Tensor) else found[0], expected, plain

    @torch.no_grad()
    def check(self):
        """Raises AssertionError if the model is not what it should be."""
        found, expected, _ = self.outputs()
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"off by {error:.2g}; {self.should}"
        kinds = {each["kind"] for each in conditioning(self.core)["transforms"] if not each.get("folded")}
        said = "row_norm" in kinds, "spectral" in kinds
        assert said == (self.conditioned, self.corrected), f"the record says {said}; {self.should}"

    def check_gradients(self):
        """Raises AssertionError if the parameters that both have do not get the gradients that they should."""
        ours = {name: p for name, p in self.core.named_parameters() if p.requires_grad and not p.is_meta}
        names = [name for name, _ in self.twin.named_parameters() if name in ours]
        if not names:
            return
        found, expected, plain = self.outputs()
        theirs = dict(plain.named_parameters())
        gradients = [
            torch.autograd.grad(weigh(result), [of[name] for name in names], allow_unused=True)
            for result, of in ((found, ours), (expected, theirs))
        ]
        for name, one, other in zip(names, *gradients):
            assert (one is None) == (other is None), f"{name} has one gradient of two; {self.should}"
            largest = 0 if other is None else other.abs().max()
            assert other is None or (one - other).abs().max() <= 1e-3 * largest + 1e-5, f"d {name}; {self.should}"


def convert(s):
    precondition(s.model, strict=True)
    s.conditioned = True


def convert_with_guard(s):
    precondition(s.model, guard=True)
    s.conditioned = True


def correct(s):
    spectral_condition(s.model, STRENGTH)
    s.corrected = True


def folded(s):
    fold(s.model)
    if s.corrected:
        weights_by_hand(s.twin, rectangular_identity)
    s.corrected = False


def take_back(s):
    restore(s.model)
    s.conditioned = s.corrected = False


def deepcopied(s):
    s.model = copy.deepcopy(s.model)


def pickled(s):
    file = io.BytesIO()
    torch.save(s.model, file)
    file.seek(0)
    s.model = torch.load(file, weights_only=False)


def loaded_into_a_fresh_one(s):
    fresh = build(s.name)
    state, record = s.core.state_dict(), conditioning(s.core)
    if any("conditioned_attention" in key for key in state):
        apply_conditioning(fresh, state)
    elif s.conditioned or s.corrected:
        apply_conditioning(fresh, record)
    fresh.load_state_dict(state)
    s.model = fresh


def saved_and_loaded(s):
    with tempfile.TemporaryDirectory() as folder:
        s.core.save_pretrained(folder)
        loaded = type(s.core).from_pretrained(folder).eval()
    if s.conditioned or s.corrected:
        apply_conditioning(loaded)
    s.model = loaded


def compiled(s):
    torch.compiler.reset()
    s.model = torch.compile(s.core, backend="eager")


def averaged(s):
    s.model = torch.optim.swa_utils.AveragedModel(s.core).module


def wrapped(s):
    s.model = Wrapped(s.model)


def hooked(s):
    from accelerate.hooks import ModelHook, add_hook_to_module

    for module in list(s.core.modules()):
        add_hook_to_module(module, ModelHook())


def unhooked(s):
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(s.core, recurse=True)


def offloaded(s):
    from accelerate import cpu_offload

    cpu_offload(s.core, execution_device=torch.device("cpu"))


def frozen(s):
    s.model.requires_grad_(False)


def trained(s):
    """The same change of the weights here and there."""
    twin = dict(s.twin.named_parameters())
    with torch.no_grad():
        for name, parameter in s.core.named_parameters():
            if name in twin:
                change = 0.05 * torch.randn_like(parameter)
                parameter += change
                twin[name] += change


def with_lora(s):
    from peft import LoraConfig, get_peft_model

    s.model = get_peft_model(s.core, LoraConfig(target_modules="all-linear"))


def merged(s):
    if type(s.model).__name__ == "PeftModel":
        s.model = s.model.merge_and_unload()


def checkpointing(s):
    s.core.gradient_checkpointing_enable()


ALWAYS = (
    convert, convert_with_guard, correct, folded, take_back, deepcopied, pickled, loaded_into_a_fresh_one, compiled,
    averaged, wrapped, hooked, unhooked, frozen, trained,
)  # fmt: skip
OF_HUGGING_FACE = (saved_and_loaded, with_lora, merged, checkpointing, offloaded)


def step(situation, operation):
    """One operation, and a look at what it leaves: "done", "refused", or "stopped" if the model will not run."""
    before = situation.conditioned, situation.corrected, situation.model
    refused = _refuses(operation, situation)
    if refused:
        situation.conditioned, situation.corrected, situation.model = before
    if _refuses(Situation.check, situation):
        assert not refused, "what was refused has changed the model: it refuses to run"
        return "stopped"
    return "refused" if refused else "done"


def _refuses(function, situation):
    """Whether the library raises an error of its own; other errors pass."""
    try:
        function(situation)
    except REFUSALS as error:
        if not _is_of_the_library(error):
            raise
        return True
    return False


def _is_of_the_library(error):
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename.startswith(LIBRARY)


def draw(seed):
    """A model, and three operations one after the other, behind what is often a conversion."""
    chance = random.Random(seed)
    name = chance.choice(list(MODELS))
    choices = ALWAYS + (OF_HUGGING_FACE if name in HUGGING_FACE else ())
    first = chance.choice((convert, convert_with_guard, correct, chance.choice(choices)))
    return name, [first, *chance.choices(choices, k=3)]


def follow(name, operations, seed=0):
    """What became of each operation; raises, with the sequence in a note, if they leave a wrong model."""
    torch.manual_seed(seed)
    situation, outcomes = Situation(name), []
    operations = [*operations, Situation.check_gradients]
    for count, operation in enumerate(operations, 1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcomes.append(step(situation, operation))
        except Exception as error:
            if _fails_when_plain(name, operations[:count], type(error)):
                return [*outcomes, "fails when plain"]
            error.add_note(f"seed {seed}, {name}: {', '.join(o.__name__ for o in operations[:count])}")
            raise
        if outcomes[-1] == "stopped":
            return outcomes
    return outcomes[:-1]


def _fails_when_plain(name, operations, error):
    situation = Situation(name)
    try:
        for operation in operations:
            if operation not in (convert, convert_with_guard, correct, folded, take_back):
                operation(situation)
                situation.check()
    except error:
        return True
    return False


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    hunt(lambda seed: follow(*draw(seed), seed))
