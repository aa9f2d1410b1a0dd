"""Fine-tuning on labelled texts that packages bring along: the recipe ``labelled_text``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from conditioned_attention.experiments.data.text.labelled import TextSets
from conditioned_attention.experiments.data.text.shipped import HOW_TO_GET_RATED, Target, read_hypernyms, read_rated
from conditioned_attention.experiments.recipes.fine_tuning import FineTuning, cramming_training
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.experiments.training.settings import Training
from conditioned_attention.storage.settings import place


@dataclass(frozen=True)
class LabelledTextRecipe(FineTuning):
    """Labelled texts that ship with packages, fine-tuned as for GLUE: sentiment of sentences, or pairs of definitions.

    They are like SST-2 and STS-B in form, but neither of them: their numbers are not scores of GLUE.  The fifth of the
    texts that is held out is not a published split.

    Attributes:
        text: ``"movies"``, ``"tweets"``, ``"news"`` or ``"products"``, each text rated by twenty people (Hutto and
            Gilbert 2014); or ``"hypernyms"``: given two nouns of WordNet with their definitions, is the first a kind of
            the second?
        target: for rated texts, the ``"sign"`` of the rating, scored by accuracy, or the ``"mean"``, scored by
            Pearson's correlation.
        path: vaderSentiment's source distribution; for ``"hypernyms"`` WordNet's folder.
        samples: number of texts to train on, always the same random choice; None for all, and fewer is a reduced run.
        max_unreadable: broken lines are left out; more than this many are an error.
        training: how it is trained.
    """

    text: Literal["movies", "tweets", "news", "products", "hypernyms"] = "movies"
    target: Target = "sign"
    path: Path | None = place(None)
    samples: int | None = None
    max_unreadable: int = place(10)
    training: Training = field(default_factory=partial(cramming_training, precision="no"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be at least 1, or None for all, got {self.samples}")
        if self.text == "hypernyms" and self.target != "sign":
            raise ValueError(f"target={self.target!r} is for texts that are rated, not for text='hypernyms'")

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` a fixed tenth of the training set scores, and what is held out is not touched."""
        return self.fine_tuned(self._sets, "accuracy" if self.target == "sign" else "pearson", tuning=tuning)

    def _sets(self) -> TextSets:
        if self.text == "hypernyms":
            found = read_hypernyms((self.path or Path("/usr/share/wordnet")).expanduser())
        elif self.path is None:
            raise FileNotFoundError(f"text={self.text!r} needs a path. {HOW_TO_GET_RATED}")
        else:
            found = read_rated(self.path.expanduser(), self.text, self.target, self.max_unreadable)
        if self.samples is None or self.samples >= len(found.train):
            return found
        return found._replace(train=found.train.drawn(self.samples))
