"""The data's portrait: what is in a data set, for a person (HTML) and for programs (JSON).

Both come from the traits that ingest measured, never from the pixels; the few pictures on the page
are drawn beforehand (`segan.data.profile.thumbnails`). The page is one file that needs nothing
else: no script, no font, no network.
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

from segan.data.profile.duplicates import DuplicatePair
from segan.data.profile.image_stats import TONE_CATEGORIES, tone_category
from segan.data.profile.thumbnails import SampleKey
from segan.data.records.format import Manifest
from segan.utils.html import format_degrees, render

EXAMPLES_PER_SPLIT = 6  # examples of a split
EXAMPLES_PER_EXTREME = 6
MAX_SHOWN_DUPLICATES = 24  # near-duplicates that are shown with their pictures
MAX_SHOWN_REJECTS = 200  # rejects on the page
MAX_SHOWN_SIZES = 8  # original sizes on the page
_PALETTE_SIZE = 24  # parts of a split's colours
_LESION_BINS = np.linspace(0, 1, 21)
_ITA_BINS = np.arange(-90, 91, 5.0)


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class Quantiles(_FrozenModel):
    """Five quantiles: least, a quarter, half, three quarters, most."""

    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float


class SplitProfile(_FrozenModel):
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

    num_images: int
    lesion_fraction: Quantiles | None
    lesion_histogram: tuple[int, ...]
    num_without_lesion: int
    num_touching_border: int
    skin_colour: str | None
    lesion_colour: str | None
    skin_palette: tuple[str, ...]
    lesion_palette: tuple[str, ...]
    ita: Quantiles | None
    ita_histogram: tuple[int, ...]
    tone_counts: dict[str, int]
    num_without_ita: int


class OriginalSize(_FrozenModel):
    """Originals of one size, pixels."""

    width: int
    height: int
    num_images: int


class DuplicateEntry(_FrozenModel):
    """Two images of different splits that show the same picture; distance in bits of 255."""

    id: str
    split: str
    other_id: str
    other_split: str
    distance: int


class ExampleGroup(_FrozenModel):
    """Examples under one title, by (split, id)."""

    title: str
    keys: tuple[SampleKey, ...]


class DataProfile(_FrozenModel):
    """What portrait.json says. Fields may be added; those that are here keep name and meaning.

    Attributes:
        source, fingerprint: of the records' manifest.
        frame: width and height in pixels.
        sizes: of the originals, the most frequent first.
        duplicates: the nearest first, at most as many as
            `segan.data.profile.duplicates.find_duplicates` lists.
        rejects: name, split and reason of every pair of the archive that is not in the records.
    """

    source: str
    fingerprint: str
    frame: dict[str, int]
    splits: dict[str, SplitProfile]
    sizes: tuple[OriginalSize, ...]
    duplicates: tuple[DuplicateEntry, ...]
    rejects: tuple[dict[str, str], ...]
    examples: tuple[ExampleGroup, ...]

    @property
    def num_images(self) -> int:
        return sum(split.num_images for split in self.splits.values())


def choose_examples(stats: pa.Table, seed: int = 0) -> dict[str, list[SampleKey]]:
    """What to show, as titles with (split, id): some of each split at random, and the extremes.

    Args:
        traits: rows of `segan.data.profile.image_stats.SCHEMA` with a column `split`.
        seed: which random ones; another image in the data does not change how two others rank.
    """
    keys = list(zip(stats["split"].to_pylist(), stats["id"].to_pylist(), strict=True))
    groups = {}
    for split in dict.fromkeys(split for split, _ in keys):
        shuffled = sorted(
            (key for key in keys if key[0] == split), key=lambda key: _random_key(seed, key)
        )
        groups[f"{split}, drawn at random"] = sorted(shuffled[:EXAMPLES_PER_SPLIT])
    # An empty mask is no small lesion, and NaN no tone.
    lesions = _sort_keys(keys, stats["lesion"], lambda share: share > 0)
    tones = _sort_keys(keys, stats["tone"], lambda angle: not math.isnan(angle))
    groups["The smallest lesions"] = lesions[:EXAMPLES_PER_EXTREME]
    groups["The largest lesions"] = lesions[::-1][:EXAMPLES_PER_EXTREME]
    groups["The darkest skin, as estimated"] = tones[:EXAMPLES_PER_EXTREME]
    groups["The lightest skin, as estimated"] = tones[::-1][:EXAMPLES_PER_EXTREME]
    return {title: chosen for title, chosen in groups.items() if chosen}


def keys_to_show(
    examples: Mapping[str, Sequence[SampleKey]], duplicates: Sequence[DuplicatePair]
) -> list[SampleKey]:
    """Every image that the page shows, once."""
    shown = [key for chosen in examples.values() for key in chosen]
    for pair in duplicates[:MAX_SHOWN_DUPLICATES]:
        shown += [(pair.split, pair.id), (pair.other_split, pair.other_id)]
    return list(dict.fromkeys(shown))


def render_profile(
    manifest: Manifest,
    stats: pa.Table,
    duplicates: Sequence[DuplicatePair],
    rejects: Sequence[Mapping[str, str]],
    examples: Mapping[str, Sequence[SampleKey]],
    thumbnails: Mapping[SampleKey, str],
) -> tuple[dict[str, Any], str]:
    """The portrait as the content of portrait.json and as an HTML page.

    Args:
        traits: rows of `segan.data.profile.image_stats.SCHEMA` with a column `split`.
        duplicates: of `segan.data.profile.duplicates.find_duplicates`.
        rejects: rows of name, split, reason.
        examples: of `choose_examples`.
        pictures: data URIs of the images in `pictured`; one that lacks is left out of the page.
    """
    profile = build_profile(manifest, stats, duplicates, rejects, examples)
    return profile.model_dump(mode="json"), _render_html(profile, thumbnails)


def build_profile(
    manifest: Manifest,
    stats: pa.Table,
    duplicates: Sequence[DuplicatePair],
    rejects: Sequence[Mapping[str, str]],
    examples: Mapping[str, Sequence[SampleKey]],
) -> DataProfile:
    """The figures alone; arguments as for `draw`."""
    stats_by_split = {
        split: stats.filter(pc.equal(stats["split"], split)) for split in manifest.splits
    }
    sizes = Counter(zip(stats["width"].to_pylist(), stats["height"].to_pylist(), strict=True))
    return DataProfile(
        source=manifest.source,
        fingerprint=manifest.fingerprint,
        frame={"width": manifest.width, "height": manifest.height},
        splits={split: _profile_split(rows) for split, rows in stats_by_split.items()},
        sizes=tuple(
            OriginalSize(width=w, height=h, num_images=n)
            for (w, h), n in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        ),
        duplicates=tuple(DuplicateEntry(**pair._asdict()) for pair in duplicates),
        rejects=tuple(dict(reject) for reject in rejects),
        examples=tuple(
            ExampleGroup(title=title, keys=tuple(keys)) for title, keys in examples.items()
        ),
    )


def _profile_split(stats: pa.Table) -> SplitProfile:
    lesion = stats["lesion"].to_numpy()
    tone = stats["tone"].to_numpy()
    tone = tone[~np.isnan(tone)]
    tone_counts = Counter(tone_category(angle) for angle in tone.tolist())
    skin_colours, lesion_colours = _colours(stats["skin_colour"]), _colours(stats["lesion_colour"])
    return SplitProfile(
        num_images=len(stats),
        lesion_fraction=_quantiles(lesion),
        lesion_histogram=tuple(np.histogram(lesion, _LESION_BINS)[0].tolist()),
        num_without_lesion=int((lesion == 0).sum()),
        num_touching_border=int(stats["touches_border"].to_numpy().sum()),
        skin_colour=_mean_hex(skin_colours),
        lesion_colour=_mean_hex(lesion_colours),
        skin_palette=_palette(skin_colours),
        lesion_palette=_palette(lesion_colours),
        ita=_quantiles(tone),
        ita_histogram=tuple(np.histogram(tone, _ITA_BINS)[0].tolist()),
        tone_counts={name: tone_counts[name] for name, _ in TONE_CATEGORIES},
        num_without_ita=len(stats) - len(tone),
    )


def _sort_keys(
    keys: Sequence[SampleKey], values: pa.ChunkedArray, is_valid: Callable[[float], bool]
) -> list[SampleKey]:
    """The keys whose value counts, from the lowest value to the highest."""
    pairs = zip(values.to_pylist(), keys, strict=True)
    return [key for _, key in sorted(pair for pair in pairs if is_valid(pair[0]))]


def _random_key(seed: int, key: SampleKey) -> bytes:
    return hashlib.blake2b("\n".join([str(seed), *key]).encode(), digest_size=8).digest()


def _quantiles(values: np.ndarray) -> Quantiles | None:
    if not len(values):
        return None
    quantiles = np.quantile(values.astype(np.float64), (0, 0.25, 0.5, 0.75, 1)).round(4).tolist()
    return Quantiles(**dict(zip(Quantiles.model_fields, quantiles, strict=True)))


def _colours(column: pa.ChunkedArray) -> np.ndarray:
    """The colours that there are, float64 [N, 3]."""
    return np.array(column.drop_null().to_pylist(), np.float64).reshape(-1, 3)


def _mean_hex(colours: np.ndarray) -> str | None:
    """The mean of some colours."""
    if not len(colours):
        return None
    return "#" + "".join(f"{round(channel):02x}" for channel in colours.mean(0).tolist())


def _palette(colours: np.ndarray) -> tuple[str, ...]:
    ordered = colours[np.argsort(colours.sum(1), kind="stable")]
    parts = np.array_split(ordered, min(_PALETTE_SIZE, len(ordered))) if len(ordered) else []
    return tuple(colour for part in parts if (colour := _mean_hex(part)))


def _render_html(profile: DataProfile, thumbnails: Mapping[SampleKey, str]) -> str:
    splits = profile.splits.values()
    proportions = [size.width / size.height for size in profile.sizes]
    return render(
        "segan/data/profile/report.html.j2",
        portrait=profile,
        name=profile.source.rstrip("/").rpartition("/")[2],
        pictures=thumbnails,
        pictured=MAX_SHOWN_DUPLICATES,
        listed=MAX_SHOWN_REJECTS,
        sizes_listed=MAX_SHOWN_SIZES,
        tones=TONE_CATEGORIES,
        tone_ticks=[
            ((angle + 90) / 180, format_degrees(angle)) for angle in (-90, -30, 10, 28, 41, 55, 90)
        ],
        tops={
            "lesion": _axis_maximum([(of.lesion_histogram, of.num_images) for of in splits]),
            "tone": _axis_maximum([(of.ita_histogram, of.num_images) for of in splits]),
        },
        proportions=(min(proportions), max(proportions)) if proportions else (),
    )


def _axis_maximum(histograms: Sequence[tuple[Sequence[int], int]]) -> float:
    """The share, in steps of a tenth, that the highest of all bars fits under."""
    highest = max((max(counts) / images for counts, images in histograms if images), default=0)
    return max(1, math.ceil(10 * highest)) / 10
