"""Which of two tables runs first, as what rules counted between two readings tells; and where it does not."""

from __future__ import annotations

import json
import re

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.order_told import Told, told_at
from ktp.dataplane.places import Places
from ktp.dataplane.topology import Topology
from ktp.dataplane.walk import Walker
from ktp.model.capture import MemoryCapture
from ktp.model.host import NodeState
from ktp.model.trace import Flow, Symptom
from ktp.parse.snapshot import parse_snapshot

PORT = 30099
TAKES = f"-A PREROUTING -p tcp -m tcp --dport {PORT} -j DNAT --to-destination 10.1.0.9:80"
COUNTS = f"[3:180] -A PREROUTING -p tcp -m tcp --dport {PORT} -j REDIRECT --to-ports 82"
LOCAL = "-m addrtype --dst-type LOCAL"
VMAP = f"meta l4proto . th dport vmap {{ tcp . {PORT} : goto take }}"
ADDRESSES = [
    {"ifindex": 1, "ifname": "lo", "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8}]},
    {"ifindex": 2, "ifname": "eth0", "addr_info": [{"family": "inet", "local": "10.0.0.1", "prefixlen": 24}]},
]


def save(*lines: str, table: str = "nat", counted: bool = True) -> str:
    """A dump of one table; of lines with counters, before they were counted all are 0."""
    hooks = ("PREROUTING", "OUTPUT")
    chains = dict.fromkeys(
        (
            *hooks,
            *(line.split("-A ")[1].split()[0] for line in lines),
            *re.findall(r"-[jg] (OWN)", str(lines)),
        )
    )
    text = [f":{name} {'ACCEPT' if name in hooks else '-'} [0:0]" for name in chains]
    for name in chains:
        for line in lines:
            rule = line if line.startswith("[") else f"[0:0] {line}"
            if f"-A {name} " in line:
                text.append(rule if counted else re.sub(r"^\[\d+:\d+\]", "[0:0]", rule))
    return "\n".join((f"*{table}", *text, "COMMIT", ""))


def native(*rules: str, family: str = "ip", handle: int = 1, counted: bool = True) -> str:
    """A listing of one table of nft."""
    chain = "type nat hook prerouting priority dstnat; policy accept;"
    lines = [f"table {family} own {{ # handle {handle}"]
    lines += ["\tchain take { # handle 2", f"\t\tdnat {'ip ' * (family == 'inet')}to 10.1.0.9", "\t}"]
    lines += ["\tchain pre { # handle 3", f"\t\t{chain}", *(f"\t\t{rule}" for rule in rules), "\t}", "}"]
    text = "\n".join(lines) + "\n"
    return text if counted else re.sub(r"packets \d+ bytes \d+", "packets 0 bytes 0", text)


def node(first: dict[str, str], last: dict[str, str]) -> NodeState:
    """A node read twice."""
    files = {"cluster/services.json": '{"items": []}', "nodes/a/ip-addr.json": json.dumps(ADDRESSES)}
    files["nodes/a/kube-proxy-config.json"] = '{"mode": "iptables"}'
    files |= {f"nodes/a/{name}": text for name, text in first.items()}
    files |= {f"nodes/a/again/{name}": text for name, text in last.items()}
    snapshot = parse_snapshot(MemoryCapture(files={name: text.encode() for name, text in files.items()}))
    assert not [gap for gap in snapshot.gaps if gap.kind == "node-file"]
    return snapshot.nodes["a"]


def told(first: dict[str, str], last: dict[str, str], hook: str = "PREROUTING") -> tuple[Told, ...]:
    """What is told of a node's nat chains at a hook."""
    places = Places(Topology(nodes={"a": node(first, last)}))
    host = places.host("a")
    assert host is not None
    programs = next((g.programs for g in places.groups_of(host, 4, hook) if g.kind == "nat"), ())
    return told_at(host, 4, hook, programs)


LEGACY, NFT, OWN = "iptables-legacy-save.txt", "iptables-nft-save.txt", "nft-ruleset.txt"


def twice(takes: tuple[str, ...], counts: tuple[str, ...], hook: str = "PREROUTING") -> tuple[Told, ...]:
    """What is told if legacy tables have the one kind of rules, and those of iptables-nft counted."""
    return told(
        {LEGACY: save(*takes), NFT: save(*counts, counted=False)},
        {LEGACY: save(*takes), NFT: save(*counts)},
        hook,
    )


@pytest.mark.parametrize(
    ("takes", "counts", "is_told"),
    [
        pytest.param([TAKES], [COUNTS], True, id="every packet"),
        pytest.param([TAKES], [COUNTS.replace("[3:180]", "[0:0]")], False, id="nothing counted"),
        pytest.param([TAKES.replace("30099", "30098")], [COUNTS], False, id="another port"),
        pytest.param(["-A PREROUTING -p tcp -j REDIRECT"], [COUNTS], True, id="every port"),
        pytest.param([TAKES.replace("tcp", "udp")], [COUNTS], False, id="another protocol"),
        pytest.param([TAKES.replace(" -p ", " -s 10.9.0.0/16 -p ")], [COUNTS], False, id="some clients"),
        pytest.param(
            [TAKES.replace(" -p ", " -s 10.9.0.0/16 -p ")], [COUNTS.replace(" -p ", " -s 10.9.0.0/16 -p ")], True,
            id="the same clients",
        ),
        pytest.param(
            [TAKES.replace(" -p ", " -s 10.9.0.0/16 -p ")], [COUNTS.replace(" -p ", " -s 10.9.1.1/32 -p ")], True,
            id="one of the clients",
        ),
        pytest.param(["-A PREROUTING -s 10.9.0.0/16 -j RETURN", TAKES], [COUNTS], False, id="some may return"),
        pytest.param(["-A PREROUTING -s 10.9.0.0/16 -j OWN", TAKES], [COUNTS], True, id="a way with no end of its own"),
        pytest.param(
            [TAKES.replace("-j", "-m statistic --mode random --probability 0.5 -j"), TAKES], [COUNTS], True,
            id="one of two draws",
        ),
        pytest.param(
            [TAKES.replace("-j", "-m statistic --mode random --probability 0.5 -j")], [COUNTS], False,
            id="some draws",
        ),
        pytest.param(
            [TAKES.replace("-j", "-m recent --rcheck --name x --rsource -j"),
             TAKES.replace("-j", "-m recent --set --name x --rsource -j")], [COUNTS], True, id="remembered or not",
        ),
        pytest.param(
            [TAKES.replace("-j", "-m recent --rcheck --name x --rsource -j")], [COUNTS], False, id="remembered",
        ),
        pytest.param([TAKES.replace("-j", "-m limit --limit 1/sec -j")], [COUNTS], False, id="up to a limit"),
        pytest.param(
            [TAKES.replace("-j", "-m limit --limit 1/sec -j")],
            [COUNTS.replace("-j", "-m limit --limit 1/sec -j")], False, id="up to a limit of its own",
        ),
        pytest.param(
            ["-A PREROUTING -m connlimit --connlimit-above 9 -j ACCEPT", TAKES], [COUNTS], False,
            id="but for those of busy clients",
        ),
        pytest.param(
            [TAKES.replace("-j", "-m mark --mark 0x5 -j")],
            ["-A PREROUTING -j MARK --set-xmark 0x5/0xffffffff", COUNTS.replace("-j", "-m mark --mark 0x5 -j")],
            False, id="a mark that the counting table makes itself",
        ),
        pytest.param([TAKES.replace("-j", f"{LOCAL} -j")], [COUNTS], False, id="some addresses"),
        pytest.param(
            [TAKES.replace("-j", f"{LOCAL} -j")], [COUNTS.replace(" -p ", f" {LOCAL} -p ")], True,
            id="the node's addresses",
        ),
        pytest.param(
            [TAKES.replace("-j", f"{LOCAL} -j")], [COUNTS.replace(" -p ", " -d 10.0.0.1/32 -p ")], True,
            id="an address of the node",
        ),
        pytest.param(
            [TAKES], [COUNTS.replace("-A PREROUTING", "-A OWN"), f"-A PREROUTING {LOCAL} -j OWN"], True,
            id="by a chain",
        ),
        pytest.param(
            [TAKES],
            ["[3:180] -A OWN -j REDIRECT --to-ports 82", f"-A PREROUTING -p tcp -m multiport --dports {PORT} -j OWN"],
            True, id="what leads to the chain",
        ),
        pytest.param(
            [TAKES], [COUNTS.replace("-A PREROUTING", "-A OWN")], False, id="a chain to which nothing leads",
        ),
        pytest.param(
            [TAKES],
            [COUNTS.replace("-A PREROUTING", "-A OWN"), "-A PREROUTING -j OWN", "-A OUTPUT -j OWN"], False,
            id="by another hook",
        ),
        pytest.param([TAKES.replace("--dport", "--sport 9 --dport")], [COUNTS], False, id="some source ports"),
        pytest.param([TAKES.replace("-m tcp", "-m no-such-match --x 1 -m tcp")], [COUNTS], False, id="unknown"),
        pytest.param(["-A PREROUTING -p tcp -j NFQUEUE --queue-num 1", TAKES], [COUNTS], False, id="a queue"),
    ],
)  # fmt: skip
def test_what_one_table_takes_is_not_counted_behind_it(
    takes: list[str], counts: list[str], is_told: bool
) -> None:
    found = twice(tuple(takes), tuple(counts))
    assert [(t.first, t.second, t.packets, t.hooks) for t in found] == (
        [(("iptables-nft", "nat"), ("iptables-legacy", "nat"), 3, ("PREROUTING",))] if is_told else []
    )


SEVERAL = (COUNTS.replace("-A PREROUTING", "-A OWN"), "-A PREROUTING -j OWN", "-A OUTPUT -j OWN")
BOTH = (TAKES, TAKES.replace("PREROUTING", "OUTPUT"))


def test_a_rule_of_several_hooks_tells_of_them_together() -> None:
    for hook in ("PREROUTING", "OUTPUT"):
        (found,) = twice(BOTH, SEVERAL, hook)
        assert found.hooks == ("PREROUTING", "OUTPUT")
        assert "taken to have been registered together" in found.words
    # A rule of one hook alone goes before, and says the contrary of it here.
    first = {LEGACY: save(*BOTH), NFT: save(*SEVERAL, TAKES)}
    last = {LEGACY: save(f"[1:60] {BOTH[0]}", BOTH[1]), NFT: save(*SEVERAL, TAKES)}
    first[NFT] = save(*SEVERAL, TAKES, counted=False)
    assert [t.first for t in told(first, last)] == [("iptables-legacy", "nat")]
    assert [t.first for t in told(first, last, "OUTPUT")] == [("iptables-nft", "nat")]


@pytest.mark.parametrize(
    ("first", "last"),
    [
        pytest.param([COUNTS.replace("[3", "[9")], [COUNTS], id="set back"),
        pytest.param([COUNTS.replace("[3", "[0")], [COUNTS.replace(":180", ":0"), TAKES], id="a rule more"),
        pytest.param([COUNTS.replace("[3", "[0").replace("82", "83")], [COUNTS], id="another rule"),
        pytest.param([COUNTS.replace("[3:180] ", "")], [COUNTS, "-A OWN -j RETURN"], id="a chain more"),
        pytest.param([COUNTS], [], id="gone"),
    ],
)
def test_of_a_table_that_is_another_nothing_is_told(first: list[str], last: list[str]) -> None:
    again = {LEGACY: save(TAKES)} | ({NFT: save(*last)} if last else {})
    assert told({LEGACY: save(TAKES), NFT: save(*first)}, again) == ()
    # Nor if it is the table that takes.
    again = {LEGACY: save(COUNTS)} | ({NFT: save(*last, TAKES)} if last else {})
    assert told({LEGACY: save(COUNTS, counted=False), NFT: save(*first, TAKES)}, again) == ()


COUNTED = f"tcp dport {PORT} counter packets 3 bytes 180 dnat to 10.1.0.9"


@pytest.mark.parametrize(
    ("rule", "family", "is_told"),
    [
        (COUNTED, "ip", True),
        (COUNTED.replace("counter packets 3 bytes 180 ", ""), "ip", False),
        (f"counter packets 3 bytes 180 {COUNTED.replace('counter packets 3 bytes 180 ', '')}", "ip", False),
        (COUNTED.replace("dnat to", "dnat ip to"), "inet", False),  # they may have been packets of IPv6
        (f"ip daddr 10.0.0.1 {COUNTED.replace('dnat to', 'dnat ip to')}", "inet", True),
        (f"meta nfproto ipv4 {COUNTED.replace('dnat to', 'dnat ip to')}", "inet", True),
        (f"ip ttl set 9 {COUNTED}", "ip", False),  # packets are not as they came
        (f"meta mark 5 {COUNTED}", "ip", True),
    ],
)
def test_rules_of_nft_count_where_they_say_so(rule: str, family: str, is_told: bool) -> None:
    found = told(
        {LEGACY: save(TAKES), OWN: native(rule, family=family, counted=False)},
        {LEGACY: save(TAKES), OWN: native(rule, family=family)},
    )
    assert [t.first for t in found] == [("nftables", f"{family} own")] * is_told
    changed = {LEGACY: save(TAKES), OWN: native(rule, family=family, handle=7)}
    assert told({LEGACY: save(TAKES), OWN: native(rule, family=family, counted=False)}, changed) == ()


@pytest.mark.parametrize(
    ("rule", "is_told"),
    [
        (COUNTED.replace("counter packets 3 bytes 180 ", ""), True),
        (VMAP, True),
        (VMAP.replace("meta l4proto", "ip daddr . meta l4proto").replace("tcp", "10.0.0.1 . tcp"), False),
        (f"ip daddr 10.0.0.0/8 {VMAP}", False),
        (f"meta l4proto tcp tcp dport {{ 80, {PORT} }} goto take", True),
        (f"tcp dport {PORT} limit rate 5/second goto take", False),
        (f"tcp dport {PORT} meta mark 1 goto take", False),
        (f"tcp dport {PORT} ct state new goto take", False),
        (f"tcp dport {PORT} numgen random mod 2 vmap {{ 0 : goto take, 1 : goto take }}", True),
        (f"tcp dport {PORT} numgen random mod 2 vmap {{ 0 : goto take }}", False),
        (f"udp dport {PORT} goto take", False),
    ],
)
def test_what_a_table_of_nft_takes(rule: str, is_told: bool) -> None:
    own = native(rule)
    found = told({LEGACY: save(COUNTS, counted=False), OWN: own}, {LEGACY: save(COUNTS), OWN: own})
    assert [t.second for t in found] == [("nftables", "ip own")] * is_told


def test_answers_say_by_what_they_were_told_or_would_be() -> None:
    flow = Flow(src="10.0.0.9", via="a", dst="10.0.0.1", port=PORT, protocol="tcp")
    both = {LEGACY: save(TAKES), NFT: save(COUNTS, counted=False)}
    once = answer_flow(Walker(Topology(nodes={"a": node(both, {})})), flow)
    assert once.symptom is Symptom.UNKNOWN
    assert "--counters SECONDS" in (once.reason or "")
    quiet = answer_flow(Walker(Topology(nodes={"a": node(both, both)})), flow)
    assert quiet.symptom is Symptom.UNKNOWN
    assert "between two readings does not" in (quiet.reason or "")
    counted = answer_flow(
        Walker(Topology(nodes={"a": node(both, {LEGACY: save(TAKES), NFT: save(COUNTS)})})), flow
    )
    assert [path.endpoint_port for path in counted.paths] == [82]
    assert any("counted 3 packets" in each.taken for each in counted.assumptions)
    # Of rules that let through what the other counts, and have no counter of their own, no run tells.
    some = {
        LEGACY: save(TAKES.replace(" -p ", " -s 10.0.0.0/16 -p ")),
        NFT: save(COUNTS.replace(" -p ", " -i eth0 -p ")),
    }
    untold = answer_flow(Walker(Topology(nodes={"a": node(some, {})})), flow)
    assert untold.symptom is Symptom.UNKNOWN
    assert "--counters" not in (untold.reason or "")
