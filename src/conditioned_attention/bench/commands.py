"""``conditioned-attention bench``: each benchmark with its options; all but one go on where an earlier call stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, subcommand

from conditioned_attention._streams import meanwhile
from conditioned_attention.bench import tables
from conditioned_attention.bench.blocks import BlocksSettings, find_blocks_cases, run_blocks
from conditioned_attention.bench.cases import find_cases
from conditioned_attention.bench.gpu import GpuSettings, run_gpu
from conditioned_attention.bench.gpu_tables import ABOUT, gpu_page
from conditioned_attention.bench.models import QUICK, find_models
from conditioned_attention.bench.monitor import MonitorSettings, run_monitor
from conditioned_attention.bench.operator import OperatorSettings, run_operator
from conditioned_attention.bench.plots import write_plot
from conditioned_attention.bench.spectra import SpectraSettings, run_spectra
from conditioned_attention.bench.step import StepSettings, run_step
from conditioned_attention.environment import environment
from conditioned_attention.storage.files import write_json


def _shown(measured: Iterable[Any], show: Callable[[Any], None], folder: Path, name: str) -> int:
    """Prints each result as it comes, and in the end where they all are; returns the exit status, 0."""
    meanwhile(f"measuring; what is finished goes to {folder / name}.csv")
    for rows in measured:
        show(rows)
    picture = f", {write_plot(folder / 'operator.csv').name}" if name == "operator" else ""
    print(f"{folder}: {name}.csv, {name}.json{picture}")
    return 0


@dataclass(frozen=True)
class BenchOperator:
    """Measure attention on tensors: ours, plain, and what a user would write, in turns on the same inputs.

    Contestants that compute wrong results are not timed.  Finished cases are kept, and a second call with the same
    settings measures only the others.
    """

    settings: OperatorSettings = field(default_factory=OperatorSettings)
    cases: tuple[str, ...] = ()
    """Names of cases; default all.  `conditioned-attention list cases` lists them."""
    output: Path = Path("runs/bench")
    """Folder for operator.csv, operator.json and operator.png."""

    def __call__(self) -> int:
        measured = run_operator(find_cases(self.cases), self.settings, self.output)
        return _shown(measured, tables.print_case, self.output, "operator")


@dataclass(frozen=True)
class BenchStep:
    """Measure whole training steps of a plain model and of the same model converted.

    Finished models are kept, and a second call with the same settings measures only the others.
    """

    settings: StepSettings = field(default_factory=StepSettings)
    models: tuple[str, ...] = QUICK
    """Names of models; `conditioned-attention list models` lists all of them."""
    output: Path = Path("runs/bench")
    """Folder for step.csv and step.json."""

    def __call__(self) -> int:
        measured = run_step(find_models(self.models), self.settings, self.output)
        return _shown(measured, tables.print_steps, self.output, "step")


@dataclass(frozen=True)
class BenchGpu:
    """Test the kernels on a GPU, then measure attention and a training step on it, within minutes.

    Finished measurements are kept, and a second call with the same settings measures only the rest.
    """

    settings: GpuSettings = field(default_factory=GpuSettings)
    output: Path = Path("results/bench/gpu")
    """Folder for operator.csv, step.csv, gpu.json, tests.txt and summary.md."""

    def __call__(self) -> int:
        return run_gpu(self.settings, self.output)


@dataclass(frozen=True)
class BenchBlocks:
    """Time other block shapes of the Triton kernels against those in their table, on a GPU.

    Finished cases are kept, and a second call with the same settings measures only the others.
    """

    settings: BlocksSettings = field(default_factory=BlocksSettings)
    cases: tuple[str, ...] = ()
    """Names of GPU cases; default four of them.  An unknown name lists all."""
    output: Path = Path("runs/bench")
    """Folder for blocks.csv and blocks.json."""

    def __call__(self) -> int:
        measured = run_blocks(find_blocks_cases(self.cases), self.settings, self.output)
        return _shown(measured, tables.print_blocks, self.output, "blocks")


@dataclass(frozen=True)
class BenchMonitor:
    """Measure how much training time and memory the condition monitor takes.

    Finished models are kept, and a second call with the same settings measures only the others.
    """

    settings: MonitorSettings = field(default_factory=MonitorSettings)
    models: tuple[str, ...] = ("vit_b", "gpt2")
    """Names of models; `conditioned-attention list models` lists them."""
    output: Path = Path("runs/bench")
    """Folder for monitor.csv and monitor.json."""

    def __call__(self) -> int:
        measured = run_monitor(find_models(self.models), self.settings, self.output)
        return _shown(measured, partial(tables.print_monitor, every=self.settings.every), self.output, "monitor")


@dataclass(frozen=True)
class BenchSpectra:
    """Measure how long each way of computing singular values takes, and how far off its κ is."""

    settings: SpectraSettings = field(default_factory=SpectraSettings)
    output: Path = Path("runs/bench")
    """Folder for spectra.csv and spectra.json."""

    def __call__(self) -> int:
        measured = run_spectra(self.settings, self.output)
        return _shown(measured, tables.print_spectra, self.output, "spectra")


@dataclass(frozen=True)
class BenchLoop:
    """Measure the overhead of this library's training loop over a bare PyTorch loop, side by side."""

    rounds: int = 12
    """Rounds of measurement; in each, both loops have a turn."""
    threads: int = 1
    """PyTorch threads."""
    output: Path | None = None
    """Also write the numbers to this JSON file."""

    def __call__(self) -> int:
        from conditioned_attention.bench.loop import measure_loop  # it trains a recipe, and imports that

        result = measure_loop(self.rounds, self.threads)
        print(json.dumps(result, indent=2))
        if self.output is not None:
            write_json(self.output, {**result, "environment": environment()})
        return 0


@dataclass(frozen=True)
class BenchTable:
    """Print the tables of docs/cost.md from the files of `bench operator` and `bench step`, or `bench gpu`'s page."""

    folder: Annotated[Path, Positional]
    """Folder with operator.csv, step.csv or both, or with gpu.json."""
    into: Path | None = None
    """Write the tables between the marks in this Markdown file instead of printing them."""

    def __call__(self) -> int:
        text = (gpu_page if (self.folder / ABOUT).exists() else tables.readme_text)(self.folder)
        if text == tables.NOT_MEASURED:
            raise FileNotFoundError(f"{self.folder} holds neither operator.csv nor step.csv")
        if self.into is None:
            print(text)
        else:
            tables.put_between_marks(self.into, text)
        return 0


@dataclass(frozen=True)
class Bench:
    """Measure what conditioning costs, always as ratios within one run."""

    what: (
        Annotated[BenchOperator, subcommand("operator")]
        | Annotated[BenchStep, subcommand("step")]
        | Annotated[BenchGpu, subcommand("gpu")]
        | Annotated[BenchBlocks, subcommand("blocks")]
        | Annotated[BenchMonitor, subcommand("monitor")]
        | Annotated[BenchSpectra, subcommand("spectra")]
        | Annotated[BenchLoop, subcommand("loop")]
        | Annotated[BenchTable, subcommand("table")]
    )

    def __call__(self) -> int:
        return self.what()
