"""What the parts of an nft rule come to: go on, leave the rule, a verdict, a fork."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from ktp.dataplane.host import Host
from ktp.dataplane.nft_sets import Found
from ktp.dataplane.nft_values import UNKNOWN, Draw
from ktp.dataplane.state import ACCEPT, DROP, RuleOfNft, State, Verdict
from ktp.dataplane.state import UNKNOWN as UNDECIDED
from ktp.model.effect import Accept, Count, Drop, Effect, Goto, Jump, Return
from ktp.model.nftables import Verdict as NftVerdict

# What an operation of a rule came to.
ON_CODE, NO_MATCH_CODE, RETURN, JUMP, GOTO, END, ASK, FORK = range(8)


class Outcome(NamedTuple):
    """`code` of the above; `data` the target chain, the Verdict, the reason to ask, or the ways of a fork."""

    code: int
    data: Any = None
    effect: Effect | None = None
    why: str = ""  # where the ways of a fork are unknown, and not drawn


class Way(NamedTuple):
    """One way of a fork: its chance (0.0 where it is not a matter of chance but unknown), and what follows."""

    chance: float
    act: Callable[[State, Host, str], Outcome]


ON: Final = Outcome(ON_CODE)
NO_MATCH: Final = Outcome(NO_MATCH_CODE)

Action = Callable[[State, Host, str], Outcome]
Test = Callable[[State, Host, str], "bool | None"]


class Tests(NamedTuple):
    """Conditions that stand together: all must hold. `why` says why each may be unknown."""

    tests: tuple[Test, ...]
    why: tuple[str, ...]


Operation = Tests | Action


class CompiledRule(NamedTuple):
    """A rule ready to run."""

    rule: RuleOfNft
    operations: tuple[Operation, ...]


def always(outcome: Outcome) -> Action:
    """An action that comes to the same whatever the packet."""
    return lambda state, host, hook: outcome


def undecided(state: State, why: str) -> Outcome:
    """What follows is not known."""
    return Outcome(END, Verdict(UNDECIDED, state, why))


def verdict_outcome(verdict: NftVerdict) -> Outcome:
    """A verdict statement's outcome."""
    kind, target = verdict.kind, verdict.target
    if kind == "jump":
        return Outcome(JUMP, target, Jump(target or ""))
    if kind == "goto":
        return Outcome(GOTO, target, Goto(target or ""))
    if kind == "accept":
        return Outcome(END, ACCEPT, Accept())
    if kind == "drop":
        return Outcome(END, DROP, Drop())
    if kind == "return":
        return Outcome(RETURN, None, Return())
    # NFT_CONTINUE goes on with the rule's next expression (nft_do_chain): after a verdict map there may be some.
    return Outcome(ON_CODE, None, Count("continue"))


def maybe_verdicts(found: Found, why: str) -> Outcome:
    """A lookup that may find one of several elements, or none: all are followed."""
    ways: list[Way] = []
    for verdict in dict.fromkeys(found.maybe):
        if verdict is UNKNOWN:
            return Outcome(ASK, why)
        ways.append(Way(0.0, always(NO_MATCH if verdict is None else verdict_outcome(verdict))))
    return Outcome(FORK, tuple(ways), why=why)


def fork(ways: Sequence[Way], state: State, host: Host, hook: str) -> Outcome:
    """The ways of a draw; of a single one its outcome."""
    if len(ways) == 1:
        return ways[0].act(state, host, hook)
    return Outcome(FORK, tuple(ways))


def assume_draw(state: State, draw: Draw) -> None:
    """Says what the draw takes for granted."""
    if draw.assumption is not None:
        state.assume(draw.assumption)
