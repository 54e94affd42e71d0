"""What was taken for granted: in words, and as JSON (design §5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ktp.model.assumption import Assumption

_MOST_NAMES = 6


def assumptions_json(assumptions: Iterable[Assumption]) -> list[dict[str, str]]:
    """Objects of `evidence` and `node` (each absent where it is of none), `taken`, and `detail` where there is one."""
    return [
        {
            **({"evidence": a.evidence.value} if a.evidence is not None else {}),
            **({"node": a.node} if a.node else {}),
            "taken": a.taken,
            **({"detail": a.detail} if a.detail else {}),
        }
        for a in assumptions
    ]


def assumed_words(assumptions: Iterable[Assumption], every: int = 0) -> list[str]:
    """Each once, with the nodes that it is about where there are several; what stands in for evidence first.

    `every` is how many nodes there are: of all nothing more is said where they are many.
    """
    given = sorted(assumptions, key=lambda a: a.evidence is None)
    several = len({a.node for a in given if a.node}) > 1
    nodes: dict[str, dict[str, None]] = {}
    for a in given:
        where = nodes.setdefault(a.taken, {})
        if a.node:
            where.setdefault(a.node)
    return [
        taken + (f" ({_where(list(where), every)})" if where and several else "")
        for taken, where in nodes.items()
    ]


def _where(names: Sequence[str], every: int) -> str:
    return f"all {every} nodes" if len(names) == every > _MOST_NAMES else some_nodes(names)


def some_nodes(names: Sequence[str]) -> str:
    """The names, or how many they are with the first three."""
    if len(names) > _MOST_NAMES:
        return f"{len(names)} nodes: {', '.join(names[:3])}, …"
    return ", ".join(names)
