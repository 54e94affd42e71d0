"""The pages of the findings: what `ktp codes` prints and `docs/reference/findings/` holds.

A page is the docstring of its check's module. Nothing is read here and nothing is asked of a snapshot.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from difflib import get_close_matches

from ktp.diagnose.checks import ALL_CHECKS, HEADINGS, Check
from ktp.errors import NotFoundError
from ktp.model.diagnosis import Severity
from ktp.model.record import dataclass

# Codes that are no longer given, with what they said. A number stays here for ever: it never gets a second meaning.
RETIRED: dict[str, str] = {}

FAMILIES = {
    "1": "API objects",
    "2": "host: sysctls, routes, sockets",
    "3": "packet filter",
    "4": "nat and kube-proxy",
    "5": "traffic policy",
    "6": "load balancer",
    "9": "limits of the evidence",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The page of one code. `sections` has the six headings in their order, each with its text."""

    code: str
    name: str
    severity: Severity
    summary: str
    sections: tuple[tuple[str, str], ...]

    @property
    def family(self) -> str:
        """What the code's family is about."""
        return FAMILIES[self.code[3]]


def page_of(check: Check) -> Page:
    """The page of a check. Raises ValueError where a heading is missing, unknown, empty or out of order."""
    head, *parts = re.split(r"(?m)^# +(.+)$", check.page.strip("\n"))
    found = tuple(zip(parts[::2], (text.strip("\n").rstrip() for text in parts[1::2]), strict=True))
    if tuple(heading for heading, _ in found) != HEADINGS or not all(text for _, text in found):
        raise ValueError(f"{check.code}: a page has the headings {', '.join(HEADINGS)}, each with a text")
    summary = " ".join(head.split())
    if not summary.endswith("."):
        raise ValueError(f"{check.code}: a page begins with one sentence")
    return Page(code=check.code, name=check.name, severity=check.severity, summary=summary, sections=found)


def pages() -> tuple[Page, ...]:
    """Every page, by number."""
    return tuple(page_of(check) for check in sorted(ALL_CHECKS, key=lambda check: check.code))


def find_page(text: str) -> Page:
    """The page of a code ("KTP501", "ktp501", "501") or name. Raises NotFoundError, naming codes that come near."""
    known = pages()
    wanted = text.strip().upper()
    if wanted.isdigit():
        wanted = f"KTP{wanted}"
    for page in known:
        if wanted in (page.code, page.name.upper()):
            return page
    if wanted in RETIRED:
        raise NotFoundError(f"{wanted} is no longer given: {RETIRED[wanted]}")
    near = _near(wanted, known)
    words = " or ".join(f"{page.code} ({page.name})" for page in near)
    raise NotFoundError(
        f"there is no finding {text!r}" + (f"; did you mean {words}?" if words else ""),
        hint="`ktp codes` lists them all",
        near=tuple(page.code for page in near),
    )


def _near(wanted: str, known: tuple[Page, ...]) -> list[Page]:
    """Up to three pages that may have been meant: digits in another order first, then the family, then names."""
    if re.fullmatch(r"KTP\d{3}", wanted):
        ranked = sorted(
            (sorted(p.code) != sorted(wanted), abs(int(p.code[3:]) - int(wanted[3:])), p.code, p)
            for p in known
            if sorted(p.code) == sorted(wanted) or p.code[3] == wanted[3]
        )
        return [page for *_, page in ranked[:3]]
    by_name = {p.name.upper(): p for p in known} | {p.code: p for p in known}
    return [by_name[name] for name in get_close_matches(wanted, by_name, n=3, cutoff=0.6)]


# ----------------------------------------------------------------------------------------------------- in words


def page_text(page: Page, width: int = 80) -> str:
    """The page as plain text, paragraphs folded to `width`, commands as they are."""
    out = [f"{page.code} {page.name} ({page.severity.value})", "", *_folded(page.summary, width, "")]
    for heading, text in page.sections:
        out += ["", heading.upper()]
        for number, (kind, block) in enumerate(_blocks(text)):
            if number:
                out.append("")
            if kind == "code":
                out += _commands(block, width)
            else:
                out += _folded(block, width, "  ")
    return "\n".join(out) + "\n"


def page_markdown(page: Page) -> str:
    """The page as Markdown, as `docs/reference/findings/` has it."""
    out = [
        f"# {page.code} {page.name}",
        "",
        page.summary,
        "",
        "| code | name | severity | family |",
        "|---|---|---|---|",
        f"| {page.code} | {page.name} | {page.severity.value} | {page.family} |",
    ]
    for heading, text in page.sections:
        out += ["", f"## {heading}"]
        for kind, block in _blocks(text):
            out += ["", *(["```sh", block, "```"] if kind == "code" else [block])]
    return "\n".join(out) + "\n"


def _commands(block: str, width: int) -> list[str]:
    """Commands as they are; a remark that would run over the edge goes above its command."""
    out: list[str] = []
    for line in block.splitlines():
        command, gap, remark = line.partition("  #")
        if gap and len(line) + 4 > width:
            out += [f"    #{remark}", f"    {command.rstrip()}"]
        else:
            out.append(f"    {line}".rstrip())
    return out


def index_markdown() -> str:
    """The list of all pages as Markdown."""
    out = [
        "# Findings",
        "",
        "What `ktp diagnose svc` may find. `ktp codes` prints this list, `ktp codes KTP501` one page.",
        "A number is never given a second meaning.",
    ]
    for family, about in FAMILIES.items():
        of_family = [p for p in pages() if p.code[3] == family]
        if not of_family:
            continue
        out += [
            "",
            f"## KTP{family}xx: {about}",
            "",
            "| code | severity | name | meaning |",
            "|---|---|---|---|",
        ]
        out += [
            f"| [{p.code}]({p.code}.md) | {p.severity.value} | {p.name} | {p.summary} |" for p in of_family
        ]
    if RETIRED:
        out += ["", "## Retired", "", "| code | what it said |", "|---|---|"]
        out += [f"| {code} | {words} |" for code, words in sorted(RETIRED.items())]
    return "\n".join(out) + "\n"


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """("text" | "code", block) in order: code is what stands four blanks in."""
    kind, lines = "", list[str]()
    for line in [*text.splitlines(), ""]:
        this = "code" if line.startswith("    ") else "text" if line.strip() else ""
        if lines and this != kind:
            yield kind, "\n".join(lines)
            lines = []
        kind = this
        if this:
            lines.append(line[4:] if this == "code" else line.rstrip())
    if lines:
        yield kind, "\n".join(lines)


def _folded(text: str, width: int, margin: str) -> list[str]:
    """A paragraph folded; lines that begin with "- " stay lines of their own."""
    out: list[str] = []
    for item in re.split(r"\n(?=- )", text):
        hanging = margin + ("  " if item.startswith("- ") else "")
        out += textwrap.wrap(
            " ".join(item.split()), max(width, 40), initial_indent=margin, subsequent_indent=hanging,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return out


# ------------------------------------------------------------------------------------------------------- as data


def page_object(page: Page) -> dict[str, object]:
    """The page as plain data."""
    return {
        **row_object(page),
        **{_key(heading): "\n".join(_plain(text)) for heading, text in page.sections},
    }


def row_object(page: Page) -> dict[str, object]:
    """What the list says of a page, as plain data."""
    return {
        "code": page.code,
        "name": page.name,
        "severity": page.severity.value,
        "family": page.family,
        "summary": page.summary,
    }


def _plain(text: str) -> Iterator[str]:
    for kind, block in _blocks(text):
        yield block if kind == "code" else " ".join(block.split())


def _key(heading: str) -> str:
    first, *rest = heading.split()
    return first.lower() + "".join(word.capitalize() for word in rest)
