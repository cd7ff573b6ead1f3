"""Hosts of torchvision and timm, by name, without weights from elsewhere."""

from functools import partial

import timm
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

TORCHVISION = (
    *("resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn", "densenet121", "mobilenet_v2"),
    *("mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf"),
    *("shufflenet_v2_x0_5", "squeezenet1_1"),
)
TIMM = (
    *("resnet18", "resnetv2_50", "densenet121", "mobilenetv3_small_100", "efficientnet_b0"),
    *("convnext_atto", "res2net50_26w_4s", "hrnet_w18_small", "darknet53", "dla34"),
)
ZOO = {
    **{name: partial(torchvision.models.get_model, name, weights=None) for name in TORCHVISION},
    "googlenet": partial(
        torchvision.models.googlenet, weights=None, init_weights=False, aux_logits=False
    ),
    "fasterrcnn_resnet50_fpn.backbone": partial(
        resnet_fpn_backbone, backbone_name="resnet50", weights=None, trainable_layers=5
    ),
    "deeplabv3_resnet50": partial(
        torchvision.models.segmentation.deeplabv3_resnet50, weights=None, weights_backbone=None
    ),
    **{f"timm:{name}": partial(timm.create_model, name) for name in TIMM},
}


def tensors(output: object) -> list[Tensor]:
    """The tensors of any output: one, or the values of a dict (pyramids, segmentation)."""
    return list(output.values()) if isinstance(output, dict) else [output]  # type: ignore[list-item]


def batchnorm_buffers(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.clone() for name, value in model.named_buffers() if ".attention" not in name
    }
