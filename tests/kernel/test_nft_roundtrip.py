"""What is parsed and written again is the same to the kernel."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktp.model.nftables import Xt
from ktp.parse.nft import parse_nft_json, parse_nft_text
from tests.support.nft_writer import render_nft

pytestmark = pytest.mark.kernel

DATA = Path(__file__).resolve().parents[1] / "data" / "nft"
NAMES = sorted(path.stem for path in DATA.glob("*.json"))
# Counts, and what is given anew at each load.
FLEETING = frozenset({"handle", "expires", "used", "packets", "bytes"})

IPTABLES = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -m statistic --mode random --probability 0.5 -j RETURN
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m tcp --dport 22 -j REJECT --reject-with tcp-reset
COMMIT
"""


def nft(netns: str, *arguments: str, stdin: str | None = None) -> str:
    command = ["ip", "netns", "exec", netns, "nft", *arguments]
    answer = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def lasting(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: lasting(value) for key, value in item.items() if key not in FLEETING}
    if isinstance(item, list):
        return [lasting(value) for value in item]
    return item


def canonical(listing: str) -> list[Any]:
    """The listing's objects: chains and rules in order, all else and the elements of sets sorted."""

    def ordered(item: Any) -> Any:
        if isinstance(item, dict):
            out = {key: ordered(value) for key, value in item.items()}
            for key in ("set", "elem"):
                if isinstance(out.get(key), list):
                    out[key] = sorted(out[key], key=repr)
            return out
        return [ordered(value) for value in item] if isinstance(item, list) else item

    items = [ordered(lasting(item)) for item in json.loads(listing)["nftables"] if "metainfo" not in item]
    in_order = [item for item in items if "chain" in item or "rule" in item]
    return [*sorted((item for item in items if item not in in_order), key=repr), *in_order]


@pytest.mark.parametrize("name", NAMES)
def test_json_to_text_to_kernel(name: str, make_netns: Callable[[str], str]) -> None:
    listing = (DATA / f"{name}.json").read_text(encoding="utf-8")
    netns = make_netns("nft")
    nft(netns, "-f", "-", stdin=render_nft(parse_nft_json(listing.encode(), name)))
    assert canonical(nft(netns, "-j", "list", "ruleset")) == canonical(listing)


@pytest.mark.parametrize("name", NAMES)
def test_text_to_text_to_kernel(name: str, make_netns: Callable[[str], str]) -> None:
    netns = make_netns("nft")
    ruleset = parse_nft_text((DATA / f"{name}.nft").read_text(encoding="utf-8"), name)
    nft(netns, "-f", "-", stdin=render_nft(ruleset))
    listing = (DATA / f"{name}.json").read_text(encoding="utf-8")
    assert canonical(nft(netns, "-j", "list", "ruleset")) == canonical(listing)


def test_the_tables_of_iptables_nft(make_netns: Callable[[str], str]) -> None:
    netns = make_netns("nft")
    command = ["ip", "netns", "exec", netns, "iptables-nft-restore"]
    answer = subprocess.run(command, input=IPTABLES, capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"iptables-nft-restore: {answer.stderr.strip()}")
    listed = parse_nft_json(nft(netns, "-j", "list", "ruleset").encode(), "x")
    assert {(t.family, t.name): t.is_xtables for t in listed.tables} == {
        ("ip", "nat"): True,
        ("ip", "filter"): True,
    }
    table = listed.table("ip", "nat")
    assert table is not None
    first = table.chains["KUBE-SERVICES"].rules[0]
    assert Xt("match", "statistic") in first.statements
    text = parse_nft_text(nft(netns, "list", "ruleset"), "x")
    assert [t.is_xtables for t in text.tables] == [True, True]
