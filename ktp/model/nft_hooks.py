"""What `nft list hooks` tells: what the kernel runs at each hook, first to run first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HookEntry:
    """One entry of a hook: a base chain of nf_tables, a table of legacy iptables, or another function of the kernel."""

    priority: int
    chain: tuple[str, str, str] | None = None  # family, table, name
    legacy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HookListing:
    """The entries by family (`ip`, `ip6`) and hook (`prerouting` …)."""

    entries: Mapping[tuple[str, str], tuple[HookEntry, ...]] = field(default_factory=dict)
    source: str = field(default="", compare=False)

    def at(self, family: str, hook: str, priority: int) -> tuple[HookEntry, ...]:
        """Those of one priority."""
        return tuple(e for e in self.entries.get((family, hook), ()) if e.priority == priority)
