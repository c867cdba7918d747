"""Archives with several label maps: which files belong to an image, and what is in them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segan.data.archive.images import decode_labels
from segan.data.archive.reader import Archive, Pair, open_archive, read_masks
from segan.errors import RejectedError, SeganError, UsageError

IMAGES, TRUTH = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task2_Training_GroundTruth_v3"
TWO = 'classes:\n  network: "{id}_network.png"\n  pigment_network: "{id}_pigment_network.png"\n'


def touch(folder: Path, *names: str, classes: str = TWO) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "classes.yaml").write_text(classes)
    return str(folder)


def reasons(archive: Archive) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in archive.rejects}


def test_an_image_has_a_mask_of_each_class_in_their_order(tmp_path: Path) -> None:
    """A pattern that ends like another one takes its own files alone."""
    names = (f"{TRUTH}/a_pigment_network.png", f"{TRUTH}/A_Network.PNG")
    archive = open_archive(touch(tmp_path, f"{IMAGES}/a.jpg", *names))
    masks = (f"{tmp_path}/{names[1]}", f"{tmp_path}/{names[0]}")
    assert archive.pairs == [Pair("a", "train", f"{tmp_path}/{IMAGES}/a.jpg", class_masks=masks)]
    assert archive.pairs[0].mask_files == masks
    assert archive.rejects == []
    assert archive.class_names == ("network", "pigment_network")


def test_masks_of_the_lesion_are_no_part_of_it(tmp_path: Path) -> None:
    archive = open_archive(
        touch(
            tmp_path,
            f"{IMAGES}/a.jpg",
            f"{TRUTH}/a_network.png",
            f"{TRUTH}/a_pigment_network.png",
            "ISIC2018_Task1_Training_GroundTruth/a_segmentation.png",
        )
    )
    assert (len(archive.pairs), archive.rejects) == (1, [])


def test_a_missing_mask_rejects_the_image(tmp_path: Path) -> None:
    archive = open_archive(
        touch(tmp_path, f"{IMAGES}/a.jpg", f"{IMAGES}/b.jpg", f"{TRUTH}/a_network.png")
    )
    assert archive.pairs == []
    assert reasons(archive) == {
        f"{IMAGES}/a.jpg": "no mask of pigment_network; expected a_pigment_network.png",
        f"{IMAGES}/b.jpg": "no mask of network; expected b_network.png (and 1 more)",
    }


def test_a_missing_mask_may_be_an_empty_one(tmp_path: Path) -> None:
    archive = open_archive(
        touch(
            tmp_path, f"{IMAGES}/a.jpg", f"{TRUTH}/a_network.png", classes=TWO + "missing: empty\n"
        )
    )
    (pair,) = archive.pairs
    assert pair.mask_files == (f"{tmp_path}/{TRUTH}/a_network.png", "")


def test_a_mask_without_an_image_is_a_reject(tmp_path: Path) -> None:
    names = [f"{TRUTH}/{i}_{kind}.png" for i in "ab" for kind in ("network", "pigment_network")]
    archive = open_archive(touch(tmp_path, f"{IMAGES}/a.jpg", *names))
    assert reasons(archive) == dict.fromkeys(names[2:], "a mask of no image, or a second one")
    assert {row["split"] for row in archive.rejects} == {"train"}


def test_masks_of_one_name_are_told_apart_by_the_folders_split(tmp_path: Path) -> None:
    parts = ("Training", "Validation")
    for part in parts:
        touch(tmp_path, f"ISIC2018_Task1-2_{part}_Input/a.jpg")
        for kind in ("network", "pigment_network"):
            touch(tmp_path, f"ISIC2018_Task2_{part}_GroundTruth/a_{kind}.png")
    archive = open_archive(str(tmp_path))
    assert archive.rejects == []
    for pair, part in zip(archive.pairs, parts, strict=True):
        assert all(f"_{part}_" in uri for uri in (pair.image, *pair.mask_files))


def test_a_pattern_with_folders(tmp_path: Path) -> None:
    classes = 'classes: {one: "one/{id}.png", two: "two/{id}.png"}'
    names = [f"{IMAGES}/a.jpg", "masks/one/a.png", "masks/two/a.png"]
    (pair,) = open_archive(touch(tmp_path, *names, classes=classes)).pairs
    assert pair.mask_files == tuple(f"{tmp_path}/{name}" for name in names[1:])


def test_the_option_takes_precedence_over_the_archives_file(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text('mask: "{id}_labels.png"\nclasses: {lesion: 1}\n')
    place = touch(tmp_path / "archive", f"{IMAGES}/a.jpg", f"{TRUTH}/a_labels.png")
    archive = open_archive(place, str(other))
    assert archive.class_names == ("lesion",)
    assert archive.pairs[0].mask == f"{place}/{TRUTH}/a_labels.png"


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("classes: {a: 1}", 'expected "mask:" with the pattern of the label images'),
        (TWO, "no masks found; expected files such as {id}_network.png"),
        ("classes: {a: x}", "classes.yaml: a: expected a file pattern"),
    ],
)
def test_classes_that_do_not_fit_the_archive(classes: str, message: str, tmp_path: Path) -> None:
    place = touch(tmp_path, f"{IMAGES}/a.jpg", classes=classes)
    with pytest.raises(SeganError) as caught:
        open_archive(place)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Tables


def write_table(folder: Path, content: str, classes: str = "") -> str:
    (folder / "table.csv").write_text(content)
    if classes:
        (folder / "classes.yaml").write_text(classes)
    return f"{folder}/table.csv"


def test_a_table_with_a_column_for_each_class(tmp_path: Path) -> None:
    content = "image,mask:streaks,mask:globules\na.jpg,a_s.png,a_g.png\nb.jpg,,b_g.png\n"
    archive = open_archive(write_table(tmp_path, content))
    assert archive.class_names == ("streaks", "globules")
    masks = (f"{tmp_path}/a_s.png", f"{tmp_path}/a_g.png")
    assert archive.pairs == [Pair("a", "train", f"{tmp_path}/a.jpg", class_masks=masks)]
    (reject,) = archive.rejects
    assert reject["reason"] == "mask:streaks: expected a name or a URI, found nothing"


def test_a_table_of_label_images(tmp_path: Path) -> None:
    table = write_table(tmp_path, "image,mask\na.jpg,a.png\n", "classes: {lesion: 1, hair: 2}")
    for archive in (open_archive(table), open_archive(table, f"{tmp_path}/classes.yaml")):
        assert archive.class_names == ("lesion", "hair")
        assert archive.pairs[0].mask == f"{tmp_path}/a.png"


def test_a_table_beside_an_archive_with_patterns_has_one_class(tmp_path: Path) -> None:
    archive = open_archive(write_table(tmp_path, "image,mask\na.jpg,a.png\n", TWO))
    assert archive.classes is None


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,mask,mask:a", "or one mask:NAME for each class; found both"),
        ("image,mask:a,mask:a", "class a: the name stands twice"),
        ("image,mask:a/b", "class 'a/b': expected a name"),
        ("mask:a,mask:b", "found no image"),
    ],
)
def test_a_header_with_a_mistake(header: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SeganError) as caught:
        open_archive(write_table(tmp_path, f"{header}\n" + "x," * header.count(",") + "x\n"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_patterns_are_not_for_tables(tmp_path: Path) -> None:
    table = write_table(tmp_path, "image,mask\na.jpg,a.png\n", TWO)
    with pytest.raises(UsageError, match="a table has a column mask:NAME for each class"):
        open_archive(table, f"{tmp_path}/classes.yaml")


# Pixels


def encode(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


LABELS = np.array([[0, 1, 2, 2], [0, 1, 1, 7]], np.uint8)


@pytest.mark.parametrize("kind", ["L", "P", "I;16"])
def test_label_values_become_masks(kind: str) -> None:
    image = Image.fromarray(LABELS.astype(np.uint16) if kind == "I;16" else LABELS)
    if kind == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([*range(30, 54)])
    assert image.mode == kind
    found = decode_labels("a", encode(image), (4, 2), (4, 2), (7, 1, 2))
    assert found.dtype == np.uint8
    assert found.tolist() == [
        [[0, 0, 0, 0], [0, 0, 0, 1]],
        [[0, 1, 0, 0], [0, 1, 1, 0]],
        [[0, 0, 1, 1], [0, 0, 0, 0]],
    ]


def test_labels_above_8_bits() -> None:
    image = Image.fromarray(np.array([[0, 300], [40000, 300]], np.uint16))
    found = decode_labels("a", encode(image), (2, 2), (2, 2), (300, 40000))
    assert found.tolist() == [[[0, 1], [0, 1]], [[0, 0], [1, 0]]]


def test_labels_of_one_bit() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert decode_labels("a", encode(image), (2, 1), (2, 1), (1,)).tolist() == [[[1, 0]]]


def test_labels_are_resized_by_nearest_neighbour() -> None:
    image = Image.fromarray(np.kron(LABELS, np.ones((3, 3), np.uint8)))
    found = decode_labels("a", encode(image), (12, 6), (4, 2), (1, 2, 7))
    np.testing.assert_array_equal(found[0], LABELS == 1)
    np.testing.assert_array_equal(found[2], LABELS == 7)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            Image.fromarray(LABELS),
            "expected the label values 0, 1, 2, found 1 pixels of others (7); name them in the "
            "file of the classes",
        ),
        (
            Image.fromarray(np.arange(10, 18, dtype=np.uint16).reshape(2, 4)),
            "expected the label values 0, 1, 2, found 8 pixels of others (10, 11, 12, 13, ...); "
            "name them in the file of the classes",
        ),
        (Image.new("L", (2, 4)), "expected the image's 4 x 2 pixels, found 2 x 4"),
        (
            Image.new("RGB", (4, 2)),
            "expected a label image with one channel of 8 or 16 bits, found RGB",
        ),
    ],
)
def test_a_label_image_that_cannot_be_used(image: Image.Image, message: str) -> None:
    with pytest.raises(RejectedError) as caught:
        decode_labels("a.png", encode(image), (4, 2), (4, 2), (1, 2))
    assert str(caught.value) == f"a.png: {message}"


def test_masks_of_several_classes_may_overlap(tmp_path: Path) -> None:
    folder = touch(tmp_path, f"{IMAGES}/a.jpg", classes=TWO + "missing: empty\n")
    truth = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)
    for name, mask in (("network", truth), ("pigment_network", truth[:, ::-1])):
        (tmp_path / TRUTH).mkdir(exist_ok=True)
        Image.fromarray(mask.copy()).save(tmp_path / TRUTH / f"a_{name}.png")
    archive = open_archive(folder)
    found = read_masks(archive.pairs[0], (3, 2), archive.classes)
    assert found.dtype == bool
    assert found.tolist() == [
        [[False, True, True], [False, False, True]],
        [[True, True, False], [True, False, False]],
    ]
    (tmp_path / TRUTH / "a_pigment_network.png").unlink()
    archive = open_archive(folder)
    found = read_masks(archive.pairs[0], (3, 2), archive.classes)
    np.testing.assert_array_equal(found, [truth > 0, np.zeros((2, 3), bool)])


def test_a_mask_of_another_size_names_its_file(tmp_path: Path) -> None:
    folder = touch(tmp_path, f"{IMAGES}/a.jpg", f"{TRUTH}/a_network.png", classes=TWO)
    for name in ("network", "pigment_network"):
        Image.new("L", (3, 2)).save(tmp_path / TRUTH / f"a_{name}.png")
    archive = open_archive(folder)
    with pytest.raises(RejectedError, match=r"^a_network\.png: expected the image's 4 x 2 pixels"):
        read_masks(archive.pairs[0], (4, 2), archive.classes)
