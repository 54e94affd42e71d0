"""A case on the kernel and in ktp, side by side."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.explain.effects import step_words
from ktp.model.trace import Flow, FlowAnswer, Path, StepKind, Symptom
from tests.kernel.drawing import Case, Packet, flow_of
from tests.kernel.lab import NODES, Lab, LabError, topology_of_lab

_FAILED_LINE = re.compile(r"line:? (\d+)")
_REFUSED_COMMAND = re.compile(r"^/dev/stdin:(\d+):", re.MULTILINE)
_COUNTED = re.compile(r"^\[(\d+):\d+\] (-A \S+)")
RuleKey = tuple[str, str, str, str, int]  # node, back end, table, chain, position
# Behind this the client's patience: a local client learns of an error in answer to its second SYN, after one second.
_PATIENCE = 2.4


@dataclass
class Outcome:
    """What one packet did, and what ktp says."""

    packet: Packet
    kernel: dict[str, Any]
    answer: FlowAnswer
    agrees: bool
    why: str = ""
    moved: dict[RuleKey, int] = field(default_factory=dict)


def load(lab: Lab, case: Case) -> Case:
    """Put a case on the nodes. Lines that this kernel does not know are taken out; the case as it was loaded."""
    rules = {}
    for node in NODES:
        lab.clear(node)
    for node, text in case.sets.items():
        lab.agents[node].run("ipset", "restore", "-exist", text=text)
    for (node, wanted), text in case.rules.items():
        backend = wanted if wanted in lab.backends else lab.backends[0]
        if (node, backend) not in rules:
            rules[node, backend] = _load_rules(lab, node, case.family, backend, text)
    nft = {node: _load_nft(lab, node, text) for node, text in case.nft.items()}
    for node, text in case.ipvs.items():
        lab.agents[node].run("ipvsadm", "-R", text=text)
    for node, values in case.sysctls.items():
        lab.sysctl(node, values)
    for node, commands in case.commands.items():
        for words in commands:
            lab.agents[node].run("ip", *words.partition(" / ")[0].split())
    return replace(case, rules=rules, nft=nft)


def unload(lab: Lab, case: Case) -> None:
    """Take back what `clear` does not: routes of the main table, what was set of devices."""
    for node, commands in case.commands.items():
        for words in commands:
            done, _, back = words.partition(" / ")
            lab.agents[node].run("ip", *(back or done.replace(" add ", " del ")).split(), check=False)


def _load_rules(lab: Lab, node: str, family: int, backend: str, text: str) -> str:
    for _ in range(40):
        try:
            lab.restore(node, family, backend, text)
        except LabError as error:
            lines = text.splitlines()
            found = _FAILED_LINE.search(str(error))
            number = int(found.group(1)) if found else 0
            if not 0 < number <= len(lines):
                raise
            if lines[number - 1] == "COMMIT":  # the kernel refused one rule of the table: without any, then
                start = max(i for i in range(number) if lines[i].startswith("*"))
                lines = [
                    x for i, x in enumerate(lines) if not (start < i < number - 1 and x.startswith("-A"))
                ]
            else:
                del lines[number - 1]
            text = "\n".join(lines) + "\n"
        else:
            return text
    raise LabError("no line of the ruleset can be loaded")


def _load_nft(lab: Lab, node: str, text: str) -> str:
    """Commands for `nft -f`, one a line, without those that this nft or kernel refuses."""
    lines = text.splitlines()
    while lines:
        done = lab.agents[node].run("nft", "-f", "-", text="\n".join(lines) + "\n", check=False)
        if done["status"] == 0:
            return "\n".join(lines) + "\n"
        refused = {int(n) for n in _REFUSED_COMMAND.findall(done["stderr"])}
        if not refused:
            raise LabError(done["stderr"])
        lines = [line for number, line in enumerate(lines, 1) if number not in refused]
    return ""


def walker_of(lab: Lab) -> Walker:
    """ktp's walker over what the nodes say now."""
    return Walker(topology_of_lab(lab.capture()))


def run_case(lab: Lab, case: Case, *, counted: bool = False) -> list[Outcome]:
    """Load a case, send its packets, ask ktp. `counted` compares the rules' counters as well, one packet at a time."""
    case = load(lab, case)
    try:
        walker = walker_of(lab)
        answers = [answer_flow(walker, Flow(**flow_of(p, case.family))) for p in case.packets]
        if counted:
            return [
                _counted(lab, case, walker, p, answer)
                for p, answer in zip(case.packets, answers, strict=True)
            ]
        results = lab.probe([wire(p) for p in case.packets])
        _ask_longer(lab, case, results)
        out = [
            judge(p, kernel, answer, case.heard)
            for p, kernel, answer in zip(case.packets, results, answers, strict=True)
        ]
        for number, each in enumerate(out):
            if not each.agrees:
                out[number] = _alone(lab, each, case.heard)
        return out
    finally:
        unload(lab, case)


def _alone(lab: Lab, outcome: Outcome, heard: bool) -> Outcome:
    """The pair asked again, alone and with patience.

    ip_error() has a budget of its own for each sender (net.ipv4.route.error_burst and error_cost, which only the
    first namespace can set): one error a second when it is used up, so that the cases before may have silenced it.
    """
    for wait in (0.0, 1.5, 3.0):
        time.sleep(wait)
        for node in NODES:
            lab.agents[node].run("conntrack", "-F", check=False)
        again = lab.probe([{**wire(outcome.packet), "timeout": _PATIENCE}])[0]
        outcome = judge(outcome.packet, again, outcome.answer, heard)
        if outcome.agrees:
            break
    return outcome


def _ask_longer(lab: Lab, case: Case, results: list[dict[str, Any]]) -> None:
    """Where a rule may refuse a process's SYN, silence is only told from a late answer by waiting for it."""
    if not any("REJECT" in text for text in case.rules.values()):
        return
    late = [
        n
        for n, p in enumerate(case.packets)
        if p.host in NODES and results[n]["outcome"] == "times_out" and p.proto == "tcp"
    ]
    for number, answer in zip(
        late, lab.probe([{**wire(case.packets[n]), "timeout": 1.5} for n in late]), strict=True
    ):
        results[number] = answer


def wire(p: Packet) -> dict[str, Any]:
    return {"host": p.host, "dst": p.dst, "port": p.port, "proto": p.proto, "src": p.src, "timeout": 0.25}


def judge(p: Packet, kernel: dict[str, Any], answer: FlowAnswer, heard: bool = False) -> Outcome:
    if answer.symptom is Symptom.UNKNOWN:
        return Outcome(p, kernel, answer, True, "undetermined")
    if heard and p.proto == "tcp" and kernel["outcome"] == "connects" and "ip" not in kernel:
        agrees = any(path.symptom is Symptom.UNKNOWN for path in answer.paths)
        return Outcome(
            p, kernel, answer, agrees, "" if agrees else "the handshake ends well, and nothing follows"
        )
    reasons = [differs(kernel, path) for path in answer.paths]
    if any(r is None for r in reasons):
        return Outcome(p, kernel, answer, True)
    return Outcome(p, kernel, answer, False, "; ".join(dict.fromkeys(r for r in reasons if r)))


def differs(kernel: dict[str, Any], path: Path) -> str | None:
    if kernel["outcome"] != path.symptom.value:
        return f"kernel {kernel}, ktp {path.symptom.value} ({path.reason})"
    if kernel["outcome"] != "connects" or "ip" not in kernel:
        return None
    said = (path.endpoint_ip, path.endpoint_port, path.source_seen)
    real = (kernel["ip"], kernel["port"], kernel["source"])
    if said != real:
        return f"kernel {real}, ktp {said}"
    if path.endpoint_name not in (None, kernel["name"]):
        return f"kernel {kernel['name']}, ktp {path.endpoint_name}"
    return None


# -- counters


def read_counters(lab: Lab, case: Case) -> dict[RuleKey, int]:
    """What each rule of the case has counted by now."""
    out = {}
    for node, backend in case.rules:
        table, at = "", Counter[str]()
        for line in lab.counters(node, case.family, backend).splitlines():
            if line.startswith("*"):
                table, at = line[1:], Counter()
            elif found := _COUNTED.match(line):
                chain = found.group(2)[3:]
                at[chain] += 1
                out[node, backend, table, chain, at[chain]] = int(found.group(1))
    return out


def expected_counters(path: Path) -> Counter[RuleKey]:
    """The rules that ktp says matched, request, answer and error alike."""
    out: Counter[RuleKey] = Counter()
    for hop in path.hops:
        for step in hop.steps:
            if step.kind is StepKind.RULE:
                out[
                    hop.node, step.backend.removeprefix("iptables-"), step.table, step.chain, step.position
                ] += 1
    return out


def _counted(lab: Lab, case: Case, walker: Walker, p: Packet, answer: FlowAnswer) -> Outcome:
    """`_count`, again where it differs: a connection that is just being torn down may have moved a counter."""
    out = _count(lab, case, walker, p, answer)
    for _ in range(2):
        if out.agrees:
            break
        time.sleep(1.0)
        out = _count(lab, case, walker, p, answer)
    return out


def _count(lab: Lab, case: Case, walker: Walker, p: Packet, answer: FlowAnswer) -> Outcome:
    for node in NODES:
        lab.agents[node].run("conntrack", "-F", check=False)
    before = read_counters(lab, case)
    kernel = lab.probe([wire(p)])[0]
    after = read_counters(lab, case)
    moved = {k: n - before.get(k, 0) for k, n in after.items() if n != before.get(k, 0)}
    judged = judge(p, kernel, answer)
    if not judged.agrees:
        again = lab.probe([{**wire(p), "timeout": _PATIENCE}])[0]
        return judge(p, again, answer)
    why = counters_differ(case, walker, p, kernel, answer, moved)
    return replace(judged, agrees=why is None, why=why or judged.why, moved=moved)


def counters_differ(
    case: Case,
    walker: Walker,
    p: Packet,
    kernel: dict[str, Any],
    answer: FlowAnswer,
    moved: dict[RuleKey, int],
) -> str | None:
    """Which rules matched by the kernel's counters and not by ktp's trace, or the other way; None where they agree.

    Also None where the trace of the answer does not tell: what is unknown and ends alike either way; an answer that
    is refused, of which the kernel tells the sender, its own process; two back ends, of which either may be first.
    """
    if any(leaf.state.asked for leaf in walker.walk(Flow(**flow_of(p, case.family)))):
        return None
    if "refuses the answer" in answer.reason or kernel.get("errno") == "EPERM":
        return None
    if any((node, "nft") in case.rules and (node, "legacy") in case.rules for node in NODES):
        return None
    whole = case.family == 4 and (p.proto == "udp" or kernel["outcome"] != "connects")
    tracked = not any("NOTRACK" in text or "--notrack" in text for text in case.rules.values())
    wrong = []
    for path in answer.paths:
        if differs(kernel, path) is not None:
            continue
        said = expected_counters(path)
        if dict(said) == moved if whole else _contained(said, moved, tracked):
            return None
        keys = sorted(k for k in {*moved, *said} if moved.get(k, 0) != said.get(k, 0))
        wrong.append("; ".join(f"{k}: kernel {moved.get(k, 0)}, ktp {said.get(k, 0)}" for k in keys))
    return "counters: " + " | ".join(wrong[:2])


def _contained(said: Counter[Any], moved: dict[Any, int], tracked: bool) -> bool:
    """A TCP connection has more packets than ktp walks: what it says must be there; of nat, that and nothing else.

    Where a rule takes packets out of conntrack, a later one may be picked up as a connection of its own and meet nat.
    """
    if any(moved.get(k, 0) < n for k, n in said.items()):
        return False
    return not tracked or {k: n for k, n in moved.items() if k[2] == "nat"} == {
        k: n for k, n in said.items() if k[2] == "nat"
    }


def tell(case: Case, outcome: Outcome) -> str:
    """A disagreement for people: the case, the packet, what each side says."""
    parts = [f"seed {case.seed} IPv{case.family} {outcome.packet}", outcome.why]
    parts += [f"  kernel: {outcome.kernel}"]
    for path in outcome.answer.paths[:4]:
        parts.append(f"  ktp {path.probability:.2f} {path.symptom.value}: {path.reason}")
        for hop in path.hops:
            parts.append(
                f"    {hop.node} {hop.direction}: {hop.arrived} -> {hop.left} {hop.in_interface} {hop.out_interface}"
            )
            parts += [f"      {s.hook} {s.table} {s.text} | {step_words(s)}" for s in hop.steps]
    for key, text in (*case.rules.items(), *case.nft.items(), *case.ipvs.items()):
        parts.append(f"  rules {key}:")
        parts += [f"    {line}" for line in text.splitlines()]
    for what in (case.sets, case.sysctls, case.commands):
        if any(what.values()):
            parts.append(f"  {what}")
    return "\n".join(parts)
