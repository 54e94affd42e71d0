"""A packet through WireGuard, by what was read of it: the worlds that no kernel can be asked for, and each fault once."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.packet import to_int
from ktp.dataplane.walk import Attached, Topology, Walker
from ktp.model.assumption import EvidenceKind
from ktp.model.capture import MemoryCapture
from ktp.model.effect import Untunnelled
from ktp.model.trace import Flow, FlowAnswer, Symptom
from ktp.model.tunnel import TunnelFault
from ktp.parse.snapshot import parse_snapshot

POD, CLIENT = "10.244.2.5", "10.9.0.9"
NODES = {"a": ("10.9.0.1", "10.244.1"), "b": ("10.9.0.2", "10.244.2")}
TAKEN = "*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -o wg0 -j MASQUERADE\nCOMMIT\n"


def device(node: str, key: str = "", port: int = 51820, mark: str = "off") -> str:
    return f"wg0\t(hidden)\t{key or 'KEY' + node}\t{port}\t{mark}\n"


def peer(
    node: str,
    *,
    key: str = "",
    endpoint: str = "",
    allowed: str = "",
    seen: str = "0\t0\t0",
    alive: str = "off",
) -> str:
    address, pods = NODES[node]
    fields = (
        key or f"KEY{node}",
        "(hidden)",
        endpoint or f"{address}:51820",
        allowed or f"{pods}.0/24",
        seen,
        alive,
    )
    return "\t".join(("wg0", *fields)) + "\n"


WG = {"a": device("a") + peer("b"), "b": device("b") + peer("a", endpoint="(none)")}


def _files(name: str, wg: str | None, rules: str) -> dict[str, bytes]:
    address, pods = NODES[name]
    other = NODES["b" if name == "a" else "a"]

    def entry(ip: str, length: int) -> dict[str, Any]:
        return {"family": "inet", "local": ip, "prefixlen": length, "scope": "global"}

    def link(dev: str, kind: str, *addresses: dict[str, Any]) -> dict[str, Any]:
        return {"ifname": dev, "flags": ["UP"], "link_type": kind, "mtu": 1500, "addr_info": addresses}

    links = [
        link("eth0", "ether", entry(address, 24)), link("wg0", "none", entry(f"{pods}.0", 32)), link("vpod", "ether"),
    ]  # fmt: skip
    local = [
        {"type": "local", "dst": ip, "dev": dev, "table": "local", "scope": "host"}
        for ip, dev in ((address, "eth0"), (f"{pods}.0", "wg0"))
    ]
    routes = [
        *local, {"dst": "10.9.0.0/24", "dev": "eth0", "scope": "link", "prefsrc": address},
        {"dst": f"{pods}.5", "dev": "vpod", "scope": "link"}, {"dst": f"{other[1]}.0/24", "dev": "wg0", "scope": "link"},
    ]  # fmt: skip
    files = {
        "ip-addr.json": json.dumps(links), "ip-route.json": json.dumps(routes), "iptables-nft-save.txt": rules,
        "ip-link.json": json.dumps([{"ifname": "wg0", "flags": ["UP"], "linkinfo": {"info_kind": "wireguard"}}]),
        "sysctl.txt": "net.ipv4.ip_forward = 1\n",
    }  # fmt: skip
    if wg is not None:
        files["wg.txt"] = wg
    return {f"nodes/{name}/{file}": text.encode() for file, text in files.items()}


def world(
    a: str | None = WG["a"], b: str | None = WG["b"], rules: str = TAKEN, rules_b: str = TAKEN
) -> dict[str, bytes]:
    return {"cluster/services.json": b'{"items": []}', **_files("a", a, rules), **_files("b", b, rules_b)}


def ask(
    a: str | None = WG["a"], b: str | None = WG["b"], rules: str = TAKEN, rules_b: str = TAKEN
) -> FlowAnswer:
    states = parse_snapshot(MemoryCapture(files=world(a, b, rules, rules_b))).nodes
    topology = Topology(
        nodes={name: replace(state, place_unread=False) for name, state in states.items()},
        attached={to_int(POD): Attached(name="test/web", node="b")},
        node_addresses={to_int(ip): name for name, (ip, _) in NODES.items()},
    )
    return answer_flow(Walker(topology), Flow(dst=POD, port=80, src=CLIENT, via="a"))


def dropping(words: str) -> str:
    return f"*filter\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n-A {words} -j DROP\nCOMMIT\n{TAKEN}"


def test_it_comes_out_at_its_peer() -> None:
    answer = ask()
    assert answer.symptom is Symptom.CONNECTS
    assert not [a for a in answer.assumptions if a.evidence is EvidenceKind.NEIGHBOURS]
    assert next(h.in_interface for h in answer.paths[0].hops if h.node == "b") == "wg0"


@pytest.mark.parametrize(
    ("fault", "symptom", "a", "b"),
    [
        (TunnelFault.NO_PEER, "unreachable", device("a") + peer("b", allowed="10.99.0.0/16,fd00::/8"), WG["b"]),
        (TunnelFault.NO_PEER, "unreachable", device("a") + peer("b", allowed="(none)"), WG["b"]),
        (TunnelFault.NO_ENDPOINT, "unreachable", device("a") + peer("b", endpoint="(none)"), WG["b"]),
        (TunnelFault.NO_SUCH_PEER, "times_out", device("a") + peer("b", endpoint="10.9.0.77:51820"), WG["b"]),
        (TunnelFault.OTHER_PORT, "times_out", WG["a"], device("b", port=51999) + peer("a")),
        (TunnelFault.KEYS_DIFFER, "times_out", WG["a"], device("b") + peer("a", key="another")),
        (TunnelFault.KEYS_DIFFER, "times_out", WG["a"], device("b", key="another") + peer("a")),
        (TunnelFault.KEYS_DIFFER, "times_out", device("a", key="(none)") + peer("b"), WG["b"]),
        (TunnelFault.NOT_ALLOWED, "times_out", WG["a"], device("b") + peer("a", allowed="10.99.0.0/16")),
        # The longest prefix decides, on both sides.
        (TunnelFault.KEYS_DIFFER, "times_out", WG["a"] + peer("b", key="another", allowed="10.244.2.4/30"), WG["b"]),
        (TunnelFault.NOT_ALLOWED, "times_out", WG["a"], WG["b"] + peer("a", key="another", allowed="10.244.1.0/32")),
    ],
)  # fmt: skip
def test_each_fault_is_named(fault: TunnelFault, symptom: str, a: str, b: str) -> None:
    answer = ask(a, b)
    assert answer.symptom.value == symptom
    step = answer.decided_by.step if answer.decided_by is not None else None
    assert step is not None
    assert [effect.fault for effect in step.effects if isinstance(effect, Untunnelled)] == [fault]


@pytest.mark.parametrize(
    ("rules", "rules_b", "a", "rule"),
    [
        (TAKEN, dropping("INPUT -p udp --dport 51820"), WG["a"], "-A INPUT -p udp --dport 51820 -j DROP"),
        (TAKEN, dropping("INPUT -p udp --sport 51821"), device("a", port=51821) + peer("b"),
         "-A INPUT -p udp --sport 51821 -j DROP"),
        (dropping("OUTPUT -m mark --mark 7"), TAKEN, device("a", mark="0x7") + peer("b"),
         "-A OUTPUT -m mark --mark 7 -j DROP"),
        (dropping("OUTPUT -m mark --mark 7"), TAKEN, device("a", mark="0x8") + peer("b"), None),
        (TAKEN, dropping("INPUT -p udp --sport 51820"), device("a", port=51821) + peer("b"), None),
        (TAKEN, dropping("OUTPUT -p udp --sport 51820"), WG["a"], "-A OUTPUT -p udp --sport 51820 -j DROP"),
        (dropping("INPUT -p udp -m conntrack --ctstate NEW"), TAKEN, WG["a"], None),
    ],
)  # fmt: skip
def test_its_own_packets_meet_the_rules(rules: str, rules_b: str, a: str, rule: str | None) -> None:
    answer = ask(a, rules=rules, rules_b=rules_b)
    assert (answer.symptom is Symptom.CONNECTS) is (rule is None), answer.reason
    assert rule is None or (answer.decided_by is not None and answer.decided_by.rule == rule)


def test_what_was_not_read_is_taken_for_granted_by_name() -> None:
    for a, b, node in ((None, WG["b"], "a"), (WG["a"], None, "b")):
        answer = ask(a, b)
        assert answer.symptom is Symptom.CONNECTS
        assert {x.node for x in answer.assumptions if x.evidence is EvidenceKind.NEIGHBOURS} == {node}
    # The rules of the other end hold all the same.
    assert ask(b=None, rules_b=dropping("INPUT -p udp --dport 51820")).symptom is Symptom.TIMES_OUT


@pytest.mark.parametrize(
    ("a", "b"),
    [
        # One key on two nodes.
        (device("a") + peer("b"), device("b", key="KEYa") + peer("a")),
        (device("a", key="KEYb") + peer("b"), WG["b"]),
        # Handshakes that nobody ever answered, though all that was read would let them.
        (device("a") + peer("b", seen="0\t0\t1480"), WG["b"]),
    ],
)
def test_what_does_not_fit_together_is_unknown_or_a_fault(a: str, b: str) -> None:
    assert ask(a, b).symptom is not Symptom.CONNECTS


def test_handshakes_that_nobody_answers_are_unknown() -> None:
    answer = ask(device("a") + peer("b", seen="0\t0\t1480"))
    assert (answer.symptom, "handshakes" in answer.reason) == (Symptom.UNKNOWN, True)
    assert ask(device("a") + peer("b", seen="1700000000\t92\t1480")).symptom is Symptom.CONNECTS


def test_the_other_end_may_have_to_send_first() -> None:
    """Its packets open the way for those to it, as long as connection tracking remembers them."""
    a = device("a") + peer("b", seen="1700000000\t92\t1480")
    closed = dropping("INPUT -p udp -m conntrack --ctstate NEW")
    for alive, symptom in (("25", Symptom.CONNECTS), ("off", Symptom.UNKNOWN)):
        assert ask(a, device("b") + peer("a", alive=alive), rules_b=closed).symptom is symptom
    # Where nothing ever came from there, nobody has.
    assert ask(WG["a"], device("b") + peer("a", alive="25"), rules_b=closed).symptom is Symptom.TIMES_OUT


def test_an_endpoint_behind_address_translation_is_the_node_with_the_key() -> None:
    answer = ask(device("a") + peer("b", endpoint="192.0.2.7:51820", seen="1700000000\t92\t1480"))
    assert answer.symptom is Symptom.CONNECTS
    assert "192.0.2.7 leads to b" in {x.taken for x in answer.assumptions}
