"""What hangs at a hook, priority by priority: tables, connection tracking, nat, IPVS. Every way through each.

Where several programs have one priority and nothing tells which is first, every order is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import combinations

from ktp.dataplane import packet as pk
from ktp.dataplane.conntrack import track, translate_back
from ktp.dataplane.hooks import OUTPUT, PREROUTING, Group, HookProgram
from ktp.dataplane.host import Host
from ktp.dataplane.ipvs_stage import serve
from ktp.dataplane.packet import Packet
from ktp.dataplane.state import ACCEPT, ASKED, Decision, State, Verdict
from ktp.model.assumption import Assumption, EvidenceKind


def run_group(state: State, host: Host, hook: str, group: Group) -> list[Verdict]:
    """Every way of the packet through one group of a hook."""
    match group.kind:
        case "conntrack":
            track(state, host)
            return [Verdict(ACCEPT, state)]
        case "nat":
            return _nat(state, host, hook, group)
        case "ipvs":
            return serve(state, host, hook)
    return _tables(state, host, hook, group)


def _tables(state: State, host: Host, hook: str, group: Group) -> list[Verdict]:
    programs = group.programs
    if len(programs) == 1:
        return programs[0].run(state, host, hook)
    if (group.others or group.notes) and not _is_order_idle(state, host, hook, programs):
        return _each_order(state, host, hook, group, _in_turn)
    return _in_turn(state, host, hook, programs)


def _in_turn(state: State, host: Host, hook: str, programs: Iterable[HookProgram]) -> list[Verdict]:
    ended: list[Verdict] = []
    states = [state]
    for program in programs:
        after: list[State] = []
        for each in states:
            for verdict in program.run(each, host, hook):
                if verdict.code == ACCEPT:
                    after.append(verdict.state)
                else:
                    ended.append(verdict)
        states = after
    ended.extend(Verdict(ACCEPT, s) for s in states)
    return ended


def _is_order_idle(
    state: State, host: Host, hook: str, programs: tuple[HookProgram, ...], *, once: bool = False
) -> bool:
    """Whether it does not matter which runs first: all but one accept the packet and leave it alone.

    That is asked of the packet as the one leaves it, too; but `once` it is translated in nat no other is asked.
    """
    active = []
    for program in programs:
        verdicts = program.run(state.fork(), host, hook)
        if not _is_quiet(verdicts, state.packet):
            active.append((program, verdicts))
    if len(active) != 1:
        return not active
    program, verdicts = active[0]
    for verdict in verdicts:
        p = verdict.state.packet
        if verdict.code != ACCEPT or _same(p, state.packet):
            continue
        if once and p.ct is not None and (p.ct.dst_done if hook in (PREROUTING, OUTPUT) else p.ct.src_done):
            continue
        for other in programs:
            if other is not program and not _is_quiet(other.run(verdict.state.fork(), host, hook), p):
                return False
    return True


def _each_order(
    state: State,
    host: Host,
    hook: str,
    group: Group,
    run: Callable[[State, Host, str, Iterable[HookProgram]], list[Verdict]],
) -> list[Verdict]:
    """The packet through the programs in each order that is possible, and that agrees with what was answered before."""
    for note in group.notes:
        state.assume(Assumption(note, EvidenceKind.NFT, host.name))
    where = (host.name, "order", "" if group.kind == "nat" else hook)
    answered = state.asked or {}
    possible = [(number, o, _pairs(where, o)) for number, o in enumerate((group.programs, *group.others))]
    orders = [
        one for one in possible if all(answered.get(key, answer) == answer for key, answer in one[2].items())
    ]
    if len(orders) < 2:
        return run(state, host, hook, orders[0][1] if orders else group.programs)
    names = " and ".join(_name(p) for p in group.programs)
    why = (
        f"{names} hang at one hook with one priority; the kernel runs first what was registered last, and a dump does "
        f"not tell which ({_what_tells(state, host, hook, group)})"
    )
    key = (*where, *sorted(map(_name, group.programs)))
    verdicts = []
    for each, (number, order, pairs) in [(state.fork(), one) for one in orders]:
        each.asked = {**answered, **pairs}
        each.decide(Decision(ASKED, key, number, 1.0, f"the order of {names}", why, None))
        verdicts += run(each, host, hook, order)
    return verdicts


def _name(program: HookProgram) -> str:
    return f"{program.backend} {program.table}"


def _pairs(where: tuple[str, ...], order: Sequence[HookProgram]) -> dict[Hashable, bool]:
    """Of each two programs, as a question by their names in their alphabet's order, whether the former is first."""
    names = [_name(program) for program in order]
    return {(*where, min(a, b), max(a, b)): a < b for a, b in combinations(names, 2) if a != b}


def _what_tells(state: State, host: Host, hook: str, group: Group) -> str:
    """What would tell the order on this kernel and of these rules, or did not."""
    linux = "7" if group.kind == "nat" else "6.12"
    if host.state.nft_hooks is not None:
        hooks = "what `nft list hooks` printed there does not name them all"
    else:
        hooks = f"`nft list hooks` of Linux {linux} or newer does"
    if host.state.rules_twice is not None:
        return f"{hooks}; what their rules counted between two readings does not"
    from ktp.dataplane.order_told import sides_of

    def steps() -> Iterator[tuple[HookProgram, str, str]]:
        for program in group.programs:
            for verdict in program.run(state.fork(), host, hook):
                way = verdict.state.steps
                while way is not None and way is not state.steps:
                    way, step = way
                    if step.rule is not None:
                        yield program, step.chain, step.rule.text

    if sides_of(host, state.packet.family).would_tell(group.programs, steps):
        return f"{hooks}, and so may --counters SECONDS, if such packets come meanwhile"
    return hooks


def _nat(state: State, host: Host, hook: str, group: Group) -> list[Verdict]:
    """nf_nat_inet_fn: the rules for the first packet of a connection, the entry for all others."""
    p = state.packet
    ct = p.ct
    if ct is None:
        return [Verdict(ACCEPT, state)]
    destination = hook in (PREROUTING, OUTPUT)
    if p.reply and not (p.ctstate & pk.NEW):
        if p.inner is None or p.icmp is not None or (ct.dst_done if destination else ct.src_done):
            translate_back(state, hook, destination)
            return [Verdict(ACCEPT, state)]
        # A reset that a rule sends on a connection not yet translated (IP_CT_RELATED_REPLY and no ICMP): the rules
        # are asked as for its first packet, and may drop it. What they translate is the other direction's.
        verdicts = _nat_by_rules(state, host, hook, group)
        for verdict in verdicts:
            if verdict.code == ACCEPT:
                q = verdict.state.packet
                q.src, q.sport, q.dst, q.dport = p.src, p.sport, p.dst, p.dport
                translate_back(verdict.state, hook, destination)
        return verdicts
    if destination and ct.dst_done:
        if ct.dnat:
            p.dst, p.dport = ct.dst, ct.dport
        return [Verdict(ACCEPT, state)]
    if not destination and ct.src_done:
        if ct.snat:
            p.src, p.sport = ct.src, ct.sport
        return [Verdict(ACCEPT, state)]
    return _nat_by_rules(state, host, hook, group)


def _nat_by_rules(state: State, host: Host, hook: str, group: Group) -> list[Verdict]:
    programs = group.programs
    if (group.others or group.notes) and not _is_order_idle(state, host, hook, programs, once=True):
        return _each_order(state, host, hook, group, _nat_in_turn)
    return _nat_in_turn(state, host, hook, programs)


def _nat_in_turn(state: State, host: Host, hook: str, programs: Iterable[HookProgram]) -> list[Verdict]:
    destination = hook in (PREROUTING, OUTPUT)
    ended: list[Verdict] = []
    states = [state]
    for program in programs:
        after: list[State] = []
        for each in states:
            ct = each.packet.ct
            assert ct is not None
            if ct.dst_done if destination else ct.src_done:
                after.append(each)
                continue
            for verdict in program.run(each, host, hook):
                if verdict.code == ACCEPT:
                    after.append(verdict.state)
                else:
                    ended.append(verdict)
        states = after
    for each in states:
        ct = each.packet.ct
        assert ct is not None
        if destination:
            ct.dst_done = True
        else:
            ct.src_done = True
    ended.extend(Verdict(ACCEPT, s) for s in states)
    return ended


def _same(a: Packet, b: Packet) -> bool:
    ct_a, ct_b = a.ct, b.ct
    return (a.dst, a.dport, a.src, a.sport, a.mark, a.tos, a.ctstate) == (
        b.dst, b.dport, b.src, b.sport, b.mark, b.tos, b.ctstate,
    ) and (
        ct_a is None or ct_b is None
        or (ct_a.mark, ct_a.dst_done, ct_a.src_done) == (ct_b.mark, ct_b.dst_done, ct_b.src_done)
    )  # fmt: skip


def _is_quiet(verdicts: list[Verdict], p: Packet) -> bool:
    return len(verdicts) == 1 and verdicts[0].code == ACCEPT and _same(verdicts[0].state.packet, p)
