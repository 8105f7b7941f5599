"""SRCNN as PyTorch modules: loads the model files of minisrcnn. Needs PyTorch alone.

from safetensors.torch import load_file
net = SRCNN((9, 1, 5), (64, 32))
net.load_state_dict(load_file("9-1-5-x3.safetensors"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .upscaling import BLACK, LUMA, REACH, SPAN, bicubic_filters


class SRCNN(nn.Module):
    """The network: (N, C, H, W), already upscaled, to the same shape; borders are repeated."""

    def __init__(
        self, kernels: Sequence[int] = (9, 1, 5), filters: Sequence[int] = (64, 32),
        channels: int = 1,
    ) -> None:
        super().__init__()
        widths = (channels, *filters, channels)
        for i, size in enumerate(kernels):
            setattr(self, f"conv{i + 1}", nn.Conv2d(
                widths[i], widths[i + 1], size, padding=size // 2, padding_mode="replicate"))
        self.layers = len(kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Restore a picture."""
        for i in range(1, self.layers):
            x = torch.relu(getattr(self, f"conv{i}")(x))
        return getattr(self, f"conv{self.layers}")(x)


class Upscaler(nn.Module):
    """RGB in [0, 1], (N, 3, H, W), to (N, 3, s H, s W): bicubic, and the network on Y or RGB."""

    def __init__(self, net: SRCNN, scale: int) -> None:
        super().__init__()
        self.net, self.scale = net, scale
        filters = torch.tensor(bicubic_filters(scale), dtype=torch.float32)
        self.register_buffer("filters", filters[:, None].repeat(3, 1, 1, 1), persistent=False)
        luma = torch.tensor(LUMA, dtype=torch.float32).reshape(1, 3, 1, 1)
        self.register_buffer("luma", luma, persistent=False)

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        """Upscale pictures of at least 2x2 pixels."""
        x = _mirrored(_mirrored(rgb, 2), 3)
        x = nn.functional.conv2d(x, self.filters, groups=3)
        x = nn.functional.pixel_shuffle(x, self.scale)
        if self.net.conv1.in_channels == 3:
            return self.net(x).clamp(0, 1)
        y = nn.functional.conv2d(x, self.luma) + BLACK
        return (x + (self.net(y).clamp(0, 1) - y) / SPAN).clamp(0, 1)


def _mirrored(x: torch.Tensor, axis: int) -> torch.Tensor:
    size = x.shape[axis]
    before = x.narrow(axis, 0, REACH).flip(axis)
    after = x.narrow(axis, size - REACH, REACH).flip(axis)
    return torch.cat([before, x, after], axis)


def from_state_dict(state: Mapping[str, Any]) -> SRCNN:
    """Build the network that a state dict with ``conv1.weight``, ... is of."""
    weights = [state[f"conv{i}.weight"] for i in range(1, len(state) // 2 + 1)]
    net = SRCNN([w.shape[2] for w in weights], [w.shape[0] for w in weights[:-1]],
                weights[0].shape[1])
    net.load_state_dict(dict(state))
    return net
