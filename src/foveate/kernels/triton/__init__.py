"""The kernels for graphics cards: those of ``csrc``, by name and arguments.

Maps are ``(B, C, H, W)``, contiguous or channels_last, of any of the four floating types.
Statistics and gates are float32, or float64 for such a map, laid out as the map is. Places are
int32. Every result is written to a tensor given for it.
"""

import importlib.util

if importlib.util.find_spec("triton") is None:
    raise ImportError("the kernels for graphics cards need Triton, which is not installed")

from foveate.kernels.triton.combine import combine as combine
from foveate.kernels.triton.dot import channel_dot as channel_dot
from foveate.kernels.triton.dot import peak_dot as peak_dot
from foveate.kernels.triton.dot import spatial_dot as spatial_dot
from foveate.kernels.triton.energy import energy as energy
from foveate.kernels.triton.energy import energy_gradient as energy_gradient
from foveate.kernels.triton.pair import pair_dot as pair_dot
from foveate.kernels.triton.pair import pair_gate as pair_gate
from foveate.kernels.triton.pool import channel_pool as channel_pool
from foveate.kernels.triton.pool import spatial_pool as spatial_pool
from foveate.kernels.triton.strip import strip_dot as strip_dot
from foveate.kernels.triton.strip import strip_pool as strip_pool
