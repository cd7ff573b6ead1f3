import io

import pytest
from rich.console import Console

from foveate.experiments.training.progress import Bars, Lines, watch

ROW = {"epoch": 2, "train_loss": 0.5, "train_accuracy": 81.25, "val_accuracy": 90.0}
EPOCH = "se seed 0: epoch 2: loss 0.5000, train 81.2 %, val 90.0 %"


def redraw(watcher):
    """What happens by itself ten times a second."""
    if isinstance(watcher, Bars):
        watcher._progress.refresh()


def show(console, runs):
    with watch(console, runs) as watcher:
        watcher.begin_run("se seed 0", steps=10, done=3)
        watcher.advance(2, loss=0.1234, accuracy=75.0, speed=1234.5)
        watcher.end_epoch(ROW)
        redraw(watcher)
        watcher.end_run("se seed 0", "97.00 % on test")
        redraw(watcher)
    return console.file.getvalue()


@pytest.mark.parametrize("runs", [1, 4])
def test_bars_on_a_terminal(runs):
    console = Console(force_terminal=True, file=io.StringIO(), width=100, color_system=None)
    shown = show(console, runs)
    assert "5/10" in shown
    assert "loss 0.123  acc 75.0 %  1,234 img/s" in shown
    assert "se seed 0: 97.00 % on test" in shown
    assert (EPOCH in shown) == (runs == 1)
    assert ("1/4" in shown) == (runs == 4)


def test_lines_elsewhere():
    console = Console(file=io.StringIO(), width=20)
    assert isinstance(watch(console), Lines)
    assert show(console, 4).splitlines() == [EPOCH, "se seed 0: 97.00 % on test"]
