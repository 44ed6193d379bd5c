"""The whole network: three encoders, a fusion, and the two numbers of the contrastive loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.encoders.audio import AudioPool, FrameEncoder
from models.encoders.caption import CaptionEncoder
from models.encoders.sensor import SensorEncoder
from models.fusion import Fusion


class Network(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.sensor = SensorEncoder(config)
        self.frames = FrameEncoder(config)
        self.audio = AudioPool(config)
        self.caption = CaptionEncoder(config)
        self.fusion = Fusion(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0))

    def scale(self) -> Tensor:
        return self.logit_scale.clamp(0.0, math.log(60.0)).exp()
