"""The notebooks, run from a fresh kernel; ``make notebooks`` stores what they print and draw.

python -m tests.notebooks
"""

import base64
import hashlib
import io
import os
import tempfile
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(path, folder):
    """A notebook as stored, run anew by a kernel that works in an empty folder, with the package of this checkout.

    Args:
        path: of the notebook.
        folder: what is not there yet; Jupyter and IPython keep their own files beside the working folder in it.

    Returns:
        The notebook with its new outputs; a cell that raises raises CellExecutionError.
    """
    notebook = nbformat.read(path, as_version=4)
    work = Path(folder) / "work"
    work.mkdir(parents=True)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(work)}}, record_timing=False
    )
    environment = {
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm asks for a progress bar that nothing here shows
        "IPYTHONDIR": str(folder),
        "TMPDIR": str(folder),
    }
    with mock.patch.dict(os.environ, environment):  # of this process too, which looks for kernels in IPYTHONDIR
        client.create_kernel_manager().connection_file = str(Path(folder) / "kernel.json")
        client.execute()
    return notebook


def sources(notebook):
    """What stands for the code of a notebook, to be stored beside its outputs."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def text(cell):
    """What a cell printed."""
    return "".join(output.text for output in cell.get("outputs", ()) if output.output_type == "stream")


def pictures(cell):
    """The pictures that a cell drew, as PNG files."""
    images = [output.data.get("image/png") for output in cell.get("outputs", ()) if "data" in output]
    return [base64.b64decode(image) for image in images if image]


def normalise(notebook):
    """Leaves nothing in a notebook that depends on when and where it ran, and makes its pictures small.

    Pictures keep the size that they are shown in, of which they have twice the pixels.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "executed": sources(notebook),
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            if "data" in output and "image/png" in output.data:
                output.data = nbformat.from_dict({"image/png": _small(output.data["image/png"])})
                output.metadata = nbformat.from_dict({"image/png": output.metadata.get("image/png", {})})


def _small(image):
    """A PNG in 256 colours, without metadata; both are base64."""
    kept = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(kept, "PNG", optimize=True)
    return base64.b64encode(kept.getvalue()).decode()


def main():
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder) / "run")
        normalise(notebook)
        nbformat.write(notebook, path)
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
