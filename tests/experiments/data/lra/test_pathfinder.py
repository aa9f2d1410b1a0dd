"""Pathfinder: paths, discs and labels of what is drawn, and the release as it comes."""

import dataclasses
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from conditioned_attention.experiments.data.lra import pathfinder as module
from conditioned_attention.experiments.data.lra.dashes import dash, disc
from conditioned_attention.experiments.data.lra.pathfinder import PathfinderScenes, drawn, pathfinder
from conditioned_attention.experiments.data.lra.pathfinder_files import read_pathfinder
from tests.experiments.data.lra.files import write_pathfinder

SMALL = PathfinderScenes(side=16, path_length=4, distractors=1, distractor_length=2, seed_distance=3)


@pytest.fixture(scope="module")
def scenes():
    parts = [drawn(PathfinderScenes(), part) for part in range(3)]
    return [np.concatenate(arrays) for arrays in zip(*parts)]


@pytest.mark.slow
def test_two_paths_of_fourteen_dashes(scenes):
    pixels, _, paths, _ = scenes
    assert len(pixels) > 100
    assert pixels.shape[1:] == (32, 32)
    assert paths.shape[1:] == (2, 14, 2)
    assert paths.min() >= 0
    assert paths.max() <= 31
    assert (abs(np.linalg.norm(paths[:, 0, 0] - paths[:, 1, 0], axis=1) - 7) < 0.8).all(), "they begin 7 pixels apart"
    steps = np.linalg.norm(np.diff(paths[:, :, 1:].astype(int), axis=2), axis=-1)
    assert 3 < np.median(steps) < 5, "a dash of 2, and a pixel free on either side"
    assert steps.max() < 7.5
    places = (paths[..., 0].astype(int) * 32 + paths[..., 1]).reshape(len(pixels), -1)
    lit = np.take_along_axis(pixels.reshape(len(pixels), -1), places, 1)
    assert lit.min() > 100, "there is something at every tip"
    assert 0.4 < (pixels == 0).mean() < 0.65
    assert (pixels.max((1, 2)) == 255).all()


def test_paths_keep_their_distance(scenes):
    """No tip lies on another's, but for the newest ones of both paths, which the original does not hold apart."""
    path, number = np.divmod(np.arange(28), 14)
    newest = (path[:, None] != path) & (abs(number[:, None] - number) <= 1)
    elsewhere = np.triu(~newest, 1)
    for paths in scenes[2]:
        tips = paths.reshape(-1, 2).astype(int)
        apart = np.linalg.norm(tips[:, None] - tips, axis=-1)
        assert apart[elsewhere].min() >= 1


def test_the_label_says_whether_both_discs_are_on_one_path(scenes):
    pixels, labels, paths, discs = scenes
    for picture, label, both, (begin, end) in zip(pixels, labels, paths, discs):
        begins = [i for i in (0, 1) if (both[i, 0] == begin).all()]
        ends = [i for i in (0, 1) if (both[i, -1] == end).all()]
        assert [label] == [int(begins == ends)]
        for row, column in (begin, end):
            around = picture[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert around.mean() > 80, "a disc"
    assert binomtest(int(labels.sum()), len(labels)).pvalue > 0.001


def test_distractors_are_brighter_and_no_part_of_the_paths():
    alone, some = (drawn(dataclasses.replace(SMALL, distractors=n), 0) for n in (0, 3))
    assert (alone.paths == some.paths).all()
    assert (some.pixels > 0).sum() > 1.2 * (alone.pixels > 0).sum()


def test_straight_on_when_asked_for():
    def turns(continuity):
        wide = dataclasses.replace(SMALL, side=40, distractors=0, continuity=continuity)
        steps = np.diff(drawn(wide, 1).paths[:, :, 1:].astype(int), axis=2)
        angles = np.arctan2(steps[..., 0], steps[..., 1])
        return abs(np.angle(np.exp(1j * np.diff(angles, axis=2)))).mean()

    assert turns(2.0) < 0.7 * turns(1.0)


def test_dashes_and_discs_are_these():
    shapes = [part for angle in np.radians(np.arange(360) + 0.3) for part in dash(angle)]
    assert zlib.crc32(b"".join(one.tobytes() for one in (*shapes, disc()))) == 3511714194, "what runs were trained on"
    line, room = dash(0.0)
    assert line[4, 4:7].min() > 90
    assert line[4, :2].max() == line[6:].max() == 0
    assert room[4, 4:7].min() == 255


def test_the_same_for_every_count_and_kept(tmp_path, monkeypatch):
    many, few = (pathfinder(count, SMALL, tmp_path) for count in (60, 20))
    assert (few.tokens == many.part(0, 20).tokens).all()
    assert few.padded == 256
    assert few.fingerprint() == many.part(0, 20).fingerprint() != many.part(1, 20).fingerprint()
    monkeypatch.setattr(module, "_made", None)
    assert (pathfinder(20, SMALL, tmp_path).tokens == few.tokens).all()
    monkeypatch.undo()
    other = pathfinder(20, dataclasses.replace(SMALL, stream=1), tmp_path)
    assert other.fingerprint() != few.fingerprint()
    assert (other.tokens != few.tokens).any()
    with pytest.raises(ValueError, match="count and processes must be at least 1"):
        pathfinder(0, SMALL, tmp_path)
    for name, wrong in (("path_length", 1), ("seed_distance", 4), ("continuity", 0.5), ("stream", -1)):
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(SMALL, **{name: wrong})


def test_postscript_is_no_picture_whatever_it_is_called(tmp_path):
    variant = tmp_path / "curv_contour_length_14"
    write_pathfinder(variant)
    Image.new("L", (32, 32)).save(variant / "imgs" / "2" / "sample_1.png", "EPS")  # Pillow would start a program
    assert read_pathfinder(tmp_path, 32)[1] == ["1 pictures are left out: imgs/2/sample_1.png is no picture"]


def test_the_release_and_its_broken_pictures(tmp_path):
    variant = tmp_path / "curv_contour_length_14"
    write_pathfinder(variant)
    data, notes = read_pathfinder(tmp_path, 32)
    assert notes == []
    assert len(data) == 20
    numbers = [int(data.sequence(i)[0]) for i in range(20)]
    assert sorted(numbers) == [*range(10), *range(100, 110)]
    assert numbers != sorted(numbers), "shuffled"
    assert [number % 2 for number in numbers] == data.labels.tolist()
    (variant / "imgs" / "2" / "sample_1.png").write_bytes(b"")
    (variant / "imgs" / "2" / "sample_2.png").write_bytes(b"x")
    (variant / "imgs" / "10" / "sample_3.png").unlink()
    Image.new("L", (8, 9)).save(variant / "imgs" / "10" / "sample_4.png")
    with (variant / "metadata" / "2.npy").open("a") as file:
        file.write("imgs/2 sample_0.png 0 2 1.0\nimgs/2\n")
    np.save(variant / "metadata" / "11.npy", np.array([["imgs/2", "sample_5.png", 5, 1, 1.0]]))
    np.save(variant / "metadata" / "12.npy", np.array([["imgs/2", {}]], object))
    data, notes = read_pathfinder(variant, 32)
    assert len(data) == 17
    assert notes[0].startswith(
        "3 broken lines are left out: metadata/2.npy line 11 has the label '2', not 0 or 1; metadata/2.npy line 12 has "
        "no label; metadata/12.npy cannot be read (ValueError: "
    )
    assert notes[1:] == [
        "4 pictures are left out: imgs/2/sample_1.png has no bytes; imgs/2/sample_2.png is no picture; "
        "imgs/10/sample_3.png is missing; imgs/10/sample_4.png has 8 × 9 pixels"
    ]
    assert data.fingerprint()["left out"] == 7
    with pytest.raises(FileNotFoundError, match=r"imgs has no metadata/\*\.npy: name a folder of the release"):
        read_pathfinder(variant / "imgs", 32)
