"""Attention between positions as popular repositories print it, with foveate's parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.registry import get_mechanism
from gatebench.rivals import TEXTBOOK

PERMUTED = "permuted copies"
EINSUM = "einsum"


class DANetPosition(get_mechanism("danet_position")):
    """As in the authors' repository: the affinities of all pairs."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        query = self.query_conv(x).view(B, -1, H * W).permute(0, 2, 1)  # (B, HW, C/8)
        key = self.key_conv(x).view(B, -1, H * W)  # (B, C/8, HW)
        affinity = torch.bmm(query, key).softmax(-1)  # (B, HW, HW)
        value = self.value_conv(x).view(B, -1, H * W)  # (B, C, HW)
        out = torch.bmm(value, affinity.permute(0, 2, 1)).view(B, C, H, W)
        return self.scale * out + x


class CrissCross(get_mechanism("criss_cross")):
    """A permuted copy for each direction, and one softmax over the concatenated scores."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        B, _, H, W = query.shape
        q_column, k_column, v_column = (_columns(t) for t in (query, key, value))
        q_row, k_row, v_row = (_rows(t) for t in (query, key, value))
        itself = torch.full((H,), torch.inf, device=query.device, dtype=query.dtype).diag()
        column = torch.bmm(q_column.permute(0, 2, 1), k_column) - itself.repeat(B * W, 1, 1)
        column = column.view(B, W, H, H).permute(0, 2, 1, 3)  # (B, H, W, H)
        row = torch.bmm(q_row.permute(0, 2, 1), k_row).view(B, H, W, W)
        affinity = torch.cat([column, row], dim=3).softmax(3)  # (B, H, W, H + W)
        column = affinity[..., :H].permute(0, 2, 1, 3).contiguous().view(B * W, H, H)
        row = affinity[..., H:].contiguous().view(B * H, W, W)
        from_column = torch.bmm(v_column, column.permute(0, 2, 1)).view(B, W, -1, H)
        from_row = torch.bmm(v_row, row.permute(0, 2, 1)).view(B, H, -1, W)
        return from_column.permute(0, 2, 3, 1) + from_row.permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            maps = (self.query_conv(x), self.key_conv(x), self.value_conv(x))
            x = self.scale * self.attend(*maps) + x
        return x


class CrissCrossEinsum(CrissCross):
    """The same by ``einsum``."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        H, W = query.shape[2:]
        itself = torch.eye(H, dtype=torch.bool, device=query.device)[:, None]
        column = torch.einsum("bchw,bcgw->bhwg", query, key).masked_fill(itself, -torch.inf)
        row = torch.einsum("bchw,bchg->bhwg", query, key)
        column, row = torch.cat([column, row], dim=3).softmax(3).split([H, W], dim=3)
        from_column = torch.einsum("bhwg,bcgw->bchw", column, value)
        return from_column + torch.einsum("bhwg,bchg->bchw", row, value)


class SelfAttention(get_mechanism("mhsa")):
    """Scores, softmax, weighted values."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(x).view(B, 3, self.num_heads, -1, H * W).permute(1, 0, 2, 4, 3)
        query, key, value = qkv.unbind()  # (B, heads, HW, C/heads)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        out = scores.softmax(dim=-1) @ value
        return x + self.out(out.transpose(-2, -1).reshape(B, C, H, W))


class NonLocal(get_mechanism("nl")):
    """The embedded Gaussian form with all pairs."""

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        theta = self.theta(x).view(B, -1, H * W).permute(0, 2, 1)  # (B, HW, C/2)
        phi = self.phi(x).view(B, -1, H * W)
        value = self.g(x).view(B, -1, H * W).permute(0, 2, 1)
        affinity = (torch.matmul(theta, phi) * theta.shape[-1] ** -0.5).softmax(dim=-1)
        out = torch.matmul(affinity, value).permute(0, 2, 1).contiguous().view(B, -1, H, W)
        return x + self.bn(self.out(out))


class DoubleAttention(get_mechanism("a2")):
    """Gather by ``bmm``, distribute by ``matmul``."""

    def forward(self, x: Tensor) -> Tensor:
        B, _, H, W = x.shape
        feature = self.feature(x).view(B, -1, H * W)
        gather = F.softmax(self.gather(x).view(B, -1, H * W), dim=-1)
        distribute = F.softmax(self.distribute(x).view(B, -1, H * W), dim=1)
        descriptors = torch.bmm(feature, gather.permute(0, 2, 1))
        return x + self.out(descriptors.matmul(distribute).view(B, -1, H, W))


class EfficientAttention(get_mechanism("efficient")):
    """As in the authors' repository."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        keys = F.softmax(self.keys(x).reshape(B, -1, H * W), dim=2)
        queries = F.softmax(self.queries(x).reshape(B, -1, H * W), dim=1)
        values = self.values(x).reshape(B, C, H * W)
        context = keys @ values.transpose(1, 2)
        return x + self.reprojection((context.transpose(1, 2) @ queries).reshape(B, C, H, W))


class ExternalAttention(get_mechanism("external")):
    """As in the authors' repository, both memories one-dimensional convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        scores = F.conv1d(self.conv1(x).view(B, C, H * W), self.key_memory.weight[..., None])
        affinity = F.softmax(scores, dim=-1)
        affinity = affinity / (1e-9 + affinity.sum(dim=1, keepdim=True))
        out = F.conv1d(affinity, self.value_memory.weight[..., None]).view(B, C, H, W)
        return F.relu(self.bn(self.conv2(out)) + x)


FORMS: dict[str, dict[str, type[nn.Module]]] = {
    "danet_position": {TEXTBOOK: DANetPosition},
    "criss_cross": {PERMUTED: CrissCross, EINSUM: CrissCrossEinsum},
    "nl": {TEXTBOOK: NonLocal},
    "mhsa": {TEXTBOOK: SelfAttention},
    "a2": {TEXTBOOK: DoubleAttention},
    "efficient": {TEXTBOOK: EfficientAttention},
    "external": {TEXTBOOK: ExternalAttention},
}


def _columns(x: Tensor) -> Tensor:
    """``(B W, C, H)``, a copy."""
    B, C, H, W = x.shape
    return x.permute(0, 3, 1, 2).contiguous().view(B * W, C, H)


def _rows(x: Tensor) -> Tensor:
    """``(B H, C, W)``, a copy."""
    B, C, H, W = x.shape
    return x.permute(0, 2, 1, 3).contiguous().view(B * H, C, W)
