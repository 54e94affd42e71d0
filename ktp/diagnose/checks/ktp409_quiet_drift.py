"""The node's rules list other endpoints than the API, and no client notices yet.

# What it means
For a port of the Service the rules on the node lead to an endpoint that the API does not list, or miss one that it
does. None of the cells that ktp asks changes by it (where one does, it is KTP401).

# Why traffic fails
It does not yet. kube-proxy is behind by seconds, as in every rollout, or has stopped: then the difference grows until
clients meet a pod that is gone.

# Evidence
Endpoints of the rules and of the API, side by side.

# Confirm by hand
    iptables-save -t nat | grep 'NAMESPACE/NAME' | grep DNAT
    kubectl get endpointslices -n NAMESPACE -l kubernetes.io/service-name=NAME
    curl -s http://NODE-IP:10256/healthz

# Fix
Look again after half a minute. If the difference stays, restart kube-proxy on the node and look at its log.

# Example
kube-proxy's watch of the API server is broken since the certificate was renewed; one pod has been replaced since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ktp.diagnose.case import Case
from ktp.diagnose.checks import ktp401_rules_disagree
from ktp.diagnose.checks.base import Check, listed
from ktp.diagnose.checks.kube_common import kube_proxy_evidence, restart_command
from ktp.kubeproxy.names import (
    SEP_PREFIX,
    host_port,
    nft_service_chains,
    service_chains,
    service_port_strings,
)
from ktp.model.cluster import Service, ServicePort, ip_of
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.host import NodeState
from ktp.model.ipvs import IpvsTable
from ktp.model.ruleset import Ruleset

if TYPE_CHECKING:
    from ktp.model.nftables import NftTable


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node whose rules list other endpoints for a port and that KTP401 says nothing of."""
    if not case.examiner.index.knows(case.service) or not case.entries:
        return
    for node, state in case.by_kube_proxy():
        if not state.has_rules:
            continue
        if len({r.backend for r in state.rulesets if _kube(r)}) > 1:
            continue
        for port in case.service.ports:
            programmed = _programmed(case, state, port)
            if programmed is None:
                continue
            wanted = _wanted(case, node, port)
            missing, extra = sorted(wanted - programmed), sorted(programmed - wanted)
            if not (missing or extra) or ktp401_rules_disagree.changed_cells(case, node):
                continue
            parts = [f"{listed(extra)} only in the rules"] if extra else []
            parts += [f"{listed(missing)} only in the API"] if missing else []
            yield CHECK.finding(
                f"the rules on {node} and the API list different endpoints of {case.service.key} "
                f"port {port.name or port.port}: {'; '.join(parts)}",
                node=node,
                evidence=[
                    Evidence("rule", f"rules of {node}", listed(sorted(programmed), 8) or "none"),
                    Evidence(
                        "field", f"EndpointSlices of {case.service.key}", listed(sorted(wanted), 8) or "none"
                    ),
                    *kube_proxy_evidence(case, node),
                ],
                fix=Fix(
                    f"if it stays so, restart kube-proxy on {node} and look at its log",
                    command=restart_command(node),
                ),
            )


def _kube(ruleset: Ruleset) -> bool:
    return ruleset.chain("nat", "KUBE-SERVICES") is not None


def _wanted(case: Case, node: str, port: ServicePort) -> set[str]:
    """`ip:port` of every endpoint that kube-proxy would write for the port on this node."""
    on_node = case.examiner.port_on(case.service, port, node)
    out: set[str] = set()
    for version in {e.front_end.ip_version for e in case.on(node) if e.port == port}:
        selection = on_node.selection(ip_version=version)
        chosen = {*selection.cluster, *selection.local}
        out |= {f"[{e.ip}]:{e.port}" if version == 6 else f"{e.ip}:{e.port}" for e in chosen}
    return out


def _programmed(case: Case, state: NodeState, port: ServicePort) -> set[str] | None:
    """`ip:port` of every endpoint in the node's rules for the port; None where its rules cannot be told."""
    out: set[str] = set()
    if state.ipvs_unread:
        return None
    if state.ipvs is not None and state.ipvs.services:
        return set(_real_servers(state.ipvs, case.service, port))
    known = False
    for ruleset in state.rulesets:
        if _kube(ruleset):
            known = True
            for text in service_port_strings(case.service, port):
                out |= set(_targets(ruleset, text, port.protocol.lower()))
    for table in state.nft.tables if state.nft is not None else ():
        if table.name == "kube-proxy":
            known = True
            out |= set(_nft_targets(table, case, port))
    return out if known else None


def _real_servers(table: IpvsTable, service: Service, port: ServicePort) -> Iterator[str]:
    """`ip:port` of what the virtual servers of the Service's cluster IPs send to."""
    own = {ip for text in service.cluster_ips if (ip := ip_of(text)) is not None}
    for each in table.services:
        if each.ip in own and each.port == port.port and each.protocol == port.protocol.lower():
            for server in each.servers:
                yield (
                    f"[{server.ip}]:{server.port}" if server.ip.version == 6 else f"{server.ip}:{server.port}"
                )


def _targets(ruleset: Ruleset, text: str, protocol: str) -> Iterator[str]:
    chains = service_chains(text, protocol)
    for name in (chains.svc, chains.svl, chains.xlb):
        for rule in ruleset.chain("nat", name) or ():
            target = rule.target.name if rule.target is not None else ""
            endpoint = ruleset.chain("nat", target) if target.startswith(SEP_PREFIX) else None
            for each in endpoint or ():
                led_to = each.target.value("--to-destination") if each.target is not None else None
                if led_to:
                    yield led_to


def _nft_targets(table: NftTable, case: Case, port: ServicePort) -> Iterator[str]:
    from ktp.explain.nft_kube import target_of_value
    from ktp.model.nftables import AnonymousSet, Immediate, MapLookup, Nat, Verdict, Vmap

    chains = nft_service_chains(case.service.namespace, case.service.name, port.protocol, port.name)
    names = [chains.service, chains.local]
    for name in names:  # grows by the endpoints' chains
        chain = table.chains.get(name)
        for statement in (s for rule in (chain.rules if chain is not None else ()) for s in rule.statements):
            match statement:
                case Verdict(target=str(target)):
                    names += [target] if target not in names else []
                case Vmap(data=AnonymousSet() as drawn):
                    targets = [e.value.target for e in drawn.elements if isinstance(e.value, Verdict)]
                    names += [t for t in targets if t is not None and t not in names]
                case Nat(address=Immediate(ip), port=Immediate(number)):
                    yield host_port(str(ip), int(str(number)))
                case Nat(address=MapLookup(data=AnonymousSet() as drawn)):
                    ends = (target_of_value(element.value) for element in drawn.elements)
                    yield from (host_port(e.ip, e.port or 0) for e in ends if e is not None)


CHECK = Check("KTP409", "QuietDrift", Severity.INFO, run)
