"""What can be learned from images: a class, boxes, or a class for each pixel.

One module a task; everything else of an experiment is the same for all.
"""

from collections.abc import Callable

from foveate.errors import check_choice
from foveate.experiments.tasks.base import Evaluation as Evaluation
from foveate.experiments.tasks.base import Metric as Metric
from foveate.experiments.tasks.base import Task as Task
from foveate.experiments.tasks.classify import Classify
from foveate.experiments.tasks.detect import Detect
from foveate.experiments.tasks.segment import Segment

_TASKS: dict[str, Callable[[], Task]] = {task.name: task for task in (Classify, Detect, Segment)}


def get_task(name: str) -> Task:
    """The task called ``name``.

    Raises:
        ValueError: If there is none.

    Example:
        >>> get_task("segment").metric.name
        'mIoU'
    """
    return _TASKS[check_choice("task", name, _TASKS)]()
