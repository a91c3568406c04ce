# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The papers' networks in PyTorch: own code from the method's description.

Parameters have the names of the published checkpoints. Every network is built in two
ways: `published`, with the structure of the authors' code, and lean, with what PyTorch
offers since.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from g2sd_jax.models import mae, vit
from g2sd_jax.ops import patches


class Form(NamedTuple):
    """How a step is written and run."""

    published: bool  # whole patch embedding, softmax by hand, parts that nobody reads
    compiled: str = ""  # what torch.compile is given: blocks, model; "": nothing
    half: torch.dtype = torch.bfloat16  # of autocast, where half precision is asked for


FORMS = {
    "authors": Form(published=True, half=torch.float16),
    "eager": Form(published=False),
    "tuned": Form(published=False, compiled="blocks"),
    "tuned-whole": Form(published=False, compiled="model"),
}
# Parameters that only the authors' networks have: no loss depends on them.
UNREAD = ("decoder_norm.", "decoder_pred.", "encoderfeature_pred.")


class Attention(nn.Module):
    """Multi-head self-attention; returns copies of q, k and v where they are kept."""

    def __init__(self, width: int, heads: int, form: Form, keep: bool) -> None:
        super().__init__()
        self.heads, self.form, self.keep = heads, form, keep
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, h, T, d]
        if self.form.published:
            logits = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
            out = logits.softmax(dim=-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        out = self.proj(merge_heads(out))
        return out, tuple(map(merge_heads, (q, k, v))) if self.keep else ()


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """[B, h, T, d] -> [B, T, h * d]."""
    batch, _, tokens, _ = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, -1)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, width: int, heads: int, ratio: float, eps: float, form: Form, keep: bool
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps) for _ in range(2))
        self.attn = Attention(width, heads, form, keep)
        self.mlp = Mlp(width, round(width * ratio), width)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        branch, qkv = self.attn(self.norm1(x))
        x = x + branch
        return x + self.mlp(self.norm2(x)), qkv


class PatchEmbed(nn.Module):
    """A convolution of patch size; lean, the product it is, of the chosen patches."""

    def __init__(self, channels: int, width: int, patch: int, form: Form) -> None:
        super().__init__()
        self.patch, self.form = patch, form
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, image: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
        """image [B, c, H, W], ids [B, K] or None for all patches -> [B, K, D]."""
        if self.form.published:
            return self.proj(image).flatten(2).transpose(1, 2)
        vectors = patchify(image, self.patch)
        if ids is not None:
            vectors = gather(vectors, ids)
        return F.linear(vectors, self.proj.weight.flatten(1), self.proj.bias)


def patchify(image: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, c, H, W] -> [B, N, c * p * p], a vector in the order of a kernel."""
    batch, channels, height, width = image.shape
    rows, columns = height // patch, width // patch
    image = image.view(batch, channels, rows, patch, columns, patch)
    return image.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


def gather(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """[B, N, D] at ids [B, K] -> [B, K, D]."""
    return torch.gather(x, 1, ids[:, :, None].expand(-1, -1, x.shape[2]))


class Masking(NamedTuple):
    """Which patches are visible, in drawn order, and where each one went."""

    ids_keep: torch.Tensor  # [B, K]
    ids_restore: torch.Tensor  # [B, N]
    removed: torch.Tensor  # [B, N] 1 where hidden


def mask(noise: torch.Tensor, ratio: float) -> Masking:
    """Keeps the patches of the smallest noise [B, N]."""
    keep = int(noise.shape[1] * (1 - ratio))
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    return Masking(ids_shuffle[:, :keep], ids_restore, (ids_restore >= keep).float())


class Encoding(NamedTuple):
    """The outputs of an encoder."""

    last: torch.Tensor  # [B, T, D] raw, after the last block
    taps: list[torch.Tensor]  # after every block
    qkv: list  # of every block, where they are kept


def run(x: torch.Tensor, blocks: Sequence[Block]) -> Encoding:
    """Applies blocks one after the other."""
    taps, kept = [], []
    for block in blocks:
        x, qkv = block(x)
        taps.append(x)
        kept.append(qkv)
    return Encoding(x, taps, kept)


class Mae(nn.Module):
    """Masked autoencoder; `shape` is ours, which knows the sizes and the parts."""

    def __init__(self, shape: mae.Mae, form: Form, keep: bool = False) -> None:
        super().__init__()
        self.form, self.patch = form, shape.patch
        width, inner, eps = shape.width, shape.dec_width, shape.norm_eps
        stack = lambda depth, *sizes: nn.ModuleList(
            Block(*sizes, shape.mlp_ratio, eps, form, keep) for _ in range(depth)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = PatchEmbed(shape.channels, width, shape.patch, form)
        self.blocks = stack(shape.depth, width, shape.heads)
        self.norm = nn.LayerNorm(width, eps)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.decoder_embed = nn.Linear(width, inner)
        self.decoder_blocks = stack(shape.dec_depth, inner, shape.dec_heads)
        if shape.pixel_head:
            self.decoder_norm = nn.LayerNorm(inner, eps)
            self.decoder_pred = nn.Linear(inner, shape.patch**2 * shape.channels)
        if shape.feature_width:
            self.decoderfeature_pred = Mlp(inner, *2 * [shape.feature_width])
        if shape.encoder_feature_width:
            self.encoderfeature_pred = Mlp(width, *2 * [shape.encoder_feature_width])
        if shape.align_width:
            self.aligned_feature_projection_heads = nn.ModuleList(
                nn.Linear(width, shape.align_width) for _ in shape.align_blocks
            )
        for name, size in (("pos_embed", width), ("decoder_pos_embed", inner)):
            table = torch.from_numpy(patches.sincos_table(size, shape.grid))
            self.register_buffer(name, table)

    def encode(
        self, image: torch.Tensor, masking: Masking, depth: int | None = None
    ) -> Encoding:
        """Runs the first blocks, or all, on the visible patches and a class token."""
        table = self.pos_embed[:, 1:]
        if self.form.published:
            x = gather(self.patch_embed(image, None) + table, masking.ids_keep)
        else:
            x = self.patch_embed(image, masking.ids_keep)
            table = table.expand(len(image), -1, -1)
            x = x + gather(table, masking.ids_keep).to(x.dtype)
        return run(prepend(self.cls_token, x), self.blocks[:depth])

    def decode(
        self, latent: torch.Tensor, masking: Masking, depth: int | None = None
    ) -> torch.Tensor:
        """Runs the first decoder blocks, or all, on all patches: [B, 1 + N, E], raw."""
        x = self.decoder_embed(latent)
        hidden = masking.ids_restore.shape[1] - masking.ids_keep.shape[1]
        token = self.mask_token.to(x.dtype).expand(len(x), hidden, -1)
        drawn = torch.cat([x[:, 1:], token], dim=1)
        x = torch.cat([x[:, :1], gather(drawn, masking.ids_restore)], dim=1)
        table = self.decoder_pos_embed
        x = x + (table if self.form.published else table.to(x.dtype))
        return run(x, self.decoder_blocks[:depth]).last

    def pixels(self, decoded: torch.Tensor) -> torch.Tensor:
        """[B, 1 + N, E] -> [B, N, P]."""
        return self.decoder_pred(self.decoder_norm(decoded))[:, 1:]


def prepend(token: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Puts a learned token before the others."""
    return torch.cat([token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)


class Vit(nn.Module):
    """Classifier; `shape` is ours. A distillation token comes last, as in G2SD."""

    def __init__(self, shape: vit.Vit, form: Form) -> None:
        super().__init__()
        self.form, self.pool, self.distilled = form, shape.pool, shape.dist_token
        width, eps = shape.width, shape.norm_eps
        count = (shape.image_size[0] // shape.patch) * (
            shape.image_size[1] // shape.patch
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + count, width))
        self.patch_embed = PatchEmbed(shape.channels, width, shape.patch, form)
        self.blocks = nn.ModuleList(
            Block(width, shape.heads, shape.mlp_ratio, eps, form, False)
            for _ in range(shape.depth)
        )
        name = {"cls": "norm", "avg": "fc_norm"}[shape.pool]
        self.add_module(name, nn.LayerNorm(width, eps))
        self.head = nn.Linear(width, shape.classes)
        if shape.dist_token:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
            self.head_dist = nn.Linear(width, shape.classes)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """image [B, c, H, W] -> logits, and those of the distillation head."""
        x = prepend(self.cls_token, self.patch_embed(image, None))
        table = self.pos_embed
        x = x + (table if self.form.published else table.to(x.dtype))
        if self.distilled:
            token = self.dist_token.to(x.dtype).expand(len(x), -1, -1)
            x = torch.cat([x, token], dim=1)
        x = run(x, self.blocks).last
        if self.pool == "avg":
            return self.head(self.fc_norm(x[:, 1:].mean(dim=1))), None
        x = self.norm(x)
        dist = self.head_dist(x[:, -1]) if self.distilled else None
        return self.head(x[:, 0]), dist
