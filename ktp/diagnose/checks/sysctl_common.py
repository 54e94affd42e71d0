"""Sysctls that findings name: whether another value on a node would let a failing cell through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from ktp.diagnose.case import Case, Entry, Mended
from ktp.diagnose.changes import sysctls_set


class MendedBySysctls(NamedTuple):
    """What other `values` on `node` mend, of all the cells that fail and that the rules were asked about."""

    node: str
    values: dict[str, str]
    mended: Mended
    failing: list[Entry]


def mended_by_sysctls(
    case: Case, what: str, better: Callable[[Mapping[str, str]], dict[str, str]]
) -> Iterator[MendedBySysctls]:
    """Each node on which the values that `better` finds for its sysctls mend a cell; `what` names them."""
    for node in case.involved_nodes():
        state = case.state(node)
        values = better((state.sysctls if state is not None else None) or {})
        if not values:
            continue
        failing = [e for e in case.failing() if e.asked.fact is not None]
        mended = case.mended(failing, f"{what} on {node}", partial(sysctls_set, case.snapshot, node, values))
        if mended:
            yield MendedBySysctls(node, values, mended, failing)
