"""One flow's walk: whom it asks who is where, the ways that are still open, and the ends of those that are not."""

from __future__ import annotations

from collections.abc import Callable

from ktp.dataplane.places import Places
from ktp.dataplane.state import State, StepRecord
from ktp.dataplane.walk.doors import Door
from ktp.model.record import dataclass
from ktp.model.trace import Disposition, Flow, Symptom

MAX_HOPS = 12
"""Nodes that a packet may come to; more is a circle."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """The end of one way."""

    state: State
    disposition: Disposition
    symptom: Symptom
    reason: str
    step: StepRecord | None = None
    node: str = ""
    kind: str = ""
    pod: str = ""  # in whose network namespace on the node


Outer = dict[tuple[Flow, int | None], list[Leaf]]
"""The ends of tunnels' own packets by flow and the mark of what answers them; kept between flows, [] while walked."""


class Walk:
    """The worklist of one flow. A room says with `go` where a way goes on, and with `end` that it does not.

    Ways are followed depth first, in the order in which a room names them: the first one to its end, then the next.
    `one_way`: what becomes of an answer is not asked, as of tunnels' own packets; `alone` walks such a flow, and
    `aside` what a room begins. `echo`: whatever port of a node it comes to answers, with this mark (`alone` with a
    second argument); None: its sockets tell. `longest` is the length of the packets there and back, in bytes, where
    full ones are walked instead of a connection's first.
    """

    __slots__ = (
        "_ended",
        "_new",
        "_open",
        "alone",
        "aside",
        "echo",
        "leaves",
        "longest",
        "one_way",
        "outer",
        "owners",
        "places",
        "topology",
    )

    def __init__(
        self,
        places: Places,
        outer: Outer,
        alone: Callable[[Flow, int | None], list[Leaf]],
        aside: Callable[[Callable[[Walk], None]], list[Leaf]],
        *,
        one_way: bool = False,
        echo: int | None = None,
        longest: tuple[int, int] | None = None,
    ) -> None:
        self.places = places
        self.topology = places.topology
        self.owners = places.owners
        self.outer = outer
        self.alone = alone
        self.aside = aside
        self.longest = longest
        self.one_way = one_way
        self.echo = echo
        self.leaves: list[Leaf] = []
        self._new: list[Door | Leaf] = []  # by the room that is at work, in its order
        self._open: list[Door | Leaf] = []  # the next one last
        self._ended = 0  # leaves among the new

    @property
    def is_tunnels(self) -> bool:
        """Whether it is a tunnel's own packets that are walked."""
        return self.one_way or self.echo is not None

    def go(self, door: Door) -> None:
        """A way goes on there."""
        self._new.append(door)

    def end(self, leaf: Leaf) -> None:
        """A way ends."""
        self._new.append(leaf)
        self._ended += 1

    def next(self) -> Door | None:
        """Where the way goes on that is to be followed now, None at the end of all; what ends before it is kept."""
        new, still_open = self._new, self._open
        if len(new) == 1 and not self._ended:
            return new.pop()  # type: ignore[return-value]  # no leaf
        new.reverse()
        still_open += new
        new.clear()
        self._ended = 0
        while still_open:
            item = still_open.pop()
            if not isinstance(item, Leaf):
                return item
            self.leaves.append(item)
        return None

    def count_ended(self) -> int:
        """The ways that have ended so far."""
        return len(self.leaves) + self._ended
