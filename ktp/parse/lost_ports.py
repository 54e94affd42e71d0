"""Ports that iptables-nft-save did not print, from nft's listing of the same tables.

An iptables-nft-save up to 1.8.7 prints nothing for the native port match that iptables-nft writes since 1.8.8; nft has
always printed it. A chain takes its ports from there where both list the same rules: as many, with the same targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ktp.model import nftables as nft
from ktp.model.reading import Reading, TableReading
from ktp.model.ruleset import PORT_FLAGS, Backend, Chain, Rule, Ruleset

_FLAGS = {"sport": "--sport", "dport": "--dport"}
_PROTOCOLS = frozenset(("tcp", "udp", "sctp", "dccp"))


class PortsFromNft:
    """`base` with the ports that nft's listing has; chains that the two list differently stay as they are."""

    def __init__(self, base: Ruleset, listing: nft.NftRuleset) -> None:
        """Hold both; a chain is compared when it is first asked for."""
        self.family = base.family
        self.backend: Backend = base.backend
        self.source = base.source
        self._base = base
        self._listing = listing
        self._chains: dict[tuple[str, str], Chain | None] = {}

    def tables(self) -> Sequence[str]:
        """As in the save."""
        return self._base.tables()

    def chain_names(self, table: str) -> Iterable[str]:
        """As in the save."""
        return self._base.chain_names(table)

    def reading(self, table: str) -> TableReading:
        """As in the save."""
        return self._base.reading(table)

    def chain(self, table: str, name: str) -> Chain | None:
        """The chain, with its ports where nft lists it alike."""
        key = (table, name)
        if key not in self._chains:
            self._chains[key] = self._with_ports(table, name)
        return self._chains[key]

    def _with_ports(self, table: str, name: str) -> Chain | None:
        chain = self._base.chain(table, name)
        listed = self._listing.table(self.family, table)
        other = listed.chains.get(name) if listed is not None else None
        if (
            chain is None
            or other is None
            or chain.reading is not Reading.WHOLE
            or len(chain) != len(other.rules)
        ):
            return chain
        lines = []
        for index, rule in enumerate(other.rules):
            line = _with_port(chain, index, rule)
            if line is None:
                return chain
            lines.append(line)
        first = [chain.rule(i).line for i in range(len(chain))]
        return Chain(
            table,
            name,
            lines,
            chain.parser,
            policy=chain.policy,
            counters=chain.counters,
            first_line=first or 0,
        )


def _with_port(chain: Chain, index: int, listed: nft.NftRule) -> str | None:
    """The line of the save with the ports of the listed rule; None where they are not the same rule."""
    rule, raw = chain.rule(index), chain.raw(index)
    verdict = next((s for s in listed.statements if isinstance(s, nft.Verdict)), None)
    goes_to = rule.target.name if rule.target is not None else None
    if rule.error is not None or (
        verdict is not None and (verdict.target or verdict.kind.upper()) != goes_to
    ):
        return None
    matches = [words for s in listed.statements if (words := _port_words(s)) is not None]
    if not matches or any(o.flag in PORT_FLAGS for m in rule.matches for o in m.options):
        return raw
    at = max(raw.rfind(f" -j {goes_to}"), raw.rfind(f" -g {goes_to}")) if goes_to is not None else len(raw)
    line = " ".join((raw[:at], *matches)) + raw[at:]
    parsed = chain.parser(chain.table, chain.name, line, rule.line, index + 1)
    return line if _is_same(rule, parsed) else None


def _is_same(rule: Rule, parsed: Rule) -> bool:
    """Whether the longer line says all that the shorter one does."""
    return parsed.error is None and parsed.target == rule.target and set(rule.matches) <= {
        *parsed.matches, *(m for m in rule.matches if m.name in _PROTOCOLS)
    }  # fmt: skip


def _port_words(statement: nft.Statement) -> str | None:
    """What iptables writes for a match of nft on a port; None for all other statements."""
    if not isinstance(statement, nft.Match) or not isinstance(statement.left, nft.Payload):
        return None
    left, flag = statement.left, _FLAGS.get(statement.left.field)
    ports = _ports(statement.right)
    if (
        left.protocol not in _PROTOCOLS
        or flag is None
        or ports is None
        or statement.operator not in ("==", "!=")
    ):
        return None
    negated = "! " if statement.operator == "!=" else ""
    return f"-m {left.protocol} {negated}{flag} {ports}"


def _ports(value: nft.Expression) -> str | None:
    if isinstance(value, nft.Immediate) and isinstance(value.value, int):
        return str(value.value)
    if isinstance(value, nft.Range):
        low, high = _ports(value.low), _ports(value.high)
        return f"{low}:{high}" if low is not None and high is not None else None
    return None
