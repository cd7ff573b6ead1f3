"""What the registry knows of a mechanism, read from its own file."""

import inspect
import sys

from foveate import get_mechanism, list_mechanisms


def summary(key: str) -> str:
    """The one sentence that opens the docstring of the class."""
    return inspect.cleandoc(get_mechanism(key).__doc__ or "").split("\n\n")[0].replace("\n", " ")


def citation(key: str) -> str:
    """The paper: the first paragraph of the docstring of the module."""
    module = sys.modules[get_mechanism(key).__module__]
    return inspect.cleandoc(module.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def options(key: str) -> dict[str, object]:
    """The keyword arguments of the class and their defaults."""
    parameters = inspect.signature(get_mechanism(key)).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def mechanism_table() -> str:
    """The mechanisms as a Markdown table, as the README shows it."""
    rows = ["| key | what it does | paper | place |", "| --- | --- | --- | --- |"]
    for key in list_mechanisms():
        place = getattr(get_mechanism(key), "place", "residual")
        rows.append(f"| `{key}` | {summary(key)} | {citation(key)} | `{place}` |")
    return "\n".join(rows)
