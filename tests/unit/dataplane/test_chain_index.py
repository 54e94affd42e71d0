"""Which rules of a long chain are asked: by its text and by its index the same, and all that could match."""

from __future__ import annotations

import pytest

from ktp.dataplane import chain_index
from ktp.dataplane.packet import Packet, to_int
from ktp.model.ruleset import Chain, LineBlock, Rule

VIPS = [
    f'-A KUBE-SERVICES -d 10.96.0.{n}/32 -p tcp -m comment --comment "ns/s{n} cluster IP" -m tcp --dport 80 -j KUBE-SVC-{n}'
    for n in range(40)
]
PORTS = [
    f'-A KUBE-SERVICES -p {"tcp" if n % 2 else "udp"} -m comment --comment "ns/p{n}" -m {"tcp" if n % 2 else "udp"} '
    f"--dport {30000 + n // 2} -j KUBE-EXT-{n}"
    for n in range(40)
]
OTHERS = [
    "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
    "-A KUBE-SERVICES -d 10.96.0.0/16 -j DROP",
]
COUNTED = (
    "[3:180] -A KUBE-SERVICES ! -s 10.244.0.0/16 -d 10.96.1.1/32 -p tcp "
    '-m comment --comment "ns/counted cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ'
)
LINES = [*VIPS, *PORTS, COUNTED, *OTHERS]


def parse(table: str, chain: str, text: str, line: int, position: int) -> Rule:
    raise AssertionError("no rule is parsed to tell which may match")


def chain(*, block: bool) -> Chain:
    raw = LineBlock(("\n" + "".join(f"{line}\n" for line in LINES)).encode()) if block else tuple(LINES)
    return Chain("nat", "KUBE-SERVICES", raw, parse)


@pytest.mark.parametrize(
    ("dst", "port", "proto", "expected"),
    [
        ("10.96.0.7", 80, 6, [VIPS[7]]),
        ("10.0.0.1", 30003, 6, [PORTS[7]]),
        ("10.0.0.1", 80, 6, []),
        ("10.96.0.9", 30000, 6, [VIPS[9], PORTS[1]]),
        ("10.96.1.1", 80, 6, [COUNTED]),
    ],
)
@pytest.mark.parametrize("block", [False, True], ids=["lines", "block"])
def test_what_may_match_is_found_each_way(
    dst: str, port: int, proto: int, expected: list[str], block: bool
) -> None:
    p = Packet(4, proto, to_int("10.0.0.99")[1], to_int(dst)[1], 40000, port)
    one = chain(block=block)
    for asked in range(chain_index._SEARCHES + 2):  # by the text, then by the index
        found = [LINES[i] for i in chain_index.positions(one, p)]
        known = [line for line in found if line not in OTHERS]
        assert found[-2:] == OTHERS
        # By the text a rule of the same port for another protocol may be among them: it is asked, and says no.
        assert [line for line in known if f" -p {'tcp' if proto == 6 else 'udp'} " in line] == expected, asked
        assert len(known) <= len(expected) + 1


def test_an_index_goes_with_its_chain() -> None:
    one = chain(block=False)
    p = Packet(4, 6, 1, 2, 40000, 80)
    chain_index.positions(one, p)
    before = len(chain_index._INDEXES)
    del one
    assert len(chain_index._INDEXES) == before - 1
