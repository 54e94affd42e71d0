"""What the parts of an nft rule come to: go on, leave the rule, a verdict, a fork."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ktp.dataplane.host import Host
from ktp.dataplane.nft_sets import Found
from ktp.dataplane.nft_values import UNKNOWN, Draw
from ktp.dataplane.state import ACCEPT, DROP, State, Verdict
from ktp.dataplane.state import UNKNOWN as UNDECIDED
from ktp.model.nftables import NftRule
from ktp.model.nftables import Verdict as NftVerdict


@dataclass(frozen=True, slots=True)
class RuleOfNft:
    """A rule in its place, as steps and findings name it."""

    table: str
    chain: str
    source: NftRule

    @property
    def text(self) -> str:
        """As `nft list ruleset` prints it."""
        return self.source.text

    @property
    def line(self) -> int:
        """Its line in a listing, 0 where it was read from JSON."""
        return self.source.line

    @property
    def position(self) -> int:
        """Its place in the chain, from 1 on."""
        return self.source.index + 1

    @property
    def comment(self) -> str | None:
        """Its comment."""
        return self.source.comment


# What an operation of a rule came to.
ON_CODE, NO_MATCH_CODE, RETURN, JUMP, GOTO, END, ASK, FORK = range(8)


class Outcome(NamedTuple):
    """`code` of the above; `data` the target chain, the Verdict, the reason to ask, or the ways of a fork."""

    code: int
    data: Any = None
    effect: str = ""


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

# Ends the effect of a rule that changed something and then did not match after all.
THEN_NO_MATCH: Final = "then no match"


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
        return Outcome(JUMP, target, f"jump {target}")
    if kind == "goto":
        return Outcome(GOTO, target, f"goto {target}")
    if kind == "accept":
        return Outcome(END, ACCEPT, "accept")
    if kind == "drop":
        return Outcome(END, DROP, "drop")
    if kind == "return":
        return Outcome(RETURN, None, "return")
    # NFT_CONTINUE goes on with the rule's next expression (nft_do_chain): after a verdict map there may be some.
    return Outcome(ON_CODE, None, "continue")


def maybe_verdicts(found: Found, why: str) -> Outcome:
    """A lookup that may find one of several elements, or none: all are followed."""
    ways: list[Way] = []
    for verdict in dict.fromkeys(found.maybe):
        if verdict is UNKNOWN:
            return Outcome(ASK, why)
        ways.append(Way(0.0, always(NO_MATCH if verdict is None else verdict_outcome(verdict))))
    return Outcome(FORK, tuple(ways), why)


def fork(ways: Sequence[Way], state: State, host: Host, hook: str) -> Outcome:
    """The ways of a draw; of a single one its outcome."""
    if len(ways) == 1:
        return ways[0].act(state, host, hook)
    return Outcome(FORK, tuple(ways))


def assume_draw(state: State, draw: Draw) -> None:
    """Says what the draw takes for granted."""
    if draw.assumption is not None:
        state.assume(draw.assumption)
