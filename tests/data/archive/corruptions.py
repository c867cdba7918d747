"""Corruptions of one pair of an archive, by name.

A corruption is a function of the pair's two files and a seeded generator, with the expected
outcome: a record, a reject, or either where the image may still be readable.
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
class Corruption:
    """A corruption, its expected outcome, and the number of inputs that it adds to the archive."""

    apply: Damage
    expected: str
    extra_inputs: int = 0


# Bytes


def truncate(which: int, least: float, most: float) -> Damage:
    def damage(*pair: Any) -> None:
        content = pair[which].read_bytes()
        pair[which].write_bytes(content[: int(len(content) * pair[2].uniform(least, most))])

    return damage


def flip_bits(which: int, least: float, most: float, bits: int = 3) -> Damage:
    """Flips some bits between two fractions of the file's length."""

    def damage(*pair: Any) -> None:
        content, rng = bytearray(pair[which].read_bytes()), pair[2]
        for _ in range(bits):
            content[int(len(content) * rng.uniform(least, most))] ^= 1 << int(rng.integers(8))
        pair[which].write_bytes(bytes(content))

    return damage


def splice(which: int, dropped: int, inserted: int) -> Damage:
    def damage(*pair: Any) -> None:
        content, rng = pair[which].read_bytes(), pair[2]
        at = int(rng.integers(len(content) // 3, len(content) // 2))
        new = content[:at] + rng.bytes(inserted) + content[at + dropped :]
        pair[which].write_bytes(new)

    return damage


def overwrite(which: int, content: bytes) -> Damage:
    return lambda *pair: pair[which].write_bytes(content)


def zero_fill(which: int) -> Damage:
    return lambda *pair: pair[which].write_bytes(bytes(pair[which].stat().st_size))


# Pictures


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def reencode(kind: str, mode: str = "RGB", **options: Any) -> Damage:
    """Stores the image in another mode and format under the same name."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        image.write_bytes(encode(Image.open(image).convert(mode), kind, **options))

    return damage


def change_mask(change: Callable[[Image.Image], Image.Image], kind: str = "PNG") -> Damage:
    """Replaces the mask by a changed one."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        mask.write_bytes(encode(change(Image.open(mask)), kind))

    return damage


def raise_bit_depth(mode: str, kind: str) -> Damage:
    """Stores the image as one grey channel of more than 8 bits."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        grey = np.asarray(Image.open(image).convert("L"))
        wide = Image.fromarray(grey.astype(np.float32) if mode == "F" else grey.astype(np.int32))
        if mode == "I;16":
            wide = Image.fromarray(grey.astype(np.uint16) * 257)
        image.write_bytes(encode(wide, kind))

    return damage


def add_transparency(mode: str) -> Damage:
    """Makes a corner of the image transparent."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        picture = Image.open(image).convert("RGB").convert("LA" if mode == "LA" else "RGBA")
        alpha = Image.new("L", picture.size, 255)
        alpha.paste(0, (0, 0, 5, 5))
        picture.putalpha(alpha)
        image.write_bytes(encode(picture.quantize() if mode == "P" else picture, "PNG"))

    return damage


def rotate_with_exif(image: Path, mask: Path, rng: Rng) -> None:
    """Stores the image rotated, with the EXIF orientation that undoes it."""
    picture = Image.open(image)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = picture.transpose(Image.Transpose.ROTATE_90)
    image.write_bytes(encode(lying, "JPEG", exif=exif))


def save_two_frames(kind: str) -> Damage:
    def damage(image: Path, mask: Path, rng: Rng) -> None:
        picture = Image.open(image).convert("RGB")
        other = Image.new("RGB", (40, 30))
        image.write_bytes(encode(picture, kind, save_all=True, append_images=[other]))

    return damage


def set_size(width: int, height: int) -> Damage:
    """Replaces image and mask by blank ones of this size."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        image.write_bytes(encode(Image.new("RGB", (width, height)), "JPEG"))
        mask.write_bytes(encode(Image.new("L", (width, height)), "PNG"))

    return damage


# PNG and JPEG by hand


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, data: bytes = b"", interlace: int = 0) -> bytes:
    """A greyscale PNG that declares this size, with these chunks before its data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlace)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def encode_interlaced(values: np.ndarray) -> bytes:
    """A greyscale PNG in Adam7's seven passes."""
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2)]
    rows = b""
    for top, down, left, right in [*passes, (1, 2, 0, 1)]:
        part = values[top::down, left::right]
        rows += b"".join(b"\0" + row.tobytes() for row in part if row.size)
    height, width = values.shape
    return png(width, height, data=zlib.compress(rows), interlace=1)


def interlace_mask(image: Path, mask: Path, rng: Rng) -> None:
    mask.write_bytes(encode_interlaced(np.asarray(Image.open(mask))))


def text_bomb(kind: bytes) -> bytes:
    body = b"Comment\0\0" + zlib.compress(bytes(8_000_000))
    return png(40, 40, chunk(kind, body), data=zlib.compress(bytes(40 * 41)))


def write_data_bomb(image: Path, mask: Path, rng: Rng) -> None:
    """A mask with megabytes of data after its last row."""
    width, height = Image.open(image).size
    mask.write_bytes(png(width, height, data=zlib.compress(bytes(20_000_000))))


def claim_huge_size(image: Path, mask: Path, rng: Rng) -> None:
    """A JPEG whose header declares 60000 x 60000."""
    content = image.read_bytes()
    at = content.index(b"\xff\xc0") + 5
    image.write_bytes(content[:at] + struct.pack(">HH", 60_000, 60_000) + content[at + 4 :])


# Masks


def antialias(mask: Image.Image) -> Image.Image:
    """Antialiased: the lesion's edge is grey."""
    half = mask.resize((mask.width // 2, mask.height // 2), Image.Resampling.BILINEAR)
    return half.resize(mask.size, Image.Resampling.BILINEAR)


def palette(*colours: int) -> Callable[[Image.Image], Image.Image]:
    """The mask as indices 0 and 1 into these colours."""

    def change(mask: Image.Image) -> Image.Image:
        indexed = Image.frombytes("P", mask.size, mask.point(lambda v: v // 255).tobytes())
        indexed.putpalette(colours)
        return indexed

    return change


def widen(mask: Image.Image) -> Image.Image:
    return mask.resize((mask.width + 1, mask.height), Image.Resampling.NEAREST)


# Names and folders


def swap_files(image: Path, mask: Path, rng: Rng) -> None:
    picture, truth = image.read_bytes(), mask.read_bytes()
    image.write_bytes(truth)
    mask.write_bytes(picture)


def take_other_mask(image: Path, mask: Path, rng: Rng) -> None:
    """The mask of the next pair that is of another size."""
    size = Image.open(mask).size
    others = (path for path in sorted(mask.parent.iterdir()) if Image.open(path).size != size)
    mask.write_bytes(next(others).read_bytes())


def rename(form: str) -> Damage:
    """Both files under another id."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        name = form.format(image.stem)
        image.rename(image.with_name(f"{name}.jpg"))
        mask.rename(mask.with_name(f"{name}_segmentation.png"))

    return damage


def uppercase_extensions(image: Path, mask: Path, rng: Rng) -> None:
    image.rename(image.with_suffix(".JPG"))
    mask.rename(mask.with_suffix(".PNG"))


def duplicate_image(image: Path, mask: Path, rng: Rng) -> None:
    """The same id again, with another extension."""
    image.with_suffix(".jpeg").write_bytes(image.read_bytes())


def remove(which: int) -> Damage:
    return lambda *pair: pair[which].unlink()


def replace_with_folder(image: Path, mask: Path, rng: Rng) -> None:
    """A folder in place of the image."""
    image.unlink()
    image.mkdir()


def replace_with_link(target: str) -> Damage:
    """A symbolic link in place of the image; `{0}` is the image's path."""

    def damage(image: Path, mask: Path, rng: Rng) -> None:
        image.unlink()
        image.symlink_to(target.format(image))

    return damage


def link_outside(image: Path, mask: Path, rng: Rng) -> None:
    """A symbolic link to the image, which lies outside the archive."""
    outside = image.parents[2] / "outside.jpg"
    image.rename(outside)
    image.symlink_to(outside)


_PAGE = b"<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"><rect/></svg>'
_PS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n"
_PDF = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n"

CORRUPTIONS: dict[str, Corruption] = {
    "nothing wrong": Corruption(lambda *pair: None, RECORD),
    # Bytes
    "image cut in its header": Corruption(truncate(0, 0.01, 0.1), REJECT),
    "image cut in its middle": Corruption(truncate(0, 0.6, 0.8), REJECT),
    "image cut at its end": Corruption(truncate(0, 0.97, 0.999), EITHER),
    "mask cut in its header": Corruption(truncate(1, 0.01, 0.15), REJECT),
    "mask cut in its middle": Corruption(truncate(1, 0.4, 0.6), REJECT),
    "mask cut at its end": Corruption(truncate(1, 0.9, 0.999), EITHER),
    "bits of the image's header": Corruption(flip_bits(0, 0, 0.2), EITHER),
    "bits of the image's body": Corruption(flip_bits(0, 0.4, 0.8), EITHER),
    "bits of the image's tail": Corruption(flip_bits(0, 0.9, 1), EITHER),
    "bits of the mask's header": Corruption(flip_bits(1, 0, 0.1), EITHER),
    "bits of the mask's body": Corruption(flip_bits(1, 0.4, 0.7), REJECT),
    "bits of the mask's tail": Corruption(flip_bits(1, 0.9, 1), EITHER),
    "many bits of the image": Corruption(flip_bits(0, 0, 1, 200), EITHER),
    "bytes missing in the image": Corruption(splice(0, 7, 0), EITHER),
    "bytes too many in the image": Corruption(splice(0, 0, 7), EITHER),
    "bytes missing in the mask": Corruption(splice(1, 7, 0), REJECT),
    "bytes too many in the mask": Corruption(splice(1, 0, 7), REJECT),
    "empty image": Corruption(overwrite(0, b""), REJECT),
    "empty mask": Corruption(overwrite(1, b""), REJECT),
    "image of zeros": Corruption(zero_fill(0), REJECT),
    "mask of zeros": Corruption(zero_fill(1), REJECT),
    # What is no photograph
    "text for an image": Corruption(overwrite(0, b"see the folder next door\n"), REJECT),
    "a page of HTML for an image": Corruption(overwrite(0, _PAGE), REJECT),
    "a page of HTML for a mask": Corruption(overwrite(1, _PAGE), REJECT),
    "SVG": Corruption(overwrite(0, _SVG), REJECT),
    "PostScript": Corruption(overwrite(0, _PS), REJECT),
    "PDF": Corruption(overwrite(0, _PDF), REJECT),
    "GIF": Corruption(reencode("GIF"), REJECT),
    "WebP": Corruption(reencode("WEBP"), REJECT),
    # Sizes
    "JPEG of 60000 x 60000": Corruption(claim_huge_size, REJECT),
    "PNG of 60000 x 60000": Corruption(overwrite(0, png(60_000, 60_000)), REJECT),
    "mask of 60000 x 60000": Corruption(overwrite(1, png(60_000, 60_000)), REJECT),
    "PNG of 12000 x 12000": Corruption(overwrite(0, png(12_000, 12_000)), REJECT),
    "PNG of no width": Corruption(overwrite(0, png(0, 40)), REJECT),
    "one pixel wide": Corruption(set_size(1, 60_000), REJECT),
    "a strip": Corruption(set_size(400, 20), REJECT),
    "a thumbnail": Corruption(set_size(15, 15), REJECT),
    "text bomb": Corruption(overwrite(0, text_bomb(b"zTXt")), REJECT),
    "colour profile bomb": Corruption(overwrite(0, text_bomb(b"iCCP")), EITHER),
    "data bomb": Corruption(write_data_bomb, EITHER),
    # Modes
    "greyscale JPEG": Corruption(reencode("JPEG", "L"), RECORD),
    "progressive JPEG": Corruption(reencode("JPEG", progressive=True), RECORD),
    "CMYK JPEG": Corruption(reencode("JPEG", "CMYK"), RECORD),
    "CMYK TIFF": Corruption(reencode("TIFF", "CMYK"), RECORD),
    "palette": Corruption(reencode("PNG", "P"), RECORD),
    "one bit": Corruption(reencode("PNG", "1"), RECORD),
    "opaque alpha": Corruption(reencode("PNG", "RGBA"), RECORD),
    "opaque grey alpha": Corruption(reencode("PNG", "LA"), RECORD),
    "transparent": Corruption(add_transparency("RGBA"), REJECT),
    "transparent grey": Corruption(add_transparency("LA"), REJECT),
    "transparent palette": Corruption(add_transparency("P"), REJECT),
    "16 bits in a PNG": Corruption(raise_bit_depth("I;16", "PNG"), RECORD),
    "16 bits in a TIFF": Corruption(raise_bit_depth("I;16", "TIFF"), RECORD),
    "32 bits": Corruption(raise_bit_depth("I", "TIFF"), REJECT),
    "floating point": Corruption(raise_bit_depth("F", "TIFF"), REJECT),
    "turned by EXIF": Corruption(rotate_with_exif, RECORD),
    "MPO": Corruption(save_two_frames("MPO"), RECORD),
    "TIFF of two pages": Corruption(save_two_frames("TIFF"), RECORD),
    "BMP": Corruption(reencode("BMP"), RECORD),
    # Masks
    "mask of another size": Corruption(change_mask(widen), REJECT),
    "mask of another pair": Corruption(take_other_mask, REJECT),
    "image and mask swapped": Corruption(swap_files, REJECT),
    "mask without lesion": Corruption(
        change_mask(lambda mask: Image.new("L", mask.size, 0)), RECORD
    ),
    "mask without skin": Corruption(
        change_mask(lambda mask: Image.new("L", mask.size, 255)), RECORD
    ),
    "mask of 0 and 1": Corruption(change_mask(lambda mask: mask.point(lambda v: v // 255)), REJECT),
    "mask with grey edges": Corruption(change_mask(antialias), REJECT),
    "mask as JPEG": Corruption(change_mask(lambda mask: mask, "JPEG"), REJECT),
    "mask in colour": Corruption(change_mask(lambda mask: mask.convert("RGB")), REJECT),
    "mask with alpha": Corruption(change_mask(lambda mask: mask.convert("LA")), REJECT),
    "mask of one bit": Corruption(change_mask(lambda mask: mask.convert("1")), RECORD),
    "mask of black and white": Corruption(change_mask(palette(0, 0, 0, 255, 255, 255)), RECORD),
    "mask of red and green": Corruption(change_mask(palette(255, 0, 0, 0, 255, 0)), REJECT),
    "mask interlaced": Corruption(interlace_mask, RECORD),
    # Names and folders
    "no mask": Corruption(remove(1), REJECT),
    "no image": Corruption(remove(0), REJECT),
    "spaces": Corruption(rename("a name of  {0} "), RECORD),
    "other alphabets": Corruption(rename("läsion-皮膚-{0}"), RECORD),
    "a long name": Corruption(rename("{0}" + "x" * 200), RECORD),
    "signs": Corruption(rename("{0} #1 (50%) & 'b'"), RECORD),
    "upper-case endings": Corruption(uppercase_extensions, RECORD),
    "an id twice": Corruption(duplicate_image, EITHER, extra_inputs=1),
    "a folder named like an image": Corruption(replace_with_folder, REJECT),
}

LINK_CORRUPTIONS: dict[str, Corruption] = {
    "a link to nothing": Corruption(replace_with_link("nowhere.jpg"), REJECT, extra_inputs=1),
    "a link to itself": Corruption(replace_with_link("{0}"), REJECT, extra_inputs=1),
    "a link to a folder": Corruption(replace_with_link("."), REJECT, extra_inputs=1),
    "a link out of the archive": Corruption(link_outside, REJECT, extra_inputs=1),
    "a file that may not be read": Corruption(lambda *pair: os.chmod(pair[0], 0), REJECT),
}
"""Corruptions found when the archive is listed; without its image, a mask is a reject too."""
