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
    """A recipe, how it is carried out, and what a dry run is to tell: in this order on the page of its options."""

    recipe: Annotated[AnyRecipe, tyro.conf.arg(name="")]
    launch: Launch = field(default_factory=Launch)
    dry: DryRun = field(default_factory=DryRun)


AnyAsked = Annotated[Asked[Recipe], tyro.conf.arg(constructor_factory=_recipes, name="")]
_Folder = Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")]  # what it is without is in the words


@dataclass(frozen=True)
class Compare:
    """Train variants with the same seeds, and say whether they differ.

    A second call with the same folder runs only what is missing; more seeds and variants may be asked for.
    """

    asked: AnyAsked
    variants: tuple[str, ...] = ("baseline", "preconditioned")
    """Variants to compare; the first is the baseline.  `conditioned-attention list variants` has them; spectral=0.3
    sets λ."""
    seeds: int = 3
    """How many seeds every variant is run with."""
    first_seed: int = 0
    """The first of them.  Several machines may share the work: see `report`."""
    folder: _Folder = None
    """Where runs and report are kept; default runs/RECIPE."""
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Runs at a time, each in a process of its own; default: one a core, or one if there is a GPU."""
    threads: int = 1
    """Threads of torch in each run; more than one helps only models much larger than these."""
    cost: bool = True
    """Measure time and memory of a training step afterwards."""
    tune: Annotated[tuple[float, ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Learning rates, the same for every variant. Each is compared at the one that is best for it on validation data
    (one tenth of the training set).  Without, all variants have the learning rate `--lr`."""
    tune_seeds: int = 1
    """Runs a variant and learning rate, with other seeds than those of the comparison."""

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
    """Train one variant with one seed; called again, it goes on where it stopped.

    On several processes: torchrun --nproc-per-node N -m conditioned_attention train …
    """

    asked: AnyAsked
    variant: str = "preconditioned"
    """What to train."""
    seed: int = 0
    """Of the initial weights and the order of the data."""
    folder: _Folder = None
    """Where checkpoints and logs are kept; default runs/RECIPE-VARIANT-SEED."""
    into: _Folder = None
    """A comparison's folder that the run becomes a part of, instead; then `report` it."""

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
    """Go on with a run of `train` by its folder alone: recipe, variant, seed and data are those that it began with."""

    folder: tyro.conf.Positional[Path]
    """The folder of the run."""
    data_dir: Path | None = None
    """Where its data lie, if they have moved; other data are refused."""
    launch: Launch = field(default_factory=Launch)

    def __call__(self) -> int:
        from conditioned_attention.experiments.commands import recorded

        check_torchvision()
        recipe, variant, seed = recorded(self.folder, self.data_dir)
        return _trained(recipe, variant, seed, self.launch, folder=self.folder)


def _trained(recipe: Recipe, variant: Variant, seed: int, launch: Launch, **where: Any) -> int:
    """Trains, and shows how far it is; the exit status."""
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
    """Write the trained model of a run as plain files: weights, how it is conditioned, what builds it.

    Neither the recipe nor its data are needed, then or later: in Python, load_run of either folder is the model.
    """

    folder: tyro.conf.Positional[Path]
    """The folder of `train`, or of one run of a comparison: FOLDER/runs/VARIANT/seed-N."""
    output: Path
    """A new or empty folder: for model.safetensors, conditioning.json, model.json, and config.json of timm's models."""
    weights: Weights = "run"
    """run: those that the run's scores are of; model: those that were trained; average: their moving average."""
    step: int | None = None
    """Of the checkpoint; default the newest."""

    def __call__(self) -> int:
        from conditioned_attention.experiments.exported import export_run

        path = export_run(self.folder, self.output, weights=self.weights, step=self.step)
        print(f"{path}: {', '.join(sorted(p.name for p in path.iterdir() if not p.name.startswith('.')))}")
        return 0


@dataclass(frozen=True)
class Inspect(Choices):
    """Say which attention a model has, what conversion would do to it, and how well its heads are conditioned.

    Exit status: 0 if attention was found and none of it is refused, 1 if some is, or nothing was found; 2 wrong input.
    """

    model: tyro.conf.Positional[str]
    """A timm model's name, a folder with a Hugging Face checkpoint, or a file with a saved module."""
    input: _Folder = None
    """What to run it on: a text (for a Hugging Face folder), a picture or a folder with pictures, or .pt, .npy, .npz,
    .safetensors with a tensor or keywords; default: random numbers."""
    structure: bool = False
    """Look at the structure only: nothing is loaded or run, so the size of the model does not matter."""
    pretrained: bool = False
    """Download timm's weights; else they are random."""
    unpickle: bool = False
    """Trust a saved module, which runs code when it is loaded."""
    spectral: float | Literal["auto"] | None = None
    """Show singular values of W_Q, W_K and W_V as well, with and without λ I for this λ (of large models: minutes)."""
    precision: Literal["float32", "float64"] = "float32"
    """What heads are computed in at least; float64 tells apart those at the floor of float32, in twice the time."""
    picture: _Folder = None
    """Draw log10 κ of every head before and after C (and with λ I) into this file: .png, .svg or .pdf."""
    dark: bool = False
    """Draw it on a dark ground."""
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
    """Write the page of each folder anew (with results.json and pictures for a comparison), and print its table.

    Folders of `compare` or of `train`, also while they are at it.  Of several folders one more page has all of them
    side by side.  A page is one HTML file that needs no network.  With the comparisons of all eight tasks of GLUE their
    means are printed too.

    Runs of the same settings that other machines have made can be put together: copy their folders `runs` over this
    one's, and `tuning` if learning rates were tuned (tune on one machine, and copy it to the others before they start).
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `compare` or `train` has written, or is writing; or logs (.jsonl, .parquet) that a ConditionMonitor
    has written in a loop of your own, whose page lies beside the first, or in `--output`."""
    output: _Folder = None
    """Write one page of all folders to this file, and leave the folders as they are.  Without, each folder gets its
    own report.html, and that of several folders is ./report.html."""
    outcomes: bool = False
    """Print what the runs look like by their mean score and by the evaluation loss, too.  Without, that is printed only
    where final scores are close to the best there can be; page and results.json always have it."""

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
    """List every table and figure of both papers; with the name of one, run it and set its numbers beside yours.

    A second call goes on where the first one stopped, and items that need the same runs share them.
    """

    item: Annotated[Name | None, tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="")] = None
    """Which; without, all are listed."""
    data_dir: _Folder = None
    """Where the data lie, such as ImageNet's."""
    folder: Path = Path("runs/reproduce")
    """Where runs are kept, a folder a recipe, and ITEM.txt with the numbers."""
    recipes: tuple[str, ...] = ()
    """These rows alone; default all that have a recipe."""
    seeds: int = SEEDS
    """How many seeds every variant is run with."""
    dry_run: bool = False
    """Only say what the runs would take."""
    gpu: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None
    """With --dry-run: hours and memory on this GPU."""
    options: str = ""
    """Further options of `compare`, or of `bench step`, in one word: --options="--epochs 30 --workers 2"."""

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
    """Print what can be named elsewhere, one a line: what it is called, and what it is."""

    what: tyro.conf.Positional[Literal["recipes", "variants", "cases", "models", "gpus"]]
    """Recipes and variants of `compare` and `train`, cases of `bench operator`, models of `bench step`, or GPUs of
    `--dry-run --gpu`."""

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
