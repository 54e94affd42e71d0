"""The node that ktp itself runs on: its rules, addresses, routes, sockets and sysctls, as commands print them.

Looking must not change the node. Three readers do more than read, and are only used where that does nothing:

* `iptables-legacy* -t TABLE` and `-S` create the table that they are asked about. Only `iptables-legacy-save`
  without `-t` is run, and only if /proc/net/ip_tables_names lists a table.
* `ipvsadm` loads the module ip_vs. It is run only if /proc/net/ip_vs is there.
* `ipset`, `nft` and `iptables-nft-save` make the kernel load ip_set and nf_tables. They are not run where the
  kernel certainly does not have them, and so can have no sets or rules of theirs.

A reader that finds nothing for one of these reasons leaves an empty dump and not a gap: it is known that there
is nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from typing import Any

from ktp.collect.iptc_reader import read_legacy_tables
from ktp.collect.machine import CommandResult, CommandRunner, LocalRunner
from ktp.collect.nf_tables import NfTables
from ktp.collect.nft_chains import (
    ChainReader,
    NotReadableError,
    Reach,
    foreign_hooks,
    list_nft_tables,
    read_reachable,
)
from ktp.collect.nft_whole import read_whole
from ktp.collect.objects import items_of
from ktp.collect.offloads import offload_command
from ktp.collect.parallel import run_in_parallel
from ktp.collect.passing import (
    CONNECTION_FILE,
    CONNTRACK_MODULE,
    connection_commands,
    connection_file_command,
    counter_command,
    most_entries,
)
from ktp.collect.pod_namespaces import (
    POD_LEGACY,
    POD_READS,
    POD_RULES,
    PodAddresses,
    enter,
)
from ktp.collect.wireguard import COLUMNS, MODULE, wireguard_command, wireguard_dump
from ktp.collect.xfrm import HAS_XFRM, SOCKETS
from ktp.collect.xfrm import READS as XFRM_READS
from ktp.model.capture import Capture, EvidenceGap, GapCause, MemoryCapture
from ktp.model.record import dataclass
from ktp.model.ruleset import BASE_CHAINS

COMMAND_TIMEOUT = 30.0
# iptables-nft-save takes 24 s for 180,000 rules, and `nft -j` 15 s.
RULES_TIMEOUT = 120.0


IPV4_CONF_KEYS = ("rp_filter", "route_localnet", "forwarding", "accept_local", "src_valid_mark", "proxy_arp")
IPV6_CONF_KEYS = ("forwarding",)
# What Cilium's agent prints of its own tables, in its container or where its command is on the node: (file, words,
# whether its lack is told). `policy get`, `identity list` and `service list` only name what the maps hold.
CILIUM_FOLDER = (
    "/var/lib/cilium/bpf"  # of the agent's image: the client of other machines is called `cilium` as well
)
CILIUM_READS = (
    ("status.json", "status -o json", True),
    ("config.txt", "config -a", False),
    ("version.txt", "version", False),
    ("bpf-lb-list.json", "bpf lb list -o json", True),
    ("bpf-lb-frontends.json", "bpf lb list --frontends -o json", False),
    ("bpf-lb-source-ranges.json", "bpf lb list --source-ranges -o json", False),
    ("bpf-ipcache-list.json", "bpf ipcache list -o json", True),
    ("bpf-endpoint-list.json", "bpf endpoint list -o json", True),
    ("bpf-policy-get.json", "bpf policy get --all -o json", False),
    ("service-list.json", "service list -o json", False),
    ("policy-get.json", "policy get -o json", False),
    ("identity-list.json", "identity list -o json", False),
)
# Tunnel devices, and who is behind them.
TUNNEL_READS = (
    ("ip-link.json", "ip -j -d link"),
    ("ip-neigh.json", "ip -j neigh"),
    ("bridge-fdb.json", "bridge -j fdb"),
)
SINGLE_SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.fib_multipath_hash_policy",
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.ipv4.vs.conntrack",
    "net.ipv4.vs.conn_reuse_mode",
    "net.ipv4.vs.expire_nodest_conn",
    "net.ipv4.vs.expire_quiescent_template",
    "net.ipv4.vs.run_estimation",
    "net.ipv4.vs.snat_reroute",
    "net.netfilter.nf_conntrack_tcp_loose",
    "net.netfilter.nf_conntrack_tcp_be_liberal",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
)
# The files of rules, and what reads them once more.
AGAIN = {
    "nft-ruleset.json": "nft --json list ruleset",
    **{
        f"{save}.txt": f"{save} --counters"
        for family in ("iptables", "ip6tables")
        for save in (f"{family}-legacy-save", f"{family}-nft-save", f"{family}-save")
    },
}
_HAS_TABLES = re.compile(rb'^\*|"table":', re.MULTILINE)
# What is another at each look though nothing has changed.
FICKLE_SYSCTLS = ("net.netfilter.nf_conntrack_count",)

# The kind of gap for iptables rules in nf_tables without a command that prints them in full.
_NFT_TABLES = "iptables-nft"
# A table as iptables-nft makes them, in what `nft -j` prints.
_IPTABLES_NFT_TABLE = re.compile(
    rb'"table": ?\{"family": ?"ip6?", ?"name": ?"(?:filter|nat|mangle|raw|security)"'
)
# What a shell says of a command that is not there (POSIX, 2.8.2).
_NOT_FOUND = 127
_IS_WIREGUARD = re.compile(rb'"info_kind": ?"wireguard"')
# In IPVS mode kube-proxy's rules ask this set (pkg/proxy/ipvs/ipset.go).
_IPVS_SET = b"--match-set KUBE-CLUSTER-IP "
# What `iptables-nft-save` may take on a large node: 500 s for a million rules.
LARGE_RULES_TIMEOUT = 1800.0
# A table name that nft reads as one word, and the elements that `nft -j` prints.
_NFT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_NFT_LIST = re.compile(rb'\{"nftables": ?\[(.*)\]\}', re.DOTALL)
_AS_ROOT = "run ktp as root on the node (sudo ktp …)"


# --------------------------------------------------------------------------------------------- which node it is


def local_node_name(capture: Capture, runner: CommandRunner | None = None) -> str | None:
    """The Node object of this very machine among those of `cluster/nodes.json`; None if it is no node.

    It is the Node with one of its addresses on an interface here, else the one with this host's name (a cloud's
    InternalIP may be on no interface). A Node that reports another boot id than this kernel's is never it.
    """
    runner = runner or LocalRunner()
    nodes = [node for node in _node_objects(capture) if _same_boot(node, runner)]
    if not nodes:
        return None
    local = set(_local_addresses(runner))
    for node in nodes:
        if local & set(_addresses(node)):
            return _name(node)
    hosts = {host.lower().rstrip(".") for host in runner.hostnames()}
    hosts |= {host.partition(".")[0] for host in hosts}
    for node in nodes:
        name = _name(node).lower()
        if name in hosts or name.partition(".")[0] in hosts:
            return _name(node)
    return None


def _node_objects(capture: Capture) -> list[dict[str, Any]]:
    try:
        nodes = items_of(capture, "cluster/nodes.json")
        return [node for node in nodes if isinstance(node["metadata"]["name"], str)]
    except (KeyError, TypeError):
        return []  # without a list, no machine is known to be a node


def _name(node: dict[str, Any]) -> str:
    return str(node["metadata"]["name"])


def _same_boot(node: dict[str, Any], runner: CommandRunner) -> bool:
    reported = ((node.get("status") or {}).get("nodeInfo") or {}).get("bootID")
    if not reported:
        return True
    try:
        return bool(runner.read_file("/proc/sys/kernel/random/boot_id").decode().strip() == reported)
    except OSError:
        return True


def _addresses(node: dict[str, Any]) -> Iterator[str]:
    for entry in (node.get("status") or {}).get("addresses") or ():
        if entry.get("type") in {"InternalIP", "ExternalIP"} and (address := _usable(entry.get("address"))):
            yield address


def _local_addresses(runner: CommandRunner) -> Iterator[str]:
    if not runner.has_command("ip"):
        return
    answer = runner.run(("ip", "-j", "addr"), timeout=COMMAND_TIMEOUT)
    try:
        links = json.loads(answer.stdout)
    except ValueError:
        return
    for link in links:
        for entry in link.get("addr_info", ()):
            if address := _usable(entry.get("local")):
                yield address


def _usable(text: object) -> str | None:
    """An IP address in its one spelling; None for what is none, and for loopback, which every machine has."""
    try:
        address = ipaddress.ip_address(str(text))
    except ValueError:
        return None
    return None if address.is_loopback else str(address)


# ------------------------------------------------------------------------------------------- what is read of it


@dataclass(slots=True)
class _Part:
    """What one of the parallel reads adds to the capture; file names are without `nodes/NODE/`."""

    files: dict[str, bytes] = field(default_factory=dict)
    gaps: list[EvidenceGap] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NftReading:
    """What was read of nf_tables, all of it, while its ruleset was of one `generation`."""

    generation: int
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, capture: Capture, node: str, generation: int) -> NftReading:
        """What of a reading of the node stays true as long as the generation is the same.

        Sets that packets fill (`dynamic`) and elements that run out (`timeout`) change without another generation, so
        tables with them are read each time; so is everything where something could not be read.
        """
        files = {}
        if not any(gap.kind in _OF_NFT for gap in capture.gaps):
            for name in _NFT_FILES:
                file = f"nodes/{node}/{name}"
                if capture.has(file) and not any(
                    word in (content := capture.read(file)) for word in _FLEETING
                ):
                    files[name] = content
        return cls(generation, files)


_NFT_FILES = ("iptables-nft-save.txt", "ip6tables-nft-save.txt", "nft-ruleset.json")
_FLEETING = (b'"dynamic"', b'"timeout"')
_OF_NFT = frozenset(("node-rules", "nft", "iptables-nft"))


def nft_generation() -> int | None:
    """The number of this network namespace's nf_tables ruleset, another after each change; None where none is told."""
    if not _kernel_has(LocalRunner(), "nf_tables", "nf_tables_newrule"):
        return None
    try:
        with contextlib.closing(NfTables()) as kernel:
            return kernel.generation()
    except OSError:
        return None


# Reads the legacy tables of "iptables" or "ip6tables" without the command that prints them.
LegacyReader = Callable[[str], CommandResult]
KernelOpener = Callable[[], NfTables]


def collect_local_node(
    node: str,
    runner: CommandRunner | None = None,
    *,
    reach: Reach | None = None,
    source: str | None = None,
    legacy_reader: LegacyReader | None = None,
    not_root: tuple[str, str] | None = None,
    kernel: KernelOpener | None = None,
    blind: bool = False,
    pods: PodAddresses | None = None,
    counters: int = 0,
    before: NftReading | None = None,
) -> MemoryCapture:
    """What a machine, without `runner` this one, says about itself, as `nodes/NODE/…` of design §4.

    With `reach`, of a large node's rules in nf_tables only the chains that it reaches; a small one is read whole
    all the same. `legacy_reader` is asked for legacy tables that no command can print; `kernel` opens nf_tables of
    the machine for questions that no command answers at once.
    `not_root` is the sentence and the remedy where the commands did not run as root.
    `pods` are those whose network namespaces are read, too, as root. `counters` are the seconds between two readings
    of the kernel's counters; 0: none.
    `blind` is a machine whose files cannot be looked at: nothing is run there that could make what it looks for.
    `before` is what is known of nf_tables, where its generation is still the same; without a `reach` only.
    Nothing is raised for what cannot be read; each is a gap. The dumps are not taken at one instant.
    """
    if runner is None:
        runner, legacy_reader, kernel = LocalRunner(), legacy_reader or _read_with_iptc, kernel or NfTables
    if not_root is None:
        not_root = (
            f"ktp does not run as root, and so the packet rules of node {node} cannot be read",
            _AS_ROOT,
        )
    reader = _NodeReader(node, runner, reach, legacy_reader, not_root, kernel, blind=blind, pods=pods)
    reader.counters = counters
    reader.known = dict(before.files) if before is not None else {}
    try:
        parts = run_in_parallel(reader.reads())
        files = {name: content for part in parts for name, content in part.files.items()}
        files |= reader.again(files)
    finally:
        reader.close()
    gaps = [gap for part in parts for gap in part.gaps]
    gaps = reader.settle(files, gaps)
    return MemoryCapture(
        files={f"nodes/{node}/{name}": content for name, content in files.items()},
        gaps=tuple(gaps) if reader.is_root else reader.one_gap_for_root(gaps),
        source=source or f"node {node} (this machine)",
    )


def _kernel_has(runner: CommandRunner, module: str, symbol: str) -> bool:
    """Whether the kernel has a module, loaded or built in; True where that cannot be told.

    A built-in module without parameters has no folder in /sys/module, but its functions are in
    /proc/kallsyms. Without /proc/modules the kernel loads no modules, so asking cannot change it.
    """
    if runner.exists(f"/sys/module/{module}") or not runner.exists("/proc/modules"):
        return True
    try:
        symbols = runner.read_file("/proc/kallsyms")
    except OSError:
        return True
    return not symbols.strip() or re.search(rb" %s\b" % symbol.encode(), symbols) is not None


def _read_with_iptc(family: str) -> CommandResult:
    done = read_legacy_tables(family, timeout=RULES_TIMEOUT)
    return CommandResult(status=done.status, stdout=done.stdout, stderr=done.stderr)


class _NodeReader:
    """The reads of one node; each method is one read and returns its files and gaps."""

    def __init__(
        self,
        node: str,
        runner: CommandRunner,
        reach: Reach | None = None,
        legacy_reader: LegacyReader | None = None,
        not_root: tuple[str, str] = ("", _AS_ROOT),
        kernel: KernelOpener | None = None,
        *,
        blind: bool = False,
        pods: PodAddresses | None = None,
    ) -> None:
        self._node = node
        self._pods_asked = dict(pods or {})
        self._runner = runner
        self._reach = reach
        self._legacy_reader = legacy_reader
        self._not_root, self._as_root = not_root
        self._kernel = kernel
        self._blind = blind
        self._chain_readers: dict[str, ChainReader] = {}
        self._sizes: dict[str, bool] = {}
        self._lock = threading.Lock()
        self.known: Mapping[str, bytes] = {}  # files that are as they were
        self.counters = 0  # seconds between two readings
        self.is_root = runner.is_root()
        self._has_nf_tables = _kernel_has(runner, "nf_tables", "nf_tables_newrule")
        self._has_ip_set = _kernel_has(runner, "ip_set", "ip_set_create")

    def reads(self) -> list[Callable[[], _Part]]:
        """Every read, the slow ones first; they are independent of each other."""
        return [
            *((self._counters,) if self.counters else ()),
            self._nft_ruleset,
            partial(self._tables, "iptables"),
            partial(self._tables, "ip6tables"),
            self._ipset,
            self._ipvs,
            self._cilium,
            self._nft_hooks,
            partial(self._command, "ip-addr.json", "node-addresses", "ip -j addr"),
            partial(self._command, "ip-rule.json", "node-routes", "ip -j rule"),
            partial(self._ipv6, "ip6-rule.json", "ip -6 -j rule"),
            partial(self._command, "ip-route.json", "node-routes", "ip -j route show table all"),
            partial(self._ipv6, "ip6-route.json", "ip -6 -j route show table all"),
            partial(self._command, "ss.txt", "node-sockets", "ss -lntuH"),
            *(partial(self._optional, file, line) for file, line in TUNNEL_READS),
            self._wireguard,
            self._xfrm,
            self._offloads,
            self._sysctls,
            self._connections,
            self._pods,
        ]

    # ----------------------------------------------------------------------------------------------- commands

    def _command(self, file: str, kind: str, line: str, timeout: float = COMMAND_TIMEOUT) -> _Part:
        """The output of one command as `file`, or a gap of `kind` that says why there is none."""
        command = line.split()
        if not self._runner.has_command(command[0]):
            return self._not_installed(kind, command[0])
        answer = self._runner.run(command, timeout=timeout)
        if answer.status is None:
            return self._gap(
                kind,
                f"`{line}` took longer than {timeout:g} s",
                f"run `{line}` on the node and keep what it prints",
            )
        if answer.status == _NOT_FOUND:
            return self._not_installed(kind, command[0])
        if answer.status != 0 and not _is_empty_route_table(answer):
            said = _first_line(answer.stderr) or f"exit status {answer.status}"
            remedy = f"see what `{line}` says on the node" if self.is_root else self._as_root
            return self._gap(kind, f"`{line}` failed: {said}", remedy)
        return _Part(files={file: answer.stdout if answer.stdout.strip() else _nothing(file)})

    def _optional(self, file: str, line: str) -> _Part:
        """What is used where it is there, and not missed where not."""
        if self._blind or not self._runner.has_command(line.split(maxsplit=1)[0]):
            return _Part()
        return _Part(files=self._command(file, "node-tunnels", line).files)

    def _wireguard(self) -> _Part:
        """WireGuard's devices, where there can be any; `settle` knows whether they are missed."""
        has_module = self._runner.exists(MODULE) or not self._runner.exists("/proc/modules")
        if self._blind or not (has_module and self._runner.has_command("wg")):
            return _Part()
        columns = {}
        for column in COLUMNS:
            answer = self._runner.run(wireguard_command(column).split(), timeout=COMMAND_TIMEOUT)
            if answer.status != 0 or answer.stderr:
                return _Part()
            columns[column] = answer.stdout.decode(errors="replace")
        return _Part(files={"wg.txt": wireguard_dump(columns).encode()})

    def _xfrm(self) -> _Part:
        """IPsec, where the kernel can be asked; what only root may read is not missed where nobody uses it."""
        try:
            can_ask = HAS_XFRM.search(self._runner.read_file(SOCKETS)) is not None
        except OSError:
            can_ask = False
        if self._blind or not can_ask or not self.is_root:
            return _Part()
        parts = [self._command(file, "node-tunnels", line) for file, line in XFRM_READS]
        return _Part(files={name: text for part in parts for name, text in part.files.items()})

    def _offloads(self) -> _Part:
        """Used where it is there, and not missed where not."""
        if self._blind or not all(map(self._runner.has_command, ("ethtool", "awk", "ip"))):
            return _Part()
        answer = self._runner.run(offload_command(), timeout=COMMAND_TIMEOUT)
        if answer.status != 0 or not answer.stdout.strip():
            return _Part()
        return _Part(files={"ethtool.txt": answer.stdout})

    def _counters(self) -> _Part:
        """Counters of the kernel, twice; a gap where they cannot be had, since they were asked for."""
        answer = self._runner.run(counter_command(self.counters), timeout=COMMAND_TIMEOUT + self.counters)
        if answer.status != 0 or not answer.stdout.strip():
            return self._gap("node-counters", "the kernel's counters could not be read", None)
        return _Part(files={"netstat.txt": answer.stdout})

    def again(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """With --counters the rules once more, after all else: what they counted tells which of two tables is first.

        Not where there are no two, nor of a large node. Long options tell a recorded answer from the first.
        """
        held = [file for file in files if file in AGAIN and _HAS_TABLES.search(files[file])]
        if not self.counters or not self.is_root or len(held) < 2 or self._is_large_node():
            return {}
        found = {}
        for file in held:
            command = AGAIN[file].split()
            if self._runner.has_command(command[0]):
                answer = self._runner.run(command, timeout=RULES_TIMEOUT)
                if answer.status == 0:
                    found[f"again/{file}"] = answer.stdout
        return found

    def _connections(self) -> _Part:
        """What the node tracks of the asked ports: used where it is there, and not missed where not."""
        commands = connection_commands(self._reach, counters=bool(self.counters))
        instead = connection_file_command(self._reach)
        has_module = self._runner.exists(CONNTRACK_MODULE) or not self._runner.exists("/proc/modules")
        if self._blind or not (commands and self.is_root):
            return _Part()
        if not (has_module and self._runner.has_command("conntrack")):
            if not (self._runner.exists(CONNECTION_FILE) and self._runner.has_command("awk")):
                return _Part()
            commands = [instead] if instead else []
        found = [(words, self._runner.run(words, timeout=COMMAND_TIMEOUT)) for words in commands]
        # A port of which too many are tracked (a cluster's DNS) takes nothing from the others.
        whole = [
            one.stdout
            for words, one in found
            if one.status == 0 and one.stdout.count(b"\n") <= most_entries(words)
        ]
        return _Part(files={"conntrack.txt": b"".join(whole) or b"\n"} if whole else {})

    def _ipv6(self, file: str, line: str) -> _Part:
        """A command about IPv6 routing, which fails on a kernel booted with ipv6.disable=1."""
        if not self._runner.exists("/proc/sys/net/ipv6"):
            return _Part(files={file: _nothing(file)})
        return self._command(file, "node-routes", line)

    def _not_installed(self, kind: str, command: str) -> _Part:
        why = f"the command {command} is not installed"
        return self._gap(kind, why, _how_to_install(command), GapCause.NOT_INSTALLED)

    def _gap(self, kind: str, why: str, remedy: str | None, cause: GapCause = GapCause.NOT_READ) -> _Part:
        message = f"{why} on node {self._node}"
        gap = EvidenceGap(kind, self._node, message, remedy=remedy, cause=cause)
        return _Part(gaps=[gap])

    # -------------------------------------------------------------------------------------------------- rules

    def _tables(self, family: str) -> _Part:
        """Both back ends of `iptables` or `ip6tables`; an older node has the plain command alone."""
        legacy, nft, plain = f"{family}-legacy-save", f"{family}-nft-save", f"{family}-save"
        if not self._runner.has_command(legacy) and not self._runner.has_command(nft):
            if self._runner.has_command(plain) and self._plain_is_legacy(family):
                legacy = plain
            elif self._runner.has_command(plain):
                nft = plain
        parts = (self._legacy(legacy, family), self._nft_tables(nft))
        return _Part(files=parts[0].files | parts[1].files, gaps=parts[0].gaps + parts[1].gaps)

    def _plain_is_legacy(self, family: str) -> bool:
        """`iptables v1.8.9 (legacy)`; versions before 1.8 know no other back end and name none."""
        version = self._runner.run((family, "--version"), timeout=COMMAND_TIMEOUT)
        return b"nf_tables" not in version.stdout

    def _legacy(self, command: str, family: str) -> _Part:
        """The legacy tables that exist, and never one that this look would create."""
        if self._blind:
            # Without -t the command reads the names for itself (iptables-save.c, for_each_table).
            return self._command(f"{command}.txt", "node-rules", f"{command} -c", RULES_TIMEOUT)
        tables = self._legacy_tables(family)
        names_file = f"/proc/net/{_proc_stem(family)}_names"
        if tables is None:
            why = f"{names_file} cannot be read, and so the legacy rules were left alone"
            return self._gap("node-rules", why, self._as_root)
        if not tables:
            return _Part(files={f"{command}.txt": f"# {names_file} lists no legacy table\n".encode()})
        if not self._runner.has_command(command):
            return self._legacy_without_command(command, family, tables)
        return self._command(f"{command}.txt", "node-rules", f"{command} -c", RULES_TIMEOUT)

    def _legacy_without_command(self, command: str, family: str, tables: tuple[str, ...]) -> _Part:
        """python-iptables reads them, where it is installed."""
        why = f"the kernel has the legacy {family} tables {', '.join(tables)}, but no {command} is installed"
        remedy = f"install {command} on the node"
        if self._legacy_reader is None:
            return self._gap("node-rules", why, remedy)
        answer = self._legacy_reader(family)
        if answer.status == 0:
            return _Part(files={f"{command}.txt": answer.stdout})
        said = _first_line(answer.stderr) or "python-iptables gave no answer"
        return self._gap(
            "node-rules", f"{why} ({said})", f"{remedy}, or python-iptables: pip install 'ktp[iptc]'"
        )

    def _legacy_tables(self, family: str) -> tuple[str, ...] | None:
        """The legacy tables of this network namespace; None if that may not be read."""
        try:
            names = self._runner.read_file(f"/proc/net/{_proc_stem(family)}_names")
        except FileNotFoundError:
            # The module is not loaded, or the kernel no longer has it.
            return ()
        except OSError:
            return None
        return tuple(names.decode(errors="replace").split())

    def _nft_tables(self, command: str) -> _Part:
        if (known := self.known.get(f"{command}.txt")) is not None:
            return _Part(files={f"{command}.txt": known})
        if not self._runner.has_command(command):
            if not self._has_nf_tables:
                return _Part()
            return self._gap(
                _NFT_TABLES,
                f"iptables rules in nf_tables cannot be printed without the command {command}",
                f"install {command} on the node",
            )
        if not self._has_nf_tables:
            return _Part(files={f"{command}.txt": b"# the kernel has no nf_tables\n"})
        # All of a node that only commands can be asked of is had by the one command, however long it takes.
        if (self._reach is None and self._kernel is None) or not self._is_large(command):
            return self._command(f"{command}.txt", "node-rules", f"{command} -c", RULES_TIMEOUT)
        reader = self._chain_readers[command]
        if self._reach is not None:
            text, gaps = read_reachable(reader, self._node, self._reach)
            return _Part(files={} if text is None else {f"{command}.txt": text}, gaps=gaps)
        whole = read_whole(reader)
        if whole is not None:
            return _Part(files={f"{command}.txt": whole})
        return self._command(f"{command}.txt", "node-rules", f"{command} -c", LARGE_RULES_TIMEOUT)

    def _is_large(self, command: str) -> bool:
        """Whether dumping what `command` (iptables-nft-save) dumps would take long."""
        with self._lock:
            if command not in self._sizes:
                self._sizes[command] = self._ask_size(command)
            return self._sizes[command]

    def _ask_size(self, command: str) -> bool:
        single = command.removesuffix("-save")
        if not self._has_nf_tables or not all(map(self._runner.has_command, (command, single))):
            return False
        reader = self._chain_readers[command] = ChainReader(self._runner, single, self._open_kernel())
        try:
            return reader.is_large()
        except (NotReadableError, OSError):
            return False  # the dump, tried next, says why

    def close(self) -> None:
        """Let go of what the reads have opened."""
        for each in self._chain_readers.values():
            if each.kernel is not None:
                each.kernel.close()

    def _open_kernel(self) -> NfTables | None:
        """A socket for one reader alone, since readers are asked side by side; None where commands have to do."""
        if self._kernel is None or not self.is_root:
            return None
        try:
            kernel = self._kernel()
            kernel.generation()
        except OSError:
            return None
        return kernel

    def _is_large_node(self) -> bool:
        return any(map(self._is_large, ("iptables-nft-save", "ip6tables-nft-save")))

    def _nft_ruleset(self) -> _Part:
        if (known := self.known.get("nft-ruleset.json")) is not None:
            return _Part(files={"nft-ruleset.json": known})
        if not self._has_nf_tables:
            return _Part(files={"nft-ruleset.json": b'{"nftables": []}\n'})
        if self._runner.has_command("nft") and self._is_large_node() and (part := self._own_nft_tables()):
            return part
        return self._command("nft-ruleset.json", "nft", "nft -j list ruleset", RULES_TIMEOUT)

    def _own_nft_tables(self) -> _Part | None:
        """Every table but those of iptables-nft, which `nft -j` takes 15 s and 1.6 GB for and tells less of.

        None where they cannot be told apart.
        """
        tables = self._nft_table_names()
        if tables is None or not all(_NFT_NAME.fullmatch(name) for _, name in tables):
            return None
        dumped = {("ip", table) for table in BASE_CHAINS}
        if self._runner.has_command("ip6tables-nft-save"):
            dumped |= {("ip6", table) for table in BASE_CHAINS}
        look = self._reach is None or self._reach.look_for_foreign_hooks
        for family in {family for family, _ in tables & dumped} if look else ():
            listed = self._runner.run(("nft", "list", "chains", family), timeout=COMMAND_TIMEOUT)
            dumped -= foreign_hooks(listed.stdout)
        return self._nft_json(sorted(tables - dumped))

    def _nft_table_names(self) -> frozenset[tuple[str, str]] | None:
        kernel = self._open_kernel()
        if kernel is None:
            return list_nft_tables(self._runner)
        with contextlib.closing(kernel):
            return frozenset(kernel.tables())

    def _nft_json(self, tables: Sequence[tuple[str, str]]) -> _Part:
        """nft-ruleset.json with these tables alone, joined from `nft -j list table` of each."""
        joined, gaps = [], []
        for family, name in tables:
            part = self._command("table", "nft", f"nft -j list table {family} {name}", RULES_TIMEOUT)
            gaps += part.gaps
            joined += [
                found[1] for text in part.files.values() if (found := _NFT_LIST.fullmatch(text.strip()))
            ]
        return _Part(files={"nft-ruleset.json": b'{"nftables": [' + b", ".join(joined) + b"]}\n"}, gaps=gaps)

    def _nft_hooks(self) -> _Part:
        """Optional: needs nft 1.0.1 and a kernel with CONFIG_NETFILTER_NETLINK_HOOK.

        nft reads all rules for it (18 s for 115,000), so a large node is asked only where it matters: where
        legacy tables are hooked in as well.
        """
        if not self._runner.has_command("nft") or not self._has_nf_tables:
            return _Part()
        if self._is_large_node() and not (
            self._legacy_tables("iptables") or self._legacy_tables("ip6tables")
        ):
            return _Part()
        answer = self._runner.run(("nft", "list", "hooks"), timeout=COMMAND_TIMEOUT)
        return (
            _Part(files={"nft-hooks.txt": answer.stdout}) if answer.status == 0 and answer.stdout else _Part()
        )

    # --------------------------------------------------------------------------------------- ipset, ipvs, sysctl

    def _ipset(self) -> _Part:
        if self._blind:
            return _Part()  # only for rules that ask for sets, which `settle` knows
        if not self._has_ip_set:
            return _Part(files={"ipset-save.txt": b""})
        if not self._runner.has_command("ipset"):
            return _Part()
        return self._command("ipset-save.txt", "ipset", "ipset save")

    def settle(self, files: dict[str, bytes], gaps: list[EvidenceGap]) -> list[EvidenceGap]:
        """The gaps that remain once all reads are known: a missing command matters only if it had work."""
        ruleset = files.get("nft-ruleset.json")
        if ruleset is not None and not _IPTABLES_NFT_TABLE.search(ruleset):
            gaps = [gap for gap in gaps if gap.kind != _NFT_TABLES]
        asked = any(b"--match-set" in content for name, content in files.items() if "tables" in name)
        if asked and self._blind:
            # The sets are there, and so is the module that asking for them would load.
            part = self._command("ipset-save.txt", "ipset", "ipset save")
            files |= part.files
            gaps = gaps + part.gaps
            if any(_IPVS_SET in content for content in files.values()):
                part = self._command("ipvsadm.txt", "ipvs", "ipvsadm -Sn")
                files |= part.files
                gaps = gaps + part.gaps
        if asked and "ipset-save.txt" not in files and not self._runner.has_command("ipset"):
            why = "rules match ipsets, but the command ipset is not installed"
            remedy = "install ipset on the node"
            gaps = gaps + self._gap("ipset", why, remedy, GapCause.NOT_INSTALLED).gaps
        if _IS_WIREGUARD.search(files.get("ip-link.json", b"")) and "wg.txt" not in files:
            has_command = self._runner.has_command("wg")
            why = "where WireGuard's devices send packets was not read"
            remedy = self._as_root if has_command else "install the package wireguard-tools on the node"
            cause = GapCause.NOT_READ if has_command else GapCause.NOT_INSTALLED
            gaps = gaps + self._gap("node-tunnels", why, remedy, cause).gaps
        return gaps

    def _ipvs(self) -> _Part:
        if self._blind:
            return _Part()
        try:
            services = self._runner.read_file("/proc/net/ip_vs")
        except FileNotFoundError:
            return _Part(files={"ipvsadm.txt": b""})
        except OSError as error:
            return self._gap("ipvs", f"/proc/net/ip_vs cannot be read ({error.strerror})", self._as_root)
        # Three lines of heading, then the virtual servers.
        if len(services.splitlines()) <= 3:
            return _Part(files={"ipvsadm.txt": b""})
        return self._command("ipvsadm.txt", "ipvs", "ipvsadm -Sn")

    def _cilium(self) -> _Part:
        """What Cilium's command prints, where it is here. It only reads."""
        if self._blind:
            return _Part()
        command = "cilium-dbg"  # from 1.15 on
        if not self._runner.has_command(command):
            command = "cilium"
            if not self._runner.has_command(command) or not self._runner.exists(CILIUM_FOLDER):
                command = ""
        if not command and self.is_root and self._runner.has_command("nsenter"):
            command = self._runner.agents_command()
        if not command:
            return _Part()
        part = _Part()
        for file, words, is_needed in CILIUM_READS:
            read = self._command(f"cilium/{file}", "data-plane", f"{command} {words}")
            part.files |= read.files
            if is_needed:
                part.gaps += read.gaps
        return part

    def _sysctls(self) -> _Part:
        """The keys as `sysctl` prints them; of those that this kernel lacks, only the bridge's are complained of."""
        lines, absent = [], []
        for key in self._sysctl_keys():
            # As sysctl(8), which swaps dots and slashes: the interface eth0.100 is net.ipv4.conf.eth0/100.
            path = "/proc/sys/" + key.translate(str.maketrans("./", "/."))
            try:
                value = self._runner.read_file(path).decode(errors="replace").rstrip("\n")
            except FileNotFoundError:
                # Without br_netfilter there is no such key, which tells how bridged packets fare.
                if key.startswith("net.bridge.") and not self._blind:
                    absent.append(f"sysctl: cannot stat {path}: No such file or directory\n")
                continue
            except OSError:
                continue
            lines.append(f"{key} = {value}\n")
        if not lines:
            return self._gap("node-sysctl", "no sysctl under /proc/sys/net can be read", "mount /proc")
        return _Part(files={"sysctl.txt": "".join((*lines, *absent)).encode()})

    def _sysctl_keys(self) -> Iterator[str]:
        yield from SINGLE_SYSCTLS
        for version, keys in (("ipv4", IPV4_CONF_KEYS), ("ipv6", IPV6_CONF_KEYS)):
            for interface in self._runner.list_folder(f"/proc/sys/net/{version}/conf"):
                for key in keys:
                    yield f"net.{version}.conf.{interface.replace('.', '/')}.{key}"

    # ---------------------------------------------------------------------------------------------------- pods

    def _pods(self) -> _Part:
        """Files of pods' network namespaces. A pod of which the needed ones cannot be had is a gap."""
        part = _Part()
        if not self._pods_asked or not self.is_root or self._blind:
            return part
        if not self._runner.has_command("nsenter"):
            return self._not_installed("pod-namespace", "nsenter")
        found = self._runner.namespaces(tuple(self._pods_asked))
        processes = {self._pods_asked[address]: pid for address, pid in found.items()}
        for folder in dict.fromkeys(self._pods_asked.values()):
            pid = processes.get(folder)
            one = self._pod(folder, pid) if pid is not None else _Part()
            if not one.files:
                pod = folder.replace("_", "/", 1)
                why = f"the network namespace of pod {pod} could not be read"
                one = self._gap(
                    "pod-namespace",
                    why,
                    "it may have ended, or nsenter may not be run there as root; --pods none does not try",
                )
            part.files |= one.files
            part.gaps += one.gaps
        return part

    def _pod(self, folder: str, pid: int) -> _Part:
        """The files of one; none where it ended meanwhile."""
        part = _Part()
        reads = [*POD_READS, *((file, words, False) for file, words in POD_RULES if self._has_nf_tables)]
        for file, words, names in POD_LEGACY:
            try:
                has_tables = self._runner.read_file(f"/proc/{pid}/net/{names}").strip()
            except OSError:
                continue
            if has_tables:
                reads.append((file, words, False))
        for file, words, is_needed in reads:
            if not self._runner.has_command(words.split()[0]):
                continue
            read = self._command(f"pods/{folder}/{file}", "pod-namespace", f"{enter(pid)} {words}")
            if is_needed and not read.files:
                return _Part()
            part.files |= read.files
        return part

    # ------------------------------------------------------------------------------------------------ not root

    def one_gap_for_root(self, gaps: list[EvidenceGap]) -> tuple[EvidenceGap, ...]:
        """One gap for all that root alone may read, instead of one for each command that said so."""
        privileged = {"node-rules", _NFT_TABLES, "nft", "ipset", "ipvs", "data-plane", "node-tunnels"}
        denied = [gap for gap in gaps if gap.kind in privileged and gap.remedy == self._as_root]
        if not denied:
            return tuple(gaps)
        merged = EvidenceGap("node-rules", self._node, self._not_root, remedy=self._as_root)
        return (merged, *(gap for gap in gaps if gap not in denied))


def _proc_stem(family: str) -> str:
    return "ip6_tables" if family == "ip6tables" else "ip_tables"


def _nothing(file: str) -> bytes:
    """A dump without anything in it; `ip -j` prints no text at all for some empty lists.

    iptables-nft-save prints nothing where there are no tables, which is not to be taken for a failed save.
    """
    if "tables" in file:
        return f"# {file.removesuffix('.txt')} printed no table\n".encode()
    return b"[]\n" if file.endswith(".json") else b""


def _is_empty_route_table(answer: CommandResult) -> bool:
    """`ip route show` fails on a table without a route, in a new network namespace also on `main`."""
    return b"FIB table does not exist" in answer.stderr


def _first_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().partition("\n")[0].rstrip(".")[:200]


def _how_to_install(command: str) -> str:
    package = {"ip": "iproute2", "ss": "iproute2", "nft": "nftables"}.get(command, command)
    return f"install the package {package} on the node"
