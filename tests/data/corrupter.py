"""Everything that may be wrong with one pair of an archive, each kind by its name.

A kind of damage is a function of the pair's two files and a seeded generator, with what must come
of it: a record, a reject, or either, where the damage may leave a readable picture.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Rng = np.random.Generator
Damage = Callable[[Path, Path, Rng], Any]
RECORD, REJECT, EITHER = "record", "reject", "either"


@dataclass(frozen=True)
class Kind:
    """Some damage, what must come of it, and how many inputs an archive has more by it."""

    damage: Damage
    expected: str
    more: int = 0


# Bytes


def cut(which: int, least: float, most: float) -> Damage:
    def damage(*pair: Any) -> None:
        content = pair[which].read_bytes()
        pair[which].write_bytes(content[: int(len(content) * pair[2].uniform(least, most))])

    return damage


def flip(which: int, least: float, most: float, bits: int = 3) -> Damage:
    """Some bits turned between two shares of the file's length."""

    def damage(*pair: Any) -> None:
        content, rng = bytearray(pair[which].read_bytes()), pair[2]
        for _ in range(bits):
            content[int(len(content) * rng.uniform(least, most))] ^= 1 << int(rng.integers(8))
        pair[which].write_bytes(bytes(content))

    return damage


def patch(which: int, dropped: int, inserted: int) -> Damage:
    def damage(*pair: Any) -> None:
        content, rng = pair[which].read_bytes(), pair[2]
        at = int(rng.integers(len(content) // 3, len(content) // 2))
        new = content[:at] + rng.bytes(inserted) + content[at + dropped :]
        pair[which].write_bytes(new)

    return damage


def become(which: int, content: bytes) -> Damage:
    return lambda *pair: pair[which].write_bytes(content)


def zeros(which: int) -> Damage:
    return lambda *pair: pair[which].write_bytes(bytes(pair[which].stat().st_size))


# Pictures


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def resaved(kind: str, mode: str = "RGB", **options: Any) -> Damage:
    """The image in another mode and format, under the name it had."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        image.write_bytes(encoded(Image.open(image).convert(mode), kind, **options))

    return damage


def masked(change: Callable[[Image.Image], Image.Image], kind: str = "PNG") -> Damage:
    """Another mask, made from the good one."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        mask.write_bytes(encoded(change(Image.open(mask)), kind))

    return damage


def deep(mode: str, kind: str) -> Damage:
    """The image as one grey channel of more than 8 bits."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        grey = np.asarray(Image.open(image).convert("L"))
        wide = Image.fromarray(grey.astype(np.float32) if mode == "F" else grey.astype(np.int32))
        if mode == "I;16":
            wide = Image.fromarray(grey.astype(np.uint16) * 257)
        image.write_bytes(encoded(wide, kind))

    return damage


def see_through(mode: str) -> Damage:
    """An image with one transparent corner."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        picture = Image.open(image).convert("RGB").convert("LA" if mode == "LA" else "RGBA")
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (0, 0, 5, 5))
        picture.putalpha(alpha)
        image.write_bytes(encoded(picture.quantize() if mode == "P" else picture, "PNG"))

    return damage


def turned(image: Path, mask: Path, rng: Rng) -> None:
    """Saved lying, with the orientation that puts it upright again."""
    picture = Image.open(image)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = picture.transpose(Image.Transpose.ROTATE_90)
    image.write_bytes(encoded(lying, "JPEG", exif=exif))


def frames(kind: str) -> Damage:
    def damage(image: Path, mask: Path, rng: Rng) -> None:
        picture = Image.open(image).convert("RGB")
        other = Image.new("RGB", (40, 30))
        image.write_bytes(encoded(picture, kind, save_all=True, append_images=[other]))

    return damage


def sized(width: int, height: int) -> Damage:
    """Image and mask of this size."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        image.write_bytes(encoded(Image.new("RGB", (width, height)), "JPEG"))
        mask.write_bytes(encoded(Image.new("L", (width, height)), "PNG"))

    return damage


# PNG and JPEG by hand


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, data: bytes = b"", interlace: int = 0) -> bytes:
    """A greyscale PNG that says it is this large, with these chunks before its data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlace)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def interlaced(values: np.ndarray) -> bytes:
    """A greyscale PNG in Adam7's seven passes."""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2)]
    rows = b""
    for top, down, left, right in [*passes, (1, 2, 0, 1)]:
        part = values[top::down, left::right]
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    height, width = values.shape
    return png(width, height, data=zlib.compress(rows), interlace=1)


def interlaced_mask(image: Path, mask: Path, rng: Rng) -> None:
    mask.write_bytes(interlaced(np.asarray(Image.open(mask))))


def text_bomb(kind: bytes) -> bytes:
    body = b"Comment\0\0" + zlib.compress(bytes(8_000_000))
    return png(40, 40, chunk(kind, body), data=zlib.compress(bytes(40 * 41)))


def data_bomb(image: Path, mask: Path, rng: Rng) -> None:
    """A mask whose data goes on for megabytes after its last row."""
    width, height = Image.open(image).size
    mask.write_bytes(png(width, height, data=zlib.compress(bytes(20_000_000))))


def claiming(image: Path, mask: Path, rng: Rng) -> None:
    """A JPEG whose header says 60000 x 60000."""
    content = image.read_bytes()
    at = content.index(b"\xff\xc0") + 5
    image.write_bytes(content[:at] + struct.pack(">HH", 60_000, 60_000) + content[at + 4 :])


# Masks


def edged(mask: Image.Image) -> Image.Image:
    """Drawn with antialiasing: the lesion's edge is grey."""
    half = mask.resize((mask.width // 2, mask.height // 2), Image.Resampling.BILINEAR)
    return half.resize(mask.size, Image.Resampling.BILINEAR)


def palette(*colours: int) -> Callable[[Image.Image], Image.Image]:
    """The mask as indices 0 and 1 into these colours."""

    def change(mask: Image.Image) -> Image.Image:
        indexed = Image.frombytes("P", mask.size, mask.point(lambda v: v // 255).tobytes())
        indexed.putpalette(colours)
        return indexed

    return change


def other_size(mask: Image.Image) -> Image.Image:
    return mask.resize((mask.width + 1, mask.height), Image.Resampling.NEAREST)


# Names and folders


def swapped(image: Path, mask: Path, rng: Rng) -> None:
    picture, truth = image.read_bytes(), mask.read_bytes()
    image.write_bytes(truth)
    mask.write_bytes(picture)


def exchanged(image: Path, mask: Path, rng: Rng) -> None:
    """The mask of the next pair that is of another size."""
    size = Image.open(mask).size
    others = (path for path in sorted(mask.parent.iterdir()) if Image.open(path).size != size)
    mask.write_bytes(next(others).read_bytes())


def renamed(form: str) -> Damage:
    """Both files under another id."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        name = form.format(image.stem)
        image.rename(image.with_name(f"{name}.jpg"))
        mask.rename(mask.with_name(f"{name}_segmentation.png"))

    return damage


def upper(image: Path, mask: Path, rng: Rng) -> None:
    image.rename(image.with_suffix(".JPG"))
    mask.rename(mask.with_suffix(".PNG"))


def doubled(image: Path, mask: Path, rng: Rng) -> None:
    """The same id a second time, under another ending."""
    image.with_suffix(".jpeg").write_bytes(image.read_bytes())


def removed(which: int) -> Damage:
    return lambda *pair: pair[which].unlink()


def folder(image: Path, mask: Path, rng: Rng) -> None:
    """A folder under the name of the image, which is gone."""
    image.unlink()
    image.mkdir()


def pointed(target: str) -> Damage:
    """A symbolic link in the image's place; `{0}` is the image's own path."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        image.unlink()
        image.symlink_to(target.format(image))

    return damage


def strayed(image: Path, mask: Path, rng: Rng) -> None:
    """A symbolic link to the image, which lies outside the archive."""
    outside = image.parents[2] / "outside.jpg"
    image.rename(outside)
    image.symlink_to(outside)


_PAGE = b"<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"><rect/></svg>'
_PS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n"
_PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n"

KINDS: dict[str, Kind] = {
    "nothing wrong": Kind(lambda *pair: None, RECORD),
    # Bytes
    "image cut in its header": Kind(cut(0, 0.01, 0.1), REJECT),
    "image cut in its middle": Kind(cut(0, 0.6, 0.8), REJECT),
    "image cut at its end": Kind(cut(0, 0.97, 0.999), EITHER),
    "mask cut in its header": Kind(cut(1, 0.01, 0.15), REJECT),
    "mask cut in its middle": Kind(cut(1, 0.4, 0.6), REJECT),
    "mask cut at its end": Kind(cut(1, 0.9, 0.999), EITHER),
    "bits of the image's header": Kind(flip(0, 0, 0.2), EITHER),
    "bits of the image's body": Kind(flip(0, 0.4, 0.8), EITHER),
    "bits of the image's tail": Kind(flip(0, 0.9, 1), EITHER),
    "bits of the mask's header": Kind(flip(1, 0, 0.1), EITHER),
    "bits of the mask's body": Kind(flip(1, 0.4, 0.7), REJECT),
    "bits of the mask's tail": Kind(flip(1, 0.9, 1), EITHER),
    "many bits of the image": Kind(flip(0, 0, 1, 200), EITHER),
    "bytes missing in the image": Kind(patch(0, 7, 0), EITHER),
    "bytes too many in the image": Kind(patch(0, 0, 7), EITHER),
    "bytes missing in the mask": Kind(patch(1, 7, 0), REJECT),
    "bytes too many in the mask": Kind(patch(1, 0, 7), REJECT),
    "empty image": Kind(become(0, b""), REJECT),
    "empty mask": Kind(become(1, b""), REJECT),
    "image of zeros": Kind(zeros(0), REJECT),
    "mask of zeros": Kind(zeros(1), REJECT),
    # What is no photograph
    "text for an image": Kind(become(0, b"see the folder next door\n"), REJECT),
    "a page of HTML for an image": Kind(become(0, _PAGE), REJECT),
    "a page of HTML for a mask": Kind(become(1, _PAGE), REJECT),
    "SVG": Kind(become(0, _SVG), REJECT),
    "PostScript": Kind(become(0, _PS), REJECT),
    "PDF": Kind(become(0, _PDF), REJECT),
    "GIF": Kind(resaved("GIF"), REJECT),
    "WebP": Kind(resaved("WEBP"), REJECT),
    # Sizes
    "JPEG of 60000 x 60000": Kind(claiming, REJECT),
    "PNG of 60000 x 60000": Kind(become(0, png(60_000, 60_000)), REJECT),
    "mask of 60000 x 60000": Kind(become(1, png(60_000, 60_000)), REJECT),
    "PNG of 12000 x 12000": Kind(become(0, png(12_000, 12_000)), REJECT),
    "PNG of no width": Kind(become(0, png(0, 40)), REJECT),
    "one pixel wide": Kind(sized(1, 60_000), REJECT),
    "a strip": Kind(sized(400, 20), REJECT),
    "a thumbnail": Kind(sized(15, 15), REJECT),
    "text bomb": Kind(become(0, text_bomb(b"zTXt")), REJECT),
    "colour profile bomb": Kind(become(0, text_bomb(b"iCCP")), EITHER),
    "data bomb": Kind(data_bomb, EITHER),
    # Modes
    "greyscale JPEG": Kind(resaved("JPEG", "L"), RECORD),
    "progressive JPEG": Kind(resaved("JPEG", progressive=True), RECORD),
    "CMYK JPEG": Kind(resaved("JPEG", "CMYK"), RECORD),
    "CMYK TIFF": Kind(resaved("TIFF", "CMYK"), RECORD),
    "palette": Kind(resaved("PNG", "P"), RECORD),
    "one bit": Kind(resaved("PNG", "1"), RECORD),
    "opaque alpha": Kind(resaved("PNG", "RGBA"), RECORD),
    "opaque grey alpha": Kind(resaved("PNG", "LA"), RECORD),
    "transparent": Kind(see_through("RGBA"), REJECT),
    "transparent grey": Kind(see_through("LA"), REJECT),
    "transparent palette": Kind(see_through("P"), REJECT),
    "16 bits in a PNG": Kind(deep("I;16", "PNG"), RECORD),
    "16 bits in a TIFF": Kind(deep("I;16", "TIFF"), RECORD),
    "32 bits": Kind(deep("I", "TIFF"), REJECT),
    "floating point": Kind(deep("F", "TIFF"), REJECT),
    "turned by EXIF": Kind(turned, RECORD),
    "MPO": Kind(frames("MPO"), RECORD),
    "TIFF of two pages": Kind(frames("TIFF"), RECORD),
    "BMP": Kind(resaved("BMP"), RECORD),
    # Masks
    "mask of another size": Kind(masked(other_size), REJECT),
    "mask of another pair": Kind(exchanged, REJECT),
    "image and mask swapped": Kind(swapped, REJECT),
    "mask without lesion": Kind(masked(lambda mask: Image.new("L", mask.size, 0)), RECORD),
    "mask without skin": Kind(masked(lambda mask: Image.new("L", mask.size, 255)), RECORD),
    "mask of 0 and 1": Kind(masked(lambda mask: mask.point(lambda v: v // 255)), REJECT),
    "mask with grey edges": Kind(masked(edged), REJECT),
    "mask as JPEG": Kind(masked(lambda mask: mask, "JPEG"), REJECT),
    "mask in colour": Kind(masked(lambda mask: mask.convert("RGB")), REJECT),
    "mask with alpha": Kind(masked(lambda mask: mask.convert("LA")), REJECT),
    "mask of one bit": Kind(masked(lambda mask: mask.convert("1")), RECORD),
    "mask of black and white": Kind(masked(palette(0, 0, 0, 255, 255, 255)), RECORD),
    "mask of red and green": Kind(masked(palette(255, 0, 0, 0, 255, 0)), REJECT),
    "mask interlaced": Kind(interlaced_mask, RECORD),
    # Names and folders
    "no mask": Kind(removed(1), REJECT),
    "no image": Kind(removed(0), REJECT),
    "spaces": Kind(renamed("a name of  {0} "), RECORD),
    "other alphabets": Kind(renamed("läsion-皮膚-{0}"), RECORD),
    "a long name": Kind(renamed("{0}" + "x" * 200), RECORD),
    "signs": Kind(renamed("{0} #1 (50%) & 'b'"), RECORD),
    "upper-case endings": Kind(upper, RECORD),
    "an id twice": Kind(doubled, EITHER, more=1),
    "a folder named like an image": Kind(folder, REJECT),
}

LINKS: dict[str, Kind] = {
    "a link to nothing": Kind(pointed("nowhere.jpg"), REJECT, more=1),
    "a link to itself": Kind(pointed("{0}"), REJECT, more=1),
    "a link to a folder": Kind(pointed("."), REJECT, more=1),
    "a link out of the archive": Kind(strayed, REJECT, more=1),
    "a file that may not be read": Kind(lambda *pair: os.chmod(pair[0], 0), REJECT),
}
"""Kinds that are told when an archive is listed; a link that is no file leaves its mask alone."""
