"""The named cases, on the kernel: what it does is what was recorded of it, and what ktp says."""

from __future__ import annotations

import pytest

from ktp.dataplane.hooks import HookTable
from ktp.dataplane.host import Host
from tests.kernel.cases import ALL, Named, p, save_text
from tests.kernel.compare import run_case, tell
from tests.kernel.drawing import Case
from tests.kernel.lab import Lab, topology_of_lab
from tests.kernel.record import read_recorded

pytestmark = pytest.mark.kernel

NAMES = [named.name for named in ALL]


def _is_patient(name: str) -> bool:
    """The kinds of ICMP error are alike: the quick suite waits for the client of one only, in each family."""
    return name.startswith("REJECT with icmp") and not name.endswith("port-unreachable")


@pytest.mark.parametrize(
    "named",
    # The quick suite asks the kernel about every third; what it answered to all is in tests/unit/dataplane.
    [
        pytest.param(each, marks=pytest.mark.slow) if _is_patient(each.name) or n % 3 else each
        for n, each in enumerate(ALL)
    ],
    ids=NAMES,
)
def test_kernel_and_model_agree(lab: Lab, named: Named) -> None:
    outcomes = run_case(lab, named.case, counted=named.counted)
    assert not [tell(named.case, each) for each in outcomes if not each.agrees]
    assert not [f"unknown to ktp: {each.answer.reason}" for each in outcomes if each.why == "undetermined"]
    recorded = read_recorded()["cases"][named.name]["outcomes"]
    if "range of addresses" in named.name:  # drawn anew each time
        return
    told = [(each.kernel["outcome"], each.kernel.get("ip"), each.kernel.get("source")) for each in outcomes]
    assert told == [
        (r["kernel"]["outcome"], r["kernel"].get("ip"), r["kernel"].get("source")) for r in recorded
    ]


def test_cases_are_told_apart_by_name() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) == set(read_recorded()["cases"])


def test_of_two_back_ends_the_one_registered_last_runs_first(lab: Lab) -> None:
    """nf_hook_entries_grow puts a new hook before those of its priority; a dump does not tell which is newer."""
    first = save_text("nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.1.10:8080")
    second = save_text("nat: -A PREROUTING -d 10.96.1.10 -p tcp -j DNAT --to-destination 10.244.1.11:8080")
    case = Case(0, 4, {("a", "legacy"): first, ("a", "nft"): second}, packets=[p("c1", "vip.a")])
    # Legacy tables stay registered once they were used, so the chains of nf_tables are the newer ones.
    outcome = run_case(lab, case)[0]
    assert outcome.kernel["ip"] == "10.244.1.11"
    assert outcome.why == "undetermined"
    host = Host(topology_of_lab(lab.capture()).nodes["a"])
    groups = [g for g in HookTable(host, 4).groups("PREROUTING") if g.kind == "nat"]
    assert [bool(g.others) for g in groups] == [True]
