"""Text of unknown origin on terminals and in spreadsheets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.utils.text import escape_controls, from_cell, to_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 病变 [/b]", "plain ü 病变 [/b]"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("\x07\x00\x9b", "\\x07\\x00\\x9b"),
        ("lesion\u202egpj.exe", "lesion\\u202egpj.exe"),
        ("l\udce4sion", "l\\udce4sion"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("over\rwritten", "over\\rwritten"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert escape_controls(text) == shown


@given(st.text())
def test_what_is_shown_can_be_encoded_and_moves_nothing(text: str) -> None:
    shown = escape_controls(text).replace("\n", "").replace("\t", "")
    shown.encode()
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)


@pytest.mark.parametrize("text", ["=cmd|'C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'a"])
def test_a_formula_is_a_cell_of_text(text: str) -> None:
    assert to_cell(text) == f"'{text}"


@given(st.text())
def test_a_cell_gives_its_text_back(text: str) -> None:
    assert from_cell(to_cell(text)) == text
    assert to_cell(text)[:1] not in ("=", "+", "-", "@", "\t", "\r")
