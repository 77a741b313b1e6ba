"""An encoder and a decoder: what is trained, and what captions an image."""

import torch
from torch import Tensor, nn

from captioning.models.decoders.base import Decoder, DecoderOutput
from captioning.models.encoders import Encoder
from captioning.models.features import ImageFeatures, Inputs
from captioning.search import BOS, Hypotheses, Search


class CaptionModel(nn.Module):
    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: Inputs, tokens: Tensor) -> DecoderOutput:
        """Teacher forcing: B images and tokens (B*K, T), <bos> first, an image's captions side by side -> logits for tokens[:, 1:]."""
        return self.decoder(self.encoder(images), tokens[:, :-1])

    @torch.inference_mode()
    def generate(self, images: Inputs, search: Search) -> Hypotheses:
        """Free running. The model must be in eval mode."""
        return search(self.decoder.step, self.decoder.init_state(self.encoder(images)))

    def look(self, features: ImageFeatures, tokens: Tensor) -> Tensor | None:
        """(B, T, N): where each word of these captions (B, T), without <bos>, looked; None for a decoder that does not attend."""
        if not self.decoder.attends:
            return None
        bos = torch.full_like(tokens[:, :1], BOS)
        return self.decoder(features, torch.cat([bos, tokens[:, :-1]], dim=1)).attention
