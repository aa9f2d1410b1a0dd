"""A torchvision that was built for another torch is said in one line, with the command that mends it."""

import os
import subprocess
import sys

CODE = """
import sys
from conditioned_attention import cli
for arguments in (["env"], ["train", "digits", "--folder", "run"], ["inspect", "vit_tiny_patch16_224"]):
    try:
        cli.main(arguments)
    except SystemExit as ended:
        print("STATUS", arguments[0], ended.code or 0, flush=True)
"""


def test_a_torchvision_that_does_not_fit_is_said_in_one_line(tmp_path):
    package, about = tmp_path / "torchvision", tmp_path / "torchvision-0.1.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nand more')")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("STATUS")]
    assert said == ["STATUS env 0", "STATUS train 2", "STATUS inspect 2"], done.stderr
    problem = "torchvision 0.1 does not fit torch "
    assert f'"{problem}' in done.stdout, "env says it among the problems"
    errors = done.stderr.splitlines()
    assert len(errors) == 2, done.stderr
    for line in errors:
        assert line.startswith(f"error: {problem}")
        assert "(operator torchvision::nms does not exist); install a pair" in line
        assert "pip install --force-reinstall torch==" in line
    assert "Traceback" not in done.stderr
