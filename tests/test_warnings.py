"""A warning names the line of whoever called the library, from however deep inside it comes."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import conditioned_attention
from conditioned_attention import ConditionMonitor, conditioning, precondition, spectral_condition
from conditioned_attention.conversion import apply_conditioning
from conditioned_attention.experiments import compare
from conditioned_attention.preconditioner import HeadTransform
from tests.models import build, inputs

HERE = Path(__file__).name


def saturating():
    spectral_condition(build("timm_vit"), 10.0)


def masks_of_two_types():
    layer = nn.MultiheadAttention(8, 2)
    precondition(layer)
    x = torch.randn(3, 1, 8)
    layer(x, x, x, key_padding_mask=torch.zeros(1, 3, dtype=torch.bool), attn_mask=torch.zeros(3, 3))


def forgetting():
    model = build("timm_vit")
    monitor = ConditionMonitor(
        model, inputs(model)["x"] if "x" in inputs(model) else next(iter(inputs(model).values())), keep=1
    )
    monitor.measure(0)
    monitor.step(100)


def failing():
    compare(lambda variant, seed: [{"score": 1.0}] if variant.name == "baseline" else 1 / 0, seeds=1, progress=False)


@pytest.mark.parametrize("call", [saturating, masks_of_two_types, forgetting, failing])
def test_it_names_the_callers_line(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    ours = [found for found in caught if getattr(found.message, "ours", False)]
    assert len(ours) == 1
    first = call.__code__.co_firstlineno
    lines = range(first, first + 8)
    assert (Path(ours[0].filename).name, ours[0].lineno in lines) == (HERE, True)


def test_a_package_beside_ours_is_not_ours():
    """Whose folder's name begins as that of the library does."""
    code = "from conditioned_attention._warnings import warn\nwarn('said')"
    beside = str(Path(conditioned_attention.__file__).parent) + "_tools/module.py"
    with pytest.warns(UserWarning, match="said") as caught:
        exec(compile(code, beside, "exec"), {})
    assert caught[0].filename == beside


def test_a_transform_of_ones_own_is_known_by_its_kind():
    """What a model was given is recorded and done again, without a list that would have to know the class."""
    from dataclasses import dataclass
    from typing import ClassVar

    @dataclass(frozen=True)
    class Halved(HeadTransform):
        factor: float = 0.5
        kind: ClassVar[str] = "halved, of a test"

        def __call__(self, output, weights=None):
            return self.factor * output

    try:
        from conditioned_attention.conversion import convert

        first, second = build("timm_vit"), build("timm_vit")
        convert(first, Halved(0.25))
        apply_conditioning(second, conditioning(first))
        assert conditioning(second) == conditioning(first)
        assert conditioning(second)["transforms"][0]["factor"] == 0.25
    finally:
        del HeadTransform.kinds["halved, of a test"]
    with pytest.raises(ValueError, match=r"kind='halved, of a test' is unknown; valid are .*'row_norm'"):
        apply_conditioning(build("timm_vit"), conditioning(first))
    assert not {"bound", "recording", "reading weights", "looking"} & HeadTransform.kinds.keys()
