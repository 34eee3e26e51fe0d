"""How an image becomes what a network takes: scaled, cropped, grey or in colour, normalised."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from gatecli import limits
from gatecli.errors import DataError
from gatecli.traced.recipe import InputSpec

__all__ = [
    "arrays_resized",
    "centre_crop",
    "luminance",
    "middle",
    "mode_for",
    "normalisation",
    "normalised",
    "pixels",
    "prepare",
    "resized",
    "scaled_size",
]

CHUNK = 1024  # images resized at a time: they are float32 then


def prepare(picture: Image.Image, input: InputSpec, *, crop: bool) -> Tensor:
    """One picture as the network takes it: float32 (1, channels, height, width), normalised.

    Args:
        picture: in the mode that `mode_for` names.
        input: what the network takes, its normalisation known.
        crop: whether the middle is cut out, as of image files, or the whole picture is scaled, as
            of arrays.

    Raises:
        DataError: the normalisation is not known or does not fit.
    """
    return normalised(pixels(picture, input, crop=crop), input)


def mode_for(input: InputSpec) -> str:
    """PIL's mode of the pictures that a network takes: grey for one channel, else colour."""
    return "L" if input.channels == 1 else "RGB"


def pixels(picture: Image.Image, input: InputSpec, *, crop: bool) -> Tensor:
    """One picture in the network's size: uint8 (1, 1 or 3, height, width).

    The arguments are those of `prepare`.
    """
    if crop:
        return middle(picture, input)[None]
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    whole = values.view(1, picture.height, picture.width, -1).permute(0, 3, 1, 2)
    return arrays_resized(whole, input)


def centre_crop(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """The middle of a picture where nothing is said: scaled to just cover size / 0.875, then cut.

    Args:
        picture: of any size.
        size: (height, width) in pixels.

    Returns:
        uint8 (C, height, width).
    """
    return middle(picture, InputSpec(size=size))


def middle(picture: Image.Image, input: InputSpec) -> Tensor:
    """The middle of a picture, as torchvision's and timm's evaluation transforms take it.

    Args:
        picture: of any size.
        input: the size, and what the picture is scaled to before; `border` fills with its mean.

    Returns:
        uint8 (C, height, width).

    Raises:
        DataError: the picture would have too many pixels once scaled.
    """
    sides = scaled_size((picture.height, picture.width), input)
    if sides[0] * sides[1] > limits.PIXELS:
        raise DataError(
            f"a picture of {picture.width} x {picture.height} would have {sides[1]} x {sides[0]}"
            f" pixels once scaled, more than {limits.PIXELS:,}: cut it"
        )
    scaled = TF.resize(picture, list(sides), interpolation=InterpolationMode(input.interpolation))
    if input.crop_mode == "border":
        scaled = _padded(scaled, input)
    cut: Tensor = TF.pil_to_tensor(TF.center_crop(scaled, list(input.size)))
    return cut


def scaled_size(sides: tuple[int, int], input: InputSpec) -> tuple[int, int]:
    """What a picture of (height, width) is scaled to before its middle is cut out."""
    height, width = sides
    high, wide = input.box
    if input.crop_mode == "squash":
        return high, wide
    if input.resize is not None and len(input.resize) == 2:
        choose = max if input.crop_mode == "border" else min
        ratio = choose(height / high, width / wide)
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    if width * high >= height * wide:
        return high, max(wide, int(high * width / height))
    return max(high, int(wide * height / width)), wide


def _padded(picture: Image.Image, input: InputSpec) -> Image.Image:
    """A picture with as much of the mean colour around it as `size` is larger."""
    means = input.mean or (0.0,)
    bands = len(picture.getbands())
    fill = [round(255 * value) for value in (means if len(means) == bands else means[:1] * bands)]
    high = max(0, input.size[0] - picture.height)
    wide = max(0, input.size[1] - picture.width)
    edges = [wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2]
    padded: Image.Image = TF.pad(picture, edges, fill=fill if bands > 1 else fill[0])
    return padded


def arrays_resized(images: Tensor, input: InputSpec) -> Tensor:
    """uint8 (N, C, H, W) out of arrays in the network's size.

    Whole pictures are scaled, but where the user said that they are cropped.
    """
    if not input.crops_arrays:
        return resized(images, input.size, input.interpolation)
    height, width = images.shape[-2:]
    scaled = resized(images, scaled_size((height, width), input), input.interpolation)
    cut: Tensor = TF.center_crop(scaled, list(input.size))
    return cut


def resized(images: Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """uint8 (N, C, H, W) in another (height, width): antialiased, rounded.

    One image's result depends on it alone.
    """
    size = (size[0], size[1])
    if tuple(images.shape[-2:]) == size:
        return images
    done = []
    for chunk in torch.split(images, CHUNK):
        if interpolation in ("bilinear", "bicubic"):
            scaled = F.interpolate(chunk.float(), size, mode=interpolation, antialias=True)
            done.append(scaled.round_().clamp_(0, 255).to(torch.uint8))
        else:
            done.append(torch.stack([_by_pil(image, size, interpolation) for image in chunk]))
    return torch.cat(done)


def _by_pil(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """One image of 1 or 3 channels, in the ways of scaling that torch does not have."""
    picture = TF.to_pil_image(image)
    scaled = TF.resize(picture, list(size), interpolation=InterpolationMode(interpolation))
    tensor: Tensor = TF.pil_to_tensor(scaled)
    return tensor


def luminance(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) as ITU-R 601 grey (N, 1, H, W), with the integers that PIL uses.

    Grey stays as it is.
    """
    if images.shape[1] == 1:
        return images
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
    grey = []
    for chunk in torch.split(images, CHUNK):
        total = (chunk.int() * weights).sum(1, keepdim=True) + 2**15
        grey.append(total.div_(2**16, rounding_mode="floor"))
    return torch.cat(grey).to(torch.uint8)


def normalised(
    images: Tensor, input: InputSpec, memory_format: torch.memory_format = torch.preserve_format
) -> Tensor:
    """Images as the network takes them; grey ones are repeated to its channels.

    Args:
        images: uint8 (n, 1 or channels, H, W).
        input: its channels and normalisation.
        memory_format: of the result; as given where nothing is said.

    Returns:
        float32 (n, channels, H, W).

    Raises:
        DataError: the normalisation is not known or does not fit.
    """
    mean, std = normalisation(input)
    repeated = images.expand(-1, input.channels, -1, -1)
    x = repeated.to(torch.float32, memory_format=memory_format)
    return x.div_(255).sub_(mean.to(x.device)).div_(std.to(x.device))


def normalisation(input: InputSpec) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as float32 (1, 1 or channels, 1, 1).

    Raises:
        DataError: they are unknown or do not fit.
    """
    if input.mean is None or input.std is None:
        raise DataError(
            "the normalisation of the network's input is not known: give --mean and --std as it was"
            " trained with"
        )
    if not {len(input.mean), len(input.std)} <= {1, input.channels}:
        raise DataError(
            f"expected `mean` and `std` to have {_or_one(input.channels)}, as the network takes"
            f" {input.channels} channels, but got {len(input.mean)} and {len(input.std)}: give"
            " --mean and --std"
        )
    is_finite = all(map(math.isfinite, input.mean))
    if not is_finite or not all(0 < value < math.inf for value in input.std):
        raise DataError(
            f"expected `mean` to be finite and `std` above 0, but got {input.mean} and {input.std}:"
            " give --mean and --std"
        )
    return _column(input.mean), _column(input.std)


def _or_one(channels: int) -> str:
    return "1 value" if channels == 1 else f"1 or {channels} values"


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
