"""Random lives of a run's folder: whatever is done to it, its numbers are exact or refused, and files of others stay.

    python -m tests.experiments.hunt SECONDS [SEED]

A folder of comparisons on a few images in class folders is trained in, stopped, killed, copied and reported; its data
change under it; files of its own are damaged; and people put files of their own into it.  After every step
each file that is not the library's is what it was.  A table is that of the data as they are, to the last digit; or it
is refused by an error that names what is wrong, and only if something is.
"""

import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from unittest.mock import patch

import torch

from conditioned_attention.experiments.commands import compare_recipe
from conditioned_attention.experiments.models.vision_transformer import VisionTransformer
from conditioned_attention.experiments.recipes.image_folder import ImageFolder
from conditioned_attention.experiments.report.write import read_subjects, write_reports
from conditioned_attention.experiments.training import loop
from conditioned_attention.experiments.training.launch import Launch
from conditioned_attention.experiments.training.settings import Training
from tests.experiments.pictures import digit
from tests.hunting import hunt

VARIANTS = ("baseline", "qk_norm")
REFUSALS = (ValueError, RuntimeError, OSError)
MODEL = VisionTransformer(patch_size=4, hidden_size=8, layers=1, heads=2)
TRAINING = Training(epochs=2, batch_size=4, monitor_every=0)
FOREIGN = (
    "notes.txt", "checkpoint-00000002.good", "checkpoint-best", "checkpoint-notes.txt", "mine.json", "results.csv",
    "report-of-May.html", ".mine.tmp", "begun.json.bak",
)  # fmt: skip


RIGHT = {}  # what a comparison in an empty folder says, by data and seeds


class Situation:
    """A folder of runs, the data that it reads, files of somebody else in it, and whether anything is wrong."""

    def __init__(self, root, chance):
        self.root, self.chance = root, chance
        self.data, self.folder = root / "data", root / "runs"
        self.labels = {}  # of each image: its class, and the digit that it shows
        self.foreign = {}  # by path: bytes
        self.trained_on = None  # the data of what is in the folder
        self.damaged = False
        for split, first, count in (("train", 0, 12), ("val", 12, 6)):
            for i in range(first, first + count):
                self.put(split, str(i % 2), i)

    def put(self, split, label, number):
        file = self.data / split / label / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        digit(number).save(file)
        self.labels[file.relative_to(self.data).as_posix()] = number

    @property
    def recipe(self):
        return ImageFolder(
            self.data, image_size=8, augment="none", model=MODEL, training=TRAINING, cache_dir=self.root / "cache"
        )

    @property
    def version(self):
        return tuple(sorted(self.labels.items()))

    def scores(self, folder, seeds):
        launch = Launch(checkpoint_seconds=0.0)
        result = compare_recipe(self.recipe, VARIANTS, seeds, folder, cost=False, progress=False, launch=launch)
        return {v: {seed: list(map(_lasting, rows)) for seed, rows in of.items()} for v, of in result.runs.items()}, (
            result.failures
        )

    def right(self, seeds):
        """What a comparison in an empty folder would say."""
        key = (self.version, seeds)
        if key not in RIGHT:
            with tempfile.TemporaryDirectory() as folder:
                runs, failures = self.scores(Path(folder) / "fresh", seeds)
            assert not failures
            RIGHT[key] = runs
        return RIGHT[key]

    def refuse_only_if_wrong(self, error):
        wrong = self.damaged or self.trained_on not in (None, self.version)
        assert wrong, f"refused although nothing is wrong: {type(error).__name__}: {error}"
        places = (str(self.folder), str(self.data), "data")
        assert any(place in str(error) for place in places), f"an error that names no place: {error}"

    def check(self):
        for file, content in self.foreign.items():
            assert file.exists(), f"a file of somebody else is gone: {file.relative_to(self.root)}"
            if file.is_file():
                assert file.read_bytes() == content, (
                    f"a file of somebody else has changed: {file.relative_to(self.root)}"
                )


def _lasting(row):
    """A row without what the clock says."""
    return {key: value for key, value in row.items() if "second" not in key and "memory" not in key}


def trained(s):
    seeds = s.chance.choice((1, 2))
    try:
        runs, failures = s.scores(s.folder, seeds)
    except REFUSALS as error:
        s.refuse_only_if_wrong(error)
        return "refused"
    if failures:
        assert s.damaged, f"runs have failed although nothing is wrong: {failures}"
        return "refused"
    assert runs == s.right(seeds), "other numbers than those of these data"
    s.trained_on = s.version
    return "done"


def _after(rows, act):
    """`loop.train` that does something once so many rows have come, of all runs in this process."""
    train, left = loop.train, [rows]

    def counted(*args, **kwargs):
        for row in train(*args, **kwargs):
            yield row
            left[0] -= 1
            if left[0] <= 0:
                act()

    return patch("conditioned_attention.experiments.commands.train", counted)


def stopped(s):
    def stop():
        raise KeyboardInterrupt

    try:
        with _after(s.chance.randint(1, 3), stop):
            s.scores(s.folder, 1)
    except KeyboardInterrupt:
        s.trained_on = s.version
        return "done"
    except REFUSALS as error:
        s.refuse_only_if_wrong(error)
        return "refused"
    s.trained_on = s.version
    return "done"


def killed(s):
    """In a process of its own, which ends at once and cleans nothing up."""
    rows = s.chance.randint(1, 3)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            with _after(rows, lambda: os._exit(9)):
                s.scores(s.folder, 1)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 1:
        assert s.damaged or s.trained_on not in (None, s.version), "a run fails although nothing is wrong"
        return "refused"
    s.trained_on = s.version
    return "done"


def copied(s):
    if s.folder.exists():
        target = s.root / f"copy-{s.chance.randrange(10**6)}"
        shutil.copytree(s.folder, target, symlinks=True)
        for file in [f for f in s.foreign if f.is_relative_to(s.folder)]:
            s.foreign[target / file.relative_to(s.folder)] = s.foreign[file]
        s.folder = target
    return "done"


def renamed(s):
    if s.folder.exists():
        target = s.root / f"moved-{s.chance.randrange(10**6)}"
        s.folder.rename(target)
        for file in [f for f in s.foreign if f.is_relative_to(s.folder)]:
            s.foreign[target / file.relative_to(s.folder)] = s.foreign.pop(file)
        s.folder = target
    return "done"


def files_put_into_it(s):
    """By somebody who does not know which names are ours; a folder among them."""
    places = [s.folder, *sorted(p for p in s.folder.rglob("seed-*") if p.is_dir())] if s.folder.exists() else []
    if not places:
        return "nothing there"
    file = s.chance.choice(places) / s.chance.choice(FOREIGN)
    if file.exists():
        return "nothing there"
    if file.name == "checkpoint-best":
        shutil.copytree(next(iter(file.parent.glob("checkpoint-0*")), s.data), file)
        inside = [f for f in file.rglob("*") if f.is_file()]
        s.foreign |= {f: f.read_bytes() for f in inside}
    else:
        file.write_text("mine")
    s.foreign[file] = b"mine"
    return "done"


def image_added(s):
    s.put("train", s.chance.choice("01"), s.chance.randrange(20, 60))
    return "done"


def image_taken_away(s):
    train = sorted(file for file in s.labels if file.startswith("train/"))
    file = s.chance.choice(train)
    if len(train) > 9 and sum(other.split("/")[1] == file.split("/")[1] for other in train) > 2:
        (s.data / file).unlink()
        del s.labels[file]
    return "done"


def image_relabelled(s):
    file = s.chance.choice(sorted(s.labels))
    split, label, name = file.split("/")
    other = f"{split}/{1 - int(label)}/{name}"
    if other not in s.labels and sum(f.startswith(f"{split}/{label}/") for f in s.labels) > 2:
        (s.data / file).rename(s.data / other)
        s.labels[other] = s.labels.pop(file)
    return "done"


def edited(s):
    """A stored file is damaged, by hand or by a disk."""
    files = [f for f in s.folder.rglob("*.json*") if f.is_file() and f not in s.foreign] if s.folder.exists() else []
    if not files:
        return "nothing there"
    file = s.chance.choice(sorted(files))
    text = file.read_text()
    file.write_text(s.chance.choice([text[: len(text) // 2], "", "[]", "null", "{}", _without_a_key(text, s.chance)]))
    s.damaged = s.damaged or file.read_text() != text
    return "done"


def _without_a_key(text, chance):
    try:
        content = json.loads(text.splitlines()[0])
    except (ValueError, IndexError):
        return "{"
    if isinstance(content, dict) and content:
        del content[chance.choice(sorted(content))]
    return json.dumps(content)


def reported(s):
    if not s.folder.exists():
        return "nothing there"
    try:
        write_reports(read_subjects([s.folder]), [s.folder])
    except REFUSALS as error:
        unfinished = not list(s.folder.rglob("result.json"))
        if not unfinished:
            s.refuse_only_if_wrong(error)
        return "refused"
    return "done"


OPERATIONS = (
    trained, trained, stopped, killed, copied, renamed, files_put_into_it, files_put_into_it, image_added,
    image_taken_away, image_relabelled, edited, reported,
)  # fmt: skip


def follow(seed, steps=7):
    """What became of each operation; raises, with the sequence in a note, where the invariant does not hold."""
    chance, done = random.Random(seed), []
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        situation = Situation(Path(root), chance)
        try:
            for operation in [trained, *chance.choices(OPERATIONS, k=steps), trained]:
                done.append([operation.__name__, ""])
                done[-1][1] = operation(situation)
                situation.check()
        except Exception as error:
            error.add_note(f"seed {seed}: {', '.join(name for name, _ in done)}")
            raise
    return [tuple(step) for step in done]


if __name__ == "__main__":
    torch.set_num_threads(1)
    hunt(lambda seed: [outcome for _, outcome in follow(seed)])
