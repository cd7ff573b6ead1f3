"""Trains in the processes of ``torchrun``; each leaves its last weights and what it measured."""

import json
import sys
from pathlib import Path

import tiny
from foveate.experiments import run as run_module
from foveate.experiments.training import checkpoint
from foveate.experiments.training.processes import launch
from foveate.experiments.training.progress import Watcher
from foveate.experiments.training.train import Trainer

PLAIN = tiny.config("none", host="tiny:plain", batch_size=8, augment="none", clip_norm=1.0)
NORMED = tiny.config("se", batch_size=8, freeze_epochs=1)


def main(out: Path) -> None:
    fabric = launch(PLAIN.recipe)
    conclude = run_module._conclude

    def spy(trainer: Trainer) -> object:
        last = {n: t.clone() for n, t in trainer.module.state_dict().items()}
        result = conclude(trainer)
        name = f"{trainer.folder.name}-{fabric.global_rank}.safetensors"
        numbers = [trainer.state.val_losses, trainer.state.loss_sum, result.test_correct]
        checkpoint.save(out / name, last, {"numbers": numbers})
        return result

    run_module._conclude = spy
    for name, config in (("plain", PLAIN), ("normed", NORMED)):
        run_module.run(config, tiny.digits(), out / name, fabric, Watcher())
    (out / f"world-{fabric.global_rank}.json").write_text(json.dumps(fabric.world_size))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
