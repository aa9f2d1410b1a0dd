"""The Python of a page, each block by itself: in a process of its own, with nothing but what it imports."""

import ast
import os
import re
import sys
import traceback
from importlib import import_module

import torch

from tests.processes import Forked


def blocks_of(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_alone(blocks, folder):
    """Runs each block in a process and in a folder of its own, ``folder/0`` and so on; gives what each has printed.

    Raises AssertionError if one fails.
    """
    for number in range(len(blocks)):
        (folder / str(number)).mkdir()
    process = Forked(folder / "failures.txt", _run_each, blocks, folder)
    status = process.wait(timeout=100)
    assert status == 0, process.said.read_text()
    return [(folder / f"{number}.txt").read_text() for number in range(len(blocks))]


def _run_each(blocks, folder):
    for block in blocks:  # imported once for all of them; Python that computes nothing yet may be forked
        for line in ast.walk(ast.parse(block)):
            if isinstance(line, ast.ImportFrom):
                vars(import_module(line.module)).get(line.names[0].name)
    failed = []
    for number, block in enumerate(blocks):
        child = os.fork()
        if child == 0:
            os._exit(_run(block, folder / str(number), folder / f"{number}.txt"))
        if os.waitpid(child, 0)[1] != 0:
            failed.append(f"block {number}:\n{(folder / f'{number}.txt').read_text()}")
    print("\n".join(failed))
    raise SystemExit(bool(failed))


def _run(block, place, said):
    os.chdir(place)
    # Makes PyTorch's pool of threads anew, as after each fork: two threads that did it at once would meet none.
    torch.set_num_threads(1)
    with said.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            exec(compile(block, "page.md", "exec"), {"__name__": "__main__"})
            return 0
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
