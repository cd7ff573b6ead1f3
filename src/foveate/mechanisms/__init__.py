"""One paper, one file. Importing a file registers its mechanism."""

from foveate.mechanisms.attention_augmented import AttentionAugmented as AttentionAugmented
from foveate.mechanisms.bilinear_attention import BilinearAttention as BilinearAttention
from foveate.mechanisms.bottleneck_attention import BottleneckAttention as BottleneckAttention
from foveate.mechanisms.bottleneck_transformer import BottleneckTransformer as BottleneckTransformer
from foveate.mechanisms.cbam import CBAM as CBAM
from foveate.mechanisms.cbam import SpatialAttention as SpatialAttention
from foveate.mechanisms.concurrent_squeeze_excitation import (
    ChannelSqueezeExcitation as ChannelSqueezeExcitation,
)
from foveate.mechanisms.concurrent_squeeze_excitation import (
    ConcurrentSqueezeExcitation as ConcurrentSqueezeExcitation,
)
from foveate.mechanisms.concurrent_squeeze_excitation import (
    SpatialSqueezeExcitation as SpatialSqueezeExcitation,
)
from foveate.mechanisms.contextual_transformer import ContextualTransformer as ContextualTransformer
from foveate.mechanisms.coordinate_attention import CoordinateAttention as CoordinateAttention
from foveate.mechanisms.criss_cross import CrissCross as CrissCross
from foveate.mechanisms.danet import DANet as DANet
from foveate.mechanisms.danet import DANetChannel as DANetChannel
from foveate.mechanisms.danet import DANetPosition as DANetPosition
from foveate.mechanisms.double_attention import DoubleAttention as DoubleAttention
from foveate.mechanisms.effective_squeeze_excitation import (
    EffectiveSqueezeExcitation as EffectiveSqueezeExcitation,
)
from foveate.mechanisms.efficient_attention import EfficientAttention as EfficientAttention
from foveate.mechanisms.efficient_channel_attention import (
    EfficientChannelAttention as EfficientChannelAttention,
)
from foveate.mechanisms.efficient_local_attention import (
    EfficientLocalAttention as EfficientLocalAttention,
)
from foveate.mechanisms.efficient_multiscale_attention import (
    EfficientMultiScaleAttention as EfficientMultiScaleAttention,
)
from foveate.mechanisms.external_attention import ExternalAttention as ExternalAttention
from foveate.mechanisms.frequency_channel_attention import (
    FrequencyChannelAttention as FrequencyChannelAttention,
)
from foveate.mechanisms.gated_channel_transformation import (
    GatedChannelTransformation as GatedChannelTransformation,
)
from foveate.mechanisms.gather_excite import GatherExcite as GatherExcite
from foveate.mechanisms.global_context import GlobalContext as GlobalContext
from foveate.mechanisms.halo import Halo as Halo
from foveate.mechanisms.involution import Involution as Involution
from foveate.mechanisms.lambda_network import Lambda as Lambda
from foveate.mechanisms.large_kernel_attention import LargeKernelAttention as LargeKernelAttention
from foveate.mechanisms.large_kernel_attention import (
    LargeSeparableKernelAttention as LargeSeparableKernelAttention,
)
from foveate.mechanisms.linear_context_transform import (
    LinearContextTransform as LinearContextTransform,
)
from foveate.mechanisms.mobilevit import MobileViT as MobileViT
from foveate.mechanisms.mobilevit2 import MobileViT2 as MobileViT2
from foveate.mechanisms.non_local import NonLocal as NonLocal
from foveate.mechanisms.parallel_network import ParNet as ParNet
from foveate.mechanisms.selective_kernel import SelectiveKernel as SelectiveKernel
from foveate.mechanisms.self_attention import SelfAttention as SelfAttention
from foveate.mechanisms.simam import SimAM as SimAM
from foveate.mechanisms.spatial_group_enhance import SpatialGroupEnhance as SpatialGroupEnhance
from foveate.mechanisms.split_attention import SplitAttention as SplitAttention
from foveate.mechanisms.squeeze_excitation import SqueezeExcitation as SqueezeExcitation
from foveate.mechanisms.static import Static as Static
from foveate.mechanisms.strip_pooling import MixedPooling as MixedPooling
from foveate.mechanisms.strip_pooling import StripPooling as StripPooling
from foveate.mechanisms.style_recalibration import StyleRecalibration as StyleRecalibration
from foveate.mechanisms.triplet_attention import TripletAttention as TripletAttention
