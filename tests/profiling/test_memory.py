"""Bytes that are known beforehand."""

import gc
import weakref

import torch

from conditioned_attention.profiling.memory import held_bytes, peak_bytes

CPU = torch.device("cpu")


def test_views_count_once_and_known_tensors_not_at_all():
    x, w = torch.ones(8, 4, requires_grad=True), torch.ones(4, 4, requires_grad=True)

    def forward():
        hidden = x.exp()  # keeps its result
        return (hidden @ w).sum() + hidden.view(4, 8).square().sum()  # both keep it again

    assert held_bytes(forward, [x, w]) == 4 * 8 * 4
    assert held_bytes(forward, [x]) == 4 * 8 * 4 + 4 * 4 * 4


def test_nothing_outlives_the_measurement():
    seen = []

    def forward():
        output = torch.ones(10, requires_grad=True).exp()
        seen.append(weakref.ref(output))
        return output

    gc.disable()  # a cycle would only go with the collector, and graphs of models are large
    try:
        assert held_bytes(forward) == 40
        assert seen[0]() is None
    finally:
        gc.enable()


def test_peak_is_of_what_lives_at_a_time():
    def one_after_the_other():
        for _ in range(5):
            torch.ones(1 << 16)

    def together():
        return [torch.ones(1 << 16) for _ in range(5)]

    assert peak_bytes(one_after_the_other, CPU) == 1 << 18
    assert peak_bytes(together, CPU) == 5 << 18


def test_peak_on_cuda_is_of_what_is_asked_for_and_not_of_what_libraries_keep(monkeypatch):
    """An allocator that is made up: the first call leaves a workspace behind, and every block is rounded up."""
    now = {"requested_bytes.all.current": 1000, "requested_bytes.all.peak": 5000, "allocated_bytes.all.peak": 9999}

    def ask(size):
        now["requested_bytes.all.current"] += size
        now["requested_bytes.all.peak"] = max(now["requested_bytes.all.peak"], now["requested_bytes.all.current"])

    def work():
        if now["requested_bytes.all.current"] == 1000:
            ask(300)  # stays
        ask(70)
        ask(-70)

    def reset():
        now["requested_bytes.all.peak"] = now["requested_bytes.all.current"]

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: dict(now))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    assert peak_bytes(work, torch.device("cuda")) == 70
