"""A whole capture → Snapshot: the one place of this package that knows which file is parsed by what.

What a node's file should have told and does not, because the file is unreadable or garbled, stays None and
becomes an evidence gap; nothing of a node is a reason to give up. Of the cluster only services.json is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ktp.errors import EvidenceError
from ktp.model.capture import Capture, EvidenceGap
from ktp.model.cluster import Scope
from ktp.model.host import KubeProxyConfig, NodeState, Route
from ktp.model.ipvs import IPVS_INTERFACE, links_ipvs
from ktp.model.nft_hooks import HookListing
from ktp.model.reading import HOW_TO_SAVE
from ktp.model.rules_twice import RulesReading, RulesTwice
from ktp.model.ruleset import BUILT_IN_CHAINS, Backend, Ruleset, are_ports_lost, has_chain
from ktp.model.snapshot import Snapshot
from ktp.model.xfrm import Xfrm
from ktp.model.xtables_chains import is_chain_of_xtables
from ktp.parse.cilium import parse_cilium
from ktp.parse.ip_json import merge_routes, parse_interfaces, parse_routes, parse_rules
from ktp.parse.ipset import parse_ipsets
from ktp.parse.iptables_save import open_ruleset
from ktp.parse.ipvs import parse_ipvs
from ktp.parse.kube_proxy_config import parse_kube_proxy_config
from ktp.parse.kubernetes import ENDPOINT_SLICES, ENDPOINTS, NODES, PODS, SERVICES, parse_cluster_with_gaps
from ktp.parse.nft_hooks import parse_nft_hooks
from ktp.parse.offloads import parse_offloads
from ktp.parse.passing import parse_connections, parse_counters
from ktp.parse.ss import parse_sockets
from ktp.parse.sysctl import parse_sysctls
from ktp.parse.text import SHAPE_ERRORS, decode_text, gc_paused, load_json
from ktp.parse.tunnel import (
    parse_forwarding,
    parse_neighbours,
    parse_tunnels,
    parse_wireguard,
    with_wireguard,
)
from ktp.parse.xfrm import parse_xfrm_policies, parse_xfrm_states

if TYPE_CHECKING:
    from ktp.model.cluster import Cluster
    from ktp.model.nftables import NftRuleset

T = TypeVar("T")

# (file, family, back end where the name tells it). Legacy before nft, the plain ones last.
_RULESET_FILES = (
    ("iptables-legacy-save.txt", "ip", Backend.LEGACY),
    ("ip6tables-legacy-save.txt", "ip6", Backend.LEGACY),
    ("iptables-nft-save.txt", "ip", Backend.NFT),
    ("ip6tables-nft-save.txt", "ip6", Backend.NFT),
    ("iptables-save.txt", "ip", None),
    ("ip6tables-save.txt", "ip6", None),
)
_NFT_FILES = ("nft-ruleset.json", "nft-ruleset.txt")
_IPV4_RULES = frozenset((
    *(file for file, family, _ in _RULESET_FILES if family == "ip"), "nft-ruleset.json", "nft-ruleset.txt",
))  # fmt: skip
_IPV6_RULES = frozenset(file for file, family, _ in _RULESET_FILES if family == "ip6")
_BACKEND_ORDER = (Backend.LEGACY, Backend.UNKNOWN, Backend.NFT)
_KUBE_PROXY_CONFIGS = ("kube-proxy-config.yaml", "kube-proxy-config.json")
AGAIN = "again/"  # the folder in a node's of a second reading of its rules
_NFT_TABLE_START = re.compile(rb'"table"\s*:\s*\{')
_NFT_END = re.compile(rb"\]\s*\}\s*$")
_NFT_TABLE = re.compile(rb'"table"\s*:\s*(\{[^{}]*\})')
_NFT_BASE_CHAIN = re.compile(rb'"chain"\s*:\s*(\{[^{}]*"hook"\s*:[^{}]*\})')


def parse_snapshot(capture: Capture, *, nodes: Collection[str] | None = None) -> Snapshot:
    """Everything that `capture` holds; `nodes` names those that are asked for, where not all are.

    What the others do with a packet is known as well, where their files are not too large to be read beside: else they
    are nodes of which nothing was read.

    Gaps: the capture's own, then "cluster-file" (a garbled cluster/….json), "services", "endpoints", "pods" and
    "nodes" (no such file), "node-file" (subject NODE/FILE) and "node-rules" (subject NODE: no packet filter rules).
    Raises EvidenceError where cluster/services.json is garbled.
    """
    with gc_paused():
        cluster, cluster_gaps = parse_cluster_with_gaps(capture)
        gaps = _Gaps([*capture.gaps, *cluster_gaps])
        _add_missing_lists(capture, cluster, gaps)
        names = capture.node_names()
        if nodes is not None and _size_beside(capture, nodes) > _MOST_BESIDE:
            names = tuple(name for name in names if name in nodes)
        beside = _Gaps([])  # what lacks of nodes that were not asked for is not told
        inner = _files_in_folders(capture)
        states = {
            name: _NodeFiles(
                capture, name, gaps if nodes is None or name in nodes else beside, inner.get(name, ())
            ).parse()
            for name in names
        }
    _add_missing_rules(cluster, states, nodes, gaps)
    return Snapshot(cluster=cluster, nodes=states, gaps=tuple(gaps.gaps), source=capture.source)


_MOST_BESIDE = 32 << 20  # bytes of nodes that were not asked for


def _size_beside(capture: Capture, nodes: Collection[str]) -> int:
    """How large the files of the other nodes are, as far as that need be known."""
    size = 0
    for name in capture.names():
        first, _, rest = name.partition("/")
        if first == "nodes" and rest.partition("/")[0] not in nodes and size <= _MOST_BESIDE:
            path = capture.path(name)
            size += path.stat().st_size if path is not None else len(capture.read(name))
    return size


class _Gaps:
    """Gaps in the order met; what a collector has told already is not told again."""

    def __init__(self, gaps: list[EvidenceGap]) -> None:
        self.gaps = gaps
        self._told = {(gap.kind, gap.subject) for gap in gaps}

    def has(self, kind: str, subject: str) -> bool:
        """Whether such a gap was met."""
        return (kind, subject) in self._told

    def add(self, gap: EvidenceGap, *, same: Collection[str] = ()) -> None:
        """Adds `gap`, unless there is one of its kind, or of a kind in `same`, about its subject."""
        if self._told.isdisjoint((kind, gap.subject) for kind in (gap.kind, *same)):
            self._told.add((gap.kind, gap.subject))
            self.gaps.append(gap)


def _add_missing_lists(capture: Capture, cluster: Cluster, gaps: _Gaps) -> None:
    given = {"slices": "endpoints"}
    partial = {given.get(name, name) for name, scope in cluster.partial.items() if scope is Scope.SOME}
    partial.discard("services")  # nobody posts all of them, and nothing is concluded from others
    for kind, files, lost in (
        ("services", (SERVICES,), "there are no Services to ask about"),
        ("endpoints", (ENDPOINT_SLICES, ENDPOINTS), "what should serve a Service is not known"),
        ("pods", (PODS,), "why a pod is not an endpoint cannot be told"),
        ("nodes", (NODES,), "the nodes and their addresses are not known"),
    ):
        if kind in partial:
            gaps.add(
                EvidenceGap(
                    kind,
                    kind,
                    f"only some {kind} were given; of others nothing is known",
                    remedy=f"give them all: kubectl get {kind if kind != 'endpoints' else 'endpointslices'} -A -o yaml",
                )
            )
        elif not any(capture.has(file) for file in files):
            resource = files[0].rpartition("/")[2].partition(".")[0]
            gap = EvidenceGap(
                kind,
                kind,
                f"{files[0]} is missing; {lost}",
                remedy=f"add it: kubectl get {resource} -A -o json > {files[0]}",
            )
            gaps.add(gap, same=("api-forbidden",))


def _add_missing_rules(
    cluster: Cluster, states: dict[str, NodeState], asked: Collection[str] | None, gaps: _Gaps
) -> None:
    names = dict.fromkeys([*(cluster.nodes or ()), *states])
    for name in names:
        if asked is not None and name not in asked:
            continue
        state = states.get(name)
        if state is None:
            message = (
                f"nothing was read on {name}; what it does with packets is taken from the API objects alone"
            )
        elif state.place_unread and (state.rulesets or state.nft is not None):
            other = "nft's listing" if state.rulesets else "iptables-save"
            message = (
                f"what was read of {name} holds no rules of kube-proxy's, and {other} of it was not read"
            )
        elif state.has_rules and state.ipvs_unread:
            message = f"the virtual servers of IPVS on {name} were not read (no ipvsadm.txt)"
            remedy = f"save `ipvsadm -Sn` of the node as nodes/{name}/ipvsadm.txt"
            gaps.add(EvidenceGap("node-rules", name, message, remedy=remedy))
            continue
        elif any(are_ports_lost(ruleset) for ruleset in state.rulesets):
            message = (
                f"the program that saved the rules of {name} is older than their writer, and prints no ports"
            )
            gaps.add(EvidenceGap("node-rules", name, message, remedy=HOW_TO_SAVE))
            continue
        elif not state.has_rules:
            message = f"no packet filter rules of {name} were read; what they do with packets is not known"
        else:
            continue
        remedy = (
            f"add nodes/{name}/iptables-save.txt and nft-ruleset.json, or let ktp read the node: "
            "--node-access ssh or agent"
        )
        gaps.add(EvidenceGap("node-rules", name, message, remedy=remedy))


def _is_kube_proxy_in(nft: NftRuleset) -> bool:
    """Whether kube-proxy's own table, or its chains in tables of iptables-nft, are in nft's listing.

    Where they are not, it may program the legacy tables, of which nft's listing tells nothing.
    """
    return any(t.name == "kube-proxy" or "KUBE-SERVICES" in t.chains for t in nft.tables)


def _files_in_folders(capture: Capture) -> dict[str, list[str]]:
    """Of each node the files in folders of its folder: `cilium/FILE`, `pods/POD/FILE`."""
    found: dict[str, list[str]] = {}
    for name in capture.names():
        parts = name.split("/", 2)
        if len(parts) == 3 and parts[0] == "nodes" and "/" in parts[2]:
            found.setdefault(parts[1], []).append(parts[2])
    return found


class _PodNamespaces(Mapping[str, NodeState]):
    """The pods' network namespaces of one node, parsed as they are asked for: a node may have hundreds.

    nodes/NODE/pods/NAMESPACE_POD/: a namespace's name holds no underscore. A file that cannot be read is as one that is
    missing.
    """

    def __init__(self, capture: Capture, node: str, files: Iterable[str]) -> None:
        self._capture = capture
        self._node = node
        folders = dict.fromkeys(file.partition("/")[0] for file in files if "/" in file)
        self._folders = {folder.replace("_", "/", 1): folder for folder in folders}
        self._states: dict[str, NodeState] = {}

    def __getitem__(self, name: str) -> NodeState:
        if name not in self._states:
            files = _NodeFiles(self._capture, f"{self._node}/pods/{self._folders[name]}", _Gaps([]))
            # Nobody's place but kube-proxy's rules are missed, and those are not in a pod.
            self._states[name] = replace(files.parse(), name=name, place_unread=False, ipvs_unread=False)
        return self._states[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)


class _NodeFiles:
    """The files of one node's folder; remembers which were read."""

    def __init__(self, capture: Capture, node: str, gaps: _Gaps, inner: Collection[str] = ()) -> None:
        self._capture = capture
        self._node = node
        self._gaps = gaps
        self._inner = inner
        self._read: set[str] = set()
        self._unreadable: set[str] = set()

    def parse(self) -> NodeState:
        """All that the files tell of the node."""
        rulesets = self._rulesets()
        nft = self._nft(rulesets)
        self._tell_back_ends(rulesets, nft)
        rulesets = self._with_ports(rulesets, nft)
        # What is left of rules of which a part cannot be read would answer as if that part were not there.
        nothing_else = nft is None and not any(ruleset.tables() for ruleset in rulesets)
        if self._unreadable & _IPV4_RULES or (nothing_else and self._gaps.has("node-rules", self._node)):
            rulesets, nft = [], None
        elif self._unreadable & _IPV6_RULES:
            rulesets = [ruleset for ruleset in rulesets if ruleset.family != "ip6"]
        # Ruleset order decides nothing in the kernel; readers expect the older back end first.
        rulesets.sort(key=lambda ruleset: _BACKEND_ORDER.index(ruleset.backend))
        config = self._kube_proxy()
        interfaces = self._parse("ip-addr.json", parse_interfaces)
        ipvs = self._parse("ipvsadm.txt", parse_ipvs)
        runs_ipvs = (
            (config is not None and config.mode == "ipvs")
            or any(i.name == IPVS_INTERFACE and i.addresses for i in interfaces or ())
            or any(map(links_ipvs, rulesets))
        )
        cilium = parse_cilium(self._files_in("cilium/"), self._parse_in("cilium/"))
        serves = cilium is not None and cilium.is_readable and cilium.config.replaces
        return NodeState(
            name=self._node,
            interfaces=interfaces,
            routes=self._routes(),
            rules4=self._parse("ip-rule.json", parse_rules),
            rules6=self._parse(
                "ip6-rule.json", lambda data, *, source: parse_rules(data, source=source, family=6)
            ),
            sockets=self._parse("ss.txt", parse_sockets),
            sysctls=self._parse("sysctl.txt", parse_sysctls),
            ipsets=self._parse("ipset-save.txt", parse_ipsets),
            rulesets=tuple(rulesets),
            nft=nft,
            place_unread=not serves and self._is_a_place_unread(rulesets, nft, config),
            cilium=cilium,
            nft_hooks=self._parse("nft-hooks.txt", _parse_hooks),
            ipvs=ipvs,
            ipvs_unread=runs_ipvs and ipvs is None,
            kube_proxy=config,
            tunnels=with_wireguard(
                self._parse("ip-link.json", parse_tunnels), self._parse("wg.txt", parse_wireguard)
            ),
            neighbours=self._parse("ip-neigh.json", parse_neighbours),
            forwarding=self._parse("bridge-fdb.json", parse_forwarding),
            xfrm=self._xfrm(),
            offloads=self._parse("ethtool.txt", parse_offloads),
            tracked=self._parse("conntrack.txt", parse_connections),
            counters=self._parse("netstat.txt", parse_counters),
            rules_twice=self._rules_twice(),
            files=frozenset(self._read),
            pods=_PodNamespaces(self._capture, self._node, self._files_in("pods/")),
        )

    def _xfrm(self) -> Xfrm | None:
        policies = self._parse("ip-xfrm-policy.txt", parse_xfrm_policies)
        states = self._parse("ip-xfrm-state.txt", parse_xfrm_states)
        return Xfrm(policies=policies, states=states) if policies is not None else None

    def _is_a_place_unread(
        self, rulesets: list[Ruleset], nft: NftRuleset | None, config: KubeProxyConfig | None
    ) -> bool:
        """Whether kube-proxy's rules are not in what was read, and may be in a back end that was not."""
        if any(has_chain(r, "nat", "KUBE-SERVICES") for r in rulesets) or (nft and _is_kube_proxy_in(nft)):
            return False
        if not self._read.isdisjoint(_NFT_FILES):
            return not rulesets
        return config is None or config.mode == "nftables"

    def _files_in(self, folder: str) -> list[str]:
        return [name.removeprefix(folder) for name in self._inner if name.startswith(folder)]

    def _parse_in(self, folder: str) -> Callable[..., Any]:
        return lambda file, parse: self._parse(f"{folder}{file}", parse)

    def _name(self, file: str) -> str:
        return f"nodes/{self._node}/{file}"

    def _attempt(self, file: str, read: Callable[[], T]) -> T | None:
        """`read()`, or None with a gap where the file cannot be read or understood."""
        remedy = None
        try:
            value = read()
        except EvidenceError as error:
            why, remedy = error.message, error.hint
        except OSError as error:
            why = f"{self._name(file)} cannot be read: {error.strerror or error}"
        except SHAPE_ERRORS as error:
            # A shape that no parser foresaw: said as such, with what there is to tell it by.
            why = f"{self._name(file)} cannot be understood ({type(error).__name__}: {error})"
        else:
            self._read.add(file)
            return value
        self._unreadable.add(file)
        subject = f"{self._node}/{file}"
        self._gaps.add(EvidenceGap("node-file", subject, why, remedy=remedy))
        return None

    def _parse(self, file: str, parse: Callable[..., T]) -> T | None:
        """`parse(data, source=…)` of a file, None where it is absent or garbled."""
        name = self._name(file)
        if not self._capture.has(name):
            return None
        return self._attempt(file, lambda: parse(self._capture.read(name), source=name))

    def _routes(self) -> tuple[Route, ...] | None:
        """Both families. None without ip-route.json: IPv6 routes alone would say that IPv4 has none."""
        routes = self._parse("ip-route.json", parse_routes)
        routes6 = self._parse(
            "ip6-route.json", lambda data, *, source: parse_routes(data, source=source, family=6)
        )
        if routes is None:
            if routes6 is not None and not self._capture.has(self._name("ip-route.json")):
                subject = f"{self._node}/ip-route.json"
                message = (
                    f"{self._name('ip-route.json')} is missing; the routes of {self._node} are not known"
                )
                remedy = "add it: ip -j route show table all"
                self._gaps.add(EvidenceGap("node-file", subject, message, remedy=remedy))
            return None
        return merge_routes(routes, routes6 or ())

    def _kube_proxy(self) -> KubeProxyConfig | None:
        for file in _KUBE_PROXY_CONFIGS:
            config = self._parse(file, parse_kube_proxy_config)
            if config is not None:
                return config
        return None

    # ------------------------------------------------------------------------------------------------------ rules

    def _rulesets(self) -> list[Ruleset]:
        rulesets: list[Ruleset] = []
        for file, family, backend in _RULESET_FILES:
            ruleset = self._ruleset(file, family, backend)
            if ruleset is None:
                continue
            others = {other.backend for other in rulesets if other.family == family}
            # `iptables` on a node is one of the two commands: its dump repeats that one's.
            if backend is None and (
                ruleset.backend in others
                or (ruleset.backend is Backend.UNKNOWN and others >= {Backend.LEGACY, Backend.NFT})
            ):
                continue
            rulesets.append(ruleset)
        return rulesets

    def _ruleset(self, file: str, family: str, backend: Backend | None) -> Ruleset | None:
        name = self._name(file)
        if not self._capture.has(name):
            return None

        def read() -> Ruleset:
            path = self._capture.path(name)
            data = path if path is not None else self._capture.read(name)
            return open_ruleset(data, source=name, family=family, backend=backend)

        ruleset = self._attempt(file, read)
        if ruleset is None and not self._capture.read(name).strip():
            # A command prints nothing where its back end has no tables: no part of the rules is missing then.
            self._unreadable.discard(file)
        return ruleset

    def _nft(self, rulesets: list[Ruleset]) -> NftRuleset | None:
        """The nft ruleset, unless it has no base chains but those that iptables-nft-save dumped as well.

        Such a dump is large and would be parsed for nothing; `files` names it as read all the same.
        """
        dumped = {
            (ruleset.family, table)
            for ruleset in rulesets
            if ruleset.backend is Backend.NFT
            for table in ruleset.tables()
        }

        def read(data: bytes, *, source: str) -> NftRuleset | None:
            tables = _nft_tables(data)
            if tables is not None and dumped and tables <= dumped and not _has_own_chains(data):
                return None
            from ktp.parse.nft import parse_nft_json

            return parse_nft_json(data, source)

        def read_text(data: bytes, *, source: str) -> NftRuleset:
            from ktp.parse.nft import parse_nft_text

            return parse_nft_text(decode_text(data, source), source)

        if self._capture.has(self._name("nft-ruleset.json")):
            return self._parse("nft-ruleset.json", read)
        return self._parse("nft-ruleset.txt", read_text)

    def _tell_back_ends(self, rulesets: list[Ruleset], nft: NftRuleset | None) -> None:
        """What `iptables -nvL` lists does not say whose it is; nft's listing has all that is iptables-nft's."""
        if nft is None or self._read.isdisjoint(_NFT_FILES):
            return
        for ruleset in rulesets:
            if ruleset.backend is Backend.UNKNOWN:
                ruleset.backend = _back_end(ruleset, nft)

    def _rules_twice(self) -> RulesTwice | None:
        """The rules and a second reading of them; None where they were read once."""
        if not self._files_in(AGAIN):
            return None
        readings = [
            RulesReading(tuple(files._rulesets()), files._nft([]))
            for files in (
                _NodeFiles(self._capture, self._node, _Gaps([])),
                _NodeFiles(self._capture, f"{self._node}/{AGAIN.rstrip('/')}", self._gaps),
            )
        ]
        return RulesTwice(*readings)

    def _with_ports(self, rulesets: list[Ruleset], listing: NftRuleset | None) -> list[Ruleset]:
        """The rulesets with the ports that their saves lost, where nft's listing has them."""
        lost = [
            ruleset
            for ruleset in rulesets
            if ruleset.backend is not Backend.LEGACY and are_ports_lost(ruleset)
        ]
        if not lost or self._read.isdisjoint(_NFT_FILES):
            return rulesets
        from ktp.parse.lost_ports import PortsFromNft
        from ktp.parse.nft import parse_nft_json

        if listing is None:
            listing = self._parse("nft-ruleset.json", lambda data, *, source: parse_nft_json(data, source))
        return [PortsFromNft(r, listing) if listing is not None and r in lost else r for r in rulesets]


def _back_end(ruleset: Ruleset, nft: NftRuleset) -> Backend:
    """iptables-nft's where nft lists the same chains and as many rules, legacy where it has none of them, else unknown.

    Read one after the other, a chain may have gained a rule in between: what is alike in part tells neither.
    """
    there = {
        (table.name, name): len(chain.rules)
        for table in nft.tables
        if table.family == ruleset.family and any(map(table.is_of_xtables, table.base_chains))
        for name, chain in table.chains.items()
    }
    listed = {
        (table, name): len(chain)
        for table in ruleset.tables()
        for name in ruleset.chain_names(table)
        if (chain := ruleset.chain(table, name)) is not None and (len(chain) or name not in BUILT_IN_CHAINS)
    }
    if listed.items() <= there.items():
        return Backend.NFT if listed else Backend.UNKNOWN
    named = {key for key in listed if key[1] not in BUILT_IN_CHAINS} or listed.keys()
    return Backend.UNKNOWN if any(key in there for key in named) else Backend.LEGACY


def _nft_tables(data: bytes) -> set[tuple[str, str]] | None:
    """(family, name) of every table that `nft -j list ruleset` lists, found without parsing the whole.

    None where that cannot be told: the text breaks off, or a table is written in a way not looked for.
    """
    matches = _NFT_TABLE.findall(data)
    if len(matches) != len(_NFT_TABLE_START.findall(data)) or not _NFT_END.search(data[-64:]):
        return None
    tables = [load_json(match, "an nft table") for match in matches]
    return {(table["family"], table["name"]) for table in tables}


def _has_own_chains(data: bytes) -> bool:
    """Whether `nft -j list ruleset` has a base chain that is none of iptables-nft's, as of the tables above."""
    matches = _NFT_BASE_CHAIN.findall(data)
    if len(matches) != data.count(b'"hook"'):
        return True  # one that is written in a way not looked for
    chains = [load_json(match, "an nft chain") for match in matches]
    return not all(
        is_chain_of_xtables(*(chain.get(key) for key in ("family", "table", "name", "type", "hook", "prio")))
        for chain in chains
    )


def _parse_hooks(data: bytes, *, source: str) -> HookListing:
    return parse_nft_hooks(decode_text(data, source), source=source)
