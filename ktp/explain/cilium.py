"""Cilium's front ends in words: what the load-balancing maps of a node hold for a port.

Facts: `cilium-dbg bpf lb list`, `service list` of Cilium 1.12 to 1.19, and recordings of 1.19.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from ktp.explain.balancer import explain_table
from ktp.explain.purpose import Aim, Purpose
from ktp.explain.words import percent
from ktp.kubeproxy.names import host_port
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.cilium import LbFlag, LbFrontend, LbKind
from ktp.model.effect import Endpoint
from ktp.model.explanation import (
    ChainNode,
    ElementNode,
    Explanation,
    LookupNode,
    RuleNode,
    StageNode,
)
from ktp.model.host import NodeState
from ktp.model.trace import FlowAnswer

TABLE = "cilium"
_HOOKS = {
    "CONNECT": "as a process calls connect()",
    "POD": "as a pod's packet leaves the pod",
    "DEVICE": "as the packet arrives, before any rule",
}
_KINDS = {
    LbKind.CLUSTER_IP: "cluster IP",
    LbKind.NODE_PORT: "node port",
    LbKind.LOAD_BALANCER: "load-balancer IP",
    LbKind.EXTERNAL_IPS: "external IP",
    LbKind.HOST_PORT: "host port of a pod",
    LbKind.LOCAL_REDIRECT: "local redirect",
    LbKind.UNKNOWN: "front end",
}
_FLAGS = {
    LbFlag.EXTERNAL_LOCAL: "externalTrafficPolicy Local",
    LbFlag.INTERNAL_LOCAL: "internalTrafficPolicy Local",
    LbFlag.AFFINITY: "session affinity",
    LbFlag.SOURCE_RANGE: "only from its source ranges",
    LbFlag.SOURCE_RANGE_DENY: "not from its source ranges",
    LbFlag.DSR: "the backend's node answers the client itself",
    LbFlag.L7: "through a proxy",
}


def front_end_words(f: LbFrontend) -> str:
    """What a front end is, whom it serves, and by which policy."""
    if f.port == 0:
        return f"every other port of this {_KINDS[f.kind]}: dropped"
    flags = [words for flag, words in _FLAGS.items() if flag in f.flags]
    if f.kind is LbKind.NODE_PORT and int(f.ip) == 0:
        where = f"{_KINDS[f.kind]} of any node, for connections from this node"
        whom = ", internal scope" if f.internal else ""
    else:
        where, whom = _KINDS[f.kind], ", for all clients"
        if f.internal or f.kind is LbKind.CLUSTER_IP:
            whom = ", for clients inside the cluster"
        elif LbFlag.TWO_SCOPES in f.flags:
            whom = ", for clients outside"
        elif not f.flags_known:
            whom = ""
    return f"{where}{whom}" + (f" ({', '.join(flags)})" if flags else "")


def front_ends_met(
    frontends: Iterable[LbFrontend], dst: str | None, protocol: str, port: int
) -> list[LbFrontend]:
    """The entries that a packet may meet: of its address, of any node's, and of the address's other ports.

    `dst` None is every address.
    """
    address = ip_address(dst) if dst is not None else None
    return [
        f
        for f in frontends
        if f.protocol in (None, protocol)
        and (f.port == port and (address is None or f.ip == address or int(f.ip) == 0))
    ]


def cilium_stages(state: NodeState, answer: FlowAnswer, node: str) -> list[StageNode]:
    """What Cilium's programs of a node did with the request, one stage a program that met it."""
    frontends = state.cilium.frontends if state.cilium is not None else None
    if frontends is None:
        return []
    hooks: dict[str, dict[str, float]] = {}
    taken: dict[Endpoint, float] = {}
    for path in answer.paths:
        for hop in path.hops:
            if not hop.is_of(node) or hop.direction != "request":
                continue
            for step in hop.steps:
                if step.table != TABLE or step.chain or step.hook not in _HOOKS:
                    continue
                by_text = hooks.setdefault(step.hook, {})
                by_text[step.text] = by_text.get(step.text, 0.0) + path.probability
                for translation in step.translations:
                    taken[translation.after] = taken.get(translation.after, 0.0) + path.probability
    met = front_ends_met(frontends, answer.flow.dst, answer.flow.protocol.lower(), answer.flow.port)
    stages = []
    for hook, by_text in hooks.items():
        used = [f for f in frontends if f.text in by_text]
        shown = [*used, *(f for f in met if f not in used)]
        stages.append(
            StageNode(
                hook=hook,
                words=_HOOKS[hook],
                backend=TABLE,
                chain=_chain(
                    [_node(f, min(1.0, by_text.get(f.text, 0.0)), taken) for f in shown], len(frontends)
                ),
            )
        )
    return stages


def _chain(nodes: Sequence[RuleNode], total: int) -> ChainNode:
    left = total - len(nodes)
    return ChainNode(
        table=TABLE,
        name="front ends",
        words="Cilium's load-balancing map sends packets to one of a front end's backends",
        rules=tuple(nodes),
        left_out=left,
        left_out_words="front ends of other addresses and ports" if left else "",
    )


def _node(f: LbFrontend, share: float | None, taken: dict[Endpoint, float] | None) -> RuleNode:
    part = 1 / len(f.backends) if f.backends else 0.0
    elements = [
        ElementNode(
            text=host_port(str(b.ip), b.port),
            words=f"{percent(part)} of new connections",
            share=None
            if taken is None or not share
            else min(1.0, taken.get(Endpoint(str(b.ip), b.port), 0.0)),
        )
        for b in f.backends
    ]
    elements += [
        ElementNode(
            text=host_port(str(b.ip), b.port), words="not drawn: terminating, or quarantined", share=0.0
        )
        for b in f.spare
    ]
    words = front_end_words(f)
    if not f.backends and f.port:
        words += ": no backend"
    lookups = (
        (LookupNode(kind="servers", name="", words="backends", elements=tuple(elements)),) if elements else ()
    )
    return RuleNode(position=0, line=0, text=f.text, words=words, share=share, lookups=lookups)


def purpose_of_front_end(f: LbFrontend) -> Purpose | None:
    """What a front end without a backend stops packets for; None for one that has some, and for other ports' drops."""
    if f.backends or not f.port:
        return None
    if LbFlag.EXTERNAL_LOCAL in f.flags and not f.internal and f.kind is not LbKind.CLUSTER_IP:
        return Purpose(aim=Aim.NO_LOCAL)
    if LbFlag.INTERNAL_LOCAL in f.flags:
        return Purpose(aim=Aim.NO_LOCAL_INTERNAL)
    return Purpose(aim=Aim.NO_ENDPOINT if f.flags_known else Aim.NO_BACKEND)


# ------------------------------------------------------------------------------------------------ a dump alone


def explain_cilium_dump(
    frontends: Sequence[LbFrontend],
    source: str,
    node: str,
    protocol: str,
    port: int,
    address: str | None = None,
) -> Explanation | None:
    """The front ends of a port, or of `address`, from `bpf lb list` or `service list` alone; None where there is none.

    The verdict is a client's outside the cluster, by the entry of a node's address, else by the first.
    """
    mine = front_ends_met(frontends, address, protocol, port)
    if not mine:
        return None
    asked = next(
        (f for f in mine if not f.internal and int(f.ip) and f.kind is not LbKind.CLUSTER_IP),
        next((f for f in mine if not f.internal), mine[0]),
    )
    shares = {host_port(str(b.ip), b.port): 1 / len(asked.backends) for b in asked.backends}
    where = host_port(str(asked.ip), asked.port)
    purpose = purpose_of_front_end(asked)
    notes = []
    if not all(f.counted for f in mine):
        notes.append(
            "how many of the slots are drawn is not in this listing (`bpf lb list --frontends` has it): terminating "
            "backends may be among them"
        )
    if LbFlag.TWO_SCOPES in asked.flags:
        notes.append("entries with /i are for clients inside the cluster, the others for clients outside")
    taken_for = Assumption(
        "no policy and no rule stops the packets (the maps tell neither)", EvidenceKind.RULES, node
    )
    refuses = Assumption(
        "Cilium refuses where there is no backend, as from 1.15 on (its version was not read)",
        EvidenceKind.VERSION,
        node,
    )
    return explain_table(
        _chain([_node(f, None, None) for f in mine], len(frontends)),
        shares,
        node=node,
        protocol=protocol,
        port=port,
        address=address,
        source=source,
        written_by="Cilium's load-balancing maps",
        sends="Cilium sends new connections to a backend",
        why=f"{where} is balanced over {len(shares)} backend{'s' * (len(shares) > 1)}"
        if shares
        else f"{where}: {purpose.why('the Service', '') if purpose is not None else ''}",
        rule=asked.text,
        assumption=taken_for if shares else refuses,
        notes=notes,
    )
