"""A run of 20 steps with a tracker: a first process kills itself after step 13, a second goes on from step 10."""

import math
import os
import random
import signal
import time

import torch

from conditioned_attention.experiments.training.trackers import Trackers, check_installed

CONFIG = {"training": {"lr": 1e-3, "clip": None}, "variant": "baseline"}
RUN = "digits/baseline/seed-0"
# Until the database has what it was sent, so that the resumed run meets it; wandb's file is still empty then.
SECONDS_TO_WRITE = {"trackio": 2}


def train_row(step):
    return {"step": step, "loss": 1 / step, "grad_norm": None if step == 7 else 2.0}


def eval_row(step):
    return {"step": step, "score": 10.0 + step}


def main(name, folder, resume):
    states = random.getstate(), torch.get_rng_state()
    begin = 10 if resume else 0
    earlier = {"train": [train_row(i) for i in range(1, begin + 1)], "eval": [eval_row(i) for i in (5, 10) if begin]}
    with Trackers(
        [name], folder=folder, run_name=RUN, config=CONFIG, resume_step=begin or None, earlier=earlier
    ) as trackers:  # fmt: skip
        for step in range(begin + 1, 21):
            trackers.log("train", train_row(step))
            if step % 5 == 0:
                trackers.log("eval", eval_row(step))
            if step == 13 and not resume:
                (thread,) = trackers._threads
                while thread.rows.qsize() or thread.busy_since < math.inf:
                    time.sleep(0.01)
                time.sleep(SECONDS_TO_WRITE.get(name, 0))
                os.kill(os.getpid(), signal.SIGKILL)
    assert random.getstate() == states[0], "a tracker drew from Python's global generator"
    assert torch.equal(torch.get_rng_state(), states[1])


def killed_and_resumed(name, folder):
    check_installed([name])  # the import is most of the time that both need
    if (child := os.fork()) == 0:
        main(name, folder, resume=False)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    time.sleep(1)  # the names of files tell seconds, and readers go by them
    main(name, folder, resume=True)
