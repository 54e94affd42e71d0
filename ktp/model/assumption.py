"""What was taken for granted where evidence was not there (design §5): by kind, for a node."""

from __future__ import annotations

from enum import Enum

from ktp.model.record import dataclass


class EvidenceKind(str, Enum):
    """What may be read, or not."""

    ADDRESSES = "addresses"
    ROUTES = "routes"
    ROUTING_RULES = "rules-of-routing"
    LINKS = "links"
    NEIGHBOURS = "neighbours"
    SOCKETS = "sockets"
    SYSCTLS = "sysctls"
    SETS = "sets"
    NFT = "nft"
    NAT = "nat"
    MANGLE = "mangle"
    RAW = "raw"
    FILTER = "filter"
    SECURITY = "security"
    RULES = "rules"
    CONNTRACK = "conntrack"
    IPVS = "ipvs"
    ENDPOINTS = "endpoints"
    PODS = "pods"
    NODES = "nodes"
    VERSION = "version"
    PROXY_CONFIG = "proxy-config"
    POD_NAMESPACE = "pod-namespace"
    PORTS = "ports"
    DATA_PLANE = "data-plane"


@dataclass(frozen=True, slots=True)
class Assumption:
    """`taken` is what was taken for granted, in words; `evidence` what would have told, None where nothing could.

    `node` is where it would have been read, "" where it is of no one node; `detail` what else would be answered.
    """

    taken: str
    evidence: EvidenceKind | None = None
    node: str = ""
    detail: str = ""


PROGRAM_LISTENS = Assumption(
    "the program in the pod listens and answers (that was not looked at)",
    EvidenceKind.POD_NAMESPACE,
)
"""Of every answer that is delivered to a pod of which no socket was read."""

POD_AS_MADE = Assumption(
    "pods' network namespaces are as Kubernetes makes them: no rules, one way out (not all of that was read)",
    EvidenceKind.POD_NAMESPACE,
)
"""Of every packet in a pod of which addresses, routes or rules were not read."""
