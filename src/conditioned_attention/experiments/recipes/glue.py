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

    Training takes five epochs with batches of 16, with AdamW at a peak of 4e-5, to which the rate warms up in a tenth
    of the run and from which it falls to 0 by half a cosine.  Dropout is 0.1, and texts are cut at 128 tokens.  The
    development set is scored after the last epoch: CoLA by Matthews' correlation, MRPC and QQP by F1, STS-B by
    Pearson's correlation, the others by accuracy; for MNLI, the score on the mismatched set is given beside that on the
    matched one.  A run of STS-B that ends up with the same number for all pairs has failed.

    Every task is a run of its own, with its own seed, so that no task's numbers depend on another's; as in the authors'
    code, the model starts anew for each.  Unlike in their code, a single text has one separator and not two, mixed
    precision is bfloat16, and the warm-up is a tenth of each task's own steps, where theirs takes CoLA's number of
    steps for all tasks.

    Attributes:
        glue_task: the task.
        data_dir: a folder with GLUE's folders, ``CoLA``, ``SST-2`` and so on, each with ``train.tsv`` and ``dev.tsv``,
            or saved by ``datasets``.
        max_unreadable: broken lines are left out; more than this many in one set are an error.
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
