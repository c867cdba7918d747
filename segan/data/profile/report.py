"""Profile of a data set: profile.json for programs and profile.html for reading.

Both are computed from the table of `segan.data.profile.image_stats`, not from the pixels; the
page's thumbnails are made by `segan.data.profile.thumbnails`.
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
from pydantic import Field

from segan.data.profile.duplicates import DuplicatePair
from segan.data.profile.image_stats import TONE_CATEGORIES, tone_category
from segan.data.profile.thumbnails import SampleKey
from segan.data.records.format import Manifest
from segan.utils.html import charts, render
from segan.utils.labels import css_colour
from segan.utils.models import FrozenModel

EXAMPLES_PER_SPLIT = 6
EXAMPLES_PER_EXTREME = 6
MAX_SHOWN_DUPLICATES = 24  # on the page; so are the next two
MAX_SHOWN_REJECTS = 200
MAX_SHOWN_SIZES = 8
_PALETTE_SIZE = 24
_LESION_BINS = np.linspace(0, 1, 21)
_ITA_BINS = np.arange(-90, 91, 5.0)


class Quantiles(FrozenModel):
    minimum: float
    lower_quartile: float
    median: float
    upper_quartile: float
    maximum: float


class ClassProfile(FrozenModel):
    """One of several classes in a split.

    Attributes:
        num_images: that have the class.
        fraction: of the frame that the class covers, 0 to 1, over these images.
    """

    num_images: int
    fraction: Quantiles | None


class SplitProfile(FrozenModel):
    """One split. With several classes, the lesion is the union of all of them.

    Attributes:
        lesion_fraction: of the frame, 0 to 1.
        lesion_histogram: images in each of 20 bins of the lesion fraction from 0 to 1.
        num_without_lesion, num_touching_border: images whose mask is empty, or reaches the frame's
            edge.
        skin_colour, lesion_colour: mean of the images' mean colours, "#rrggbb".
        skin_palette, lesion_palette: the images' mean colours from dark to light, averaged in up
            to 24 equal groups.
        ita: individual typology angle in degrees, over the images that have one.
        ita_histogram: images in each of 36 bins of 5 degrees from -90 to 90.
        tone_counts: images in each category of the angle.
        num_without_ita: images whose angle is unknown.
        classes: by name; empty for one class without a name.
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
    classes: dict[str, ClassProfile] = Field(default_factory=dict)


class OriginalSize(FrozenModel):
    """The number of original images of one size in pixels."""

    width: int
    height: int
    num_images: int


class ExampleGroup(FrozenModel):
    title: str
    keys: tuple[SampleKey, ...]


class DataProfile(FrozenModel):
    """The content of profile.json. Fields may be added; existing ones keep name and meaning.

    Attributes:
        source, fingerprint: of the records' manifest.
        frame: width and height in pixels.
        sizes: of the original images, the most frequent first.
        duplicates: the nearest first.
        rejects: name, split and reason of every pair of the archive that is not in the records.
        examples: (split, id) of the images shown on the page.
        class_names: of the manifest.
    """

    source: str
    fingerprint: str
    frame: dict[str, int]
    splits: dict[str, SplitProfile]
    sizes: tuple[OriginalSize, ...]
    duplicates: tuple[DuplicatePair, ...]
    rejects: tuple[dict[str, str], ...]
    examples: tuple[ExampleGroup, ...]
    class_names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of profile.json; without what only several classes have if there is one."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def num_images(self) -> int:
        return sum(split.num_images for split in self.splits.values())


def choose_examples(stats: pa.Table, seed: int = 0) -> dict[str, list[SampleKey]]:
    """Images to show, (split, id) by title: a random sample of each split, and the extremes.

    Args:
        stats: rows of `segan.data.profile.image_stats.SCHEMA` with a column `split`.
        seed: of the samples. Adding an image does not change the order of the others.
    """
    keys = list(zip(stats["split"].to_pylist(), stats["id"].to_pylist(), strict=True))
    groups = {}
    for split in dict.fromkeys(split for split, _ in keys):
        shuffled = sorted(
            (key for key in keys if key[0] == split), key=lambda key: _random_key(seed, key)
        )
        groups[f"Random sample of {split}"] = sorted(shuffled[:EXAMPLES_PER_SPLIT])
    # Leaves out empty masks and unknown angles.
    lesions = _sort_keys(keys, stats["lesion_fraction"], lambda fraction: fraction > 0)
    tones = _sort_keys(keys, stats["ita"], lambda angle: not math.isnan(angle))
    groups["Smallest lesions"] = lesions[:EXAMPLES_PER_EXTREME]
    groups["Largest lesions"] = lesions[::-1][:EXAMPLES_PER_EXTREME]
    groups["Darkest skin (estimated)"] = tones[:EXAMPLES_PER_EXTREME]
    groups["Lightest skin (estimated)"] = tones[::-1][:EXAMPLES_PER_EXTREME]
    return {title: chosen for title, chosen in groups.items() if chosen}


def build_profile(
    manifest: Manifest,
    stats: pa.Table,
    duplicates: Sequence[DuplicatePair],
    rejects: Sequence[Mapping[str, str]],
) -> DataProfile:
    """The content of profile.json.

    Args:
        stats: rows of `segan.data.profile.image_stats.SCHEMA` with a column `split`.
        duplicates: of `find_duplicates`.
        rejects: rows of name, split, reason.
    """
    sizes = Counter(
        zip(stats["original_width"].to_pylist(), stats["original_height"].to_pylist(), strict=True)
    )
    return DataProfile(
        source=manifest.source,
        fingerprint=manifest.fingerprint,
        frame={"width": manifest.width, "height": manifest.height},
        splits={
            split: _profile_split(
                stats.filter(pc.equal(stats["split"], split)), manifest.class_names
            )
            for split in manifest.splits
        },
        sizes=tuple(
            OriginalSize(width=w, height=h, num_images=n)
            for (w, h), n in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        ),
        duplicates=tuple(duplicates),
        rejects=tuple(dict(reject) for reject in rejects),
        examples=tuple(
            ExampleGroup(title=title, keys=tuple(keys))
            for title, keys in choose_examples(stats).items()
        ),
        class_names=manifest.class_names,
    )


def keys_to_show(profile: DataProfile) -> list[SampleKey]:
    """Every image that the page shows, without repetitions."""
    keys = [key for group in profile.examples for key in group.keys]
    for pair in profile.duplicates[:MAX_SHOWN_DUPLICATES]:
        keys += [(pair.split, pair.id), (pair.other_split, pair.other_id)]
    return list(dict.fromkeys(keys))


def render_profile(profile: DataProfile, thumbnails: Mapping[SampleKey, str]) -> str:
    """The content of profile.html.

    Args:
        thumbnails: data URIs of the images in `keys_to_show`; a missing image is not shown.
    """
    return render(
        "segan/data/profile/report.html.j2",
        profile=profile,
        name=profile.source.rstrip("/").rpartition("/")[2],
        thumbnails=thumbnails,
        max_duplicates=MAX_SHOWN_DUPLICATES,
        max_rejects=MAX_SHOWN_REJECTS,
        max_sizes=MAX_SHOWN_SIZES,
        tone_categories=TONE_CATEGORIES,
        class_colours=[css_colour(i) for i in range(len(profile.class_names))],
        lesion_charts=_histograms(
            {name: split for name, split in profile.splits.items() if split.lesion_fraction},
            "lesion_histogram",
            "fraction of the frame",
            (0, 1),
            format_x=charts.format_percent,
        ),
        ita_charts=_histograms(
            {name: split for name, split in profile.splits.items() if split.ita},
            "ita_histogram",
            "typology angle, degrees",
            (-90, 90),
            marks=[(lower, f"{lower:g}") for _, lower in TONE_CATEGORIES[:-1]],
        ),
        aspect_ratios=[size.width / size.height for size in profile.sizes],
    )


def _profile_classes(stats: pa.Table, names: Sequence[str]) -> dict[str, ClassProfile]:
    column = "class_fractions" if "class_fractions" in stats.column_names else "lesion_fraction"
    fractions = np.array(stats[column].to_pylist(), np.float64).reshape(-1, len(names) or 1)
    return {
        name: ClassProfile(
            num_images=int((values > 0).sum()), fraction=_quantiles(values[values > 0])
        )
        for name, values in zip(names, fractions.T, strict=False)
    }


def _profile_split(stats: pa.Table, names: Sequence[str]) -> SplitProfile:
    lesion = stats["lesion_fraction"].to_numpy()
    ita = stats["ita"].to_numpy()
    ita = ita[~np.isnan(ita)]
    tone_counts = Counter(tone_category(angle) for angle in ita.tolist())
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
        ita=_quantiles(ita),
        ita_histogram=tuple(np.histogram(ita, _ITA_BINS)[0].tolist()),
        tone_counts={name: tone_counts[name] for name, _ in TONE_CATEGORIES},
        num_without_ita=len(stats) - len(ita),
        classes=_profile_classes(stats, names),
    )


def _sort_keys(
    keys: Sequence[SampleKey], values: pa.ChunkedArray, is_valid: Callable[[float], bool]
) -> list[SampleKey]:
    """The keys whose value is valid, by ascending value."""
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
    """The colours that are not null, float64 [N, 3]."""
    return np.array(column.drop_null().to_pylist(), np.float64).reshape(-1, 3)


def _mean_hex(colours: np.ndarray) -> str | None:
    if not len(colours):
        return None
    return "#" + "".join(f"{round(channel):02x}" for channel in colours.mean(0).tolist())


def _palette(colours: np.ndarray) -> tuple[str, ...]:
    ordered = colours[np.argsort(colours.sum(1), kind="stable")]
    parts = np.array_split(ordered, min(_PALETTE_SIZE, len(ordered))) if len(ordered) else []
    return tuple(colour for part in parts if (colour := _mean_hex(part)))


def _histograms(
    splits: Mapping[str, SplitProfile],
    field: str,
    x_label: str,
    x_range: tuple[float, float],
    **options: Any,
) -> dict[str, charts.Chart]:
    """A chart for each split, all with the same axes."""
    counts = {name: getattr(split, field) for name, split in splits.items()}
    highest = max((max(counts[name]) / splits[name].num_images for name in splits), default=1.0)
    return {
        name: charts.histogram_chart(
            f"{name}: histogram of the {x_label}",
            x_label,
            counts[name],
            x_range,
            split.num_images,
            highest,
            **options,
        )
        for name, split in splits.items()
    }
