"""SRCNN for spandrel, the library by which chaiNNer and other tools load models.

    import minisrcnn.exchange.spandrel as srcnn
    srcnn.register(scale=3)
    spandrel.ModelLoader().load_from_file("9-1-5-x3.safetensors")

A state dict does not say its scale, so whoever registers does. What is loaded takes and gives
RGB, with bicubic enlargement built in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchSupport,
    ImageModelDescriptor,
    SizeRequirements,
    StateDict,
)

from .torch_srcnn import Upscaler, from_state_dict


class SRCNNArchitecture(Architecture[Upscaler]):
    """A chain ``conv1``, ``conv2``, ... and nothing else."""

    def __init__(self, scale: int = 3) -> None:
        super().__init__(id="SRCNN", name="SRCNN", detect=_is_srcnn)
        self.scale = scale

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[Upscaler]:
        """Return the upscaler of a state dict."""
        net = from_state_dict(state_dict)
        model = Upscaler(net, self.scale)
        kernels = [layer.kernel_size[0] for name, layer in net.named_children()]
        return ImageModelDescriptor(
            model, {f"net.{name}": value for name, value in state_dict.items()},
            architecture=self, purpose="SR", tags=["-".join(map(str, kernels))],
            supports_half=False, supports_bfloat16=False, scale=self.scale, input_channels=3,
            output_channels=3, size_requirements=SizeRequirements(minimum=2))


def register(scale: int = 3) -> None:
    """Let spandrel's loaders know SRCNN, of this scale."""
    MAIN_REGISTRY.add(ArchSupport.from_architecture(SRCNNArchitecture(scale)))


def _is_srcnn(state: Mapping[str, Any]) -> bool:
    layers = {re.fullmatch(r"conv([1-9][0-9]?)\.(weight|bias)", name) for name in state}
    return (None not in layers and len(layers) >= 4 and "conv1.weight" in state
            and state["conv1.weight"].ndim == 4 and state["conv1.weight"].shape[1] in (1, 3))
