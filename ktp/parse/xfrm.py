"""`ip xfrm policy`, `ip xfrm state list nokeys` → policies and states. `-j` prints the same text."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import pairwise

from ktp.errors import EvidenceError
from ktp.model.tunnel import IPAddress
from ktp.model.xfrm import Policy, SecurityState, Selector, Template
from ktp.parse.text import decode_text


def parse_xfrm_policies(data: bytes | str, *, source: str = "ip-xfrm-policy.txt") -> tuple[Policy, ...]:
    """Policies, but for those of single sockets (of a key daemon's). Raises EvidenceError for text of another form."""
    found = []
    for number, block in _blocks(decode_text(data, source)):
        try:
            templates: list[dict[str, str]] = []
            last: dict[str, str] = {}
            for line in block[1:]:
                words = line.split()
                if words[:1] == ["tmpl"]:
                    templates.append(_pairs(words))
                elif templates and line.startswith("\t\t"):
                    templates[-1] |= _pairs(words)
                else:
                    last |= _pairs(words)
            if "socket" in last:
                continue
            found.append(
                Policy(
                    selector=_selector(block[0].split()),
                    direction=last["dir"],
                    blocks=last.get("action") == "block",
                    priority=int(last.get("priority", "0")),
                    mark=_mark(last.get("mark")),
                    interface=int(last.get("if_id", "0"), 0),
                    templates=tuple(map(_template, templates)),
                )
            )
        except (ValueError, KeyError, IndexError):
            raise EvidenceError(f"{source} line {number} is none of `ip xfrm policy`") from None
    return tuple(found)


def parse_xfrm_states(data: bytes | str, *, source: str = "ip-xfrm-state.txt") -> tuple[SecurityState, ...]:
    """States, but for those that are still being asked for. Raises EvidenceError for text of another form."""
    found = []
    for number, block in _blocks(decode_text(data, source)):
        try:
            ends, said = _pairs(block[0].split()), _pairs(block[1].split())
            lines = {words[0]: words[1:] for words in map(str.split, block[2:])}
            if int(said["spi"], 0) == 0:
                continue
            encap = _pairs(lines["encap"]) if "encap" in lines else None
            found.append(
                SecurityState(
                    src=ip_address(ends["src"]),
                    dst=ip_address(ends["dst"]),
                    protocol=said["proto"],
                    spi=int(said["spi"], 0),
                    reqid=int(said["reqid"]),
                    mode=said["mode"],
                    mark=_mark(lines["mark"][0] if "mark" in lines else None),
                    output_mark=_mark(lines["output-mark"][0])[0] if "output-mark" in lines else None,
                    interface=int(lines["if_id"][0], 0) if "if_id" in lines else 0,
                    ports=(int(encap["sport"]), int(encap["dport"])) if encap is not None else None,
                    selector=_selector(lines["sel"]) if "sel" in lines else None,
                )
            )
        except (ValueError, KeyError, IndexError):
            raise EvidenceError(f"{source} line {number} is none of `ip xfrm state`") from None
    return tuple(found)


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each entry begins at the left edge; with the number of its first line."""
    block: list[str] = []
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line[:1] not in ("\t", " ", ""):
            if block:
                yield first, block
            first, block = number, []
        if line.strip():
            block.append(line)
    if block:
        yield first, block


def _pairs(words: list[str]) -> dict[str, str]:
    """Each word with the one behind it, the first of several."""
    found: dict[str, str] = {}
    for word, following in pairwise(words):
        found.setdefault(word, following)
    return found


_PLAIN = frozenset(("src", "dst", "proto"))


def _selector(words: list[str]) -> Selector:
    """`src NET dst NET [proto P] [sport …] [dport …] [type …] [dev D] [uid U]` (xfrm_selector_print)."""
    said = dict(zip(words[::2], words[1::2], strict=True))
    return Selector(
        src=ip_network(said["src"]),
        dst=ip_network(said["dst"]),
        protocol=said.get("proto"),
        rest=bool(said.keys() - _PLAIN),
    )


def _template(said: dict[str, str]) -> Template:
    return Template(
        src=_address(said["src"]),
        dst=_address(said["dst"]),
        protocol=said["proto"],
        spi=int(said.get("spi", "0"), 0),
        reqid=int(said["reqid"]),
        mode=said["mode"],
        is_optional=said.get("level") == "use",
    )


def _address(text: str) -> IPAddress | None:
    ip = ip_address(text)
    return None if ip.is_unspecified else ip


def _mark(text: str | None) -> tuple[int, int]:
    value, _, mask = (text or "0/0").partition("/")
    return int(value, 0), int(mask, 0) if mask else 0xFFFFFFFF
