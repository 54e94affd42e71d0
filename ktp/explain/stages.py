"""The tables that a flow's request meets on a node, each as a tree, in the kernel's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ktp.dataplane.hooks import FORWARD, HOOKS, INPUT, OUTPUT, POSTROUTING, PREROUTING, HookProgram
from ktp.dataplane.packet import PROTOCOLS, Packet, to_int
from ktp.dataplane.walk import Walker
from ktp.dataplane.xtables import Program
from ktp.explain.tree import Taken, Way
from ktp.explain.xt_tree import XtTree
from ktp.model.explanation import ChainNode, StageNode
from ktp.model.reading import Reading
from ktp.model.ruleset import Chain
from ktp.model.trace import FlowAnswer, Path

_HOOK_WORDS = {
    PREROUTING: "as the packet arrives",
    OUTPUT: "as this node's own process sends it",
    INPUT: "on its way to this node's own processes",
    FORWARD: "on its way through this node",
    POSTROUTING: "as it leaves",
}

_POD_WORDS = {
    OUTPUT: "as the pod's own program sends it",
    INPUT: "on its way to the pod's programs",
    FORWARD: "on its way through the pod",
}

_NAT = -100  # the priority from which on the destination is the translated one


def stages_of(
    walker: Walker, node: str, answer: FlowAnswer, *, every_rule: bool = False
) -> tuple[StageNode, ...]:
    """The tables that the flow's request meets on `node`, in the kernel's order, then those of pods that it gets to."""
    pods = dict.fromkeys(
        (h.node, h.pod) for p in answer.paths for h in p.hops if h.pod and h.direction == "request"
    )
    return tuple(
        stage
        for place, pod in ((node, ""), *pods)
        for stage in _stages_in(walker, place, pod, answer, every_rule=every_rule)
    )


def _stages_in(
    walker: Walker, node: str, pod: str, answer: FlowAnswer, *, every_rule: bool
) -> tuple[StageNode, ...]:
    family, dst = to_int(answer.flow.dst)
    taken, hooks = Taken.of(answer, node, pod), _hooks(answer, node, pod)
    before, after = _packets_of(answer, node, pod)
    before = before or [Packet(family, PROTOCOLS[answer.flow.protocol.lower()], 0, dst, 0, answer.flow.port)]
    host = walker.host(node, pod)
    stages: list[StageNode | None] = []
    if host is not None and host.cilium is not None:
        from ktp.explain.cilium import cilium_stages

        stages += cilium_stages(host.state, answer, node)
        if _is_past_rules(answer, node):
            hooks = []
    for hook in hooks:
        # Over loopback, or on from IPVS: translated already, no nat rule sees it.
        again = hook in (PREROUTING, OUTPUT) and hook != hooks[0]
        # IPVS translates behind INPUT's rules.
        first = (hook in (PREROUTING, OUTPUT) and not again) or (hook == INPUT and OUTPUT in hooks[1:])
        for group in walker.groups(node, family, hook, pod):
            early = first and (group.priority <= _NAT or hook == INPUT)
            way = Way(hook, host, before if early or not after else after, taken)
            if group.kind == "ipvs" and host is not None and not again:
                from ktp.explain.ipvs import ipvs_stage

                stages.append(ipvs_stage(way, host, _HOOK_WORDS[hook], before, group.priority))
            for program in () if again and group.kind == "nat" else group.programs:
                stages.append(_stage(program, way, group.priority, every_rule=every_rule))
    found = tuple(stage for stage in stages if stage is not None)
    return (
        found if not pod else tuple(replace(s, pod=pod, words=_POD_WORDS.get(s.hook, s.words)) for s in found)
    )


def _stage(program: HookProgram, way: Way, priority: int, *, every_rule: bool) -> StageNode | None:
    """The tree of a table's or base chain's rules; None where there is nothing to show."""
    words = _HOOK_WORDS[way.hook]
    chain: ChainNode
    if isinstance(program, Program):
        base = program.chain(way.hook)
        if base is None or _is_assumed(base.source):
            return None
        chain = XtTree(program.ruleset, program.table, way, program, every_rule=every_rule).chain(base.source)
        return StageNode(hook=way.hook, words=words, backend=program.backend, chain=chain, priority=priority)
    from ktp.dataplane.nft import BaseChain
    from ktp.explain.nft_tree import NftTree

    if not isinstance(program, BaseChain):
        return None  # rules of a bridge
    chain = NftTree(program.program.source, way, every_rule=every_rule).chain(program.source)
    return StageNode(
        hook=way.hook,
        words=words,
        backend=program.backend,
        chain=chain,
        priority=program.priority,
        type=program.chain_type,
    )


def _is_past_rules(answer: FlowAnswer, node: str) -> bool:
    """Whether no request of the node met a rule: a program ended it, or sent it on by itself."""
    hops = [h for p in answer.paths for h in p.hops if h.is_of(node) and h.direction == "request"]
    return bool(hops) and not any(s.hook in HOOKS for h in hops for s in h.steps)


def _packets_of(answer: FlowAnswer, node: str, pod: str) -> tuple[list[Packet], list[Packet]]:
    """The packets before and behind the translation of their destination on `node`, with the client's source."""
    number = PROTOCOLS[answer.flow.protocol.lower()]
    found: tuple[dict[tuple[str, int], Packet], dict[tuple[str, int], Packet]] = ({}, {})
    for path in answer.paths:
        for hop in path.hops:
            if not hop.is_of(node, pod) or hop.direction != "request":
                continue
            family, src = to_int(hop.arrived.src)
            for packets, head in zip(found, (hop.arrived, hop.left), strict=True):
                dst = to_int(head.dst)[1]
                sport = max(hop.arrived.sport, 0)
                packets.setdefault(
                    (head.dst, head.dport), Packet(family, number, src, dst, sport, head.dport)
                )
    return list(found[0].values()), list(found[1].values())


def _is_assumed(chain: Chain) -> bool:
    """Whether nothing was read of the chain, and it is taken not to concern the packet."""
    unread = chain.rule(0).unread if chain.reading is Reading.NOT_READ else None
    return unread is not None and unread.assumed


def quiet_tables(
    walker: Walker, node: str, answer: FlowAnswer, stages: Sequence[StageNode]
) -> tuple[str, ...]:
    """Tables of the node that have nothing to say on the packet's way, in the kernel's order."""
    state = walker.topology.nodes.get(node)
    word = "ip6" if ":" in answer.flow.dst else "ip"
    rulesets = state.rulesets_of(word) if state is not None else ()
    tables = {t for r in rulesets for t in r.tables() if r.reading(t).reading is Reading.WHOLE}
    tables -= {s.chain.table for s in stages}
    return tuple(t for t in ("raw", "mangle", "nat", "filter", "security") if t in tables)


def _hooks(answer: FlowAnswer, node: str, pod: str) -> list[str]:
    """The hooks that the request passes on `node`, in order."""
    hooks: set[str] = set()
    local = ipvs = False
    for path in answer.paths:
        for hop in path.hops:
            if not hop.is_of(node, pod) or hop.direction != "request":
                continue
            hooks.update(s.hook for s in hop.steps if s.hook in HOOKS)
            local = local or hop.in_interface is None
            by_ipvs = hop.in_interface is not None and any(s.table == "ipvs" for s in hop.steps)
            ipvs = ipvs or by_ipvs
            stopped = path.decided_by.hook if path.decided_by is not None and not _arrived(path) else ""
            if stopped in HOOKS:
                continue
            if by_ipvs:
                hooks.update((INPUT, OUTPUT, POSTROUTING))
            elif hop.out_interface is not None or _arrived(path):
                hooks.update((FORWARD, POSTROUTING) if hop.in_interface is not None else (POSTROUTING,))
            else:
                hooks.add(INPUT)
    if local:
        order: tuple[str, ...] = (OUTPUT, POSTROUTING, PREROUTING, INPUT)
        hooks.add(OUTPUT)
    else:
        # What IPVS takes in INPUT goes out by OUTPUT: it never sees FORWARD.
        order = (PREROUTING, INPUT, OUTPUT if ipvs else FORWARD, POSTROUTING)
        hooks.add(PREROUTING)
    return [h for h in order if h in hooks]


def _arrived(path: Path) -> bool:
    return path.source_seen is not None
