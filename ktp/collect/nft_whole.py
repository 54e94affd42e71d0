"""All iptables rules of a large node in nf_tables, quicker than `iptables-nft-save`, and checked against it.

That command takes time quadratic in the number of chains. Here the rules come from the kernel, chain by chain, and
`ktp.collect.nft_decode` puts most of them into words. What it does not know is read by `iptables-nft -S CHAIN`, and
so is one chain for each kind of rule that it does know: where the words differ, that kind is left to the command on
this node. The dump is of one generation of the ruleset, or it is not given.
"""

from __future__ import annotations

from ktp.collect.nf_tables import NfTables
from ktp.collect.nft_chains import (
    MAX_ROUNDS,
    ChainReader,
    ChainText,
    NotReadableError,
    render_dump,
)
from ktp.collect.nft_decode import RULE_EXPRESSIONS, RULE_USERDATA, decode_rule
from ktp.model.ruleset import BASE_CHAINS

Key = tuple[str, str]  # table, chain
Shape = tuple[str, ...]

WHOLE_MARK = "# ktp: read chain by chain from nf_tables"
# Chains that are read by the command, 2 ms each; with more of them the whole dump is the quicker way.
MOST_BY_COMMAND = 4000


def read_whole(reader: ChainReader) -> bytes | None:
    """The dump of one family; None where `iptables-nft-save` has to be asked.

    That is: where the kernel cannot be asked, the rules changed again and again meanwhile, or are of other kinds.
    """
    if reader.kernel is None:
        return None
    try:
        tables = reader.tables()
        for _ in range(MAX_ROUNDS if tables else 0):
            generation = reader.generation()
            chains = _read(reader, reader.kernel, tables or ())
            if chains is None:
                return None
            if generation == reader.generation():
                dump = render_dump(tables or (), chains, mark=WHOLE_MARK)
                return dump.encode("utf-8", "surrogateescape")
            reader.forget()
    except (OSError, NotReadableError):
        pass
    return None


def _read(reader: ChainReader, kernel: NfTables, tables: tuple[str, ...]) -> dict[Key, ChainText] | None:
    decoded: dict[Key, ChainText] = {}
    by_command: set[Key] = set()
    where: dict[Shape, list[Key]] = {}
    for table, name, size in kernel.chains(reader.family):
        if table not in tables:
            continue
        if size.policy is not None and name not in BASE_CHAINS[table]:
            return None  # somebody else's base chain, which iptables-nft-save says a word about
        found = _decode_chain(reader.family, name, kernel.rules(reader.family, table, name))
        if found is None:
            by_command.add((table, name))
            continue
        lines, shapes = found
        decoded[table, name] = ChainText(policy=size.policy, counters=size.counters, raw=lines)
        for shape in shapes:
            where.setdefault(shape, []).append((table, name))
    if len(by_command) > MOST_BY_COMMAND:
        return None
    by_command |= _where_words_differ(reader, decoded, where)
    if len(by_command) > MOST_BY_COMMAND:
        return None
    wanted = sorted(by_command)
    for key, text in zip(wanted, reader.read_all(wanted), strict=True):
        if text is None:
            return None  # a table that iptables cannot print
        decoded[key] = text
    return decoded


def _decode_chain(
    family: str, name: str, rules: list[dict[int, bytes]]
) -> tuple[tuple[str, ...], set[Shape]] | None:
    """The rules as `iptables -S -v` prints them, and their kinds; None where one is of another kind."""
    lines, shapes = [], set()
    for rule in rules:
        found = None if RULE_USERDATA in rule else decode_rule(family, rule.get(RULE_EXPRESSIONS, b""))
        if found is None:
            return None
        lines.append(found.line(name))
        shapes.add(found.shape)
    return tuple(lines), shapes


def _where_words_differ(
    reader: ChainReader, decoded: dict[Key, ChainText], where: dict[Shape, list[Key]]
) -> set[Key]:
    """Every chain with a kind of rule that the node's iptables puts into other words, tried on a short one of each.

    Only the words are compared: what a rule has counted goes on while it is read.
    """
    samples = {shape: min(keys, key=lambda key: len(decoded[key].raw)) for shape, keys in where.items()}
    chosen = sorted(set(samples.values()))
    said = dict(zip(chosen, reader.read_all(chosen), strict=True))
    wrong = {key for key, text in said.items() if text is None or not _same_words(text.raw, decoded[key].raw)}
    return {key for shape, keys in where.items() if samples[shape] in wrong for key in keys}


def _same_words(said: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    return [_without_counters(line) for line in said] == [_without_counters(line) for line in ours]


def _without_counters(line: str) -> tuple[str, str]:
    matches, _, counted = line.rpartition(" -c ")
    return matches, counted.split(" ", 2)[2] if counted.count(" ") > 1 else ""
