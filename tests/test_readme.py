"""The README does what it says: its Python runs as written, in one go."""

import re
from pathlib import Path

import pytest

from conditioned_attention.bench.tables import readme_text, split_at_marks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["y"] is not None
    assert len(names["monitor"].records) == 8
    printed = capsys.readouterr().out
    assert "encoder.layer.1.attention.self" in printed
    assert "head_rmsnorm: " in printed


@pytest.mark.parametrize("line", re.findall(r"^conditioned-attention .*$", README, re.MULTILINE))
def test_command_lines_of_the_readme_parse(line):
    import tyro

    from conditioned_attention.cli import CONFIG, Command

    arguments = line.split()[1:]
    assert tyro.cli(Command, args=arguments, config=CONFIG) is not None


def test_the_costs_in_the_readme_are_those_measured():
    """If this fails: ``conditioned-attention bench table results/bench --into README.md``."""
    _, between, _ = split_at_marks(ROOT / "README.md")
    assert between == readme_text(ROOT / "results" / "bench")
