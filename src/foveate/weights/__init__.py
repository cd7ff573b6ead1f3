"""Checkpoints of others: their names, and what becomes of them."""

from foveate.weights.layouts import LAYOUTS as LAYOUTS
from foveate.weights.load import load_weights as load_weights
from foveate.weights.report import Loaded as Loaded
