"""The portrait: its figures are those of the traits, and its page is whole, sound and escaped."""

import json
import math
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from segan import pages
from segan.data import portrait
from segan.data.duplicates import HASH_BYTES, Twins
from segan.data.portrait import choose_examples, describe, draw, pictured
from segan.data.records import Manifest, Shard
from segan.data.traits import SCHEMA

EVIL = "<script>alert('1')</script>"


def row(split: str, sample_id: str, **values: Any) -> dict[str, Any]:
    plain = {
        "width": 640,
        "height": 480,
        "lesion": 0.2,
        "touches_border": False,
        "lesion_colour": [100, 60, 40],
        "skin_colour": [200, 160, 130],
        "tone": 45.0,
        "hash": bytes(HASH_BYTES),
    }
    return {"split": split, "id": sample_id} | plain | values


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SCHEMA.append(pa.field("split", pa.string())))


def manifest_of(*splits: str, source: str = "s3://bucket/drawn") -> Manifest:
    shard = Shard(name="any", rows=1, bytes=1, sha256="", content="")
    return Manifest(
        height=135,
        width=180,
        classes=1,
        splits=dict.fromkeys(splits, (shard,)),
        inputs=0,
        rejects=0,
        source=source,
        fingerprint="f1",
    )


TRAITS = table(
    row("train", "a", lesion=0.02, tone=60.0, skin_colour=[210, 170, 140]),
    row("train", "b", lesion=0.5, touches_border=True, tone=30.0, width=1024, height=768),
    row("train", "c", lesion=0.0, lesion_colour=None, skin_colour=None, tone=math.nan),
    row("train", "d", lesion=1.0, touches_border=True, skin_colour=None, tone=math.nan),
    row("validation", "e", tone=-40.0, skin_colour=[60, 40, 30]),
)
TWINS = [Twins("a", "train", "e", "validation", 7)]
REJECTS = [{"name": "x.jpg", "split": "train", "reason": "x.jpg: an empty file"}]


class Page(HTMLParser):
    """The tags of a page with their attributes; fails where they do not nest."""

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

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(
    traits: pa.Table = TRAITS,
    twins: list[Twins] = TWINS,
    rejects: list[dict[str, str]] = REJECTS,
    source: str = "s3://bucket/drawn",
) -> tuple[dict[str, Any], str]:
    examples = choose_examples(traits)
    pictures = dict.fromkeys(pictured(examples, twins), "data:image/jpeg;base64,AAAA")
    splits = dict.fromkeys(traits["split"].to_pylist())
    return draw(manifest_of(*splits, source=source), traits, twins, rejects, examples, pictures)


def test_figures_by_hand() -> None:
    found = describe(manifest_of("train", "validation"), TRAITS, TWINS, REJECTS, {})
    train = found.splits["train"]
    assert (found.images, train.images, train.without_lesion, train.touches_border) == (5, 4, 1, 2)
    assert train.lesion
    # 0, 0.02, 0.5, 1: the median lies half way from 0.02 to 0.5.
    assert (train.lesion.least, train.lesion.median, train.lesion.most) == (0, 0.26, 1)
    assert np.flatnonzero(train.lesion_histogram).tolist() == [0, 10, 19]
    assert sum(train.lesion_histogram) == 4
    # The mean of (210, 170, 140) and (200, 160, 130).
    assert train.skin_colour == "#cda587"
    assert train.skin_palette == ("#c8a082", "#d2aa8c")
    assert train.tones == {
        "very light": 1,
        "light": 0,
        "intermediate": 1,
        "tan": 0,
        "brown": 0,
        "dark": 0,
    }
    assert train.tone_unknown == 2
    # From -90 in steps of 5: 60 begins step 30, 30 step 24.
    assert np.flatnonzero(train.tone_histogram).tolist() == [24, 30]
    assert found.splits["validation"].tones["dark"] == 1
    sizes = [(size.width, size.height, size.images) for size in found.sizes]
    assert sizes == [(640, 480, 4), (1024, 768, 1)]


def test_a_split_without_any_skin_or_lesion() -> None:
    bare = row("test", "a", lesion=0, lesion_colour=None, skin_colour=None, tone=math.nan)
    content, html = page_of(table(bare), [], [])
    of = content["splits"]["test"]
    assert (of["tone"], of["skin_colour"], of["lesion_palette"]) == (None, None, [])
    Page(html)


def test_json_is_json_and_keeps_its_names() -> None:
    content, _ = page_of()
    again = json.loads(json.dumps(content, allow_nan=False))
    assert set(again) == {
        "source",
        "fingerprint",
        "frame",
        "splits",
        "sizes",
        "duplicates",
        "rejects",
        "examples",
    }
    assert again["duplicates"] == [
        {"id": "a", "split": "train", "other": "e", "other_split": "validation", "distance": 7}
    ]
    assert again["rejects"] == REJECTS
    assert portrait.Portrait.model_validate(again).model_dump(mode="json") == content


def test_examples_are_seeded_and_the_extremes_extreme() -> None:
    rows = [row("train", f"i{n:02}", lesion=n / 50, tone=float(n)) for n in range(50)]
    examples = choose_examples(table(*rows), 1)
    assert choose_examples(table(*rows[::-1]), 1) == examples
    assert choose_examples(table(*rows), 2) != examples
    # i00 has an empty mask, which is no smallest lesion, and tone 0, which is a tone.
    assert examples["The smallest lesions"][0] == ("train", "i01")
    assert examples["The largest lesions"][0] == ("train", "i49")
    assert examples["The darkest skin, as estimated"][0] == ("train", "i00")
    assert examples["The lightest skin, as estimated"][0] == ("train", "i49")


def test_examples_leave_out_what_has_no_tone() -> None:
    tones = (3.0, math.nan, 1.0, math.nan, 2.0)
    traits = table(*(row("train", f"i{n}", tone=tone) for n, tone in enumerate(tones)))
    chosen = choose_examples(traits)["The lightest skin, as estimated"]
    assert chosen == [("train", "i0"), ("train", "i4"), ("train", "i2")]


def test_one_id_in_two_splits_is_two_pictures() -> None:
    traits = table(row("train", "a"), row("validation", "a"))
    shown = pictured(choose_examples(traits), [Twins("a", "train", "a", "validation", 0)])
    assert sorted(shown) == [("train", "a"), ("validation", "a")]


def test_the_page_nests_and_needs_nothing_else() -> None:
    _, html = page_of()
    page = Page(html)
    assert not page.named("script")
    assert not page.named("link")
    assert not any(sign in html for sign in ("url(", "@import", "http"))
    assert all(str(image["src"]).startswith("data:image/") for image in page.named("img"))


def test_the_page_can_be_read_without_seeing_it() -> None:
    page = Page(page_of()[1])
    assert page.named("html") == [{"lang": "en"}]
    assert len(page.named("h1")) == 1
    assert all(image["alt"] for image in page.named("img"))
    assert all("aria-hidden" in svg or svg["aria-label"] for svg in page.named("svg"))
    assert len(page.named("caption")) == len(page.named("table")) == 4
    assert all(cell["scope"] in ("row", "col") for cell in page.named("th"))


def test_what_data_brings_is_escaped() -> None:
    traits = table(row(EVIL, EVIL), row("train", "'\"><b>"))
    twins = [Twins(EVIL, EVIL, "'\"><b>", "train", 3)]
    rejects = [{"name": EVIL, "split": EVIL, "reason": EVIL}]
    _, html = page_of(traits, twins, rejects, source=f"s3://bucket/{EVIL}")
    page = Page(html)
    assert not page.named("script")
    assert EVIL in page.text  # as text


def test_bars_are_as_high_as_their_share() -> None:
    rows = [row("train", f"i{n}", lesion=0.01 if n < 3 else 0.99, tone=0.0) for n in range(4)]
    _, html = page_of(table(*rows), [])
    heights = [float(str(r["height"])) for r in Page(html).named("rect") if "y" in r]
    # Three quarters and one under a top of 0.8, on 104 units: 97.5 and 32.5; then all in one bar.
    assert heights == [97.5, 32.5, 104]


def test_what_the_page_leaves_out_it_counts() -> None:
    twins = [Twins("a", "train", "e", "validation", 7)] * (portrait.PICTURED + 5)
    rejects = REJECTS * (portrait.LISTED + 9)
    page = Page(page_of(twins=twins, rejects=rejects)[1])
    assert "5 more are in portrait.json" in page.text
    assert "9 more are in portrait.json" in page.text


def test_nothing_wrong_is_said_in_words() -> None:
    text = Page(page_of(twins=[], rejects=[])[1]).text
    assert "None: no image looks like one of another split" in text
    assert "None: every image of the archive is among the records" in text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0"), (0.004, "0.4"), (0.0994, "9.9"), (0.0996, "10"), (0.1, "10"), (1, "100")],
)
def test_percentages(share: float, text: str) -> None:
    assert pages.percent(share) == f"{text}\u00a0%"
