"""Rules in whatever dress people post them."""

from __future__ import annotations

import random
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.model.reading import Lack, Reading
from ktp.model.ruleset import Backend, Ruleset, has_chain
from ktp.parse.iptables_save import open_ruleset
from ktp.parse.posted import Form, Posted, read_posted, taken_for
from ktp.parse.rules import open_rules_dump
from tests.support.iptables_rules import render_rule

DATA = Path(__file__).resolve().parents[2] / "data"
POSTED = DATA / "posted"
DUMP = (DATA / "explain" / "1.36-node-b.txt").read_text()


def posted(text: str) -> Posted:
    return read_posted(text.encode(), "posted.txt")


def only(text: str) -> Ruleset:
    found = posted(text)
    assert [len(host.rulesets) for host in found.hosts] == [1]
    return found.hosts[0].rulesets[0]


def rules_of(ruleset: Ruleset) -> dict[tuple[str, str], list[str]]:
    """What was read, chain by chain."""
    found = {}
    for table in ruleset.tables():
        for name in ruleset.chain_names(table):
            chain = ruleset.chain(table, name)
            assert chain is not None
            found[table, name] = [render_rule(rule, counters=False) for rule in chain if rule.unread is None]
    return found


WHOLE = rules_of(open_ruleset(DUMP.encode(), source="dump"))

# --------------------------------------------------------------------------------------------------------- dress

DRESSES = {
    "quoted": lambda text: textwrap.indent(text, "> ", lambda _: True),
    "quoted twice": lambda text: textwrap.indent(text, "> > ", lambda _: True),
    "indented": lambda text: textwrap.indent(text, "    "),
    "fenced": lambda text: f"```console\n{text}```\n",
    "grep -n": lambda text: "".join(f"{n}:{line}\n" for n, line in enumerate(text.splitlines(), 1)),
    "cat -n": lambda text: "".join(f"{n:6}\t{line}\n" for n, line in enumerate(text.splitlines(), 1)),
    "cat -n with blanks": lambda text: "".join(f"{n:6}  {line}\n" for n, line in enumerate(text.splitlines(), 1)),
    "grep of files": lambda text: "".join(f"node-b/save.txt:{line}\n" for line in text.splitlines()),
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "no-break blanks": lambda text: text.replace(" ", "\u00a0"),
    "em dashes": lambda text: text.replace(" --", " \u2014"),
    "with a prompt": lambda text: f"root@node-b:~# iptables-save\n{text}root@node-b:~# \n",
    "remarks between": lambda text: text.replace("\n-A", "\n# mine\n-A").replace("\n[", "\n# mine\n["),
    "without its end": lambda text: text.rstrip().rpartition("COMMIT")[0],
}  # fmt: skip


@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES)
def test_a_dress_changes_nothing(dress: object) -> None:
    assert callable(dress)
    found = posted(dress(DUMP))
    assert found.unparsed == ()
    assert rules_of(found.hosts[0].rulesets[0]) == WHOLE


@given(
    st.lists(
        st.sampled_from(sorted(set(DRESSES) - {"without its end", "grep of files", "with a prompt"})),
        max_size=3,
        unique=True,
    )
)
def test_dresses_over_each_other_change_nothing(names: list[str]) -> None:
    text = DUMP
    # Numbers come before what is put in front of lines: `grep -n`, then pasted as a quotation.
    for name in sorted(names, key=lambda n: ("grep" not in n and "cat" not in n, n)):
        text = str(DRESSES[name](text))  # type: ignore[no-untyped-call]
    if sum("cat" in n or "grep" in n for n in names) > 1:
        return
    assert rules_of(only(text)) == WHOLE


@pytest.mark.parametrize("name", ["v-emdash", "v-nbsp", "v-fold"])
def test_typeset_and_folded(name: str) -> None:
    text = (POSTED / "partial-text" / f"{name}.txt").read_text()
    plain = (POSTED / "partial-text" / "v-nbsp.txt").read_text().replace("\u00a0", " ")
    found = posted(text)
    assert found.unparsed == ()
    assert rules_of(found.hosts[0].rulesets[0]) == rules_of(open_ruleset(plain.encode(), source="plain"))
    dump = open_rules_dump(text.encode(), name)  # as `--rules` reads it
    assert rules_of(dump.hosts[0].rulesets[0]) == rules_of(found.hosts[0].rulesets[0])


@given(st.integers(min_value=60, max_value=200))
def test_folding_at_any_width_changes_nothing(width: int) -> None:
    lines = [line[at : at + width] for line in DUMP.splitlines() for at in range(0, len(line), width)]
    found = posted("\n".join(lines) + "\n")
    assert found.unparsed == ()
    assert rules_of(found.hosts[0].rulesets[0]) == WHOLE


def test_a_fold_that_may_be_read_in_two_ways_is_not_joined() -> None:
    text = "*nat\n:A - [0:0]\n:AB - [0:0]\n-A A -m comment --comment x -j A\nB\nCOMMIT\n"
    found = posted(text)
    assert found.unparsed == (5,)
    chain = found.hosts[0].rulesets[0].chain("nat", "A")
    assert chain is not None
    assert [rule.error is None for rule in chain] == [True, False]


def test_wrap() -> None:
    ruleset = only((POSTED / "partial-text" / "wrap.txt").read_text())
    chain = ruleset.chain("nat", "KUBE-NODEPORTS")
    assert chain is not None
    assert [r.target.name for r in chain if r.target is not None] == ["KUBE-EXT-T3FFAFQYD6HUPJPG"]


# --------------------------------------------------------------------------------------------------------- listings


@pytest.mark.parametrize(
    ("name", "table", "form"),
    [
        ("Sv-nat", "nat", Form.RULES),
        ("S-filter", "filter", Form.RULES),
        ("Lnvl-nat", "nat", Form.LISTING),
        ("Lnvl-filter", "filter", Form.LISTING),
    ],
)
def test_a_listing_tells_the_rules(name: str, table: str, form: Form) -> None:
    save = open_ruleset(POSTED / "listings" / "save.txt", source="save")
    found = posted((POSTED / "listings" / f"{name}.txt").read_text())
    assert found.forms == (form,)
    assert found.unparsed == ()
    ruleset = found.hosts[0].rulesets[0]
    assert rules_of(ruleset) == {key: rules for key, rules in rules_of(save).items() if key[0] == table}
    other = "nat" if table == "filter" else "filter"
    assert ruleset.reading(table).reading is Reading.WHOLE
    assert ruleset.reading(other).reading is Reading.NOT_READ


def test_without_v_a_listing_does_not_tell_interfaces() -> None:
    text = "Chain INPUT (policy DROP)\ntarget     prot opt source               destination\n"
    text += "ACCEPT     all  --  0.0.0.0/0            0.0.0.0/0\n"
    text += "Chain FORWARD (policy ACCEPT)\ntarget     prot opt source               destination\n"
    text += "Chain OUTPUT (policy ACCEPT)\ntarget     prot opt source               destination\n"
    chain = only(text).chain("filter", "INPUT")
    assert chain is not None
    assert chain.policy == "DROP"
    assert [m.name for m in chain.rule(0).matches] == ["unprinted-interface"]


def test_a_row_that_is_not_understood_stays_in_its_chain() -> None:
    text = "Chain INPUT (policy ACCEPT)\ntarget     prot opt source               destination\n"
    text += "DROP       tcp  --  0.0.0.0/0            0.0.0.0/0            a new match 7\n"
    found = posted(text)
    assert found.unparsed == (3,)
    chain = found.hosts[0].rulesets[0].chain("filter", "INPUT")
    assert chain is not None
    assert any(rule.error is not None and rule.unread is None for rule in chain)


def test_commands_in_front_tell_the_table() -> None:
    text = "# iptables -t nat -S KUBE-NODEPORTS\n-N KUBE-NODEPORTS\n-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j X\n"
    ruleset = only(text)
    assert list(rules_of(ruleset)) == [("nat", "KUBE-NODEPORTS")]
    assert ruleset.reading("nat").lack is Lack.FRAGMENT


def test_commands_that_add_rules() -> None:
    text = "sudo iptables -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080\niptables -A INPUT -j DROP\n"
    assert rules_of(only(text)) == {
        ("nat", "PREROUTING"): ["-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080"],
        ("filter", "INPUT"): ["-A INPUT -j DROP"],
    }


def test_ipvsadm_listing() -> None:
    text = textwrap.dedent("""
        > # ipvsadm -Ln
        > IP Virtual Server version 1.2.1 (size=4096)
        > Prot LocalAddress:Port Scheduler Flags
        >   -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
        > TCP  10.0.0.3:30080 rr persistent 10800
        >   -> 10.244.1.10:8080             Masq    1      0          0
        >   -> 10.244.2.10:8080             Masq    0      0          0
        > UDP  [fd00::3]:53 wlc
        > FWM  7 IPv6 rr
        """)
    table = open_rules_dump(text.encode(), "posted.txt").ipvs
    assert table is not None
    tcp, udp, mark = table.services
    assert (str(tcp.ip), tcp.port, tcp.persistent) == ("10.0.0.3", 30080, 10800)
    assert [(str(s.ip), s.port, s.weight, s.method) for s in tcp.servers] == [
        ("10.244.1.10", 8080, 1, "masq"),
        ("10.244.2.10", 8080, 0, "masq"),
    ]
    assert (udp.protocol, str(udp.ip), udp.scheduler) == ("udp", "fd00::3", "wlc")
    assert (mark.protocol, mark.ip, mark.port) == ("fwmark", None, 7)


# --------------------------------------------------------------------------------------------------------- greps


def test_grep_of_kube_finds_the_tables_again() -> None:
    lines = [line for line in DUMP.splitlines() if "KUBE" in line]
    ruleset = only("\n".join(lines))
    found = {key: rules for key, rules in rules_of(ruleset).items() if key[1].startswith("KUBE-") and rules}
    assert found == {key: rules for key, rules in WHOLE.items() if key[1].startswith("KUBE-") and rules}
    assert ruleset.reading("nat").lack is ruleset.reading("filter").lack is Lack.FRAGMENT
    forward, services = ruleset.chain("filter", "FORWARD"), ruleset.chain("nat", "KUBE-SERVICES")
    assert forward is not None
    assert forward.reading is Reading.PART
    assert services is not None
    assert services.reading is Reading.WHOLE


def test_grep_of_rules_alone_finds_the_tables_again() -> None:
    lines = [line for line in DUMP.splitlines() if "-A " in line]
    found = rules_of(only("\n".join(lines)))
    assert {key: rules for key, rules in found.items() if rules} == {k: r for k, r in WHOLE.items() if r}


def test_grep_of_one_port() -> None:
    lines = [line for line in DUMP.splitlines() if "test/nginx:" in line and "-A" in line]
    ruleset = only("\n".join(lines))
    found = rules_of(ruleset)
    assert found
    assert all(set(rules) <= set(WHOLE[key]) for key, rules in found.items())
    for table in ("nat", "filter"):
        assert ruleset.reading(table).reading is not Reading.WHOLE
        chain = ruleset.chain(table, "KUBE-SERVICES")
        assert chain is not None
        assert chain.reading is not Reading.WHOLE
        assert chain.rule(len(chain) - 1).unread is not None


# --------------------------------------------------------------------------------------------------------- several


@pytest.mark.parametrize("name", ["two-ab", "two-ba"])
def test_two_nodes_in_one_text(name: str) -> None:
    text = (POSTED / "partial-text" / f"{name}.txt").read_text()
    found = posted(text)
    assert len(found.hosts) == 2
    read = sum(len(rules) for host in found.hosts for rules in rules_of(host.rulesets[0]).values())
    assert read == text.count("-A ")


def test_both_families_in_one_text_are_one_node() -> None:
    other = (DATA / "explain" / "1.36-node-b-ip6.txt").read_text()
    (host,) = posted(DUMP + other).hosts
    assert [(r.family, rules_of(r)) for r in host.rulesets] == [
        ("ip", WHOLE),
        ("ip6", rules_of(open_ruleset(other.encode(), source="6"))),
    ]


def test_the_other_back_end_was_not_read() -> None:
    (host,) = posted((POSTED / "missing" / "warn-legacy.txt").read_text()).hosts
    nft, legacy = host.rulesets
    assert (nft.backend, legacy.backend) == (Backend.NFT, Backend.LEGACY)
    assert legacy.reading("nat").lack is Lack.OTHER_BACKEND
    assert not has_chain(legacy, "nat", "KUBE-SERVICES")


# --------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "table", "reading", "lack"),
    [
        ("missing/natonly2", "nat", Reading.WHOLE, None),
        ("missing/natonly2", "filter", Reading.NOT_READ, Lack.OTHER_TABLES),
        ("missing/incompatible", "filter", Reading.NOT_READ, Lack.INCOMPATIBLE),
        ("missing/nat-fragment", "nat", Reading.PART, Lack.FRAGMENT),
        ("missing/filter-fragment", "filter", Reading.PART, Lack.FRAGMENT),
        ("misprints/dnat-misprint", "filter", Reading.NOT_READ, Lack.OTHER_TABLES),
        ("ports/hostport-only", "nat", Reading.WHOLE, None),
    ],
)
def test_what_was_read(name: str, table: str, reading: Reading, lack: Lack | None) -> None:
    ruleset = only((POSTED / f"{name}.txt").read_text())
    assert (ruleset.reading(table).reading, ruleset.reading(table).lack) == (reading, lack)
    if reading is Reading.NOT_READ:
        for chain in ("INPUT", "KUBE-PROXY-FIREWALL"):
            unread = ruleset.chain(table, chain)
            assert unread is not None
            assert [rule.unread is not None for rule in unread] == [True]
            assert not has_chain(ruleset, table, chain)


@pytest.mark.parametrize("name", ["dnat-misprint", "dnat-unsupported-revision"])
def test_a_destination_that_was_not_printed(name: str) -> None:
    chain = only((POSTED / "misprints" / f"{name}.txt").read_text()).chain("nat", "KUBE-SEP-QMCMBGFHIA5SIIUU")
    assert chain is not None
    assert [rule.error for rule in chain] == [None, None]
    assert [rule.lost for rule in chain] == [None, Lack.TARGETS_LOST]


def test_ports_that_were_not_printed() -> None:
    import re

    ruleset = only(re.sub(r"( -m (tcp|udp|sctp))? --dport \S+", "", DUMP))
    chain = ruleset.chain("nat", "KUBE-NODEPORTS")
    assert chain is not None
    assert {rule.lost for rule in chain} == {Lack.PORTS_LOST}


def test_the_policy_match_has_a_protocol_of_its_own() -> None:
    chain = only((POSTED / "misprints" / "policy-proto.txt").read_text()).chain("filter", "FORWARD")
    assert chain is not None
    for rule in chain:
        policy = next(m for m in rule.matches if m.name == "policy")
        assert policy.option("--proto") is not None
        assert not any(m.option("-p") for m in rule.matches if not m.name)


@given(st.data())
def test_any_subset_of_lines_is_told_from_the_whole(data: st.DataObject) -> None:
    lines = DUMP.splitlines()
    seed = data.draw(st.integers(min_value=0, max_value=2**32))
    share = data.draw(st.sampled_from((0.02, 0.2, 0.8, 0.99)))
    chosen = random.Random(seed)
    kept = [line for line in lines if chosen.random() < share]
    found = posted("\n".join(kept))
    tables = {table for host in found.hosts for r in host.rulesets for table in r.tables()}
    read = [
        (key, rule)
        for host in found.hosts
        for r in host.rulesets
        for key, rs in rules_of(r).items()
        for rule in rs
    ]
    known = {rule for rules in WHOLE.values() for rule in rules}
    assert all(rule in known for _, rule in read)
    # No rule that was kept is dropped in silence.
    assert len(read) + len(found.unparsed) >= sum("-A " in line for line in kept)
    lost = {line.split()[line.split().index("-A") + 1] for line in set(lines) - set(kept) if "-A " in line}
    if lost and tables and any("-A " in line for line in kept) and not _headed(kept):
        lacks = {r.reading(t).lack for host in found.hosts for r in host.rulesets for t in r.tables()}
        assert lacks - {None}


def _headed(lines: list[str]) -> bool:
    """Whether a reader can believe to see whole tables: nothing tells that lines between are gone."""
    return all(any(line.startswith(f"*{table}") for line in lines) for table in ("nat", "filter"))


def test_what_it_was_taken_for_is_one_line() -> None:
    assert taken_for(posted(DUMP)) == ""
    text = "> -A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-EXT-A\n> what?\n"
    assert taken_for(posted(text)) == (
        "taken for rules of iptables-save without their tables' names (quoted); 1 line not understood (2)"
    )


def test_filter_alone_of_a_node_in_ipvs_mode_lacks_nat() -> None:
    """There filter has no chain of the name KUBE-SERVICES; without nat nobody knows what is masqueraded."""
    folder = Path(__file__).resolve().parents[2] / "data" / "cases" / "ipvs-1.36-legacy"
    whole = (folder / "nodes/node-b/iptables-legacy-save.txt").read_text()
    start = whole.index("*filter")
    alone = whole[start : whole.index("COMMIT\n", start) + len("COMMIT\n")]
    ruleset = open_ruleset(alone.encode(), source="filter alone")
    assert ruleset.reading("nat").reading is Reading.NOT_READ
    assert not ruleset.reading("nat").assumed
    assert open_ruleset(whole.encode(), source="whole").reading("nat").reading is Reading.WHOLE
