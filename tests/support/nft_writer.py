"""The writer of nftables rulesets, for what is compared with nft itself: the inverse of the parsers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ktp.model.nftables import (
    NftChain,
    NftFlowtable,
    NftMap,
    NftObject,
    NftRuleset,
    NftSet,
    NftTable,
    Synproxy,
    priority_names,
    render_element,
)

# Names that nft prints only at these hooks (src/rule.c, std_prio_family_hook_compatible).
_PRIORITY_HOOKS = {
    "dstnat": frozenset({"prerouting"}),
    "srcnat": frozenset({"postrouting"}),
    "out": frozenset({"output"}),
}
_TABLE_FLAGS = frozenset({"dormant", "owner", "persist"})


def render_priority(family: str, hook: str | None, priority: int) -> str:
    """`filter`, `srcnat - 1`, `-400`: as nft prints a priority."""
    for name, standard in priority_names(family).items():
        if abs(standard - priority) <= 10 and hook in _PRIORITY_HOOKS.get(name, {hook}):
            offset = priority - standard
            if offset:
                return f"{name} {'+' if offset > 0 else '-'} {abs(offset)}"
            return name
    return str(priority)


def render_nft(ruleset: NftRuleset) -> str:
    """The ruleset as text: what `nft -f` loads and `nft list ruleset` then prints much the same."""
    return "".join(f"{line}\n" for table in ruleset.tables for line in _table(table))


def _quoted(text: str) -> str:
    return f'"{text}"'


def _table(table: NftTable) -> Iterator[str]:
    yield f"table {table.family} {table.name} {{"
    if table.comment is not None:
        yield f"\tcomment {_quoted(table.comment)}"
    flags = [flag for flag in table.flags if flag in _TABLE_FLAGS]
    if flags:
        yield f"\tflags {','.join(flags)}"
    blocks = [_object(item) for item in table.objects]
    blocks += [_set(item) for item in (*table.sets.values(), *table.maps.values())]
    blocks += [_flowtable(item) for item in table.flowtables]
    blocks += [_chain(item, table.family) for item in table.chains.values()]
    for number, block in enumerate(blocks):
        if number:
            yield ""
        for line in block:
            yield f"\t{line}"
    yield "}"


def _chain(chain: NftChain, family: str) -> Iterator[str]:
    yield f"chain {chain.name} {{"
    if chain.comment is not None:
        yield f"\tcomment {_quoted(chain.comment)}"
    if chain.hook is not None and chain.priority is not None:
        if len(chain.devices) == 1:
            devices = f" device {_quoted(chain.devices[0])}"
        else:
            devices = f" devices = {{ {', '.join(map(_quoted, chain.devices))} }}" if chain.devices else ""
        priority = render_priority(family, chain.hook, chain.priority)
        policy = f" policy {chain.policy};" if chain.policy else ""
        yield f"\ttype {chain.type} hook {chain.hook}{devices} priority {priority};{policy}"
    if chain.flags:
        yield f"\tflags {','.join(chain.flags)}"
    for rule in chain.rules:
        yield f"\t{rule.text}"
    yield "}"


def _set(item: NftSet) -> Iterator[str]:
    is_map = isinstance(item, NftMap)
    values = item.value_types if isinstance(item, NftMap) else ()
    yield f"{'map' if is_map else 'set'} {item.name} {{"
    if item.typeof is not None:
        yield f"\ttypeof {item.typeof}"
    else:
        yield f"\ttype {' . '.join(item.key_types)}" + (f" : {' . '.join(values)}" if is_map else "")
    if item.policy is not None:
        yield f"\tpolicy {item.policy}"
    if item.size is not None:
        yield f"\tsize {item.size}"
    if item.flags:
        yield f"\tflags {','.join(item.flags)}"
    for statement in item.statements:
        # Its counts belong to the elements.
        yield f"\t{str(statement).removesuffix(' packets 0 bytes 0')}"
    if item.timeout is not None:
        yield f"\ttimeout {item.timeout}s"
    if item.gc_interval is not None:
        yield f"\tgc-interval {item.gc_interval}s"
    if item.auto_merge:
        yield "\tauto-merge"
    if item.comment is not None:
        yield f"\tcomment {_quoted(item.comment)}"
    if item.elements:
        between = ",\n\t\t\t     "
        yield f"\telements = {{ {between.join(render_element(e, item.key_types, values) for e in item.elements)} }}"
    yield "}"


def _object(item: NftObject) -> Iterator[str]:
    yield f"{item.kind} {item.name} {{"
    if item.comment is not None:
        yield f"\tcomment {_quoted(item.comment)}"
    if isinstance(item.statement, Synproxy):
        for words in item.statement.words():
            yield f"\t{words}"
    elif item.statement is not None:
        yield f"\t{str(item.statement).removeprefix(item.kind).strip()}"
    for key, value in item.options.items():
        if isinstance(value, Mapping):
            yield f"\tpolicy = {{ {', '.join(f'{state} : {seconds}' for state, seconds in value.items())} }}"
        elif key == "context":
            yield f"\t{_quoted(str(value))}"
        elif key == "type":
            yield f"\ttype {_quoted(str(value))} protocol {item.options.get('protocol', 'tcp')}"
        elif key == "timeout":
            yield f"\ttimeout {value}s"
        elif not (key == "protocol" and "type" in item.options):
            yield f"\t{key} {value}"
    yield "}"


def _flowtable(item: NftFlowtable) -> Iterator[str]:
    yield f"flowtable {item.name} {{"
    if item.hook is not None:
        yield f"\thook {item.hook} priority {render_priority('netdev', item.hook, item.priority or 0)}"
    if item.devices:
        yield f"\tdevices = {{ {', '.join(map(_quoted, item.devices))} }}"
    if item.flags:
        yield f"\tflags {','.join(item.flags)}"
    if item.counter:
        yield "\tcounter"
    yield "}"
