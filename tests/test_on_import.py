"""Something to do once a module is imported, however it comes to that."""

import importlib
import importlib.util
import sys

import pytest

from conditioned_attention._on_import import on_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The file of a module that is not imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    before = [*sys.meta_path]
    yield tmp_path / "imported_later.py"
    sys.modules.pop("imported_later", None)
    sys.meta_path[:] = before


def test_looking_for_it_is_no_import(module):
    done = []
    module.write_text("value = 1")
    on_import("imported_later", done.append)
    for _ in range(2):
        assert importlib.util.find_spec("imported_later").name == "imported_later"
    assert done == []
    found = importlib.import_module("imported_later")
    assert done == [found]
    assert found.value == 1
    assert type(found.__spec__.loader).__module__ != on_import.__module__


def test_an_import_that_failed_is_none(module):
    done, finders = [], len(sys.meta_path)
    module.write_text("raise ImportError")
    on_import("imported_later", done.append)
    with pytest.raises(ImportError):
        importlib.import_module("imported_later")
    module.write_text("value = 'another length'")
    importlib.invalidate_caches()
    assert done == [importlib.import_module("imported_later")] == [sys.modules["imported_later"]]
    assert len(sys.meta_path) == finders
