"""Mask R-CNN on XCiT against loops: taps, adapters, anchors, pooling, losses; and the weights it starts with."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from conditioned_attention import conditioning, precondition
from conditioned_attention.experiments.models.classification_weights import load_classification
from conditioned_attention.experiments.models.mask_rcnn import Features, XCiTMaskRCNN, adapters
from conditioned_attention.experiments.models.region_ops import (
    Anchors,
    Proposals,
    RegionPool,
    box_losses,
    mask_loss,
)
from conditioned_attention.experiments.models.small_family import SmallFamily
from conditioned_attention.storage.files import write_json
from tests.experiments.objects import TINY


def xcit(depth=4, width=16):
    torch.manual_seed(0)
    return SmallFamily("xcit", width, depth).build(64, 3, 5)


@pytest.mark.parametrize(("depth", "taps"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (2, (0, 0, 0, 1))])
def test_features_are_those_behind_the_published_blocks(depth, taps):
    model = xcit(depth)
    features = Features(model, 8).eval()
    assert features.taps == taps
    images, seen = torch.rand(2, 3, 64, 96), {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, out, i=i: seen.__setitem__(i, (out, *args[1:])))
    levels = features(images)
    maps = []
    for tap, adapt in zip(taps, features.adapters):
        tokens, height, width = seen[tap]
        maps.append(adapt(tokens.transpose(1, 2).reshape(2, 16, height, width)))
    for ours, theirs in zip(levels.values(), features.fpn({str(i): level for i, level in enumerate(maps)}).values()):
        assert torch.equal(ours, theirs)
    assert [tuple(level.shape[-2:]) for level in levels.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert list(levels) == ["0", "1", "2", "3", "pool"]


def up(x, layer):
    """A transposed convolution of 2 × 2 by a loop: each place becomes four."""
    out = torch.zeros(len(x), layer.out_channels, 2 * x.shape[2], 2 * x.shape[3])
    for i in range(2):
        for j in range(2):
            out[:, :, i::2, j::2] = torch.einsum("bcyx,cd->bdyx", x, layer.weight[:, :, i, j])
    return out + layer.bias[:, None, None]


def test_adapters_of_both_patches():
    torch.manual_seed(0)
    x = torch.rand(2, 4, 8, 8)
    first, second, same, down = adapters(4, 16).eval()
    normed = (up(x, first[0]) - first[1].running_mean[:, None, None]) / (first[1].running_var + 1e-5).sqrt()[
        :, None, None
    ]
    torch.testing.assert_close(first(x), up(F.gelu(normed), first[3]))
    torch.testing.assert_close(second(x), up(x, second))
    pieces = x.reshape(2, 4, 4, 2, 4, 2)
    assert torch.equal(same(x), x)
    assert torch.equal(down(x), pieces.amax((3, 5)))
    first, same, half, quarter = adapters(4, 8)
    torch.testing.assert_close(first(x), up(x, first))
    assert torch.equal(same(x), x)
    assert torch.equal(half(x), pieces.amax((3, 5)))
    assert torch.equal(quarter(x), x.reshape(2, 4, 2, 4, 2, 4).amax((3, 5)))
    with pytest.raises(ValueError, match="patches of 8 or 16 pixels, got 4"):
        adapters(4, 4)


def test_anchors_by_a_loop():
    strides, sizes = (4, 8, 64), [(3, 2), (2, 1), (1, 1)]
    maps = [torch.zeros(2, 1, *size) for size in sizes]
    found = Anchors(strides)(ImageList(torch.zeros(2, 3, 12, 8), [(12, 8), (9, 8)]), maps)
    wanted = []
    for stride, (height, width) in zip(strides, sizes):
        for y in range(height):
            for x in range(width):
                for ratio in (0.5, 1.0, 2.0):
                    w, h = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                    wanted.append([x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2])
    assert len(found) == 2
    for anchors in found:
        torch.testing.assert_close(anchors, torch.tensor(wanted))


def bilinear(image, y, x):
    """The value of (H, W) at a place within it, whose pixels have their values at whole numbers."""
    y, x = (min(max(place, 0.0), side - 1.0) for place, side in zip((y, x), image.shape))
    top, left = int(y), int(x)
    bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
    fy, fx = y - top, x - left
    upper = image[top, left] * (1 - fx) + image[top, right] * fx
    return upper * (1 - fy) + (image[bottom, left] * (1 - fx) + image[bottom, right] * fx) * fy


def pooled(image, box, stride, size):
    """Aligned RoIAlign of (H, W), as many points as cover a place."""
    left, top, right, bottom = (float(side) / stride - 0.5 for side in box)
    high, wide = (bottom - top) / size, (right - left) / size
    ny, nx = math.ceil(high), math.ceil(wide)
    out = torch.zeros(size, size, dtype=image.dtype)
    for i in range(size):
        for j in range(size):
            points = [
                bilinear(image, top + (i + (a + 0.5) / ny) * high, left + (j + (b + 0.5) / nx) * wide)
                for a in range(ny)
                for b in range(nx)
            ]
            out[i, j] = sum(points) / len(points)
    return out


def test_regions_are_pooled_from_the_level_of_their_size():
    torch.manual_seed(0)
    strides = (4, 8, 16, 32)
    maps = {str(i): torch.rand(2, 1, 512 // s, 512 // s, dtype=torch.float64) for i, s in enumerate(strides)}
    maps["pool"] = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    boxes = [
        torch.tensor([[3.0, 8, 40, 39], [10, 20, 121.9, 131.9], [10, 20, 122.1, 132.1]], dtype=torch.float64),
        torch.tensor([[20.0, 9, 300, 311], [2, 3, 490, 500]], dtype=torch.float64),
    ]
    levels = [0, 0, 1, 2, 3]
    found = RegionPool(3, strides)(maps, boxes, None)
    pairs = [(picture, box) for picture, some in enumerate(boxes) for box in some]
    for ours, (picture, box), level in zip(found, pairs, levels, strict=True):
        torch.testing.assert_close(ours[0], pooled(maps[str(level)][picture, 0], box, strides[level], 3))


def test_losses_by_loops():
    torch.manual_seed(0)
    logits, deltas, targets = torch.randn(6, 4), torch.randn(6, 16), torch.randn(6, 4)
    labels = torch.tensor([0, 3, 0, 1, 2, 0])
    which = -sum(
        math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(logits.tolist(), labels)
    )
    wrong = sum(
        abs(float(deltas[i, 4 * label + j] - targets[i, j]))
        for i, label in enumerate(labels)
        if label
        for j in range(4)
    )
    found = box_losses(logits, deltas, labels, targets)
    assert [float(loss) for loss in found.values()] == pytest.approx([which / 6, wrong / 6], rel=1e-5)

    masks = [torch.zeros(2, 20, 20, dtype=torch.uint8), torch.zeros(0, 20, 20, dtype=torch.uint8)]
    masks[0][0, 4:12, 6:16] = 1
    masks[0][1, 10:, :9] = 1
    truth = [{"masks": masks[0], "labels": torch.tensor([2, 1])}, {"masks": masks[1], "labels": torch.zeros(0).long()}]
    regions = [torch.tensor([[5.0, 3, 17, 13], [0, 9, 12, 19], [5, 5, 9, 9]]), torch.zeros(0, 4)]
    of = [torch.tensor([0, 1, 0]), torch.zeros(0).long()]
    guesses = torch.randn(3, 3, 4, 4)
    total = 0.0
    for guess, box, i in zip(guesses, regions[0], of[0]):
        for p, share in zip(guess[truth[0]["labels"][i]].flatten(), pooled(masks[0][i].double(), box, 1, 4).flatten()):
            total += float(F.softplus(-p if share >= 0.5 else p))
    assert float(mask_loss(guesses, regions, truth, of)) == pytest.approx(total / 48, rel=1e-5)
    assert mask_loss(guesses[:0], [regions[1]], truth[1:], [of[1]]) == 0


def test_proposals_learn_by_the_absolute_error():
    model = TINY.build(3)
    assert isinstance(model.rpn, Proposals)
    labels = [torch.tensor([1.0, 0, -1]), torch.tensor([0.0, 1, 0])]
    logits, deltas, targets = torch.randn(6, 1), torch.randn(6, 4), torch.randn(6, 4)
    found = model.rpn.compute_loss(logits, deltas, labels, [targets[:3], targets[3:]])
    sampled, truth = [0, 1, 3, 4, 5], [1, 0, 0, 1, 0]
    which = sum(math.log1p(math.exp(-x if y else x)) for x, y in zip(logits[sampled, 0].tolist(), truth)) / 5
    wrong = float(sum((deltas[i] - targets[i]).abs().sum() for i in (0, 4))) / 5
    assert [float(loss) for loss in found] == pytest.approx([which, wrong], rel=1e-5)


def batch(counts=(2, 0, 1)):
    torch.manual_seed(1)
    images = [torch.rand(3, 64 - 8 * i, 60 + 8 * i) for i in range(len(counts))]
    targets = []
    for image, count in zip(images, counts):
        boxes = torch.tensor([[5.0, 6, 40, 42], [10, 9, 30, 44]])[:count]
        masks = torch.ones(count, *image.shape[1:], dtype=torch.uint8)
        targets.append({"boxes": boxes, "labels": torch.arange(1, count + 1), "masks": masks})
    return images, targets


@pytest.mark.parametrize("counts", [(2, 0, 1), (0, 0)])
def test_every_weight_learns_and_pictures_may_be_empty(counts):
    model = TINY.build(3)
    losses = model(*batch(counts))
    assert losses.keys() == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if not any(counts):
        assert losses["loss_mask"] == losses["loss_box_reg"] == 0


def test_boxes_are_in_single_precision_where_all_else_is_not():
    model, seen = TINY.build(3), []
    model.roi_heads.register_forward_pre_hook(lambda _, args: seen.extend(args[1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch())
        assert all(loss.isfinite() for loss in losses.values())
        (found,) = model.eval()([torch.rand(3, 64, 90)])
        maps = model.backbone(torch.rand(1, 3, 64, 64))
    assert maps["0"].dtype == torch.bfloat16
    anchors = model.rpn.anchor_generator(ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]), [*maps.values()])
    for boxes in (*seen, *anchors, found["boxes"]):
        assert boxes.dtype == torch.float32
        assert not len(boxes) or (boxes.bfloat16().float() != boxes).any()


@pytest.mark.slow
def test_it_learns_a_picture_by_heart_and_finds_what_is_in_it():
    torch.manual_seed(0)
    model = TINY.build(3)
    image, mask = torch.zeros(3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.uint8)
    image[:, 16:48, 8:40] = 1
    mask[:, 16:48, 8:40] = 1
    target = {"boxes": torch.tensor([[8.0, 16, 40, 48]]), "labels": torch.tensor([2]), "masks": mask}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        sum(model([image, image], [target, target]).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        large = F.interpolate(image[None], scale_factor=2)[0]  # scaled to its size before, and back behind
        (found,) = model([large])
    assert found["labels"][0] == 2
    # as COCO counts it: a box of the other scale shares a quarter at most, and some pixels are a machine's rounding
    assert box_iou(found["boxes"][:1], torch.tensor([[16.0, 32, 80, 96]])) > 0.5
    inside = found["masks"][0, 0] > 0.5
    assert inside.shape == (128, 128)
    true = torch.zeros(128, 128, dtype=torch.bool)
    true[32:96, 16:80] = True
    assert (inside & true).sum() / (inside | true).sum() > 0.7


def test_the_library_converts_it():
    model = TINY.build(3).eval()
    images = batch()[0]
    plain = model.backbone(torch.rand(1, 3, 64, 64, generator=torch.manual_seed(0)))["0"]
    precondition(model)
    names = conditioning(model)["transforms"][0]["modules"]
    assert names == ["backbone.xcit.blocks.0.attn", "backbone.xcit.blocks.1.attn"]
    assert not torch.equal(plain, model.backbone(torch.rand(1, 3, 64, 64, generator=torch.manual_seed(0)))["0"])
    assert len(model(images)) == 3


def exported(folder, model):
    save_file(model.state_dict(), folder / "model.safetensors")
    write_json(folder / "conditioning.json", conditioning(model))
    return str(folder)


def test_a_classifiers_weights_and_what_matched(tmp_path):
    source, backbone = xcit(2), Features(xcit(2, 16), 8).xcit
    nn.init.normal_(source.blocks[0].attn.qkv.weight)
    match = load_classification(backbone, exported(tmp_path, source))
    assert all(backbone.state_dict()[name].equal(source.state_dict()[name]) for name in match.taken)
    assert match.taken == tuple(sorted(backbone.state_dict()))
    assert (match.fresh, match.other_shape, match.conditioned) == ((), (), False)
    assert {name.partition(".")[0] for name in match.unused} == {"cls_attn_blocks", "cls_token", "head", "norm"}
    assert "are not used (cls_attn_blocks, cls_token, head, norm)" in match.in_words()
    wider = Features(xcit(2, 32), 8).xcit
    with pytest.raises(ValueError, match=r"no weight of .* fits Linear"):
        load_classification(nn.Linear(2, 2), str(tmp_path))
    assert "have another shape" in load_classification(wider, str(tmp_path)).in_words()
    with pytest.raises(FileNotFoundError, match="no file and no model of timm"):
        load_classification(backbone, "nowhere")


def test_weights_of_xcits_repository_under_their_own_names(tmp_path):
    source, backbone = xcit(2), Features(xcit(2), 8).xcit
    nn.init.normal_(source.pos_embed.token_projection.weight)
    theirs = {name.replace("pos_embed.", "pos_embeder."): w for name, w in source.state_dict().items()}
    torch.save({"model": theirs}, tmp_path / "xcit.pth")
    match = load_classification(backbone, str(tmp_path / "xcit.pth"))
    assert match.taken == tuple(sorted(backbone.state_dict()))
    assert backbone.pos_embed.token_projection.weight.equal(source.pos_embed.token_projection.weight)


def test_a_conditioned_classifier_brings_its_conditioning(tmp_path):
    source = xcit(2)
    precondition(source)
    folder, model = exported(tmp_path, source), TINY.build(3)
    with pytest.raises(ValueError, match=r"trained with a conversion, .* --start-from"):
        load_classification(model.backbone.xcit, folder, convert=False)
    assert load_classification(model.backbone.xcit, folder).conditioned
    assert conditioning(model)["transforms"][0]["modules"] == [
        "backbone.xcit.blocks.0.attn",
        "backbone.xcit.blocks.1.attn",
    ]


def test_the_published_models():
    for name, classes in (("xcit_nano_12_p8_224", 80), ("xcit_nano_12_p16_224", 80)):
        with torch.device("meta"):
            model = XCiTMaskRCNN(name).build(classes)
        assert model.roi_heads.box_predictor.cls_score.out_features == 81
        assert model.roi_heads.box_head.fc6.weight.shape == (1024, 256 * 49)
        assert sum(isinstance(layer, nn.Conv2d) for layer in model.roi_heads.mask_head.modules()) == 4
    with pytest.raises(ValueError, match="is no XCiT of timm"):
        XCiTMaskRCNN("resnet50")
    with pytest.raises(ValueError, match="is unknown to timm; valid are"):
        XCiTMaskRCNN("xcit_huge").build(2)
