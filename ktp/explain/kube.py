"""kube-proxy's and the kubelet's iptables rules: what each is there for, and the words for it.

Rules are recognised by chain, target and matches. Comments only name the Service and which of its addresses it is:
kube-proxy leaves them out in large clusters. Facts: kube-proxy 1.18 to 1.36.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ktp.explain.purpose import Aim, Front, FrontKind, Purpose
from ktp.explain.words import condition_words, host_words, rule_words, target_words
from ktp.kubeproxy.names import KUBE_FIREWALL, KUBE_POSTROUTING, ChainRole, role_of_chain
from ktp.kubeproxy.owners import owner_of_chain
from ktp.model.reading import Reading
from ktp.model.ruleset import Rule, Ruleset

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
    if name in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"):
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


def _has(rule: Rule, name: str, flag: str = "", *args: str) -> bool:
    for match in rule.matches:
        if match.name == name:
            option = match.option(flag) if flag else None
            if not flag or (option is not None and not option.negated and args in ((), option.args)):
                return True
    return False


def _is_bare(rule: Rule) -> bool:
    return all(m.name == "comment" for m in rule.matches)


def _asked_set(rule: Rule) -> tuple[str, str]:
    """The ipset that the rule asks, without KUBE-, and the sides; "" where it asks none."""
    for match in rule.matches:
        option = match.option("--match-set") if match.name == "set" else None
        if option is not None and len(option.args) > 1:
            return option.args[0].removeprefix("KUBE-").removeprefix("6-"), option.args[1]
    return "", ""


def _node_port(rule: Rule) -> Front:
    return Front(FrontKind.NODE_PORT, None, destination_port(rule), protocol_of(rule))


def _address(rule: Rule, kind: FrontKind) -> Front:
    return Front(kind, host_words(_header(rule, "-d")), destination_port(rule), protocol_of(rule))


# -- what it is for


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
    if where is None or (recognise := _RECOGNISERS.get(where)) is None:
        return None
    found = recognise(_Placed(rule, where, target, to))
    if isinstance(found, Aim):
        found = Purpose(aim=found)
    if found is None:
        return None
    endpoint = found.endpoint
    if to is ChainRole.ENDPOINT:
        endpoint = endpoint_of(target, ruleset) or target
    aim = found.aim
    if aim is Aim.MARK_DROP and ruleset is not None and not _drops_marked(ruleset, rule):
        aim = Aim.MARK_DROP_IN_VAIN
    if aim is Aim.RANGES_MARK and not _has_ranges(ruleset, rule):
        aim = Aim.RANGES_MARK_REST
    service = found.service or service_of(rule)
    return found._replace(aim=aim, endpoint=endpoint, service=service, to=found.to or target, role=to)


_Found = Purpose | Aim | None


class _Placed(NamedTuple):
    """A rule with the role of its chain, its target, and the role of the chain that this is."""

    rule: Rule
    where: ChainRole
    target: str
    to: ChainRole | None


def _services(k: _Placed) -> _Found:
    name, sides = _asked_set(k.rule)
    dst, outside = _header(k.rule, "-d"), _header(k.rule, "-s", negated=True)
    if k.to is ChainRole.NODEPORTS_NAT:
        if dst:
            return Purpose(aim=Aim.SEEK_NODE_PORT_AT, source=host_words(dst))
        return Aim.SEEK_NODE_PORT
    if k.to is ChainRole.IPVS_NODE_PORT_NAT:
        return Aim.IPVS_NODE_PORTS
    if k.to is ChainRole.IPVS_LOAD_BALANCER:
        return Aim.IPVS_LOAD_BALANCERS
    if k.target == "RETURN" and not name:
        return Aim.IPVS_LOOPBACK
    if k.to is ChainRole.MARK_MASQ and (name == "CLUSTER-IP" or (dst and outside)):
        if sides.startswith("src"):
            return Aim.MASQ_FROM_CLUSTER_IP
        front = Front(FrontKind.CLUSTER_IP) if name else _address(k.rule, FrontKind.CLUSTER_IP)
        return Purpose(aim=Aim.MASQ_OUTSIDE if outside else Aim.MASQ_ANYONE, front=front, source=outside)
    if name and (k.target == "ACCEPT" or k.to is ChainRole.MARK_MASQ):
        aim = Aim.IPVS_ACCEPT if k.target == "ACCEPT" else Aim.IPVS_MASQ
        return Purpose(aim=aim, set_name=name)
    if not dst:
        return None
    if k.to is ChainRole.MARK_MASQ:
        return Purpose(aim=Aim.MASQ_ADDRESS, front=_address(k.rule, FrontKind.ADDRESS))
    if k.to is None or not k.to.is_per_service:
        return None
    label = (k.rule.comment or "").rpartition(" ")[0].rpartition(" ")[2] + " IP"
    front = _address(k.rule, _ADDRESS_KINDS.get(label, FrontKind.SERVICE_ADDRESS))
    limited = _has(k.rule, "physdev") or _has(k.rule, "addrtype", "--dst-type", "LOCAL")
    return Purpose(aim=Aim.LEAD_IF if limited else Aim.LEAD, front=front)


def _nodeports(k: _Placed) -> _Found:
    if destination_port(k.rule) is None or k.to is None:
        return None
    src, dst = _header(k.rule, "-s"), _header(k.rule, "-d")
    if k.to is ChainRole.MARK_MASQ:
        if src in _LOOPBACK:
            return Purpose(aim=Aim.MASQ_LOOPBACK, source=src)
        return None if src else Purpose(aim=Aim.MASQ_FRONT, front=_node_port(k.rule))
    if not k.to.is_per_service:
        return None
    counted = dst and _has(k.rule, "nfacct")
    return Purpose(aim=Aim.LEAD_COUNTED if counted else Aim.LEAD, front=_node_port(k.rule), source=dst)


def _external(k: _Placed) -> _Found:
    from_node = _has(k.rule, "addrtype", "--src-type", "LOCAL")
    pods = _header(k.rule, "-s")
    match k.to:
        case ChainRole.SERVICE if pods and not from_node:
            return Purpose(aim=Aim.SPARE_PODS, source=pods)
        case ChainRole.SERVICE if from_node or _is_bare(k.rule):
            return Aim.SPARE_OWN if from_node else Aim.CLUSTER_POLICY
        case ChainRole.SERVICE if _header(k.rule, "-i") or _header(k.rule, "-i", negated=True):
            return Aim.SPARE_PODS_BY_DEVICE
        case ChainRole.MARK_MASQ if from_node or _is_bare(k.rule):
            return Aim.MASQ_OWN if from_node else Aim.MASQ_POLICY
        case ChainRole.SERVICE_LOCAL:
            return Aim.LOCAL_POLICY
        case ChainRole.MARK_DROP:
            return Aim.NO_LOCAL_MARKED
        case ChainRole.ENDPOINT:
            return _draw(k.rule, Aim.DRAW_LOCAL, Aim.DRAW_LOCAL_LAST)
        case _:
            return None


def _draw(rule: Rule, drawn: Aim, last: Aim) -> Purpose:
    if _has(rule, "recent", "--rcheck"):
        seconds = next((o.args for m in rule.matches if (o := m.option("--seconds")) is not None), ())
        return Purpose(aim=Aim.STAY, seconds="".join(seconds[:1]))
    chance = chance_of(rule)
    return Purpose(aim=last if chance is None else drawn, share=chance)


def _balance(k: _Placed) -> _Found:
    if k.to is ChainRole.ENDPOINT:
        return _draw(k.rule, Aim.DRAW, Aim.DRAW_LAST)
    if k.to is ChainRole.MARK_DROP:
        return Aim.NO_LOCAL_MARKED
    if k.to is not ChainRole.MARK_MASQ:
        return None
    outside = _header(k.rule, "-s", negated=True)
    if _header(k.rule, "-d"):
        aim = Aim.MASQ_OUTSIDE if outside else Aim.MASQ_ANYONE
        return Purpose(aim=aim, front=_address(k.rule, FrontKind.CLUSTER_IP), source=outside)
    if destination_port(k.rule) is not None:
        return Purpose(aim=Aim.MASQ_FRONT, front=_node_port(k.rule))
    return None


def _endpoint(k: _Placed) -> _Found:
    src = _header(k.rule, "-s")
    if k.to is ChainRole.MARK_MASQ and src:
        return Purpose(aim=Aim.MASQ_SELF, endpoint=host_words(src))
    if k.target == "DNAT" and k.rule.target is not None:
        aim = Aim.TRANSLATE_NOTED if _has(k.rule, "recent", "--set") else Aim.TRANSLATE
        return Purpose(aim=aim, endpoint=k.rule.target.value("--to-destination"))
    return None


def _ranges(k: _Placed) -> _Found:
    if k.target == "":
        return Aim.RANGES_NOTE
    if k.to is ChainRole.MARK_DROP:
        return Aim.RANGES_MARK
    if k.to is ChainRole.MARK_MASQ:
        return Aim.MASQ_POLICY
    if k.to is None or not k.to.is_per_service:
        return None
    src = _header(k.rule, "-s")
    return Purpose(aim=Aim.RANGES_LEAD if src else Aim.RANGES_NONE, source=host_words(src))


def _postrouting(k: _Placed) -> _Found:
    if _asked_set(k.rule)[0] == "LOOP-BACK":
        return Aim.SNAT_SELF
    if k.target == "RETURN" and _has(k.rule, "mark"):
        return Aim.UNMARKED
    return {"MARK": Aim.UNMARK, "MASQUERADE": Aim.MASQUERADE}.get(k.target)


def _marks(k: _Placed) -> _Found:
    if k.target != "MARK":
        return None
    if k.where is ChainRole.MARK_DROP:
        return Aim.MARK_DROP
    return Purpose(aim=Aim.MARK_MASQ, to=KUBE_POSTROUTING)


def _stops_front_end(k: _Placed) -> _Found:
    """kube-proxy drops and refuses front ends one by one: a host's address, or LOCAL, with a port."""
    local = _has(k.rule, "addrtype", "--dst-type", "LOCAL")
    host = _header(k.rule, "-d").endswith(("/32", "/128"))
    if k.target not in ("DROP", "REJECT") or destination_port(k.rule) is None or not (local or host):
        return None
    front = _node_port(k.rule) if local else _address(k.rule, FrontKind.ADDRESS)
    if k.where is ChainRole.PROXY_FIREWALL:
        return Purpose(aim=Aim.RANGES_DROP, front=front._replace(kind=FrontKind.LOAD_BALANCER_IP))
    inside = k.where is ChainRole.SERVICES_FILTER
    dropped = Aim.NO_LOCAL_INTERNAL if inside else Aim.NO_LOCAL
    return Purpose(aim=Aim.NO_ENDPOINT if k.target == "REJECT" else dropped, front=front)


def _proxy_firewall(k: _Placed) -> _Found:
    if _asked_set(k.rule)[0].startswith("LOAD-BALANCER"):
        return Aim.RANGES_CHECK
    return _stops_front_end(k) if k.target == "DROP" else None


def _health_check(k: _Placed) -> _Found:
    if _asked_set(k.rule)[0] == "HEALTH-CHECK-NODE-PORT":
        return Aim.HEALTH_CHECKS
    return Purpose(aim=Aim.HEALTH_CHECK, front=_node_port(k.rule)) if k.target == "ACCEPT" else None


def _forward(k: _Placed) -> _Found:
    if k.target == "DROP":
        return Aim.DROP_INVALID if _has(k.rule, "conntrack", "--ctstate", "INVALID") else None
    if k.target == "ACCEPT" and _has(k.rule, "mark"):
        return Aim.ACCEPT_MARKED
    return Aim.ACCEPT_OPEN if k.target == "ACCEPT" and _has(k.rule, "conntrack") else None


def _firewall(k: _Placed) -> _Found:
    if k.target != "DROP":
        return None
    if _has(k.rule, "mark", "--mark"):
        return Aim.DROP_MARKED
    return Aim.DROP_LOOPBACK if _header(k.rule, "-d") in _LOOPBACK else None


# -- IPVS mode: marks by ipset


def _ipvs_marks(k: _Placed) -> _Found:
    ports = k.where is ChainRole.IPVS_NODE_PORT_NAT
    name = _asked_set(k.rule)[0]
    if k.to is ChainRole.FIREWALL_IPVS:
        return Aim.RANGES_CHECK
    if k.target == "RETURN" and name:
        return Aim.IPVS_NODE_PORTS_LOCAL if ports else Aim.IPVS_LOAD_BALANCERS_LOCAL
    if k.to is ChainRole.MARK_MASQ and bool(name) is ports:
        return Aim.IPVS_NODE_PORTS_MASQ if ports else Aim.IPVS_OTHERS_MASQ
    return None


def _ipvs_ranges(k: _Placed) -> _Found:
    if k.target == "RETURN":
        return Aim.RANGES_RETURN
    if k.to is ChainRole.MARK_DROP:
        return Aim.RANGES_MARK_OTHERS
    return Aim.RANGES_DROP_OTHERS if k.target == "DROP" and _is_bare(k.rule) else None


def _ipvs_filter(k: _Placed) -> _Found:
    name = _asked_set(k.rule)[0]
    if k.target == "RETURN":
        return Purpose(aim=Aim.IPVS_OWN, set_name=name)
    if k.target == "DROP" and _has(k.rule, "ipvs", "--vaddr"):
        asked = {o.flag: o.args[0] for m in k.rule.matches if m.name == "ipvs" for o in m.options if o.args}
        port = asked.get("--vport", "")
        number = int(port) if port.isdigit() else None
        return Purpose(
            aim=Aim.RANGES_DROP_OWN, front=Front(FrontKind.LOAD_BALANCER_IP, asked["--vaddr"], number)
        )
    return Aim.IPVS_FOREIGN if k.target == "REJECT" and name else None


_RECOGNISERS: Mapping[ChainRole, Callable[[_Placed], _Found]] = {
    ChainRole.SERVICES_NAT: _services,
    ChainRole.NODEPORTS_NAT: _nodeports,
    ChainRole.EXTERNAL: _external,
    ChainRole.EXTERNAL_LOCAL_OLD: _external,
    ChainRole.SERVICE: _balance,
    ChainRole.SERVICE_LOCAL: _balance,
    ChainRole.ENDPOINT: _endpoint,
    ChainRole.LOAD_BALANCER_FIREWALL: _ranges,
    ChainRole.POSTROUTING: _postrouting,
    ChainRole.MARK_MASQ: _marks,
    ChainRole.MARK_DROP: _marks,
    ChainRole.SERVICES_FILTER: _stops_front_end,
    ChainRole.EXTERNAL_SERVICES: _stops_front_end,
    ChainRole.PROXY_FIREWALL: _proxy_firewall,
    ChainRole.NODEPORTS_FILTER: _health_check,
    ChainRole.IPVS_NODE_PORT_FILTER: _health_check,
    ChainRole.FORWARD: _forward,
    ChainRole.FIREWALL_FILTER: _firewall,
    ChainRole.IPVS_NODE_PORT_NAT: _ipvs_marks,
    ChainRole.IPVS_LOAD_BALANCER: _ipvs_marks,
    ChainRole.FIREWALL_IPVS: _ipvs_ranges,
    ChainRole.IPVS_SOURCE_RANGES: _ipvs_ranges,
    ChainRole.IPVS_FILTER: _ipvs_filter,
    ChainRole.IPVS_OUT_FILTER: _ipvs_filter,
}


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
