"""What a rule is there for: found alike in both back ends, by what it matches and never by its comment."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktp.explain.kube import purpose_of
from ktp.explain.nft_kube import kube_table, purpose_of_element, purpose_of_nft
from ktp.explain.purpose import Aim
from ktp.parse.iptables_save import open_ruleset, parse_rule
from ktp.parse.nft import parse_nft_text

DATA = Path(__file__).resolve().parents[2] / "data"
FRONT = "-p tcp -m addrtype --dst-type LOCAL -m tcp --dport 31015"


def aim(table: str, text: str) -> Aim | None:
    purpose = purpose_of(parse_rule(table, text.split(" ")[1], text))
    return purpose.aim if purpose is not None else None


def aims_of_iptables(name: str) -> set[Aim]:
    dump = open_ruleset(DATA / name, source=name)
    rules = [r for t in dump.tables() for c in dump.chain_names(t) for r in dump.chain(t, c) or ()]
    return {p.aim for rule in rules if (p := purpose_of(rule, dump)) is not None}


def aims_of_nft(name: str) -> set[Aim]:
    table = kube_table(parse_nft_text((DATA / name).read_text(), name), "ip")
    assert table is not None
    rules = [purpose_of_nft(table, c.name, r) for c in table.chains.values() for r in c.rules]
    items = (*table.sets.values(), *table.maps.values())
    elements = [purpose_of_element(table, item.name, e) for item in items for e in item.elements]
    return {p.aim for p in (*rules, *elements) if p is not None}


def test_both_back_ends_share_their_purposes() -> None:
    both = aims_of_iptables("explain/1.36-node-a.txt") & aims_of_nft("nft/kube-proxy-1.36.nft")
    assert both >= {
        Aim.ENTER,
        Aim.LEAD,
        Aim.CLUSTER_POLICY,
        Aim.LOCAL_POLICY,
        Aim.SPARE_OWN,
        Aim.SPARE_PODS,
        Aim.MASQ_POLICY,
        Aim.MASQ_OUTSIDE,
        Aim.MASQUERADE,
        Aim.NO_LOCAL,
    }


@pytest.mark.parametrize("comment", ["", '-m comment --comment "test/web:http has no endpoints" '])
def test_a_drop_is_kube_proxys_by_its_form_not_by_its_comment(comment: str) -> None:
    assert aim("filter", f"-A KUBE-EXTERNAL-SERVICES {FRONT} {comment}-j DROP") is Aim.NO_LOCAL
    assert aim("filter", f"-A KUBE-EXTERNAL-SERVICES -p tcp -m tcp --dport 31015 {comment}-j DROP") is None
    assert aim("filter", f"-A KUBE-EXTERNAL-SERVICES -s 198.51.100.0/24 {comment}-j DROP") is None
    assert aim("filter", f"-A KUBE-FORWARD {comment}-j DROP") is None
    assert aim("filter", f"-A KUBE-SOURCE-RANGES-FIREWALL {comment}-j DROP") is Aim.RANGES_DROP_OTHERS
    assert aim("filter", f"-A KUBE-SOURCE-RANGES-FIREWALL -s 198.51.100.9/32 {comment}-j DROP") is None
    assert aim("filter", f"-A FORWARD {FRONT} {comment}-j DROP") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j REJECT", Aim.NO_ENDPOINT),
        ("-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j DROP", Aim.NO_LOCAL_INTERNAL),
        ("-A KUBE-PROXY-FIREWALL -d 192.0.2.7/32 -p tcp -m tcp --dport 80 -j DROP", Aim.RANGES_DROP),
        ("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP", Aim.DROP_INVALID),
        (
            "-A KUBE-IPVS-OUT-FILTER -s 192.0.2.7/32 -m ipvs --vproto 6 --vaddr 192.0.2.7 --vport 80 -j DROP",
            Aim.RANGES_DROP_OWN,
        ),
    ],
)
def test_what_stops(text: str, expected: Aim) -> None:
    assert aim("filter", text) is expected
    assert expected.stops


def test_what_marks_for_a_drop_does_not_stop_yet() -> None:
    assert aim("nat", "-A KUBE-XLB-3LS5F4HE6J2O753K -j KUBE-MARK-DROP") is Aim.NO_LOCAL_MARKED
    assert Aim.NO_LOCAL_MARKED.marks_for_drop
    assert not Aim.NO_LOCAL_MARKED.stops


def test_every_purpose_has_a_sentence_of_its_own() -> None:
    assert len({a.value for a in Aim}) == len(Aim.__members__)
