"""Generates synthetic dermoscopy images with masks, under the file names of ISIC 2017.

Colour follows the Beer-Lambert law: pigments attenuate the light that leaves the skin, so an image
is exp(-sum of pigment thickness x absorption) over fields of pigment, and a brown lesion looks
plausible on any skin. The mask is generated first and does not depend on the image's appearance.
Lengths are in pixels; `unit` is the image's short side. Images are float32 [H, W, 3] in 0..255
until they are returned.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from segan.errors import UsageError

Rng = np.random.Generator
Array = np.ndarray
Write = Callable[[str, bytes], None]  # a file's name and content
# (seed, index, short side, id, folder of the split, write)
WriteSample = Callable[[int, int, int, str, str, Write], None]

FOLDERS = {"train": "Training", "validation": "Validation", "test": "Test_v2"}
SHORT_SIDE = 256
SMALLEST_SIDE = 32

# Width / height, as counted in the 2000 training images of ISIC 2017.
ASPECTS = (1.5, 4 / 3, 1.49, 1.14, 1.43, 1.0, 0.75)
ASPECT_PROBABILITIES = (0.46, 0.40, 0.05, 0.03, 0.03, 0.02, 0.01)

# Skin under a dermatoscope, Fitzpatrick types I to VI.
SKIN_TONES = ("#f6e4de", "#eccec2", "#d6b2a2", "#ba927e", "#8e6858", "#5c423a")
# Absorption of red, green and blue by melanin near the surface, by melanin deep below it (which
# scatters blue light back), by blood, and by shade.
ABSORPTION = np.array([(0.3, 0.75, 1), (1, 0.8, 0.65), (0.08, 0.6, 0.5), (1, 1, 1)], np.float32)
HAIR_COLOURS = ("#1c1412", "#34221a", "#5c402c", "#967654", "#aaa49e")
STICKER_COLOURS = ("#1678d4", "#f6de18", "#34baaa", "#969896", "#e26034")


def generate_archive(
    counts: Mapping[str, int],
    seed: int,
    write: Write,
    short_side: int = SHORT_SIDE,
    on_progress: Callable[[int], None] | None = None,
    write_sample: WriteSample | None = None,
) -> list[str]:
    """Generates an archive of synthetic pairs and returns their ids in order.

    Args:
        counts: pairs by split: train, validation, test.
        write: called with each file's name, relative to the archive, and its content.
        short_side: approximate short side of an image.
        on_progress: called with the number of finished pairs after each pair.
        write_sample: generates and writes the files of one image; default: `write_pair`.

    Raises:
        UsageError: a count, the seed or the short side is out of range.
    """
    for split, count in counts.items():
        _require(split in FOLDERS, "counts", f"only the splits {', '.join(FOLDERS)}", split)
        _require(count >= 0, f"counts[{split!r}]", "0 pairs or more", count)
    _require(short_side >= SMALLEST_SIDE, "short_side", f"{SMALLEST_SIDE} px or more", short_side)
    write_sample = write_sample or write_pair
    splits = [split for split in FOLDERS for _ in range(counts.get(split, 0))]
    ids = [f"ISIC_{index:07d}" for index in range(len(splits))]
    for index, (split, name) in enumerate(zip(splits, ids, strict=True)):
        write_sample(seed, index, short_side, name, FOLDERS[split], write)
        if on_progress is not None:
            on_progress(index + 1)
    return ids


def write_pair(
    seed: int, index: int, short_side: int, name: str, folder: str, write: Write
) -> None:
    """Writes a pair under the names of ISIC 2017.

    Args:
        folder: of FOLDERS.
    """
    image, mask = generate_pair(seed, index, short_side=short_side)
    write(f"ISIC-2017_{folder}_Data/{name}.jpg", encode_image(image, "JPEG", quality=92))
    file = f"ISIC-2017_{folder}_Part1_GroundTruth/{name}_segmentation.png"
    write(file, encode_image(mask, "PNG"))


def generate_pair(
    seed: int, index: int, size: tuple[int, int] | None = None, short_side: int = SHORT_SIDE
) -> tuple[Array, Array]:
    """An image, uint8 [H, W, 3], and its mask, uint8 [H, W] of 0 and 255.

    Args:
        seed, index: determine the pair.
        size: (width, height); None samples a size about `short_side`, distributed as in ISIC 2017.
    """
    _require(min(seed, index) >= 0, "seed and index", "0 or more", (seed, index))
    # Separate generators, so that the draws of one step do not shift those of another.
    sizing, outlining, painting, confounding = np.random.default_rng([seed, index]).spawn(4)
    width, height = size or _sample_size(sizing, short_side)
    _require(min(width, height) >= 16, "size", "sides of 16 px or more", (width, height))
    depth = _generate_depth(outlining, width, height)
    mask = depth > 0
    image = _render_skin(painting, depth)
    for add_confounder, rng in zip(CONFOUNDERS, confounding.spawn(len(CONFOUNDERS)), strict=True):
        if rng.random() < CONFOUNDERS[add_confounder]:
            add_confounder(rng, image, mask)
    image += painting.standard_normal(mask.shape, np.float32)[..., None] * 2
    return image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8) * 255


def _require(condition: bool, name: str, expected: str, found: object) -> None:
    if not condition:
        raise UsageError(f"{name}: expected {expected}, found {found!r}; correct {name}")


def encode_image(pixels: Array, kind: str, **options: int) -> bytes:
    """The content of an image file of a format of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _sample_size(rng: Rng, short_side: int) -> tuple[int, int]:
    """(width, height): the short side 0.8 to 1.6 times `short_side`, aspect ratios of ISIC 2017."""
    short = short_side * 2 ** rng.uniform(-0.32, 0.68)
    aspect = rng.choice(ASPECTS, p=ASPECT_PROBABILITIES)
    return round(short * max(aspect, 1)), round(short / min(aspect, 1))


def _upsample(field: Array, shape: tuple[int, ...]) -> Array:
    size = shape[1], shape[0]
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BICUBIC))


def _noise(rng: Rng, shape: tuple[int, ...], *cells: float) -> Array:
    """Smooth noise of `shape`, float32, approximately N(0, 1), with features of the sizes `cells`.

    Cells are fractions of the short side, largest first; noise on a coarse grid is upsampled.
    """
    noise = np.zeros((2, 2), np.float32)
    for cell in cells:
        knots = [max(2, round(side / max(1.5, cell * min(shape)))) for side in shape]
        noise = _upsample(noise, tuple(knots)) + rng.standard_normal(knots, np.float32)
    return _upsample(noise, shape) * np.float32(1.25 / np.sqrt(len(cells)))


# The shape of the lesion


def _generate_depth(rng: Rng, width: int, height: int) -> Array:
    """Approximate distance to the lesion's outline, float32 [H, W]: positive inside the lesion."""
    unit = min(width, height)
    step = max(1, min(4, unit // 64))  # outlines are smooth: a coarse grid is enough
    share = np.clip(rng.lognormal(np.log(0.14), 0.95), 0.023, 0.68)
    radius = float(np.sqrt(share * width * height / np.pi))
    wander = 0.3 if rng.random() < 0.1 else 0.06
    x0, y0 = rng.normal(0.5, wander, 2).clip(0.08, 0.92)
    x = ((np.arange(-(-width // step)) + 0.5) * step - x0 * width)[None, :]
    y = ((np.arange(-(-height // step)) + 0.5) * step - y0 * height)[:, None]

    depth = _blob(rng, x, y, radius)
    for _ in range(rng.choice(3, p=(0.6, 0.28, 0.12))):
        depth = np.maximum(depth, _rim_blob(rng, x, y, radius))
    if rng.random() < 0.25:
        depth = np.minimum(depth, -_rim_blob(rng, x, y, radius))
    ragged = _noise(rng, depth.shape, 0.5 * radius / unit, 0.18 * radius / unit)
    depth += radius * rng.uniform(0.02, 0.12) * ragged
    # Cropping, satellites and notches change the area; shifting the level restores it.
    depth -= np.quantile(depth, 1 - share)
    return _upsample(depth.astype(np.float32), (height, width))


def _blob(rng: Rng, x: Array, y: Array, radius: float) -> Array:
    """Depth inside a stretched and rotated outline, a radial Fourier series about the origin."""
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.35)
    u = (np.cos(turn) * x + np.sin(turn) * y) / stretch
    v = (np.cos(turn) * y - np.sin(turn) * x) * stretch
    angle = np.arctan2(v, u)
    outline = np.ones_like(angle)
    wildness = rng.uniform(0.05, 0.3)
    for order in range(2, 8):
        outline += rng.normal(0, wildness / order) * np.cos(order * angle + rng.uniform(0, 6.3))
    depth: Array = radius - np.hypot(u, v) / outline.clip(0.4)
    return depth


def _rim_blob(rng: Rng, x: Array, y: Array, radius: float) -> Array:
    """Depth inside a blob of radius / 3, centred near the outline of one of `radius`."""
    angle, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.8, 1.3)
    return _blob(rng, x - away * np.cos(angle), y - away * np.sin(angle), radius / 3)


# Skin and lesion


def _render_skin(rng: Rng, depth: Array) -> Array:
    """The image of the skin with a lesion of this depth map, without confounders."""
    pigments = _skin_pigments(rng, depth.shape)
    _add_lesion(rng, pigments, depth)
    tone = 5 * rng.beta(0.8, 1.1)  # most skin in ISIC 2017 is light
    tones = np.array([ImageColor.getrgb(tone) for tone in SKIN_TONES])
    colour = [np.interp(tone, range(len(tones)), channel) for channel in tones.T]
    tint = rng.normal(0, 0.14 if rng.random() < 0.15 else 0.04, 3) * (0.6, 1.0, 1.0)
    light = np.log(colour) + tint + rng.normal(-0.01, 0.08)
    return np.exp(light.astype(np.float32) - pigments @ ABSORPTION)


def _skin_pigments(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Thickness of the four pigments of `ABSORPTION` in skin without lesion, float32 [H, W, 4]."""
    pigments = np.zeros((*shape, 4), np.float32)
    pigments[..., 0] = rng.uniform(0.02, 0.06) * _noise(rng, shape, 0.4, 0.05, 0.012)
    if rng.random() < 0.3:  # freckles
        spots = np.tanh((_noise(rng, shape, 0.3, rng.uniform(0.03, 0.08)) - 0.7).clip(0) ** 2)
        pigments[..., 0] += rng.uniform(0.1, 0.4) * spots
    redness = rng.uniform(0.1, 0.2) if rng.random() < 0.2 else rng.uniform(0.02, 0.08)
    pigments[..., 2] = redness * _noise(rng, shape, 0.35, 0.12, 0.04, 0.015)
    pigments[..., 3] = rng.uniform(0.01, 0.05) * _noise(rng, shape, 0.6)
    for axis in (0, 1):  # lighting falls off from the middle
        place = np.linspace(-1, 1, shape[axis], dtype=np.float32)
        fall = rng.uniform(0, 0.22) * place**2 + rng.normal(0, 0.05) * place
        pigments[..., 3] += np.expand_dims(fall, 1 - axis)
    return pigments


def _add_lesion(rng: Rng, pigments: Array, depth: Array) -> None:
    """Adds the lesion's pigments in place, with a soft edge that is half as dense at depth 0."""
    shape, unit = depth.shape, min(depth.shape)
    faint = rng.random() < 0.12
    strength = rng.uniform(0.15, 0.3) if faint else np.exp(rng.uniform(np.log(0.45), np.log(1.5)))
    softness = unit * rng.uniform(0.012, 0.06 if faint else 0.04)
    coarse, fine = _noise(rng, shape, 0.35, 0.12), _noise(rng, shape, 0.04, 0.015)
    inside = 0.5 + 0.5 * np.tanh(depth / softness + rng.uniform(0.1, 0.6) * fine)

    density = 0.9 + rng.uniform(0.1, 0.35) * coarse + rng.uniform(0.05, 0.2) * fine
    density += rng.uniform(0, 0.6) * (depth / depth.max()).clip(0)  # darker in the middle
    dots = np.tanh((_noise(rng, shape, rng.uniform(0.014, 0.025)) - 0.3).clip(0))
    density += (
        rng.choice([-1, 1]) * rng.uniform(0.2, 0.8) * dots
    )  # holes of a pigment network, or globules
    density = strength * density.clip(0.3) * inside

    # A blue-black shade requires a thick lesion.
    blue = rng.uniform(0, 0.3) + rng.uniform(0, 0.6) * np.tanh(coarse.clip(0) ** 2)
    deep = blue * min(1.0, strength)
    red = rng.uniform(0.2, 0.6) if rng.random() < 0.2 else rng.uniform(0, 0.12)
    pigments[..., 0] += density * (1 - 0.5 * deep)
    pigments[..., 1] += density * deep
    pigments[..., 2] += red * inside * (1 + 0.3 * coarse)


# Confounders: each paints over `image` in place; those that would hide the lesion use `mask`.


def _canvas(mask: Array) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty coverage plane at twice the size, which `_blend` halves for antialiasing."""
    plane = Image.new("L", (2 * mask.shape[1], 2 * mask.shape[0]))
    return plane, ImageDraw.Draw(plane)


def _blend(image: Array, plane: Image.Image, colour: str) -> None:
    cover = np.asarray(plane.reduce(2), np.float32)[..., None] / 255
    image += cover * (np.array(ImageColor.getrgb(colour), np.float32) - image)


def _random_point(rng: Rng, mask: Array) -> tuple[float, float]:
    height, width = mask.shape
    return rng.uniform(0, width), rng.uniform(0, height)


def _circle_box(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """Bounding box of a circle, at the scale of `_canvas`."""
    return 2 * (x - radius), 2 * (y - radius), 2 * (x + radius), 2 * (y + radius)


def _distance_to_lesion(mask: Array, x: float, y: float) -> float:
    """Distance from (x, y) to the nearest lesion pixel."""
    rows, columns = np.nonzero(mask)
    return float(np.hypot(columns - x, rows - y).min())


def _add_hair(rng: Rng, image: Array, mask: Array) -> None:
    """Curved, tapering hairs in one main direction, anywhere in the image; or shaven stubble."""
    plane, pen = _canvas(mask)
    unit, knots = min(mask.shape), 14
    length = unit * (0.05 if rng.random() < 0.15 else rng.uniform(0.3, 1.1))
    heading, spread, bend = rng.uniform(0, 6.3), rng.uniform(0.2, 1.2), rng.uniform(0.1, 1.2)
    for _ in range(int(np.exp(rng.uniform(np.log(4), np.log(45))))):
        turns = rng.normal(heading, spread) + rng.normal(0, bend) * np.linspace(0, 1, knots)
        steps = np.stack([np.cos(turns), np.sin(turns)], 1) * length * rng.uniform(0.5, 1.3) / knots
        strand = (2 * (_random_point(rng, mask) + steps.cumsum(0))).ravel().tolist()
        thick, shade = max(1, round(unit * rng.uniform(0.004, 0.014))), int(rng.uniform(130, 240))
        pen.line(strand, fill=shade, width=max(1, thick // 2))
        pen.line(strand[: 2 * 10], fill=shade, width=thick)
    _blend(image, plane, HAIR_COLOURS[rng.choice(5, p=(0.3, 0.3, 0.2, 0.12, 0.08))])


def _add_ruler(rng: Rng, image: Array, mask: Array) -> None:
    """A millimetre scale: a tilted bar with ticks near the bottom, or ticks along the left side."""
    plane, pen = _canvas(mask)
    (height, width), unit = mask.shape, min(mask.shape)
    bar = rng.random() < 0.65
    x, y = (rng.uniform(0.1, 0.45), rng.uniform(0.8, 0.95)) if bar else (0, rng.uniform(0.05, 0.4))
    tilt = rng.normal(0, 0.15) if bar else rng.normal(np.pi / 2, 0.25)
    along = np.array([np.cos(tilt), np.sin(tilt)])
    across = np.array([along[1], -along[0]]) * unit * (0.022 if bar else 0.034)
    gap, shade = unit * rng.uniform(0.035, 0.05) * (1 if bar else 2), int(rng.uniform(120, 230))
    feet = np.array([x * width, y * height]) + np.arange(11)[:, None] * along * gap
    tips = feet + across * np.where(np.arange(11) % 5 == 0, 1.6, 1)[:, None]
    for ends in [*np.stack([feet, tips], 1), *([feet[[0, -1]]] if bar else [])]:
        pen.line((2 * ends).ravel().tolist(), fill=shade, width=max(1, unit // 128))
    _blend(image, plane, "#1e1a1c")


def _add_ink(rng: Rng, image: Array, mask: Array) -> None:
    """A surgeon's violet pen marks, hatched next to the lesion."""
    plane, pen = _canvas(mask)
    for _ in range(rng.integers(2, 6)):
        (x, y), reach = _random_point(rng, mask), min(mask.shape) * rng.uniform(0.03, 0.08)
        if _distance_to_lesion(mask, x, y) < 3 * reach:
            continue
        spine = rng.uniform(-1, 1, 2)
        for share in np.linspace(-1, 1, rng.integers(6, 14)):
            ends = np.array([x, y]) + reach * (share * spine + rng.normal(0, 0.4, (2, 2)))
            width = max(1, round(reach * rng.uniform(0.15, 0.35)))
            pen.line((2 * ends).ravel().tolist(), fill=int(rng.uniform(120, 210)), width=width)
    _blend(image, plane, "#42287c")


def _add_bubbles(rng: Rng, image: Array, mask: Array) -> None:
    """Gel bubbles: a faint bright disc, a bright rim and a specular highlight."""
    plane, pen = _canvas(mask)
    unit = min(mask.shape)
    for _ in range(rng.integers(2, 14)):
        (x, y), start = _random_point(rng, mask), rng.uniform(0, 360)
        radius = unit * np.exp(rng.uniform(np.log(0.008), np.log(0.06)))
        rim = max(1, unit // 160)
        pen.ellipse(_circle_box(x, y, radius), fill=16, outline=50, width=rim)
        arc = start, start + rng.uniform(50, 130)
        pen.arc(_circle_box(x, y, radius), *arc, fill=int(rng.uniform(90, 200)), width=rim)
        pen.ellipse(_circle_box(x + 0.4 * radius, y - 0.4 * radius, 0.16 * radius), fill=225)
    _blend(image, plane, "#fffcf8")


def _add_sticker(rng: Rng, image: Array, mask: Array) -> None:
    """A round coloured patch at a side, as in ISIC 2017's images of children."""
    (height, width), unit = mask.shape, min(mask.shape)
    x, y = width * rng.choice([-0.05, 1.05]), height * rng.uniform(0, 1)
    radius = min(unit * rng.uniform(0.2, 0.5), _distance_to_lesion(mask, x, y) - 0.04 * unit)
    if radius > 0.1 * unit:
        plane, pen = _canvas(mask)
        pen.ellipse(_circle_box(x, y, radius), fill=250)
        _blend(image, plane, STICKER_COLOURS[rng.integers(len(STICKER_COLOURS))])


def _add_vignette(rng: Rng, image: Array, mask: Array) -> None:
    """The dark surround of a round lens, outside of the lesion."""
    (height, width), unit = mask.shape, min(mask.shape)
    x0, y0 = rng.normal(0.5, 0.015, 2)
    y, x = np.ogrid[:height, :width]
    away = np.hypot(x - x0 * width, y - y0 * height).astype(np.float32)
    radius = max(unit * rng.uniform(0.55, 0.8), away[mask].max() + 0.06 * unit)
    dark = 0.5 + 0.5 * np.tanh((away - radius) / (unit * rng.uniform(0.005, 0.03)))
    image *= 1 - dark[..., None] * rng.uniform(0.85, 1.0)


CONFOUNDERS = {
    _add_ink: 0.15,
    _add_sticker: 0.12,
    _add_ruler: 0.35,
    _add_hair: 0.45,
    _add_bubbles: 0.3,
    _add_vignette: 0.3,
}
"""Probability of each confounder, in the order in which they are painted."""
