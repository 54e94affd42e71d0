"""iptables rules in nf_tables read chain by chain: only those that the asked packets can meet.

`iptables-nft-save` takes time quadratic in the number of chains (24 s for 180,000 rules), while
`iptables-nft -t TABLE -S CHAIN` answers in milliseconds whatever else there is. So the walk begins at the base
chains and follows every jump but those that name another exact destination than the asked ones.

What is left out is certain: only in the chains that nat/PREROUTING and nat/OUTPUT lead to, where a connection's
first packet still has the destination it was sent to, and only by `-d` with a whole address, `--dport` with one
port and `-p`. Everywhere else (replies, translated packets) all jumps are followed. A chain is kept whole, unless
it is very long; then a comment counts the rules that are left out of it.

The reads are not one transaction: a chain that is gone when its turn comes means that the rules were changed, and so
does another generation of the ruleset at the end than at the beginning, where the kernel can be asked for it. Then
everything is read again.

What an answer costs is the length of the chains that are read: the kernel lists a chain in time quadratic in its
rules (nf_tables_dump_rules goes through what it has told already for every 32 kB that it tells), 0.1 s for 6,000 and
5 s for 60,000.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ktp.collect.objects import items_of
from ktp.collect.parallel import run_in_parallel
from ktp.model.capture import Capture, EvidenceGap
from ktp.model.record import dataclass
from ktp.model.ruleset import BASE_CHAINS

if TYPE_CHECKING:
    from ktp.collect.machine import Commands
    from ktp.collect.nf_tables import NfTables

PARTIAL_MARK = "# ktp: only the chains that the question can reach"
# The kind of gap where `Reach.assume_services` left a chain unread.
UNREAD_SERVICES = "rules-not-read"
# A node is read chain by chain from so many Services or chains on; below, the whole dump takes no time.
LARGE_SERVICES = 1000
LARGE_CHAINS = 4000
# Of a longer chain, what certainly matches no asked packet is left out: KUBE-SERVICES of 50,000 Services is 9 MB.
LARGE_CHAIN = 10_000
# A longer KUBE-SERVICES takes the kernel half a second and more to list.
HUGE_CHAIN = 20_000
CHAIN_TIMEOUT = 30.0
MAX_ROUNDS = 3
WORKERS = 4
_PAUSE = 0.2

# Chains (table, name) that are read at one go.
Wave: TypeAlias = Sequence[tuple[str, str]]
# Yields each wave before it is read, and returns the dump and the gaps.
Search: TypeAlias = "Generator[Wave, None, tuple[bytes | None, list[EvidenceGap]]]"
_UNTRANSLATED = frozenset({("nat", "PREROUTING"), ("nat", "OUTPUT")})
# What every question reaches: what kube-proxy's base chains lead to for every packet, the long ones first, and these.
FIRST_CHAINS = (
    ("nat", "KUBE-SERVICES"),
    ("nat", "KUBE-NODEPORTS"),
    ("filter", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "KUBE-SERVICES"),
    ("filter", "KUBE-PROXY-FIREWALL"),
    ("filter", "KUBE-NODEPORTS"),
    ("filter", "KUBE-FORWARD"),
    ("filter", "KUBE-FIREWALL"),
    ("nat", "KUBE-POSTROUTING"),
    ("nat", "KUBE-MARK-MASQ"),
    *((table, chain) for table, chains in BASE_CHAINS.items() for chain in chains),
)
# Targets that are no chains: the verdicts, the extensions of iptables 1.8, and common ones from elsewhere. A name
# that is not here is asked for as a chain, which costs milliseconds where there is none.
# fmt: off
TARGETS = frozenset({
    "ACCEPT", "DROP", "RETURN", "QUEUE", "AUDIT", "CHECKSUM", "CLASSIFY", "CLUSTERIP", "CONNMARK",
    "CONNSECMARK", "CT", "DNAT", "DNPT", "DSCP", "ECN", "HL", "HMARK", "IDLETIMER", "LED", "LOG", "MARK",
    "MASQUERADE", "NAT", "NETMAP", "NFLOG", "NFQUEUE", "NOTRACK", "RATEEST", "REDIRECT", "REJECT",
    "SECMARK", "SET", "SNAT", "SNPT", "SYNPROXY", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS", "TPROXY",
    "TRACE", "TTL", "ULOG", "MIRROR", "SAME", "ACCOUNT", "CHAOS", "DELUDE", "DHCPMAC", "DNETMAP", "ECHO",
    "FULLCONENAT", "IPMARK", "IPV4OPTSSTRIP", "LOGMARK", "NETFLOW", "PROTO", "RTPENGINE", "SYSRQ",
    "TARPIT",
})
# fmt: on

_JUMP = re.compile(r' -[jg] ([^\s"]+)$')
_MAX_JUMP = 300  # nf_tables' own limit for a name is 256 bytes
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_PORT = re.compile(r"(?<! !) --dport (\d+)(?= )")
_ADDRESS = re.compile(r"(?<! !) -d ([0-9a-fA-F.:]+)/(?:32|128)(?= )")
_PROTOCOL = re.compile(r"(?<! !) -p (tcp|udp|sctp)(?= )")
_COUNTERS = re.compile(r" -c (\d+) (\d+)(?= -[jg] |$)")
_POLICY = re.compile(r"-P (\S+) (\S+)(?: -c (\d+) (\d+))?")
_VERSION = re.compile(rb" v(\d+)\.(\d+)\.(\d+)")
# From 1.8.8 on, listing a base chain that is not there makes one up and not one in the kernel
# (nft_xt_fake_builtin_chains).
_LISTING_CREATES_NOTHING = (1, 8, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where an asked packet goes, as a rule may see it. None: any."""

    protocol: str | None = None
    port: int | None = None
    addresses: frozenset[str] | None = None

    def may_match(self, protocol: str | None, port: int | None, address: str | None) -> bool:
        """Whether a rule with these conditions (None: without one) can match packets to here."""
        return (
            (port is None or self.port is None or port == self.port)
            and (protocol is None or self.protocol is None or protocol == self.protocol)
            and (address is None or self.addresses is None or address in self.addresses)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a question can reach.

    `destinations` are all that its packets may have when they enter a node or leave one of its processes: front
    ends, and endpoints, which are the destination where another node has translated already. `chains` are
    (table, chain) that are wanted in any case; one that is not there is no fault.
    """

    destinations: tuple[Destination, ...]
    chains: tuple[tuple[str, str], ...] = ()
    # Whether to look for base chains of others within iptables' own tables: 0.3 s for 38,000 chains.
    look_for_foreign_hooks: bool = True
    # Whether a huge nat/KUBE-SERVICES may go unread, where all questions are for node ports.
    assume_services: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainText:
    """One chain as `iptables-nft -S CHAIN -v` prints it; `left_out` counts the rules that were dropped from it."""

    policy: str | None
    counters: tuple[int, int] | None
    raw: tuple[str, ...]
    left_out: int = 0

    def lines(self) -> list[str]:
        """The rules as `iptables-save -c` prints them."""
        return as_saved(self.raw)


class NotReadableError(Exception):
    """The rules cannot be read at all: not as this user, not in time; the sentence says which."""


class ChainReader:
    """Reads single chains of one address family (`command` is iptables-nft or ip6tables-nft) and keeps them.

    With `kernel`, which is nf_tables of the same node, it knows without a command what there is.
    """

    def __init__(
        self, runner: Commands, command: str = "iptables-nft", kernel: NfTables | None = None
    ) -> None:
        self.command = command
        self.family = "ip6" if command.startswith("ip6") else "ip"
        self._runner = runner
        self.kernel = kernel
        self._chains: dict[tuple[str, str], ChainText | None] = {}

    def read(self, table: str, chain: str) -> ChainText | None:
        """The chain, None if there is none (or none that iptables can print). Raises NotReadableError."""
        key = (table, chain)
        if key not in self._chains:
            self._chains[key] = self._ask(table, chain)
        return self._chains[key]

    def read_all(self, chains: Sequence[tuple[str, str]]) -> list[ChainText | None]:
        """Several chains, side by side."""
        return run_in_parallel([partial(self.read, *key) for key in chains], workers=WORKERS)

    def forget(self) -> None:
        """Read everything anew from here on."""
        self._chains = {}

    def tables(self) -> tuple[str, ...] | None:
        """The xtables tables there are; None where asking for a single chain might make one.

        Before 1.8.8, listing a chain makes whatever base chains its table lacks (nft_xt_builtin_init).
        """
        listed = set(self.kernel.tables()) if self.kernel is not None else list_nft_tables(self._runner)
        if listed is None:
            return tuple(BASE_CHAINS) if self._lists_without_making() else None
        tables = tuple(name for name in BASE_CHAINS if (self.family, name) in listed)
        return tables if self._has_base_chains(tables) or self._lists_without_making() else None

    def is_large(self) -> bool:
        """Whether the node has so many chains that the whole dump would take long, and single ones may be read."""
        tables = self.tables()
        if not tables:
            return False
        if self.kernel is not None:
            sizes = self.kernel.tables()
            services = self.kernel.chain(self.family, "nat", "KUBE-SERVICES")
            return (services is not None and services.use > LARGE_SERVICES) or any(
                sizes.get((self.family, table), 0) >= LARGE_CHAINS for table in tables
            )
        # In the order of the script for nodes far away, whose answers this may be asked of.
        if self._runner.has_command("nft") and len(self._chain_list()) >= LARGE_CHAINS:
            return True
        listed = self.read("nat", "KUBE-SERVICES") if "nat" in tables else None
        return listed is not None and len(listed.raw) >= LARGE_SERVICES

    def generation(self) -> int | None:
        """The number of the ruleset; None where the kernel cannot be asked."""
        return self.kernel.generation() if self.kernel is not None else None

    def has_read(self, table: str, chain: str) -> bool:
        """Whether the chain was asked for since the last `forget`."""
        return (table, chain) in self._chains

    def prefetch(self, tables: Sequence[str]) -> Iterator[Wave]:
        """Read what every question reaches, side by side and as one wave.

        The walk follows jump by jump, and would wait for each of the two long chains in turn.
        """
        wanted = []
        for table, chain in FIRST_CHAINS:
            if table not in tables or (table, chain) in self._chains:
                continue
            if self.kernel is not None:
                size = self.kernel.chain(self.family, table, chain)
                if size is None:
                    continue
                if size.use == 0 and size.policy is not None:
                    text = ChainText(policy=size.policy, counters=size.counters, raw=())
                    self._chains[table, chain] = text
                    continue
            wanted.append((table, chain))
        yield wanted
        self.read_all(wanted)

    def assume_services(self) -> int:
        """Leave a huge nat/KUBE-SERVICES unread, and say how many rules that are; 0 where it is to be read.

        In its place stands one rule, which says so in its comment. It is kube-proxy's last, and left to stand only
        where something in the table does lead to KUBE-NODEPORTS: the chain is used more often than it has rules.
        """
        if self.kernel is None:
            return 0
        services = self.kernel.chain(self.family, "nat", "KUBE-SERVICES")
        ports = self.kernel.chain(self.family, "nat", "KUBE-NODEPORTS")
        if services is None or ports is None or services.use <= HUGE_CHAIN:
            return 0
        listed = self.read("nat", "KUBE-NODEPORTS")
        if listed is None or ports.use <= len(listed.raw):
            return 0
        comment = f"taken for granted by ktp, which did not read some {services.use} rules of this chain"
        rule = f'-A KUBE-SERVICES -m comment --comment "{comment}" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS'
        self._chains["nat", "KUBE-SERVICES"] = ChainText(policy=None, counters=None, raw=(rule,))
        return services.use

    def _has_base_chains(self, tables: Sequence[str]) -> bool:
        """Whether no table lacks a base chain, as far as that can be told without making one."""
        wanted = {(table, chain) for table in tables for chain in BASE_CHAINS[table]}
        if self.kernel is not None:
            sizes = (self.kernel.chain(self.family, *key) for key in wanted)
            return all(size is not None and size.policy is not None for size in sizes)
        if self._lists_without_making():
            return True
        return wanted <= {(table, chain) for table, chain, is_base in self._chain_list() if is_base}

    def _lists_without_making(self) -> bool:
        version = _VERSION.search(self._runner.run((self.command, "--version"), timeout=CHAIN_TIMEOUT).stdout)
        return version is not None and tuple(map(int, version.groups())) >= _LISTING_CREATES_NOTHING

    def _chain_list(self) -> list[tuple[str, str, bool]]:
        listed = self._runner.run(("nft", "list", "chains", self.family), timeout=CHAIN_TIMEOUT)
        return list(_listed_chains(listed.stdout))

    def _ask(self, table: str, chain: str) -> ChainText | None:
        line = (self.command, "-t", table, "-S", chain, "-v")
        answer = self._runner.run(line, timeout=CHAIN_TIMEOUT)
        if answer.status is None:
            raise NotReadableError(f"`{' '.join(line)}` took longer than {CHAIN_TIMEOUT:g} s")
        if answer.status != 0:
            said = answer.stderr.decode(errors="replace").strip().partition("\n")[0].rstrip(".")[:200]
            if _is_missing(said):
                return None
            raise NotReadableError(f"`{' '.join(line)}` failed: {said or f'exit status {answer.status}'}")
        return _parse_listing(answer.stdout.decode("utf-8", "surrogateescape"))


def list_nft_tables(runner: Commands) -> frozenset[tuple[str, str]] | None:
    """(family, name) of every nf_tables table; None where nft cannot tell.

    By `nft list flowtables`, which prints the head of every table in milliseconds: `nft list tables` reads all
    rules first (nft 1.0.6: 19 s for 115,000).
    """
    if not runner.has_command("nft"):
        return None
    answer = runner.run(("nft", "list", "flowtables"), timeout=CHAIN_TIMEOUT)
    if answer.status != 0:
        return None
    found = re.findall(rb"^table (\S+) (\S+) \{", answer.stdout, re.MULTILINE)
    return frozenset((family.decode(), name.decode(errors="surrogateescape")) for family, name in found)


def foreign_hooks(listed: bytes) -> frozenset[tuple[str, str]]:
    """The tables in `nft list chains` that hold a base chain which is not one of iptables' own.

    `iptables-nft-save` leaves such a chain out with a comment, although packets pass through it.
    """
    family = re.search(rb"^table (\S+)", listed, re.MULTILINE)
    return frozenset(
        (family[1].decode(), table)
        for table, chain, is_base in _listed_chains(listed)
        if family is not None and is_base and chain not in BASE_CHAINS.get(table, ())
    )


def _listed_chains(listed: bytes) -> Iterator[tuple[str, str, bool]]:
    """(table, chain, whether it is a base chain) of what `nft list chains FAMILY` prints."""
    table, chain = "", None
    for line in listed.decode("utf-8", "surrogateescape").splitlines():
        if line.startswith("\tchain "):
            if chain is not None:
                yield table, chain, False
            chain = line.split()[1]
        elif line.startswith("\t\ttype ") and chain is not None:
            yield table, chain, True
            chain = None
        elif line.startswith("table "):
            if chain is not None:
                yield table, chain, False
            table, chain = line.split()[2], None
    if chain is not None:
        yield table, chain, False


def read_reachable(reader: ChainReader, node: str, reach: Reach) -> tuple[bytes | None, list[EvidenceGap]]:
    """The dump of one family, None if it has no tables or cannot be read, and the gaps."""
    search = search_reachable(reader, node, reach)
    while True:
        try:
            next(search)
        except StopIteration as end:
            found: tuple[bytes | None, list[EvidenceGap]] = end.value
            return found


def search_reachable(reader: ChainReader, node: str, reach: Reach) -> Search:
    """As `read_reachable`, and yields each wave of chains before the reader is asked for them."""
    settled = False
    missing: frozenset[tuple[str, str]] = frozenset()
    unread = 0
    try:
        tables = reader.tables()
        if tables is None:
            raise NotReadableError(f"{reader.command} is too old to be asked for single chains")
        for attempt in range(MAX_ROUNDS):
            if attempt:
                time.sleep(_PAUSE * (attempt - 1))
                reader.forget()
            generation, before = reader.generation(), missing
            unread = reader.assume_services() if reach.assume_services else 0
            yield from reader.prefetch(tables)
            chains, missing = yield from _walk(reader, tables, reach)
            if generation is not None:
                settled = generation == reader.generation()
            else:
                # What is missing twice is a target that is no chain: a chain that a rule leads to cannot be deleted.
                settled = not missing or (attempt > 0 and missing == before)
            if settled:
                break
    except (NotReadableError, OSError) as error:
        gap = EvidenceGap(
            "node-rules",
            node,
            f"{error} on node {node}",
            remedy=f"see what `{reader.command} -t nat -S PREROUTING` says on the node",
        )
        return None, [gap]
    gaps = []
    if unread:
        gaps.append(
            EvidenceGap(
                UNREAD_SERVICES,
                node,
                f"some {unread} rules of nat/KUBE-SERVICES were not read on node {node}, for the "
                "kernel is slow to list so many: that they match no packet to a node port, and that the last hands "
                "it on to KUBE-NODEPORTS, is taken for granted",
                remedy="-v reads them",
            )
        )
    if not settled:
        names = ", ".join(sorted(name for _, name in missing)[:3])
        gaps.append(
            EvidenceGap(
                "node-rules",
                node,
                f"the rules of node {node} changed again and again while they were read"
                + (f": {names} vanished" if names else ""),
                remedy="ask again when kube-proxy has come to rest",
            )
        )
    return render_dump(tables, chains).encode("utf-8", "surrogateescape"), gaps


def _walk(
    reader: ChainReader, tables: Iterable[str], reach: Reach
) -> Generator[Wave, None, tuple[dict[tuple[str, str], ChainText], frozenset[tuple[str, str]]]]:
    """Every chain that can be reached, and those that were jumped to and are not there."""
    destinations = _Destinations(reach.destinations)
    chains: dict[tuple[str, str], ChainText] = {}
    missing: set[tuple[str, str]] = set()
    tables = tuple(tables)
    # Whether all of a chain's jumps are followed; one that two ways lead to is followed the wider way in the end.
    wave = {(table, chain): True for table in tables for chain in BASE_CHAINS[table]}
    wave |= dict.fromkeys(wave.keys() & _UNTRANSLATED, False)
    wave |= {key: True for key in reach.chains if key[0] in tables}
    followed: dict[tuple[str, str], bool] = {}
    while wave:
        # What was read already is followed first, so that as few waves as can be are waited for.
        if not (now := {key: wave[key] for key in wave if reader.has_read(*key)}):
            yield list(wave)
            now = wave
        followed |= now
        following = {key: wave[key] for key in wave if key not in now}
        for (key, is_whole), text in zip(now.items(), reader.read_all(list(now)), strict=True):
            if text is None:
                if key not in reach.chains:
                    missing.add(key)
                continue
            met = text.raw if is_whole else tuple(filter(destinations.may_match, text.raw))
            left_out = len(text.raw) - len(met)
            cut = left_out > 0 and len(text.raw) > LARGE_CHAIN
            chains[key] = replace(text, raw=met, left_out=left_out) if cut else text
            for target in _jumps(met):
                to = (key[0], target)
                if to not in followed or (is_whole and not followed[to]):
                    following[to] = following.get(to, False) or is_whole
        wave = following
    return chains, frozenset(missing)


def _jumps(lines: Iterable[str]) -> Iterable[str]:
    """The chains that rules lead to."""
    for line in lines:
        jump = _JUMP.search(line, max(0, len(line) - _MAX_JUMP))
        if jump is not None and jump[1] not in TARGETS:
            yield jump[1]


class _Destinations:
    """The asked destinations, quick to compare with tens of thousands of rules."""

    def __init__(self, destinations: Iterable[Destination]) -> None:
        self._destinations = tuple(
            Destination(
                protocol=one.protocol,
                port=one.port,
                addresses=None if one.addresses is None else frozenset(map(_spelling, one.addresses)),
            )
            for one in destinations
        )
        ports = {one.port for one in self._destinations}
        self._ports = None if None in ports else {str(port) for port in ports}

    def may_match(self, line: str) -> bool:
        """Whether a rule can match packets to one of the destinations, by what of it is certain."""
        if self._ports is not None:
            # Nearly every rule of KUBE-SERVICES and KUBE-NODEPORTS ends here, by the quickest means there are.
            at = line.find(" --dport ")
            if at > 0 and line[at - 1] != "!" and line[at + 9 : line.find(" ", at + 9)] not in self._ports:
                within_quotes = line.count('"', 0, at) & 1
                if (
                    not within_quotes
                    and line[at + 9].isdigit()
                    and "\\" not in line
                    and ":" not in line[at + 9 : at + 15]
                ):
                    return False
        bare = _QUOTED.sub('""', line) if '"' in line else line
        port = _PORT.search(bare)
        if port is not None and self._ports is not None and port[1] not in self._ports:
            return False
        address, protocol = _ADDRESS.search(bare), _PROTOCOL.search(bare)
        return any(
            one.may_match(
                protocol[1] if protocol else None,
                int(port[1]) if port else None,
                _spelling(address[1]) if address else None,
            )
            for one in self._destinations
        )


def _spelling(address: str) -> str:
    return str(ipaddress.ip_address(address)) if ":" in address else address


def _is_missing(said: str) -> bool:
    """What iptables says of a chain that is not there: `No chain/target/match by that name`, from 1.8.3 on also
    `chain `X' in table `nat' is incompatible, use 'nft' tool`.
    """
    return "incompatible" in said or "No chain/target/match" in said or "does not exist" in said


def _parse_listing(text: str) -> ChainText:
    policy, counters, lines = None, None, []
    for line in text.splitlines():
        if line.startswith("-A "):
            lines.append(line)
        elif line.startswith("-P ") and (match := _POLICY.match(line)):
            policy = match[2]
            counters = (int(match[3]), int(match[4])) if match[3] else None
    return ChainText(policy=policy, counters=counters, raw=tuple(lines))


def as_saved(lines: Sequence[str]) -> list[str]:
    """Rules as `iptables-save -c` prints them: `[3:180] -A C … -j T` for `-A C … -c 3 180 -j T`."""
    return [_saved(line) for line in lines]


def _saved(line: str) -> str:
    head, found, tail = line.rpartition(" -c ")
    if found and '"' not in tail:
        # The last of them, with nothing quoted behind it: of nearly every rule.
        packets, _, rest = tail.partition(" ")
        size, gap, target = rest.partition(" ")
        if packets.isdigit() and size.isdigit():
            return f"[{packets}:{size}] {head}{gap}{target}"
    return _saved_slowly(line)


def _saved_slowly(line: str) -> str:
    """A rule with quoted words behind its counters, or with none: the same words may stand within quotes."""
    # With what is quoted made unlike counters, and at the same length; rarely needed, and slow.
    plain = _QUOTED.sub(lambda quoted: "q" * len(quoted[0]), line) if "\\" in line else line
    for match in _COUNTERS.finditer(plain):
        if not plain.count('"', 0, match.start()) & 1:
            return f"[{match[1]}:{match[2]}] {line[: match.start()]}{line[match.end() :]}"
    return line


def render_dump(
    tables: Iterable[str], chains: dict[tuple[str, str], ChainText], *, mark: str = PARTIAL_MARK
) -> str:
    """Chains as `iptables-save -c` prints them: base chains in hook order, then the others by name."""
    out = [mark]
    for table in tables:
        base = [name for name in BASE_CHAINS[table] if (table, name) in chains]
        others = sorted(name for where, name in chains if where == table and name not in BASE_CHAINS[table])
        out.append(f"*{table}")
        for name in (*base, *others):
            chain = chains[table, name]
            packets, size = chain.counters or (0, 0)
            out.append(f":{name} {chain.policy or '-'} [{packets}:{size}]")
        for name in (*base, *others):
            chain = chains[table, name]
            if chain.left_out:
                out.append(
                    f"# ktp: {chain.left_out} rules of {name} that the question cannot match are left out"
                )
            out.extend(chain.lines())
        out.append("COMMIT")
    return "\n".join(out) + "\n"


# ---------------------------------------------------------------------------------------- what a Service reaches


def service_destinations(capture: Capture) -> tuple[Destination, ...]:
    """Every destination of the Services in a capture: their front ends, and their endpoints.

    Damaged objects are passed over here: parse reports them.
    """
    found: dict[Destination, None] = {}
    for service in items_of(capture, "cluster/services.json"):
        spec, status = service.get("spec") or {}, service.get("status") or {}
        addresses = {*(spec.get("clusterIPs") or ()), spec.get("clusterIP"), *(spec.get("externalIPs") or ())}
        addresses |= {one.get("ip") for one in (status.get("loadBalancer") or {}).get("ingress") or ()}
        for port in spec.get("ports") or ():
            protocol = str(port.get("protocol") or "TCP").lower()
            _add(found, protocol, port.get("nodePort"), None)
            _add(found, protocol, port.get("port"), addresses)
        _add(found, "tcp", spec.get("healthCheckNodePort"), None)
    for endpoint_slice in items_of(capture, "cluster/endpointslices.json"):
        addresses = {
            one
            for endpoint in endpoint_slice.get("endpoints") or ()
            for one in endpoint.get("addresses") or ()
        }
        _add_ports(found, endpoint_slice.get("ports"), addresses)
    for endpoints in items_of(capture, "cluster/endpoints.json"):
        for subset in endpoints.get("subsets") or ():
            entries = (*(subset.get("addresses") or ()), *(subset.get("notReadyAddresses") or ()))
            _add_ports(found, subset.get("ports"), {one.get("ip") for one in entries})
    return tuple(found)


def _add_ports(found: dict[Destination, None], ports: Any, addresses: Iterable[Any]) -> None:
    for port in ports or ():
        # A slice without a port number is for every port.
        _add(found, str(port.get("protocol") or "TCP").lower(), port.get("port"), addresses, any_port=True)


def _add(
    found: dict[Destination, None],
    protocol: str,
    port: Any,
    addresses: Iterable[Any] | None,
    *,
    any_port: bool = False,
) -> None:
    usable = None
    if addresses is not None:
        usable = frozenset(text for address in addresses if (text := _ip(address)) is not None)
        if not usable:
            return
    if isinstance(port, int) or any_port:
        found[
            Destination(protocol=protocol, port=port if isinstance(port, int) else None, addresses=usable)
        ] = None


def _ip(address: object) -> str | None:
    try:
        return str(ipaddress.ip_address(str(address)))
    except ValueError:
        return None
