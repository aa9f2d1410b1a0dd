"""What the recipes of the papers' models will take, into docs/experiments.md: ``python -m …planning.recipes_table``."""

from pathlib import Path

from conditioned_attention.experiments.planning.dry_run import size, task_to_plan
from conditioned_attention.experiments.planning.estimate import estimate
from conditioned_attention.experiments.recipes.registry import RECIPES, recipe_class
from conditioned_attention.experiments.training.launch import Launch

PAGE = Path(__file__).parents[3] / "docs" / "experiments.md"
BEGIN, END = "<!-- recipes_table -->\n", "<!-- end of recipes_table -->\n"
COLUMNS = (
    "recipe", "parameters", "forward, an image", "FLOPs of the run", "memory", "with `--recompute`", "GPU hours",
    "with `--recompute`",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def row_of(name):
    recipe = recipe_class(name)()
    task = task_to_plan(recipe)
    how = {"gpu": "A100-80", "gpus": 8, "measure": False}
    plain, again = (
        estimate(task, recipe.training, ["preconditioned"], **how, launch=Launch(recompute=wish))[0]
        for wish in (False, True)
    )
    forward = (
        plain.micro_batch_flops / plain.micro_batch / 3e9
    )  # backward is twice the forward, but for the first layer
    cells = (
        f"`{name}`", f"{plain.parameters / 1e6:.1f} M", f"{forward:.1f} G", f"{plain.flops:.1e}",
        size(plain.memory_bytes), size(again.memory_bytes), f"{plain.gpu_hours:,.0f}", f"{again.gpu_hours:,.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def main():
    names = [name for name, (file, _) in RECIPES.items() if file == "imagenet" or name.startswith("detection_")]
    before, rest = PAGE.read_text().split(BEGIN)
    table = HEAD + "".join(row_of(name) for name in names)
    PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
