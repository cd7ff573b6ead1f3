"""Detectors: losses, detections, labels, anchors and sizes on backbones with attention."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

import foveate
from foveate import models
from foveate.errors import InvalidTypeError, InvalidValueError

KINDS = ("retinanet", "fasterrcnn", "ssdlite")
LOSSES = {
    "retinanet": {"classification", "bbox_regression"},
    "fasterrcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
    "ssdlite": {"classification", "bbox_regression"},
}
SILENT = {"retinanet": "score_thresh", "fasterrcnn": "box_score_thresh", "ssdlite": "score_thresh"}


def build(kind: str, backbone: str = "se_resnet18", **options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.detector(kind, backbone, **{"num_classes": 2, "image_size": 64, **options})


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """An image with an object for each level of SSDLite, and one with none."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=generator) for size in ((64, 48), (40, 64))]
    side = torch.tensor([0.2, 0.35, 0.5, 0.65, 0.8, 0.95])[:, None]
    centre = torch.tensor([0.375, 0.25, 0.5, 0.5, 0.5, 0.5])[:, None]
    first, last = (centre - side / 2).clamp(min=0), (centre + side / 2).clamp(max=1)
    boxes = torch.cat([first, first, last, last], 1) * torch.tensor([48, 64, 48, 64])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 2, 1, 2, 1, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return images, targets


def detect(model: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize("backbone", ["se_resnet18", "eca_mobilenet_v2"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_reach_every_parameter(kind: str, backbone: str) -> None:
    model = build(kind, backbone).train()
    losses = model(*batch())
    assert set(losses) == LOSSES[kind]
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    missed = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missed


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_of_the_classes_and_inside_the_images(kind: str) -> None:
    model = build(kind, **{SILENT[kind]: 0.0})
    images, _ = batch()
    for found, image in zip(detect(model, images), images, strict=True):
        height, width = image.shape[1:]
        assert set(found["labels"].tolist()) == {1, 2}
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, 0::2].max() <= width
        assert found["boxes"][:, 1::2].max() <= height


def test_one_image_is_learned() -> None:
    """With its boxes and, in particular, with the labels that were given."""
    image = torch.full((3, 64, 64), 0.1)
    boxes = torch.tensor([[4.0, 8, 28, 56], [36, 20, 60, 44]])
    for box, channel in zip(boxes.int().tolist(), (0, 2), strict=True):
        image[channel, box[1] : box[3], box[0] : box[2]] = 1.0
    target = {"boxes": boxes, "labels": torch.tensor([2, 1])}
    model = build("retinanet", "mobilenet_v2").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(25):
        optimizer.zero_grad()
        sum(model([image], [target]).values()).backward()
        optimizer.step()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of what follows
            module.reset_running_stats()
    with torch.no_grad():
        model([image], [target])
    found = detect(model, [image])[0]
    iou = box_iou(boxes, found["boxes"])
    for number, label in enumerate((2, 1)):
        best = found["scores"].where(iou[number] > 0.5, 0.0).argmax()
        assert iou[number, best] > 0.5
        assert found["labels"][best] == label


@pytest.mark.parametrize("kind", ["retinanet", "fasterrcnn"])
def test_anchors_are_in_proportion_to_the_image(kind: str) -> None:
    name = "anchor_generator" if kind == "retinanet" else "rpn.anchor_generator"
    generators = {
        size: build(kind, "resnet18", image_size=size).get_submodule(name) for size in (64, 768)
    }
    levels = 5 if kind == "retinanet" else 4
    smallest = {size: generator.sizes[0][0] for size, generator in generators.items()}
    assert smallest[768] == pytest.approx(512 / 2 ** (levels - 1))  # as published
    assert smallest[64] == pytest.approx(smallest[768] / 12)
    for anchors in generators[64].cell_anchors:
        assert (anchors[:, 2:] > anchors[:, :2]).all()


def test_the_default_boxes_of_ssdlite_are_fractions() -> None:
    model = build("ssdlite", "resnet18")
    assert model.anchor_generator.scales[0] == pytest.approx(0.2)
    assert len(model.anchor_generator.aspect_ratios) == 6
    features = model.backbone(torch.rand(1, 3, 320, 320))
    assert [map_.shape[-1] for map_ in features.values()] == [20, 10, 5, 3, 2, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_normalised_and_not_enlarged_beyond_the_size(kind: str) -> None:
    model = build(kind, "resnet18", mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = torch.rand(3, 64, 64)
    detect(model, [image])
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.5, 0.25, 0.2]])[..., None, None]
    torch.testing.assert_close(seen[0][0], (image - mean) / std)
    detect(model, [torch.rand(3, 200, 100)])
    assert seen[1].shape[-2:] == ((64, 64) if kind == "ssdlite" else (64, 32))


def test_batch_norms_train() -> None:
    model = build("retinanet", "resnet18")
    norms = [m for m in model.backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert all(norm.weight.requires_grad for norm in norms)


def test_parameters_by_formula() -> None:
    model, classes, width = build("retinanet", "resnet18"), 2, 256
    conv = width * width * 9 + width
    pyramid = sum(c * width + width for c in (128, 256, 512)) + 3 * conv + 2 * conv
    ends = sum(9 * n * width * 9 + 9 * n for n in (classes, 4))
    count = sum(p.numel() for p in model.parameters())
    assert count == 11_176_512 + pyramid + 8 * conv + ends
    assert build("fasterrcnn").roi_heads.box_predictor.cls_score.out_features == classes + 1


@pytest.mark.parametrize("kind", KINDS)
def test_identity_insertion_copies_and_weights_change_nothing(kind: str) -> None:
    model = build(kind, "resnet18", **{SILENT[kind]: 0.0})
    images, _ = batch()
    want = detect(model, images)
    other = build(kind, "resnet18", **{SILENT[kind]: 0.0})
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.01)
    other.load_state_dict(model.state_dict())
    copied = copy.deepcopy(model)
    foveate.insert(model.backbone, "cbam", where="residual", at="body.*", example=images[0][None])
    assert any(name.endswith("attention") for name, _ in model.backbone.body.named_modules())
    for same in (model, other, copied, foveate.remove(model)):
        for found, expected in zip(detect(same, images), want, strict=True):
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_attention_is_inserted_into_a_whole_detector() -> None:
    model = build("retinanet", "resnet18", score_thresh=0.0)
    images, _ = batch()
    want = detect(model, images[:1])
    handle = foveate.insert(model, "se", where="residual", example=(images[:1],))
    assert len(handle.sites) == 8
    assert torch.equal(detect(model, images[:1])[0]["boxes"], want[0]["boxes"])


def test_a_backbone_can_be_given() -> None:
    body = models.backbone("se_resnet18", image_size=64, reduction=4)
    model = build("retinanet", body)
    assert model.backbone.body is body
    with pytest.raises(InvalidValueError, match=r"must have strides=\(16, 32\), but has \(8, 16"):
        build("ssdlite", body)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [("retinanet", [0, 1]), ("retinanet", [1, 3]), ("fasterrcnn", [0, 1]), ("ssdlite", [1, 3])],
)
def test_labels_of_no_class_are_refused(kind: str, labels: list[int]) -> None:
    model = build(kind, "resnet18").train()
    images, targets = batch()
    targets[0]["labels"] = torch.tensor(labels)
    with pytest.raises(InvalidValueError, match=rf"from 1 to 2.*got \[{labels[0]}, {labels[1]}\]"):
        model(images, targets)


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("retinanets", {}, InvalidValueError, "did you mean 'retinanet'.*fasterrcnn, retinanet, s"),
        ("retinanet", {"num_classes": 0}, InvalidValueError, "num_classes=0"),
        ("ssdlite", {"image_size": 32}, InvalidValueError, "at least 64, got image_size=32"),
        ("retinanet", {"score_threshold": 0}, InvalidTypeError, "did you mean 'score_thresh'"),
        ("fasterrcnn", {"min_size": 800}, InvalidTypeError, "unknown option of FasterRCNN"),
        ("retinanet", {"backbone": "cbm_resnet18"}, InvalidValueError, "unknown backbone"),
    ],
)
def test_bad_arguments(kind: str, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        build(kind, **options)
    assert "\n" not in str(caught.value)
