"""Matches on whence a packet comes: ports of a bridge, the way back, sockets and their owners, IPsec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktp.dataplane.matches.compiled import Compiled, Rows, Test, all_of, always, negate, value_mask
from ktp.dataplane.packet import Packet
from ktp.dataplane.xfrm import will_protect
from ktp.model.assumption import Assumption
from ktp.model.ruleset import Match

if TYPE_CHECKING:
    from ktp.dataplane.host import Host


def _physdev(match: Match) -> Compiled | None:
    tests: list[Test] = []
    for option in match.options:
        flag, negated = option.flag, option.negated
        arg = option.args[0] if option.args else ""
        if flag == "--physdev-is-in":
            tests.append(negate(lambda p, h, hook: p.physin is not None, negated))
        elif flag == "--physdev-is-out":
            tests.append(negate(lambda p, h, hook: p.physout is not None, negated))
        elif flag == "--physdev-is-bridged":
            tests.append(negate(lambda p, h, hook: p.bridged, negated))
        elif flag in ("--physdev-in", "--physdev-out"):
            incoming = flag == "--physdev-in"

            def test(
                p: Packet,
                h: Host,
                hook: str,
                arg: str = arg,
                incoming: bool = incoming,
                negated: bool = negated,
            ) -> bool | None:
                if p.physin is None:
                    return (
                        negated  # physdev_mt: without the bridge's note every condition is taken as not met
                    )
                if incoming:
                    answer = h.port_matches(p.iif, arg)
                elif p.physout is None:
                    return False
                else:
                    answer = h.port_matches(p.oif, arg)
                return None if answer is None else answer != negated

            tests.append(test)
        else:
            return None
    return Compiled(all_of(tests)) if tests else None


def _rpfilter(match: Match) -> Compiled | None:
    if any(o.flag not in ("--loose", "--validmark", "--accept-local", "--invert") for o in match.options):
        return None
    loose = match.option("--loose") is not None
    validmark = match.option("--validmark") is not None
    accept_local = match.option("--accept-local") is not None
    invert = match.option("--invert") is not None

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        answer = h.rpfilter(p, loose=loose, validmark=validmark, accept_local=accept_local)
        return None if answer is None else answer != invert

    return Compiled(test)


def _policy(match: Match) -> Compiled | None:
    """xt_policy.c: what a packet came out of (`--dir in`), or is to be sent by."""
    wanted, direction = match.option("--pol"), match.option("--dir")
    if wanted is None:
        return None
    none, comes_in = wanted.args[0] == "none", direction is not None and direction.args[0] == "in"
    asks_more = len(match.options) > 2

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        by_ipsec = p.secured is not None if comes_in else will_protect(h.state.xfrm, p)
        if by_ipsec is None or (by_ipsec and asks_more and not none):
            return None
        return (by_ipsec is not none) != wanted.negated

    return Compiled(test, Assumption("no IPsec policy applies to the packet but those that were read"))


def _owner(match: Match) -> Compiled | None:
    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if p.local:
            return None
        # xt_owner.c: a packet without a socket matches only where every condition is negated.
        return all(o.negated for o in match.options)

    return Compiled(test)


def _socket(match: Match) -> Compiled | None:
    def test(p: Packet, h: Host, hook: str) -> bool | None:
        if p.local:
            return None
        found = h.listener(p.family, p.proto, p.dst, p.dport, p.iif)
        if found is False:
            return False
        return None

    return Compiled(test)


def _mac(match: Match) -> Compiled | None:
    def test(p: Packet, h: Host, hook: str) -> bool | None:
        return False if p.local and hook in ("OUTPUT", "POSTROUTING") else None

    return Compiled(test)


def _cgroup(match: Match) -> Compiled | None:
    return Compiled(lambda p, h, hook: None if p.local else all(o.negated for o in match.options))


def _realm(match: Match) -> Compiled | None:
    option = match.option("--realm")
    if option is None:
        return None
    try:
        value, mask = value_mask(option.args[0])
    except ValueError:
        return None
    return Compiled(
        negate(always(mask & 0 == value), option.negated),
        Assumption("no route carries a realm (`ip -j route` shows none)"),
    )


ROWS: Rows = {
    "physdev": (
        _physdev,
        "exact",
        "where some ports of the bridge match and some do not, which one it is is unknown",
    ),
    "policy": (_policy, "assumed", "no IPsec but what was read"),
    "rpfilter": (_rpfilter, "exact", "needs the routes"),
    "realm": (_realm, "assumed", "no realms"),
    "owner": (_owner, "exact", "unknown for packets of the node's own processes"),
    "socket": (_socket, "exact", "false where nothing listens, else unknown"),
    "cgroup": (_cgroup, "exact", "unknown for packets of the node's own processes"),
    "mac": (_mac, "unknown", "source hardware addresses of arriving frames are not known"),
}
