"""The commands of ``conditioned-attention``, each in a few lines of code."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

from conditioned_attention import __version__
from conditioned_attention._interrupt import imported
from conditioned_attention._streams import lost, meanwhile, survive
from conditioned_attention._warnings import is_ours
from conditioned_attention.choices import Choices
from conditioned_attention.environment import check_torchvision, cores, environment, is_main, torchvision_misfit
from conditioned_attention.sites.versions import SUPPORTED, unsupported
from conditioned_attention.storage.files import finite, write_text

try:
    import tyro
    from tyro.conf import OmitArgPrefixes, subcommand

    from conditioned_attention._command_line import REGISTRY, with_examples
    from conditioned_attention.bench.cases import CASES
    from conditioned_attention.bench.commands import Bench
    from conditioned_attention.bench.models import MODELS
    from conditioned_attention.experiments.evidence.published import ITEMS, SEEDS, Name
    from conditioned_attention.experiments.planning.dry_run import DryRun
    from conditioned_attention.experiments.planning.gpus import GPUS
    from conditioned_attention.experiments.recipes.recipe import Recipe
    from conditioned_attention.experiments.recipes.registry import RECIPES, default_recipe, name_of, recipe_class
    from conditioned_attention.experiments.training.launch import Launch, leave
    from conditioned_attention.experiments.training.start import Weights
    from conditioned_attention.experiments.variants.catalogue import VARIANTS, find_variant
    from conditioned_attention.experiments.variants.variant import Variant
except ModuleNotFoundError as missing:
    sys.exit(f"{missing}; the command line needs: pip install 'conditioned-attention[experiments]'")


_typed: list[str] = []  # the words of the command


def _recipes() -> Any:
    """One subcommand a recipe; asked for only where a command takes one, since every recipe's file is imported.

    A recipe that is named says all of itself, in the list of all each says a sentence or two.
    """
    commands: list[Any] = []
    for name in RECIPES:
        cls, default = recipe_class(name), default_recipe(name)
        about = (inspect.getdoc(cls) or "").partition("\n\nAttributes:" if name in _typed else "\n\n")[0]
        options: Any = {"description": about, "prefix_name": False}
        options |= {} if default is None else {"default": Asked(default)}
        commands.append(Annotated[Asked[cls], subcommand(name, **options)])  # type: ignore[valid-type]
    return Union[tuple(commands)]  # noqa: UP007 - made while the program runs


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass(frozen=True)
class Asked(Generic[AnyRecipe]):
    """A recipe, how it is carried out, and what a dry run reports; the page of options shows them in this order."""

    recipe: Annotated[AnyRecipe, tyro.conf.arg(name="")]
    launch: Launch = field(default_factory=Launch)
    dry: DryRun = field(default_factory=DryRun)


AnyAsked = Annotated[Asked[Recipe], tyro.conf.arg(constructor_factory=_recipes, name="")]
_Folder = Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")]  # what it is without is in the words


@dataclass(frozen=True)
class Compare:
    """Train several variants with the same seeds, and test whether their scores differ.

    A second call with the same folder runs only what is missing, so seeds and variants can be added later.
    """

    asked: AnyAsked
    variants: tuple[str, ...] = ("baseline", "preconditioned")
    """Variants to compare, the baseline first; see `conditioned-attention list variants`.  spectral=0.3 sets λ."""
    seeds: int = 3
    """How many seeds to run every variant with."""
    first_seed: int = 0
    """The first of these seeds.  Several machines can share the work: see `report`."""
    folder: _Folder = None
    """Folder for the runs and the report; default runs/RECIPE."""
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Runs at a time, each in its own process; default: one per core, or one if there is a GPU."""
    threads: int = 1
    """PyTorch threads per run; more than one helps only with models much larger than these."""
    cost: bool = True
    """Measure the time and memory of a training step afterwards."""
    tune: Annotated[tuple[float, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Learning rates to try, the same for every variant.  Each variant is compared at the one that is best for it on
    validation data (one tenth of the training set).  Without this option, all variants use the learning rate `--lr`."""
    tune_seeds: int = 1
    """Tuning runs per variant and learning rate; their seeds are not those of the comparison."""

    def __call__(self) -> int:
        from conditioned_attention.experiments.commands import compare_recipe
        from conditioned_attention.experiments.report.terminal import print_table
        from conditioned_attention.experiments.report.write import write_report

        recipe, dry = self.asked.recipe, self.asked.dry
        if dry.asked:
            meanwhile("counting what a training step of each variant takes")
            tuning = len(self.tune) * self.tune_seeds
            how: Any = {"tuning": tuning, "threads": self.threads, "launch": self.asked.launch}
            return dry(recipe, self.variants, self.seeds, **how)
        folder = self.folder or Path("runs") / name_of(recipe)
        how = {name: getattr(self, name) for name in ("threads", "cost", "tune", "tune_seeds")}
        how["launch"] = self.asked.launch
        how["workers"] = _default_workers() if self.workers is None else self.workers
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        meanwhile("reading the data")
        result = compare_recipe(recipe, self.variants, seeds, folder, **how)
        meanwhile("writing the report")
        write_report(result, folder)
        print_table(result)
        print(f"{folder}: report.html, results.json, {', '.join(sorted(p.name for p in folder.glob('*.png')))}")
        return 1 if result.failures else 0


@dataclass(frozen=True)
class Train:
    """Train one variant with one seed; a second call continues where the first one stopped.

    On several processes: torchrun --nproc-per-node N -m conditioned_attention train …
    """

    asked: AnyAsked
    variant: str = "preconditioned"
    """Variant to train."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data."""
    folder: _Folder = None
    """Folder for checkpoints and logs; default runs/RECIPE-VARIANT-SEED."""
    into: _Folder = None
    """Folder of a comparison to add this run to, in place of a folder of its own; `report` that folder afterwards."""

    def __call__(self) -> int:
        recipe, launch = self.asked.recipe, self.asked.launch
        if self.asked.dry.asked:
            meanwhile("counting what a training step takes")
            return self.asked.dry(recipe, [self.variant], launch=launch)
        check_torchvision()  # before anything is said
        where = {"folder": self.folder, "into": self.into}
        return _trained(recipe, find_variant(self.variant), self.seed, launch, **where)


@dataclass(frozen=True)
class Resume:
    """Continue a run of `train`, given only its folder: recipe, variant, seed and data are those that it began with."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run."""
    data_dir: Path | None = None
    """Where its data are now, if they have moved; different data are refused."""
    launch: Launch = field(default_factory=Launch)

    def __call__(self) -> int:
        from conditioned_attention.experiments.commands import recorded

        check_torchvision()
        recipe, variant, seed = recorded(self.folder, self.data_dir)
        return _trained(recipe, variant, seed, self.launch, folder=self.folder)


def _trained(recipe: Recipe, variant: Variant, seed: int, launch: Launch, **where: Any) -> int:
    """Trains a run and shows its progress; returns the exit status."""
    from rich.progress import Progress

    from conditioned_attention.experiments.commands import evaluations_of, train_recipe
    from conditioned_attention.experiments.runs.progress import columns

    launch.check(recipe.training.precision)
    meanwhile("reading the data")
    task = recipe.task()
    with Progress(*columns(), transient=True, disable=not (is_main() and sys.stdout.isatty())) as progress:
        say = partial(progress.console.print, highlight=False, markup=False, soft_wrap=True)
        evaluations = evaluations_of(task, recipe.training)
        bar = progress.add_task(variant.name, total=evaluations, unit="evaluations", score="")

        def show(row: Mapping[str, Any]) -> None:
            progress.advance(bar)
            # None stands for a number that is not finite
            values = {key: "not finite" if value is None else value for key, value in row.items()}
            say("  ".join(f"{key} {f'{v:.4g}' if isinstance(v, float) else v}" for key, v in values.items()))

        if is_main():
            say("\n".join(task.data_in_words()))
        path = train_recipe(recipe, variant, seed, show=show, task=task, launch=launch, **where)
        if is_main():
            say(f"{path}: {', '.join(sorted(p.name for p in path.iterdir() if not p.name.startswith('.')))}")
    return 0


@dataclass(frozen=True)
class Export(Choices):
    """Write the trained model of a run as plain files: its weights, how it is conditioned, and how to build it.

    Neither the recipe nor its data are needed, now or later: in Python, load_run gets the model from either folder.
    """

    folder: tyro.conf.Positional[Path]
    """Folder of `train`, or of one run of a comparison: FOLDER/runs/VARIANT/seed-N."""
    output: Path
    """New or empty folder for model.safetensors, conditioning.json, model.json and, for timm, config.json."""
    weights: Weights = "run"
    """run: the weights that the run's scores are of; model: the trained weights; average: their moving average."""
    step: int | None = None
    """Step of the checkpoint to export; default the newest."""

    def __call__(self) -> int:
        from conditioned_attention.experiments.exported import export_run

        path = export_run(self.folder, self.output, weights=self.weights, step=self.step)
        print(f"{path}: {', '.join(sorted(p.name for p in path.iterdir() if not p.name.startswith('.')))}")
        return 0


@dataclass(frozen=True)
class Inspect(Choices):
    """Show which attention a model has, what conversion would do to it, and how well its heads are conditioned.

    Exit status: 0 if attention was found and none of it is refused, 1 if some is refused or none was found, 2 for wrong
    input.
    """

    model: tyro.conf.Positional[str]
    """Name of a timm model, folder with a Hugging Face checkpoint, or file with a saved module."""
    input: _Folder = None
    """What to run the model on: a text (for a Hugging Face folder), a picture, a folder of pictures, or
    a .pt, .npy, .npz or .safetensors file with a tensor or with keyword arguments; default: random numbers."""
    structure: bool = False
    """Look at the structure only: nothing is loaded or run, so the size of the model does not matter."""
    pretrained: bool = False
    """Download timm's pretrained weights; without this option they are random."""
    unpickle: bool = False
    """Load a saved module although this runs code from its file; only for files that you trust."""
    spectral: float | Literal["auto"] | None = None
    """Also show singular values of W_Q, W_K and W_V, with and without λ I for this λ (large models: minutes)."""
    precision: Literal["float32", "float64"] = "float32"
    """Lowest precision for heads; float64 distinguishes those at the floor of float32, in twice the time."""
    picture: _Folder = None
    """Plot log10 κ of every head before and after C (and with λ I) to this file: .png, .svg or .pdf."""
    dark: bool = False
    """Give the plot a dark background."""
    json: bool = False
    """Print JSON instead of a table."""

    def __call__(self) -> int:
        import torch

        from conditioned_attention.inspection import (
            inspect_model,
            load_input,
            load_model,
            synthetic_input,
            weights_in_words,
        )
        from conditioned_attention.inspection.start import advice, losses_at_start
        from conditioned_attention.inspection.tables import print_inspection

        for option, why in {
            "input": "runs nothing",
            "spectral": "loads no weights",
            "picture": "measures nothing",
        }.items():
            if self.structure and getattr(self, option) is not None:
                raise ValueError(f"--structure {why}, so it takes no --{option}")
        if self.picture is not None and self.picture.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--picture must end in .png, .svg or .pdf, got {self.picture}")
        if self.input is not None and not self.input.exists():
            raise FileNotFoundError(f"--input {self.input}: there is no such file or folder")
        meanwhile(f"loading {self.model}")
        model = load_model(self.model, pretrained=self.pretrained, weights=not self.structure, unpickle=self.unpickle)
        if self.input is not None:
            probe = load_input(self.input, model, self.model)
        else:
            probe = None if self.structure else synthetic_input(model)
        meanwhile("measuring its heads" + (" and projections (of a large model minutes)" if self.spectral else ""))
        inspection = inspect_model(model, probe, spectral=self.spectral, dtype=getattr(torch, self.precision))
        weights = weights_in_words(self.model, pretrained=self.pretrained)
        trained = (self.pretrained or Path(self.model).exists()) and not self.structure
        words = isinstance(probe, dict) and probe.keys() == {"input_ids"} and self.input is not None
        losses = losses_at_start(model, probe["input_ids"]) if trained and words else None
        source = "random numbers (--input takes real ones)" if self.input is None else str(self.input)
        if self.picture is not None:
            from conditioned_attention.inspection.pictures import plot_inspection

            self.picture.parent.mkdir(parents=True, exist_ok=True)
            figure: Any = plot_inspection(inspection, theme="dark" if self.dark else "light")[0].figure
            figure.savefig(self.picture, dpi=200)
        if self.json:
            data = {"model": self.model, "weights": weights, "input": source, **inspection.to_json()}
            started = {} if losses is None else {"losses_at_start": finite(losses)}
            print(json.dumps(data | started, indent=2, allow_nan=False))
        else:
            print_inspection(inspection, source, weights, advice(inspection, self.model, losses) if trained else [])
        return 0 if inspection.complete else 1


@dataclass(frozen=True)
class Report:
    """Rewrite the report page of each folder (for a comparison also results.json and pictures), and print its table.

    Takes folders of `compare` or of `train`, even while these are still running.  For several folders, one more page
    shows all of them side by side.  A page is one HTML file that needs no network.  For the comparisons of all eight
    tasks of GLUE, the means are printed too.

    Runs with the same settings that were made on other machines can be merged: copy their folders `runs` over the one
    here, and `tuning` if learning rates were tuned (tune on one machine, and copy it to the others before they start).
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `compare` or `train` has written, or is writing; or logs (.jsonl, .parquet) that a ConditionMonitor
    has written in your own training loop, whose page is written beside the first of them, or to `--output`."""
    output: _Folder = None
    """Write one page for all folders to this file, and leave the folders unchanged.  Without this option, each folder
    gets its own report.html, and the page for several folders is ./report.html."""
    outcomes: bool = False
    """Also print how the runs compare by their mean score and by the evaluation loss.  Without this option, that is
    printed only where final scores are close to the best possible; the page and results.json always have it."""

    def __call__(self) -> int:
        from conditioned_attention.experiments.report.logs import is_log, write_log_report
        from conditioned_attention.experiments.report.terminal import print_means, print_subject, say
        from conditioned_attention.experiments.report.write import read_subjects, write_reports

        if self.output is not None and self.output.suffix not in (".html", ".htm"):
            raise ValueError(f"output must be an .html file, got {str(self.output)!r}")
        if self.folders and all(map(is_log, self.folders)):
            page, said = write_log_report(self.folders, self.output)
            say([*said, str(page)])
            return 0
        subjects = read_subjects(self.folders)
        page = write_reports(subjects, self.folders, self.output)
        for subject in subjects:
            print_subject(subject, outcomes=self.outcomes)
        print_means(subjects)
        print(page)
        return 0


@dataclass(frozen=True)
class Reproduce(Choices):
    """List all tables and figures of both papers; given the name of one, run it and show its numbers beside yours.

    A second call continues where the first one stopped, and items that need the same runs share them.
    """

    item: Annotated[Name | None, tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="")] = None
    """The table or figure to run; without it, all are listed."""
    data_dir: _Folder = None
    """Where the data are, such as ImageNet's."""
    folder: Path = Path("runs/reproduce")
    """Folder for the runs, with one folder per recipe, and for ITEM.txt with the numbers."""
    recipes: tuple[str, ...] = ()
    """Run only the rows with these recipes; default all rows that have one."""
    seeds: int = SEEDS
    """How many seeds to run every variant with."""
    dry_run: bool = False
    """Only estimate what the runs would take, as the dry run of `compare` does."""
    gpu: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None
    """With --dry-run: estimate hours and memory for this GPU."""
    options: str = ""
    """Further options for `compare`, or for `bench step`, as one argument: --options="--epochs 30 --workers 2"."""

    def __call__(self) -> int:
        from conditioned_attention.experiments.planning.reproduce import commands_of, listing, report

        if self.item is None:
            print(*listing(), sep="\n")
            return 0
        item, status = ITEMS[self.item], 0
        if self.gpu is not None and not self.dry_run:
            raise ValueError("--gpu says what a dry run is to tell: add --dry-run")
        if self.dry_run and item.by != "compare":
            raise ValueError(f"{item.name} takes minutes: there is no dry run of it")
        dry = ["--dry-run", *(["--gpu", self.gpu] if self.gpu else [])] if self.dry_run else []
        how: Any = {name: getattr(self, name) for name in ("data_dir", "recipes", "seeds")}
        for words in commands_of(item, self.folder, **how).values():
            words = [*words, *shlex.split(self.options), *dry]
            print("conditioned-attention", shlex.join(words), flush=True)
            status = max(status, int(_parsed(words)()))
        if not dry:
            told = report(item, self.folder, self.recipes, self.options)
            write_text(self.folder / f"{item.name}.txt", told + "\n")
            print("", told, sep="\n")
        return status


@dataclass(frozen=True)
class Env:
    """Print versions, devices, and which attention implementations can run here."""

    def __call__(self) -> int:
        misfit = torchvision_misfit()
        others = [unsupported(package) for package in SUPPORTED if not (misfit and package == "torchvision")]
        problems = [problem for problem in [misfit, *others] if problem]
        print(json.dumps({**environment(), "problems": problems}, indent=2))
        return 0


@dataclass(frozen=True)
class List(Choices):
    """List the names that other commands take, one per line, each with a short description."""

    what: tyro.conf.Positional[Literal["recipes", "variants", "cases", "models", "gpus"]]
    """What to list: recipes and variants of `compare` and `train`, cases of `bench operator`, models of `bench step`,
    or GPUs for `--dry-run --gpu`."""

    def __call__(self) -> int:
        lines = _LISTS[self.what]()
        width = max(map(len, lines))
        for name, about in lines.items():
            print(f"{name:{width}}  {about}")
        return 0


def _recipe_lines() -> dict[str, str]:
    return {name: (inspect.getdoc(recipe_class(name)) or "").splitlines()[0] for name in RECIPES}


def _gpu_lines() -> dict[str, str]:
    return {
        name: f"{gpu.memory} GB, {gpu.bf16 or gpu.fp16:g} TFLOP/s of {'bf16' if gpu.bf16 else 'fp16'}, "
        f"{gpu.fp32:g} of float32"
        for name, gpu in GPUS.items()
    }


_LISTS = {
    "recipes": _recipe_lines,
    "variants": lambda: {name: variant.about for name, variant in VARIANTS.items()},
    "cases": lambda: {name: case.shape for name, case in CASES.items()},
    "models": lambda: {name: model.about for name, model in MODELS.items()},
    "gpus": _gpu_lines,
}

_OF_RUNS = {"resume": Resume, "export": Export, "report": Report}
_WITHOUT_RECIPES = {**_OF_RUNS, "inspect": Inspect, "bench": Bench, "list": List, "reproduce": Reproduce, "env": Env}
_IN_FILES = Compare, Train, Resume, Reproduce  # what they say is in files too
_COMMANDS = {"compare": Compare, "train": Train, **_WITHOUT_RECIPES}
_ABOUT = "Condition attention, watch it train, and find out whether it helped."
_MORE = """
`conditioned-attention COMMAND --help` has options and examples,
`conditioned-attention --version` the version.

For completion by the Tab key (bash, zsh or tcsh):
$ conditioned-attention --tyro-write-completion bash \\
      ~/.local/share/bash-completion/completions/conditioned-attention
"""


def commands(arguments: list[str]) -> Any:
    """The commands to choose from; those that take a recipe only where one of them may be meant."""
    _typed[:] = arguments
    known = _WITHOUT_RECIPES if arguments[:1] and arguments[0] in _WITHOUT_RECIPES else _COMMANDS
    found = []
    for name, command in known.items():
        about = inspect.getdoc(command) or ""
        words = with_examples(name, about) if arguments[:1] == [name] else about.partition("\n\n")[0]
        found.append(Annotated[command, subcommand(name, description=words)])
    return Union[tuple(found)]  # noqa: UP007


_STOPPED = "stopped; the same command goes on where this one was"

# `--epochs`, not `--recipe.training.epochs`; options of compare may stand before or after the recipe's name
CONFIG = (OmitArgPrefixes, tyro.conf.CascadeSubcommandArgs)


def main(arguments: list[str] | None = None) -> None:
    """The console command.

    Exit status: 0 done, 1 some runs failed, 2 wrong input, or output that could not be written, 130 stopped by Ctrl-C,
    143 by SIGTERM.
    """
    imported()
    survive()
    warnings.formatwarning = _warning
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that worker processes end with this one
    status = _carried_out(sys.argv[1:] if arguments is None else arguments)
    leave()
    sys.exit(status)


def _parsed(arguments: list[str]) -> Any:
    return tyro.cli(
        commands(arguments),
        args=arguments,
        prog="conditioned-attention",
        description=_ABOUT + _MORE,
        config=CONFIG,
        registry=REGISTRY,
    )


def _carried_out(arguments: list[str]) -> int:
    """Reads and carries out a command; its exit status."""
    try:
        if arguments == ["--version"]:
            print(f"conditioned-attention {__version__}")
            return 0
        command = _parsed(arguments or ["--help"])
        status = int(command())
        if not isinstance(command, _IN_FILES) and (reason := lost(sys.stdout)):
            raise OSError(f"standard output could not be written ({reason.strerror})")
        return status
    except KeyboardInterrupt:
        print(f"\n{_STOPPED}", file=sys.stderr)
        return 130
    except SystemExit as ended:
        if ended.code != 143:
            raise
        print(_STOPPED, file=sys.stderr)
        return 143
    except (ValueError, TypeError, ArithmeticError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("CONDITIONED_ATTENTION_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings in a line, without the place in our source."""
    return f"warning: {message}\n" if is_ours(message) else _with_place(message, category, filename, lineno, line)


_with_place = warnings.formatwarning


def _default_workers() -> int:
    import torch

    return 1 if torch.cuda.is_available() else cores()


if __name__ == "__main__":
    main()
