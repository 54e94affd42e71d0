"""kube-proxy's and the kubelet's iptables rules: what each is there for, and the words for it.

Rules are recognised by chain, target and matches. Comments only name the Service and which of its addresses it is:
kube-proxy leaves them out in large clusters. Facts: kube-proxy since 1.18.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ktp.explain.purpose import Aim, Front, FrontKind, Purpose
from ktp.explain.words import condition_words, host_words, rule_words, target_words
from ktp.kubeproxy.names import KUBE_FIREWALL, KUBE_POSTROUTING, ChainRole, role_of_chain
from ktp.kubeproxy.owners import owner_of_chain
from ktp.model.reading import Reading
from ktp.model.ruleset import BUILT_IN_CHAINS, Rule, Ruleset

_SERVICE = re.compile(r"(?<![^\s\"])([a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*(?::[a-z0-9-]*)?)(?![^\s\"])")
_ADDRESS_KINDS = {
    "cluster IP": FrontKind.CLUSTER_IP,
    "loadbalancer IP": FrontKind.LOAD_BALANCER_IP,
    "external IP": FrontKind.EXTERNAL_IP,
}
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
    purpose = purpose_of(rule, ruleset)
    if purpose is None:
        return rule_words(rule)
    conditions = condition_words(rule) if purpose.aim.tells_conditions else ""
    return purpose.words(conditions=conditions, action=target_words(rule.target), brief=brief)


def explain_chain(table: str, name: str) -> str:
    """What a chain is for; of a chain of unknown making, that it is one."""
    base = _BASE_WORDS.get((table, name))
    if base is not None:
        return base
    role = role_of_chain(table, name)
    if role is not None:
        return role.words
    if name in BUILT_IN_CHAINS:
        return f"the rules of table {table} at this point of the packet's way"
    owner = owner_of_chain(name)
    return f"a chain of {owner.name}" if owner is not None else "a chain that is not Kubernetes'"


def is_service_chain(name: str) -> bool:
    """Whether the chain belongs to one service port or endpoint."""
    role = role_of_chain("nat", name)
    return role is not None and role.is_per_service


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
    return _header(rule, "-p") or None


# -- what a rule asks for


def _header(rule: Rule, flag: str, *, negated: bool = False) -> str:
    """The argument of a header option; "" where the rule has none of that sense."""
    for match in rule.matches:
        if match.name == "" and match.options and match.options[0].flag == flag and match.options[0].args:
            return match.options[0].args[0] if match.options[0].negated is negated else ""
    return ""


def _source(rule: Rule) -> str:
    return _header(rule, "-s")


def _outside(rule: Rule) -> str:
    return _header(rule, "-s", negated=True)


def _destination(rule: Rule) -> str:
    return _header(rule, "-d")


def _by_device(rule: Rule) -> str:
    return _header(rule, "-i") or _header(rule, "-i", negated=True)


def _is_loopback(rule: Rule) -> bool:
    return _source(rule) in _LOOPBACK


def _is_to_loopback(rule: Rule) -> bool:
    return _destination(rule) in _LOOPBACK


def _is_bare(rule: Rule) -> bool:
    return all(m.name == "comment" for m in rule.matches)


def _has(name: str, flag: str = "", *args: str) -> Callable[[Rule], bool]:
    """Whether the rule has that match, with an option of these arguments that is not negated."""

    def asks(rule: Rule) -> bool:
        for match in rule.matches:
            if match.name == name:
                option = match.option(flag) if flag else None
                if not flag or (option is not None and not option.negated and args in ((), option.args)):
                    return True
        return False

    return asks


_from_node = _has("addrtype", "--src-type", "LOCAL")
_to_node = _has("addrtype", "--dst-type", "LOCAL")
_by_bridge = _has("physdev")


def _asked_set(rule: Rule) -> tuple[str, str]:
    """The ipset that the rule asks, without KUBE-, and the sides; "" where it asks none."""
    for match in rule.matches:
        option = match.option("--match-set") if match.name == "set" else None
        if option is not None and len(option.args) > 1:
            return option.args[0].removeprefix("KUBE-").removeprefix("6-"), option.args[1]
    return "", ""


def _set(beginning: str = "") -> Callable[[Rule], bool]:
    return lambda rule: (name := _asked_set(rule)[0]) != "" and name.startswith(beginning)


def _no_set(rule: Rule) -> bool:
    return not _asked_set(rule)[0]


def _set_by_source(rule: Rule) -> bool:
    name, sides = _asked_set(rule)
    return name == "CLUSTER-IP" and sides.startswith("src")


def _cluster_ip_from_outside(rule: Rule) -> bool:
    return bool(_outside(rule)) and bool(_destination(rule) or _asked_set(rule)[0] == "CLUSTER-IP")


def _limited(rule: Rule) -> bool:
    return bool(_destination(rule)) and (_by_bridge(rule) or _to_node(rule))


def _counted(rule: Rule) -> bool:
    return destination_port(rule) is not None and bool(_destination(rule)) and _has("nfacct")(rule)


def _port(rule: Rule) -> bool:
    return destination_port(rule) is not None


def _port_for_all(rule: Rule) -> bool:
    return _port(rule) and not _source(rule)


def _one_front_end(rule: Rule) -> bool:
    """kube-proxy drops and refuses front ends one by one: a host's address, or LOCAL, with a port."""
    return _port(rule) and (_to_node(rule) or _destination(rule).endswith(("/32", "/128")))


def _front(rule: Rule, kind: FrontKind) -> Front:
    if kind is FrontKind.SERVICE_ADDRESS:
        label = (rule.comment or "").rpartition(" ")[0].rpartition(" ")[2] + " IP"
        kind = _ADDRESS_KINDS.get(label, kind)
    elif kind is FrontKind.ADDRESS and _to_node(rule):
        kind = FrontKind.NODE_PORT
    return Front(kind, host_words(_destination(rule)) or None, destination_port(rule), protocol_of(rule))


# -- what it is for

_Form = tuple[str | ChainRole | None, Callable[[Rule], object] | None, Aim, FrontKind | None]
"""The target or what its chain is for (None: a chain of one service port), what else the rule asks for, and its aim."""

_DRAWS: tuple[_Form, ...] = (
    (ChainRole.ENDPOINT, _has("recent", "--rcheck"), Aim.STAY, None),
    (ChainRole.ENDPOINT, _has("statistic"), Aim.DRAW, None),
    (ChainRole.ENDPOINT, None, Aim.DRAW_LAST, None),
    (ChainRole.MARK_DROP, None, Aim.NO_LOCAL_MARKED, None),
    (ChainRole.MARK_MASQ, _cluster_ip_from_outside, Aim.MASQ_OUTSIDE, FrontKind.CLUSTER_IP),
    (ChainRole.MARK_MASQ, _destination, Aim.MASQ_ANYONE, FrontKind.CLUSTER_IP),
    (ChainRole.MARK_MASQ, _port, Aim.MASQ_FRONT, FrontKind.NODE_PORT),
)
_EXTERNAL: tuple[_Form, ...] = (
    (ChainRole.SERVICE, _from_node, Aim.SPARE_OWN, None),
    (ChainRole.SERVICE, _source, Aim.SPARE_PODS, None),
    (ChainRole.SERVICE, _by_device, Aim.SPARE_PODS_BY_DEVICE, None),
    (ChainRole.SERVICE, _is_bare, Aim.CLUSTER_POLICY, None),
    (ChainRole.MARK_MASQ, _from_node, Aim.MASQ_OWN, None),
    (ChainRole.MARK_MASQ, _is_bare, Aim.MASQ_POLICY, None),
    (ChainRole.SERVICE_LOCAL, None, Aim.LOCAL_POLICY, None),
    (ChainRole.MARK_DROP, None, Aim.NO_LOCAL_MARKED, None),
    (ChainRole.ENDPOINT, _has("recent", "--rcheck"), Aim.STAY, None),
    (ChainRole.ENDPOINT, _has("statistic"), Aim.DRAW_LOCAL, None),
    (ChainRole.ENDPOINT, None, Aim.DRAW_LOCAL_LAST, None),
)
_HEALTH_CHECKS: tuple[_Form, ...] = (
    ("ACCEPT", _set("HEALTH-CHECK"), Aim.HEALTH_CHECKS, None),
    ("ACCEPT", None, Aim.HEALTH_CHECK, FrontKind.NODE_PORT),
)
_IPVS_FILTER: tuple[_Form, ...] = (
    ("RETURN", None, Aim.IPVS_OWN, None),
    ("REJECT", _set(), Aim.IPVS_FOREIGN, None),
    ("DROP", _has("ipvs", "--vaddr"), Aim.RANGES_DROP_OWN, None),
)
_FORMS: Mapping[ChainRole, tuple[_Form, ...]] = {
    ChainRole.SERVICES_NAT: (
        (ChainRole.NODEPORTS_NAT, _destination, Aim.SEEK_NODE_PORT_AT, FrontKind.ADDRESS),
        (ChainRole.NODEPORTS_NAT, None, Aim.SEEK_NODE_PORT, None),
        (ChainRole.IPVS_NODE_PORT_NAT, None, Aim.IPVS_NODE_PORTS, None),
        (ChainRole.IPVS_LOAD_BALANCER, None, Aim.IPVS_LOAD_BALANCERS, None),
        ("RETURN", _no_set, Aim.IPVS_LOOPBACK, None),
        ("ACCEPT", _set(), Aim.IPVS_ACCEPT, None),
        (ChainRole.MARK_MASQ, _set_by_source, Aim.MASQ_FROM_CLUSTER_IP, None),
        (ChainRole.MARK_MASQ, _cluster_ip_from_outside, Aim.MASQ_OUTSIDE, FrontKind.CLUSTER_IP),
        (ChainRole.MARK_MASQ, _set("CLUSTER-IP"), Aim.MASQ_ANYONE, FrontKind.CLUSTER_IP),
        (ChainRole.MARK_MASQ, _set(), Aim.IPVS_MASQ, None),
        (ChainRole.MARK_MASQ, _destination, Aim.MASQ_ADDRESS, FrontKind.ADDRESS),
        (None, _limited, Aim.LEAD_IF, FrontKind.SERVICE_ADDRESS),
        (None, _destination, Aim.LEAD, FrontKind.SERVICE_ADDRESS),
    ),
    ChainRole.NODEPORTS_NAT: (
        (ChainRole.MARK_MASQ, _is_loopback, Aim.MASQ_LOOPBACK, None),
        (ChainRole.MARK_MASQ, _port_for_all, Aim.MASQ_FRONT, FrontKind.NODE_PORT),
        (None, _counted, Aim.LEAD_COUNTED, FrontKind.NODE_PORT),
        (None, _port, Aim.LEAD, FrontKind.NODE_PORT),
    ),
    ChainRole.EXTERNAL: _EXTERNAL,
    ChainRole.EXTERNAL_LOCAL_OLD: _EXTERNAL,
    ChainRole.SERVICE: _DRAWS,
    ChainRole.SERVICE_LOCAL: _DRAWS,
    ChainRole.ENDPOINT: (
        (ChainRole.MARK_MASQ, _source, Aim.MASQ_SELF, None),
        ("DNAT", _has("recent", "--set"), Aim.TRANSLATE_NOTED, None),
        ("DNAT", None, Aim.TRANSLATE, None),
    ),
    ChainRole.LOAD_BALANCER_FIREWALL: (
        ("", None, Aim.RANGES_NOTE, None),
        (ChainRole.MARK_DROP, None, Aim.RANGES_MARK, None),
        (ChainRole.MARK_MASQ, None, Aim.MASQ_POLICY, None),
        (None, _source, Aim.RANGES_LEAD, None),
        (None, None, Aim.RANGES_NONE, None),
    ),
    ChainRole.POSTROUTING: (
        ("MASQUERADE", _set("LOOP-BACK"), Aim.SNAT_SELF, None),
        ("MASQUERADE", None, Aim.MASQUERADE, None),
        ("RETURN", _has("mark"), Aim.UNMARKED, None),
        ("MARK", None, Aim.UNMARK, None),
    ),
    ChainRole.MARK_MASQ: (("MARK", None, Aim.MARK_MASQ, None),),
    ChainRole.MARK_DROP: (("MARK", None, Aim.MARK_DROP, None),),
    ChainRole.SERVICES_FILTER: (
        ("REJECT", _one_front_end, Aim.NO_ENDPOINT, FrontKind.ADDRESS),
        ("DROP", _one_front_end, Aim.NO_LOCAL_INTERNAL, FrontKind.ADDRESS),
    ),
    ChainRole.EXTERNAL_SERVICES: (
        ("REJECT", _one_front_end, Aim.NO_ENDPOINT, FrontKind.ADDRESS),
        ("DROP", _one_front_end, Aim.NO_LOCAL, FrontKind.ADDRESS),
    ),
    ChainRole.PROXY_FIREWALL: (
        (ChainRole.IPVS_SOURCE_RANGES, _set("LOAD-BALANCER"), Aim.RANGES_CHECK, None),
        ("DROP", _one_front_end, Aim.RANGES_DROP, FrontKind.LOAD_BALANCER_IP),
    ),
    ChainRole.NODEPORTS_FILTER: _HEALTH_CHECKS,
    ChainRole.IPVS_NODE_PORT_FILTER: _HEALTH_CHECKS,
    ChainRole.FORWARD: (
        ("DROP", _has("conntrack", "--ctstate", "INVALID"), Aim.DROP_INVALID, None),
        ("ACCEPT", _has("mark"), Aim.ACCEPT_MARKED, None),
        ("ACCEPT", _has("conntrack"), Aim.ACCEPT_OPEN, None),
    ),
    ChainRole.FIREWALL_FILTER: (
        ("DROP", _has("mark", "--mark"), Aim.DROP_MARKED, None),
        ("DROP", _is_to_loopback, Aim.DROP_LOOPBACK, None),
    ),
    ChainRole.IPVS_NODE_PORT_NAT: (
        ("RETURN", _set(), Aim.IPVS_NODE_PORTS_LOCAL, None),
        (ChainRole.MARK_MASQ, _set(), Aim.IPVS_NODE_PORTS_MASQ, None),
    ),
    ChainRole.IPVS_LOAD_BALANCER: (
        (ChainRole.FIREWALL_IPVS, None, Aim.RANGES_CHECK, None),
        ("RETURN", _set(), Aim.IPVS_LOAD_BALANCERS_LOCAL, None),
        (ChainRole.MARK_MASQ, _no_set, Aim.IPVS_OTHERS_MASQ, None),
    ),
    ChainRole.FIREWALL_IPVS: (
        ("RETURN", None, Aim.RANGES_RETURN, None),
        (ChainRole.MARK_DROP, None, Aim.RANGES_MARK_OTHERS, None),
    ),
    ChainRole.IPVS_SOURCE_RANGES: (
        ("RETURN", None, Aim.RANGES_RETURN, None),
        ("DROP", _is_bare, Aim.RANGES_DROP_OTHERS, None),
    ),
    ChainRole.IPVS_FILTER: _IPVS_FILTER,
    ChainRole.IPVS_OUT_FILTER: _IPVS_FILTER,
}


def purpose_of(rule: Rule, ruleset: Ruleset | None = None) -> Purpose | None:
    """What a rule of kube-proxy's or the kubelet's is there for; None for any other.

    `ruleset` tells which endpoint a KUBE-SEP chain stands for, and who drops what is marked.
    """
    if rule.error is not None or rule.unread is not None or rule.lost is not None:
        return None
    target = rule.target.name if rule.target is not None else ""
    to = role_of_chain(rule.table, target)
    if not rule.chain.startswith("KUBE-"):
        if to is None or to.is_per_service or rule.target is None or rule.target.options:
            return None
        return Purpose(aim=Aim.ENTER, source=rule.table, to=target, role=to)
    where = role_of_chain(rule.table, rule.chain)
    own = to is not None and to.is_per_service
    for wanted, asks, aim, kind in _FORMS.get(where, ()) if where is not None else ():
        if (wanted in (target, to) if wanted is not None else own) and (asks is None or asks(rule)):
            return _purpose(rule, ruleset, target, to, aim, kind)
    return None


def _purpose(
    rule: Rule, ruleset: Ruleset | None, target: str, to: ChainRole | None, aim: Aim, kind: FrontKind | None
) -> Purpose:
    """A rule's purpose with all that the rule tells."""
    source = host_words(_source(rule) or _outside(rule))
    endpoint = rule.target.value("--to-destination") if rule.target is not None else None
    if to is ChainRole.ENDPOINT:
        endpoint = endpoint_of(target, ruleset) or target
    elif aim is Aim.MASQ_SELF:
        endpoint = source
    elif aim is Aim.MARK_DROP and ruleset is not None and not _drops_marked(ruleset, rule):
        aim = Aim.MARK_DROP_IN_VAIN
    elif aim is Aim.RANGES_MARK and not _has_ranges(ruleset, rule):
        aim = Aim.RANGES_MARK_REST
    front = _front(rule, kind) if kind is not None else None
    if aim is Aim.RANGES_DROP_OWN:
        asked = {o.flag: o.args[0] for m in rule.matches if m.name == "ipvs" for o in m.options if o.args}
        port = asked.get("--vport", "")
        front = Front(FrontKind.LOAD_BALANCER_IP, asked["--vaddr"], int(port) if port.isdigit() else None)
    seconds = next((o.args for m in rule.matches if (o := m.option("--seconds")) is not None), ())
    return Purpose(
        aim=aim,
        front=front,
        service=service_of(rule),
        source=source,
        to=KUBE_POSTROUTING if aim is Aim.MARK_MASQ else target,
        role=to,
        endpoint=endpoint,
        share=chance_of(rule),
        seconds="".join(seconds[:1]),
        set_name=_asked_set(rule)[0],
    )


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


def _has_ranges(ruleset: Ruleset | None, rule: Rule) -> bool:
    """Whether the rule's chain lets single sources pass; True where it was not read."""
    chain = ruleset.chain(rule.table, rule.chain) if ruleset is not None else None
    return chain is None or any(_header(each, "-s") for each in chain)
