"""Rules read chain by chain: what is followed, what is left out, and that the node does not notice."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.collect.children import run_child
from ktp.collect.machine import CommandResult, Commands, LocalRunner
from ktp.collect.nf_tables import ChainSize, NfTables
from ktp.collect.nft_chains import (
    FIRST_CHAINS,
    HUGE_CHAIN,
    LARGE_SERVICES,
    PARTIAL_MARK,
    UNREAD_SERVICES,
    ChainReader,
    Destination,
    Reach,
    foreign_hooks,
    read_reachable,
    service_destinations,
)
from ktp.collect.remote_script import Conversation, RecordedRunner, Recording, build_script, parse_stream
from ktp.model.capture import EvidenceGap, MemoryCapture
from ktp.parse.iptables_save import open_ruleset, parse_rule

DATA = Path(__file__).resolve().parents[2] / "data"
DUMP = """*nat
:PREROUTING ACCEPT [7:420]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-EXT-A - [0:0]
:KUBE-EXT-B - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SVC-B - [0:0]
:LATE - [0:0]
:ODD - [0:0]
[7:420] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[0:0] -A OUTPUT -j KUBE-SERVICES
[0:0] -A POSTROUTING -d 10.9.9.9/32 -p tcp -m tcp --dport 999 -j LATE
[1:60] -A KUBE-EXT-A -j KUBE-SVC-A
[0:0] -A KUBE-EXT-B -j KUBE-SVC-B
[1:60] -A KUBE-NODEPORTS -p tcp -m comment --comment "test/a -c 1 2 -j X" -m tcp --dport 31000 -j KUBE-EXT-A
[0:0] -A KUBE-NODEPORTS -p tcp -m comment --comment "test/b" -m tcp --dport 31001 -j KUBE-EXT-B
[0:0] -A KUBE-NODEPORTS -p udp -m udp --dport 31000 -j KUBE-EXT-B
[0:0] -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment "x --dport 31000 y" -m tcp --dport 80 -j KUBE-SVC-A
[0:0] -A KUBE-SERVICES -d 10.96.0.2/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-B
[0:0] -A KUBE-SERVICES ! -d 10.96.0.3/32 -p tcp -m tcp ! --dport 81 -j ODD
[7:420] -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
[0:0] -A LATE -j LOG --log-prefix "a -c 3 4 -j B "
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:BY-PORT - [0:0]
[0:0] -A FORWARD -p tcp -m tcp --dport 4444 -j BY-PORT
COMMIT
"""


def collect_reachable(runner: Commands, node: str, reach: Reach) -> MemoryCapture:
    """What is read of a node chain by chain: of each family that has tables a file."""
    found: dict[str, bytes] = {}
    gaps: list[EvidenceGap] = []
    for command in filter(runner.has_command, ("iptables-nft", "ip6tables-nft")):
        text, family_gaps = read_reachable(ChainReader(runner, command), node, reach)
        gaps += family_gaps
        if text is not None:
            found[f"nodes/{node}/{command}-save.txt"] = text
    return MemoryCapture(files=found, gaps=tuple(gaps), source=f"node {node} (chain by chain)")


class DumpRunner:
    """A node made of a dump: `iptables-nft -t T -S CHAIN -v` answers from it as iptables does."""

    def __init__(
        self, dump: str, *, version: str = "1.8.9", family: str = "ip", has_nft: bool = True
    ) -> None:
        self.family, self.version, self.has_nft = family, version, has_nft
        self.ran: list[str] = []
        self.vanish: dict[str, int] = {}
        self.chains: dict[tuple[str, str], list[str]] = {}
        table = ""
        for line in dump.splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":"):
                name, policy, counters = line[1:].split()
                packets, size = counters.strip("[]").split(":")
                head = f"-N {name}" if policy == "-" else f"-P {name} {policy} -c {packets} {size}"
                self.chains[table, name] = [head]
            elif line.startswith("["):
                counters, _, rule = line.partition(" ")
                self.chains[table, rule.split()[1]].append(
                    with_counters(rule, counters.strip("[]").replace(":", " "))
                )

    def run(self, command: Sequence[str], *, timeout: float) -> CommandResult:
        line = " ".join(command)
        self.ran.append(line)
        if line == "nft list flowtables":
            tables = dict.fromkeys(table for table, _ in self.chains)
            return answer("".join(f"table {self.family} {table} {{\n}}\n" for table in tables))
        if line.startswith("nft list chains"):
            out = ""
            for table in dict.fromkeys(table for table, _ in self.chains):
                out += f"table {self.family} {table} {{\n"
                for (where, name), lines in self.chains.items():
                    if where == table:
                        hook = "\t\ttype nat hook x priority 0;\n" if lines[0].startswith("-P") else ""
                        out += f"\tchain {name} {{\n{hook}\t}}\n"
                out += "}\n"
            return answer(out)
        if command[-1] == "--version":
            return answer(f"iptables v{self.version} (nf_tables)\n")
        table, chain = command[2], command[4]
        if self.vanish.get(chain, 0) > 0:
            self.vanish[chain] -= 1
        elif (table, chain) in self.chains:
            return answer("\n".join(self.chains[table, chain]) + "\n")
        said = f"{command[0]} v1.8.9 (nf_tables): chain `{chain}' in table `{table}' is incompatible, use 'nft' tool."
        return CommandResult(status=1, stderr=said.encode())

    def has_command(self, name: str) -> bool:
        return name.startswith("iptables-nft") or (name == "nft" and self.has_nft)

    def read_file(self, path: str) -> bytes:
        raise FileNotFoundError(2, path)

    def list_folder(self, path: str) -> list[str]:
        return []

    def exists(self, path: str) -> bool:
        return True

    def hostnames(self) -> tuple[str, ...]:
        return ()

    def is_root(self) -> bool:
        return True


def answer(text: str) -> CommandResult:
    return CommandResult(status=0, stdout=text.encode("utf-8", "surrogateescape"))


def with_counters(rule: str, counters: str) -> str:
    """Where iptables -S -v puts them: before the target, which is the last -j that is not in quotes."""
    parsed = parse_rule("", "", rule)
    if parsed.target is None:
        return f"{rule} -c {counters}"
    flag = f" -{'g' if parsed.target.goto else 'j'} {parsed.target.name}"
    at = rule.rindex(flag) if not parsed.target.options else rule.index(flag)
    return f"{rule[:at]} -c {counters}{rule[at:]}"


def read(runner: DumpRunner, *destinations: Destination, chains: tuple[tuple[str, str], ...] = ()) -> str:
    text, gaps = read_reachable(ChainReader(runner), "n", Reach(destinations=destinations, chains=chains))
    assert gaps == []
    assert text is not None
    return text.decode("utf-8", "surrogateescape")


def chains_in(text: str) -> set[str]:
    return {line[1:].split()[0] for line in text.splitlines() if line.startswith(":")}


# ------------------------------------------------------------------------------------------------ what is followed

BASE = {
    "PREROUTING",
    "INPUT",
    "OUTPUT",
    "POSTROUTING",
    "FORWARD",
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "LATE",
    "BY-PORT",
}


@pytest.mark.parametrize(
    ("destination", "followed"),
    [
        (Destination(protocol="tcp", port=31000), {"KUBE-EXT-A", "KUBE-SVC-A"}),
        (Destination(protocol="tcp", port=31001), {"KUBE-EXT-B", "KUBE-SVC-B"}),
        (Destination(protocol="udp", port=31000), {"KUBE-EXT-B", "KUBE-SVC-B"}),
        (Destination(protocol="tcp", port=80, addresses=frozenset({"10.96.0.1"})), {"KUBE-SVC-A"}),
        (Destination(protocol="tcp", port=80), {"KUBE-SVC-A", "KUBE-SVC-B"}),
        (Destination(addresses=frozenset({"10.96.0.2"})), {"KUBE-SVC-B", "KUBE-EXT-A", "KUBE-EXT-B", "KUBE-SVC-A"}),
        (Destination(), {"KUBE-EXT-A", "KUBE-EXT-B", "KUBE-SVC-A", "KUBE-SVC-B"}),
        (Destination(protocol="tcp", port=5), set()),
    ],
)  # fmt: skip
def test_jumps_that_the_question_may_meet_are_followed(destination: Destination, followed: set[str]) -> None:
    """Everywhere but before the first translation all jumps are (LATE, BY-PORT), and negated ones are (ODD)."""
    odd = {"ODD"} if destination.protocol != "udp" else set()
    assert chains_in(read(DumpRunner(DUMP), destination)) == BASE | followed | odd


def test_the_dump_is_as_iptables_save_would_print_it() -> None:
    text = read(DumpRunner(DUMP), Destination())
    lines = text.splitlines()
    assert lines[0] == PARTIAL_MARK
    nat = DUMP[: DUMP.index("*filter")]
    assert "\n".join(lines[1 : nat.count("\n") + 1]) + "\n" == nat
    assert sorted(lines[1:]) == sorted(DUMP.splitlines())


def test_named_chains_are_read_whether_or_not_anything_leads_there() -> None:
    orphan = DUMP.replace(":LATE -", ":KUBE-SVC-OLD - [0:0]\n:LATE -")
    text = read(
        DumpRunner(orphan),
        Destination(port=5),
        chains=(("nat", "KUBE-SVC-OLD"), ("nat", "KUBE-SVC-GONE"), ("raw", "X")),
    )
    assert chains_in(text) == BASE | {"ODD", "KUBE-SVC-OLD"}


def test_an_address_in_another_spelling_is_the_same() -> None:
    dump = "*nat\n:PREROUTING ACCEPT [0:0]\n:A - [0:0]\n[0:0] -A PREROUTING -d fd00::1/128 -j A\nCOMMIT\n"
    assert "A" in chains_in(read(DumpRunner(dump), Destination(addresses=frozenset({"fd00:0:0::1"}))))
    assert "A" not in chains_in(read(DumpRunner(dump), Destination(addresses=frozenset({"fd00::2"}))))


@given(st.text(alphabet='ab"\\ -cj01', max_size=20))
def test_what_a_comment_says_decides_nothing(comment: str) -> None:
    quoted = comment.replace("\\", "\\\\").replace('"', '\\"')
    for text in (quoted, quoted + " --dport 9 ", "! -d 1.1.1.1/32 " + quoted, " -c 9 9 -j X " + quoted):
        rule = f'-A PREROUTING -p tcp -m comment --comment "{text}" -m tcp --dport 80'
        dump = f"*nat\n:PREROUTING ACCEPT [0:0]\n:A - [0:0]\n[3:4] {rule} -j A\nCOMMIT\n"
        runner = DumpRunner("*nat\n:PREROUTING ACCEPT [0:0]\n:A - [0:0]\nCOMMIT\n")
        runner.chains["nat", "PREROUTING"].append(f"{rule} -c 3 4 -j A")
        found = read(runner, Destination(protocol="tcp", port=80))
        assert "A" in chains_in(found)
        assert found == f"{PARTIAL_MARK}\n{dump}"
        assert "A" not in chains_in(read(runner, Destination(protocol="tcp", port=81)))


# ------------------------------------------------------------------------------------------------- changes


@pytest.mark.parametrize("times", [1, 2])
def test_a_chain_that_vanishes_means_reading_again(times: int) -> None:
    runner = DumpRunner(DUMP)
    runner.vanish["KUBE-SVC-A"] = 1
    if times == 2:
        runner.vanish["KUBE-EXT-A"] = 1
    assert {"KUBE-EXT-A", "KUBE-SVC-A"} <= chains_in(read(runner, Destination(protocol="tcp", port=31000)))


def test_a_target_that_is_no_chain_is_asked_for_twice_and_then_known() -> None:
    dump = "*nat\n:PREROUTING ACCEPT [0:0]\n[0:0] -A PREROUTING -j NEWTARGET\nCOMMIT\n"
    runner = DumpRunner(dump)
    assert chains_in(read(runner, Destination())) == {"PREROUTING"}
    assert sum("NEWTARGET" in line for line in runner.ran) == 2


def told(node: DumpRunner, reach: Reach) -> tuple[Recording, list[list[str]]]:
    """What a shell far away prints, and the chains that it is told to print, wave by wave."""
    script = build_script(sudo=False, reach=reach, command_timeout=5)
    talk = Conversation("n", script, reach)

    def framed(*commands: Sequence[str], facts: dict[str, str] | None = None) -> bytes:
        found = [(what, answer(text)) for what, text in (facts or {}).items()]
        found += [(f"command {' '.join(words)}", node.run(words, timeout=5)) for words in commands]
        return b"".join(
            b"\n%b begin %b\n%b\n%b end %d\n%b\n%b done\n"
            % (mark, what.encode(), one.stdout, mark, one.status or 0, one.stderr, mark)
            for what, one in found
        )

    mark, waiting = script.mark.encode(), f"\n{script.mark} waiting\n".encode()
    said = framed(
        ("nft", "list", "flowtables"),
        ("nft", "list", "chains", "ip"),
        ("iptables-nft", "--version"),
        *(
            ("iptables-nft", "-t", table, "-S", chain, "-v")
            for table, chain in FIRST_CHAINS
            if table == "nat"
        ),
        facts={"commands": "nft iptables-nft", "searched": "iptables-nft"},
    )
    stream, waves = said, []
    more = talk.answer(said + waiting)
    while b"exit" not in more:
        lines = [shlex.split(line)[1:] for line in more.decode().splitlines() if line.startswith("root ")]
        waves.append([words[4] for words in lines])
        said = framed(*lines)
        stream += said
        # A line that arrives in pieces is one line.
        assert talk.answer(said + waiting[:-1]) == b""
        more = talk.answer(waiting[-1:])
    return parse_stream(stream + f"\n{script.mark} complete\n".encode(), script.mark), waves


def test_a_node_far_away_is_asked_once_a_wave() -> None:
    nat = DUMP.partition("*filter")[0]
    reach = Reach(destinations=(Destination(protocol="tcp", port=31000),), chains=(("nat", "KUBE-SVC-B"),))
    recording, waves = told(DumpRunner(nat), reach)
    assert waves == [["KUBE-SVC-B", "LATE", "ODD", "KUBE-EXT-A"], ["KUBE-SVC-A"]]
    far = read_reachable(ChainReader(RecordedRunner(recording)), "n", reach)
    assert far == read_reachable(ChainReader(DumpRunner(nat)), "n", reach)


def test_a_chain_that_vanishes_far_away_means_asking_again() -> None:
    node = DumpRunner(DUMP.partition("*filter")[0])
    node.vanish["KUBE-SVC-A"] = 1
    reach = Reach(destinations=(Destination(protocol="tcp", port=31000),))
    recording, waves = told(node, reach)
    assert waves[:2] == [["LATE", "ODD", "KUBE-EXT-A"], ["KUBE-SVC-A"]]
    assert "KUBE-SERVICES" in waves[2]
    assert waves[3:] == waves[:2]
    text, gaps = read_reachable(ChainReader(RecordedRunner(recording)), "n", reach)
    assert gaps == []
    assert b"KUBE-SVC-A " in (text or b"")


def test_rules_that_never_rest_are_a_gap() -> None:
    dump = "*nat\n:PREROUTING ACCEPT [0:0]\n[0:0] -A PREROUTING -j GONE0\nCOMMIT\n"
    runner = DumpRunner(dump)
    plain = runner.run

    def changing(command: Sequence[str], *, timeout: float) -> CommandResult:
        if command[-2] == "PREROUTING":
            runner.chains["nat", "PREROUTING"][1] = f"-A PREROUTING -c 0 0 -j GONE{len(runner.ran)}"
        return plain(command, timeout=timeout)

    runner.run = changing  # type: ignore[method-assign]
    _, gaps = read_reachable(ChainReader(runner), "node-a", Reach(destinations=(Destination(),)))
    assert [gap.kind for gap in gaps] == ["node-rules"]
    assert "changed again and again" in gaps[0].message


def test_what_may_not_be_read_is_a_gap() -> None:
    runner = DumpRunner(DUMP)
    runner.run = lambda command, *, timeout: CommandResult(  # type: ignore[method-assign]
        status=0 if "list" in command or "--version" in command else 4,
        stdout=b"table ip nat {\n}\n" if "list" in command else b"iptables v1.8.9",
        stderr=b"Could not fetch rule set generation id: Permission denied (you must be root)\n",
    )
    text, gaps = read_reachable(ChainReader(runner), "node-a", Reach(destinations=()))
    assert text is None
    assert (
        "failed: Could not fetch rule set generation id: Permission denied (you must be root) on node node-a"
        in gaps[0].message
    )


# ---------------------------------------------------------------------------------------- what asking could change


@pytest.mark.parametrize(
    ("version", "dump", "tables"),
    [
        ("1.8.9", DUMP, ("nat", "filter")),
        ("1.10.0", DUMP, ("nat", "filter")),
        # Before 1.8.8 a listing makes the base chains that a table lacks; where it lacks none, it may be asked.
        ("1.8.7", DUMP, ("nat", "filter")),
        ("1.8.7", DUMP.replace(":INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING", ":OUTPUT ACCEPT [0:0]\n:POSTROUTING"), None),
        ("1.8.7", "", ()),
    ],
)  # fmt: skip
def test_only_tables_are_asked_that_asking_does_not_make(
    version: str, dump: str, tables: tuple[str, ...] | None
) -> None:
    assert ChainReader(DumpRunner(dump, version=version)).tables() == tables


@pytest.mark.parametrize(("version", "known"), [("1.8.9", True), ("1.8.7", False)])
def test_without_nft_a_new_iptables_is_asked_for_all_tables(version: str, known: bool) -> None:
    tables = ChainReader(DumpRunner(DUMP, version=version, has_nft=False)).tables()
    assert tables == (("raw", "mangle", "nat", "filter", "security") if known else None)


def test_a_base_chain_of_others_in_a_table_of_iptables_is_seen() -> None:
    listed = (
        b"table ip filter {\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n"
        b"\tchain mine {\n\t}\n}\ntable ip nat {\n\tchain early {\n\t\ttype nat hook prerouting priority -150;\n\t}\n}\n"
    )
    assert foreign_hooks(listed) == {("ip", "nat")}


# ------------------------------------------------------------------------------------------------------- the sizes


@pytest.mark.parametrize(("services", "large"), [(LARGE_SERVICES - 1, False), (LARGE_SERVICES, True)])
def test_a_node_is_large_by_its_services(services: int, large: bool) -> None:
    rules = "".join(f"[0:0] -A KUBE-SERVICES -p tcp -m tcp --dport {n} -j ACCEPT\n" for n in range(services))
    dump = f"*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n{rules}COMMIT\n"
    assert ChainReader(DumpRunner(dump)).is_large() == large


def test_a_node_is_large_by_its_chains() -> None:
    chains = "".join(f":C{n} - [0:0]\n" for n in range(4000))
    assert ChainReader(DumpRunner(f"*nat\n:PREROUTING ACCEPT [0:0]\n{chains}COMMIT\n")).is_large()


# ---------------------------------------------------------------------------------- what the kernel itself can tell


class Kernel:
    """nf_tables of a `DumpRunner`'s node; `generations` are told one after the other, the last for ever."""

    def __init__(self, node: DumpRunner, *generations: int, more: dict[str, int] | None = None) -> None:
        self.node = node
        self.generations = list(generations or (1,))
        self.more = more or {}

    def generation(self) -> int:
        return self.generations.pop(0) if len(self.generations) > 1 else self.generations[0]

    def tables(self) -> dict[tuple[str, str], int]:
        found = [table for table, _ in self.node.chains]
        return {(self.node.family, table): found.count(table) for table in found}

    def chain(self, family: str, table: str, name: str) -> ChainSize | None:
        lines = self.node.chains.get((table, name)) if family == self.node.family else None
        if lines is None:
            return None
        jumps = sum(line.endswith(f" -j {name}") for each in self.node.chains.values() for line in each)
        policy = lines[0].split()[2] if lines[0].startswith("-P") else None
        return ChainSize(len(lines) - 1 + jumps + self.more.get(name, 0), policy, (0, 0) if policy else None)


def as_kernel(kernel: Kernel) -> NfTables:
    return cast(NfTables, kernel)


def test_with_the_kernel_asked_the_same_is_read() -> None:
    reach = Reach(destinations=(Destination(protocol="tcp", port=31000),))
    plain, asked = DumpRunner(DUMP), DumpRunner(DUMP)
    alone, _ = read_reachable(ChainReader(plain), "n", reach)
    helped, gaps = read_reachable(ChainReader(asked, kernel=as_kernel(Kernel(asked))), "n", reach)
    assert helped == alone
    assert gaps == []
    # A base chain without a rule is known without a command, and so are the tables.
    assert "iptables-nft -t nat -S INPUT -v" in plain.ran
    assert "iptables-nft -t nat -S INPUT -v" not in asked.ran
    assert "nft list flowtables" not in asked.ran


@pytest.mark.parametrize(
    ("generations", "rounds", "told"),
    [((1,), 1, False), ((1, 2, 2), 2, False), ((1, 2, 3, 4, 4), 3, False), ((1, 2, 3, 4, 5, 6), 3, True)],
    ids=["quiet", "one change", "two changes", "never quiet"],
)
def test_a_ruleset_that_changes_meanwhile_is_read_again(
    generations: tuple[int, ...], rounds: int, told: bool
) -> None:
    node = DumpRunner(DUMP)
    kernel = as_kernel(Kernel(node, *generations))
    _, gaps = read_reachable(ChainReader(node, kernel=kernel), "n", Reach(destinations=(Destination(),)))
    assert node.ran.count("iptables-nft -t nat -S KUBE-NODEPORTS -v") == rounds
    assert ["changed again and again" in gap.message for gap in gaps] == ([True] if told else [])


def test_with_the_kernel_asked_a_target_that_is_no_chain_is_read_once() -> None:
    node = DumpRunner(DUMP.replace("-j ODD", "-j UNHEARDOF"))
    _, gaps = read_reachable(
        ChainReader(node, kernel=as_kernel(Kernel(node))), "n", Reach(destinations=(Destination(),))
    )
    assert node.ran.count("iptables-nft -t nat -S UNHEARDOF -v") == 1
    assert gaps == []


def test_a_kernel_that_no_longer_answers_is_a_gap() -> None:
    class Gone(Kernel):
        def generation(self) -> int:
            raise OSError(1, "Operation not permitted")

    node = DumpRunner(DUMP)
    text, gaps = read_reachable(
        ChainReader(node, kernel=as_kernel(Gone(node))), "n", Reach(destinations=(Destination(),))
    )
    assert text is None
    assert "Operation not permitted" in gaps[0].message


PORT = Reach(destinations=(Destination(protocol="tcp", port=31000),), assume_services=True)


def test_a_huge_kube_services_is_taken_for_granted_and_said() -> None:
    node = DumpRunner(DUMP)
    kernel = as_kernel(Kernel(node, more={"KUBE-SERVICES": HUGE_CHAIN}))
    text, gaps = read_reachable(ChainReader(node, kernel=kernel), "n", PORT)
    assert text is not None
    assert "iptables-nft -t nat -S KUBE-SERVICES -v" not in node.ran
    rules = [line for line in text.decode().splitlines() if line.startswith("-A KUBE-SERVICES")]
    assert len(rules) == 1
    assert "taken for granted by ktp" in rules[0]
    assert "-j KUBE-EXT-A" in text.decode()
    assert [gap.kind for gap in gaps] == [UNREAD_SERVICES]
    assert "is taken for granted" in gaps[0].message


@pytest.mark.parametrize(
    ("dump", "reach", "more"),
    [
        pytest.param(DUMP, PORT, 0, id="it is not huge"),
        pytest.param(DUMP, replace(PORT, assume_services=False), HUGE_CHAIN, id="it is not asked for"),
        pytest.param(
            DUMP.replace("-j KUBE-NODEPORTS", "-j RETURN"),
            PORT,
            HUGE_CHAIN,
            id="nothing leads to KUBE-NODEPORTS",
        ),
        pytest.param(
            "\n".join(line for line in DUMP.splitlines() if "KUBE-NODEPORTS" not in line) + "\n",
            PORT,
            HUGE_CHAIN,
            id="there are no node ports",
        ),
    ],
)
def test_kube_services_is_read_where(dump: str, reach: Reach, more: int) -> None:
    node = DumpRunner(dump)
    kernel = as_kernel(Kernel(node, more={"KUBE-SERVICES": more}))
    text, gaps = read_reachable(ChainReader(node, kernel=kernel), "n", reach)
    assert text is not None
    assert "iptables-nft -t nat -S KUBE-SERVICES -v" in node.ran
    assert b"taken for granted" not in text
    assert gaps == []


# --------------------------------------------------------------------------------------------- what a Service reaches


def test_the_destinations_of_a_service() -> None:
    capture = MemoryCapture(
        files={
            "cluster/services.json": b"""{"items": [{"spec": {"clusterIPs": ["10.96.0.1", "fd00::1"],
                "clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.7"], "healthCheckNodePort": 32000,
                "ports": [{"port": 80, "nodePort": 31000}, {"port": 53, "protocol": "UDP"}]},
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}, {"hostname": "x"}]}}}]}""",
            "cluster/endpointslices.json": b"""{"items": [{"ports": [{"port": 8080}],
                "endpoints": [{"addresses": ["10.244.0.5"]}, {"addresses": ["10.244.0.6"]}]}]}""",
            "cluster/endpoints.json": b'{"items": [{"subsets": null}, 3]}',
        }
    )
    front = frozenset({"10.96.0.1", "fd00::1", "192.0.2.7", "192.0.2.8"})
    assert set(service_destinations(capture)) == {
        Destination(protocol="tcp", port=31000),
        Destination(protocol="tcp", port=80, addresses=front),
        Destination(protocol="udp", port=53, addresses=front),
        Destination(protocol="tcp", port=32000),
        Destination(protocol="tcp", port=8080, addresses=frozenset({"10.244.0.5", "10.244.0.6"})),
    }


# ------------------------------------------------------------------------------------------------------ recorded


@pytest.mark.parametrize(
    "dump",
    sorted(DATA.glob("*/core-*nft*/nodes/*/iptables-nft-save.txt")),
    ids=lambda path: "/".join(path.parts[-4:-1:2]),
)
def test_every_chain_of_a_recorded_node_is_as_in_its_dump(dump: Path) -> None:
    text = dump.read_text()
    whole = open_ruleset(text.encode(), source="whole")
    part = open_ruleset(read(DumpRunner(text), Destination()).encode(), source="part")
    for table in part.tables():
        for name in part.chain_names(table):
            ours, theirs = part.chain(table, name), whole.chain(table, name)
            assert ours is not None
            assert theirs is not None
            assert ours.policy == theirs.policy
            assert [rule.text for rule in ours] == [rule.text for rule in theirs]


# ------------------------------------------------------------------------------------------------------ the kernel


@pytest.fixture
def large_netns(make_netns: Callable[[str], str]) -> str:
    """A namespace with more Services than are read whole."""
    netns = make_netns("large")
    services, nodeports, chains = [], [], []
    for n in range(LARGE_SERVICES + 50):
        chains += [f":KUBE-EXT-{n} - [0:0]", f":KUBE-SVC-{n} - [0:0]"]
        services.append(
            f"-A KUBE-SERVICES -d 10.96.{n >> 8}.{n & 255}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{n}"
        )
        nodeports.append(
            f'-A KUBE-NODEPORTS -p tcp -m comment --comment "ns/s-{n}:http" -m tcp --dport {30000 + n} -j KUBE-EXT-{n}'
        )
        services.append(f"-A KUBE-EXT-{n} -j KUBE-SVC-{n}")
        services.append(f"-A KUBE-SVC-{n} -p tcp -j DNAT --to-destination 10.244.0.{n & 255}:8080")
    rules = "\n".join(
        [
            "*nat", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", ":KUBE-SERVICES - [0:0]", ":KUBE-NODEPORTS - [0:0]",
            *chains, "-A PREROUTING -j KUBE-SERVICES", *services, *nodeports,
            "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS", "COMMIT", "",
        ]
    )  # fmt: skip
    subprocess.run(["ip", "netns", "exec", netns, "iptables-nft-restore"], input=rules.encode(), check=True)
    return netns


class NetnsRunner(LocalRunner):
    """This machine in another network namespace, for the commands that look at it."""

    def __init__(self, netns: str) -> None:
        super().__init__()
        self.netns = netns
        self.ran: list[str] = []

    def run(self, command: Sequence[str], *, timeout: float) -> CommandResult:
        self.ran.append(" ".join(command))
        return super().run(("ip", "netns", "exec", self.netns, *command), timeout=timeout)


def inside(netns: str, *command: str, stdin: bytes = b"") -> str:
    return subprocess.run(
        ["ip", "netns", "exec", netns, *command], input=stdin, capture_output=True, check=True
    ).stdout.decode()


@pytest.mark.kernel
def test_a_large_node_is_read_chain_by_chain_and_left_as_it_is(large_netns: str) -> None:
    before = inside(large_netns, "nft", "list", "ruleset")
    runner = NetnsRunner(large_netns)
    reach = Reach(
        destinations=(Destination(protocol="tcp", port=30007),),
        chains=(("nat", "KUBE-SVC-9"), ("nat", "NONE")),
    )
    assert ChainReader(runner).is_large()
    started = time.monotonic()
    capture = collect_reachable(runner, "n", reach)
    assert time.monotonic() - started < 30
    text = capture.read("nodes/n/iptables-nft-save.txt").decode()
    assert capture.gaps == ()
    assert {name for name in chains_in(text) if name[-1].isdigit()} == {
        "KUBE-EXT-7",
        "KUBE-SVC-7",
        "KUBE-SVC-9",
    }
    whole = open_ruleset(inside(large_netns, "iptables-nft-save", "-c").encode(), source="whole")
    part = open_ruleset(text.encode(), source="part")
    for name in part.chain_names("nat"):
        ours, theirs = part.chain("nat", name), whole.chain("nat", name)
        if theirs is not None:  # iptables lists base chains that are not there
            assert ours is not None
            assert list(ours.raw_lines()) == list(theirs.raw_lines())
    assert inside(large_netns, "nft", "list", "ruleset") == before


@pytest.mark.kernel
@pytest.mark.parametrize("shell", ["dash", "bash --posix", "sh"])
def test_the_script_for_a_node_far_away_reads_the_same_chains(large_netns: str, shell: str) -> None:
    reach = Reach(
        destinations=(Destination(protocol="tcp", port=30007), Destination(protocol="tcp", port=80, addresses=frozenset({"10.96.0.3"}))),
        chains=(("nat", "KUBE-SVC-9"), ("nat", "NONE")),
    )  # fmt: skip
    script = build_script(sudo=False, reach=reach, command_timeout=30)
    command = ("ip", "netns", "exec", large_netns, *shell.split(), "-s")
    answer = Conversation("n", script, reach).answer
    recording = parse_stream(
        run_child(command, timeout=60, stdin=script.text, answer=answer).stdout, script.mark
    )
    assert recording.complete
    assert not [line for line in recording.commands if "save" in line and line.startswith("iptables")]
    far = collect_reachable(RecordedRunner(recording), "n", reach)
    near = collect_reachable(NetnsRunner(large_netns), "n", reach)
    assert far.gaps == near.gaps == ()
    assert far.read("nodes/n/iptables-nft-save.txt") == near.read("nodes/n/iptables-nft-save.txt")
    assert b"KUBE-SVC-3 " in near.read("nodes/n/iptables-nft-save.txt")
