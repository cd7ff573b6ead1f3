"""Tables of the terminal as plain text."""

from typing import Any


def as_text(renderable: Any) -> str:
    """What Rich would print, 100 columns wide and without colour."""
    from rich.console import Console

    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip()
