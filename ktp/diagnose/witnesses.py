"""Outside clients that a node's own rules single out: one address for each network that they name.

"A client outside" is many clients. Where a rule asks for the source, one address inside its network and the answer to
it show whether the rule keeps some of them out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ktp.diagnose.examine import Examiner
from ktp.model.cilium import LOCAL_IDENTITIES
from ktp.model.cluster import networks_of
from ktp.model.host import IPAddress, IPNetwork, NodeState
from ktp.model.ruleset import Rule

if TYPE_CHECKING:
    from ktp.model.nftables import NftTable

_SADDR = re.compile(r"\bip6? saddr (?:!= )?(@\S+|\{[^}]*\}|\S+)")
_MAX = 16
_MAX_RULES = 4000


def witnesses(examiner: Examiner, node: str, family: int) -> list[tuple[IPAddress, str]]:
    """(address, the words that it stands for): clients outside the cluster that rules of the node name."""
    state = examiner.snapshot.nodes.get(node)
    if state is None:
        return []
    inside: tuple[set[IPAddress], list[IPNetwork]] | None = None
    out: dict[IPAddress, str] = {}
    for text in _networks(state, family):
        net = next(iter(networks_of([text], family)), None)
        if net is None or net.prefixlen == 0 or net.is_loopback or net.is_multicast:
            continue
        if inside is None:
            inside = _cluster_networks(examiner)
        start = int(net.network_address)
        for number in range(min(net.num_addresses, 256)):
            candidate = ip_address(start + (number + 1 if net.num_addresses > 1 else 0) % net.num_addresses)
            if candidate not in inside[0] and not any(candidate in n for n in inside[1]):
                out.setdefault(candidate, text)
                break
        if len(out) >= _MAX:
            break
    return list(out.items())


def _cluster_networks(examiner: Examiner) -> tuple[set[IPAddress], list[IPNetwork]]:
    from ktp.diagnose.questions import taken_addresses

    nodes = (examiner.snapshot.cluster.nodes or {}).values()
    nets = [net for node in nodes for net in networks_of(node.pod_cidrs)]
    return taken_addresses(examiner.snapshot), nets


def _networks(state: NodeState, family: int) -> Iterator[str]:
    """Source networks of the rules that are not kube-proxy's, and the members of the sets that they ask for."""
    cilium = state.cilium
    if cilium is not None and cilium.config.enforces_policy:
        # An identity of its own is given to a network that a policy names (pkg/identity, local scope).
        for entry in cilium.ipcache or ():
            if entry.identity is not None and entry.identity >= LOCAL_IDENTITIES:
                yield str(entry.network)
    count = 0
    for ruleset in state.rulesets_of("ip" if family == 4 else "ip6"):
        for table in ruleset.tables():
            for name in ruleset.chain_names(table):
                if name.startswith(("KUBE-", "cali-")):
                    continue
                chain = ruleset.chain(table, name)
                for rule in chain if chain is not None else ():
                    count += 1
                    if count > _MAX_RULES:
                        return
                    yield from _sources(rule, state)
    for nft_table in state.nft.tables if state.nft is not None else ():
        if (
            nft_table.name == "kube-proxy"
            or nft_table.is_xtables
            or nft_table.family not in ("ip", "ip6", "inet")
        ):
            continue
        for nft_chain in nft_table.chains.values():
            for nft_rule in nft_chain.rules:
                count += 1
                if count > _MAX_RULES:
                    return
                yield from _nft_sources(nft_table, nft_rule.text)


def _nft_sources(table: NftTable, text: str) -> Iterator[str]:
    for found in _SADDR.finditer(text):
        words = found.group(1)
        if words.startswith("@"):
            members = table.set_or_map(words[1:])
            for element in (members.elements if members is not None else ())[:4]:
                yield str(element).split("-")[0].split()[0]
        else:
            for part in words.strip("{ }").split(",")[:4]:
                yield part.strip().split("-")[0]


def _sources(rule: Rule, state: NodeState) -> Iterator[str]:
    for match in rule.matches:
        for option in match.options:
            if match.name == "" and option.flag == "-s":
                yield option.args[0]
            elif match.name == "iprange" and option.flag == "--src-range":
                yield option.args[0].split("-")[0]
            elif match.name == "set" and option.flag == "--match-set" and len(option.args) == 2:
                if option.args[1].split(",")[0] == "src":
                    found = (state.ipsets or {}).get(option.args[0])
                    for entry, _ in (found.entries if found is not None else ())[:4]:
                        yield entry.split(",")[0].split("-")[0]
