"""kube-proxy's nftables tables in words: what each chain, map, set, rule and element is there for.

Recognised by names and statements; comments only name the Service. Facts: kube-proxy since 1.29.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from ktp.explain.nft_words import condition_words, nft_rule_words
from ktp.explain.purpose import Aim, Front, FrontKind, Purpose
from ktp.kubeproxy.names import (
    NFT_AFFINITY_PREFIX,
    NFT_TABLE,
    ChainRole,
    host_port,
    is_kube_table,
    role_of_nft_chain,
)
from ktp.kubeproxy.owners import owner_of_table
from ktp.model import nftables as nft
from ktp.model.effect import Endpoint
from ktp.model.record import dataclass


class NftGeneration(Enum):
    """A generation of kube-proxy's nftables rules, in words."""

    V1_29 = "kube-proxy 1.29, nftables mode (sets firewall and firewall-allow)"
    V1_30 = "kube-proxy 1.30 to 1.32, nftables mode (map firewall-ips; filter-output comes before DNAT)"
    V1_33 = (
        "kube-proxy 1.33 to 1.35, nftables mode (chain filter-prerouting-pre-dnat, and mark-for-masquerade)"
    )
    GE_1_36 = "kube-proxy 1.36 or newer, nftables mode (set hairpin-connections)"


def generation_of(table: nft.NftTable) -> NftGeneration | None:
    """Which kube-proxy wrote a table; None where it does not tell."""
    if "hairpin-connections" in table.sets:
        return NftGeneration.GE_1_36
    if "filter-prerouting-pre-dnat" in table.chains:
        return NftGeneration.V1_33 if "mark-for-masquerade" in table.chains else NftGeneration.GE_1_36
    if "filter-output-post-dnat" in table.chains or "firewall-ips" in table.maps:
        return NftGeneration.V1_30
    if "firewall-allow-check" in table.chains or "endpoints-check" in table.chains:
        return NftGeneration.V1_29
    return None


def is_service_chain(name: str) -> bool:
    """Whether the chain belongs to one service port or endpoint."""
    role = role_of_nft_chain(name)
    return role is not None and role.is_per_service


def service_of_chain(name: str | None) -> str | None:
    """`namespace/name:port` from the name of a chain or affinity set, None where it is no Service's."""
    base = _base(name)
    if base is None:
        return None
    parts = base.partition("__")[0].split("/")
    if len(parts) != 4:
        return None
    return f"{parts[0]}/{parts[1]}" + (f":{parts[3]}" if parts[3] else "")


def endpoint_of_chain(name: str) -> str | None:
    """`ip:port` from the name of an endpoint's chain or affinity set; dots stand for the colons of IPv6."""
    base = _base(name)
    ip, slash, port = base.partition("__")[2].rpartition("/") if base is not None else ("", "", "")
    if not slash or not port.isdigit():
        return None
    return host_port(ip if ip.count(".") == 3 else ip.replace(".", ":"), int(port))


def _base(name: str | None) -> str | None:
    if name is not None and (is_service_chain(name) or name.startswith(NFT_AFFINITY_PREFIX)):
        digest, dash, base = name.partition("-")[2].partition("-")
        return base if dash and len(digest) == 8 else None
    return None


# ------------------------------------------------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True, kw_only=True)
class NftNodePort:
    """What a table has of one node port: `nat` leads to endpoints, `refusing` drops or rejects."""

    nat: nft.SetElement | None
    refusing: nft.SetElement | None

    @property
    def service(self) -> str | None:
        """`namespace/name:port`."""
        return next(
            (s for e in (self.nat, self.refusing) if e is not None and (s := service_of_element(e))), None
        )

    def __bool__(self) -> bool:
        return self.nat is not None or self.refusing is not None


def kube_table(ruleset: nft.NftRuleset | None, family: str) -> nft.NftTable | None:
    """kube-proxy's table of `family` ("ip" or "ip6")."""
    return ruleset.table(family, NFT_TABLE) if ruleset is not None else None


def node_port_elements(table: nft.NftTable, protocol: str, port: int) -> NftNodePort:
    """The elements of one node port."""
    key = nft.Concat((nft.Immediate(protocol), nft.Immediate(port)))
    found = [
        next((e for e in table.maps[name].elements if e.key == key), None) if name in table.maps else None
        for name in ("service-nodeports", "no-endpoint-nodeports")
    ]
    return NftNodePort(nat=found[0], refusing=found[1])


def nft_node_ports(table: nft.NftTable) -> list[tuple[int, str, str]]:
    """Every (port, protocol, Service or "") of a table, sorted."""
    out: dict[tuple[int, str], str] = {}
    for name in ("service-nodeports", "no-endpoint-nodeports"):
        for element in table.maps[name].elements if name in table.maps else ():
            parts = _parts(element.key)
            if len(parts) == 2 and isinstance(parts[1], int):
                key = (parts[1], str(parts[0]))
                out[key] = out.get(key) or service_of_element(element) or ""
    return sorted((port, protocol, service) for (port, protocol), service in out.items())


def node_port_addresses(table: nft.NftTable) -> tuple[str, ...] | None:
    """The addresses that have node ports; None where every address of the node has."""
    found = table.sets.get("nodeport-ips")
    return tuple(str(e.key) for e in found.elements) if found is not None else None


def pod_network_of(table: nft.NftTable) -> str | None:
    """The pods' network as the rules tell it."""
    for name, chain in table.chains.items():
        for rule in chain.rules:
            purpose = purpose_of_nft(table, name, rule)
            if purpose is not None and purpose.pod_network:
                return purpose.pod_network
    return None


def service_of_element(element: nft.SetElement) -> str | None:
    """The Service that an element of kube-proxy's maps is of: by its chain, else by its comment."""
    value = element.value
    target = value.target if isinstance(value, nft.Verdict) else None
    return service_of_chain(target) or element.comment


def _parts(key: nft.Expression) -> tuple[object, ...]:
    parts = key.parts if isinstance(key, nft.Concat) else (key,)
    return tuple(p.value if isinstance(p, nft.Immediate) else str(p) for p in parts)


def _is_field(expression: nft.Expression, name: str) -> bool:
    return (
        isinstance(expression, nft.Payload)
        and expression.protocol in ("ip", "ip6")
        and expression.field == name
    )


# ------------------------------------------------------------------------------------------------- chains, sets

_SET_WORDS = {
    "service-ips": "cluster, external and load-balancer IPs with the chain of each one's service port",
    "service-nodeports": "node ports with the chain of each one's service port",
    "no-endpoint-services": "addresses of Services without usable endpoints, and what becomes of their packets",
    "no-endpoint-nodeports": "node ports without usable endpoints, and what becomes of their packets",
    "firewall-ips": "load-balancer IPs whose Services have loadBalancerSourceRanges",
    "firewall": "load-balancer IPs whose Services have loadBalancerSourceRanges",
    "firewall-allow": "load-balancer IPs with the sources that may dial them",
    "nodeport-ips": "addresses of this node that have node ports",
    "cluster-ips": "the cluster IPs of all Services",
    "hairpin-connections": "endpoints of this node that dial themselves through their Service",
}


def explain_nft_chain(table: nft.NftTable, name: str) -> str:
    """What a chain is for; of a chain of unknown making, whose table it is in."""
    if is_kube_table(table.family, table.name):
        role, service = role_of_nft_chain(name), service_of_chain(name)
        words = role.words if role is not None else None
        if role is ChainRole.ENDPOINT and (endpoint := endpoint_of_chain(name)) is not None:
            words = f"sends packets to endpoint {endpoint}"
        elif words is not None and service is not None:
            words = words.replace("one service port", service)
        if role is ChainRole.EXTERNAL and _serves_nobody_else(table, name):
            words = (
                f"{words}; without a rule for everyone else, for no usable endpoint runs on this node: their packets "
                "go on unchanged"
            )
        if role is ChainRole.FIREWALL_CHECK and generation_of(table) is NftGeneration.V1_29:
            words = (
                "applies loadBalancerSourceRanges (1.29: of forwarded connections it sees the endpoint's address "
                "already, and so does not stop them)"
            )
        if words is not None:
            return words
    return f"a chain of {owner_of(table)}"


def _serves_nobody_else(table: nft.NftTable, name: str) -> bool:
    """Whether a chain for external traffic has rules, and none that takes every packet."""
    chain = table.chains.get(name)
    return (
        chain is not None
        and bool(chain.rules)
        and all(_conditions(r) or (v := verdict_in(r)) is None or v.kind != "goto" for r in chain.rules)
    )


def owner_of(table: nft.NftTable) -> str:
    """Whose table it is: a program's, or "table inet site, which is not Kubernetes'"."""
    if is_kube_table(table.family, table.name):
        return "kube-proxy"
    if table.is_xtables:
        return f"iptables-nft (table {table.family} {table.name})"
    owner = owner_of_table(f"{table.family} {table.name}")
    return owner.name if owner is not None else f"table {table.family} {table.name}, which is not Kubernetes'"


def set_words(table: nft.NftTable, name: str) -> str:
    """What a set or map is for; "" where it is not kube-proxy's."""
    if not is_kube_table(table.family, table.name):
        found = table.set_or_map(name)
        return found.comment or "" if found is not None else "which the listing does not have"
    if name.startswith(NFT_AFFINITY_PREFIX):
        return f"clients that stay with endpoint {endpoint_of_chain(name) or '?'} (session affinity)"
    return _SET_WORDS.get(name, "")


# ------------------------------------------------------------------------------------------------------ elements


def element_words(table: nft.NftTable, name: str, element: nft.SetElement) -> str:
    """What an element of a set or map says."""
    purpose = purpose_of_element(table, name, element)
    if purpose is not None:
        return purpose.words()
    return f"{element.value}" if element.value is not None else "in the set"


_ELEMENTS = {
    "nodeport-ips": Aim.HAS_NODE_PORTS,
    "cluster-ips": Aim.IS_CLUSTER_IP,
    "firewall-allow": Aim.RANGES_MAY,
    "firewall": Aim.RANGES_HAS,
    "firewall-ips": Aim.RANGES_HAS,
}


def purpose_of_element(table: nft.NftTable, name: str, element: nft.SetElement) -> Purpose | None:
    """What an element of a set or map of kube-proxy's is there for; None for any other."""
    if not is_kube_table(table.family, table.name):
        return None
    parts = _parts(element.key)
    value = element.value if isinstance(element.value, nft.Verdict) else None
    target = value.target if value is not None else None
    role = role_of_nft_chain(target) if target is not None else None
    if name.startswith(NFT_AFFINITY_PREFIX):
        seconds = str(element.expires) if element.expires is not None else ""
        return Purpose(aim=Aim.STAYS, endpoint=endpoint_of_chain(name), seconds=seconds)
    if name == "hairpin-connections" and len(parts) == 4:
        return Purpose(aim=Aim.DIALS_ITSELF, endpoint=host_port(str(parts[0]), int(str(parts[3]))))
    front: Front | None = None
    if len(parts) == 2 and isinstance(parts[1], int):
        front = Front(FrontKind.NODE_PORT, None, parts[1], str(parts[0]))
    elif len(parts) == 3 and isinstance(parts[2], int):
        kind = FrontKind.ADDRESS
        if name == "service-ips":
            kind = FrontKind.EXTERNAL if role is ChainRole.EXTERNAL else FrontKind.CLUSTER_IP
        if name in ("firewall", "firewall-ips"):
            kind = FrontKind.LOAD_BALANCER_IP
        front = Front(kind, str(parts[0]), parts[2], str(parts[1]))
    aim, until = _ELEMENTS.get(name), ""
    if name in ("service-ips", "service-nodeports") and value is not None:
        aim = Aim.LEAD
    elif name in ("no-endpoint-services", "no-endpoint-nodeports") and value is not None:
        aim, until = _without_endpoint(table, name, element, value)
    service = service_of_element(element)
    found = None if aim is None else Purpose(aim=aim, front=front, service=service, role=role, until=until)
    return found if found is None or target is None else found._replace(to=target)


def _without_endpoint(
    table: nft.NftTable, name: str, element: nft.SetElement, value: nft.Verdict
) -> tuple[Aim, str]:
    """Why an element stops packets, and the last version that stops more than it should."""
    if value.kind != "drop":
        return Aim.NO_ENDPOINT, ""
    cluster_ips = table.sets.get("cluster-ips")
    address = _parts(element.key)[:1]
    if name == "no-endpoint-services" and cluster_ips is not None:
        if any(_parts(e.key) == address for e in cluster_ips.elements):
            return Aim.NO_LOCAL_INTERNAL, ""
    generation = generation_of(table)
    if generation is NftGeneration.V1_29 or (
        generation is NftGeneration.V1_30 and name == "no-endpoint-services"
    ):
        return Aim.NO_LOCAL_EARLY, "1.29" if name == "no-endpoint-nodeports" else "1.32"
    return Aim.NO_LOCAL, ""


# --------------------------------------------------------------------------------------------------------- rules


def explain_nft_rule(table: nft.NftTable, chain: str, rule: nft.NftRule, *, brief: bool = False) -> str:
    """What `rule` is there for, in plain words. Never empty.

    `brief` leaves out what the chain that the rule leads to is for, as its own line tells it.
    """
    purpose = purpose_of_nft(table, chain, rule)
    if purpose is not None:
        conditions = condition_words(rule.statements) if purpose.aim.tells_conditions else ""
        return purpose.words(conditions=conditions, brief=brief)
    found = table.chains.get(chain)
    return nft_rule_words(
        rule, policy=(found.policy or "accept") if found is not None and found.is_base else None
    )


def verdict_in(rule: nft.NftRule) -> nft.Verdict | None:
    """The rule's jump, goto or verdict."""
    return next((s for s in rule.statements if isinstance(s, nft.Verdict)), None)


def _conditions(rule: nft.NftRule) -> list[nft.Match]:
    return [s for s in rule.statements if isinstance(s, nft.Match)]


def _field(rule: nft.NftRule, name: str) -> str:
    """What the rule asks of an address of the packet, "" where it asks nothing."""
    asked = (m.right for m in _conditions(rule) if _is_field(m.left, name))
    return next((str(value) for value in asked if not isinstance(value, nft.SetReference)), "")


def _source(rule: nft.NftRule) -> str:
    return _field(rule, "saddr")


def _from_node(rule: nft.NftRule) -> bool:
    return any(isinstance(m.left, nft.Fib) and m.left.flags == ("saddr",) for m in _conditions(rule))


def _by_device(rule: nft.NftRule) -> bool:
    return any(isinstance(m.left, nft.Meta) and m.left.key != "l4proto" for m in _conditions(rule))


def _is_bare(rule: nft.NftRule) -> bool:
    return not _conditions(rule)


def _hairpin(rule: nft.NftRule) -> bool:
    return any(m.right == nft.SetReference("hairpin-connections") for m in _conditions(rule))


def _clients(rule: nft.NftRule) -> str:
    """The set of an endpoint's clients that the rule asks, "" where it asks none."""
    return next((m.right.name for m in _conditions(rule) if isinstance(m.right, nft.SetReference)), "")


def _lots(rule: nft.NftRule) -> tuple[nft.SetElement, ...]:
    """The endpoints that the rule draws from, or translates to."""
    for statement in rule.statements:
        match statement:
            case nft.Vmap(key=nft.Numgen(), data=nft.AnonymousSet() as drawn):
                return drawn.elements
            case nft.Nat(address=nft.MapLookup(data=nft.AnonymousSet() as drawn)):
                return drawn.elements
            case _:
                pass
    return ()


def _several(rule: nft.NftRule) -> bool:
    return len(_lots(rule)) > 1


def _does(rule: nft.NftRule) -> Iterator[str | ChainRole]:
    """What the rule does: the role of the chain that it leads to, its verdict, or its statement's name."""
    for statement in rule.statements:
        match statement:
            case nft.Verdict(kind=kind, target=target):
                role = role_of_nft_chain(target) if target is not None else None
                yield from (kind,) if role is None else (kind, role)
            case nft.Mangle(key=nft.Meta("mark"), value=nft.Binary("|")):
                yield ChainRole.MARK_MASQ  # in place since 1.36, by a chain before
            case nft.Mangle():
                yield "mangle"
            case nft.Nat(kind=kind):
                yield kind
            case nft.Reject():
                yield "reject"
            case nft.Vmap():
                yield "draw"
            case nft.SetUpdate():
                yield "note"
            case _:
                pass


_Form = tuple[str | ChainRole, Callable[[nft.NftRule], object] | None, Aim]
"""What the rule does, what else it asks for, and its aim."""

_MASQ_CLUSTER_IP: tuple[_Form, ...] = (
    (ChainRole.MARK_MASQ, _source, Aim.MASQ_OUTSIDE),
    (ChainRole.MARK_MASQ, _by_device, Aim.MASQ_NO_POD),
    (ChainRole.MARK_MASQ, None, Aim.MASQ_ANYONE),
)
_DRAWS: tuple[_Form, ...] = (
    *_MASQ_CLUSTER_IP,
    (ChainRole.ENDPOINT, _clients, Aim.STAY),
    ("draw", _several, Aim.DRAW_ONE),
    ("draw", _lots, Aim.DRAW_ONLY),
    ("dnat", _clients, Aim.STAY),
    ("dnat", _several, Aim.DRAW_ONE),
    ("dnat", _lots, Aim.TRANSLATE_ONLY),
)
_FORMS: Mapping[ChainRole, tuple[_Form, ...]] = {
    ChainRole.SERVICES_NAT: _MASQ_CLUSTER_IP,
    ChainRole.SERVICE: _DRAWS,
    ChainRole.SERVICE_LOCAL: _DRAWS,
    ChainRole.EXTERNAL: (
        (ChainRole.MARK_MASQ, _from_node, Aim.MASQ_OWN),
        (ChainRole.MARK_MASQ, _is_bare, Aim.MASQ_POLICY),
        (ChainRole.SERVICE_LOCAL, None, Aim.LOCAL_POLICY),
        (ChainRole.SERVICE, _from_node, Aim.SPARE_OWN),
        (ChainRole.SERVICE, _is_bare, Aim.CLUSTER_POLICY),
        (ChainRole.SERVICE, _source, Aim.SPARE_PODS),
        (ChainRole.SERVICE, None, Aim.SPARE_PODS_BY_DEVICE),
    ),
    ChainRole.ENDPOINT: (
        (ChainRole.MARK_MASQ, None, Aim.MASQ_SELF),
        ("note", None, Aim.NOTE_CLIENT),
        ("dnat", None, Aim.TRANSLATE),
    ),
    ChainRole.POSTROUTING: (
        ("masquerade", _hairpin, Aim.SNAT_SELF),
        ("masquerade", None, Aim.MASQUERADE),
        ("return", None, Aim.UNMARKED),
        ("mangle", None, Aim.UNMARK),
    ),
    ChainRole.MARK_MASQ: ((ChainRole.MARK_MASQ, None, Aim.MARK_MASQ),),
    ChainRole.REJECT: (("reject", None, Aim.REFUSE),),
    ChainRole.INVALID: (("drop", None, Aim.DROP_INVALID),),
    ChainRole.CLUSTER_IPS_CHECK: (
        ("reject", None, Aim.NO_SUCH_PORT),
        ("drop", None, Aim.NO_SUCH_ADDRESS),
    ),
    ChainRole.FIREWALL_CHECK: ((ChainRole.FIREWALL_ALLOW_CHECK, None, Aim.RANGES_CHECK),),
    ChainRole.FIREWALL_ALLOW_CHECK: (
        ("return", None, Aim.RANGES_RETURN),
        ("drop", None, Aim.RANGES_DROP_OTHERS),
    ),
    ChainRole.SERVICE_FIREWALL: (("drop", None, Aim.RANGES_DROP_OF),),
}
_LOOKUPS = {
    "service-ips": Aim.SEEK_ADDRESS,
    "service-nodeports": Aim.SEEK_NODE_PORT_OF_SET,
    "no-endpoint-services": Aim.SEEK_EMPTY_ADDRESS,
    "no-endpoint-nodeports": Aim.SEEK_EMPTY_NODE_PORT_OF_SET,
    "firewall-ips": Aim.SEEK_RANGES,
}
_WITHOUT_SET = {
    Aim.SEEK_NODE_PORT_OF_SET: Aim.SEEK_NODE_PORT_NO_LOOPBACK,
    Aim.SEEK_EMPTY_NODE_PORT_OF_SET: Aim.SEEK_EMPTY_NODE_PORT_NO_LOOPBACK,
}


def purpose_of_nft(table: nft.NftTable, chain: str, rule: nft.NftRule) -> Purpose | None:
    """What a rule of kube-proxy's nftables tables is there for; None for any other."""
    if not is_kube_table(table.family, table.name):
        return None
    found, where = table.chains.get(chain), role_of_nft_chain(chain)
    verdict = verdict_in(rule)
    target = verdict.target if verdict is not None else None
    if found is not None and found.is_base and target is not None:
        return Purpose(aim=Aim.ENTER, source=found.type or "", to=target, role=role_of_nft_chain(target))
    for statement in rule.statements:
        if isinstance(statement, nft.Vmap) and isinstance(statement.data, nft.SetReference):
            aim = _LOOKUPS.get(statement.data.name)
            if aim is not None and any(isinstance(m.left, nft.Fib) for m in _conditions(rule)):
                aim = _WITHOUT_SET.get(aim, aim)
            return Purpose(aim=aim) if aim is not None else None
    done = tuple(_does(rule))
    for does, asks, aim in _FORMS.get(where, ()) if where is not None else ():
        if does in done and (asks is None or asks(rule)):
            return _purpose(table, chain, rule, aim, target or "")
    return None


def _purpose(table: nft.NftTable, chain: str, rule: nft.NftRule, aim: Aim, target: str) -> Purpose:
    """A rule's purpose with all that the rule tells."""
    clients = table.sets.get(_clients(rule))
    lots = _lots(rule)
    endpoint = endpoint_of_chain(chain) or (endpoint_of_value(lots[0].value) if lots else None)
    dport = next((m for m in _conditions(rule) if _is_port(m.left)), None)
    port = dport.right.value if dport is not None and isinstance(dport.right, nft.Immediate) else None
    return Purpose(
        aim=aim,
        front=Front(
            FrontKind.CLUSTER_IP,
            _field(rule, "daddr") or None,
            port if isinstance(port, int) else None,
            dport.left.protocol if dport is not None and isinstance(dport.left, nft.Payload) else None,
        ),
        service=service_of_chain(chain),
        source=_source(rule),
        to="masquerading" if aim is Aim.MARK_MASQ else target,
        role=role_of_nft_chain(target),
        endpoint=endpoint_of_chain(clients.name) if clients is not None else endpoint,
        share=1 / len(lots) if lots else None,
        seconds=str(clients.timeout) if clients is not None and clients.timeout else "",
    )


def _is_port(expression: nft.Expression) -> bool:
    return isinstance(expression, nft.Payload) and expression.field == "dport"


def endpoint_of_value(value: nft.MapValue | None) -> str:
    """`ip:port` that a map's value translates to, or that the chain of an endpoint stands for; "" for others."""
    if isinstance(value, nft.Verdict):
        return (endpoint_of_chain(value.target) if value.target is not None else None) or ""
    if (target := target_of_value(value)) is not None:
        return host_port(target.ip, target.port or 0)
    return str(value) if isinstance(value, nft.Immediate) else ""


def target_of_value(value: nft.MapValue | None) -> Endpoint | None:
    """The address and port that a map's value is, None where it is something else."""
    if isinstance(value, nft.Concat) and len(value.parts) == 2:
        ip, port = _parts(value)
        if isinstance(port, int):
            return Endpoint(str(ip), port)
    return None
