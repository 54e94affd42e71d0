"""Errors: their ICMP types and codes, and what the sender's socket makes of them."""

from __future__ import annotations

from ktp.dataplane.hooks import OUTPUT, POSTROUTING
from ktp.dataplane.packet import TCP, UDP, Packet
from ktp.model.trace import Symptom

ICMP_CODES = {
    "icmp-net-unreachable": (3, 0),
    "icmp-host-unreachable": (3, 1),
    "icmp-proto-unreachable": (3, 2),
    "icmp-port-unreachable": (3, 3),
    "icmp-frag-needed": (3, 4),
    "icmp-net-prohibited": (3, 9),
    "icmp-host-prohibited": (3, 10),
    "icmp-admin-prohibited": (3, 13),
    "icmp-time-exceeded": (11, 0),
    "icmp6-packet-too-big": (2, 0),
    "icmp6-time-exceeded": (3, 0),
    "icmp6-no-route": (1, 0),
    "icmp6-adm-prohibited": (1, 1),
    "icmp6-addr-unreachable": (1, 3),
    "icmp6-port-unreachable": (1, 4),
    "icmp6-policy-fail": (1, 5),
    "icmp6-reject-route": (1, 6),
}


# Errors that a connected UDP socket is not told of (icmp_err_convert[].fatal, icmpv6_err_convert).
_SOFT = frozenset(
    (
        "icmp-net-unreachable",
        "icmp-host-unreachable",
        "icmp-time-exceeded",
        "icmp6-no-route",
        "icmp6-addr-unreachable",
        "icmp6-time-exceeded",
    )
)


def symptom_of(kind: str, proto: int) -> Symptom:
    """What the client's socket reports for an error (tcp_v4_err, __udp4_lib_err)."""
    if kind in ("tcp-reset", "icmp-port-unreachable", "icmp6-port-unreachable"):
        return Symptom.REFUSED
    if proto != TCP and kind in _SOFT:
        return Symptom.TIMES_OUT
    return Symptom.UNREACHABLE


def send_symptom(p: Packet, hook: str) -> Symptom:
    """What the sending process sees of its packet's end at `hook`.

    Where a packet of the node itself ends at OUTPUT or POSTROUTING, NF_HOOK's error (-EPERM for a dropped or rejected
    packet, the route's where ip_route_me_harder finds none) returns through udp_sendmsg to sendto(): `unreachable`, as
    every failure that is told at once and is not ECONNREFUSED. tcp_connect ignores it and waits: `times_out`.
    """
    at_once = p.local and p.proto == UDP and hook in (OUTPUT, POSTROUTING)
    return Symptom.UNREACHABLE if at_once else Symptom.TIMES_OUT
