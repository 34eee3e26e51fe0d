"""Small transformers, each with its own way of writing attention; `WAYS` can be told apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, EACH = 12, 3, 4
SIZE = (8, 8)


class Base(nn.Module):
    """Projections of one layer for all three, or of one each."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)


class Fused(Base):
    """As timm writes it, with torch's function."""

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, length, width))


class Explicit(Base):
    """The products written out, and a bias for each head and each two places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(HEADS, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = q.view(n, length, HEADS, EACH).transpose(1, 2) * EACH**-0.5
        k = k.view(n, length, HEADS, EACH).permute(0, 2, 3, 1)
        v = v.view(n, length, HEADS, EACH).transpose(1, 2)
        weights = (q @ k + self.table).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Split(Base):
    """One projection, split by a number of channels."""

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        parts = self.qkv(x).split(WIDTH, 2)
        q, k, v = (parts[i].view(n, length, HEADS, EACH).transpose(1, 2) for i in range(3))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.contiguous().view(n, length, WIDTH))


class Three(nn.Module):
    """A projection each, queries and keys normalised, the output without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(EACH)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def _parted(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, EACH)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.norm(self._parted(self.q(x))), self._parted(self.k(x))
        x = F.scaled_dot_product_attention(q, k, self._parted(self.v(x)))
        return self.out(x.transpose(1, 2).flatten(2))


class Torchs(nn.Module):
    """torch's own, dropping weights in training."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class Rotated(nn.Module):
    """Queries and keys are turned by their place, but for the first; a bias in three parts.

    As timm's EVA and DINOv3, and its SwinV2 and BEiT as to the bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("k_bias", torch.zeros(WIDTH), persistent=False)
        self.v_bias = nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("angles", torch.linspace(0, 3, 15 * EACH).view(15, EACH))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def _turned(self, x: Tensor) -> Tensor:
        first, rest = x[:, :, :1, :], x[:, :, 1:, :]
        across = torch.stack([-rest[..., 1::2], rest[..., ::2]], -1).reshape(rest.shape)
        turned = rest * self.angles.cos() + across * self.angles.sin()
        return torch.cat([first, turned], dim=2)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(x, weight=self.qkv.weight, bias=bias)
        q, k, v = qkv.reshape(n, length, 3, HEADS, EACH).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(self._turned(q), self._turned(k), v)
        return self.proj(x.transpose(1, 2).reshape(n, length, width))


class Grouped(nn.Module):
    """Four heads of queries share two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q = self.q(x).view(n, length, 4, 3).transpose(1, 2)
        kv = self.kv(x).view(n, length, 2, 2, 3).permute(2, 0, 3, 1, 4)
        k, v = (kv[i][:, :, None].expand(n, 2, 2, length, 3) for i in range(2))
        k, v = k.reshape(n, 4, length, 3), v.reshape(n, 4, length, 3)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class InBatch(Base):
    """Heads lie in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        qkv = self.qkv(x).view(n, length, 3, HEADS, EACH).permute(2, 0, 3, 1, 4)
        q, k, v = (qkv[i].reshape(n * HEADS, length, EACH) for i in range(3))
        x = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1), v)
        x = x.view(n, HEADS, length, EACH).transpose(1, 2)
        return self.proj(x.reshape(n, length, WIDTH))


class Summed(Base):
    """The products are written as einsum, as in MaxViT."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, EACH)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(torch.einsum("nhid,nhjd->nhij", q, k), dim=-1)
        x = torch.einsum("nhij,nhjd->nhid", weights, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Normed(Fused):
    """A normalisation over all heads stands before the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, EACH)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(self.norm(x))


class Told(Base):
    """Windows of images, with a mask for each window of one, as Hugging Face's Swin.

    It looks at its mode, so that tracing keeps it whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(HEADS, 4, 4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, HEADS, EACH).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table
        if mask is not None:
            many = mask[:, None].unsqueeze(0).expand(n // mask.shape[0], -1, -1, -1, -1)
            bias = bias + many.reshape(-1, 1, length, length)
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=0.5 if self.training else 0.0
        )
        return self.proj(x.transpose(1, 2).reshape(n, length, width)), None


class Asked(nn.Module):
    """An attention whose mask is made of what it looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Told()

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, WIDTH)
        return self.attention(x, x @ x.transpose(1, 2))[0].reshape(-1, 16, WIDTH)


class SequenceFirst(nn.Module):
    """torch's own, of places first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.attention(x, x, x, need_weights=False)[0].transpose(0, 1)


class Transformer(nn.Module):
    """Patches, two residual attentions, and a classifier."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.layers = nn.ModuleList(attention() for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x.mean(1))


class Shifted(nn.Module):
    """Patches, attention in windows of 2 x 2, and in those moved by one, told which are apart."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.layers = nn.ModuleList(Told() for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        for shift, layer in enumerate(self.layers):
            moved = x.roll((-shift, -shift), (1, 2))
            parts = self._parts(moved).reshape(-1, 4, WIDTH)
            found = layer(parts, self._mask(moved, parts) if shift else None)[0]
            found = found.view(-1, 2, 2, 2, 2, WIDTH).transpose(2, 3).reshape(-1, 4, 4, WIDTH)
            x = x + found.roll((shift, shift), (1, 2))
        return self.head(x.mean((1, 2)))

    def _parts(self, maps: Tensor) -> Tensor:
        return maps.reshape(-1, 2, 2, 2, 2, maps.shape[3]).transpose(2, 3)

    def _mask(self, maps: Tensor, parts: Tensor) -> Tensor:
        """-100 between what lies at opposite edges of the image, (4, 4, 4)."""
        last = (torch.arange(maps.shape[1], device=parts.device) > 2).to(maps.dtype)
        where = (2 * last[:, None] + last)[None, :, :, None]
        where = self._parts(where).reshape(-1, 4)
        return (where[:, None] != where[:, :, None]).to(maps.dtype) * -100


def windows() -> nn.Module:
    """torchvision's Swin, small: 4 x 4 windows, every second layer's shifted."""
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([2, 2], 12, [2, 1], [3, 2], [2, 2], num_classes=5)


def windows_v2() -> nn.Module:
    """Its second version: cosines, scaled by head; a perceptron makes the bias of positions."""
    from torchvision.models import swin_transformer as swin

    parts = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    return swin.SwinTransformer([2, 2], 12, [2, 1], [3, 2], [2, 2], num_classes=5, **parts)


WAYS: dict[str, Callable[[], nn.Module]] = {
    **{each.__name__: each for each in (Fused, Explicit, Split, Three, Torchs, Rotated)},
}
NOT_PARTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "Grouped": (Grouped, "grouped-query"),
    "InBatch": (InBatch, "batch"),
    "Normed": (Normed, "mixed by `layers_0_norm`"),
    "Summed": (Summed, "einsum"),
    "SequenceFirst": (SequenceFirst, "batch_first"),
    "Asked": (Asked, "several values that depend on the image"),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """The network, its weights drawn, so large that heads matter."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.4)
            else:
                nn.init.uniform_(parameter, 0.5, 1)
    return model.eval()


def transformer(name: str) -> nn.Module:
    """A network with attention of one of these ways."""
    if name == "Shifted":
        return made(Shifted)
    way = WAYS[name] if name in WAYS else NOT_PARTED[name][0]
    return made(lambda: Transformer(way))
