"""Makes one whole run and five that are killed once, in processes forked after the imports."""

import os
import random
import signal
import sys
from pathlib import Path

import torch

import tiny
from foveate.experiments.training import checkpoint
from foveate.experiments.training.learner import Learner

CONFIG = tiny.config(
    epochs=3, lr=0.02, schedule="plateau", plateau_patience=1, freeze_epochs=1, optimizer="adamw"
)
STEPS = 3 * (tiny.digits().train.labels.numel() // CONFIG.recipe.batch_size)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_step(number: int) -> None:
    original, count = Learner.step, iter(range(1, STEPS + 1))

    def step(self: Learner, *args: object) -> object:
        if next(count) == number:
            die()
        return original(self, *args)

    Learner.step = step


def die_in_save(number: int) -> None:
    """Die with the new checkpoint written beside the old one."""
    original, count = os.replace, iter(range(1, 1000))

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "checkpoint.safetensors" and next(count) == number:
            die()
        original(source, target)

    checkpoint.os.replace = replace


def in_child(work: object) -> int:
    """Exit status of a forked process that does the work, negative if a signal ended it."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(root: Path) -> None:
    torch.set_num_threads(1)
    first, second, third = random.Random(0).sample(range(2, STEPS), 3)
    kills = {  # what kills, and the seconds between checkpoints
        "in a step": (lambda: die_in_step(first), 0),
        "in another": (lambda: die_in_step(second), 0),
        "long after a checkpoint": (lambda: die_in_step(third), 60),
        "in the save of an epoch": (lambda: die_in_save(2), 60),
        "in the save of a step": (lambda: die_in_save(9), 0),
    }
    assert in_child(lambda: tiny.train(CONFIG, root / "whole")) == 0
    for name, (arm, every) in kills.items():

        def killed(name: str = name, arm: object = arm, every: int = every) -> None:
            arm()
            tiny.train(CONFIG, root / name, save_every=every)

        assert in_child(killed) == -signal.SIGKILL, name
        assert in_child(lambda name=name: tiny.train(CONFIG, root / name)) == 0, name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
