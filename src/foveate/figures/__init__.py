"""Figures: the only package that draws. Plain values in, matplotlib figures out."""

from matplotlib.figure import Figure

from foveate.figures.costs import CostAxis, CostPoint, accuracy_against_cost
from foveate.figures.curves import Curve, accuracy_per_epoch, loss_per_step
from foveate.figures.differences import DifferenceRow, differences
from foveate.figures.faithfulness import faithfulness
from foveate.figures.gates import (
    ClassProfile,
    Slope,
    Spread,
    class_profiles,
    even,
    gate_evolution,
    gate_histograms,
    gates_by_depth,
    gradients_by_depth,
)
from foveate.figures.overlay import Meaning, Panel, apart, gradient, overlaid
from foveate.figures.profiles import strips
from foveate.figures.scenes import Marks, Scene, scenes
from foveate.figures.sheet import Section, Sheet, beside, sheet
from foveate.figures.style import Look, encoded, inline_svg, looks, png, svg

__all__ = [
    "ClassProfile",
    "CostAxis",
    "CostPoint",
    "Curve",
    "DifferenceRow",
    "Figure",
    "Look",
    "Marks",
    "Meaning",
    "Panel",
    "Scene",
    "Section",
    "Sheet",
    "Slope",
    "Spread",
    "accuracy_against_cost",
    "accuracy_per_epoch",
    "apart",
    "beside",
    "class_profiles",
    "differences",
    "encoded",
    "even",
    "faithfulness",
    "gate_evolution",
    "gate_histograms",
    "gates_by_depth",
    "gradient",
    "gradients_by_depth",
    "inline_svg",
    "looks",
    "loss_per_step",
    "overlaid",
    "png",
    "scenes",
    "sheet",
    "strips",
    "svg",
]
