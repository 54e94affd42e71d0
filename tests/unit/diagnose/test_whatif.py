"""what-if: each change, what it alters, and what makes no sense."""

from __future__ import annotations

import json

import pytest

from ktp.cli import run
from ktp.diagnose.whatif import WhatIf, what_if
from ktp.errors import NotFoundError, UsageError
from ktp.model.change import Change
from ktp.model.trace import Symptom
from tests.unit.diagnose.worlds import (
    CLUSTER,
    LEGACY,
    LOCAL,
    LOCAL_POD,
    cell,
    demo,
    of_service,
    policy,
    programmed,
    recorded,
    service_with,
)

C, T, R = Symptom.CONNECTS, Symptom.TIMES_OUT, Symptom.REFUSED


def asked(service: str, *changes: tuple[str, str], world: object = None) -> WhatIf:
    snapshot = world or demo()
    made = [Change(kind=kind, value=value) for kind, value in changes]
    return what_if(snapshot, of_service(snapshot, service), made)  # type: ignore[arg-type]


def outside(w: WhatIf) -> dict[str, tuple[Symptom, Symptom]]:
    return {n: (cell(w.before, n).symptom, cell(w.after, n).symptom) for n in ("node-a", "node-b", "node-c")}


def effects(w: WhatIf) -> set[tuple[str, str, str]]:
    return {(a.node, a.vantage, a.effect) for a in w.altered if a.front_end.startswith("nodePort")}


@pytest.mark.parametrize(
    ("service", "changes", "wanted"),
    [
        (LOCAL, [("policy", "Cluster")], {"node-a": (C, C), "node-b": (T, C), "node-c": (T, C)}),
        (CLUSTER, [("policy", "Local")], {"node-a": (C, C), "node-b": (C, C), "node-c": (C, T)}),
        (LOCAL, [("pod-on", "node-b")], {"node-a": (C, C), "node-b": (T, C), "node-c": (T, T)}),
        (LOCAL, [("drain", "node-a")], {"node-a": (C, R), "node-b": (T, R), "node-c": (T, R)}),
        (LOCAL, [("delete-pod", LOCAL_POD)], {"node-a": (C, R), "node-b": (T, R), "node-c": (T, R)}),
        (LOCAL, [("cordon", "node-a")], {"node-a": (C, C), "node-b": (T, T), "node-c": (T, T)}),
        (LOCAL, [("scale", "3")], {"node-a": (C, C), "node-b": (T, C), "node-c": (T, C)}),
        (LOCAL, [("scale", "0")], {"node-a": (C, R), "node-b": (T, R), "node-c": (T, R)}),
        (
            LOCAL,
            [("drain", "node-a"), ("pod-on", "node-c")],
            {"node-a": (C, T), "node-b": (T, T), "node-c": (T, C)},
        ),
    ],
    ids=lambda value: "+".join(" ".join(c) for c in value) if isinstance(value, list) else None,
)
def test_the_outside_before_and_after(
    service: str, changes: list[tuple[str, str]], wanted: dict[str, tuple[Symptom, Symptom]]
) -> None:
    assert outside(asked(service, *changes)) == wanted


def test_what_is_altered_has_a_name() -> None:
    w = asked(LOCAL, ("policy", "Cluster"))
    assert ("node-b", "external", "newly reachable") in effects(w)
    assert ("node-a", "external", "source lost") in effects(w)
    assert not w.darkens
    back = asked(CLUSTER, ("policy", "Local"))
    assert ("node-c", "external", "newly dark") in effects(back)
    assert ("node-a", "external", "source kept") in effects(back)
    assert back.darkens
    more = asked(CLUSTER, ("pod-on", "node-c"))
    assert ("node-a", "external", "other endpoints") in effects(more)


def test_a_cordon_changes_no_cell_and_says_so() -> None:
    w = asked(LOCAL, ("cordon", "node-a"))
    assert w.altered == ()
    assert any("changes no rule" in note for note in w.notes)


def test_a_forward_policy() -> None:
    world = demo({("node-a", LEGACY): policy("filter", "FORWARD", "DROP")})
    assert cell(asked(LOCAL, ("policy", "Local"), world=world).before, "node-a").symptom is T
    w = asked(LOCAL, ("forward-policy", "ACCEPT"), world=world)
    assert outside(w)["node-a"] == (T, C)


def test_both_families_of_a_service_are_compared_each_with_itself() -> None:
    """The front ends of two families have the same port; neither may stand for the other."""
    world = programmed(
        demo(),
        CLUSTER,
        service_with(CLUSTER, cluster_ips=(*of_service(demo(), CLUSTER).cluster_ips, "fd00:96::12")),
    )
    w = asked(CLUSTER, ("policy", "Local"), world=world)
    titles = {m.title for m in w.before.frontends}
    assert len(titles) == len(w.before.frontends)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ([], UsageError),
        ([("policy", "local")], UsageError),
        ([("scale", "-1")], UsageError),
        ([("forward-policy", "DROP")], UsageError),
        ([("pod-on", "node-x")], NotFoundError),
        ([("drain", "node-x")], NotFoundError),
        ([("delete-pod", "nobody")], NotFoundError),
        ([("target-port", "0")], UsageError),
        ([("target-port", "http")], UsageError),
        ([("target-port", "no-such-port=80")], NotFoundError),
    ],
)
def test_what_makes_no_sense(changes: list[tuple[str, str]], error: type[Exception]) -> None:
    with pytest.raises(error):
        asked(LOCAL, *changes)


@pytest.mark.parametrize(("number", "connects"), [("8080", True), ("80=8080", True), ("8082", False)])
def test_another_target_port(number: str, connects: bool) -> None:
    """Nothing listens on 8081, where the Service leads; the pod listens on 8080."""
    sockets = {("node-a", "pods/edge_deadport-0/ss.txt"): lambda _: "tcp LISTEN 0 5 *:8080 *:*\n"}
    w = asked("edge/deadport-local", ("target-port", number), world=recorded(sockets))
    before, after = outside(w)["node-a"]
    assert (before, after) == (Symptom.REFUSED, Symptom.CONNECTS if connects else Symptom.REFUSED)


def test_one_more_pod_runs_the_same_program() -> None:
    sockets = {("node-a", "pods/edge_deadport-0/ss.txt"): lambda _: "tcp LISTEN 0 5 *:8080 *:*\n"}
    w = asked("edge/deadport-local", ("pod-on", "node-b"), world=recorded(sockets))
    assert outside(w)["node-b"][1] is Symptom.REFUSED


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--demo", "what-if", CLUSTER, "--policy", "Local"]) == 1
    text = capsys.readouterr().out
    assert "newly dark" in text
    assert text.index("Before") < text.index("After") < text.index("Newly dark")
    assert run(["--demo", "what-if", LOCAL, "--policy", "Cluster", "-o", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["kind"] == "WhatIf"
    assert {a["effect"] for a in data["altered"]} >= {"newly reachable", "source lost"}
    assert data["after"]["service"]["externalTrafficPolicy"] == "Cluster"
    assert run(["--demo", "what-if", LOCAL]) == 2
    assert "nothing to change" in capsys.readouterr().err
