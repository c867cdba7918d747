"""The data profile: its values, and a well-formed, escaped page."""

import json
import math
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from segan.data.profile import report
from segan.data.profile.duplicates import HASH_BYTES, DuplicatePair
from segan.data.profile.image_stats import SCHEMA
from segan.data.profile.report import build_profile, choose_examples, keys_to_show, render_profile
from segan.data.records.format import Manifest, Shard
from segan.utils import html

HTML_INJECTION = "<script>alert('1')</script>"


def make_row(split: str, sample_id: str, **values: Any) -> dict[str, Any]:
    plain = {
        "original_width": 640,
        "original_height": 480,
        "lesion_fraction": 0.2,
        "touches_border": False,
        "lesion_colour": [100, 60, 40],
        "skin_colour": [200, 160, 130],
        "ita": 45.0,
        "hash": bytes(HASH_BYTES),
    }
    return {"split": split, "id": sample_id} | plain | values


def make_table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SCHEMA.append(pa.field("split", pa.string())))


def make_manifest(*splits: str, source: str = "s3://bucket/archive") -> Manifest:
    shard = Shard(name="any", num_rows=1, bytes=1, sha256="", content_digest="")
    return Manifest(
        height=135,
        width=180,
        classes=1,
        splits=dict.fromkeys(splits, (shard,)),
        num_inputs=0,
        num_rejects=0,
        source=source,
        fingerprint="f1",
    )


STATS = make_table(
    make_row("train", "a", lesion_fraction=0.02, ita=60.0, skin_colour=[210, 170, 140]),
    make_row(
        "train",
        "b",
        lesion_fraction=0.5,
        touches_border=True,
        ita=30.0,
        original_width=1024,
        original_height=768,
    ),
    make_row("train", "c", lesion_fraction=0.0, lesion_colour=None, skin_colour=None, ita=math.nan),
    make_row(
        "train", "d", lesion_fraction=1.0, touches_border=True, skin_colour=None, ita=math.nan
    ),
    make_row("validation", "e", ita=-40.0, skin_colour=[60, 40, 30]),
)
DUPLICATES = [DuplicatePair("a", "train", "e", "validation", 7)]
REJECTS = [{"name": "x.jpg", "split": "train", "reason": "x.jpg: an empty file"}]


class Page(HTMLParser):
    """The tags of a page with their attributes; fails if they do not nest."""

    VOID = ("meta", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def find_tags(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def render(
    stats: pa.Table = STATS,
    duplicates: list[DuplicatePair] = DUPLICATES,
    rejects: list[dict[str, str]] = REJECTS,
    source: str = "s3://bucket/archive",
) -> tuple[dict[str, Any], str]:
    splits = dict.fromkeys(stats["split"].to_pylist())
    profile = build_profile(make_manifest(*splits, source=source), stats, duplicates, rejects)
    thumbnails = dict.fromkeys(keys_to_show(profile), "data:image/jpeg;base64,AAAA")
    return profile.to_json(), render_profile(profile, thumbnails)


def test_profile_by_hand() -> None:
    found = build_profile(make_manifest("train", "validation"), STATS, DUPLICATES, REJECTS)
    train = found.splits["train"]
    assert (
        found.num_images,
        train.num_images,
        train.num_without_lesion,
        train.num_touching_border,
    ) == (5, 4, 1, 2)
    assert train.lesion_fraction
    # 0, 0.02, 0.5, 1: the median is the mean of 0.02 and 0.5.
    assert (
        train.lesion_fraction.minimum,
        train.lesion_fraction.median,
        train.lesion_fraction.maximum,
    ) == (0, 0.26, 1)
    assert np.flatnonzero(train.lesion_histogram).tolist() == [0, 10, 19]
    assert sum(train.lesion_histogram) == 4
    # The mean of (210, 170, 140) and (200, 160, 130).
    assert train.skin_colour == "#cda587"
    assert train.skin_palette == ("#c8a082", "#d2aa8c")
    assert train.tone_counts == {
        "very light": 1,
        "light": 0,
        "intermediate": 1,
        "tan": 0,
        "brown": 0,
        "dark": 0,
    }
    assert train.num_without_ita == 2
    # Bins of 5 degrees from -90: 60 is in bin 30, and 30 in bin 24.
    assert np.flatnonzero(train.ita_histogram).tolist() == [24, 30]
    assert found.splits["validation"].tone_counts["dark"] == 1
    sizes = [(size.width, size.height, size.num_images) for size in found.sizes]
    assert sizes == [(640, 480, 4), (1024, 768, 1)]


def test_split_without_skin_and_lesion() -> None:
    bare = make_row(
        "test", "a", lesion_fraction=0, lesion_colour=None, skin_colour=None, ita=math.nan
    )
    content, html = render(make_table(bare), [], [])
    of = content["splits"]["test"]
    assert (of["ita"], of["skin_colour"], of["lesion_palette"]) == (None, None, [])
    Page(html)


def test_keys_of_the_json() -> None:
    content, _ = render()
    parsed = json.loads(json.dumps(content, allow_nan=False))
    assert set(parsed) == {
        "source",
        "fingerprint",
        "frame",
        "splits",
        "sizes",
        "duplicates",
        "rejects",
        "examples",
    }
    assert parsed["duplicates"] == [
        {"id": "a", "split": "train", "other_id": "e", "other_split": "validation", "distance": 7}
    ]
    assert parsed["rejects"] == REJECTS
    assert report.DataProfile.model_validate(parsed).to_json() == content


def test_examples() -> None:
    rows = [make_row("train", f"i{n:02}", lesion_fraction=n / 50, ita=float(n)) for n in range(50)]
    examples = choose_examples(make_table(*rows), 1)
    assert choose_examples(make_table(*rows[::-1]), 1) == examples
    assert choose_examples(make_table(*rows), 2) != examples
    # i00 has an empty mask, which does not count, and the angle 0, which does.
    assert examples["Smallest lesions"][0] == ("train", "i01")
    assert examples["Largest lesions"][0] == ("train", "i49")
    assert examples["Darkest skin (estimated)"][0] == ("train", "i00")
    assert examples["Lightest skin (estimated)"][0] == ("train", "i49")


def test_examples_leave_out_unknown_angles() -> None:
    angles = (3.0, math.nan, 1.0, math.nan, 2.0)
    stats = make_table(*(make_row("train", f"i{n}", ita=angle) for n, angle in enumerate(angles)))
    chosen = choose_examples(stats)["Lightest skin (estimated)"]
    assert chosen == [("train", "i0"), ("train", "i4"), ("train", "i2")]


def test_one_id_in_two_splits_is_two_images() -> None:
    stats = make_table(make_row("train", "a"), make_row("validation", "a"))
    pairs = [DuplicatePair("a", "train", "a", "validation", 0)]
    shown = keys_to_show(build_profile(make_manifest("train", "validation"), stats, pairs, []))
    assert sorted(shown) == [("train", "a"), ("validation", "a")]


def test_page_is_well_formed_and_self_contained() -> None:
    _, html = render()
    page = Page(html)
    assert not page.find_tags("script")
    assert not page.find_tags("link")
    assert not any(sign in html for sign in ("url(", "@import", "http"))
    assert all(str(image["src"]).startswith("data:image/") for image in page.find_tags("img"))


def test_page_is_accessible() -> None:
    page = Page(render()[1])
    assert page.find_tags("html") == [{"lang": "en"}]
    assert len(page.find_tags("h1")) == 1
    assert all(image["alt"] for image in page.find_tags("img"))
    assert all("aria-hidden" in svg or svg["aria-label"] for svg in page.find_tags("svg"))
    assert len(page.find_tags("caption")) == len(page.find_tags("table")) == 4
    assert all(cell["scope"] in ("row", "col") for cell in page.find_tags("th"))


def test_names_are_escaped() -> None:
    stats = make_table(make_row(HTML_INJECTION, HTML_INJECTION), make_row("train", "'\"><b>"))
    pairs = [DuplicatePair(HTML_INJECTION, HTML_INJECTION, "'\"><b>", "train", 3)]
    rejects = [{"name": HTML_INJECTION, "split": HTML_INJECTION, "reason": HTML_INJECTION}]
    _, html = render(stats, pairs, rejects, source=f"s3://bucket/{HTML_INJECTION}")
    page = Page(html)
    assert not page.find_tags("script")
    assert HTML_INJECTION in page.text  # as text


def test_heights_of_bars() -> None:
    rows = [
        make_row("train", f"i{n}", lesion_fraction=0.01 if n < 3 else 0.99, ita=0.0)
        for n in range(4)
    ]
    _, html = render(make_table(*rows), [])
    heights = [float(str(r["height"])) for r in Page(html).find_tags("rect") if "y" in r]
    # Three quarters and one quarter below a maximum of 0.8, on 136 units; then all in one bar.
    assert heights == [127.5, 42.5, 136]


def test_page_counts_what_it_does_not_show() -> None:
    pairs = [DuplicatePair("a", "train", "e", "validation", 7)] * (report.MAX_SHOWN_DUPLICATES + 5)
    rejects = REJECTS * (report.MAX_SHOWN_REJECTS + 9)
    page = Page(render(duplicates=pairs, rejects=rejects)[1])
    assert "5 more are in profile.json" in page.text
    assert "9 more are in profile.json" in page.text


def test_page_without_duplicates_and_rejects() -> None:
    text = Page(render(duplicates=[], rejects=[])[1]).text
    assert "None. Mirrored and rotated copies were compared too." in text
    assert "None. All pairs of the archive are in the records." in text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0"), (0.004, "0.4"), (0.0994, "9.9"), (0.0996, "10"), (0.1, "10"), (1, "100")],
)
def test_percentages(share: float, text: str) -> None:
    assert html.format_percent(share) == f"{text}\u00a0%"
