"""The U-Net of Ho, Jain and Abbeel (2020), which is diffusers' `UNet2DModel`."""

import math
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from fedmutual.config import Network
from fedmutual.errors import UserError


class UNet(nn.Module):
    """x: [batch, channels, height, width], t: [batch] -> the shape of x; with `classes`, labels y: [batch] third.

    Parameters on 32x32 RGB images: `unet-small` 0.7 M, `unet-medium` 2.2 M, `unet-large` 35.7 M, which is CBDM's
    network. Images whose sides the levels do not divide are padded with zeros and cropped back, so that
    28x28 runs as 32x32 inside. `time_scale` stretches t to the range 0..1000 of diffusers' timesteps.

    Raises:
        UserError: `shape` is not that of an image.
    """

    ENDS = ("unet.conv_in", "unet.conv_norm_out", "unet.conv_out")
    """Its first layer, and its last with what is before it."""

    def __init__(self, shape: tuple[int, ...], network: Network, time_scale: float, classes: int = 0):
        super().__init__()
        if len(shape) != 3:
            raise UserError(f"network = unet needs images, and samples here have shape {shape}: use mlp")
        multipliers = [int(part) for part in network.multipliers.split(",")]
        attention = {int(part) for part in network.attention.split(",") if part}
        self.time_scale = time_scale
        stride = 2 ** (len(multipliers) - 1)
        self.padding = [math.ceil(side / stride) * stride - side for side in shape[1:]]
        side = shape[1] + self.padding[0]
        attends = [side // 2**level in attention for level in range(len(multipliers))]
        self.unet: Any = UNet2DModel(
            sample_size=side if shape[1] == shape[2] else tuple(shape[1:]),  # which diffusers draws
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=tuple(network.width * multiplier for multiplier in multipliers),
            layers_per_block=network.depth,
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            attention_head_dim=None,
            norm_num_groups=math.gcd(32, network.width),
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            dropout=network.dropout,
            num_class_embeds=classes or None,
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        padded = nn.functional.pad(x, (0, self.padding[1], 0, self.padding[0]))
        output: Tensor = self.unet(padded, (t * self.time_scale).to(torch.float32), class_labels=y).sample
        return output[..., :height, :width]
