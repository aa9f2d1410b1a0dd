"""Makes the site's pages of the repository's own files, so that nothing is written twice.

README.md is the front page, the examples stand on one page, the reference is made from the public names, and links to
files that are no page go to the repository.
"""

import re
from dataclasses import is_dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import get_args, get_type_hints

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

import conditioned_attention
from conditioned_attention import conversion, experiments, measure
from conditioned_attention.experiments.recipes.registry import RECIPES, recipe_class
from conditioned_attention.measure import plots

ROOT = Path(__file__).parents[1]
PICTURES = {".png", ".svg", ".gif"}
# file of the repository -> page of the site; those of docs/ keep their names
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples/index.md",
    "results/README.md": "results/index.md",
}
LINK = re.compile(r"(?P<before>!?\[[^\]]*\]\()(?P<target>[^)\s]+)(?P<after>[^)]*\))")
CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Adds the pages that are not in docs/, and every picture that a page shows."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "reference.md", content=reference()))
    files.append(File.generated(config, "settings.md", content=settings()))
    files.append(File.generated(config, "site.css", abs_src_path=str(Path(__file__).with_name("site.css"))))
    for picture in sorted(ROOT.glob("results/**/*")):
        if picture.suffix in PICTURES:
            files.append(File.generated(config, picture.relative_to(ROOT).as_posix(), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as the site needs them; the page of the examples shows them whole."""
    uri = page.file.src_uri
    source = {page: source for source, page in PAGES.items()}.get(uri, f"docs/{uri}")
    if uri == "examples/index.md":
        markdown += "".join(f"\n## {file.name}\n\n```python\n{file.read_text()}```\n" for file in examples())
    parts = CODE.split(markdown)
    parts[::2] = [
        LINK.sub(lambda link: relinked(link, source, uri, config.extra["repository"]), text) for text in parts[::2]
    ]
    return "".join(parts)


def examples():
    return sorted((ROOT / "examples").glob("*.py"))


def relinked(link, source, uri, repository):
    """The link of a page to a file of the repository, as a link from the site's page to where that file is now."""
    target, _, anchor = link["target"].partition("#")
    if "://" in target:  # badges are pictures from elsewhere, of which the site needs none
        return "" if link["before"].startswith("!") else link[0]
    if not target:
        return link[0]
    path = normpath(PurePosixPath(source).parent / target)
    if not (ROOT / path).exists():
        raise PluginError(f"{source} links to {link['target']}, which is not there")
    anchor = anchor and f"#{anchor}"
    if path.startswith("examples/") and path.endswith(".py"):
        path, anchor = "examples/README.md", "#" + path.removeprefix("examples/").replace(".", "")
    if path == "examples":
        path = "examples/README.md"
    if path in PAGES:
        to = PAGES[path]
    elif path.startswith("docs/"):
        to = path.removeprefix("docs/")
    elif PurePosixPath(path).suffix in PICTURES:
        to = path
    else:
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{link['before']}{repository}/{kind}/main/{path}{anchor}{link['after']}"
    return f"{link['before']}{relpath(to, PurePosixPath(uri).parent)}{anchor}{link['after']}"


def reference():
    """The public names of the packages that say which these are, each by its docstring."""
    lines = [
        "# Reference",
        "",
        "Every public name.  The core needs torch alone; `experiments` needs the extra of that name.",
        "",
    ]
    shown = set()
    for package in (conditioned_attention, conversion, measure, plots, experiments):
        lines += [f"## {package.__name__}", ""]
        for name in package.__all__:
            if name not in shown and not name.startswith("_"):
                shown.add(name)
                lines += [f"::: {package.__name__}.{name}", ""]
    return "\n".join(lines)


def settings():
    """Every setting of every recipe, by the docstrings of the classes that have them."""
    lines = [
        "# Settings",
        "",
        "Every setting of every recipe: an option of `conditioned-attention train` and `compare`, with hyphens for",
        "underscores (`hidden_size` is `--hidden-size`), and an argument of the class.  A recipe also has the settings",
        "of its bases, of its model and of its training, which follow it where they are first needed.",
        "",
    ]
    named = {recipe_class(name): name for name in RECIPES}
    for cls in settings_classes():
        lines += [f"## {named[cls]}", ""] if cls in named else []
        lines += [f"::: {cls.__module__}.{cls.__qualname__}", "    options: { members: false }", ""]
    return "\n".join(lines)


def settings_classes():
    """The recipes' classes, each followed by those that its settings come from, if these were not there before."""
    found = []

    def add(cls):
        if is_dataclass(cls) and cls not in found:
            found.append(cls)
            kinds = [part for kind in get_type_hints(cls).values() for part in (kind, *get_args(kind))]
            for part in (*cls.__bases__, *(kind for kind in kinds if isinstance(kind, type))):
                add(part)

    for name in RECIPES:
        add(recipe_class(name))
    return found
