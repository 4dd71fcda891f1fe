"""The triplane video autoencoder (Sec. 3.2): f_phi encodes a clip to three planes, g_psi decodes.

Axes: b batch, s frames, H and W pixels, h and w patch rows and columns, c latent channels,
e channels of the transformer.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from pvdm_cli.config import AutoencoderConfig, ModelConfig
from pvdm_cli.latents import Planes, broadcast_sum
from pvdm_cli.models.layers import FeedForward, SelfAttention, run
from pvdm_cli.models.timesformer import TimeSformer


class Encoder(TimeSformer):
    """f_shw: linear patch embedding, then a TimeSformer."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config.width, config.depth, config.num_heads, config.head_dim)
        self.patch = config.patch
        self.patch_embedding = nn.Linear(3 * config.patch**2, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels [b, 3, s, H, W] to features [b, s, h, w, e]."""
        patches = rearrange(
            x, "b rgb s (h y) (w x) -> b s h w (y x rgb)", y=self.patch, x=self.patch
        )
        return super().forward(self.patch_embedding(patches))


class ProjectionBlock(nn.Module):
    """Attention and GELU feed-forward over one axis."""

    grain = "block"

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(
            config.width, config.projection_heads, config.projection_head_dim
        )
        self.feed_forward = FeedForward(config.width, config.projection_mlp, gated=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences [n, l, e] to sequences [n, l, e]."""
        return self.feed_forward(run(self.attention, x))

    def read_first(self, x: Tensor) -> Tensor:
        """Compute position 0 alone: [n, l, e] -> [n, 1, e]."""
        return self.feed_forward(self.attention.read_first(x))


class Projection(nn.Module):
    """Squeeze one axis of length l to a single latent vector (Sec. 3.2, f_s, f_h, f_w).

    As in the published implementation a learnable token is appended after the sequence and the
    result is read at index 0, not at the token.
    """

    def __init__(self, config: AutoencoderConfig, length: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(config.width))
        self.positions = nn.Parameter(torch.randn(length + 1, config.width))
        self.blocks = nn.ModuleList(ProjectionBlock(config) for _ in range(config.projection_depth))
        self.to_latent = nn.Linear(config.width, config.latent_channels)

    def forward(self, u: Tensor) -> Tensor:
        """Map sequences [n, l, e] to latents [n, c] in (-1, 1)."""
        token = self.token.expand(u.shape[0], 1, -1)
        x = torch.cat([u, token], dim=1) + self.positions
        for block in self.blocks[:-1]:
            x = run(block, x)
        last = self.blocks[-1]
        assert isinstance(last, ProjectionBlock)
        return torch.tanh(self.to_latent(last.read_first(x)[:, 0]))


class Autoencoder(nn.Module):
    """Pixels x [b, 3, s, H, W] in [-1, 1] <-> `Planes` in (-1, 1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        ae, latent = config.autoencoder, config.latent
        self.patch, self.clip = ae.patch, config.clip
        self.encoder = Encoder(ae)
        self.projections = nn.ModuleDict(
            {
                "hw": Projection(ae, latent.s),
                "sw": Projection(ae, latent.h),
                "sh": Projection(ae, latent.w),
            }
        )
        self.from_latent = nn.ModuleDict(
            {name: nn.Linear(ae.latent_channels, ae.width) for name in Planes._fields}
        )
        self.decoder = TimeSformer(ae.width, ae.depth, ae.num_heads, ae.head_dim)
        # A transposed convolution with stride = kernel: used as the linear map that it is.
        self.to_pixels = nn.ConvTranspose2d(ae.width, 3, ae.patch, stride=ae.patch)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the features."""
        return self.encoder.dtype

    def encode(self, x: Tensor) -> Planes:
        """Squeeze clips into their three planes, of the dtype of x.

        Raises:
            ValueError: If x is not of the configured clip size.
        """
        expected = (3, self.clip.frames, self.clip.height, self.clip.width)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"clips of shape {tuple(x.shape[1:])}, expected {expected}")
        u = self.encoder(x.to(self.encoder.dtype))
        b, s, h, _, _ = u.shape
        hw = self.projections["hw"](rearrange(u, "b s h w e -> (b h w) s e"))
        sw = self.projections["sw"](rearrange(u, "b s h w e -> (b s w) h e"))
        sh = self.projections["sh"](rearrange(u, "b s h w e -> (b s h) w e"))
        return Planes(
            rearrange(hw, "(b h w) c -> b c h w", b=b, h=h).to(x.dtype),
            rearrange(sw, "(b s w) c -> b c s w", b=b, s=s).to(x.dtype),
            rearrange(sh, "(b s h) c -> b c s h", b=b, s=s).to(x.dtype),
        )

    def decode(self, z: Planes) -> Tensor:
        """Turn planes back into pixels [b, 3, s, H, W] in (-1, 1), of the dtype of the planes."""
        lifted = [
            self.from_latent[name](plane.to(self.decoder.dtype).movedim(1, -1)).movedim(-1, 1)
            for name, plane in zip(Planes._fields, z, strict=True)
        ]
        v = self.decoder(broadcast_sum(Planes(*lifted)).movedim(1, -1))  # [b, s, h, w, e]
        patches = v @ self.to_pixels.weight.flatten(1)  # [b, s, h, w, rgb*y*x]
        patches = patches.to(z.hw.dtype)  # bf16 has steps of a grey level near black and white
        pixels = rearrange(
            patches,
            "b s h w (rgb y x) -> b rgb s (h y) (w x)",
            y=self.patch,
            x=self.patch,
        )
        bias = self.to_pixels.bias
        assert bias is not None
        return 2 * torch.sigmoid(pixels + bias[:, None, None, None]) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Encode and decode: the reconstruction of x."""
        return self.decode(self.encode(x))
