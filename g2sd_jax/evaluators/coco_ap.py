# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Average precision of boxes and masks, as COCO defines it, by pycocotools.

The state holds annotations and detections of all pictures so far, masks in run lengths.
Nothing detected is a precision of 0; what has no object to be found is NaN.
"""

import contextlib
import importlib
import io
import types
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from g2sd_jax import core, errors
from g2sd_jax.data.coco import run_lengths
from g2sd_jax.evaluators import instances

# Name of a library: its modules of `COCO` and of the evaluation, the class there, and
# what installs it.
LIBRARIES = {
    "pycocotools": (
        "pycocotools.coco",
        "pycocotools.cocoeval",
        "COCOeval",
        "detection",
    ),
    "faster": (
        "faster_coco_eval",
        "faster_coco_eval",
        "COCOeval_faster",
        "faster-detection",
    ),
}
TASKS = {"box": "bbox", "mask": "segm"}  # Prefix of a metric: the library's name.
LEAST_LIMIT = 100  # Detections of a picture that count, as published.
SIZES = ("", "s", "m", "l")  # All, below 32 x 32 pixels, up to 96 x 96, above.
AP50, AP75 = 0, 5  # Of the thresholds 0.50, 0.55, ... 0.95.
# Arrays of a state, and what an empty one looks like. A mask takes `length` of the
# bytes in `masks`.
EMPTY = {
    "image": np.zeros(0, np.int64),
    "image_size": np.zeros((0, 2), np.int64),
} | {
    f"{whose}_{name}": array
    for whose in ("truth", "answer")
    for name, array in {
        "image": np.zeros(0, np.int64),
        "label": np.zeros(0, np.int64),
        "box": np.zeros((0, 4)),
        "masks": np.zeros(0, np.uint8),
        "length": np.zeros(0, np.int64),
    }.items()
}
EMPTY |= {
    "truth_area": np.zeros(0),
    "truth_crowd": np.zeros(0, bool),
    "answer_score": np.zeros(0),
}
COLUMNS = (
    core.Column("name", "class"),
    core.Column("count", "objects"),
    core.Column("box_AP", "box AP", "%"),
    core.Column("box_AP50", "box AP50", "%"),
    core.Column("mask_AP", "mask AP", "%"),
    core.Column("mask_AP50", "mask AP50", "%"),
)
State = Mapping[str, np.ndarray]


def evaluator(
    predict: Callable,
    batches: Callable,
    classes: int,
    detections: int = LEAST_LIMIT,
    library: str = "pycocotools",
) -> core.Evaluator:
    """Twelve figures in % for boxes and twelve for masks, and a table by class.

    Args:
        predict: (variables, frozen, batch) -> outputs as `instances.restore` takes
            them, [B, ...].
        batches: as `core.Evaluator` has it; examples as `data.coco.original` returns
            them.
        classes: C.
        detections: of a picture at most; more than 100 all count.
        library: of `LIBRARIES`.
    """
    errors.one_of("library", library, LIBRARIES)
    limit = max(LEAST_LIMIT, detections)
    scored = {}  # The state that was scored last, and its curves: scoring takes long.

    def update(state, outputs, examples):
        rows = [state]
        for row, example in zip(
            instances.rows(outputs, len(examples)), examples, strict=True
        ):
            found_here = instances.restore(row, example["size"])
            rows.append(as_state(example, found_here))
        return concatenate(rows)

    def curves_of(state):
        if scored.get("state") is not state:
            scored.update(state=state, curves=score(state, classes, limit, library))
        return scored["curves"]

    def finish(state):
        metrics = dict.fromkeys(metric_names(limit), float("nan"))
        if len(state["image"]):
            for prefix, curves in curves_of(state).items():
                metrics |= summarise(curves, prefix, limit)
        return {**metrics, "images": len(state["image"])}

    def tables(state, names):
        if not len(state["image"]):
            return []
        return class_tables(state, curves_of(state), classes, names)

    counting = dict(count="images", counted="held-out pictures")
    return core.Evaluator(
        batches=batches,
        predict=predict,
        start=lambda: dict(EMPTY),
        update=update,
        merge=concatenate,
        finish=finish,
        scores=(
            core.Score("box_AP", "box AP", **counting),
            core.Score("mask_AP", "mask AP", **counting),
        ),
        tables=tables,
    )


def as_state(example: Mapping, answer: instances.Instances) -> State:
    """The state of one picture: its annotations, and what was detected in it."""
    key, size = example["image_id"], example["size"]
    truth = [
        mask if isinstance(mask, Mapping) else run_lengths.encode(mask)
        for mask in example["masks"]
    ]
    columns = {
        "image": np.array([key], np.int64),
        "image_size": np.array([size], np.int64),
        "truth_area": np.asarray(example["areas"], np.float64),
        "truth_crowd": np.asarray(example["crowd"], bool),
        "answer_score": answer.scores,
    }
    for whose, labels, boxes, masks in (
        ("truth", example["labels"], example["boxes"], truth),
        ("answer", answer.labels, answer.boxes, answer.masks),
    ):
        counts = [mask["counts"] for mask in masks]
        columns |= {
            f"{whose}_image": np.full(len(masks), key, np.int64),
            f"{whose}_label": np.asarray(labels, np.int64),
            f"{whose}_box": np.asarray(boxes, np.float64).reshape(-1, 4),
            f"{whose}_masks": np.frombuffer(b"".join(counts), np.uint8),
            f"{whose}_length": np.array([len(each) for each in counts], np.int64),
        }
    return columns


def concatenate(states: Sequence[State]) -> dict[str, np.ndarray]:
    """One state of several, whose pictures differ."""
    return {key: np.concatenate([state[key] for state in states]) for key in EMPTY}


def score(
    state: State, classes: int, limit: int, library: str = "pycocotools"
) -> dict[str, dict[str, np.ndarray]]:
    """`precision` [T, R, C, A, 3] and `recall` [T, C, A, 3] of boxes and masks.

    By T thresholds of the overlap, R recalls, classes, A ranges of size, and 1, 10 or
    `limit` detections of a picture; -1 where there is nothing to be found.

    Args:
        state: of all pictures.
        classes: C.
        limit: detections of a picture that count at most.
        library: of `LIBRARIES`.
    """
    container, evaluation = load_library(library)
    curves = {}
    for prefix, name in TASKS.items():
        with contextlib.redirect_stdout(io.StringIO()):  # They print their progress.
            truth = index(container, state, "truth", name, classes)
            answers = index(container, state, "answer", name, classes)
            judge = evaluation(truth, answers, name)
            judge.params.maxDets = [1, 10, limit]
            judge.evaluate()
            judge.accumulate()
        curves[prefix] = {key: judge.eval[key] for key in ("precision", "recall")}
    return curves


def load_library(library: str) -> tuple[type, type]:
    """The classes `COCO` and `COCOeval` of a library."""
    container, evaluation, name, extra = LIBRARIES[library]
    try:
        modules: list[types.ModuleType] = [
            importlib.import_module(module) for module in (container, evaluation)
        ]
    except ImportError:
        raise ValueError(
            f"average precision takes {container.split('.')[0]}: pip install "
            f"'g2sd_jax[{extra}]'."
        ) from None
    return modules[0].COCO, getattr(modules[1], name)


def index(container: type, state: State, whose: str, task: str, classes: int) -> object:
    """Annotations or detections of a state in the library's own form.

    Args:
        container: its class `COCO`.
        state: of all pictures.
        whose: truth or answer.
        task: bbox or segm; the area of a detection is that of its box or of its mask.
        classes: C.
    """
    sizes = dict(
        zip(state["image"].tolist(), state["image_size"].tolist(), strict=True)
    )
    assert len(sizes) == len(state["image"]), "a picture was evaluated twice"
    keys = state[f"{whose}_image"].tolist()
    ends = np.cumsum(state[f"{whose}_length"])
    masks = [
        {
            "size": sizes[key],
            "counts": state[f"{whose}_masks"][end - length : end].tobytes(),
        }
        for key, end, length in zip(
            keys, ends.tolist(), state[f"{whose}_length"].tolist(), strict=True
        )
    ]
    boxes = state[f"{whose}_box"].copy()
    boxes[:, 2:] -= boxes[:, :2]
    if whose == "truth":
        areas = state["truth_area"]
    elif task == "segm":
        areas = run_lengths.area(masks)
    else:
        areas = boxes[:, 2] * boxes[:, 3]
    entries = []
    for row, key in enumerate(keys):
        entry = {
            "id": row + 1,  # 0 means nothing to the library.
            "image_id": key,
            "category_id": int(state[f"{whose}_label"][row]) + 1,
            "area": float(areas[row]),
            "bbox": boxes[row].tolist(),
            "segmentation": masks[row],
            "iscrowd": 0,
        }
        if whose == "truth":
            entry["iscrowd"] = int(state["truth_crowd"][row])
        else:
            entry["score"] = float(state["answer_score"][row])
        entries.append(entry)
    indexed = container()
    indexed.dataset = {
        "images": [
            {"id": key, "height": height, "width": width}
            for key, (height, width) in sizes.items()
        ],
        "categories": [
            {"id": 1 + label, "name": str(label)} for label in range(classes)
        ],
        "annotations": entries,
    }
    indexed.createIndex()
    return indexed


def metric_names(limit: int) -> list[str]:
    """The twelve names of COCO's summary for boxes, then those for masks."""
    precision = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    recall = ("AR1", "AR10", f"AR{limit}", "ARs", "ARm", "ARl")
    return [f"{prefix}_{name}" for prefix in TASKS for name in (*precision, *recall)]


def summarise(
    curves: Mapping[str, np.ndarray], prefix: str, limit: int
) -> dict[str, float]:
    """The twelve figures of COCO's summary in %.

    Args:
        curves: of `score`.
        prefix: box or mask.
        limit: detections of a picture that count, as in `score`.
    """
    precision, recall = curves["precision"], curves["recall"]
    figures = {
        "AP": precision[..., 0, -1],
        "AP50": precision[AP50, ..., 0, -1],
        "AP75": precision[AP75, ..., 0, -1],
        "AR1": recall[..., 0, 0],
        "AR10": recall[..., 0, 1],
        f"AR{limit}": recall[..., 0, -1],
    }
    for number, name in enumerate(SIZES[1:], start=1):
        figures[f"AP{name}"] = precision[..., number, -1]
        figures[f"AR{name}"] = recall[..., number, -1]
    return {f"{prefix}_{name}": mean(values) for name, values in figures.items()}


def mean(values: np.ndarray) -> float:
    """The mean in % of what is defined; NaN where nothing is."""
    defined = values[values > -1]
    return 100.0 * float(defined.mean()) if len(defined) else float("nan")


def class_tables(
    state: State,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    classes: int,
    names: Sequence[str],
) -> list[core.Table]:
    """A row a class: its objects, and the precision of boxes and masks.

    Args:
        state: of all pictures.
        curves: of `score`.
        classes: C.
        names: of the classes; () shows their numbers.
    """
    objects = state["truth_label"][~state["truth_crowd"]]
    counts = np.bincount(objects, minlength=classes)
    table = []
    for label in range(classes):
        row = dict(name=str(names[label]) if names else str(label))
        row["count"] = int(counts[label])
        for prefix in TASKS:
            precision = curves[prefix]["precision"][:, :, label, 0, -1]
            for name, values in (("AP", precision), ("AP50", precision[AP50])):
                figure = mean(values)
                row[f"{prefix}_{name}"] = None if np.isnan(figure) else figure
        table.append(row)
    return [core.Table("classes", "class by class", table, COLUMNS, worst="mask_AP")]
