"""How outside traffic spreads over the pods, for each balancer and policy, and the fewest moves that even it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.diagnose.share import BALANCERS, load_shares, moves_to_even
from ktp.kubeproxy.changes import with_policy, with_ready_pod_on
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Cell, CellEndpoint, LoadShare
from ktp.model.trace import Disposition, Symptom
from tests.unit.diagnose.worlds import LOCAL, Asked, demo, programmed

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), min_size=1)


# --------------------------------------------------------------------------------------------------- whole clusters


def world(policy: str, *nodes: str) -> Mapping[str, LoadShare]:
    """The shares by balancer: one pod on node-a, and one more on each of `nodes`."""
    base = grown = demo()
    for node in nodes:
        grown = with_ready_pod_on(grown, LOCAL, node)
    cluster = with_policy(grown.cluster, LOCAL, policy)
    changed = programmed(replace(base, nodes=grown.nodes), LOCAL, lambda _: cluster)
    shares = Asked(changed, LOCAL).diagnosis().shares
    assert {s.policy for s in shares} == {policy}
    return {s.balancer: s for s in shares if s.frontend.startswith("nodePort")}


def by_node(share: LoadShare) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {}
    for pod in share.pods:
        out.setdefault(pod.node or "", []).append(round(pod.share, 4))
    return out


@pytest.mark.parametrize(
    ("balancer", "shares", "lost", "ratio"),
    [
        ("all-nodes", {"node-a": [1 / 3], "node-b": [1 / 9] * 3}, 1 / 3, 3),
        ("nodes-with-pods", {"node-a": [1 / 2], "node-b": [1 / 6] * 3}, 0, 3),
        ("by-pods", {"node-a": [1 / 4], "node-b": [1 / 4] * 3}, 0, 1),
    ],
)
def test_local(balancer: str, shares: dict[str, list[float]], lost: float, ratio: float) -> None:
    """A node's part is its pods' to share, however many they are; a node without pods loses its part."""
    found = world("Local", "node-b", "node-b", "node-b")[balancer]
    assert by_node(found) == {n: pytest.approx(v, abs=1e-4) for n, v in shares.items()}
    assert found.lost == pytest.approx(lost)
    assert found.ratio == pytest.approx(ratio)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_cluster(balancer: str) -> None:
    """Every node serves every pod alike: no balancer makes it uneven, and none loses anything."""
    found = world("Cluster", "node-b", "node-b", "node-b")[balancer]
    assert by_node(found) == {"node-a": [0.25], "node-b": [0.25] * 3}
    assert found.lost == pytest.approx(0)
    assert found.ratio == pytest.approx(1)


def test_local_with_a_pod_on_every_node_is_even() -> None:
    for found in world("Local", "node-b", "node-c").values():
        assert [p.share for p in found.pods] == pytest.approx([1 / 3] * 3)
        assert found.ratio == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------ properties


def entries(counts: Mapping[str, int], policy: str) -> list[Any]:
    """Cells as they are where so many endpoints are on each node."""
    every = [(f"{n}{i}", n) for n, c in counts.items() for i in range(c)]
    out = []
    for node in counts:
        here = [e for e in every if e[1] == node or policy == "Cluster"]
        cell = Cell(
            vantage="external",
            symptom=Symptom.CONNECTS if here else Symptom.TIMES_OUT,
            disposition=Disposition.DELIVERED if here else Disposition.DROPPED,
            reason="",
            basis="rules",
            endpoints=tuple(
                CellEndpoint(
                    ip=name,
                    port=80,
                    name=name,
                    node=home,
                    probability=1 / len(here),
                    symptom=Symptom.CONNECTS,
                )
                for name, home in here
            ),
        )
        out.append(
            SimpleNamespace(is_external=True, vantage=Vantage.EXTERNAL, cell=cell, title="f", node=node)
        )
    return out


@given(COUNTS, st.sampled_from(["Local", "Cluster"]))
def test_shares_and_losses_are_the_whole(counts: dict[str, int], policy: str) -> None:
    for found in load_shares(entries(counts, policy), policy, counts):
        assert sum(p.share for p in found.pods) + found.lost == pytest.approx(1)
        assert len(found.pods) == sum(counts.values())
        assert all(0 <= p.share <= 1 for p in found.pods)
        assert [p.share for p in found.pods] == sorted((p.share for p in found.pods), reverse=True)
        if found.ratio is not None:
            assert found.ratio >= 1 - 1e-9


@given(COUNTS)
def test_what_each_balancer_promises(counts: dict[str, int]) -> None:
    found = {s.balancer: s for s in load_shares(entries(counts, "Local"), "Local", counts)}
    holding = [c for c in counts.values() if c]
    if not holding:
        assert found == {}
        return
    assert set(found) == set(BALANCERS)
    assert found["by-pods"].ratio == pytest.approx(1)
    assert found["nodes-with-pods"].lost == pytest.approx(0)
    assert found["nodes-with-pods"].ratio == pytest.approx(max(holding) / min(holding))
    assert found["all-nodes"].lost == pytest.approx(1 - len(holding) / len(counts))


@given(COUNTS)
def test_after_the_moves_the_nodes_with_pods_differ_by_one_at_most(counts: dict[str, int]) -> None:
    after = dict(counts)
    for giver, taker in moves_to_even(counts):
        after[giver] -= 1
        after[taker] += 1
        assert giver != taker
    holding = [after[n] for n, c in counts.items() if c]
    assert max(holding, default=0) - min(holding, default=0) <= 1
    assert sum(after.values()) == sum(counts.values())
    assert all(after[n] == 0 for n, c in counts.items() if c == 0), "no node gets its first pod"


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_no_fewer_moves_would_do(counts: list[int]) -> None:
    named = {f"n{i}": c for i, c in enumerate(counts)}
    total, number = sum(counts), len(counts)
    low, extra = divmod(total, number)
    fewest = min(
        sum(max(0, c - w) for c, w in zip(counts, wanted, strict=True))
        for wanted in product((low, low + 1), repeat=number)
        if sum(wanted) == total and sum(w > low for w in wanted) == extra
    )
    assert len(moves_to_even(named)) == fewest
