"""The page ``docs/gallery.md`` run as written, and its pictures; ``make gallery`` calls it.

python -m tests.gallery runs/gallery
"""

import re
import sys
from pathlib import Path

from conditioned_attention.measure.plots.files import png

DOCS = Path(__file__).parents[1] / "docs"
_LIGHT = 'theme="light"'


def run_page(text, folder, theme="light"):
    """Runs the page's blocks of Python, each by itself.

    Args:
        text: the page.
        folder: of the comparison that it draws.
        theme: what to put in the place of the page's.

    Returns:
        For the name of each picture that stands below a block, the axes that the block left as ``ax`` or ``axes``.
    """
    text = text.replace(_LIGHT, f'theme="{theme}"').replace('"runs/gallery', f'"{folder}')
    pictures = {}
    for part in text.split("```python\n")[1:]:
        block, _, rest = part.partition("```")
        names = {}
        exec(compile(block, "gallery.md", "exec"), names)
        for name in re.findall(r'src="pictures/(.*?)-light\.png"', rest):
            pictures[name] = names["axes"] if "axes" in names else [names["ax"]]
    return pictures


def main(folder):
    page = (DOCS / "gallery.md").read_text()
    (DOCS / "pictures").mkdir(exist_ok=True)
    for theme in ("light", "dark"):
        for name, axes in run_page(page, folder, theme).items():
            (DOCS / "pictures" / f"{name}-{theme}.png").write_bytes(png(axes[0].figure, dpi=240))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
