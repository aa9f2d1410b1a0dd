"""What a checkpoint remembers."""

import json

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM, BertModel

from conditioned_attention import apply_conditioning, conditioning, precondition, restore
from conditioned_attention.controls import HeadRMSNorm
from conditioned_attention.conversion import convert
from tests.models import build, output


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "clip", "vit"])
def test_hugging_face_checkpoint_remembers(name, tmp_path):
    model = build(name)
    precondition(model, eps=1e-4)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert not torch.allclose(output(loaded), output(model), rtol=1e-3)
    apply_conditioning(loaded)
    assert (output(loaded) == output(model)).all()
    assert conditioning(loaded) == conditioning(model)
    restore(loaded)
    loaded.save_pretrained(tmp_path / "plain")
    assert "conditioned_attention" not in (tmp_path / "plain" / "config.json").read_text()


def test_base_model_of_a_checkpoint_with_a_head(tmp_path):
    model = build("bert")
    precondition(model)
    model.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path)
    apply_conditioning(loaded)
    assert [e["modules"] for e in conditioning(loaded)["transforms"]] == [
        ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"]
    ]


def test_a_wrapper_around_a_hugging_face_model(tmp_path):
    wrapper = nn.ModuleDict({"backbone": build("vit")})
    precondition(wrapper)
    wrapper["backbone"].save_pretrained(tmp_path)
    loaded = type(wrapper["backbone"]).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert (output(loaded) == output(wrapper["backbone"])).all()


def test_plain_state_dict_with_the_data_beside_it():
    model, loaded = build("timm_vit"), build("timm_vit")
    precondition(model, include="blocks.0.*", gradient="through")
    convert(model, HeadRMSNorm(), include="blocks.1.*")
    data = json.loads(json.dumps(conditioning(model)))
    assert [entry["kind"] for entry in data["transforms"]] == ["row_norm", "head_rmsnorm"]
    apply_conditioning(loaded, data)
    assert (output(loaded) == output(model)).all()
    apply_conditioning(loaded, data)  # again: nothing to do
    restore(loaded)
    assert conditioning(loaded) == {"format": 1, "transforms": []}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "no config in the model remembers"),
        ({"format": 2, "transforms": []}, "format 1"),
        ([], "format 1"),
        ({"format": 1, "transforms": ["row_norm"]}, "format 1"),
        ({"format": 1, "transforms": [{"kind": "row_norm"}]}, "format 1"),
        ({"format": 1, "transforms": [{"kind": "row_norm", "modules": "blocks"}]}, "format 1"),
        ({"format": 1, "transforms": [{"kind": "head_rmsnorm", "eps": -1.0, "modules": []}]}, "eps must be positive"),
        (
            {
                "format": 1,
                "transforms": [
                    {"kind": "row_norm", "modules": ["blocks.0.attn"]},
                    {"kind": "head_rmsnorm", "modules": ["blocks.0.attn"]},
                ],
            },
            "already converted",
        ),
        ({"format": 1, "transforms": [{"kind": "magic", "modules": []}]}, "kind='magic' is unknown"),
        ({"format": 1, "transforms": [{"kind": "row_norm", "gain": 1, "modules": []}]}, "options of 'row_norm'"),
        ({"format": 1, "transforms": [{"kind": "row_norm", "modules": ["blocks.9.attn"]}]}, "'blocks.9.attn'"),
    ],
)
def test_wrong_data(data, words):
    with pytest.raises(ValueError, match=words):
        apply_conditioning(build("timm_vit"), data)


def test_a_conflict_changes_nothing():
    model, other = build("timm_vit"), build("timm_vit")
    precondition(model)
    precondition(other, include="blocks.1.*", eps=1e-3)
    before = output(other)
    with pytest.raises(ValueError, match="already converted"):
        apply_conditioning(other, conditioning(model))
    assert (output(other) == before).all()


def test_a_compiled_model_is_remembered_under_its_own_names(tmp_path):
    compiled = torch.compile(build("bert"), backend="aot_eager")
    precondition(compiled)
    compiled.save_pretrained(tmp_path)
    loaded = BertForMaskedLM.from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert (output(loaded) == output(compiled._orig_mod)).all()


def test_one_tower_of_a_model(tmp_path):
    """The inner model's own config remembers; the outer model finds it there."""
    model = build("clip")
    precondition(model.text_model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    apply_conditioning(loaded)
    assert len(conditioning(loaded)["transforms"][0]["modules"]) == 2
    assert (output(loaded) == output(model)).all()


def test_not_a_module():
    for function in (conditioning, apply_conditioning, restore):
        with pytest.raises(TypeError, match="model must be a torch"):
            function(3)
