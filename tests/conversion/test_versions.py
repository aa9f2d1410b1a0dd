"""Versions of other libraries: refused outside of the range that the tables describe."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from conditioned_attention import precondition, restore
from conditioned_attention.sites import versions
from conditioned_attention.sites.transformers import marker
from tests.models import build

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


@pytest.fixture
def installed(monkeypatch):
    """Says that other versions are installed."""
    pretended = {}
    monkeypatch.setattr(versions, "version", pretended.__getitem__)
    versions.unsupported.cache_clear()
    yield pretended
    versions.unsupported.cache_clear()


@pytest.mark.parametrize(
    ("package", "model", "version", "refused"),
    [
        ("timm", "timm_vit", "0.9.16", True),
        ("timm", "timm_vit", "1.0.19", True),
        ("timm", "timm_vit", "1.0.20", False),
        ("timm", "timm_vit", "1.0.99.dev0", False),
        ("timm", "timm_vit", "1.1", True),
        ("transformers", "bert", "4.57.6", True),
        ("transformers", "bert", "5.23.0", False),
        ("transformers", "bert", "6.0.0rc1", True),
    ],
)
def test_range(package, model, version, refused, installed):
    installed[package] = version
    model = build(model)
    if not refused:
        assert len(precondition(model).converted) == 2
        return
    with pytest.raises(ValueError, match=rf"{package} {re.escape(version)} is installed, and conversion knows"):
        precondition(model)


def test_a_converted_model_can_be_restored_under_another_version(installed):
    """As after unpickling it elsewhere."""
    installed["timm"] = "1.0.31"
    model = build("timm_vit")
    precondition(model)
    installed["timm"] = "2.0"
    versions.unsupported.cache_clear()
    assert len(restore(model).names("restored")) == 2


def test_the_package_asks_for_the_same(installed):
    for package in ("timm", "transformers"):
        first, end = versions.SUPPORTED[package]
        assert f'"{package}>={first},<{end}"' in PYPROJECT


def test_the_library_imports_beside_versions_without_an_attention_interface():
    marker._register("AttentionInterface", ModuleType("transformers.modeling_utils"))
