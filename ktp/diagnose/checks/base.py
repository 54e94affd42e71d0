"""What a check is. One check a file; `ALL_CHECKS` in the package lists them; codes are never used again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY

from ktp.diagnose.case import Case, Entry
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.record import dataclass

HEADINGS = ("What it means", "Why traffic fails", "Evidence", "Confirm by hand", "Fix", "Example")


@dataclass(frozen=True, slots=True)
class Check:
    """A cause that ktp can name. `page` is the docstring of the module that `run` is in: one paragraph a heading.

    `of_cells` tells that it is a fault of a Service only where it concerns one of its failing cells, else good to know.
    """

    code: str
    name: str
    severity: Severity
    run: Callable[[Case], Iterable[Finding]]
    _: KW_ONLY
    of_cells: bool = False
    page: str = ""

    def __post_init__(self) -> None:
        """Take the page from where the check is."""
        if not self.page:
            object.__setattr__(self, "page", sys.modules[self.run.__module__].__doc__ or "")

    def finding(
        self,
        message: str,
        *,
        node: str | None = None,
        nodes: Sequence[str] = (),
        evidence: Iterable[Evidence] = (),
        fix: Fix | None = None,
        fixes: Iterable[Fix] = (),
        cells: Iterable[Entry] = (),
        severity: Severity | None = None,
    ) -> Finding:
        """A finding of this check, with one `fix` or several; what was tried and mends nothing is no advice."""
        return Finding(
            code=self.code,
            name=self.name,
            severity=severity or self.severity,
            message=message,
            node=node,
            nodes=tuple(nodes) or ((node,) if node is not None else ()),
            evidence=tuple(evidence),
            fixes=tuple(f for f in (fix, *fixes) if f is not None and not is_useless(f)),
            cells=tuple(e.key for e in cells),
        )


def a_try(entry: Entry) -> str:
    """What somebody would try a port with: `curl` speaks TCP alone."""
    return "a curl" if entry.port.protocol == "TCP" else "a try"


def is_useless(fix: Fix) -> bool:
    """Whether it was tried and mends nothing: then it is no advice."""
    return fix.cures is not None and fix.cures.tried > 0 and not (fix.cures.cured or fix.cures.better)


def field(source: str, text: str) -> Evidence:
    """Evidence of an API field."""
    return Evidence("field", source, text)


def counterfactual(text: str) -> Evidence:
    """What the same engine answered to the changed snapshot."""
    return Evidence("counterfactual", "ktp", text)


def mending(change: str, cells: Sequence[Entry], outcome: str = "connects") -> list[Evidence]:
    """That with a change the first of the cells that it mends fares better; nothing where it mends none."""
    return [counterfactual(f"{change}, {e.title} on {e.node} {outcome}") for e in cells[:1]]


def listed(names: Iterable[str], most: int = 4) -> str:
    """`a, b and c`; long lists are cut."""
    every = list(dict.fromkeys(names))
    if len(every) > most:
        return f"{', '.join(every[:most])} and {len(every) - most} more"
    if len(every) < 2:
        return "".join(every)
    return f"{', '.join(every[:-1])} and {every[-1]}"
