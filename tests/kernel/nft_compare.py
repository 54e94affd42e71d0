"""An nftables case on the kernel and in ktp, side by side: what became of each packet, and its way there.

One packet at a time. Of each is compared
- its fate, the endpoint that was asked, and the source that it saw, as for iptables;
- its way: on every node the rules that matched, in their order, each by table, chain and handle, with its verdict, and
  the policies that dropped. The kernel says it in the messages that `nft monitor trace` prints (`trace_socket`), for
  which a table of its own sets `meta nftrace` before all others; ktp says it in its steps. Request, answer and error
  are followed: a TCP connection's SYN and SYN-ACK or RST, a datagram and its answer, an ICMP error.

Rules of iptables-nft are in nf_tables and so in its trace; of legacy rules the kernel tells nothing here, and only what
becomes of the packet is compared. Where ktp knows several ways the packet must have gone one of them: by lot; where
something is not in a snapshot, either side of it; where the answer is undetermined, the ways as far as they are known.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from ktp.dataplane.answer import answer_flow, fold
from ktp.dataplane.walk import Leaf, LimitExceededError, Walker
from ktp.model.capture import MemoryCapture
from ktp.model.effect import (
    Accept,
    Drop,
    Effect,
    Goto,
    Jump,
    Keep,
    Leave,
    Refuse,
    Return,
    Translate,
    Unmodelled,
)
from ktp.model.trace import Flow, FlowAnswer, Path, Step, StepKind, Symptom
from tests.kernel.compare import Outcome, differs, judge, load, unload, wire
from tests.kernel.drawing import Case, Packet, flow_of
from tests.kernel.lab import NODES, Lab, topology_of_lab

# Long enough for packet and answer between namespaces, and where it is not, the pair is asked again.
_QUICK, _PATIENT = 0.06, 0.5
# Behind this a local client's second SYN: what refuses its first it learns with that.
_SECOND_SYN = 2.4
_TRACE = "inet ktp-trace"
_DEVICES = ("eth0", "eth1", "cni0")
_ASKED = "meta l4proto udp", "tcp flags & (syn | rst) != 0", "meta l4proto icmp", "icmpv6 type < 128"

Mark = tuple[str, str, int, str]  # table, chain, handle (0: the policy), verdict
# (node, whether of an error that comes in the request's stead) → what matched there. `reject` sends its error before
# the kernel tells of the rule itself, so the two are told apart.
Way = dict[tuple[str, bool], list[Mark]]


@dataclass
class Said:
    """What ktp says of one packet: its answer, and every way with what it comes to."""

    answer: FlowAnswer
    ways: list[tuple[Path, Way]] = field(default_factory=list)


def run_nft_case(lab: Lab, case: Case) -> list[Outcome]:
    """Load a case, ask ktp, send its packets one by one and follow them."""
    case = load(lab, case)
    try:
        capture = lab.capture()
        walker = Walker(topology_of_lab(capture))
        handles = {node: _handles(capture, node) for node in NODES}
        said = [_say(walker, p, case, handles) for p in case.packets]
        _start_trace(lab)
        outcomes = [_send(lab, case, p, each, _QUICK) for p, each in zip(case.packets, said, strict=True)]
        _wait_for_late_answers(lab, case, outcomes)
        for number, each in enumerate(outcomes):
            if not each.agrees:
                outcomes[number] = _again(lab, case, each.packet, said[number])
        return outcomes
    finally:
        unload(lab, case)


def _handles(capture: MemoryCapture, node: str) -> dict[tuple[str, str, int], int]:
    """(table with its family, chain, place in the chain) → the rule's handle."""
    name = f"nodes/{node}/nft-ruleset.json"
    found: dict[tuple[str, str, int], int] = {}
    at: dict[tuple[str, str], int] = {}
    for item in json.loads(capture.files[name])["nftables"]:
        if "rule" in item:
            rule = item["rule"]
            key = (f"{rule['family']} {rule['table']}", rule["chain"])
            at[key] = at.get(key, 0) + 1
            found[key[0], key[1], at[key]] = rule["handle"]
    return found


# -- what ktp says


def _say(walker: Walker, p: Packet, case: Case, handles: dict[str, Any]) -> Said:
    flow = Flow(**flow_of(p, case.family))
    said = Said(answer_flow(walker, flow))
    try:
        leaves = walker.walk(flow)
    except LimitExceededError:
        return said
    names = walker.topology.attached
    said.ways = [
        (fold(flow, [leaf], names=names).paths[0], _way_of(leaf, flow, case, handles)) for leaf in leaves
    ]
    return said


def _way_of(leaf: Leaf, flow: Flow, case: Case, handles: dict[str, Any]) -> Way:
    out: Way = {}
    for hop in fold(flow, [leaf]).paths[0].hops:
        for step in hop.steps:
            mark = _mark(step, case.family, handles[hop.node])
            if mark is not None:
                out.setdefault((hop.node, hop.direction == "error"), []).append(mark)
    return out


def _mark(step: Step, family: int, handles: dict[tuple[str, str, int], int]) -> Mark | None:
    word = "ip" if family == 4 else "ip6"
    if step.backend == "iptables-nft":
        table = f"{word} {step.table}"
    elif step.backend == "nftables":
        table = step.table
    else:
        return None
    if step.kind is StepKind.POLICY:
        return (table, step.chain, 0, "drop") if step.effects == (Drop(),) else None
    if step.kind is not StepKind.RULE or step.effects[-1:] == (Leave(),):
        return None
    verdict = _verdict(step.effects[-1]) if step.backend == "nftables" else ""
    return table, step.chain, handles[table, step.chain, step.position], verdict


def _verdict(effect: Effect) -> str:
    """The verdict as the kernel's trace names it."""
    match effect:
        case Jump(chain):
            return f"jump {chain}"
        case Goto(chain):
            return f"goto {chain}"
        case Return():
            return "return"
        case Drop() | Refuse():
            return "drop"
        case Accept() | Translate() | Keep():
            return "accept"
        case Unmodelled(what):
            return what
        case _:
            return "continue"


# -- what the kernel says


def _start_trace(lab: Lab) -> None:
    """After ktp's snapshot was taken: it does not see this table."""
    rules = [f"add table {_TRACE}", "add table netdev ktp-trace"]
    for hook in ("prerouting", "output"):
        rules.append(f"add chain {_TRACE} {hook} {{ type filter hook {hook} priority -2000; }}")
        rules += [f"add rule {_TRACE} {hook} {what} meta nftrace set 1" for what in _ASKED]
    for device in _DEVICES:
        rules.append(
            f'add chain netdev ktp-trace {device} {{ type filter hook ingress device "{device}" priority -2000; }}'
        )
        rules += [f"add rule netdev ktp-trace {device} {what} meta nftrace set 1" for what in _ASKED]
    text = "\n".join(rules) + "\n"
    for node in NODES:
        lab.agents[node].run("nft", "-f", "-", text=text)
        lab.agents[node].ask(do="trace")


def _send(lab: Lab, case: Case, p: Packet, said: Said, timeout: float, *, patiently: bool = False) -> Outcome:
    """One packet. `patiently`: where a TCP client gets no answer, its fate is what comes with its second SYN."""
    _forget(lab, case)
    for node in NODES:
        lab.agents[node].ask(do="trace")
    kernel = lab.probe([{**wire(p), "timeout": timeout}])[0]
    events = {node: lab.agents[node].ask(do="trace") for node in NODES}
    outcome = _compare(p, kernel, events, said)
    if patiently and not outcome.agrees and p.proto == "tcp" and kernel["outcome"] == "times_out":
        # An error that comes while connect() still holds the socket is lost (LockDroppedIcmps).
        _forget(lab, case)
        kernel = lab.probe([{**wire(p), "timeout": _SECOND_SYN}])[0]
        outcome = _compare(p, kernel, events, said)
    return outcome


def _forget(lab: Lab, case: Case) -> None:
    """What earlier packets have put into sets: ktp is asked about a client that nobody remembers."""
    for node, text in case.nft.items():
        flush = [
            "flush set " + " ".join(words[2:5])
            for words in (line.split() for line in text.splitlines())
            if words[:2] == ["add", "set"] and "dynamic" in " ".join(words)
        ]
        if flush:
            lab.agents[node].run("nft", "-f", "-", text="\n".join(flush) + "\n")


def _ways_seen(events: dict[str, list[dict[str, Any]]], direction: set[str]) -> Way:
    """The kernel's events as ktp's marks, of the packets that ktp follows."""
    out: Way = {}
    for node, heard in events.items():
        for each in heard:
            if each["table"] in (_TRACE, "netdev ktp-trace"):
                continue
            packet = each["packet"]
            # ktp follows an error that comes in the request's stead, not one about the answer or after it
            error = packet in ("icmp", "reset")
            if error and "error" not in direction:
                continue
            marks = out.setdefault((node, error), [])
            if each["type"] == "policy":
                if each["verdict"] == "drop":
                    marks.append((each["table"], each["chain"], 0, "drop"))
            elif each["handle"]:
                marks.append((each["table"], each["chain"], each["handle"], each["verdict"]))
    return out


# -- side by side


def _compare(
    p: Packet, kernel: dict[str, Any], events: dict[str, list[dict[str, Any]]], said: Said
) -> Outcome:
    judged = judge(p, kernel, said.answer)
    if not judged.agrees or not said.ways:
        return judged
    wrong: list[tuple[int, str]] = []
    for path, way in said.ways:
        known = path.symptom is not Symptom.UNKNOWN
        why = differs(kernel, path) if known else None
        if why is not None:
            wrong.append((-1, why))
            continue
        seen = _ways_seen(events, {hop.direction for hop in path.hops})
        found = _way_differs(seen, way, path)
        if found is None:
            return judged
        wrong.append(found)
    why = max(wrong)[1]  # of the way that goes along with the kernel's longest
    if judged.why == "undetermined":
        why = f"undetermined, and none of the {len(wrong)} ways is the packet's: {why}"
    return replace(judged, agrees=False, why=f"way: {why}")


def _way_differs(seen: Way, said: Way, path: Path) -> tuple[int, str] | None:
    """How many marks agree before the first that does not, and which that is; None where all agree."""
    good = 0
    known = path.symptom is not Symptom.UNKNOWN
    for node, error in [(node, error) for node in NODES for error in (False, True)]:
        real, told = seen.get((node, error), []), said.get((node, error), [])
        if error and "refuses the answer" in path.reason:
            # The kernel answers an error that is rejected with another one, which ktp does not follow.
            real = _only(real, told)
        for number, mark in enumerate(told):
            if number >= len(real):
                return good, f"{node}: ktp goes on to {mark}, the kernel ended after {real[-1:]}"
            if not _same(real[number], mark):
                return good, f"{node} at {number + 1}: kernel {real[number:]}, ktp {told[number:]}"
            good += 1
        if known and len(real) > len(told):
            return good, f"{node}: the kernel went on to {real[len(told) :]}, ktp ended after {told[-1:]}"
    return None


def _only(real: list[Mark], told: list[Mark]) -> list[Mark]:
    """Of the kernel's marks those that ktp has too, in their order."""
    out: list[Mark] = []
    for mark in real:
        if len(out) < len(told) and _same(mark, told[len(out)]):
            out.append(mark)
    return out


def _same(real: Mark, told: Mark) -> bool:
    """ktp tells no verdict of an iptables rule, and of what it does not know."""
    return real[:3] == told[:3] and (told[3] in ("", "?") or real[3] == told[3])


def _wait_for_late_answers(lab: Lab, case: Case, outcomes: list[Outcome]) -> None:
    """Who got no answer in the short time is asked once more: silence is to be silence."""
    quiet = [n for n, each in enumerate(outcomes) if each.agrees and each.kernel["outcome"] == "times_out"]
    if not quiet:
        return
    refusing = any("reject" in text.casefold() for text in (*case.nft.values(), *case.rules.values()))
    _forget(lab, case)
    wires = []
    for number in quiet:
        p = outcomes[number].packet
        late = refusing and p.host in NODES and p.proto == "tcp"
        wires.append({**wire(p), "timeout": 1.5 if late else 0.3})
    for number, kernel in zip(quiet, lab.probe(wires), strict=True):
        if kernel["outcome"] != "times_out":
            each = outcomes[number]
            again = judge(each.packet, kernel, each.answer)
            outcomes[number] = again if not again.agrees else each


def _again(lab: Lab, case: Case, p: Packet, said: Said) -> Outcome:
    """Alone and with patience, twice where need be: a node tells a host of its route once a second (ip_error)."""
    for _ in range(2):
        for node in NODES:
            lab.agents[node].run("conntrack", "-F", check=False)
        outcome = _send(lab, case, p, said, _PATIENT, patiently=True)
        if outcome.agrees:
            break
        time.sleep(1.2)
    return outcome
