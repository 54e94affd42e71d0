"""Legacy tables read through libiptc, where no iptables-legacy-save is at hand: python-iptables in a child process.

A child, because importing `iptc` runs ldconfig and compilers to find its libraries, and decoding a rule swaps file
descriptor 1 of the whole process. Of the package only the reading half is used, and it is kept from what would
change the node: `iptc/util.py` runs modprobe on import, and `Target` opens (and so creates) all five tables to
tell a chain from an extension.

`python -m ktp.collect.iptc_reader iptables|ip6tables` prints what `iptables-legacy-save -c` would.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ktp.collect.children import ChildResult, run_child

NAMES_FILES = {"iptables": "/proc/net/ip_tables_names", "ip6tables": "/proc/net/ip6_tables_names"}
ALL_TABLES = ("filter", "mangle", "raw", "nat", "security")
# Match and Target read what an extension prints into a buffer of this size, and the rest is lost.
_SAVE_BUFFER = 1024
_VERDICTS = frozenset({"ACCEPT", "DROP", "QUEUE", "RETURN"})


def read_legacy_tables(family: str, *, timeout: float) -> ChildResult:
    """The legacy tables of "iptables" or "ip6tables" as `iptables-legacy-save -c` prints them, by a child process.

    Any status but 0 means that there is no answer; the last line of stderr says why.
    """
    command = [sys.executable, "-m", "ktp.collect.iptc_reader", family]
    # ktp may lie in a zip archive or a folder that only this process was told about.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LC_ALL": "C.UTF-8"}
    try:
        done = run_child(command, timeout=timeout, environment=environment)
    except OSError as error:
        return ChildResult(status=127, stdout=b"", stderr=(error.strerror or str(error)).encode())
    last = done.stderr.strip().rpartition(b"\n")[2]
    return ChildResult(status=done.status, stdout=done.stdout, stderr=last)


# ------------------------------------------------------------------------------------------------- in the child


class _UnknownExtensionError(Exception):
    """A match or target that this libxtables cannot print as the kernel means it; the sentence says which."""


def _import_iptc(family: str, tables: tuple[str, ...]) -> tuple[Any, Any]:
    """The modules (ip4tc or ip6tc, xtables) of the package, without its `__init__` and its modprobe."""
    spec = importlib.util.find_spec("iptc")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("python-iptables is not installed")
    package = types.ModuleType("iptc")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["iptc"] = package
    setattr(importlib.import_module("iptc.util"), "load_kernel", lambda _name: None)  # noqa: B010
    ip4tc = importlib.import_module("iptc.ip4tc")
    chosen = importlib.import_module("iptc.ip6tc") if family == "ip6tables" else ip4tc
    # Opening a table creates it: what exists was told by /proc, and nothing else is tried.
    ip4tc.Table.existing_table_names = dict.fromkeys(ALL_TABLES, False)
    if family == "ip6tables":
        chosen.Table6.existing_table_names = {name: name in tables for name in ALL_TABLES}
    else:
        ip4tc.Table.existing_table_names = {name: name in tables for name in ALL_TABLES}
    return chosen, importlib.import_module("iptc.xtables")


def _listed_tables(family: str) -> tuple[str, ...]:
    return tuple(Path(NAMES_FILES[family]).read_text(encoding="ascii").split())


def print_tables(family: str, write: Callable[[str], object]) -> None:
    """Write every legacy table that is listed, as `iptables-legacy-save -c` does (without its two comments)."""
    tables = _listed_tables(family)
    module, xtables = _import_iptc(family, tables)
    table_class = module.Table6 if family == "ip6tables" else module.Table
    write(f"# ktp: the tables {' '.join(tables)} as libiptc gives them to python-iptables\n")
    for name in tables:
        table = table_class(name, autocommit=False)
        chains = table.chains
        write(f"*{name}\n")
        for chain in chains:
            if table.builtin_chain(chain.name):
                policy, (packets, size) = table.get_policy(chain.name)
                write(f":{chain.name} {policy.name} [{packets}:{size}]\n")
            else:
                write(f":{chain.name} - [0:0]\n")
        for chain in chains:
            # Chain.rules would decode them all at once, and stop at the first that it cannot.
            entry = table.first_rule(chain.name)
            while entry:
                write(_rule_line(table, chain, entry, xtables) + "\n")
                entry = table.next_rule(entry)
        write("COMMIT\n")


def _rule_line(table: Any, chain: Any, entry: Any, xtables: Any) -> str:
    counters = f"[{entry.counters.pcnt}:{entry.counters.bcnt}] -A {chain.name}"
    try:
        _check_revisions(entry, table, xtables)
        rule = table.create_rule(entry, chain)
        return counters + "".join(_words(rule, table, entry))
    except _UnknownExtensionError as error:
        return f"{counters} [{error}]"
    except Exception as error:  # noqa: BLE001 - a rule that the package cannot decode is kept as such
        return f"{counters} [python-iptables cannot decode this rule: {' '.join(str(error).split())}]"


def _check_revisions(entry: Any, table: Any, xtables: Any) -> None:
    """Refuse what the package would misread: it takes every extension to be of the newest revision."""
    import ctypes

    libxtables = xtables.xtables(table.create_rule().nfproto)
    offset, start = 0, type(entry).elems.offset
    base = ctypes.addressof(entry)  # where libiptc keeps the whole rule
    while start + offset < entry.target_offset:
        match = xtables.xt_entry_match.from_address(base + start + offset)
        name = match.u.user.name.decode()
        found = libxtables.find_match(name)
        if not found or found[0].revision != match.u.user.revision:
            raise _UnknownExtensionError(f"match {name}: unsupported revision {match.u.user.revision}")
        offset += match.u.match_size
    target = xtables.xt_entry_target.from_address(base + entry.target_offset)
    name = target.u.user.name.decode()
    if not name or table.is_chain(name):
        return
    found = libxtables.find_target(name)
    if not found or found[0].revision != target.u.user.revision:
        raise _UnknownExtensionError(f"target {name}: unsupported revision {target.u.user.revision}")


def _words(rule: Any, table: Any, entry: Any) -> Iterator[str]:
    yield from _header_words(rule)
    for match in rule.matches:
        yield f" -m {match.name}{_saved(match, rule)}"
    name = (table.get_target(entry) or b"").decode()
    if name:
        yield f" -{'g' if rule.target.goto else 'j'} {name}"
        if name not in _VERDICTS and not table.is_chain(name):
            yield _saved(rule.target, rule)


def _saved(extension: Any, rule: Any) -> str:
    text = extension._get_saved_buf(rule.get_ip()) or b""
    if len(text) >= _SAVE_BUFFER:
        raise _UnknownExtensionError(f"{extension.name}: longer than {_SAVE_BUFFER} bytes")
    return str(text.decode("utf-8", "surrogateescape")).rstrip()


def _header_words(rule: Any) -> Iterator[str]:
    for option, value in (("-s", rule.src), ("-d", rule.dst)):
        yield from _address_words(option, value)
    for option, value in (("-i", rule.in_interface), ("-o", rule.out_interface)):
        if value:
            yield _negatable(option, value)
    if rule.protocol and rule.protocol not in {"all", "ip"}:
        yield _negatable("-p", rule.protocol.replace("icmpv6", "ipv6-icmp"))
    if getattr(rule, "fragment", False):
        yield " -f"


def _address_words(option: str, value: str | None) -> Iterator[str]:
    import ipaddress

    if not value:
        return
    negated = value.startswith("!")
    address, _, mask = value.removeprefix("!").partition("/")
    try:
        network = ipaddress.ip_network(f"{address}/{mask}", strict=False)
        text = f"{address}/{network.prefixlen}"
        if network.prefixlen == 0 and not negated:
            return
    except ValueError:
        text = f"{address}/{mask}"  # a mask with holes
    yield _negatable(option, ("!" if negated else "") + text)


def _negatable(option: str, value: str) -> str:
    return f" ! {option} {value[1:].strip()}" if value.startswith("!") else f" {option} {value}"


def main(family: str) -> int:
    """Print the tables of `family` on the stdout that this process was started with."""
    # Decoding replaces descriptor 1 for a while; what is printed goes to a copy of it.
    with os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape", newline="\n") as out:
        try:
            print_tables(family, out.write)
        except Exception as error:  # noqa: BLE001 - XTablesError, AttributeError …: none is an ImportError
            said = " ".join(str(error).split()) or type(error).__name__
            sys.stderr.write(f"python-iptables cannot read the {family} tables: {said}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
