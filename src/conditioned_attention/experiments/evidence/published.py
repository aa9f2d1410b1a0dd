"""Every table and figure of both papers, with the numbers as printed and the runs that would reproduce them.

The numbers of arXiv 2603.27153 are from its text.  Those of arXiv 2603.07162 come from public summaries, because its
own text could not be read here; the summaries name no tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from conditioned_attention.choices import Choices

SEEDS = 5  # of the first paper; not known for the second

Name = Literal[
    "figure1", "table1", "figure2", "figure3", "table2", "table3", "table4", "figure4", "table5", "table6", "table7",
    "spectral_imagenet", "spectral_coco", "spectral_lra", "spectral_glue", "spectral_projections", "spectral_lambda",
]  # fmt: skip
Paper = Literal["2603.27153", "2603.07162"]
Task = Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "mean_of_eight", "mean_of_nine"]
MEANS = ("mean_of_eight", "mean_of_nine")
Precision = Literal["box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"]  # beside the score, which is box AP
Measure = Literal["score", "epochs", "steps", "kappa", "kappa_weights", "hours", "memory", Precision]


@dataclass(frozen=True)
class Row(Choices):
    """Two numbers that a paper compares.

    Attributes:
        what: model or task, and which quantity of it.
        recipe: the recipe that reproduces them, by the name that it has or will have, or the model of ``bench step``;
            None if no single one does.
        plain, conditioned: the numbers as printed, hours as ``"29:28"``; empty where the paper gives no number.
        measure: what the numbers are.
        test_samples: how many test samples scores in per cent are based on; 0 where that is not needed.
        task: a task of the recipe ``glue``, or which mean over its tasks.
    """

    what: str
    recipe: str | None
    plain: str
    conditioned: str
    measure: Measure = "score"
    test_samples: int = 0
    task: Task | None = None

    @property
    def standard_error(self) -> float:
        """Standard error of one run's plain score in per cent, by the number of test samples only: √(p (1 - p) / n)."""
        share = float(self.plain) / 100
        return 100 * math.sqrt(share * (1 - share) / self.test_samples)

    @property
    def key(self) -> str:
        """The name of its runs: the recipe, and the task if it has one."""
        return f"{self.recipe}_{self.task}" if self.task else self.recipe or ""

    @property
    def is_mean(self) -> bool:
        """Whether the numbers are means over all tasks of the recipe."""
        return self.task in MEANS


@dataclass(frozen=True)
class Elsewhere:
    """Scores that others have reported on the same tasks.

    Attributes:
        who: who reported them, and for which model.
        scores: the scores as printed, by recipe.
    """

    who: str
    scores: Mapping[str, str]


@dataclass(frozen=True)
class Item(Choices):
    """A table or figure of a paper.

    Attributes:
        name: its name on the command line.
        paper: the paper's number on arXiv.
        place: its place in the paper.
        shows: what it shows, and in which unit.
        rows: what it compares; empty for a drawing.
        open_questions: what the paper leaves open, or what contradicts it, one sentence each.
        variant: the variant that stands for its method here.
        by: the command that reproduces it.
        elsewhere: what others have reported on the same tasks.
    """

    name: Name
    paper: Paper
    place: str
    shows: str
    rows: tuple[Row, ...] = ()
    open_questions: tuple[str, ...] = ()
    variant: str = "preconditioned"
    by: Literal["compare", "bench step"] = "compare"
    elsewhere: tuple[Elsewhere, ...] = ()


def _rows(
    whats: str, recipes: str, plain: str, conditioned: str, measure: Measure = "score", of: str = ""
) -> tuple[Row, ...]:
    """A row for each of the ``whats``, separated by commas; the rest is in the same order, separated by spaces.

    A single recipe stands for all rows.
    """
    names = whats.split(", ")
    given = recipes.split() if " " in recipes else [recipes] * len(names)
    numbers = (text.split() or [""] * len(names) for text in (plain, conditioned))
    cells = zip(names, given, *numbers, strict=True)
    return tuple(Row(of + name, recipe, before, after, measure) for name, recipe, before, after in cells)


def _tested(rows: tuple[Row, ...], counts: tuple[int, ...]) -> tuple[Row, ...]:
    """The same rows with their numbers of test samples."""
    return tuple(replace(row, test_samples=count) for row, count in zip(rows, counts, strict=True))


def _glue(whats: str, plain: str, conditioned: str) -> tuple[Row, ...]:
    """Rows of the recipe ``glue``, each with its task, and a last one for the mean that the papers do not give."""
    rows = _rows(whats, "glue", plain, conditioned)
    tasks = tuple(replace(row, task=_GLUE[row.what]) for row in rows)
    return (*tasks, Row("average of nine, MNLI twice", "glue", "", "", task="mean_of_nine"))


_LRA_TASKS = "ListOps, Text, Retrieval, Image, Pathfinder"
_LRA = "listops lra_text lra_retrieval lra_image pathfinder32"
_LRA_MODELS = "lra_listops lra_text lra_retrieval lra_image lra_pathfinder"  # of `bench step`
_LRA_TESTED = (2_000, 25_000, 17_437, 10_000, 20_000)
_LRA_ELSEWHERE = tuple(  # img/LRA.png of mlpen/Nystromformer; camera-ready PDF in Skyformer's repository, 3 seeds
    Elsewhere(who, dict(zip(_LRA.split(), scores.split(), strict=True)))
    for who, scores in (
        ("the Nyströmformer's authors, softmax", "37.10 65.02 79.35 38.20 74.16"),
        ("the Nyströmformer's authors, Nyström", "37.15 65.52 79.56 41.58 70.94"),
        ("rerun by Skyformer's, softmax, 50,000 steps", "38.37 61.95 80.69 40.57 65.26"),
        ("rerun by Skyformer's, Nyström, 50,000 steps, 128 landmarks, no convolution", "38.51 64.83 80.52 41.30 69.48"),
    )
)
_GLUE: dict[str, Task] = {
    "MNLI": "mnli", "SST-2": "sst2", "STS-B": "stsb", "RTE": "rte", "QNLI": "qnli", "QQP": "qqp", "MRPC": "mrpc",
    "CoLA": "cola", "average": "mean_of_eight", "average of nine, MNLI twice": "mean_of_nine",
}  # fmt: skip


def _detection(recipe: str, plain: str, conditioned: str, of: str, what: str = "") -> tuple[Row, ...]:
    """Rows of average precision; by default all six of a table."""
    names = what.split(", ") if what else ["box AP", *(name.replace("_ap", " AP") for name in get_args(Precision))]
    found = _rows(", ".join(names), recipe, plain, conditioned, of=of)
    measures = ["score" if name == "box AP" else name.replace(" AP", "_ap") for name in names]
    return tuple(replace(row, measure=measure) for row, measure in zip(found, measures, strict=True))  # type: ignore


_VIT_OPEN = (
    'ViT-B "followed the original paper", whose recipe stays far below 80 % on ImageNet-1k alone; `vit_b` is that of '
    "DeiT, `vit_b_original` the other. ViT-B and DeiT-B are one network, and what sets their rows apart is not said.",
    "C is built from the rows of softmax(qkᵀ)v in Theorem 4.4 and from those of softmax(qkᵀ) in Algorithm 1: the "
    "variants `preconditioned`, which stands here, and `preconditioned_weights`.",
    'The text speaks of "five vision transformers", the table has four.',
    "Whether C also acts in XCiT's two layers of class attention is not said; `--no-class-attention` leaves them out.",
)
_LRA_OPEN = (
    "Conditioned Text and Image scores lie below those of the plain model that its authors had published, and the gain "
    "on ListOps is less than the standard error of one test run.",
    "Whether C acts before or after the convolution beside the attention is not said.",
)
_GLUE_OPEN = (
    "The average is the mean of eight numbers, MNLI once; Crammed BERT's own is over nine, with both parts of MNLI.",
    'The caption says "as defined in Algorithm 1", which takes C from the weights: variant `preconditioned_weights`.',
    "RTE has 277 validation sentences, a standard error of 3 points.",
)
_SUMMARY = "The numbers come from public summaries; the paper's text, and so its tables, could not be read here."
_PER_HEAD = "Whether λ I stands once over all rows of W_Q, W_K and W_V, as here, or once a head is not known."
_STRENGTH = (
    "λ = 10 has ruined every small model that was trained here ([spectral.md](spectral.md#what-λ-does-to-attention))."
)

_PRECONDITIONED = (
    Item("figure1", "2603.27153", "Figure 1", "a drawing of a layer with C"),
    Item(
        "table1", "2603.27153", "Table 1", "ImageNet-1k, top-1 accuracy (%), mean of five runs",
        _rows("ViT-base, XCiT-medium, DeiT-base, Swin-base", "vit_b xcit_m24 deit_b swin_b",
              "80.2 82.6 81.6 83.4", "81.4 83.5 82.7 84.5"),
        _VIT_OPEN,
    ),
    Item(
        "figure2", "2603.27153", "Figure 2", "epochs until the baseline's final accuracy is reached",
        (*_rows("ViT-B, XCiT-M", "vit_b xcit_m24", "300 400", "221 328", "epochs"),
         Row("Swin-B", "swin_b", "", "", "epochs")),
        ("The second half of the figure, with Swin-B, has no numbers in the text.",
         "Whether the epochs are those of one run or of the mean of five is not said; here they are of the mean."),
    ),
    Item(
        "figure3", "2603.27153", "Figure 3", "condition number of heads while a ViT-B trains",
        (Row("ViT-B", "vit_b", "", "", "kappa"),),
        ("It draws the mean of κ over heads, which one singular head decides; here it is log₁₀ of the median.",),
    ),
    Item(
        "table2", "2603.27153", "Table 2", "training time (hours:minutes) and memory (GB) of the models of Table 1",
        _rows("ViT-Base, DeiT-Base, Swin-Base, XCiT-Medium", "vit_b deit_b swin_b xcit_m24",
              "29:28 26:16 53:11 91:08", "30:45 27:25 54:24 92:10", "hours", of="time, ")
        + _rows("ViT-Base, DeiT-Base, Swin-Base, XCiT-Medium", "vit_b deit_b swin_b xcit_m24",
                "176.1 173.6 150.4 186.4", "178.5 175.1 152.6 188.5", "memory", of="memory, "),
        ("How many A100 there were, and the batch, are not said; so ratios are compared.",),
        by="bench step",
    ),
    Item(
        "table3", "2603.27153", "Table 3", "COCO mini-val, Mask R-CNN on backbones of ImageNet-1k, average precision",
        _detection("detection_xcit_s12", "44.9 66.1 48.9 40.1 63.1 42.8", "45.4 66.4 49.5 40.5 63.3 43.2",
                   "XCiT-S12, ")
        + _detection("detection_xcit_m24", "45.7 66.8 49.6 40.8 63.6 43.3", "46.0 67.2 49.9 41.2 63.9 44.0",
                     "XCiT-M24, "),
        ("Section 6 describes XCiT's protocol, appendix B.0.2 names matterport/Mask_RCNN, which is a ResNet.",
         "Section 6 also puts C before the multiplication with the values, Theorem 4.4 does not.",
         "XCiT itself reports 45.3 and 40.8 (S12/16) and 46.7 and 42.0 (M24/16), box and mask AP of plain models.",
         "The patch size is not said."),
    ),
    Item(
        "table4", "2603.27153", "Table 4", "Long Range Arena, Nyströmformer, accuracy (%)",
        _tested(_rows(_LRA_TASKS, _LRA, "37.1 63.8 79.8 39.9 72.9", "37.9 64.8 80.7 40.8 73.8"), _LRA_TESTED),
        _LRA_OPEN, elsewhere=_LRA_ELSEWHERE,
    ),
    Item(
        "figure4", "2603.27153", "Figure 4", "condition number of heads, and iterations until the baseline's accuracy",
        _rows("Text, ListOps", "lra_text listops", "", "", "kappa", of="κ, ")
        + _rows("Text, ListOps", "lra_text listops", "", "", "steps", of="iterations, "),
        ("No number stands in the text.",
         "Whose accuracy it is, on which set, is not said; here it is dev accuracy, of the mean over seeds.",
         "In what precision κ was measured is not said. Fresh models' lie beyond what float32 resolves, so here it is "
         "float64, on long sequences: with fewer stretches that hold tokens than a head is wide, it is singular."),
    ),
    Item(
        "table5", "2603.27153", "Table 5", "GLUE after Crammed BERT, scores of the tasks",
        _glue(", ".join([*_GLUE][:-1]), "83.8 92.3 86.3 55.1 90.1 87.3 85.0 48.9 78.6",
              "84.9 92.9 87.5 55.9 90.9 88.4 85.9 50.0 79.6"),
        _GLUE_OPEN,
    ),
    Item(
        "table6", "2603.27153", "Table 6", "memory of training on the Long Range Arena (GB)",
        _rows(_LRA_TASKS, _LRA_MODELS, "5.6 3.6 13.8 9.6 9.6", "5.8 3.6 15.8 9.6 9.6", "memory"),
        by="bench step",
    ),
    Item(
        "table7", "2603.27153", "Table 7", "training time on the Long Range Arena (hours:minutes)",
        (Row("all five tasks", None, "8:30", "8:37", "hours"),),
        ("One number for five trainings: Table 4 runs each of them, and its reports have the time of a step.",),
    ),
)  # fmt: skip

_SPECTRAL = (
    Item(
        "spectral_imagenet", "2603.07162", "ImageNet", "ImageNet-1k, top-1 accuracy (%)",
        _rows("ViT-B, DeiT-B, Swin-B, XCiT-M, DaViT-B", "vit_b deit_b swin_b xcit_m24 davit_b",
              "80.7 81.6 83.4 82.6 84.3", "81.7 82.6 84.1 83.5 84.9"),
        (_SUMMARY, _PER_HEAD, _STRENGTH,
         "Its plain ViT-B has 80.7, that of arXiv 2603.27153 has 80.2; the other three plain models agree."),
        "spectral_published",
    ),
    Item(
        "spectral_coco", "2603.07162", "COCO", "COCO, Mask R-CNN, average precision",
        _detection("detection_xcit_s12", "44.9 66.1 40.1", "45.6 66.7 40.5", "XCiT-S, ", "box AP, box AP50, mask AP"),
        (_SUMMARY,), "spectral_published",
    ),
    Item(
        "spectral_lra", "2603.07162", "Long Range Arena", "Long Range Arena, Nyströmformer, accuracy (%)",
        _tested(_rows(_LRA_TASKS, _LRA, "37.1 63.8 79.8 39.9 72.9", "37.8 64.8 80.6 40.2 73.7"), _LRA_TESTED),
        (_SUMMARY, _STRENGTH), "spectral_published", elsewhere=_LRA_ELSEWHERE,
    ),
    Item(
        "spectral_glue", "2603.07162", "GLUE", "GLUE after Crammed BERT",
        _glue("CoLA, average", "48.9 78.6", "51.7 79.4"),
        (_SUMMARY,), "spectral_published",
    ),
    Item(
        "spectral_projections", "2603.07162", "κ of W_Q, W_K and W_V",
        "condition number of the projections while a model trains",
        (Row("ViT-B", "vit_b", "", "", "kappa_weights"),),
        ("Which models it shows is not known here, and no number is; ViT-B stands for them.",), "spectral_published",
    ),
    Item(
        "spectral_lambda", "2603.07162", "λ", "accuracy by λ: 10 is reported as the best",
        (Row("ViT-B, λ = 10", "vit_b", "", "", "score"),),
        (_SUMMARY, _STRENGTH,
         "Which model the ablation is of is not known here; `compare --variants` takes `spectral=0.3` and the like."),
        "spectral_published",
    ),
)  # fmt: skip

ITEMS: dict[str, Item] = {item.name: item for item in (*_PRECONDITIONED, *_SPECTRAL)}
