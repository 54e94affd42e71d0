"""How outside traffic spreads over the pods, and what would even it out.

Under Local each node hands its part to its own pods: a node with one pod gives it as much as a node with five gives to
all five. Under Cluster every node spreads over all pods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ktp.diagnose.case import Entry
from ktp.kubeproxy.outcome import Vantage
from ktp.model.diagnosis import Cell, CellEndpoint, LoadShare, PodShare
from ktp.model.trace import Symptom

BALANCERS = ("all-nodes", "nodes-with-pods", "by-pods")


def load_shares(entries: Sequence[Entry], policy: str, local_counts: Mapping[str, int]) -> list[LoadShare]:
    """The shares of every external front end, from its `external` cells; `local_counts` endpoints by node."""
    out: list[LoadShare] = []
    by_title: dict[str, list[Entry]] = {}
    for e in entries:
        if e.is_external and e.vantage is Vantage.EXTERNAL and e.cell.symptom is not Symptom.UNKNOWN:
            by_title.setdefault(e.title, []).append(e)
    for title, mine in by_title.items():
        cells = {e.node: e.cell for e in mine}
        if not any(c.endpoints for c in cells.values()):
            continue
        for balancer in BALANCERS:
            weights = _weights(balancer, cells, local_counts)
            if weights:
                out.append(_spread(title, policy, balancer, weights, cells))
    return out


def _weights(balancer: str, cells: Mapping[str, Cell], counts: Mapping[str, int]) -> dict[str, float]:
    """The part of the connections that each node gets; together 1."""
    if balancer == "all-nodes":
        return {n: 1 / len(cells) for n in cells}
    holding = {n: counts.get(n, 0) for n in cells if counts.get(n, 0) > 0}
    if not holding:
        return {}
    if balancer == "nodes-with-pods":
        return {n: 1 / len(holding) for n in holding}
    total = sum(holding.values())
    return {n: c / total for n, c in holding.items()}


def _spread(
    title: str, policy: str, balancer: str, weights: Mapping[str, float], cells: Mapping[str, Cell]
) -> LoadShare:
    share: dict[str, float] = {}
    home: dict[str, str | None] = {}
    arrived = 0.0
    # Nodes that choose among the same endpoints are counted together: there may be thousands of each.
    choices: dict[int, tuple[tuple[CellEndpoint, ...], float]] = {}
    for node, cell in cells.items():
        _, weight = choices.get(id(cell.endpoints), (cell.endpoints, 0.0))
        choices[id(cell.endpoints)] = cell.endpoints, weight + weights.get(node, 0.0)
    for endpoints, _ in choices.values():  # those that some node knows count, also where they get nothing
        for e in endpoints:
            name = e.name or f"{e.ip}:{e.port}"
            share.setdefault(name, 0.0)
            home[name] = e.node
    for endpoints, weight in choices.values():
        for e in endpoints if weight else ():
            if e.symptom is Symptom.CONNECTS and e.probability is not None:
                share[e.name or f"{e.ip}:{e.port}"] += weight * e.probability
                arrived += weight * e.probability
    values = list(share.values())
    ratio = None
    if values and max(values) > 0:
        ratio = max(values) / min(values) if min(values) > 0 else float("inf")
    return LoadShare(
        frontend=title,
        policy=policy,
        balancer=balancer,
        pods=tuple(
            PodShare(endpoint=n, node=home[n], share=v) for n, v in sorted(share.items(), key=lambda i: -i[1])
        ),
        lost=max(0.0, 1 - arrived),
        ratio=ratio,
    )


def moves_to_even(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """The fewest pods to move, as (from node, to node), so that nodes with pods hold equally many (±1).

    Only nodes that hold pods already are looked at: an even spread over them is what evens the pods' shares out.
    """
    nodes = sorted((n for n, c in counts.items() if c > 0), key=lambda n: (-counts[n], n))
    if len(nodes) < 2:
        return []
    total = sum(counts[n] for n in nodes)
    low, extra = divmod(total, len(nodes))
    wanted = {n: low + (1 if i < extra else 0) for i, n in enumerate(nodes)}
    have = {n: counts[n] for n in nodes}
    moves = []
    for giver in nodes:
        for taker in reversed(nodes):
            while have[giver] > wanted[giver] and have[taker] < wanted[taker]:
                have[giver] -= 1
                have[taker] += 1
                moves.append((giver, taker))
    return moves
