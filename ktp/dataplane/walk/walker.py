"""Flows walked over one topology: the loop that follows each way from room to room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ktp.dataplane.hooks import Group
from ktp.dataplane.host import Host
from ktp.dataplane.places import Places
from ktp.dataplane.topology import Attached, Topology
from ktp.dataplane.walk import doors
from ktp.dataplane.walk.arrival import enter, prerouting, route_in
from ktp.dataplane.walk.bridge import bridge_forward
from ktp.dataplane.walk.context import Leaf, Outer, Walk
from ktp.dataplane.walk.leaving import emit
from ktp.dataplane.walk.pods import reach
from ktp.dataplane.walk.sockets import answer_out, deliver
from ktp.dataplane.walk.start import begin
from ktp.dataplane.walk.through import forward, local_in, output, postrouting
from ktp.model.trace import Flow


class Walker:
    """Walks flows over one topology. What is compiled for one flow serves the next."""

    def __init__(self, topology: Topology, beside: Walker | None = None) -> None:
        """Nothing is compiled before a flow needs it.

        What `beside` has compiled of a node that is the very same object in its topology serves this walker, too.
        """
        self.topology = topology
        self._places: Places = Places(topology, beside._places if beside is not None else None)
        self._holding: dict[tuple[str, str], Walker] = {}
        self._outer: Outer = {}

    def walk(self, flow: Flow, longest: tuple[int, int] | None = None) -> list[Leaf]:
        """Every way that the flow may take, to its end. Raises ValueError where an address or protocol is none.

        With `longest` packets of so many bytes are sent there and back, as once a connection is open, instead of its
        first: a way ends where one is too long and its sender is not told (`TooLong`).
        """
        return self._follow(partial(begin, flow=flow), longest=longest)

    def _follow(
        self,
        start: Callable[[Walk], None],
        *,
        one_way: bool = False,
        echo: int | None = None,
        longest: tuple[int, int] | None = None,
    ) -> list[Leaf]:
        walk = Walk(
            self._places, self._outer, self._alone, self._aside, one_way=one_way, echo=echo, longest=longest
        )
        start(walk)
        while (door := walk.next()) is not None:
            # The room behind the door does its part, and says through which doors the packet goes on.
            _ROOMS[type(door)](walk, *door)
        return walk.leaves

    def _alone(self, flow: Flow, echo: int | None) -> list[Leaf]:
        return self._follow(partial(begin, flow=flow), one_way=echo is None, echo=echo)

    def _aside(self, start: Callable[[Walk], None]) -> list[Leaf]:
        return self._follow(start, one_way=True)

    def host(self, name: str, pod: str = "") -> Host | None:
        """The compiled node, or a pod's network namespace there; None where nothing was read of it."""
        return self._places.inside(Attached(name=pod, node=name)) if pod else self._places.host(name)

    def groups(self, node: str, family: int, hook: str, pod: str = "") -> tuple[Group, ...]:
        """What hangs at `hook` of a node or pod, first to run first; () where nothing was read of it."""
        host = self.host(node, pod)
        return self._places.groups_of(host, family, hook) if host is not None else ()

    def may_hold(self, address: str) -> tuple[str, ...]:
        """The nodes of which an address may be that nobody is known to have."""
        return self._places.may_hold(address)

    def holding(self, node: str, address: str) -> Walker:
        """A walker of the same world in which `node`, one of `may_hold`, has the address."""
        found = self._holding.get((node, address))
        if found is None:
            found = self._holding[node, address] = Walker(self._places.holding(node, address))
        return found


_ROOMS: Mapping[type[doors.Door], Callable[..., None]] = {
    doors.Enter: enter,
    doors.PreRouting: prerouting,
    doors.RouteIn: route_in,
    doors.Forward: forward,
    doors.BridgeForward: bridge_forward,
    doors.LocalIn: local_in,
    doors.Deliver: deliver,
    doors.Output: output,
    doors.PostRouting: postrouting,
    doors.Emit: emit,
    doors.Reach: reach,
    doors.AnswerOut: answer_out,
}
"""Who is behind each door: called with the walk and what the door knows."""
