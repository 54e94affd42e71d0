"""Random virtual servers, sets, settings and packets: what a kernel with IPVS does, and what ktp says it does.

Most kernels of small virtual machines have no IPVS: `make test-vm` boots one that has (user-mode Linux) and runs this
file in it. KTP_KERNEL_CASES and KTP_KERNEL_SEED are those of `test_differential.py`.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter

import pytest

from ktp.model.trace import Symptom
from tests.kernel.compare import Outcome, run_case, tell
from tests.kernel.drawing import Case, Packet
from tests.kernel.ipvs_generator import make_case
from tests.kernel.lab import ADDRESSES, Lab

pytestmark = pytest.mark.kernel

_CASES = int(os.environ.get("KTP_KERNEL_CASES", "8"))
_SEED = os.environ.get("KTP_KERNEL_SEED", "1")
_FIRST = random.randrange(10**9) if _SEED == "random" else int(_SEED)
_BLOCK = 5


@pytest.fixture(scope="module")
def tally() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("first", range(_FIRST, _FIRST + _CASES, _BLOCK))
def test_virtual_servers(lab: Lab, tally: Counter[str], first: int) -> None:
    if not lab.ipvs:
        pytest.skip("this kernel has no IPVS: `make test-vm` boots one that has")
    wrong: list[str] = []
    for seed in range(first, min(first + _BLOCK, _FIRST + _CASES)):
        case = make_case(seed)
        outcomes: list[Outcome] = run_case(lab, case)
        tally.update(
            "undetermined" if each.why == "undetermined" else each.kernel["outcome"] for each in outcomes
        )
        wrong += [tell(case, each) for each in outcomes if not each.agrees]
    assert not wrong, f"{len(wrong)} of {_BLOCK * 12}\n" + "\n\n".join(wrong[:8])


@pytest.mark.parametrize("tracked", ["0", "1"])
@pytest.mark.parametrize("family", [4, 6])
def test_errors_about_what_was_sent_on(lab: Lab, family: int, tracked: str) -> None:
    """Real servers where nothing is or nothing listens: on this node, on another one, on none.

    Without conntrack IPVS turns errors back by itself, and drops the node's own in IPv6.
    """
    if not lab.ipvs or _CASES < 8:
        pytest.skip("asked in a kernel with IPVS, with at least eight cases")
    virtual = ADDRESSES["vip.a"][family == 6]
    lines, packets = [], []
    ends = itertools.product((("dead", 8080), ("a", 443), ("b", 443)), ("tcp", "udp"), ("c1", "pa2", "a"))
    for number, ((name, port), proto, host) in enumerate(ends, start=30001):
        form = "[{}]:{}" if family == 6 else "{}:{}"
        server = f"-{proto[0]} {form.format(virtual, number)}"
        real = form.format(ADDRESSES[name][family == 6], port)
        lines += [f"-A {server} -s rr", f"-a {server} -r {real} -m -w 1"]
        packets.append(Packet(host, virtual, number, proto, None, "a" if host == "c1" else None))
    address = (
        f"-6 addr add {virtual}/128 dev kube-ipvs0 nodad"
        if family == 6
        else f"addr add {virtual}/32 dev kube-ipvs0"
    )
    # The router swallows virtual addresses.
    way = f"-{family} route add {virtual}/{128 if family == 6 else 32} via {ADDRESSES['a'][family == 6]}"
    masquerade = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -m ipvs --ipvs -j MASQUERADE\nCOMMIT\n"
    case = Case(
        0, family, {("a", "legacy"): masquerade}, {}, {"a": {"net/ipv4/vs/conntrack": tracked}},
        {"a": ["link add kube-ipvs0 type dummy", address], "b": [way]}, packets, ipvs={"a": "\n".join(lines) + "\n"},
    )  # fmt: skip
    outcomes = run_case(lab, case)
    wrong = [tell(case, each) for each in outcomes if not each.agrees]
    assert not wrong, "\n\n".join(wrong[:4])
    assert {each.kernel["outcome"] for each in outcomes} >= {"refused", "times_out"}


@pytest.mark.parametrize("tracked", ["0", "1"])
@pytest.mark.parametrize("device", ["kube-ipvs0", "dummy0"])
@pytest.mark.parametrize("asks", [False, True])
def test_what_follows_the_handshake(lab: Lab, device: str, tracked: str, *, asks: bool) -> None:
    """A process of the node dials a virtual server by an address that is the node's: it is its own source, too.

    Without conntrack the real server's SYN-ACK is INVALID and what it sends next is NEW. kube-proxy's rule that rejects
    what is NEW for its virtual addresses (KUBE-IPVS-FILTER) lets the first pass and stops the rest, whether the
    address's device is up or down. Where nothing asks for NEW, the connection works.
    """
    if not lab.ipvs or _CASES < 8:
        pytest.skip("asked in a kernel with IPVS, with at least eight cases")
    virtual, pod, other = (ADDRESSES[name][0] for name in ("vip.a", "pa1", "a.dummy"))
    filters = f"-A INPUT -d {virtual} -m conntrack --ctstate NEW -p tcp -j REJECT\n" if asks else ""
    rules = (
        f"*filter\n:INPUT ACCEPT [0:0]\n{filters}COMMIT\n"
        "*mangle\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp -m tcp --dport 443 -j MARK --set-mark 7\nCOMMIT\n"
        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -m ipvs --ipvs -j MASQUERADE\nCOMMIT\n"
    )
    servers = (
        f"-A -t {virtual}:30001 -s rr\n-a -t {virtual}:30001 -r {pod}:8080 -m -w 1\n"
        f"-A -t {virtual}:8080 -s rr\n-a -t {virtual}:8080 -r {other}:8080 -m -w 1\n"
        f"-A -f 7 -s rr\n-a -f 7 -r {pod}:0 -m -w 1\n"
    )
    commands = [f"link add {device} type dummy"] if device == "kube-ipvs0" else []
    case = Case(
        0, 4, {("a", "legacy"): rules}, {}, {"a": {"net/ipv4/vs/conntrack": tracked}},
        {"a": [*commands, f"addr add {virtual}/32 dev {device}"]},
        [Packet("a", virtual, port, "tcp") for port in (30001, 8080, 443)], ipvs={"a": servers}, heard=True,
    )  # fmt: skip
    outcomes = run_case(lab, case)
    wrong = [tell(case, each) for each in outcomes if not each.agrees]
    assert not wrong, "\n\n".join(wrong)
    stopped = asks and tracked == "0"
    first = outcomes[0]
    assert (first.answer.symptom is Symptom.UNKNOWN) is stopped
    assert first.kernel["outcome"] == "connects"
    assert ("ip" in first.kernel) is not stopped


def test_few_are_left_open(tally: Counter[str]) -> None:
    """Less than one in ten, and every outcome was among them."""
    print(dict(tally))  # noqa: T201 - what `-s` shows
    if sum(tally.values()) < 300:
        pytest.skip("too few pairs were asked to say so")
    assert tally["undetermined"] < 0.1 * sum(tally.values()), tally
    assert {"connects", "refused", "times_out"} <= set(tally)
