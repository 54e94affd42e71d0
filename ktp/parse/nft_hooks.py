"""`nft list hooks`: what hangs at which hook, in the kernel's order.

A section a family holds one a hook, and that a line each: the priority (`-0000000100`, ` 0000000000`), then `chain
FAMILY TABLE NAME` for a base chain, else the function's name, and the module in brackets (nftables, src/mnl.c). Tables
of legacy iptables have no name there.
"""

from __future__ import annotations

import re

from ktp.model.nft_hooks import HookEntry, HookListing

_FAMILY = re.compile(r"family (\S+) \{")
_HOOK = re.compile(r"\s*hook (\S+)(?: device \S+)? \{")
_ENTRY = re.compile(
    r"\s*(?P<priority>[-+ ]?\d{10}) (?:chain (?P<chain>\S+ \S+ \S+)|(?P<function>\S+))(?: \[(?P<module>\S+)\])?\s*"
)
# iptable_filter and its like register ipt_do_table of ip_tables since Linux 5.16, a function of their own before.
_LEGACY = re.compile(r"ip6?_tables|ip6?table_\w+")


def parse_nft_hooks(text: str, *, source: str = "nft-hooks.txt") -> HookListing:
    """The entries of each family and hook. Lines of another form are passed over: the listing is optional evidence."""
    found: dict[tuple[str, str], list[HookEntry]] = {}
    family = hook = ""
    for line in text.splitlines():
        if match := _FAMILY.fullmatch(line.strip()):
            family = match[1]
        elif match := _HOOK.fullmatch(line):
            hook = match[1]
        elif (match := _ENTRY.fullmatch(line)) is not None:
            chain = tuple((match["chain"] or "").split())
            entry = HookEntry(
                priority=int(match["priority"]),
                chain=(chain[0], chain[1], chain[2]) if len(chain) == 3 else None,
                legacy=_LEGACY.fullmatch(match["module"] or "") is not None,
            )
            found.setdefault((family, hook), []).append(entry)
    return HookListing(entries={key: tuple(entries) for key, entries in found.items()}, source=source)
