"""The metrics of segmentation and detection against slow definitions of them."""

import itertools

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.classification import MulticlassJaccardIndex

from foveate.experiments.data.scenes import VOID
from foveate.experiments.reporting.paired import interval_over_both
from foveate.experiments.reporting.results import RunResult
from foveate.experiments.reporting.scenes import pixel_accuracy
from foveate.experiments.reporting.statistics import compare_to_baseline
from foveate.experiments.tasks import get_task
from foveate.experiments.tasks.detect import average_precision
from foveate.experiments.tasks.segment import confusions, intersection_over_union, pseudo_values
from foveate.explain.bypass import effect
from synthetic_results import results_of

CLASSES = 4


def some_masks(seed=0, images=5, side=9, present=CLASSES):
    """Truth with void, and a prediction that is right at most pixels."""
    rng = np.random.default_rng(seed)
    known = rng.integers(0, present, (images, side, side))
    found = np.where(rng.random(known.shape) < 0.7, known, rng.integers(0, present, known.shape))
    known[rng.random(known.shape) < 0.1] = VOID
    return torch.from_numpy(found), torch.from_numpy(known)


def literal_iou(found, known, label):
    """Pixels in both over pixels in either, counted one by one; None if there are none."""
    both = either = 0
    for a, b in zip(found.flatten().tolist(), known.flatten().tolist(), strict=True):
        if b == VOID:
            continue
        both += a == label and b == label
        either += a == label or b == label
    return both / either if either else None


@pytest.mark.parametrize("present", [CLASSES, CLASSES - 1])
def test_intersection_over_union_is_that_of_all_pixels_together(present):
    found, known = some_masks(present=present)
    counts = confusions(found, known, CLASSES)
    ious = intersection_over_union(counts.sum(0))
    literal = [literal_iou(found, known, label) for label in range(CLASSES)]
    for ours, theirs in zip(ious.tolist(), literal, strict=True):
        assert np.isnan(ours) if theirs is None else ours == pytest.approx(theirs, abs=1e-12)
    metric = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=VOID)
    assert float(ious.nanmean()) == pytest.approx(float(metric(found, known)), abs=1e-6)
    by_image = intersection_over_union(counts).nanmean(-1).mean()
    assert abs(float(by_image) - float(ious.nanmean())) > 1e-4  # it is another number


def test_pseudo_values_are_the_jackknife_and_have_the_metric_as_their_mean():
    found, known = some_masks(seed=1)
    counts = confusions(found, known, CLASSES)
    score = float(intersection_over_union(counts.sum(0)).nanmean())
    values = np.array(pseudo_values(counts))
    assert values.mean() == pytest.approx(score, abs=1e-12)
    raw = []
    for left_out in range(len(found)):
        rest = [i for i in range(len(found)) if i != left_out]
        ious = [literal_iou(found[rest], known[rest], label) for label in range(CLASSES)]
        raw.append(len(found) * score - len(rest) * np.mean(ious))
    assert values - values.mean() == pytest.approx(raw - np.mean(raw), abs=1e-9)
    assert pseudo_values(counts[:1]) is None


def test_an_interval_over_other_images_comes_from_values_that_are_no_bits():
    rng = np.random.default_rng(3)
    values = rng.uniform(0.3, 0.5, (3, 6)), rng.uniform(0.4, 0.7, (3, 6))
    runs = [
        RunResult(
            **{"mechanism": name, "seed": seed, "status": "finished", "metric": "mIoU"},
            test_accuracy=100 * float(own.mean()),
            test_values=own.tolist(),
        )
        for name, rows in zip(("none", "se"), values, strict=True)
        for seed, own in enumerate(rows)
    ]
    (comparison,) = compare_to_baseline(results_of({}).model_copy(update={"runs": runs}))
    expected = interval_over_both(values[1], values[0])
    assert comparison.interval_both == pytest.approx(expected)
    assert np.mean(expected) == pytest.approx(comparison.difference)  # around the metric itself


def test_pixel_accuracy_leaves_void_out():
    logits = torch.zeros(2, 3, 2, 2)
    logits[:, 1] = 1.0
    known = torch.tensor([[[1, 1], [VOID, 0]], [[VOID, VOID], [VOID, VOID]]])
    assert pixel_accuracy(logits, known).tolist() == pytest.approx([2 / 3, 0.0])


def test_a_share_that_never_changes_has_no_interval():
    """Right and wrong images might differ by chance where none does; shares of pixels do not."""
    assert effect(torch.zeros(8)).low < 0
    assert effect(torch.zeros(8), counted=False) == effect(torch.zeros(80), counted=False)
    assert effect(torch.zeros(8), counted=False).low == 0


def literal_average_precision(pairs, label, threshold):
    """Ranked by score, a box takes the best free truth; 101 recalls, the best precision behind."""
    ranked, total = [], 0
    for image, (found, known) in enumerate(pairs):
        total += sum(known["labels"].tolist().count(one) for one in [label])
        for box, score, own in zip(*(found[k].tolist() for k in ("boxes", "scores", "labels")),
                                   strict=True):  # fmt: skip
            if own == label:
                ranked.append((score, image, box))
    taken, hits = set(), []
    for _, image, box in sorted(ranked, key=lambda item: -item[0]):
        known = pairs[image][1]
        best, chosen = threshold, None
        for place, (truth, own) in enumerate(zip(known["boxes"].tolist(), known["labels"].tolist(),
                                                 strict=True)):  # fmt: skip
            if own == label and (image, place) not in taken and overlap(box, truth) >= best:
                best, chosen = overlap(box, truth), place
        if chosen is not None:
            taken.add((image, chosen))
        hits.append(chosen is not None)
    right = np.cumsum(hits)
    precision, recall = right / np.arange(1, len(hits) + 1), right / total
    points = [max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)]
    return float(np.mean(points))


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return both / (sum(areas) - both)


def some_boxes(seed=0, images=6):
    """Truth of two classes, and findings that are near it, doubled, or nowhere."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        corner = rng.uniform(0, 60, (3, 2))
        truth = np.concatenate([corner, corner + rng.uniform(10, 30, (3, 2))], axis=1)
        labels = rng.integers(0, 2, 3)
        boxes = np.concatenate([truth + rng.normal(0, 2.5, truth.shape), truth[::-1]])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        found = {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "scores": torch.tensor(rng.random(6), dtype=torch.float32),
            "labels": torch.from_numpy(np.concatenate([labels, rng.integers(0, 2, 3)])),
        }
        known = {
            "boxes": torch.tensor(truth, dtype=torch.float32),
            "labels": torch.from_numpy(labels),
        }
        pairs.append((found, known))
    return pairs


def test_average_precision_is_that_of_its_definition():
    pairs = some_boxes()
    scores, per_class = average_precision(pairs, ["a", "b", "never"])
    thresholds = np.linspace(0.5, 0.95, 10)
    table = {
        (label, round(at, 2)): 100 * literal_average_precision(pairs, label, at)
        for label, at in itertools.product((0, 1), thresholds)
    }
    assert scores["AP"] == pytest.approx(np.mean(list(table.values())), abs=0.01)
    for name, at in (("AP50", 0.5), ("AP75", 0.75)):
        assert scores[name] == pytest.approx(np.mean([table[0, at], table[1, at]]), abs=0.01)
    own = np.mean([value for (label, _), value in table.items() if label == 1])
    assert per_class["b"] == pytest.approx(own, abs=0.01)
    assert per_class["never"] is None
    assert 5 < scores["AP75"] < scores["AP50"] < 95  # else little would have been compared


def coco_average_precision(pairs):
    """AP, AP50 and AP75 in percent, by COCO's own program."""
    truth, found = [], []
    for image, (theirs, known) in enumerate(pairs):
        for box, label in zip(known["boxes"].tolist(), known["labels"].tolist(), strict=True):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            about = {"image_id": image, "category_id": label, "bbox": sides}
            truth.append({**about, "id": len(truth) + 1, "area": sides[2] * sides[3], "iscrowd": 0})
        for box, label, score in zip(*(theirs[k].tolist() for k in ("boxes", "labels", "scores")),
                                     strict=True):  # fmt: skip
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            found.append({"image_id": image, "category_id": label, "bbox": sides, "score": score})
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": i} for i in range(len(pairs))],
        "categories": [{"id": 0}, {"id": 1}],
        "annotations": truth,
        "info": {},
    }
    dataset.createIndex()
    judge = COCOeval(dataset, dataset.loadRes(found), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return [100 * value for value in judge.stats[:3]]


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_coco(seed):
    pairs = some_boxes(seed, images=12)
    for found, known in pairs:  # whole pixels, so that overlaps lie on thresholds
        found["boxes"], known["boxes"] = found["boxes"].round(), known["boxes"].round()
    scores, _ = average_precision(pairs, ["a", "b"])
    assert list(scores) == ["AP", "AP50", "AP75"]
    assert list(scores.values()) == pytest.approx(coco_average_precision(pairs), abs=1e-4)


def test_average_precision_of_nothing_found_is_zero():
    pairs = some_boxes()
    nothing = {
        "boxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0).long(),
    }
    scores, per_class = average_precision([(nothing, known) for _, known in pairs], ["a", "b"])
    assert scores == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert per_class == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize("name", ["classify", "detect", "segment"])
def test_each_task_says_all_that_reports_ask(name):
    task = get_task(name)
    assert task.name == name
    assert task.metric.key == task.metric.name.lower()
    assert task.other_images
    assert task.calibration_images > 0
