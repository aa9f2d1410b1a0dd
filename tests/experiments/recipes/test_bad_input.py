"""What is wrong with a folder of images, a list or a wish for a GPU is one line, before anything is written."""

import pytest
import torch

from tests.experiments.pictures import digit, write_digits
from tests.test_cli import call

NO_GPU = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is one")
FOLDER, VIT_B = ["image_folder", "--data-dir", "data"], ["vit_b", "--data-dir", "data", "--classes", "10"]
WITH_LIST = [*VIT_B, "--val-labels", "data/list.txt"]
SMALL = ["--timm-model", "test_vit", "--image-size", "32"]


def one_class(root):
    write_digits(root / "data" / "train", 0, 60, classes=1)


def ten(root):
    write_digits(root / "data" / "train", 0, 40)
    write_digits(root / "data" / "val", 40, 40)


def truncated(root):
    ten(root)
    for file in sorted((root / "data").rglob("*.png"))[:12]:
        file.write_bytes(file.read_bytes()[:60])


def with_list(text):
    def made(root):
        write_digits(root / "data" / "train", 0, 40)
        (root / "data" / "val").mkdir()
        for i in range(4):
            digit(i).save(root / "data" / "val" / f"ILSVRC2012_val_{i:08}.JPEG")
        (root / "data" / "list.txt").write_bytes(text)
        (root / "data" / "meta.mat").write_bytes(bytes(range(256)))

    return made


@pytest.mark.parametrize(
    ("data", "arguments", "words"),
    [
        (one_class, ["train", *FOLDER], "there is one class only, 0: nothing to tell apart"),
        (ten, ["compare", "deit_b", "--data-dir", "data"], "data has 10 classes, and classes=1000 were expected"),
        (
            truncated,
            ["compare", *FOLDER],
            "12 of 80 items cannot be read: train/0/0.png (OSError: image file is trunca",
        ),
        (with_list(b"0\n1\n2\n"), ["train", *WITH_LIST], "data/list.txt has 3 lines, and there are 4 images"),
        (with_list(b"\xff" * 9), ["train", *WITH_LIST], "data/list.txt cannot be read as a list of classes (Unicode"),
        (with_list(b"11\n12\n13\n14\n"), ["train", *WITH_LIST], "data/meta.mat is not the development kit's, or dama"),
        (ten, ["compare", *VIT_B, *SMALL, "--batch-size", "42"], "batch_size=42 leaves no batch of 40 samples"),
        pytest.param(
            ten, ["train", *VIT_B, "--precision", "fp16"], "precision='fp16' needs a GPU; on a CPU 'no'", marks=NO_GPU
        ),
        pytest.param(
            ten, ["compare", *VIT_B, "--parallel", "fsdp2"], "parallel='fsdp2' was asked for, but this", marks=NO_GPU
        ),
        (ten, ["train", *VIT_B, "--parallel", "ddp"], "parallel='ddp' was asked for, but this is 1 process(es) on "),
    ],
)
def test_it_is_one_line_and_nothing_is_lost(tmp_path, monkeypatch, capsys, data, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data" / ".cache"))
    data(tmp_path)
    images = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.*g")}
    assert call(*arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {words}")
    assert said.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "no folder that another setting would have to leave"
    assert {path: path.read_bytes() for path in images} == images
    scanned = bool(list((tmp_path / "data").glob(".cache/conditioned-attention/scan-*.json")))
    assert scanned == (data is truncated or "42" in arguments), "whatever is known sooner is said before all are read"
