"""Operations that mechanisms are made of: one a file, a pure function each."""

from foveate.ops.scale import scale as scale
