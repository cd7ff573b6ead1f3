"""Attention for convolutional networks: faithful, inserted without a trace, compared honestly."""

import importlib
from typing import TYPE_CHECKING, Any

import foveate.mechanisms  # noqa: F401  (fills the registry)
from foveate.registry import create, get_mechanism, list_mechanisms

if TYPE_CHECKING:
    from foveate import explain, export, models
    from foveate.experiments.saved import load
    from foveate.explain import diagnose, record
    from foveate.insertion import insert, plan, remove
    from foveate.profiling import profile
    from foveate.weights import load_weights

__version__ = "0.1.0"

__all__ = [
    "create",
    "diagnose",
    "explain",
    "export",
    "get_mechanism",
    "insert",
    "list_mechanisms",
    "load",
    "load_weights",
    "models",
    "plan",
    "profile",
    "record",
    "remove",
]

_LAZY = {
    "diagnose": "foveate.explain",
    "explain": "foveate.explain",
    "export": "foveate.export",
    "insert": "foveate.insertion",
    "load": "foveate.experiments.saved",
    "load_weights": "foveate.weights",
    "models": "foveate.models",
    "plan": "foveate.insertion",
    "profile": "foveate.profiling",
    "record": "foveate.explain",
    "remove": "foveate.insertion",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'foveate' has no attribute '{name}'")
    module = importlib.import_module(_LAZY[name])
    return module if module.__name__ == f"foveate.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
