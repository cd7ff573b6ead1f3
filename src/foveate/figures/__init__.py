"""Figures: the only package that draws. Plain values in, matplotlib figures out."""

from matplotlib.figure import Figure

from foveate.figures.costs import CostAxis, CostPoint, accuracy_against_cost
from foveate.figures.curves import Curve, accuracy_per_epoch, loss_per_step
from foveate.figures.differences import DifferenceRow, differences
from foveate.figures.style import Look, inline_svg, looks, png, svg

__all__ = [
    "CostAxis",
    "CostPoint",
    "Curve",
    "DifferenceRow",
    "Figure",
    "Look",
    "accuracy_against_cost",
    "accuracy_per_epoch",
    "differences",
    "inline_svg",
    "looks",
    "loss_per_step",
    "png",
    "svg",
]
