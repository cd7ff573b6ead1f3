"""Fused kernels: C++ for processors, Triton for graphics cards."""

from foveate.kernels.choice import compiles as compiles
from foveate.kernels.choice import explain as explain
from foveate.kernels.choice import pick as pick
from foveate.kernels.choice import serving as serving
from foveate.kernels.choice import using as using
from foveate.kernels.choice import watched as watched
