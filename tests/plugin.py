"""Set-up of the tests: uninitialised memory poisoned, one thread per worker, few cases of the long families."""

import gc
import logging
import math
import os
import zlib
from collections import defaultdict

# Two workers share two cores: NumPy's threads and those of processes of tests would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.triton_interpreter import prepare

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
prepare()  # torchvision imports triton
torch.set_num_threads(1)

with torch.device("meta"):
    torch.empty(0)  # now torch has listed what makes tensors, before torch.empty is replaced below
_empty = torch.empty
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():  # torch.manual_seed would keep where it was called from: 1.6 ms
        device.manual_seed_all = lambda seed: None
os.fsync = lambda descriptor: None  # no test pulls the plug, and what a killed process has written stays


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(monkeypatch):
    """Whoever reads memory it did not write meets NaN."""

    def poisoned(*args, **kwargs):
        tensor = _empty(*args, **kwargs)
        if tensor.is_floating_point() and not tensor.is_meta:
            tensor.detach().fill_(math.nan)
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Logged(logging.Handler):
    """The records that were logged while it was there."""

    def __init__(self):
        super().__init__()
        self.records = []
        self.emit = self.records.append

    @property
    def text(self):
        return "\n".join(record.getMessage() for record in self.records)


@pytest.fixture
def caplog():
    """In place of pytest's own, which walks over all loggers of the libraries, 800 and more, six times a test."""
    logged = Logged()
    logging.getLogger().addHandler(logged)
    yield logged
    logging.getLogger().removeHandler(logged)


def pytest_configure():
    from conditioned_attention.measure.plots import files  # after prepare()

    files.png.__defaults__ = (100,)  # dots per inch: a quarter of the pixels that users get takes less time to encode
    gc.disable()  # while the tests are collected
    torch.manual_seed(0)  # of what modules draw as they are imported


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What looks at pages in a browser is slow; of a family with the mark `one_in(n)`, all but one case in n are.

    Which ones depends on their names alone, so that it is the same today and tomorrow and in each worker, and so that
    a family that varies two things has cases of each.  On a GPU all cases run, and so does what is `slow_on_a_cpu`.
    Files that start processes come first: then they are one worker's, and their server imports once.
    """
    items.sort(key=lambda item: vars(item.module).keys().isdisjoint({"Forked", "FORKS", "run_alone"}))
    gpu, families = torch.cuda.is_available(), defaultdict(list)
    for item in items:
        if "chromium" in item.fixturenames or (item.get_closest_marker("slow_on_a_cpu") and not gpu):
            item.add_marker(pytest.mark.slow)
        if (mark := item.get_closest_marker("one_in")) and not item.get_closest_marker("slow"):
            families[item.path, item.originalname, *mark.args].append(item)
    for (_, _, n), cases in families.items() if not gpu else ():
        cases.sort(key=lambda case: zlib.crc32(case.name.encode()))
        for case in cases[-(-len(cases) // n) :]:
            case.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector need not walk a million objects again and again."""
    gc.enable()
    gc.collect()
    gc.freeze()
