"""What ktp says about every flow that was really tried on recorded clusters (tests/data/cases/README.md).

More recordings are taken from the folder KTP_CASES (`make test-cases`).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ktp.app.trace import FlowBatch
from tests.support import not_yet
from tests.support.recordings import RECORDINGS, snapshot_of

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGED = REPOSITORY / "tests" / "data" / "cases"
MORE = RECORDINGS

# What the sockets said, in words of ktp.
SYMPTOMS = {"ok": "connects", "timeout": "times_out", "refused": "refused", "unreachable": "unreachable"}
# A flow was tried so often, and no more often than that where these first tries all timed out.
TRIES, FIRST_TRIES = 10, 2
# The number of things said to be possible that never happened may be this unlikely, and no single one less likely.
UNLIKELY = 1e-4
IMPOSSIBLE = 1e-6
# Up to this likely, an event that never happened counts among the rare ones.
RARE = 2e-3


def cases() -> Iterator[Any]:
    folders = [(p, "") for p in sorted(PACKAGED.glob("*/"))]
    if MORE.is_dir():
        folders += [(p, "whole ") for p in sorted(MORE.glob("*/"))]
    for folder, prefix in folders:
        if not (folder / "probes.json").is_file():
            continue
        yield pytest.param(folder, id=prefix + folder.name, marks=not_yet.marks(folder.name, not_yet.WALK))


def about(folder: Path) -> dict[str, Any]:
    path = folder / "case.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def line_of(number: int, probe: dict[str, Any]) -> bytes:
    """A recorded flow as a line of `ktp trace --batch`."""
    flow = {"id": number, "to": probe["dst"], "port": probe["port"], "protocol": probe["proto"]}
    if probe["kind"] != "node":  # a process leaves its source address to the kernel
        flow["from"] = probe["src_ip"]
    if probe["kind"] != "external":
        flow["from_node"] = probe["vantage_node"]
    if probe.get("via"):
        flow["via"] = probe["via"]
    return json.dumps(flow).encode()


@dataclass
class Draws:
    """Everything that was said to happen with some probability: how likely each was never to happen, and did not."""

    tries: int = TRIES
    chances: list[float] = field(default_factory=list)
    never: list[tuple[float, str]] = field(default_factory=list)

    def add(self, probability: float, timing_out: float, happened: bool, words: str) -> None:
        """Something said to happen at each try with `probability`, of a flow that times out with `timing_out`."""
        chance = min(1.0, max(0.0, 1 - probability) ** self.tries + timing_out**FIRST_TRIES)
        self.chances.append(chance)
        if not happened:
            self.never.append((chance, words))

    def complaints(self) -> list[str]:
        """Where chance does not explain what never happened: one by one, the rare ones together, all together."""
        out = [words for chance, words in self.never if chance < IMPOSSIBLE]
        for limit in (RARE, 1.0):
            expected = sum(c for c in self.chances if c <= limit)
            missed = [words for chance, words in self.never if chance <= limit]
            if at_least(len(missed), expected) < UNLIKELY:
                out.append(f"{len(missed)} never happened where {expected:.2f} were expected: {missed}")
        return out


def at_least(count: int, expected: float) -> float:
    """The probability of `count` or more of a Poisson distribution (an upper bound for independent rare events)."""
    term, below = math.exp(-expected), 0.0
    for number in range(count):
        below += term
        term *= expected / (number + 1)
    return max(0.0, 1.0 - below)


class Case:
    """One recording: its flows and the names of those who answer at an address."""

    def __init__(self, folder: Path) -> None:
        self.about = about(folder)
        self.probes = json.loads((folder / "probes.json").read_text())
        self.names: dict[str, set[str]] = defaultdict(set)
        for pod in json.loads((folder / "cluster" / "pods.json").read_text())["items"]:
            name = f"{pod['metadata']['namespace']}-{pod['metadata']['name']}"
            for ip in pod.get("status", {}).get("podIPs", []):
                self.names[ip["ip"]].add(name)
        for name, addresses in self.about.get("gone_pods", {}).items():  # still answers, though forgotten
            for ip in addresses:
                self.names[ip].add(name)
        most = max(sum(p["outcomes"].values()) for p in self.probes)
        # Where flows that ended in more than one way were tried anew, only those tries are recorded.
        self.draws = Draws(min(TRIES, most, self.about.get("retried", {}).get("tries", TRIES)))

    def judge(self, probe: dict[str, Any], answer: dict[str, Any]) -> str | None:
        """None where the answer is what happened, else how it differs. Draws are judged together at the end."""
        if "error" in answer:
            return f"error: {answer['error']}"
        outcomes = probe["outcomes"]
        if answer["disposition"] == "undetermined":
            why = " ".join(u["why"] for u in answer["unknown"])
            allowed = "undetermined_allowed" in self.about and "registered last" in why
            return None if allowed else f"undetermined: {why}"
        if "connected-silent" in outcomes:
            silent = set(outcomes) == {"connected-silent"} and answer["disposition"] == "host_process"
            return None if silent else f"said {answer['disposition']}, but a process of the node took it"
        if (
            "deadport" in probe["service"]
            and set(outcomes) == {"refused"}
            and answer["symptom"] == "connects"
            and any(a.get("evidence") == "pod-namespace" for a in answer.get("assumptions", ()))
        ):
            return None  # nothing listens in that pod, which was not read: the answer says so
        return self.judge_symptom(probe, answer) or self.judge_endpoints(probe, answer)

    def judge_symptom(self, probe: dict[str, Any], answer: dict[str, Any]) -> str | None:
        outcomes = probe["outcomes"]
        said = said_of(answer)
        seen = {SYMPTOMS[o] for o in outcomes}
        if not seen <= set(said):
            return f"symptom: said {sorted(said)}, was {outcomes}"
        for symptom, probability in said.items():
            if symptom != "connects":  # which endpoints answered is judged one by one
                timing_out = 0.0 if symptom == "times_out" else said.get("times_out", 0.0)
                words = f"{words_of(probe)}: {symptom}, was {outcomes}"
                self.draws.add(probability, timing_out, symptom in seen, words)
        return None

    def judge_endpoints(self, probe: dict[str, Any], answer: dict[str, Any]) -> str | None:
        timing_out = said_of(answer).get("times_out", 0.0)
        good = [b for b in answer["backends"] if b["symptom"] == "connects"]
        names = [self.names.get(b["ip"], {b["ip"]}) for b in good]
        answered = set(probe["backends"])
        if not answered <= {n for some in names for n in some}:
            return f"endpoints: said {names}, was {sorted(answered)}"
        if "affinity" not in probe["service"]:  # one client keeps its endpoint
            for b, some in zip(good, names, strict=True):
                words = f"{words_of(probe)}: {b['ip']} ({b['probability']:.0%}), was {probe['backends']}"
                self.draws.add(b["probability"], timing_out, bool(some & answered), words)
        seen = set(probe["seen_source"])
        said = answer["client_source"]["seen"]
        if seen and not (seen <= set(said) and len(said) <= 2):
            return f"source: said {said}, was {sorted(seen)}"
        return None


def said_of(answer: dict[str, Any]) -> dict[str, float]:
    """What the client was said to see, with its probability."""
    if answer["symptom"] != "intermittent":
        return {answer["symptom"]: 1.0}
    said: dict[str, float] = defaultdict(float)
    for b in answer["backends"]:
        said[b["symptom"]] += b["probability"]
    return said


def words_of(probe: dict[str, Any]) -> str:
    via = f" via {probe['via']}" if probe.get("via") else ""
    to = f"{probe['dst']}:{probe['port']}/{probe['proto']}{via}"
    return f"{probe['vantage']} ({probe['src_ip']}) -> {to} [{probe['service']}]"


@pytest.mark.parametrize("folder", list(cases()))
def test_ktp_says_what_happened(folder: Path) -> None:
    case = Case(folder)
    batch = FlowBatch(snapshot_of(folder))
    answers = [json.loads(batch.answer(line_of(n, p))) for n, p in enumerate(case.probes)]
    assert [a["id"] for a in answers] == list(range(len(case.probes)))
    wrong = [
        f"{words_of(probe)} {why}"
        for probe, answer in zip(case.probes, answers, strict=True)
        if (why := case.judge(probe, answer)) is not None
    ]
    wrong += case.draws.complaints()
    assert not wrong, f"{len(wrong)} of {len(answers)}:\n" + "\n".join(wrong[:20])
    if "undetermined_allowed" in case.about:
        assert sum(a["disposition"] == "undetermined" for a in answers) < len(answers) / 10


def test_the_judge_of_draws_is_not_deaf() -> None:
    fair = Draws()
    for number in range(300):
        fair.add(0.5, 0.0, number != 7, "one missed")
    assert fair.complaints() == []
    rigged = Draws()
    for number in range(300):
        rigged.add(0.5, 0.0, number > 8, "many missed")
    assert rigged.complaints()
    certain = Draws()
    certain.add(1.0, 0.0, False, "said to be certain")
    assert "said to be certain" in certain.complaints()
