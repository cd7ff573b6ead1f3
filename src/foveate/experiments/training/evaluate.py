"""How well a network does on images that it does not learn from."""

from lightning_fabric import Fabric
from torch import nn

from foveate.experiments.config import Recipe
from foveate.experiments.data.load import Data, ImageSet
from foveate.experiments.tasks import Evaluation, get_task


def evaluate(
    module: nn.Module, images: ImageSet, data: Data, recipe: Recipe, fabric: Fabric
) -> Evaluation:
    """Evaluate in eval mode; each process takes its share and all get the whole."""
    return get_task(data.task).evaluate(module, images, data, recipe, fabric)
