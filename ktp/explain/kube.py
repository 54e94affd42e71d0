"""kube-proxy's and the kubelet's rules in words: what each is there for, whom it concerns, and whom it does not.

Rules are recognised by chain, target and matches. Comments only name the Service: kube-proxy leaves them out in
large clusters. Facts: kube-proxy 1.18 to 1.36.
"""

from __future__ import annotations

import re

from ktp.explain.words import condition_words, host_words, percent, rule_words, target_words
from ktp.kubeproxy.names import (
    EXT_PREFIX,
    FW_PREFIX,
    KUBE_EXTERNAL_SERVICES,
    KUBE_FIREWALL,
    KUBE_FORWARD,
    KUBE_IPVS_FILTER,
    KUBE_IPVS_OUT_FILTER,
    KUBE_LOAD_BALANCER,
    KUBE_MARK_DROP,
    KUBE_MARK_MASQ,
    KUBE_NODE_PORT,
    KUBE_NODEPORTS,
    KUBE_POSTROUTING,
    KUBE_PROXY_FIREWALL,
    KUBE_SERVICES,
    KUBE_SOURCE_RANGES_FIREWALL,
    SEP_PREFIX,
    SVC_PREFIX,
    SVL_PREFIX,
    XLB_PREFIX,
    role_of_chain,
)
from ktp.model.reading import Reading
from ktp.model.ruleset import Rule, Ruleset

_SERVICE = re.compile(r"(?<![^\s\"])([a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*(?::[a-z0-9-]*)?)(?![^\s\"])")
_OWN_PREFIXES = (SVC_PREFIX, SVL_PREFIX, EXT_PREFIX, XLB_PREFIX, FW_PREFIX, SEP_PREFIX)
# Of IPVS mode alone; their rules do not always ask an ipset.
_IPVS_CHAINS = (
    KUBE_NODE_PORT,
    KUBE_LOAD_BALANCER,
    KUBE_SOURCE_RANGES_FIREWALL,
    KUBE_IPVS_FILTER,
    KUBE_IPVS_OUT_FILTER,
)
_LOOPBACK = ("127.0.0.0/8", "::1/128")

_BASE_WORDS = {
    ("nat", "PREROUTING"): "destination NAT for what arrives from outside and from pods",
    ("nat", "OUTPUT"): "destination NAT for what this node's own processes send",
    ("nat", "POSTROUTING"): "source NAT for what leaves",
    ("nat", "INPUT"): "source NAT for what this node's own processes receive",
    ("filter", "INPUT"): "filter for what this node's own processes receive",
    ("filter", "FORWARD"): "filter for what passes through this node",
    ("filter", "OUTPUT"): "filter for what this node's own processes send",
}


def explain_rule(rule: Rule, ruleset: Ruleset | None = None, *, brief: bool = False) -> str:
    """What `rule` is there for, in plain words. Never empty, never raises.

    `ruleset` tells which endpoint a KUBE-SEP chain stands for; `brief` leaves out what the chain that the rule leads to
    is for, as its own line tells it.
    """
    if rule.error is None and rule.unread is None and rule.lost is None:
        words = _kube_words(rule, ruleset, brief)
        if words is not None:
            return words
    return rule_words(rule)


def explain_chain(table: str, name: str) -> str:
    """What a chain is for; of a chain of unknown making, that it is one."""
    base = _BASE_WORDS.get((table, name))
    if base is not None:
        return base
    role = role_of_chain(table, name)
    if role is not None:
        return role.words
    if name in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"):
        return f"the rules of table {table} at this point of the packet's way"
    for prefix, owner in _OWNERS:
        if name.startswith(prefix):
            return f"a chain of {owner}"
    return "a chain that is not Kubernetes'"


_OWNERS = (
    ("DOCKER", "Docker"),
    ("ufw6-", "ufw"),
    ("ufw-", "ufw"),
    ("cali-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("OLD_CILIUM_", "Cilium"),
    ("FLANNEL-", "flannel"),
    ("CNI-FORWARD", "the CNI's firewall plugin"),
    ("CNI-ADMIN", "the CNI's firewall plugin"),
    ("CNI-", "the CNI's portmap plugin (hostPorts)"),
    ("KUBE-HOSTPORTS", "kubelet's or CRI-O's host ports"),
    ("KUBE-HP-", "kubelet's or CRI-O's host ports"),
    ("OVN-KUBE-", "OVN-Kubernetes"),
    ("ANTREA-", "Antrea"),
    ("AWS-", "the AWS VPC CNI"),
    ("AZURE-NPM", "Azure NPM"),
    ("IP-MASQ", "ip-masq-agent"),
    ("OPENSHIFT-", "OpenShift"),
    ("SUBMARINER-", "Submariner"),
    ("ts-", "Tailscale"),
    ("KUBE-ROUTER-", "kube-router"),
    ("KUBE-POD-FW-", "kube-router"),
    ("KUBE-NWPLCY-", "kube-router"),
    ("WEAVE", "Weave"),
    ("f2b-", "fail2ban"),
    ("LIBVIRT_", "libvirt"),
    ("NETAVARK", "Podman"),
    ("PRE_", "firewalld"),
    ("POST_", "firewalld"),
    ("IN_", "firewalld"),
    ("FWD_", "firewalld"),
    ("FWDI_", "firewalld"),
    ("FWDO_", "firewalld"),
    ("INPUT_", "firewalld"),
    ("FORWARD_", "firewalld"),
    ("PREROUTING_", "firewalld"),
    ("POSTROUTING_", "firewalld"),
    ("ISTIO_", "Istio"),
    ("KUBE-", "Kubernetes"),
)


def is_service_chain(name: str) -> bool:
    """Whether the chain belongs to one service port or endpoint."""
    return name.startswith(_OWN_PREFIXES)


def is_kube_chain(name: str) -> bool:
    """Whether Kubernetes owns the chain."""
    return role_of_chain("nat", name) is not None or role_of_chain("filter", name) is not None


def service_of(rule: Rule) -> str | None:
    """`namespace/name:port` that the rule's comment names, None where it names none."""
    comment = rule.comment
    if comment is None:
        return None
    m = _SERVICE.search(comment)
    return m.group(1) if m is not None else None


def endpoint_of(chain: str, ruleset: Ruleset | None) -> str | None:
    """`ip:port` that a KUBE-SEP chain sends to, None where the dump does not tell."""
    found = ruleset.chain("nat", chain) if ruleset is not None else None
    for rule in found or ():
        if rule.target is not None and rule.target.name == "DNAT":
            if rule.lost is not None and ruleset is not None:
                return endpoint_behind(ruleset, rule)
            return rule.target.value("--to-destination")
    return None


def endpoint_behind(ruleset: Ruleset, rule: Rule) -> str | None:
    """The address of a KUBE-SEP chain's endpoint by its rule for the endpoint's own connections (`-s IP`)."""
    for other in ruleset.chain(rule.table, rule.chain) or ():
        for match in other.matches:
            option = match.option("-s") if not match.name else None
            if option is not None and option.args and not option.negated:
                return option.args[0].removesuffix("/32").removesuffix("/128")
    return None


def chance_of(rule: Rule) -> float | None:
    """The probability of `-m statistic --mode random`, None where the rule draws no lots."""
    for match in rule.matches:
        if match.name == "statistic":
            option = match.option("--probability")
            try:
                return float(option.args[0]) if option is not None and not option.negated else None
            except (ValueError, IndexError):
                return None
    return None


def destination_port(rule: Rule) -> int | None:
    """The single destination port that the rule asks for, None where it asks for none or for several."""
    for match in rule.matches:
        if match.name in ("tcp", "udp", "sctp"):
            option = match.option("--dport")
            if option is not None and not option.negated and option.args and option.args[0].isdigit():
                return int(option.args[0])
    return None


def protocol_of(rule: Rule) -> str | None:
    """The protocol that the rule asks for."""
    option = _header(rule, "-p")
    return option[0] if option is not None and not option[1] else None


# -- one chain each


def _header(rule: Rule, flag: str) -> tuple[str, bool] | None:
    """(argument, negated) of a header option."""
    for match in rule.matches:
        if match.name == "" and match.options and match.options[0].flag == flag and match.options[0].args:
            return match.options[0].args[0], match.options[0].negated
    return None


def _has(rule: Rule, name: str, flag: str = "") -> bool:
    return any(m.name == name and (not flag or m.option(flag) is not None) for m in rule.matches)


def _type_is_local(rule: Rule, flag: str) -> bool:
    for match in rule.matches:
        if match.name == "addrtype":
            option = match.option(flag)
            if option is not None and option.args == ("LOCAL",) and not option.negated:
                return True
    return False


def _bare(rule: Rule) -> bool:
    return all(m.name == "comment" for m in rule.matches)


def _kube_words(rule: Rule, ruleset: Ruleset | None, brief: bool) -> str | None:
    chain, table = rule.chain, rule.table
    if not chain.startswith("KUBE-"):
        return _jump_in(rule, brief)
    target = rule.target.name if rule.target is not None else ""
    if chain in _IPVS_CHAINS or (chain == KUBE_FIREWALL and table == "nat") or _has(rule, "set"):
        from ktp.explain.ipvs import ipvs_rule_words

        if (words := ipvs_rule_words(rule, target)) is not None:
            return words
    if table == "nat":
        if chain == KUBE_SERVICES and target in (KUBE_NODE_PORT, "RETURN"):
            from ktp.explain.ipvs import ipvs_rule_words

            return ipvs_rule_words(rule, target)
        if chain == KUBE_SERVICES:
            return _services(rule, target)
        if chain == KUBE_NODEPORTS:
            return _nodeports(rule, target)
        if chain.startswith((XLB_PREFIX, EXT_PREFIX)):
            return _external(rule, target, ruleset)
        if chain.startswith((SVC_PREFIX, SVL_PREFIX)):
            return _balance(rule, target, ruleset)
        if chain.startswith(SEP_PREFIX):
            return _endpoint(rule, target)
        if chain.startswith(FW_PREFIX):
            return _ranges(rule, target, ruleset)
        if chain == KUBE_POSTROUTING:
            return _postrouting(rule, target)
        if chain == KUBE_MARK_MASQ and target == "MARK":
            return f"{target_words(rule.target)}: KUBE-POSTROUTING will replace the source address of this packet"
        if chain == KUBE_MARK_DROP and target == "MARK":
            if ruleset is not None and not _drops_marked(ruleset, rule):
                return f"{target_words(rule.target)}: to be dropped, but no rule of KUBE-FIREWALL drops such packets"
            return (
                f"{target_words(rule.target)}: KUBE-FIREWALL in the filter table drops packets with this mark"
            )
    elif table == "filter":
        if chain in (KUBE_EXTERNAL_SERVICES, KUBE_SERVICES):
            return _no_endpoints(rule, target)
        if chain == KUBE_NODEPORTS and target == "ACCEPT":
            port = destination_port(rule)
            return f"lets the load balancer's health checks of {_service(rule)} in (port {port})"
        if chain == KUBE_PROXY_FIREWALL and target == "DROP":
            return (
                f"drops what dials the load-balancer IP {_dialled(rule)} of {_service(rule)} from outside its "
                "loadBalancerSourceRanges: KUBE-FW let the allowed sources go on to the endpoints before"
            )
        if chain == KUBE_FORWARD:
            return _forward(rule, target)
        if chain == KUBE_FIREWALL:
            return _firewall(rule, target)
    return None


def _service(rule: Rule) -> str:
    return service_of(rule) or "the Service"


def _dialled(rule: Rule) -> str:
    """`10.96.0.10:80/tcp`, as far as the rule says."""
    dst = _header(rule, "-d")
    port = destination_port(rule)
    address = host_words(dst[0]) if dst is not None else "?"
    if ":" in address and port is not None:
        address = f"[{address}]"
    return (
        address
        + (f":{port}" if port is not None else "")
        + (f"/{protocol_of(rule)}" if protocol_of(rule) else "")
    )


def _jump_in(rule: Rule, brief: bool) -> str | None:
    """A base chain's jump into Kubernetes' chains."""
    target = rule.target
    if target is None or target.options or not is_kube_chain(target.name):
        return None
    if is_service_chain(target.name):
        return None
    role = role_of_chain(rule.table, target.name)
    if role is None:
        return None
    conditions = condition_words(rule)
    every = f"packets {conditions}" if conditions else "every packet"
    if target.name == KUBE_SERVICES and rule.table == "nat":
        every = "every new connection"
    return f"{every}: on to {target.name}" + ("" if brief else f", which {role.words}")


def _services(rule: Rule, target: str) -> str | None:
    if target == KUBE_NODEPORTS:
        dst = _header(rule, "-d")
        if dst is not None and not dst[1]:
            return (
                f"to {host_words(dst[0])}, an address of this node that has node ports: on to the node ports"
            )
        return "to any address of this node: look the port up among the node ports (always the last rule)"
    dst = _header(rule, "-d")
    if dst is None or dst[1]:
        return None
    if target == KUBE_MARK_MASQ:
        src = _header(rule, "-s")
        if src is not None and src[1]:
            whom = f"clients that are not pods (source outside {src[0]})"
        else:
            whom = "every client"
        return f"{_dialled(rule)} of {_service(rule)}: masquerades the connections of {whom}; decides nothing else"
    comment = rule.comment or ""
    kind = "Service address"
    for word, name in (
        ("cluster IP", "cluster IP"),
        ("loadbalancer IP", "load-balancer IP"),
        ("external IP", "external IP"),
    ):
        if comment.endswith(word):
            kind = name
    if target.startswith(_OWN_PREFIXES):
        extra = ""
        if _has(rule, "physdev") or _type_is_local(rule, "--dst-type"):
            extra = f" (only {condition_words(rule).split(', ', 1)[-1]})"
        return f"{kind} {_dialled(rule)} of {_service(rule)}{extra}: on to {_chain_words(target)}"
    return None


def _chain_words(target: str) -> str:
    if target.startswith(XLB_PREFIX):
        return "its chain for external traffic under policy Local"
    if target.startswith(EXT_PREFIX):
        return "its chain for external traffic"
    if target.startswith(FW_PREFIX):
        return "its check of source ranges"
    if target.startswith(SVL_PREFIX):
        return "the choice among its endpoints on this node"
    return "the choice among all its endpoints"


def _nodeports(rule: Rule, target: str) -> str | None:
    port = destination_port(rule)
    if port is None:
        return None
    name = f"node port {port}/{protocol_of(rule) or '?'} of {_service(rule)}"
    src, dst = _header(rule, "-s"), _header(rule, "-d")
    if target == KUBE_MARK_MASQ:
        if src is not None and src[0] in _LOOPBACK and not src[1]:
            return (
                f"masquerades packets with a loopback source ({src[0]}), for an answer could not find back to "
                "them; grants and denies nothing: all other packets just pass by this rule"
            )
        if src is None:
            return (
                f"{name}: externalTrafficPolicy Cluster, so the client's address is replaced on the way out "
                "and the endpoint sees this node's"
            )
        return None
    if not target.startswith(_OWN_PREFIXES):
        return None
    if dst is not None and not dst[1] and _has(rule, "nfacct"):
        return f"{name}, dialled on a loopback address ({dst[0]}): counted, then on to {_chain_words(target)}"
    return f"{name}: on to {_chain_words(target)}"


def _external(rule: Rule, target: str, ruleset: Ruleset | None) -> str | None:
    src = _header(rule, "-s")
    from_node = _type_is_local(rule, "--src-type")
    if target.startswith(SVC_PREFIX):
        if from_node:
            return (
                "from this node's own processes: the policy does not hold for them, any endpoint of the cluster "
                "serves"
            )
        if src is not None and not src[1]:
            return (
                f"from pods ({src[0]}): the policy does not hold for them, any endpoint of the cluster serves"
            )
        if _header(rule, "-i") is not None:
            return (
                f"{condition_words(rule)} (pods): the policy does not hold for them, any endpoint of the "
                "cluster serves"
            )
        if _bare(rule):
            return "externalTrafficPolicy Cluster: any endpoint of the cluster serves"
        return None
    if target == KUBE_MARK_MASQ:
        if from_node:
            return "from this node's own processes: masquerade (their packets may go to endpoints on other nodes)"
        if _bare(rule):
            return (
                "externalTrafficPolicy Cluster: the client's address is replaced on the way out, and the "
                "endpoint sees this node's"
            )
        return None
    if target.startswith(SVL_PREFIX):
        return "everyone else: externalTrafficPolicy Local, only endpoints on this node serve"
    if target == KUBE_MARK_DROP:
        return (
            "everyone else: externalTrafficPolicy Local, and no usable endpoint of the Service runs on this node: "
            "marked to be dropped"
        )
    if target.startswith(SEP_PREFIX):
        return "externalTrafficPolicy Local: " + _draw(rule, target, ruleset)
    return None


def _draw(rule: Rule, target: str, ruleset: Ruleset | None) -> str:
    endpoint = endpoint_of(target, ruleset) or target
    if _has(rule, "recent", "--rcheck"):
        seconds = next((m.option("--seconds") for m in rule.matches if m.name == "recent"), None)
        within = f" within {seconds.args[0]} s" if seconds is not None and seconds.args else ""
        return f"session affinity: a client that {endpoint} served{within} stays with it"
    chance = chance_of(rule)
    if chance is None:
        return f"endpoint {endpoint}, for all that is left"
    return f"endpoint {endpoint}, for {percent(chance)} of what gets here, drawn at random"


def _balance(rule: Rule, target: str, ruleset: Ruleset | None) -> str | None:
    if target.startswith(SEP_PREFIX):
        return _draw(rule, target, ruleset)
    if target == KUBE_MARK_DROP:
        return (
            "externalTrafficPolicy Local, and no usable endpoint of the Service runs on this node: marked to be "
            "dropped"
        )
    if target != KUBE_MARK_MASQ:
        return None
    src, dst, port = _header(rule, "-s"), _header(rule, "-d"), destination_port(rule)
    if dst is not None:
        if src is not None and src[1]:
            return (
                f"cluster IP {_dialled(rule)} dialled from outside the pod network {src[0]}: masquerade; concerns "
                "the cluster IP only, not node ports"
            )
        return f"cluster IP {_dialled(rule)}: masquerade"
    if port is not None:
        return (
            f"node port {port}/{protocol_of(rule) or '?'}: externalTrafficPolicy Cluster, so the client's address is "
            "replaced on the way out and the endpoint sees this node's"
        )
    return None


def _endpoint(rule: Rule, target: str) -> str | None:
    if target == KUBE_MARK_MASQ:
        src = _header(rule, "-s")
        if src is not None and not src[1]:
            itself = host_words(src[0])
            return f"masquerades the endpoint's connections to itself (source {itself}); concerns no one else"
    if target == "DNAT" and rule.target is not None:
        words = f"destination becomes {rule.target.value('--to-destination') or '?'} (DNAT)"
        if _has(rule, "recent", "--set"):
            words += "; the client is noted for session affinity"
        return words
    return None


def _drops_marked(ruleset: Ruleset, rule: Rule) -> bool:
    """Whether KUBE-FIREWALL has a rule that drops what is marked so; True where it was not read."""
    if ruleset.reading("filter").reading is not Reading.WHOLE:
        return True
    mark = rule.target.value("--set-xmark") if rule.target is not None else None
    asked = [
        o.args[0]
        for other in ruleset.chain("filter", KUBE_FIREWALL) or ()
        if other.target is not None and other.target.name == "DROP"
        for m in other.matches
        if (o := m.option("--mark")) is not None and o.args
    ]
    return mark in asked


def _ranges(rule: Rule, target: str, ruleset: Ruleset | None) -> str | None:
    service = _service(rule)
    if target == "":
        return f"only a note: whatever else dials {service} is dropped by KUBE-PROXY-FIREWALL in the filter table"
    if target == KUBE_MARK_DROP:
        chain = ruleset.chain(rule.table, rule.chain) if ruleset is not None else None
        if chain is not None and not any(_header(each, "-s") for each in chain):
            return "whatever no rule above took (no local endpoint): marked to be dropped"
        return "every other source: outside loadBalancerSourceRanges (or no local endpoint), marked to be dropped"
    if target == KUBE_MARK_MASQ:
        return "externalTrafficPolicy Cluster: the client's address is replaced on the way out"
    src = _header(rule, "-s")
    if target.startswith(_OWN_PREFIXES):
        if src is not None and not src[1]:
            return f"from {host_words(src[0])}, which loadBalancerSourceRanges allows: on to {_chain_words(target)}"
        return f"no source ranges are set: on to {_chain_words(target)}"
    return None


def _postrouting(rule: Rule, target: str) -> str | None:
    if target == "RETURN" and _has(rule, "mark"):
        return "not marked for masquerading: keeps its source address, done here"
    if target == "MARK":
        return "the mark has served: taken off again"
    if target == "MASQUERADE":
        if _has(rule, "set"):
            return None
        return "marked for masquerading: source becomes an address of this node"
    return None


def _no_endpoints(rule: Rule, target: str) -> str | None:
    if target not in ("DROP", "REJECT"):
        return None
    port = destination_port(rule)
    if _type_is_local(rule, "--dst-type"):
        what = f"node port {port}/{protocol_of(rule) or '?'}"
    else:
        what = _dialled(rule)
    service = _service(rule)
    if target == "REJECT":
        return f"{what} of {service}: refused, for the Service has no usable endpoint on any node"
    if rule.chain == KUBE_SERVICES:
        return f"{what} of {service}: dropped; internalTrafficPolicy Local, and no usable endpoint runs on this node"
    return (
        f"{what} of {service}: dropped; externalTrafficPolicy Local, and no usable endpoint runs on this node. "
        "Pods and this node's own processes do not get here: their packets went on to an endpoint before"
    )


def _forward(rule: Rule, target: str) -> str | None:
    if target == "DROP" and _has(rule, "conntrack"):
        return "drops packets that belong to no known connection (INVALID); does not concern a new connection"
    if target == "ACCEPT" and _has(rule, "mark"):
        return "accepts packets marked for masquerading"
    if target == "ACCEPT" and _has(rule, "conntrack"):
        return "accepts packets of connections that are already open, and answers"
    return None


def _firewall(rule: Rule, target: str) -> str | None:
    if target != "DROP":
        return None
    if _has(rule, "mark"):
        return "drops packets that KUBE-MARK-DROP marked"
    if _header(rule, "-d") is not None:
        return (
            "drops packets from outside to loopback addresses; does not concern connections to node addresses"
        )
    return None


__all__ = [
    "chance_of",
    "destination_port",
    "endpoint_of",
    "explain_chain",
    "explain_rule",
    "is_kube_chain",
    "is_service_chain",
    "protocol_of",
    "service_of",
]
