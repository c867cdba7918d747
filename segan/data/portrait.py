"""The data's portrait: what is in a data set, for a person (HTML) and for programs (JSON).

Both come from the traits that ingest measured, never from the pixels; the few pictures on the page
are drawn beforehand (`segan.data.pictures`). The page is one file that needs nothing else: no
script, no font, no network.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from segan.data.duplicates import Twins
from segan.data.pictures import Key
from segan.data.records import Manifest
from segan.data.traits import TONES, tone_name
from segan.pages import degrees, render

PER_SPLIT = 6  # examples of a split
PER_EXTREME = 6
PICTURED = 24  # near-duplicates that are shown with their pictures
LISTED = 200  # rejects on the page
SIZES = 8  # original sizes on the page
_PALETTE = 24  # parts of a split's colours
_LESION_EDGES = np.linspace(0, 1, 21)
_TONE_EDGES = np.arange(-90, 91, 5.0)


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True)


class Spread(_Plain):
    """Five quantiles: least, a quarter, half, three quarters, most."""

    least: float
    lower: float
    median: float
    upper: float
    most: float


class SplitPortrait(_Plain):
    """One split.

    Attributes:
        lesion: share of the frame that the lesion covers, 0 to 1.
        lesion_histogram: images in each of the 20 twentieths from 0 to 1.
        without_lesion, touches_border: images whose mask is empty, or reaches the frame's edge.
        skin_colour, lesion_colour: mean over the images' mean colours, "#rrggbb".
        skin_palette, lesion_palette: the images' mean colours from dark to light, averaged in up
            to 24 equal parts.
        tone: individual typology angle in degrees, of the images that have one.
        tone_histogram: images in each of the 36 steps of 5 degrees from -90 to 90.
        tones: images in each category of the angle.
        tone_unknown: images whose angle could not be told.
    """

    images: int
    lesion: Spread | None
    lesion_histogram: tuple[int, ...]
    without_lesion: int
    touches_border: int
    skin_colour: str | None
    lesion_colour: str | None
    skin_palette: tuple[str, ...]
    lesion_palette: tuple[str, ...]
    tone: Spread | None
    tone_histogram: tuple[int, ...]
    tones: dict[str, int]
    tone_unknown: int


class Size(_Plain):
    """Originals of one size, pixels."""

    width: int
    height: int
    images: int


class Pair(_Plain):
    """Two images of different splits that show the same picture; distance in bits of 255."""

    id: str
    split: str
    other: str
    other_split: str
    distance: int


class Group(_Plain):
    """Examples under one title, by (split, id)."""

    title: str
    images: tuple[Key, ...]


class Portrait(_Plain):
    """What portrait.json says. Fields may be added; those that are here keep name and meaning.

    Attributes:
        source, fingerprint: of the records' manifest.
        frame: width and height in pixels.
        sizes: of the originals, the most frequent first.
        duplicates: the nearest first, at most as many as `segan.data.duplicates.find` lists.
        rejects: name, split and reason of every pair of the archive that is not in the records.
    """

    source: str
    fingerprint: str
    frame: dict[str, int]
    splits: dict[str, SplitPortrait]
    sizes: tuple[Size, ...]
    duplicates: tuple[Pair, ...]
    rejects: tuple[dict[str, str], ...]
    examples: tuple[Group, ...]

    @property
    def images(self) -> int:
        return sum(split.images for split in self.splits.values())


def choose_examples(traits: pa.Table, seed: int = 0) -> dict[str, list[Key]]:
    """What to show, as titles with (split, id): some of each split at random, and the extremes.

    Args:
        traits: rows of `segan.data.traits.SCHEMA` with a column `split`.
        seed: which random ones; another image in the data does not change how two others rank.
    """
    keys = list(zip(traits["split"].to_pylist(), traits["id"].to_pylist(), strict=True))
    groups = {}
    for split in dict.fromkeys(split for split, _ in keys):
        drawn = sorted((key for key in keys if key[0] == split), key=lambda key: _lot(seed, key))
        groups[f"{split}, drawn at random"] = sorted(drawn[:PER_SPLIT])
    # An empty mask is no small lesion, and NaN no tone.
    lesions = _order(keys, traits["lesion"], lambda share: share > 0)
    tones = _order(keys, traits["tone"], lambda angle: not math.isnan(angle))
    groups["The smallest lesions"] = lesions[:PER_EXTREME]
    groups["The largest lesions"] = lesions[::-1][:PER_EXTREME]
    groups["The darkest skin, as estimated"] = tones[:PER_EXTREME]
    groups["The lightest skin, as estimated"] = tones[::-1][:PER_EXTREME]
    return {title: chosen for title, chosen in groups.items() if chosen}


def pictured(examples: Mapping[str, Sequence[Key]], duplicates: Sequence[Twins]) -> list[Key]:
    """Every image that the page shows, once."""
    shown = [key for chosen in examples.values() for key in chosen]
    for twins in duplicates[:PICTURED]:
        shown += [(twins.split, twins.id), (twins.other_split, twins.other)]
    return list(dict.fromkeys(shown))


def draw(
    manifest: Manifest,
    traits: pa.Table,
    duplicates: Sequence[Twins],
    rejects: Sequence[Mapping[str, str]],
    examples: Mapping[str, Sequence[Key]],
    pictures: Mapping[Key, str],
) -> tuple[dict[str, Any], str]:
    """The portrait as the content of portrait.json and as an HTML page.

    Args:
        traits: rows of `segan.data.traits.SCHEMA` with a column `split`.
        duplicates: of `segan.data.duplicates.find`.
        rejects: rows of name, split, reason.
        examples: of `choose_examples`.
        pictures: data URIs of the images in `pictured`; one that lacks is left out of the page.
    """
    portrait = describe(manifest, traits, duplicates, rejects, examples)
    return portrait.model_dump(mode="json"), _render(portrait, pictures)


def describe(
    manifest: Manifest,
    traits: pa.Table,
    duplicates: Sequence[Twins],
    rejects: Sequence[Mapping[str, str]],
    examples: Mapping[str, Sequence[Key]],
) -> Portrait:
    """The figures alone; arguments as for `draw`."""
    of = {split: traits.filter(pc.equal(traits["split"], split)) for split in manifest.splits}
    sizes = Counter(zip(traits["width"].to_pylist(), traits["height"].to_pylist(), strict=True))
    return Portrait(
        source=manifest.source,
        fingerprint=manifest.fingerprint,
        frame={"width": manifest.width, "height": manifest.height},
        splits={split: _describe_split(rows) for split, rows in of.items()},
        sizes=tuple(
            Size(width=w, height=h, images=n)
            for (w, h), n in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        ),
        duplicates=tuple(Pair(**twins._asdict()) for twins in duplicates),
        rejects=tuple(dict(reject) for reject in rejects),
        examples=tuple(Group(title=title, images=tuple(keys)) for title, keys in examples.items()),
    )


def _describe_split(traits: pa.Table) -> SplitPortrait:
    lesion = traits["lesion"].to_numpy()
    tone = traits["tone"].to_numpy()
    tone = tone[~np.isnan(tone)]
    named = Counter(tone_name(angle) for angle in tone.tolist())
    skin, marks = _colours(traits["skin_colour"]), _colours(traits["lesion_colour"])
    return SplitPortrait(
        images=len(traits),
        lesion=_spread(lesion),
        lesion_histogram=tuple(np.histogram(lesion, _LESION_EDGES)[0].tolist()),
        without_lesion=int((lesion == 0).sum()),
        touches_border=int(traits["touches_border"].to_numpy().sum()),
        skin_colour=_hex(skin),
        lesion_colour=_hex(marks),
        skin_palette=_palette(skin),
        lesion_palette=_palette(marks),
        tone=_spread(tone),
        tone_histogram=tuple(np.histogram(tone, _TONE_EDGES)[0].tolist()),
        tones={name: named[name] for name, _ in TONES},
        tone_unknown=len(traits) - len(tone),
    )


def _order(
    keys: Sequence[Key], values: pa.ChunkedArray, counts: Callable[[float], bool]
) -> list[Key]:
    """The keys whose value counts, from the lowest value to the highest."""
    pairs = zip(values.to_pylist(), keys, strict=True)
    return [key for _, key in sorted(pair for pair in pairs if counts(pair[0]))]


def _lot(seed: int, key: Key) -> bytes:
    return hashlib.blake2b("\n".join([str(seed), *key]).encode(), digest_size=8).digest()


def _spread(values: np.ndarray) -> Spread | None:
    if not len(values):
        return None
    five = np.quantile(values.astype(np.float64), (0, 0.25, 0.5, 0.75, 1)).round(4).tolist()
    return Spread(**dict(zip(Spread.model_fields, five, strict=True)))


def _colours(column: pa.ChunkedArray) -> np.ndarray:
    """The colours that there are, float64 [N, 3]."""
    return np.array(column.drop_null().to_pylist(), np.float64).reshape(-1, 3)


def _hex(colours: np.ndarray) -> str | None:
    """The mean of some colours."""
    if not len(colours):
        return None
    return "#" + "".join(f"{round(channel):02x}" for channel in colours.mean(0).tolist())


def _palette(colours: np.ndarray) -> tuple[str, ...]:
    ordered = colours[np.argsort(colours.sum(1), kind="stable")]
    parts = np.array_split(ordered, min(_PALETTE, len(ordered))) if len(ordered) else []
    return tuple(colour for part in parts if (colour := _hex(part)))


def _render(portrait: Portrait, pictures: Mapping[Key, str]) -> str:
    splits = portrait.splits.values()
    proportions = [size.width / size.height for size in portrait.sizes]
    return render(
        "data/portrait.html.j2",
        portrait=portrait,
        name=portrait.source.rstrip("/").rpartition("/")[2],
        pictures=pictures,
        pictured=PICTURED,
        listed=LISTED,
        sizes_listed=SIZES,
        tones=TONES,
        tone_ticks=[
            ((angle + 90) / 180, degrees(angle)) for angle in (-90, -30, 10, 28, 41, 55, 90)
        ],
        tops={
            "lesion": _top([(of.lesion_histogram, of.images) for of in splits]),
            "tone": _top([(of.tone_histogram, of.images) for of in splits]),
        },
        proportions=(min(proportions), max(proportions)) if proportions else (),
    )


def _top(histograms: Sequence[tuple[Sequence[int], int]]) -> float:
    """The share, in steps of a tenth, that the highest of all bars fits under."""
    highest = max((max(counts) / images for counts, images in histograms if images), default=0)
    return max(1, math.ceil(10 * highest)) / 10
