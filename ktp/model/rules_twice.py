"""A node's packet filter rules, read twice: what their counters counted meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktp.model.ruleset import Ruleset

if TYPE_CHECKING:
    from ktp.model.nftables import NftRuleset


@dataclass(frozen=True, eq=False)
class RulesReading:
    """The rules of one moment, as they were read; `nft` with the tables that are iptables-nft's, for their handles."""

    rulesets: tuple[Ruleset, ...] = ()
    nft: NftRuleset | None = None


@dataclass(frozen=True, eq=False)
class RulesTwice:
    """Two readings. They are what was recorded, also where the node's rules were changed to ask "what if"."""

    first: RulesReading
    last: RulesReading
