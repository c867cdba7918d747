"""Layouts: classification of files by folder and name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.data.archive import layouts

ISIC_2016 = "ISBI2016_ISIC_Part1"


@pytest.mark.parametrize(
    ("image", "mask", "split", "dataset"),
    [
        (
            "ISIC-2017_Test_v2_Data/ISIC_0012086.jpg",
            "ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0012086_segmentation.png",
            "test",
            "ISIC 2017",
        ),
        (
            f"{ISIC_2016}_Training_Data/ISIC_0000000.jpg",
            f"{ISIC_2016}_Training_GroundTruth/ISIC_0000000_Segmentation.png",
            "train",
            "ISIC 2016",
        ),
        (
            f"x/{ISIC_2016}_Test_Data/ISIC_0000003.jpg",
            f"{ISIC_2016}_Test_GroundTruth/ISIC_0000003_Segmentation.png",
            "test",
            "ISIC 2016",
        ),
        (
            "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg",
            "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png",
            "train",
            "ISIC 2018",
        ),
        (
            "ISIC2018_Task1-2_Validation_Input/ISIC_0012255.jpg",
            "ISIC2018_Task1_Validation_GroundTruth/ISIC_0012255_segmentation.png",
            "validation",
            "ISIC 2018",
        ),
        (
            "ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg",
            "ISIC2018_Task1_Test_GroundTruth/ISIC_0012169_segmentation.png",
            "test",
            "ISIC 2018",
        ),
        (
            "PH2Dataset/PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp",
            "PH2Dataset/PH2 Dataset images/IMD002/IMD002_lesion/IMD002_lesion.bmp",
            "test",
            "PH2",
        ),
    ],
)
def test_image_and_mask_have_the_same_key(image: str, mask: str, split: str, dataset: str) -> None:
    left, right = layouts.classify_path(image), layouts.classify_path(mask)
    assert left
    assert right
    assert (left.is_mask, right.is_mask) == (False, True)
    assert left.pair_key == right.pair_key
    assert (left.split, left.dataset) == (split, dataset)
    assert (left.partner_name, right.partner_name) == (
        mask.rsplit("/", 1)[1],
        image.rsplit("/", 1)[1],
    )


@pytest.mark.parametrize(
    "path",
    [
        "ISIC_0000000.jpg",
        "ISIC-2017_Training_Data/ISIC_0000000_superpixels.png",
        "ISIC-2017_Training_Data/ISIC-2017_Training_Data_metadata.csv",
        "ISIC-2017_Training_Data/deeper/ISIC_0000000.jpg",
        "ISIC-2017_Training_Data/.ISIC_0000000.jpg",
        "__MACOSX/ISIC-2017_Training_Data/ISIC_0000000.jpg",
        "x/__MACOSX/ISIC-2017_Training_Data/ISIC_0000000.jpg",
        ".cache/ISIC-2017_Training_Data/ISIC_0000000.jpg",
        "ISIC-2017_Training_Part2_GroundTruth/ISIC_0000000_features.json",
        "ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000.png",
        "ISBI2016_ISIC_Part3B_Training_Data/ISIC_0000000.jpg",
        "ISIC2018_Task2_Training_GroundTruth_v3/ISIC_0000000_attribute_globules.png",
        "ISIC2018_Task3_Training_Input/ISIC_0024306.jpg",
        "PH2 Dataset images/IMD002/IMD002_roi/IMD002_R1_Label4.bmp",
        "PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD003.bmp",
        "PH2 Dataset images/IMD002/IMD002_lesion/IMD003_lesion.bmp",
        "PH2Dataset/PH2_dataset.xlsx",
        "",
    ],
)
def test_other_files_have_no_role(path: str) -> None:
    assert layouts.classify_path(path) is None


@given(st.text(st.characters(exclude_characters="/"), min_size=1, max_size=8))
def test_any_id_is_parsed(sample_id: str) -> None:
    hidden = sample_id.startswith(".")
    found = layouts.classify_path(f"ISIC-2017_Training_Data/{sample_id}.jpg")
    assert (found is None) if hidden else (found and found.id == sample_id)


def test_the_module_docstring_names_every_layout() -> None:
    known = {
        name for name in layouts.LAYOUTS if re.search(rf"^ +{name}", layouts.__doc__ or "", re.M)
    }
    assert known == set(layouts.LAYOUTS)
