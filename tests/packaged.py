"""A wheel where there is torch and nothing else: it imports without a word, converts, and says what its commands need.

python -m tests.packaged build/dist/*.whl
"""

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

USE = """
import conditioned_attention as ca
import torch
assert ca.__file__.startswith(sys.path[0]), ca.__file__
q = torch.randn(1, 2, 5, 4, requires_grad=True)
ca.preconditioned_attention(q, q, q).sum().backward()
model = torch.nn.Transformer(8, 2, 1, 1, 8, batch_first=True)
print(ca.precondition(model))
"""
COMMAND = "from conditioned_attention.cli import main; main(['env'])"


def link_torch(folder):
    """Puts torch and what it requires into a folder, as links to what is installed here."""
    left, seen = ["torch"], set()
    while left:
        name = left.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        seen.add(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))
        needs = [line for line in found.requires or () if "extra ==" not in line]
        left += [need for line in needs if (need := re.match(r"[\w.-]+", line).group()) not in seen]


def run(folder, code):
    """In a process that sees the folder and the standard library."""
    begin = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run([sys.executable, "-I", "-S", "-c", begin + code], capture_output=True, text=True, cwd=folder)


def main(wheel):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
        subprocess.run([sys.executable, *install, "--target", folder, wheel], check=True)
        link_torch(folder)
        used, asked = run(folder, USE), run(folder, COMMAND)
    assert (used.returncode, used.stderr) == (0, ""), used.stderr
    assert used.stdout.count("converted") == 3, used.stdout
    assert asked.returncode == 1, asked
    assert asked.stderr.endswith("needs: pip install 'conditioned-attention[experiments]'\n"), asked.stderr
    print(f"{Path(wheel).name}: works with torch alone")


if __name__ == "__main__":
    (path,) = sys.argv[1:]
    main(path)
