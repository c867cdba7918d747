"""Archives: pairing and reading of files in folders and zips."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segan import storage
from segan.data.archive import layouts, zips
from segan.data.archive import reader as archives
from segan.data.archive.reader import Archive, Pair, open_archive, read_file
from segan.data.synthetic import generate_archive
from segan.errors import RejectedError, SeganError

TRAIN = "ISIC-2017_Training_Data"
TRAIN_TRUTH = "ISIC-2017_Training_Part1_GroundTruth"


def write_archive(place: str, **counts: int) -> None:
    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(place, name), content)

    generate_archive(counts, 0, write, 32)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_zip(path: Path | str, *names: str, body: bytes = b"") -> None:
    """A zip with members of these names, each with its own name as its content, or `body`."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as out:
        for name in names:
            out.writestr(zipfile.ZipInfo(name), body or name.encode())
    storage.write_bytes(str(path), content.getvalue())


def reasons(archive: Archive) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in archive.rejects}


def list_pairs(folder: Path) -> list[tuple[str, str]]:
    return [(pair.split, pair.id) for pair in open_archive(str(folder)).pairs]


# Listing


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.integration)])
def test_a_synthetic_archive_is_all_pairs(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path) if where == "local" else request.getfixturevalue("bucket") + "/drawn"
    write_archive(place, train=3, validation=2, test=1)
    archive = open_archive(place)
    assert archive.rejects == []
    assert [pair.id for pair in archive.split("train")] == [f"ISIC_000000{i}" for i in range(3)]
    assert [pair.id for pair in archive.split("validation")] == ["ISIC_0000003", "ISIC_0000004"]
    assert archive.split("test") == [
        Pair(
            "ISIC_0000005",
            "test",
            f"{place}/ISIC-2017_Test_v2_Data/ISIC_0000005.jpg",
            f"{place}/ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000005_segmentation.png",
        )
    ]


@pytest.mark.parametrize(
    ("image", "mask", "split"),
    [
        (f"{TRAIN}/a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png", "train"),
        (f"deep/er/{TRAIN}/a.JPG", f"else/{TRAIN_TRUTH}/a_segmentation.PNG", "train"),
        (f"{TRAIN}/a.jpeg", f"{TRAIN_TRUTH}/a_segmentation.png", "train"),
        (f"{TRAIN}/a.png", f"{TRAIN_TRUTH}/a_segmentation.png", "train"),
        (
            "ISIC-2018_Validation_Data/a.jpg",
            "ISIC-2018_Validation_Part1_GroundTruth/a_segmentation.png",
            "validation",
        ),
        (
            "ISIC-2016_Test_Data/a.jpg",
            "ISIC-2016_Test_Part1_GroundTruth/a_segmentation.png",
            "test",
        ),
    ],
)
def test_folders_and_endings_as_they_occur(
    tmp_path: Path, image: str, mask: str, split: str
) -> None:
    touch(tmp_path, image, mask)
    assert list_pairs(tmp_path) == [(split, "a")]


def test_other_files_are_no_part_of_an_archive(tmp_path: Path) -> None:
    touch(
        tmp_path,
        f"{TRAIN}/a.jpg",
        f"{TRAIN}/a_superpixels.png",
        f"{TRAIN}/metadata.csv",
        f"{TRAIN_TRUTH}/a_segmentation.png",
        "ISIC-2017_Training_Part3_GroundTruth.csv",
        "LICENSE.txt",
        "holiday.jpg",
    )
    archive = open_archive(str(tmp_path))
    assert [pair.id for pair in archive.pairs] == ["a"]
    assert archive.rejects == []


def test_a_file_without_partner_is_rejected(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", f"{TRAIN}/b.jpg", f"{TRAIN_TRUTH}/b_segmentation.png")
    touch(tmp_path, f"{TRAIN_TRUTH}/c_segmentation.png")
    archive = open_archive(str(tmp_path))
    assert [pair.id for pair in archive.pairs] == ["b"]
    assert archive.rejects == [
        {
            "name": f"{TRAIN}/a.jpg",
            "split": "train",
            "reason": "no mask; expected a_segmentation.png among the split's masks",
        },
        {
            "name": f"{TRAIN_TRUTH}/c_segmentation.png",
            "split": "train",
            "reason": "no image; expected c.jpg among the split's images",
        },
    ]


def test_a_mask_of_another_split_is_no_partner(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", "ISIC-2017_Test_v2_Part1_GroundTruth/a_segmentation.png")
    archive = open_archive(str(tmp_path))
    assert archive.pairs == []
    assert [row["split"] for row in archive.rejects] == ["train", "test"]


@pytest.mark.parametrize("second", [f"{TRAIN}/a.png", "ISIC-2016_Training_Data/a.jpg"])
def test_a_second_image_of_the_same_id_is_rejected(tmp_path: Path, second: str) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", second, f"{TRAIN_TRUTH}/a_segmentation.png")
    archive = open_archive(str(tmp_path))
    assert len(archive.pairs) + len(archive.rejects) == 2


@pytest.mark.parametrize("name", [None, "notes.txt", "a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png"])
def test_a_folder_without_images_says_what_was_expected(tmp_path: Path, name: str | None) -> None:
    touch(tmp_path, *[name] if name else [])
    with pytest.raises(SeganError) as caught:
        open_archive(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: no images found; expected folders such as")
    assert TRAIN in str(caught.value)


def test_an_empty_split_names_the_others(tmp_path: Path) -> None:
    write_archive(str(tmp_path), train=1, test=1)
    with pytest.raises(
        SeganError, match="no pairs in split 'validation'; splits with pairs: test, train"
    ):
        open_archive(str(tmp_path)).split("validation")


# Several datasets


def test_data_sets_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", "ISIC2018_Task1_Training_GroundTruth/a_segmentation.png")
    archive = open_archive(str(tmp_path))
    assert archive.pairs == []
    assert archive.num_inputs == 2


def test_a_pair_of_the_same_id_in_another_dataset_is_two_rejects(tmp_path: Path) -> None:
    newer = ["ISIC2018_Task1-2_Training_Input/a.jpg", "ISIC2018_Task1_Training_GroundTruth/a"]
    touch(tmp_path, f"{TRAIN}/a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png")
    touch(tmp_path, newer[0], f"{newer[1]}_segmentation.png")
    archive = open_archive(str(tmp_path))
    assert [pair.image for pair in archive.pairs] == [f"{tmp_path}/{TRAIN}/a.jpg"]
    reason = f"same id as a file of another dataset in the split; {TRAIN}/a.jpg is used"
    assert reasons(archive) == {newer[0]: reason, f"{newer[1]}_segmentation.png": reason}


def test_ph2_as_it_is_served(tmp_path: Path) -> None:
    folder = "PH2Dataset/PH2 Dataset images/IMD002"
    touch(
        tmp_path,
        f"{folder}/IMD002_Dermoscopic_Image/IMD002.bmp",
        f"{folder}/IMD002_lesion/IMD002_lesion.bmp",
        f"{folder}/IMD002_roi/IMD002_R1_Label4.bmp",
        "PH2Dataset/PH2_dataset.txt",
    )
    archive = open_archive(str(tmp_path))
    image, mask = (
        f"{tmp_path}/{folder}/IMD002_Dermoscopic_Image/IMD002.bmp",
        f"{tmp_path}/{folder}/IMD002_lesion/IMD002_lesion.bmp",
    )
    assert archive.pairs == [Pair("IMD002", "test", image, mask)]
    assert archive.rejects == []


# Zips


@pytest.mark.parametrize("repeated", [True, False])
@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.integration)])
def test_zips_next_to_each_other_as_downloaded(
    where: str, repeated: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path) if where == "local" else request.getfixturevalue("bucket") + "/fetched"
    image = f"{TRAIN}/a.jpg" if repeated else "a.jpg"
    mask = f"{TRAIN_TRUTH}/a_segmentation.png" if repeated else "a_segmentation.png"
    write_zip(f"{place}/{TRAIN}.zip", image, "LICENSE.txt", f"__MACOSX/{TRAIN}/._a.jpg")
    write_zip(f"{place}/{TRAIN_TRUTH}.zip", mask)
    archive = open_archive(place)
    image, mask = f"{place}/{TRAIN}.zip!/{image}", f"{place}/{TRAIN_TRUTH}.zip!/{mask}"
    assert archive.pairs == [Pair("a", "train", image, mask)]
    assert archive.rejects == []
    assert read_file(image) == image.partition("!/")[2].encode()
    assert read_file(mask) == mask.partition("!/")[2].encode()


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.integration)])
def test_a_zip_of_the_whole_archive(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path) if where == "local" else request.getfixturevalue("bucket")
    drawn = tmp_path / "drawn"
    write_archive(str(drawn), train=2, test=1)
    shutil.make_archive(str(tmp_path / "all"), "zip", drawn)
    uri = f"{place}/all.zip"
    storage.write_bytes(uri, (tmp_path / "all.zip").read_bytes())
    archive, plain = open_archive(uri), open_archive(str(drawn))
    assert len(archive.pairs) == archive.num_inputs == 3
    for packed, pair in zip(archive.pairs, plain.pairs, strict=True):
        assert (packed.id, packed.split) == (pair.id, pair.split)
        assert packed.image == f"{uri}!/{pair.image.removeprefix(f'{drawn}/')}"
        assert read_file(packed.image) == read_file(pair.image) == Path(pair.image).read_bytes()


def test_a_zip_next_to_its_folder_is_ignored(tmp_path: Path) -> None:
    touch(tmp_path, f"x/{TRAIN}/a.jpg", f"x/{TRAIN_TRUTH}/a_segmentation.png")
    write_zip(tmp_path / "x" / f"{TRAIN}.zip", "a.jpg", "b.jpg")
    archive = open_archive(str(tmp_path))
    assert [pair.image for pair in archive.pairs] == [f"{tmp_path}/x/{TRAIN}/a.jpg"]
    assert archive.rejects == []


def test_a_broken_zip_is_one_reject_in_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png")
    write_zip(tmp_path / f"{TRAIN}_more.zip", *[f"{TRAIN}/{i}.jpg" for i in range(9)])
    whole = (tmp_path / f"{TRAIN}_more.zip").read_bytes()
    (tmp_path / f"{TRAIN}_more.zip").write_bytes(whole[:-50])
    archive = open_archive(str(tmp_path))
    (row,) = archive.rejects
    assert (row["name"], row["split"]) == (f"{TRAIN}_more.zip", "")
    assert "expected a complete zip" in row["reason"]
    assert archive.num_inputs == 2
    with pytest.raises(
        SeganError, match=r"more\.zip: expected a complete zip.*; download it again"
    ):
        open_archive(f"{tmp_path}/{TRAIN}_more.zip")


def test_unusable_members_are_rejected_by_name(tmp_path: Path) -> None:
    good = [f"{TRAIN}/a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png"]
    bad = ["/etc/x.jpg", f"{TRAIN}/../../x.jpg", f"{TRAIN}\\x.jpg", "inner.zip"]
    write_zip(tmp_path / "all.zip", *good, *bad, f"{TRAIN}/notes.txt")
    archive = open_archive(f"{tmp_path}/all.zip")
    assert [pair.id for pair in archive.pairs] == ["a"]
    plain = "expected a relative name inside the archive"
    expected = dict.fromkeys(bad[:3], plain)
    assert reasons(archive) == {
        **expected,
        "inner.zip": "a zip within a zip; extract the outer one",
    }
    names = [f"all.zip!/{name}" for name in bad]
    assert sorted(reasons(open_archive(str(tmp_path)))) == sorted(names)


def test_a_bad_member_is_a_reject_before_it_is_read(tmp_path: Path) -> None:
    names = [f"{TRAIN}/a.jpg", f"{TRAIN}/b.jpg", f"{TRAIN_TRUTH}/a_segmentation.png"]
    write_zip(tmp_path / "all.zip", *names)
    content = bytearray((tmp_path / "all.zip").read_bytes())
    content[content.rindex(f"{TRAIN}/b.jpg".encode()) - 46 + 8] |= 1  # the flag in the directory
    (tmp_path / "all.zip").write_bytes(content)
    archive = open_archive(str(tmp_path))
    assert [pair.id for pair in archive.pairs] == ["a"]
    (row,) = archive.rejects
    assert (row["name"], row["split"]) == (f"all.zip!/{TRAIN}/b.jpg", "train")
    assert row["reason"].startswith("encrypted")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_member_of_a_name_is_rejected(tmp_path: Path) -> None:
    write_zip(tmp_path / "all.zip", *[f"{TRAIN}/a.jpg"] * 2, f"{TRAIN_TRUTH}/a_segmentation.png")
    archive = open_archive(f"{tmp_path}/all.zip")
    assert len(archive.pairs) == 1
    assert reasons(archive) == {f"{TRAIN}/a.jpg": "duplicate member name; the first one is used"}


# Links and irregular files


@pytest.fixture
def archive_of_one_pair(tmp_path: Path) -> Path:
    """An archive of one pair, to add links to."""
    touch(tmp_path / "in", f"{TRAIN}/a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png")
    touch(tmp_path / "out", "secret.jpg", f"{TRAIN}/b.jpg")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        (f"{TRAIN}/b.jpg", "../../out/secret.jpg", "link to outside the archive; replace"),
        (f"{TRAIN}/b.jpg", "/etc/hostname", "link to outside the archive; replace"),
        ("folder", "../out", "link to outside the archive; replace"),
        (f"{TRAIN}/b.jpg", "gone.jpg", "broken link (No such file"),
        (f"{TRAIN}/b.jpg", "b.jpg", "broken link (Too many levels"),
        (f"{TRAIN}/loop", ".", "link to a folder that contains it"),
        (f"{TRAIN}/loop", "..", "link to a folder that contains it"),
        ("more.zip", "../out/secret.jpg", "link to outside the archive; replace"),
    ],
)
def test_a_broken_link_or_a_link_to_outside_is_a_reject(
    archive_of_one_pair: Path, name: str, target: str, reason: str
) -> None:
    (archive_of_one_pair / name).symlink_to(target)
    archive = open_archive(str(archive_of_one_pair))
    assert [pair.id for pair in archive.pairs] == ["a"]
    (row,) = archive.rejects
    assert (row["name"], row["split"]) == (name, "")
    assert row["reason"].startswith(reason)


def test_links_inside_the_archive_are_followed(archive_of_one_pair: Path, tmp_path: Path) -> None:
    (archive_of_one_pair / "raw").mkdir()
    (archive_of_one_pair / TRAIN).rename(archive_of_one_pair / "raw" / "images")
    (archive_of_one_pair / TRAIN).symlink_to("raw/images")
    (archive_of_one_pair / TRAIN / "b.jpg").symlink_to("a.jpg")
    touch(archive_of_one_pair, f"{TRAIN_TRUTH}/b_segmentation.png")
    (tmp_path / "door").symlink_to("in")  # the archive itself may be behind a link
    assert [pair.id for pair in open_archive(f"{tmp_path}/door").pairs] == ["a", "b"]


def test_links_do_not_multiply(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png")
    for here in "012":
        (tmp_path / here).mkdir()
        for there in "012":
            if here != there:
                (tmp_path / here / there).symlink_to(f"../{there}")
    archive = open_archive(str(tmp_path))
    # 3 folders with 2 links each, and each link leads to 2 more.
    assert len(archive.rejects) == 3 * 2 * 2
    assert {*reasons(archive).values()} == {"link to a folder below another such link"}


def test_what_is_neither_file_nor_folder_is_a_reject(archive_of_one_pair: Path) -> None:
    os.mkfifo(archive_of_one_pair / TRAIN / "pipe.jpg")
    assert reasons(open_archive(str(archive_of_one_pair))) == {
        f"{TRAIN}/pipe.jpg": "neither file nor folder"
    }
    with pytest.raises(RejectedError, match="expected a regular file"):
        read_file(f"{archive_of_one_pair}/{TRAIN}/pipe.jpg")


def test_a_name_that_is_not_unicode_is_a_reject(archive_of_one_pair: Path) -> None:
    with open(os.fsencode(archive_of_one_pair) + b"/" + TRAIN.encode() + b"/\xff.jpg", "wb"):
        pass
    touch(archive_of_one_pair, f"{TRAIN}/back\\slash.jpg")
    plain = "expected a relative name inside the archive"
    assert reasons(open_archive(str(archive_of_one_pair))) == {
        f"{TRAIN}/\\udcff.jpg": plain,
        f"{TRAIN}/back\\slash.jpg": plain,
    }


def test_a_file_above_the_maximum_size_is_a_reject(archive_of_one_pair: Path) -> None:
    with open(archive_of_one_pair / TRAIN / "b.jpg", "wb") as file:
        file.truncate(zips.MAX_BYTES + 1)  # sparse: takes no disk space
    assert reasons(open_archive(str(archive_of_one_pair))) == {
        f"{TRAIN}/b.jpg": "268435457 bytes; expected at most 268435456"
    }
    with pytest.raises(RejectedError, match=r"^b\.jpg: 268435457 bytes"):
        read_file(f"{archive_of_one_pair}/{TRAIN}/b.jpg")


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.zip!/a.jpg"):
        with pytest.raises(RejectedError, match=r"^a\.jpg: not found"):
            read_file(f"{tmp_path}/{name}")


# Completeness

_NAMES = [
    f"{folder}/{stem}"
    for folder, stem in [
        (TRAIN, "a.jpg"),
        (TRAIN, "a.png"),
        (TRAIN, "b.jpg"),
        (TRAIN, "b_superpixels.png"),
        ("else/ISIC-2017_Training_Data", "a.jpg"),
        ("ISIC-2016_Training_Data", "a.jpg"),
        ("ISIC-2016_Training_Part1_GroundTruth", "a_segmentation.png"),
        (TRAIN_TRUTH, "a_segmentation.png"),
        (TRAIN_TRUTH, "b_segmentation.PNG"),
        (TRAIN_TRUTH, "c_segmentation.png"),
        ("ISIC-2017_Test_v2_Data", "a.jpg"),
        ("IMD1/IMD1_lesion", "IMD1_lesion.bmp"),
        ("notes", "a.jpg"),
    ]
]


@settings(max_examples=60)
@given(st.sets(st.sampled_from(_NAMES)), st.sets(st.sampled_from(_NAMES)))
def test_every_image_and_mask_is_in_a_pair_or_a_reject(
    tmp_path_factory: pytest.TempPathFactory, plain: set[str], packed: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    touch(folder, f"{TRAIN}/first.jpg", *plain)
    write_zip(folder / "more.zip", *packed)
    archive = open_archive(str(folder))
    names = [f"{TRAIN}/first.jpg", *plain, *(f"more.zip!/{name}" for name in packed)]
    used = [uri for pair in archive.pairs for uri in (pair.image, str(pair.mask))]
    accounted = [uri.removeprefix(f"{folder}/") for uri in used]
    accounted += [row["name"] for row in archive.rejects]
    assert sorted(accounted) == sorted(name for name in names if layouts.classify_path(name))


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.txt", "found another kind of file"), ("gone", "found none")],
)
def test_a_source_of_another_kind_says_what_was_expected(
    tmp_path: Path, name: str, said: str
) -> None:
    touch(tmp_path, "a.txt")
    with pytest.raises(SeganError, match=r"or a \.csv with the columns image and mask") as caught:
        open_archive(f"{tmp_path}/{name}")
    assert str(caught.value).endswith(said)


def test_a_folder_of_broken_zips_says_so(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}.zip")
    with pytest.raises(
        SeganError, match=r"no images found; .*expected a complete zip, found 0 bytes"
    ):
        open_archive(str(tmp_path))


# Maximum of rejects


@pytest.mark.parametrize(("rejected", "most"), [(1, 0.2), (0, 0.0), (5, 1.0), (0, 0.05)])
def test_rejects_up_to_the_fraction_are_allowed(rejected: int, most: float) -> None:
    rows = [{"name": "a", "split": "train", "reason": "r"}] * rejected
    archives.check_rejects(rows, 5, most, "here")


def test_more_rejects_are_an_error_that_names_the_first() -> None:
    rows = [{"name": f"{i}.jpg", "split": "train", "reason": f"reason {i}"} for i in range(7)]
    with pytest.raises(SeganError) as caught:
        archives.check_rejects(rows, 100, 0.05, "s3://bucket/a")
    said = str(caught.value)
    assert said.startswith("s3://bucket/a: 7 of 100 pairs rejected, more than the fraction 0.05")
    assert "--max-rejects" in said
    assert "0.jpg: reason 0" in said
    assert "4.jpg: reason 4" in said
    assert "5.jpg" not in said
