"""IPsec's policies and states as ip(8) prints them, without keys: it prints none of a policy, nor with `nokeys`."""

from __future__ import annotations

import re

READS = (
    ("ip-xfrm-policy.txt", "ip xfrm policy"),
    ("ip-xfrm-state.txt", "ip xfrm state list nokeys"),
)
# Sockets of this network namespace: the kernel's own (port 0) for NETLINK_XFRM is there if the module xfrm_user is,
# which asking would load.
SOCKETS = "/proc/net/netlink"
HAS_XFRM = re.compile(rb"^\S+ +6 +0 ", re.MULTILINE)
# How lines begin that tell where packets go; those of keys (enc, auth, auth-trunc, aead, comp) are not among them.
_KEPT = frozenset(
    ("src", "dir", "socket", "tmpl", "proto", "level", "mark", "output-mark", "if_id", "encap", "sel")
)


def without_keys(text: str) -> str:
    """What somebody printed with keys, without them."""
    return "".join(f"{line}\n" for line in text.splitlines() if line.split()[:1] and line.split()[0] in _KEPT)
