"""What of the packet filter rules was read: whole, in part, not at all, or not to be trusted."""

from __future__ import annotations

from enum import Enum

from ktp.model.record import dataclass


class Reading(Enum):
    """How far something was read. Only of what was read whole may one say "there is none"."""

    WHOLE = "whole"
    PART = "part"
    NOT_READ = "not read"


class Lack(Enum):
    """Why a table was not read whole, or is not to be trusted."""

    OTHER_TABLES = "other tables"  # the text holds other tables alone: `iptables-save -t nat`
    INCOMPATIBLE = "incompatible"  # iptables-nft-save does not print a table that has native nft rules
    OTHER_BACKEND = (
        "other back end"  # iptables-nft-save tells that there are legacy tables, and prints none of them
    )
    FRAGMENT = "fragment"  # some lines only: a grep, an excerpt
    CUT_OFF = "cut off"  # ends within the table
    PORTS_LOST = "ports lost"  # iptables-nft-save is older than the iptables that wrote the rules
    TARGETS_LOST = "targets lost"  # so are DNAT's destinations


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """Rules that may stand at one place of a chain, and were not read.

    `assumed` tells that they are taken not to concern the packet; else whether they do is not known.
    """

    table: str
    chain: str
    lack: Lack
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReading:
    """How far one table was read.

    Of a table read in part, `cut` is the chain in which the text ends ("" where that is before all rules), `unread` are
    chains of which the rules come after that; `whole` chains, and those whose names begin with `prefix`, have all their
    rules although others have not; `names_known` tells that a chain that is not named does not exist. `assumed` as of
    Unread, for a table that was not read.
    """

    reading: Reading
    lack: Lack | None = None
    cut: str | None = None
    unread: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    prefix: str = ""
    names_known: bool = False
    assumed: bool = False


WHOLE = TableReading(reading=Reading.WHOLE, names_known=True)

_LACKS = {
    Lack.OTHER_TABLES: "table {table} was not read: the text holds other tables alone",
    Lack.INCOMPATIBLE: "table {table} was not read: iptables-save does not print it, as it holds rules of nft's own",
    Lack.OTHER_BACKEND: "the tables of the other back end were not read",
    Lack.FRAGMENT: "chain {chain} of table {table} was not read whole: the text is a fragment",
    Lack.CUT_OFF: "chain {chain} of table {table} was not read whole: the text breaks off",
}
_LOST = {
    Lack.PORTS_LOST: "the rule's port was not printed: the program that saved the rules is older than the one that "
    "wrote them",
    Lack.TARGETS_LOST: "the rule's destination was not printed: the program that saved the rules does not match the "
    "one that wrote them",
}


# An iptables-nft-save up to 1.8.7 prints no port of the rules that 1.8.8 and later write.
_SAVE = "kubectl exec -n kube-system KUBE-PROXY-POD -- iptables-save"
WITH_ITS_WRITER = f"save the rules with the program that wrote them: `{_SAVE}`"
HOW_TO_SAVE = f"{WITH_ITS_WRITER}, or give `nft -j list ruleset` of the node beside them"


def unread_words(unread: Unread) -> str:
    """What was not read, and what is taken instead."""
    words = _LACKS[unread.lack].format(table=unread.table, chain=unread.chain)
    return words + ("; taken to have no rule more that concerns the packet" if unread.assumed else "")


def lost_words(lack: Lack) -> str:
    """What a rule lost on its way into the text."""
    return _LOST[lack]
