"""A flow's answer → text for people: the verdict first, then each node with every step.

Plain ASCII of its own; lines are spans of text with a style, so that a pipe gets text and a terminal colours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from itertools import groupby
from typing import TYPE_CHECKING

from ktp.explain.effects import step_words
from ktp.model.record import dataclass
from ktp.model.trace import (
    DecidedBy,
    Disposition,
    FlowAnswer,
    Header,
    Hop,
    Path,
    PlacedRule,
    Step,
    StepKind,
    Symptom,
    Unknown,
)
from ktp.render.assumptions import assumed_words
from ktp.render.clean import clean
from ktp.render.trace_json import merged

if TYPE_CHECKING:
    from typing import TextIO

    from ktp.model.ruleset import Option, Rule

Span = tuple[str, str]  # text and style: "", "strong", "faint", "good", "bad", "doubt"
Line = tuple[Span, ...]

_STYLES = {
    "": "",
    "strong": "bold",
    "faint": "dim",
    "good": "bold green",
    "bad": "bold red",
    "doubt": "bold yellow",
}
_WORDS = {
    Symptom.CONNECTS: "connects",
    Symptom.TIMES_OUT: "times out",
    Symptom.REFUSED: "refused",
    Symptom.UNREACHABLE: "unreachable",
    Symptom.INTERMITTENT: "intermittent",
    Symptom.UNKNOWN: "undetermined",
}
_COLOURS = {Symptom.CONNECTS: "good", Symptom.UNKNOWN: "doubt", Symptom.INTERMITTENT: "doubt"}
_DIRECTIONS = {"request": "request", "reply": "answer", "error": "error report"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How to draw: `width` in columns; `verbose` shows every way and the answer's way in full, rules verbatim.

    `sender` says in words where the flow comes from; `sources` from which file or command the rules of a node are, by
    node and back end.
    """

    width: int = 80
    verbose: bool = False
    sender: str = ""
    sources: Mapping[tuple[str, str], str] = field(default_factory=dict)


def trace_lines(answer: FlowAnswer, layout: Layout) -> list[Line]:
    """The whole report."""
    return _Report(answer, layout).lines()


def write_lines(lines: Iterable[Line], stream: TextIO, *, color: bool) -> None:
    """Print lines; with `color` by rich, else as plain text."""
    if not color:
        for line in lines:
            stream.write("".join(text for text, _ in line).rstrip() + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=stream,
        force_terminal=True,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
        legacy_windows=False,
    )
    for line in lines:
        console.print(Text.assemble(*((text, _STYLES[style]) for text, style in line)))


class _Report:
    def __init__(self, answer: FlowAnswer, layout: Layout) -> None:
        self._answer = answer
        self._layout = layout
        self._out: list[Line] = []
        backends = {(h.place, s.backend) for p in answer.paths for h in p.hops for s in h.steps if s.backend}
        nodes = [node for node, _ in backends]
        self._several = {node for node in nodes if nodes.count(node) > 1}  # rules of both back ends apply

    def lines(self) -> list[Line]:
        answer = self._answer
        self._verdict()
        paths = merged_ways(answer.paths)
        if len(paths) > 1:
            self._endpoints()
        self._unknowns()
        if any(p.hops for p, _ in paths):
            if answer.symptom is Symptom.UNKNOWN:
                self._put()
                self._put(("as far as it is known, or one of the ways that it may take:", "faint"))
            self._ways(paths)
        if answer.assumptions:
            self._put()
            self._put(("assumed:", "strong"))
            for words in assumed_words(answer.assumptions):
                self._wrap(f"- {words}", "  ", "    ")
        self._sources()
        return self._out

    # -- the head

    def _verdict(self) -> None:
        answer = self._answer
        word = _WORDS[answer.symptom]
        fate = answer.disposition.value.replace("_", " ")
        reason = self._reason()
        plain = answer.disposition is Disposition.UNDETERMINED or reason.startswith(fate)
        text = textwrap.wrap(
            f"{word}: {reason}" if plain else f"{word} ({fate}): {reason}", self._layout.width, subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        first = text[0]
        style = _COLOURS.get(answer.symptom, "bad")
        self._put((first[: len(word)], style), (first[len(word) :], ""))
        for more in text[1:]:
            self._put((more, ""))
        flow = answer.flow
        to = f"{_endpoint(flow.dst, flow.port)}/{flow.protocol}"
        via = f", first at {flow.via}" if flow.via is not None and flow.from_node is None else ""
        self._wrap(
            f"from {self._layout.sender or flow.src or flow.from_node} to {to}{via}", "", "  ", "faint"
        )

    def _reason(self) -> str:
        answer = self._answer
        good = {(p.endpoint_ip, p.endpoint_port) for p in answer.paths if p.symptom is Symptom.CONNECTS}
        if answer.symptom is Symptom.CONNECTS and len(good) > 1:
            return f"delivered to one of {len(good)} endpoints"
        reason = answer.reason
        rules = [
            (u.rule.table, u.rule.chain, u.rule.line, u.rule.text)
            for u in answer.unknowns
            if u.rule is not None
        ]
        decided = [d for d in (answer.decided_by, *(p.decided_by for p in answer.paths)) if d is not None]
        rules += [(d.table, d.chain, d.line, d.rule) for d in decided if d.kind is StepKind.RULE]
        for table, chain, line, text in rules:  # the rule itself stands in the trace
            at = f", line {line}" if line else ""
            reason = reason.replace(f"{table} {text}", f"{table} {chain}{at}")
        return clean(reason)

    def _endpoints(self) -> None:
        self._put()
        for path, chance in merged(self._answer.paths):
            fate = _WORDS[path.symptom]
            if path.symptom is not Symptom.CONNECTS:
                fate += f" ({path.disposition.value.replace('_', ' ')})"
            elif path.source_seen is not None:
                fate += f", sees {path.source_seen}"
            self._wrap(f"{_percent(chance):>5}  {_target(path)}: {fate}", "", "       ")

    def _unknowns(self) -> None:
        unknowns = [u for u in self._answer.unknowns if u.rule is not None or u.why != self._answer.reason]
        if not unknowns:
            return
        self._put()
        self._put(("not known:", "strong"))
        for u in unknowns:
            where = f"{u.node}: " if u.node and u.node not in u.why else ""
            self._wrap(f"- {where}{self._why(u)}", "  ", "    ")
            if u.rule is not None:
                self._wrap(clean(f"{_place(u.rule)}: {u.rule.text}"), "    ", "      ", "faint")

    @staticmethod
    def _why(u: Unknown) -> str:
        rule = u.rule
        return clean(u.why.replace(f": {rule.table} {rule.text}", "") if rule is not None else u.why)

    def _sources(self) -> None:
        """Where the line numbers can be looked up."""
        shown = {
            (h.place, s.backend): None
            for p in self._answer.paths
            for h in p.hops
            for s in h.steps
            if s.line and (h.place, s.backend) in self._layout.sources
        }
        if not shown:
            return
        self._put()
        self._put(("lines are of:", "strong"))
        for key in shown:
            self._wrap(self._layout.sources[key], "  ", "    ", "faint")

    # -- the ways

    def _ways(self, paths: Sequence[tuple[Path, float]]) -> None:
        if len(paths) == 1:
            self._way(paths[0][0], 0, 0)
            return
        hops, steps = _common(p for p, _ in paths)
        first = paths[0][0]
        for hop in first.hops[:hops]:
            self._hop(hop, hop.steps, first.decided_by)
        if steps:
            hop = first.hops[hops]
            self._hop(hop, hop.steps[:steps], None, open_end=True)
        for group in _grouped(paths, self._layout.verbose):
            path, chance = group[0]
            self._put()
            self._put(
                ("--- ", "faint"), (f"with {_percent(chance)}: {_target(path)}: ", "strong"),
                (_WORDS[path.symptom], _COLOURS.get(path.symptom, "bad")),
            )  # fmt: skip
            if path.symptom is not Symptom.CONNECTS:
                self._wrap(clean(self._shortened(path)), "    ", "    ")
            if group[1:]:
                others = ", ".join(f"{_target(p)} ({_percent(c)})" for p, c in group[1:])
                self._wrap(f"in the same way: {others}", "    ", "      ", "faint")
            self._way(path, hops, steps)

    @staticmethod
    def _shortened(path: Path) -> str:
        d = path.decided_by
        if d is None or d.kind is not StepKind.RULE:
            return path.reason
        at = f", line {d.line}" if d.line else ""
        return path.reason.replace(f"{d.table} {d.rule}", f"{d.table} {d.chain}{at}")

    def _way(self, path: Path, hops: int, steps: int) -> None:
        """One way from hop `hops`, step `steps` on."""
        back_fails = path.symptom is not Symptom.CONNECTS and _ends_on_the_way_back(path)
        full = self._layout.verbose or back_fails
        for number, hop in enumerate(path.hops[hops:]):
            skipped = steps if number == 0 else 0
            if hop.direction == "request" or full:
                self._hop(hop, hop.steps[skipped:], path.decided_by, goes_on=skipped > 0)
        if full:
            return
        back = [h for h in path.hops if h.direction != "request"]
        if back:
            self._back(back)

    def _back(self, hops: Sequence[Hop]) -> None:
        """The answer's way in short: where it passed, and what was translated."""
        self._put()
        self._put((f"{_DIRECTIONS[hops[0].direction]}, in short", "strong"))
        for hop in hops:
            self._wrap(f"{hop.place}{_interfaces(hop)}: {_flow_of(hop.arrived)}", "  ", "      ")
            for step in hop.steps:
                if step.kind is StepKind.NAT:
                    self._wrap(step_words(step), "    ", "      ")
        self._wrap(f"ends as {_flow_of(hops[-1].left)}", "  ", "      ")

    def _hop(
        self,
        hop: Hop,
        steps: Sequence[Step],
        decided: DecidedBy | None,
        *,
        goes_on: bool = False,
        open_end: bool = False,
    ) -> None:
        self._put()
        if goes_on:
            self._put((hop.place, "strong"), (" goes on", "strong"))
        else:
            self._put(
                (hop.place, "strong"), (f"  {_DIRECTIONS[hop.direction]}{_interfaces(hop, open_end)}", "")
            )
            self._put((f"  {_flow_of(hop.arrived)}", ""))
        for hook, group in groupby(steps, key=lambda s: s.hook):
            if hook:
                self._put((f"  {hook}", "faint"))
            for step in group:
                self._step(step, hop.place, decided)
        if not open_end and _differs(hop):
            self._put((f"  leaves as {_flow_of(hop.left)}", ""))

    def _step(self, step: Step, node: str, decided: DecidedBy | None) -> None:
        decides = decided is not None and _is_decision(step, node, decided)
        sign = "  > " if decides else "    "
        style = "strong" if decides else ""
        words = step_words(step)
        if step.kind in (StepKind.RULE, StepKind.POLICY):
            backend = f" ({step.backend})" if node in self._several else ""
            where = f"{step.table}{backend} {step.chain}"
            if step.kind is StepKind.POLICY:
                where += " policy"
            elif step.position:
                where += f" rule {step.position}" + (f", line {step.line}" if step.line else "")
            self._wrap(clean(f"{where}: {words}"), sign, "      ", style)
            if step.kind is StepKind.RULE:
                self._rule(step, verbatim=decides or self._layout.verbose)
            return
        text = f" ({step.text})" if step.text and step.text not in words else ""
        self._wrap(clean(f"{words}{text}"), sign, "      ", style)

    def _rule(self, step: Step, *, verbatim: bool) -> None:
        rule = step.rule
        if rule is None or verbatim:
            if step.text:
                self._wrap(clean(step.text), "        ", "        ", "faint")
            return
        matches, comment = _conditions(rule)
        words = [f"if {matches}"] if matches else []
        if comment:
            words.append(f"# {comment}")
        if len("  ".join(words)) + 8 <= self._layout.width:
            words = ["  ".join(words)] if words else []
        for each in words:
            self._wrap(clean(each), "        ", "          ", "faint")

    # -- lines

    def _put(self, *spans: Span) -> None:
        self._out.append(spans)

    def _wrap(self, text: str, first: str, more: str, style: str = "") -> None:
        for line in textwrap.wrap(
            text, max(self._layout.width, 40), initial_indent=first, subsequent_indent=more,
            break_long_words=False, break_on_hyphens=False,
        ):  # fmt: skip
            self._put((line, style))


def merged_ways(paths: Sequence[Path]) -> list[tuple[Path, float]]:
    """The ways to show: those that differ in their steps or their end, likeliest failing ones first."""
    together: dict[object, tuple[Path, float]] = {}
    for p in paths:
        key = (p.endpoint_ip, p.endpoint_port, p.disposition, p.symptom, p.source_seen, p.reason, _shape(p))
        first, chance = together.get(key, (p, 0.0))
        together[key] = (first, chance + p.probability)
    return sorted(together.values(), key=lambda x: (x[0].symptom is Symptom.CONNECTS, -x[1]))


def _shape(path: Path) -> tuple[object, ...]:
    return tuple((h.place, h.direction, h.in_interface, h.out_interface, h.left) for h in path.hops)


def _grouped(paths: Sequence[tuple[Path, float]], verbose: bool) -> list[list[tuple[Path, float]]]:
    """Ways that differ by the endpoint alone together; each by itself where `verbose`."""
    if verbose:
        return [[p] for p in paths]
    groups: dict[object, list[tuple[Path, float]]] = {}
    for path, chance in paths:
        d = path.decided_by
        cause = (
            None
            if path.symptom is Symptom.CONNECTS or d is None
            else (d.place, d.kind, d.table, d.line, d.hook)
        )
        route = tuple((h.place, h.direction) for h in path.hops)
        key = (path.disposition, path.symptom, path.source_seen, cause, route)
        groups.setdefault(key, []).append((path, chance))
    return list(groups.values())


def _common(paths: Iterable[Path]) -> tuple[int, int]:
    """How many whole hops, and how many steps of the next, all ways share."""
    all_hops = [p.hops for p in paths]
    shortest = min(len(h) for h in all_hops)
    for number in range(shortest):
        hops = [h[number] for h in all_hops]
        first = hops[0]
        if all(h == first for h in hops) and number + 1 < shortest and first.direction == "request":
            continue
        heads = {(h.place, h.direction, h.in_interface, h.arrived) for h in hops}
        if len(heads) > 1 or first.direction != "request":
            return number, 0
        steps = 0
        for each in zip(*(h.steps for h in hops), strict=False):
            if any(s != each[0] for s in each):
                break
            steps += 1
        return number, steps
    return 0, 0


def _ends_on_the_way_back(path: Path) -> bool:
    """Whether the request was received and the answer (or the error that would tell of its end) is what fails."""
    if not path.hops or path.hops[-1].direction == "request":
        return False
    return path.symptom is Symptom.TIMES_OUT or path.hops[-1].direction == "reply"


def _is_decision(step: Step, node: str, d: DecidedBy) -> bool:
    return node == d.place and step == d.step


def _differs(hop: Hop) -> bool:
    a, b = hop.arrived, hop.left
    return (a.src, a.sport, a.dst, a.dport, a.mark) != (b.src, b.sport, b.dst, b.dport, b.mark)


def _interfaces(hop: Hop, open_end: bool = False) -> str:
    words = ""
    if hop.in_interface is not None:
        words += f", in by {hop.in_interface}"
    if hop.out_interface is not None and not open_end:
        words += f", out by {hop.out_interface}"
    return words


def _flow_of(h: Header) -> str:
    mark = f", mark {h.mark:#x}" if h.mark else ""
    if h.sport == 0 and h.dport == 0:
        return f"{h.src} -> {h.dst}{mark}"
    return f"{_endpoint(h.src, h.sport)} -> {_endpoint(h.dst, h.dport)}{mark}"


def _endpoint(ip: str, port: int | None) -> str:
    """`10.0.0.3:80`; the port is * where it is any ephemeral one."""
    shown = "*" if port is None or port < 0 else str(port)
    return f"[{ip}]:{shown}" if ":" in ip else f"{ip}:{shown}"


def _target(path: Path) -> str:
    if path.endpoint_ip is None:
        return "no endpoint"
    words = _endpoint(path.endpoint_ip, path.endpoint_port)
    if path.endpoint_name:
        words += f" {path.endpoint_name}"
    if path.endpoint_node:
        words += f" on {path.endpoint_node}"
    return words


def _percent(chance: float) -> str:
    percent = chance * 100
    return f"{percent:.0f}%" if percent >= 1 or percent == 0 else f"{percent:.2g}%"


def _place(rule: PlacedRule) -> str:
    return f"{rule.table} {rule.chain}" + (f", line {rule.line}" if rule.line else "")


def _conditions(rule: Rule) -> tuple[str, str]:
    """The conditions of a rule as iptables writes them, and its comment."""
    words: list[str] = []
    comment = ""
    for match in rule.matches:
        if match.name == "comment":
            comment = rule.comment or ""
            continue
        if match.name:
            words.append(f"-m {match.name}")
        words.extend(_option(o) for o in match.options)
    return " ".join(words), comment


def _option(option: Option) -> str:
    args = [f'"{a}"' if option.quoted >> n & 1 else a for n, a in enumerate(option.args)]
    return " ".join([*(["!"] if option.negated else []), option.flag, *args])
