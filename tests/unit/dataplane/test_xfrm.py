"""IPsec by what was read of it: what is said of policies that are not modelled, and how their text is read."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ktp.collect.strip import strip_capture
from ktp.dataplane.answer import answer_flow
from ktp.dataplane.packet import to_int
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.errors import EvidenceError
from ktp.model.assumption import EvidenceKind
from ktp.model.capture import MemoryCapture
from ktp.model.trace import Flow, FlowAnswer, Symptom
from ktp.model.xfrm import Policy, SecurityState, Selector, Template, Xfrm
from ktp.parse.snapshot import parse_snapshot
from ktp.parse.xfrm import parse_xfrm_policies, parse_xfrm_states
from tests.unit.collect.test_redact import node_file
from tests.unit.dataplane.test_wireguard import CLIENT, NODES, POD, world

A, B = NODES["a"][0], NODES["b"][0]
# As iproute2 6.1 prints them.
POLICIES = f"""src 10.9.0.0/24 dst 10.244.2.0/24 proto tcp dport 80
\tdir out action block priority 3 ptype main
\tmark 0x1/0xff
\tif_id 0x2a
src 10.9.0.0/24 dst 10.244.2.0/24
\tdir out priority 100 ptype main
\ttmpl src {A} dst {B}
\t\tproto esp spi 0x00001000 reqid 1 mode tunnel
\ttmpl src 0.0.0.0 dst 0.0.0.0
\t\tproto comp reqid 0 mode transport
\t\tlevel use
src 0.0.0.0/0 dst 0.0.0.0/0
\tsocket in priority 0 ptype main
src fd00::/64 dst ::/0
\tdir fwd priority 0 ptype main
"""
SECRET = "0x0102030405060708090a0b0c0d0e0f1011121314"
STATES = f"""src {A} dst {B}
\tproto esp spi 0x00001000 reqid 1 mode tunnel
\treplay-window 32 flag af-unspec
\tmark 0x1/0xff
\toutput-mark 0x5/0xffffffff
\tif_id 0x2a
\tauth-trunc hmac(sha256) {SECRET} 128
\tenc cbc(aes) <<Keys hidden>>
\tencap type espinudp sport 4500 dport 4501 addr 0.0.0.0
\tanti-replay context: seq 0x0, oseq 0x0, bitmap 0x00000000
\tsel src 10.9.0.0/24 dst 10.244.2.0/24 proto udp
src {A} dst {B}
\tproto esp spi 0x00000000 reqid 7 mode tunnel
\treplay-window 0
\tsel src {A}/32 dst {B}/32
src {B} dst {A}
\tproto esp spi 0x00002000 reqid 1 mode tunnel
\treplay-window 0
\tsel src 0.0.0.0/0 dst 0.0.0.0/0
"""


def test_policies_are_read() -> None:
    src, dst = ip_network("10.9.0.0/24"), ip_network("10.244.2.0/24")
    tunnel = Template(src=ip_address(A), dst=ip_address(B), spi=0x1000, reqid=1, mode="tunnel")
    nothing = Template(src=None, dst=None, protocol="comp", is_optional=True)
    assert parse_xfrm_policies(POLICIES) == (
        Policy(
            selector=Selector(src=src, dst=dst, protocol="tcp", rest=True), direction="out", blocks=True, priority=3,
            mark=(1, 0xFF), interface=42,
        ),
        Policy(selector=Selector(src=src, dst=dst), direction="out", priority=100, templates=(tunnel, nothing)),
        Policy(selector=Selector(src=ip_network("fd00::/64"), dst=ip_network("::/0")), direction="fwd"),
    )  # fmt: skip


def test_states_are_read_without_those_that_are_asked_for() -> None:
    a, b = ip_address(A), ip_address(B)
    one, two = parse_xfrm_states(STATES)
    assert one == SecurityState(
        src=a, dst=b, spi=0x1000, reqid=1, mode="tunnel", mark=(1, 0xFF), output_mark=5, interface=42,
        ports=(4500, 4501),
        selector=Selector(src=ip_network("10.9.0.0/24"), dst=ip_network("10.244.2.0/24"), protocol="udp"),
    )  # fmt: skip
    assert (two.src, two.dst, two.spi, two.ports, two.output_mark) == (b, a, 0x2000, None, None)
    assert parse_xfrm_states("") == ()
    assert parse_xfrm_policies("\n") == ()


@pytest.mark.parametrize(
    "text", ["[]", "src x dst y\n\tdir out\n", "src 1.2.3.4 dst 1.2.3.5\n", f"{SECRET}\n\tx {SECRET}\n"]
)
def test_what_is_none_of_it_is_refused_without_telling_it(text: str) -> None:
    for parse in (parse_xfrm_policies, parse_xfrm_states):
        with pytest.raises(EvidenceError) as caught:
            parse(text)
        assert SECRET not in str(caught.value)


def test_keys_are_taken_out_and_addresses_renamed() -> None:
    name = "nodes/node-a/ip-xfrm-state.txt"
    kept = strip_capture(MemoryCapture(files={name: STATES.encode()})).read(name).decode()
    assert SECRET not in kept
    assert parse_xfrm_states(kept) == parse_xfrm_states(STATES)
    hidden = node_file("ip-xfrm-state.txt", STATES)
    assert not any(word in hidden for word in (SECRET, A, B))
    assert [state.spi for state in parse_xfrm_states(hidden)] == [0x1000, 0x2000]
    policies = node_file("ip-xfrm-policy.txt", POLICIES)
    assert A not in policies
    assert [p.priority for p in parse_xfrm_policies(policies)] == [3, 100, 0]


TUNNEL = Template(src=ip_address(A), dst=ip_address(B), reqid=1, mode="tunnel")
TO_POD = Selector(src=ip_network(f"{CLIENT}/32"), dst=ip_network(f"{POD}/32"))
OUT = Policy(selector=TO_POD, direction="out", templates=(TUNNEL,))
SENT = SecurityState(src=ip_address(A), dst=ip_address(B), spi=0x1000, reqid=1, mode="tunnel")


def ask(a: Xfrm | None, b: Xfrm | None = None) -> FlowAnswer:
    """A connection from the client through node a, whose packets would go through WireGuard without IPsec."""
    states = parse_snapshot(MemoryCapture(files=world(rules="*filter\n:INPUT ACCEPT\nCOMMIT\n"))).nodes
    topology = Topology(
        nodes={
            n: replace(s, place_unread=False, xfrm=x)
            for (n, s), x in zip(states.items(), (a, b), strict=True)
        },
        attached={to_int(POD): Attached(name="test/web", node="b")},
        node_addresses={to_int(ip): name for name, (ip, _) in NODES.items()},
    )
    return answer_flow(Walker(topology), Flow(dst=POD, port=80, src=CLIENT, via="a"))


@pytest.mark.parametrize(
    ("xfrm", "why"),
    [
        (Xfrm(policies=(replace(OUT, selector=replace(TO_POD, rest=True)),), states=(SENT,)), "ports or devices"),
        (Xfrm(policies=(OUT, replace(OUT, blocks=True)), states=(SENT,)), "same priority"),
        (Xfrm(policies=(replace(OUT, templates=(replace(TUNNEL, mode="transport"),)),), states=()), "one tunnel"),
        (Xfrm(policies=(replace(OUT, templates=(replace(TUNNEL, protocol="ah"),)),), states=()), "one tunnel"),
        (Xfrm(policies=(replace(OUT, templates=(TUNNEL, TUNNEL)),), states=()), "one tunnel"),
        (Xfrm(policies=(OUT,)), "states were not read"),
    ],
)  # fmt: skip
def test_what_is_not_modelled_or_not_read_is_unknown_by_name(xfrm: Xfrm, why: str) -> None:
    answer = ask(xfrm)
    assert answer.symptom is Symptom.UNKNOWN
    assert why in answer.reason


def test_a_far_end_that_was_not_read_is_taken_to_take_it() -> None:
    answer = ask(Xfrm(policies=(OUT,), states=(SENT,)))
    assert answer.symptom is Symptom.CONNECTS, answer.reason
    assert [a.node for a in answer.assumptions if a.evidence is EvidenceKind.NEIGHBOURS] == ["b"]


def test_policies_of_others_and_of_xfrm_interfaces_change_nothing() -> None:
    for policy in (
        replace(OUT, selector=replace(TO_POD, dst=ip_network("10.77.0.0/16"))),
        replace(OUT, blocks=True, interface=42),
        replace(OUT, direction="in", blocks=True),
        replace(OUT, blocks=True, mark=(1, 0xFF)),
        replace(OUT, blocks=True, selector=replace(TO_POD, protocol="udp")),
    ):
        answer = ask(Xfrm(policies=(policy,), states=()))
        assert (answer.symptom, answer.paths) == ((found := ask(None)).symptom, found.paths)


def test_the_smallest_priority_decides() -> None:
    block = replace(OUT, blocks=True, templates=(), priority=5)
    for priority, symptom in ((4, Symptom.CONNECTS), (6, Symptom.TIMES_OUT)):
        assert ask(Xfrm(policies=(block, replace(OUT, priority=priority)), states=(SENT,))).symptom is symptom
    # What asks for ports decides nothing behind one that does not.
    ports = replace(block, priority=9, selector=replace(TO_POD, rest=True))
    assert ask(Xfrm(policies=(OUT, ports), states=(SENT,))).symptom is Symptom.CONNECTS
