"""A task of GLUE after a pretraining: the recipe ``glue``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conditioned_attention.experiments.data.text.glue import GlueName, read_glue
from conditioned_attention.experiments.recipes.fine_tuning import FineTuning
from conditioned_attention.experiments.tasks.labelled_text import Score
from conditioned_attention.experiments.tasks.task import Task
from conditioned_attention.storage.settings import place

_SCORES: dict[str, Score] = {"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}


@dataclass(frozen=True)
class GlueRecipe(FineTuning):
    """One of eight tasks of GLUE (arXiv 1804.07461), fine-tuned as Crammed BERT's authors do (arXiv 2212.14034).

    Five epochs of 16 with AdamW at 4e-5, which a tenth of the run warms up to and half a cosine brings down to 0,
    dropout of 0.1, 128 tokens; scored on the development set after the last epoch: CoLA by Matthews' correlation, MRPC
    and QQP by F1, STS-B by Pearson's, the others by accuracy; MNLI's mismatched set stands beside the matched one.  A
    run of STS-B that ends with one number for all pairs has failed.

    Every task is a run of its own, with its own seed, so that no task's numbers depend on another's; as there a model
    starts anew for each.  Not as there: one text has one separator and not two, mixed precision is bfloat16, and a
    tenth of each task's own steps warms up, where the authors' code takes CoLA's for all of them.

    Attributes:
        glue_task: which.
        data_dir: a folder with GLUE's folders, ``CoLA``, ``SST-2`` and so on, each with ``train.tsv`` and ``dev.tsv``,
            or saved by ``datasets``.
        max_unreadable: broken lines are left out; in each set, more than so many are an error.
    """

    glue_task: GlueName = "cola"
    data_dir: Path = place(Path("glue"))
    max_unreadable: int = place(100)

    def task(self, *, tuning: bool = False) -> Task:
        """With ``tuning`` a fixed tenth of the training set scores, and the development sets are not touched."""
        folder = self.data_dir.expanduser()
        return self.fine_tuned(
            lambda: read_glue(folder, self.glue_task, self.max_unreadable),
            _SCORES.get(self.glue_task, "accuracy"),
            tuning=tuning,
        )
