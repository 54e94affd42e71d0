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
    masquerade = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -m ipvs --ipvs -j MASQUERADE\nCOMMIT\n"
    case = Case(
        0, family, {("a", "legacy"): masquerade}, {}, {"a": {"net/ipv4/vs/conntrack": tracked}},
        {"a": ["link add kube-ipvs0 type dummy", address]}, packets, ipvs={"a": "\n".join(lines) + "\n"},
    )  # fmt: skip
    outcomes = run_case(lab, case)
    wrong = [tell(case, each) for each in outcomes if not each.agrees]
    assert not wrong, "\n\n".join(wrong[:4])
    assert {each.kernel["outcome"] for each in outcomes} >= {"refused", "times_out"}


def test_few_are_left_open(tally: Counter[str]) -> None:
    """Less than one in ten, and every outcome was among them."""
    print(dict(tally))  # noqa: T201 - what `-s` shows
    if sum(tally.values()) < 300:
        pytest.skip("too few pairs were asked to say so")
    assert tally["undetermined"] < 0.1 * sum(tally.values()), tally
    assert {"connects", "refused", "times_out"} <= set(tally)
