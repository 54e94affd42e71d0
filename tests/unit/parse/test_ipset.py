from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.errors import EvidenceError
from ktp.model.host import IpSet
from ktp.parse.ipset import parse_ipsets

DATA = Path(__file__).resolve().parents[2] / "data" / "parse"


def test_a_real_dump() -> None:
    sets = parse_ipsets((DATA / "ipset-save.txt").read_bytes())
    assert list(sets) == ["a", "n", "KUBE-NODE-PORT-TCP", "KUBE-CLUSTER-IP", "bm", "netmask", "l"]
    assert sets["a"].options == {
        "hashsize": "1024",
        "maxelem": "65536",
        "timeout": "60",
        "counters": "",
        "comment": "",
        "skbinfo": "",
        "bucketsize": "12",
        "initval": "0xacfaf6e9",
    }
    element, options = sets["a"].entries[0]
    assert element == "10.0.0.2"
    assert (options["comment"], options["timeout"], options["skbprio"]) == ("hello world", "4", "1:10")
    assert (sets["n"].type, sets["n"].family) == ("hash:net,iface", "inet6")
    assert sets["n"].entries == (("fd01::/64,physdev:eth0", {}), ("fd00::/64,eth0", {"nomatch": ""}))
    assert sets["KUBE-NODE-PORT-TCP"] == IpSet(
        name="KUBE-NODE-PORT-TCP", type="bitmap:port", options={"range": "0-65535"}, entries=(("30080", {}),)
    )
    assert sets["KUBE-CLUSTER-IP"].entries[0][1] == {"comment": "default/kubernetes:https cluster IP"}
    assert [element for element, _ in sets["l"].entries] == ["a", "n"]


def test_nothing_is_no_sets() -> None:
    assert parse_ipsets(b"") == {}


def test_an_empty_comment_and_a_quoted_name() -> None:
    sets = parse_ipsets('create "s" hash:ip forceadd comment\nadd s 10.0.0.1 comment "" nomatch\n')
    assert sets["s"].entries == (("10.0.0.1", {"comment": "", "nomatch": ""}),)


@pytest.mark.parametrize(
    "line",
    [
        "add other 10.0.0.1",
        "create s",
        "-N s iphash",
        "Name: s",
        "The set with the given name does not exist",
    ],
)
def test_garbled_lines_are_named(line: str) -> None:
    with pytest.raises(EvidenceError, match=r"line 2 of x\.txt"):
        parse_ipsets(f"create s hash:ip\n{line}\n", source="x.txt")


words = st.text(
    st.characters(codec="ascii", exclude_categories=("C", "Z"), exclude_characters='"#'), min_size=1
)
comments = st.text(st.characters(exclude_categories=("C", "Zl", "Zp"), exclude_characters='"'))


@given(st.lists(st.tuples(words, st.booleans(), comments)))
def test_elements_read_back(rows: list[tuple[str, bool, str]]) -> None:
    lines = [
        f'add s {element}{" nomatch" if nomatch else ""} comment "{comment}"'
        for element, nomatch, comment in rows
    ]
    found = parse_ipsets("\n".join(["create s hash:ip family inet6", *lines]))["s"]
    assert [(element, "nomatch" in options, options["comment"]) for element, options in found.entries] == rows
