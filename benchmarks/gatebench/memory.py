"""What a rival keeps for its backward pass, and what it allocates at most."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from foveate.cost import peak_memory
from gatebench.rivals import Rival, on_path, step


def footprint(rival: Rival, x: Tensor) -> dict[str, float]:
    """Memory of one training step, in multiples of the bytes of its input.

    ``saved`` is what autograd was asked to save, each storage once, the input included, parameters
    not. ``held`` is what the forward pass allocated and had not given back at its end, without its
    output: it also sees what is kept by other ways than autograd's. ``peak`` is the most that was
    allocated at a time in forward and backward pass, the output and the gradients included, the
    input and the gradient of the output not.
    """
    rival.module.train()
    size = x.numel() * x.element_size()
    leaf = x.detach().requires_grad_()
    kept: list[Tensor] = []
    with on_path(rival):
        saved = peak_memory(rival.module, leaf)
        _, left = _allocated(lambda: kept.append(rival.call(leaf)), x.device)
        kept.clear()
        run = step(rival, x, training=True)
        run()  # what is allocated once stays out of the count
        peak, _ = _allocated(run, x.device)
    return {
        name: float(f"{count / size:.4g}")
        for name, count in (("saved", saved), ("held", left - size), ("peak", peak))
    }


def _allocated(call: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """The most bytes that a call had allocated at a time, and those still allocated at its end."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        result = call()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    del result
    return most, now
