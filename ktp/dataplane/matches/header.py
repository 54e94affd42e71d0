"""Conditions on the IP header: `-s`, `-d`, `-p`, `-i`, `-o`, `-f`."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from ktp.dataplane.host import interface_matches
from ktp.dataplane.matches.compiled import Compiled, Test, always, negate
from ktp.dataplane.packet import PROTOCOLS, Packet, to_int
from ktp.model.host import POD_DEVICES, UNNAMED_DEVICES, UPLINK
from ktp.model.ruleset import Match, Option

if TYPE_CHECKING:
    from ktp.dataplane.host import Host


def _address_test(option: Option, source: bool) -> Test | None:
    try:
        net = ip_network(option.args[0], strict=False)
    except ValueError:
        text, _, mask_text = option.args[0].partition("/")
        try:  # a mask that is no prefix, e.g. 10.0.0.1/255.0.0.255
            family, number = to_int(text)
            _, mask = to_int(mask_text)
        except (ValueError, OSError):
            return None
        return _masked(family, number & mask, mask, source, option.negated)
    family = net.version
    bits = 32 if family == 4 else 128
    mask = ((1 << net.prefixlen) - 1) << (bits - net.prefixlen)
    return _masked(family, int(net.network_address), mask, source, option.negated)


def _masked(family: int, value: int, mask: int, source: bool, negated: bool) -> Test:
    if source:
        if negated:
            return lambda p, h, hook: p.src & mask != value
        return lambda p, h, hook: p.src & mask == value
    if negated:
        return lambda p, h, hook: p.dst & mask != value
    return lambda p, h, hook: p.dst & mask == value


def _protocol_test(option: Option) -> Test | None:
    word = option.args[0].lower()
    if word in ("all", "0"):
        return always(not option.negated)
    number = int(word) if word.isdigit() else PROTOCOLS.get(word)
    if number is None:
        return None
    if option.negated:
        return lambda p, h, hook: p.proto != number
    return lambda p, h, hook: p.proto == number


def _interface_test(option: Option, incoming: bool) -> Test:
    pattern = option.args[0]
    if pattern == "+":
        return always(not option.negated)
    of_pods = pattern.startswith(POD_DEVICES)

    def test(p: Packet, h: Host, hook: str) -> bool | None:
        name = p.iif if incoming else p.oif
        if name is None:
            # No interface of that side at this hook is the empty name; "?" is one that is not known.
            return False
        if name in UNNAMED_DEVICES:
            # What leads out of a node is no pod's.
            return False if name == UPLINK and of_pods and h.has_network else None
        return interface_matches(pattern, name)

    return negate(test, option.negated)


def header(match: Match) -> Compiled | None:
    """One of the conditions that iptables has without `-m`; None where it cannot be told."""
    option = match.options[0]
    flag = option.flag
    test: Test | None
    if flag == "-s":
        test = _address_test(option, True)
    elif flag == "-d":
        test = _address_test(option, False)
    elif flag == "-p":
        test = _protocol_test(option)
    elif flag == "-i":
        test = _interface_test(option, True)
    elif flag == "-o":
        test = _interface_test(option, False)
    elif flag == "-f":
        test = always(option.negated)  # ktp's packets are whole: conntrack defragments before
    else:
        test = always(True)
    return None if test is None else Compiled(test)
