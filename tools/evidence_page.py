"""What is concluded where a kind of evidence was not read: the table behind docs/reference/evidence.md."""

from __future__ import annotations

from ktp.model.assumption import EvidenceKind
from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True)
class Without:
    """`read` where the kind is read from, `instead` what stands in for it (assumed by name), `unknown` what cannot be.

    All in words; "" where there is none.
    """

    read: str
    instead: str
    unknown: str = ""


WITHOUT: dict[EvidenceKind, Without] = {
    EvidenceKind.ADDRESSES: Without(
        "`ip-addr.json`",
        "the `local` routes; else the Node's InternalIP addresses (ExternalIP where it has none; without the Node its "
        "pods' hostIP) on one device, flannel's devices on a Node that it has annotated, and "
        "an address of the nodes' network that nobody is known to have is tried on each node: what all answer alike "
        "stands",
        "an address that may be of several nodes which would not answer alike",
    ),
    EvidenceKind.ROUTES: Without(
        "`ip-route.json`, `ip6-route.json`",
        "what the kernel adds for the addresses, a default route, pods of this node behind a device of theirs, pods "
        "and `podCIDR`s of other nodes by those nodes",
        "",
    ),
    EvidenceKind.ROUTING_RULES: Without(
        "`ip-rule.json`, `ip6-rule.json`", "the usual three rules: local, main, default"
    ),
    EvidenceKind.LINKS: Without("`ip-addr.json`", "the kind of a device by its addresses and routes"),
    EvidenceKind.NEIGHBOURS: Without(
        "of tunnels `ip-neigh.json`, `bridge-fdb.json`, `wg.txt`",
        "a neighbour is who has the address, and a tunnel leads to the node that the route means",
    ),
    EvidenceKind.SOCKETS: Without(
        "`ss.txt`", "no process of the node listens on the port, save host-network pods that the API tells"
    ),
    EvidenceKind.SYSCTLS: Without(
        "`sysctl.txt`",
        "what kubelet and kube-proxy set: forwarding and bridge-nf-call 1, route_localnet 1 where kube-proxy serves "
        "node ports on 127.0.0.1; the kernel's defaults for the rest",
    ),
    EvidenceKind.SETS: Without(
        "`ipset-save.txt`",
        "of kube-proxy's own in IPVS mode, with its virtual servers and the API read: what the Services ask for",
        "whether another set holds the address, where that changes the answer",
    ),
    EvidenceKind.NFT: Without(
        "`nft-ruleset.json`, `nft-ruleset.txt`",
        "where iptables rules were read, no native nft table concerns the packet",
        "a node in nftables mode",
    ),
    EvidenceKind.NAT: Without("iptables-save", "", "every packet that meets the table"),
    EvidenceKind.MANGLE: Without("iptables-save", "in a posted part, no rule of it concerns the packet"),
    EvidenceKind.RAW: Without("iptables-save", "in a posted part, no rule of it concerns the packet"),
    EvidenceKind.FILTER: Without(
        "iptables-save", "", "whether a packet passes: kube-proxy drops and rejects in this table"
    ),
    EvidenceKind.SECURITY: Without("iptables-save", "in a posted part, no rule of it concerns the packet"),
    EvidenceKind.RULES: Without(
        "iptables-save of each back end, or nft's listing with what kube-proxy programs in it",
        "of a node that a packet only passes on its way to a pod or host-network endpoint there: nothing stops it",
        "what the node itself does with packets for it; of front ends the API's intent is shown as such (`~`)",
    ),
    EvidenceKind.CONNTRACK: Without(
        "`conntrack.txt`, of the asked UDP ports alone", "the client has no earlier connection", ""
    ),
    EvidenceKind.IPVS: Without("`ipvsadm.txt`", "", "packets to the addresses of kube-ipvs0"),
    EvidenceKind.ENDPOINTS: Without(
        "`endpointslices.json`, `endpoints.json`",
        "the rules name the endpoints",
        "what the API asks for (the intent)",
    ),
    EvidenceKind.PODS: Without(
        "`pods.json`",
        "addresses that endpoints name; without endpoints too, an address that the rules name and a route leads to is "
        "a pod's",
        "",
    ),
    EvidenceKind.NODES: Without("`nodes.json`", "the nodes that were read", "whether there are more"),
    EvidenceKind.VERSION: Without(
        "`version.json`, kube-proxy's image",
        "the rules' form; else every version alike, or the nearest known one",
    ),
    EvidenceKind.PROXY_CONFIG: Without(
        "`kube-proxy-config.json`, the ConfigMap",
        "the mode by what is programmed on the nodes; where none tells, iptables, the default",
    ),
    EvidenceKind.POD_NAMESPACE: Without(
        "`nodes/NODE/pods/NAMESPACE_POD/`",
        "the program in the pod listens and answers (said once of a report)",
    ),
    EvidenceKind.PORTS: Without(
        "iptables-save of the version that wrote the rules",
        "the ports in nft's listing of the same tables, where both list the same rules",
        "rules whose port was not printed: the saving program is older than the one that wrote them",
    ),
    EvidenceKind.DATA_PLANE: Without(
        "the agent's pods, devices and chains; of Cilium `nodes/NODE/cilium/`",
        "",
        "what the tables of a data plane other than kube-proxy's do",
    ),
}


def evidence_markdown() -> str:
    """The page of the reference."""
    rows = [
        f"| `{kind.value}` | {w.read} | {w.instead or '–'} | {w.unknown or '–'} |"
        for kind, w in WITHOUT.items()
    ]
    return "\n".join((
        "# What is concluded without a kind of evidence",
        "",
        "What was not read is not empty: ktp takes a lesser source that says the same, or what Kubernetes promises, "
        "and names it as an assumption (`assumptions` in JSON, a star at the cell in a report); else the answer is "
        "`unknown`. Written by `tools/gen_pages.py` from `tools/evidence_page.py`.",
        "",
        "| kind | read from | taken instead | unknown without it |",
        "|---|---|---|---|",
        *rows,
        "",
        "## What stays unknown, and why it must",
        "",
        "- **nat alone** (`iptables-save -t nat`): kube-proxy since 1.25 drops a Local node port without endpoints in "
        "`filter`, and a firewall or NetworkPolicy there decides on what nat translated. The rules of nat that name "
        "the port are shown.",
        "- **filter alone**: without nat nobody knows to which pod, or whether at all, a packet is translated; where a "
        "rule drops it before that matters, the answer stands.",
        "- **A dump that breaks off, a grep**: the rules that were cut away may decide first. Chains that are whole "
        "answer; the rule that names the port is shown.",
        "- **The API alone**: `diagnose` says what should happen (`~`); `trace` follows rules, and there are none.",
        "- **One node of several**: what arrives at it is answered, the other nodes being taken to forward as "
        "Kubernetes asks; what arrives at another node is what should happen there.",
        "- **Ports that were not printed**: every rule of kube-proxy's would match every port.",
        "",
    ))  # fmt: skip
