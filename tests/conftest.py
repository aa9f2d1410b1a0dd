"""Set-up of the tests: uninitialised memory poisoned, one thread per worker."""

import gc
import math
import os

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


def pytest_configure():
    gc.disable()  # while the tests are collected
    torch.manual_seed(0)  # of what modules draw as they are imported


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector need not walk a million objects again and again."""
    gc.enable()
    gc.collect()
    gc.freeze()
