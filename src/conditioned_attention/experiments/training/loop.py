"""The training loop, on Hugging Face Accelerate.  It knows nothing about tasks beyond the interface `Task`.

A run is a generator that yields the metrics of every evaluation.  If its folder holds a checkpoint of an earlier,
interrupted process, it begins with the metrics that were yielded then.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from conditioned_attention.conversion import conditioning
from conditioned_attention.experiments.evidence.stored import TrainRow
from conditioned_attention.experiments.models.built import built_of
from conditioned_attention.experiments.tasks.task import Task, number_of
from conditioned_attention.experiments.training.batches import training_batches
from conditioned_attention.experiments.training.blocks import recompute_blocks
from conditioned_attention.experiments.training.evaluation import evaluate
from conditioned_attention.experiments.training.interruption import Stop, signals_noted
from conditioned_attention.experiments.training.launch import Launch, agree, kind
from conditioned_attention.experiments.training.optimizer import build_optimizer
from conditioned_attention.experiments.training.position import Keeper
from conditioned_attention.experiments.training.schedule import build_schedule
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.experiments.training.sharded import reshard, shard_by_blocks
from conditioned_attention.experiments.training.start import StartWeights
from conditioned_attention.experiments.training.step import Step, new_average
from conditioned_attention.experiments.training.trackers import Trackers, check_installed
from conditioned_attention.experiments.training.watching import Watch
from conditioned_attention.experiments.variants.variant import Variant, check_suited
from conditioned_attention.profiling.clock import Stopwatch
from conditioned_attention.storage.files import finite, spelt, write_bytes, write_json
from conditioned_attention.storage.folder import FINGERPRINT
from conditioned_attention.storage.json_lines import JsonLines
from conditioned_attention.storage.ownership import claim
from conditioned_attention.storage.settings import plain

_TICKS = 10_000  # steps of a schedule that follows the clock, or batches that grow


def train(
    task: Task, settings: Training, variant: Variant, seed: int, folder: Path, launch: Launch | None = None
) -> Iterator[dict[str, Any]]:
    """Trains one variant with one seed in a folder of its own; yields the metrics of every evaluation.

    The seed sets the initial weights and the order of the data, so that variants with the same seed are paired.  The
    folder gets ``data.json`` (what was trained and evaluated on, and what was left out), ``model.json`` (how the model
    was built and conditioned), ``train.jsonl`` (loss, learning rate, samples or tokens seen, gradient norm),
    ``conditions.jsonl`` (a line for each head and measurement), checkpoints, and what `Task.finish` returns.  Called
    again on the same folder, the run resumes from the newest good checkpoint, and yields again what it had yielded
    before.

    At the first Ctrl-C or SIGTERM, the run writes a checkpoint at the next optimizer step and ends.

    Yields:
        ``{"epoch", "step", "seen", "score", "train_loss", "seconds", …}``; ``seconds`` is time spent training, without
        evaluation and measurement; ``train_loss`` is the mean since the last evaluation.  None stands for a number
        that is not finite.  If the task has a test set, the last row has ``"test_score"`` and its other test metrics.
        If the weights that the run ends with were selected, it has their step as ``"selected_step"``.

    Raises:
        ValueError: the folder holds files that are not from this package, or a run of another variant, seed, setting or
            data set; or the task does not support the variant.
        FloatingPointError: the training loss is not finite.
        OSError: a checkpoint or log could not be written; earlier ones are unchanged.
        RuntimeError: no checkpoint can be read, and nothing was changed; or the processes that were launched are not
            what ``launch`` asks for.
    """
    run = _Run(task, settings, variant, seed, folder, launch or Launch())
    run.resume()
    run.record_data()
    yield from list(run.here.history)
    with run.trackers():
        if run.here.step == 0 and not run.here.evaluated:
            run.measure()
        stop = Stop()
        while not run.done or not run.here.evaluated:
            with signals_noted(stop):
                row = run.until_evaluated(stop)
            try:
                yield row
            except GeneratorExit:  # the consumer of the rows was stopped between two of them
                run.keeper.leave()
                raise
        if stop:  # it came while the last checkpoint was written
            stop.obey()


class _Stopped(Exception):
    """Raised when a stop is requested in the middle of an evaluation."""


class _Run:
    """One run: its model, its data and its progress."""

    def __init__(
        self, task: Task, settings: Training, variant: Variant, seed: int, folder: Path, launch: Launch
    ) -> None:
        from accelerate.utils import send_to_device

        variant = variant.leaving(task.left_alone)
        self.task, self.settings, self.variant, self.seed = task, settings, variant, seed
        self.folder, self.launch = folder, launch

        check_suited([variant], causal=task.causal)
        check_installed(launch.trackers)
        start = StartWeights.of(settings.start_from, variant, seed)
        self.accelerator = launch.accelerator(settings.precision, settings.accumulation)
        self.main = self.accelerator.is_main_process
        self.log = JsonLines(folder / "train.jsonl", TrainRow)
        self._load_data()
        if self.main:
            claim(folder)

        torch.manual_seed(seed)
        model = task.build_model()
        if start is None:
            variant.apply(model, task.calibration())
        else:
            start.apply(model, variant, task.calibration(), folder if self.main else None)
        self.described = {
            "built_of": built_of(model), "conditioning": conditioning(model),
            "classes": [*task.classes], "preprocessing": task.preprocessing(),
        }  # fmt: skip
        self._seed_randomness(0)
        probe = send_to_device(task.probe(), self.accelerator.device)
        watched = model, probe, folder, launch, settings.monitor_precision
        self.watch = Watch(*watched) if settings.monitor_every else None
        self._prepare(model)
        who = {"variant": variant.name, "seed": seed, "training samples": self.samples}
        who[FINGERPRINT] = task.data_fingerprint
        # what identifies this run, as plain data
        self.identity = {**who, **plain(settings), **({} if start is None else {"start": start.identity})}
        self.keeper = Keeper(
            folder, self.accelerator, launch, self.identity, steps=self.steps, accumulation=settings.accumulation
        )
        self.keeper.average, self.here = self.take.average, self.keeper.position
        self.keeper.average_name = "average" if settings.ema_beside is None else "beside"

    def _seed_randomness(self, step: int) -> None:
        """Seeds dropout: it draws the same numbers whatever the conversion drew, and different ones in each process."""
        from accelerate.utils import set_seed

        set_seed((self.seed + 1_000_003 * self.accelerator.process_index + 7_919 * step) % 2**32)

    def _load_data(self) -> None:
        """Makes the loaders, and divides the run into steps, epochs and evaluations."""
        task, settings = self.task, self.settings
        data = task.train_data()
        self.samples = number_of(data)
        self.epoch_steps = None if self.samples is None else settings.steps_of_epochs(1, self.samples)
        self.full_steps = settings.full_steps(self.samples, task.tokens_per_sample)
        self.steps = settings.steps(self.samples, task.tokens_per_sample)
        self.evaluate_steps = settings.evaluate_steps or settings.steps_of_epochs(settings.evaluate_every, self.samples)
        self.batches = training_batches(
            data, settings, seed=self.seed, collate=task.collate_train, pairs=task.mixes_pairs,
            workers=self.launch.loader_workers,
        )  # fmt: skip
        self.eval_loader = self._evaluation_loader(task.eval_data())

    def _evaluation_loader(self, data: Any) -> DataLoader[Any]:
        return DataLoader(
            data, self.settings.micro_batch, collate_fn=self.task.collate,
            num_workers=self.launch.loader_workers, generator=torch.Generator(),
        )  # fmt: skip

    def _prepare(self, model: nn.Module) -> None:
        settings = self.settings
        if kind(self.accelerator) == "fsdp2":
            wishes = {"ema": settings.ema is not None, "ema_beside": settings.ema_beside is not None}
            for name, wish in {**wishes, "select='best'": settings.select == "best"}.items():
                if wish:
                    raise ValueError(f"{name} keeps a whole copy of the weights in every process: not with fsdp2")
        average = new_average(model, settings)
        optimizer = build_optimizer(model, settings, self.task.no_weight_decay())
        by_share = settings.seconds is not None or bool(settings.ramp)
        self.ticks = _TICKS if by_share else self.steps
        if settings.schedule_per == "epoch":
            self.ticks = max(1, round(self.full_steps / settings.steps_of_epochs(1, self.samples)))
        schedule = build_schedule(optimizer, settings, self.ticks, self.steps)
        if self.launch.recompute:  # of the model that trains, not of its average
            recompute_blocks(model)
        if settings.compile:
            model.compile()
        shard_by_blocks(self.accelerator, model)
        model, optimizer, self.schedule, self.batches.loader, self.eval_loader = self.accelerator.prepare(
            model, optimizer, schedule, self.batches.loader, self.eval_loader
        )
        if average is not None:
            average = average.to(self.accelerator.device)
        after = self.variant.after_step
        self.take = Step(self.accelerator, model, optimizer, self.task.loss, settings.clip, average, after)

    @property
    def progress(self) -> float:
        """How much of the budget is used up, from 0 to 1."""
        by_samples, seconds = self.here.taken / (self.full_steps * self.settings.accumulation), self.settings.seconds
        return by_samples if seconds is None else max(by_samples, self.here.seconds / seconds)

    @property
    def epoch(self) -> float:
        """Passes over the training set so far, including a partial one; NaN for a stream without a length."""
        steps = math.nan if self.epoch_steps is None else self.epoch_steps
        return self.here.taken / (steps * self.settings.accumulation)

    @property
    def done(self) -> bool:
        return self.progress >= 1

    @property
    def due(self) -> bool:
        """Whether an evaluation is due at the current step."""
        if self.here.step == 0 and not self.settings.evaluate_first:
            return self.done
        return self.done or self.here.step % self.evaluate_steps == 0

    @property
    def _logged(self) -> bool:
        return self.here.step % self.launch.log_every == 0

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is scored, without the wrappers of several processes: with `Training.ema`, the average."""
        average = self.take.average
        if average is not None and self.settings.ema is not None:
            return average.module
        model: nn.Module = self.accelerator.unwrap_model(self.take.model)
        return model

    def until_evaluated(self, stop: Stop) -> dict[str, Any]:
        """Trains up to the next evaluation; returns its row."""
        while not self.due or self.here.evaluated:
            self.take_step()
            self.keeper.save_if_due(stop)
        row = self.evaluate(stop)
        if self.done:
            self.finish()
        self.keeper.save_if_due(stop, force=self.done)
        return row

    def take_step(self) -> None:
        """Takes one optimizer step."""
        here, began = self.here, time.perf_counter()
        left = self.full_steps * self.settings.accumulation - here.taken
        count = min(self.settings.micro_batches(self.progress), left)
        rate = self.take.optimizer.param_groups[0]["lr"]
        parts, norm = self.take(self.batches, count, here.losses)
        here.step, here.taken, here.loss_count = here.step + 1, here.taken + count, here.loss_count + count
        here.place = self.batches.place
        if self._logged or self.due:  # otherwise the work that a GPU has not done yet would not be counted anywhere
            Stopwatch(self.accelerator.device).wait()
        here.seconds += time.perf_counter() - began
        if self.settings.seconds is not None:  # one clock for all, as it decides when the run ends
            here.seconds = agree(self.accelerator, here.seconds)
        self._move_schedule()
        if self._logged:
            self._log_step(parts, norm, rate)

    def _move_schedule(self) -> None:
        # not through Accelerate's wrapper, which would hold the schedule back where fp16 skips a step
        if self.settings.schedule_per == "epoch":
            target = int(self.epoch)
        else:
            target = self.here.step if self.ticks == self.steps else round(self.progress * self.ticks)
        while self.here.tick < min(target, self.ticks):
            self.schedule.scheduler.step()
            self.here.tick += 1

    def _log_step(self, parts: dict[str, Tensor], norm: Tensor | None, rate: float) -> None:
        row: dict[str, float] = {"step": self.here.step, "seen": self.seen}
        row |= {name: self.keeper.mean(part) for name, part in parts.items()}
        row |= {"lr": rate, "seconds": self.here.seconds}
        if norm is not None:  # float() of a DTensor is, in PyTorch 2.9, the norm of one rank's share
            row["grad_norm"] = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if self.main:
            self.log.append(row)
        self.shown.log("train", row)

    def trackers(self) -> Trackers:
        """Starts the trackers, which show what is logged from now on; they get the earlier rows too."""
        name = f"{self.launch.name or type(self.task).__name__}/{self.variant.name}/seed-{self.seed}"
        self.shown = Trackers(
            self.launch.trackers, folder=self.folder, run_name=name, config=self.identity,
            resume_step=self.here.step or None, earlier={"train": self.log, "eval": self.here.history},
        )  # fmt: skip
        return self.shown

    @property
    def seen(self) -> int:
        """How many samples, or tokens, were trained on so far."""
        return self.here.taken * self.settings.micro_batch * self.task.tokens_per_sample

    def evaluate(self, stop: Stop) -> dict[str, Any]:
        """Evaluates, measures if due, and returns the row of the history."""
        here = self.here
        losses = {f"train_{name}": self.keeper.mean(loss) / here.loss_count for name, loss in here.losses.items()}
        try:
            scores = self._scores(lambda: self._evaluation_batches(stop), "dev", here.step)
        except _Stopped:  # outside the evaluation, since a checkpoint must not hold its random states
            self.keeper.save_and_stop(stop)
        row: dict[str, Any] = {"step": here.step, "seen": self.seen}
        if self.epoch_steps is not None:
            row = {"epoch": int(self.epoch) if self.epoch.is_integer() else self.epoch} | row
        row |= {"seconds": here.seconds} | losses | scores
        row |= self.measure() if self._measure_due() else {}
        if self.settings.select == "best":
            self.keeper.best.offer(scores["score"], here.step, self.evaluated_model, self.task.metric)
        if self.done:
            row |= self._ended()
        here.history.append(finite(row))  # in the form in which a checkpoint gives it back
        self.shown.log("eval", row)
        here.losses, here.loss_count = {}, 0
        return here.history[-1]

    def _evaluation_batches(self, stop: Stop) -> Iterator[Any]:
        return itertools.islice(self._until_stopped(self.eval_loader, stop), self.settings.evaluate_batches)

    def _scores(self, batches: Callable[[], Iterable[Any]], *key: object) -> dict[str, float]:
        """Returns the scores of the weights that count, and as ``ema_…`` those of an average kept beside them.

        ``batches`` starts the batches anew at each call.
        """
        average, gather = self.take.average, self.accelerator.gather_for_metrics
        if average is not None:
            self._agree_on_buffers(average)
        model = self.take.model if average is None or self.settings.ema is None else average.module
        scores = evaluate(self.task, model, batches(), gather, self.seed, *key)
        if average is not None and self.settings.ema_beside is not None:
            beside = evaluate(self.task, average.module, batches(), gather, self.seed, *key)
            scores |= {f"ema_{name}": value for name, value in beside.items()}
        return scores

    def _agree_on_buffers(self, average: nn.Module) -> None:
        """Copies the main process's buffers, as in checkpoints, to all: batch norm statistics differ by process."""
        from accelerate.utils import broadcast

        for buffer in average.buffers():
            buffer.copy_(broadcast(buffer.clone()))

    def _ended(self) -> dict[str, Any]:
        """Loads the weights that were selected, if any, and evaluates on the test set, if there is one."""
        found: dict[str, Any] = {}
        best = self.keeper.best
        if best.weights is not None:
            self.evaluated_model.load_state_dict(best.weights)
            found = {"selected_step": best.step, "selected_score": best.score}
        data = self.task.test_data()
        if data is not None:  # to its end even if a stop is requested: a checkpoint now would hold other weights
            loader = self.accelerator.prepare(self._evaluation_loader(data))
            found |= {f"test_{name}": value for name, value in self._scores(lambda: loader, "test").items()}
        return found

    def _until_stopped(self, batches: Iterable[Any], stop: Stop) -> Iterator[Any]:
        for batch in batches:
            if stop and self.accelerator.num_processes == 1:  # several would have to agree, so they finish it
                raise _Stopped
            yield batch

    def _measure_due(self) -> bool:
        if not self.settings.monitor_every:
            return False
        if self.epoch_steps is None:
            return self.here.step > 0  # at step 0 it has been measured already, apart from the evaluations
        every = max(1, round(self.settings.monitor_every * self.epoch_steps))
        before = self.here.history[-1]["step"] if self.here.history else 0
        return self.done or self.here.step // every > before // every

    def measure(self) -> dict[str, float]:
        """Measures condition numbers of every head and projection, writes them to their files, returns a summary."""
        reshard(self.evaluated_model)
        return {} if self.watch is None else self.watch.measure(self.here.step, self.evaluated_model, main=self.main)

    def finish(self) -> None:
        """Writes the files that the task makes to show the trained model."""
        model = self.evaluated_model
        model.eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for name, shown in self.task.finish(model).items():
                if self.main:
                    write_bytes(self.folder / name, spelt(shown).encode() if isinstance(shown, str) else shown)

    def record_data(self) -> None:
        """Writes what the run is trained and evaluated on, what was left out, and how its model is built."""
        if self.main:
            told = {"in_words": self.task.data_in_words(), FINGERPRINT: self.identity[FINGERPRINT]}
            write_json(self.folder / "data.json", told)
            write_json(self.folder / "model.json", self.described)

    def resume(self) -> None:
        """Loads the newest good checkpoint, if there is one, and cuts the logs back to it."""
        processes = self.keeper.resume()
        if processes not in (None, self.accelerator.num_processes):
            self._seed_randomness(self.here.step)
        self.batches.start_at(self.here.taken * self.settings.micro_batch, self.here.place)
        if self.main:
            self.log.cut_after(-1 if processes is None else self.here.step)
            if self.watch is not None:  # measured with the evaluation, which comes after the step's own checkpoint
                self.watch.cut_after(-1 if processes is None else self.here.step - (not self.here.evaluated))
