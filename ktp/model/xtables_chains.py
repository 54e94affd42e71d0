"""The base chains that iptables-nft makes, and takes for its own."""

from __future__ import annotations

from collections.abc import Mapping

# Built-in chains of iptables-nft: table → (chain, type, hook, priority), iptables' nft.c (xtables_ipv4).
_CHAINS: Mapping[str, frozenset[tuple[str, str, str, int]]] = {
    "raw": frozenset({("PREROUTING", "filter", "prerouting", -300), ("OUTPUT", "filter", "output", -300)}),
    "mangle": frozenset(
        {
            ("PREROUTING", "filter", "prerouting", -150),
            ("INPUT", "filter", "input", -150),
            ("FORWARD", "filter", "forward", -150),
            ("OUTPUT", "route", "output", -150),
            ("POSTROUTING", "filter", "postrouting", -150),
        }
    ),
    "filter": frozenset(
        {
            ("INPUT", "filter", "input", 0),
            ("FORWARD", "filter", "forward", 0),
            ("OUTPUT", "filter", "output", 0),
        }
    ),
    "security": frozenset(
        {
            ("INPUT", "filter", "input", 150),
            ("FORWARD", "filter", "forward", 150),
            ("OUTPUT", "filter", "output", 150),
            ("INPUT", "filter", "input", 50),
            ("FORWARD", "filter", "forward", 50),
            ("OUTPUT", "filter", "output", 50),
        }
    ),
    "nat": frozenset(
        {
            ("PREROUTING", "nat", "prerouting", -100),
            ("INPUT", "nat", "input", 100),
            ("OUTPUT", "nat", "output", -100),
            ("POSTROUTING", "nat", "postrouting", 100),
        }
    ),
}


def is_chain_of_xtables(
    family: object, table: object, name: object, kind: object, hook: object, priority: object
) -> bool:
    """Whether a base chain of nf_tables is one of iptables-nft's; `kind` is its type, `priority` a number."""
    return family in ("ip", "ip6") and (name, kind, hook, priority) in _CHAINS.get(str(table), frozenset())
