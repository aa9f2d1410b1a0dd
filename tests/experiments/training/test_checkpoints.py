"""Checkpoints cost a stated share of the time, whatever they weigh; the share itself is in test_protocols.py."""

import time

from conditioned_attention.experiments.training import checkpoints
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.loop import train
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.variants.catalogue import VARIANTS
from conditioned_attention.storage.files import UNFINISHED
from tests.experiments.tiny import TinyDigits


def test_the_loop_keeps_the_pace(tmp_path, monkeypatch):
    seal, written = checkpoints._seal, []

    def slow(folder):
        time.sleep(0.2)
        written.append(folder.name)
        seal(folder)

    monkeypatch.setattr(checkpoints, "_seal", slow)
    settings = Training(epochs=2, batch_size=30, monitor_every=0)
    list(train(TinyDigits(), settings, VARIANTS["baseline"], 0, tmp_path, Launch(checkpoint_seconds=1e-6)))
    assert written == [f".checkpoint-{step:08d}{UNFINISHED}" for step in (1, 14)], "the first and the last of 14"
