from __future__ import annotations

import gc

import pytest

from ktp.errors import EvidenceError
from ktp.parse.text import decode_text, gc_paused, load_json, number_of


@pytest.mark.parametrize(
    "data",
    [b"a = 1\n", b"\xef\xbb\xbfa = 1\n", "a = 1\n".encode("utf-16"), "a = 1\n"],
    ids=["utf-8", "with mark", "utf-16", "text"],
)
def test_text_of_every_encoding(data: bytes | str) -> None:
    assert decode_text(data, "x.txt") == "a = 1\n"


def test_binary_is_not_text() -> None:
    with pytest.raises(EvidenceError, match=r"x\.txt is not text"):
        decode_text(b"\x7fELF\0\0", "x.txt")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "x.json is empty"),
        (b" \n", "x.json is empty"),
        (b"[1, 2", r"x.json is not valid JSON \(line 1, column"),
        (b"[" * 100_000, "x.json is not valid JSON"),
        (b"\xff\xfe\xfa", "x.json is not valid JSON"),
    ],
    ids=["empty", "blank", "broken off", "deep", "no text"],
)
def test_a_broken_document_names_the_file_and_what_to_do(data: bytes, words: str) -> None:
    with pytest.raises(EvidenceError, match=words) as raised:
        load_json(data, "x.json", remedy="write it again")
    assert raised.value.hint == "write it again"


def test_json_of_every_encoding() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert load_json('["ü"]'.encode(encoding), "x.json") == ["ü"]


def test_the_collector_comes_back_only_where_it_was_on() -> None:
    with gc_paused():
        assert not gc.isenabled()
        with gc_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_truth_value_is_no_number() -> None:
    with pytest.raises(TypeError):
        number_of(True, 0)
    assert number_of("80", 0) == 80
