"""Explanations of rules → text for people, or plain data for JSON and YAML.

Text is lines of spans with a style; a pipe gets them as they are, a terminal in colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ktp.model.explanation import (
    ChainNode,
    ElementNode,
    EndpointShare,
    Explanation,
    LookupNode,
    RuleNode,
    StageNode,
    Verdict,
)
from ktp.render.assumptions import assumed_words, assumptions_json
from ktp.render.clean import clean

if TYPE_CHECKING:
    from typing import TextIO

Line = tuple[tuple[str, str], ...]

_UNICODE = ("├─ ", "└─ ", "│  ", "   ")
_ASCII = ("|- ", "`- ", "|  ", "   ")
_LOAD_BALANCERS = {"ipvs": "IPVS", "cilium": "Cilium's load-balancing map"}
_BAD = ("dropped", "rejected", "lost", "no_listener", "host_process")


def print_explanations(
    explanations: Sequence[Explanation],
    stream: TextIO,
    *,
    width: int = 80,
    color: bool = False,
    fold_rules: bool = False,
) -> None:
    """Write all of them, with a summary ahead where there are several.

    Sentences are folded at `width`; the rules themselves, as `iptables-save` prints them, only with `fold_rules`, so
    that what goes through a pipe can be searched and copied.
    """
    unicode = (getattr(stream, "encoding", None) or "").lower().startswith("utf")
    lines: list[Line] = []
    if len(explanations) > 1:
        lines += _summary(explanations, width)
    for explanation in explanations:
        if lines:
            lines += [(), ((("─" if unicode else "-") * min(width, 80), "faint"),), ()]
        lines += _Page(explanation, width, unicode, fold_rules).lines()
    lines = [tuple((clean(text), style) for text, style in line) for line in lines]
    if color:
        from ktp.render.trace_text import write_lines

        write_lines(lines, stream, color=True)
        return
    stream.write("".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines))


def _summary(explanations: Sequence[Explanation], width: int) -> list[Line]:
    lines: list[Line] = []
    for e in explanations:
        v = e.verdict
        head = f"{e.node}: {e.subject}"
        if v is not None:
            words = f"{head}: {v.headline}"
            first, *more = _fold(words, width, "  ")
            lines.append(((first, _style(v)),))
            lines += [((text, _style(v)),) for text in more]
        else:
            lines.append(((head, "strong"),))
    return lines


def _style(verdict: Verdict) -> str:
    if verdict.disposition in _BAD or verdict.symptom == "intermittent":
        return "bad"
    return "good" if verdict.symptom == "connects" else "doubt"


def _fold(text: str, width: int, indent: str = "") -> list[str]:
    """`text` in lines of at most `width` columns; a longer word stays whole. Later lines begin with `indent`."""
    out: list[str] = []
    line = ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > width:
            out.append(line)
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    out.append(line)
    return out


class _Page:
    def __init__(self, explanation: Explanation, width: int, unicode: bool, fold_rules: bool) -> None:
        self._e = explanation
        self._width = width
        self._marks = _UNICODE if unicode else _ASCII
        self._fold_rules = fold_rules
        self._out: list[Line] = []
        self._asked = explanation.verdict is not None

    def lines(self) -> list[Line]:
        e = self._e
        self._put(f"{e.subject}, {e.node}", "strong")
        if e.vantage:
            self._put(f"asked by {e.vantage}")
        if e.verdict is not None:
            self._verdict(e.verdict)
        self._out.append(())
        self._put(f"rules: {e.rules_of}", hanging="       ")
        self._out.append(((f"from:  {e.source}", ""),))
        for note in e.notes:
            self._put(f"note:  {note}", hanging="       ")
        if e.stages:
            self._put("=> marks what this packet takes, a percentage what it takes by chance", "faint")
        for stage in e.stages:
            self._stage(stage)
        for chain in e.chains:
            self._out.append(())
            place = "" if chain.table in _LOAD_BALANCERS else f", table {chain.table}{_policy(chain)}"
            self._put(f"{chain.name}{place}: {chain.words}", "strong")
            self._rules(chain, "")
        if e.jumps_here:
            self._out.append(())
            self._put("rules that lead here:", "strong")
            for number, rule in enumerate(e.jumps_here):
                self._rule(rule, "", number + 1 == len(e.jumps_here), numbered=False)
        if e.verdict is not None and e.verdict.assumptions:
            self._out.append(())
            self._put("assumed:")
            for words in assumed_words(e.verdict.assumptions):
                self._put(f"- {words}", hanging="  ")
        return self._out

    def _put(self, text: str, style: str = "", hanging: str = "") -> None:
        self._out.extend(((line, style),) for line in _fold(text, self._width, hanging))

    def _verdict(self, v: Verdict) -> None:
        self._out.append(())
        head, _, rest = v.headline.partition(":")
        for number, line in enumerate(_fold(f"{head.upper()}:{rest}", self._width, "  ")):
            self._out.append(((line, _style(v)),) if not number else ((line, ""),))
        if v.why:
            self._indented(v.why)
        for endpoint in v.endpoints if len(v.endpoints) > 1 else ():
            self._indented(f"- {_endpoint(endpoint)}")
        if v.rule and v.disposition != "delivered":
            place = f"table {v.table}" + (f", line {v.line}" if v.line else "")
            which = f"rule {v.position} of {v.chain}" if v.position else f"chain {v.chain}"
            self._indented("decided by:" if v.table in _LOAD_BALANCERS else f"decided by {which}, {place}:")
            self._raw(v.rule, "    ")
            if v.element:
                self._indented(f"and the element of map {v.lookup} that it found:")
                self._raw(v.element, "    ")

    def _indented(self, text: str) -> None:
        self._out.extend((("  " + line, ""),) for line in _fold(text, self._width - 2, "  "))

    def _raw(self, text: str, indent: str) -> None:
        if not self._fold_rules:
            self._out.append(((indent, ""), (text, "faint")))
            return
        room = max(self._width - len(indent), 24)
        self._out.extend(((indent, ""), (line, "faint")) for line in _fold(text, room, "    "))

    def _stage(self, stage: StageNode) -> None:
        chain = stage.chain
        self._out.append(())
        where = f"table {chain.table}"
        if stage.backend == "nftables":
            where = f"chain {chain.name} of table {chain.table}, {stage.type}, priority {stage.priority}"
        elif stage.backend in _LOAD_BALANCERS:
            where = _LOAD_BALANCERS[stage.backend]
        # Cilium's programs are at no hook of netfilter.
        hook = "" if stage.backend == "cilium" else f"{stage.hook}, "
        hook = f"in pod {stage.pod}: {hook}" if stage.pod else hook
        self._put(f"{hook}{where} ({stage.words}){_policy(chain)}", "strong", "  ")
        self._rules(chain, "")

    def _rules(self, chain: ChainNode, indent: str) -> None:
        more = bool(chain.left_out)
        for number, rule in enumerate(chain.rules):
            self._rule(rule, indent, number + 1 == len(chain.rules) and not more)
        if more:
            words = f"{chain.left_out:,} {chain.left_out_words}"
            if chain.left_out == 1:
                words = words.replace(" rules ", " rule ", 1)
            if not chain.rules:
                words += ", none for this packet"
            self._hang(words, indent + self._marks[1], indent + self._marks[3], "faint")
        elif not chain.rules:
            self._hang("no rules", indent + self._marks[1], indent + self._marks[3], "faint")

    def _hang(self, text: str, first: str, later: str, style: str = "") -> None:
        room = max(self._width - len(first), 24)
        for number, line in enumerate(_fold(text, room)):
            self._out.append(((later if number else first, "faint"), (line, style)))

    def _rule(self, rule: RuleNode, indent: str, last: bool, *, numbered: bool = True) -> None:
        tee, corner, bar, blank = self._marks
        first, later = indent + (corner if last else tee), indent + (blank if last else bar)
        mark, style = self._mark(rule)
        numbered = numbered and rule.position > 0
        head = f"{mark}{rule.position}. {rule.words}" if numbered else f"{mark}{rule.words}"
        if rule.shown:
            head += f" [{rule.goes_to}: see {rule.shown}]"
        self._hang(head, first, later, style)
        self._raw(rule.text, later + "   ")
        facts = [f"line {rule.line}"] if rule.line else [f"handle {rule.handle}"] if rule.handle else []
        if rule.packets is not None:
            facts.append(f"{rule.packets:,} packets, {rule.bytes:,} bytes")
        if facts:
            self._hang("; ".join(facts), later + "   ", later + "   ", "faint")
        for lookup in rule.lookups:
            self._lookup(lookup, later)
        if rule.chain is not None:
            self._chain(rule.chain, later, rule.share)

    def _chain(self, chain: ChainNode, indent: str, share: float | None) -> None:
        self._hang(f"{chain.name}: {chain.words}", indent, indent, "strong" if share else "")
        self._rules(chain, indent)

    def _lookup(self, lookup: LookupNode, indent: str) -> None:
        """What a rule found in a set or map, or may draw."""
        name = f"{lookup.kind} {lookup.name}" if lookup.name else ""
        if lookup.kind == "map" and not lookup.name:
            name = "its map"
        head = ": ".join(w for w in (name, lookup.words) if w)
        rest = f"{lookup.left_out:,} {lookup.left_out_words}" if lookup.left_out else ""
        if not lookup.elements:
            self._hang(f"{head} ({rest or 'empty'})" if name else head, indent, indent)
            return
        self._hang(head, indent, indent, "strong" if any(e.share for e in lookup.elements) else "")
        tee, corner, bar, blank = self._marks
        for number, element in enumerate(lookup.elements):
            end = number + 1 == len(lookup.elements) and not rest
            first, later = indent + (corner if end else tee), indent + (blank if end else bar)
            mark, style = self._mark(element)
            words = element.words + (f" [{element.goes_to}: see {element.shown}]" if element.shown else "")
            self._hang(f"{mark}{words}", first, later, style)
            self._raw(element.text, later + "   ")
            if element.chain is not None:
                self._chain(element.chain, later, element.share)
        if rest:
            self._hang(rest, indent + corner, indent + blank, "faint")

    def _mark(self, rule: RuleNode | ElementNode) -> tuple[str, str]:
        if not self._asked or rule.share is None:
            return "", ""
        if rule.share >= 0.9995:
            return "=> ", "strong"
        if rule.share > 0:
            return f"{_percent(rule.share)} ", "strong"
        return "", ""


def _policy(chain: ChainNode) -> str:
    return f", policy {chain.policy}" if chain.policy is not None else ""


def _percent(share: float) -> str:
    text = f"{share * 100:.1f}"
    return (text[:-2] if text.endswith(".0") else text) + "%"


def _endpoint(endpoint: EndpointShare) -> str:
    where = " ".join(w for w in (endpoint.pod, f"on {endpoint.node}" if endpoint.node else None) if w)
    words = f"{endpoint.address}{f' ({where})' if where else ''}: {_percent(endpoint.share)}"
    return words if endpoint.symptom == "connects" else f"{words}, {endpoint.symptom.replace('_', ' ')}"


# -- as data


def explanations_object(explanations: Sequence[Explanation]) -> dict[str, Any]:
    """The same as dicts and lists (docs/reference/explain-rules.md)."""
    items = [_explanation(e) for e in explanations]
    if len(items) == 1:
        return {"apiVersion": "ktp.dev/v1", "kind": "RuleExplanation", **items[0]}
    return {"apiVersion": "ktp.dev/v1", "kind": "RuleExplanationList", "items": items}


def _explanation(e: Explanation) -> dict[str, Any]:
    data: dict[str, Any] = {"subject": e.subject, "node": e.node}
    if e.vantage:
        data["askedBy"] = e.vantage
    data["rulesOf"] = e.rules_of
    data["source"] = e.source
    if e.verdict is not None:
        data["verdict"] = _verdict(e.verdict)
        data["stages"] = [
            {
                "hook": s.hook,
                "words": s.words,
                "backend": s.backend,
                "priority": s.priority,
                "type": s.type or None,
                **({"pod": s.pod} if s.pod else {}),
                "chain": _chain(s.chain),
            }
            for s in e.stages
        ]
    else:
        data["jumpsHere"] = [_rule(r) for r in e.jumps_here]
    if e.verdict is None or e.chains:
        data["chains"] = [_chain(c) for c in e.chains]
    data["notes"] = list(e.notes)
    return data


def _verdict(v: Verdict) -> dict[str, Any]:
    return {
        "disposition": v.disposition,
        "symptom": v.symptom,
        "headline": v.headline,
        "why": v.why,
        "decidedBy": {
            "node": v.node,
            "table": v.table,
            "chain": v.chain,
            "position": v.position or None,
            "line": v.line or None,
            "rule": v.rule,
            "map": v.lookup or None,
            "element": v.element or None,
        }
        if v.rule
        else None,
        "clientSource": v.client_source or None,
        "endpoints": [
            {
                "address": e.address,
                "share": round(e.share, 6),
                "symptom": e.symptom,
                "pod": e.pod,
                "node": e.node,
            }
            for e in v.endpoints
        ],
        "assumptions": assumptions_json(v.assumptions),
    }


def _chain(chain: ChainNode) -> dict[str, Any]:
    return {
        "table": chain.table,
        "name": chain.name,
        "words": chain.words,
        "policy": chain.policy,
        "rules": [_rule(r) for r in chain.rules],
        "leftOut": chain.left_out,
    }


def _rule(rule: RuleNode) -> dict[str, Any]:
    data: dict[str, Any] = {
        "position": rule.position or None,
        "line": rule.line or None,
        "handle": rule.handle or None,
        "rule": rule.text,
        "words": rule.words,
        "share": round(rule.share, 6) if rule.share is not None else None,
        "packets": rule.packets,
        "bytes": rule.bytes,
        "goesTo": rule.goes_to,
    }
    if rule.lookups:
        data["lookups"] = [_lookup(lookup) for lookup in rule.lookups]
    if rule.chain is not None:
        data["chain"] = _chain(rule.chain)
    elif rule.shown:
        data["chainShown"] = rule.shown
    return data


def _lookup(lookup: LookupNode) -> dict[str, Any]:
    return {
        "kind": lookup.kind,
        "name": lookup.name or None,
        "words": lookup.words,
        "elements": [_element(e) for e in lookup.elements],
        "leftOut": lookup.left_out,
    }


def _element(element: ElementNode) -> dict[str, Any]:
    data: dict[str, Any] = {
        "element": element.text,
        "words": element.words,
        "share": round(element.share, 6) if element.share is not None else None,
        "goesTo": element.goes_to,
    }
    if element.chain is not None:
        data["chain"] = _chain(element.chain)
    elif element.shown:
        data["chainShown"] = element.shown
    return data


def all_rules(chains: Iterable[ChainNode]) -> Iterable[RuleNode]:
    """Every rule of a tree, depth first."""
    for chain in chains:
        for rule in chain.rules:
            yield rule
            behind = [e.chain for lookup in rule.lookups for e in lookup.elements]
            yield from all_rules(c for c in (*behind, rule.chain) if c is not None)
