"""Operations that mechanisms are made of: one a file, a pure function each."""

from foveate.ops.additive_attention import additive_attention as additive_attention
from foveate.ops.channel_attention import channel_attention as channel_attention
from foveate.ops.channel_pool import channel_pool as channel_pool
from foveate.ops.criss_cross_attention import criss_cross_attention as criss_cross_attention
from foveate.ops.ledger import fuse as fuse
from foveate.ops.linear_attention import linear_attention as linear_attention
from foveate.ops.local_aggregation import local_aggregation as local_aggregation
from foveate.ops.patches import from_patches as from_patches
from foveate.ops.patches import to_patches as to_patches
from foveate.ops.position_attention import position_attention as position_attention
from foveate.ops.rectified_attention import rectified_attention as rectified_attention
from foveate.ops.relative_attention import displacement_attention as displacement_attention
from foveate.ops.relative_attention import displacement_logits as displacement_logits
from foveate.ops.relative_attention import relative_attention as relative_attention
from foveate.ops.scale import scale as scale
from foveate.ops.scale import scale_by_mean as scale_by_mean
from foveate.ops.scale import shift as shift
from foveate.ops.spatial_pool import spatial_pool as spatial_pool
from foveate.ops.spatial_variance import spatial_variance as spatial_variance
from foveate.ops.stencil import stencil as stencil
from foveate.ops.tokens import from_tokens as from_tokens
from foveate.ops.tokens import to_tokens as to_tokens
