"""Draws the house: rooms (packages, and files beside them), and the arrows of imports between them.

``python -m tests.structure`` prints how many there are, and writes the drawing that `test_structure` holds the code to.
"""

import ast
import graphlib
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import conditioned_attention

SOURCE = Path(conditioned_attention.__file__).parent
DRAWING = Path(__file__).with_name("arrows.txt")
NAME = conditioned_attention.__name__


def files():
    """Every module by its dotted name below the package, without the ``__init__`` files."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] != "__init__":
            found[".".join(parts)] = path
    return found


def room_of(module):
    """The package that holds it; a file beside the packages is a room of its own."""
    return module.rpartition(".")[0] or module


@cache
def arrows():
    """``{module: {modules or packages that it imports}}``, imports inside functions too."""
    known, found = files(), defaultdict(set)
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [name if name.removeprefix(f"{NAME}.") in known else node.module for name in inner]
            else:
                continue
            found[module] |= {name.removeprefix(f"{NAME}.") for name in targets if name.startswith(f"{NAME}.")}
    return found


def between_rooms(of_modules):
    """The same between rooms."""
    known, found = files(), defaultdict(set)
    for module, targets in of_modules.items():
        rooms = {room_of(target) if target in known else target for target in targets}
        found[room_of(module)] |= rooms - {room_of(module)}
    return found


def circle(graph):
    """The first circle that there is, as a list of names; None if there is none."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def drawing():
    """One line a room: what it imports."""
    rooms = between_rooms(arrows())
    return "".join(f"{room} -> {', '.join(sorted(rooms[room]))}\n" for room in sorted(rooms) if rooms[room])


def main():
    of_modules = arrows()
    rooms = between_rooms(of_modules)
    lines = sum(len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py"))
    sys.stdout.write(
        f"{lines} lines in {len(files())} files and {len({room_of(module) for module in files()})} rooms, "
        f"{sum(map(len, rooms.values()))} arrows between rooms, {sum(map(len, of_modules.values()))} between files\n"
        f"a circle of rooms: {circle(rooms)}\na circle of files: {circle(of_modules)}\n"
    )
    DRAWING.write_text(drawing())


if __name__ == "__main__":
    main()
