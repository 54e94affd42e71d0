"""The doors between the rooms of a walk: where a packet goes on, and what the room there has to know."""

from __future__ import annotations

from typing import NamedTuple

from ktp.dataplane.host import Host
from ktp.dataplane.state import State
from ktp.dataplane.topology import Attached
from ktp.model.xfrm import SecurityState


class Enter(NamedTuple):
    """It arrives on an interface of a node; `begun` where a program has seen it there, and set `mark`.

    `physin` is the port of a bridge by which it came, "?" where it is one without a name, None at other devices.
    `secured` is the state of IPsec that it came out of there.
    """

    state: State
    host: Host
    iif: str
    physin: str | None
    begun: bool = False
    mark: int = 0
    secured: SecurityState | None = None


class PreRouting(NamedTuple):
    """It comes from its device to the stack."""

    state: State
    host: Host


class RouteIn(NamedTuple):
    """What came in is to be routed."""

    state: State
    host: Host


class Forward(NamedTuple):
    """It is not for this node and is routed on, out by `oif`."""

    state: State
    host: Host
    oif: str


class BridgeForward(NamedTuple):
    """It stays on the bridge that it came by."""

    state: State
    host: Host
    bridge: str


class LocalIn(NamedTuple):
    """It is for this node."""

    state: State
    host: Host


class Deliver(NamedTuple):
    """It has passed INPUT: a socket is looked for."""

    state: State
    host: Host


class Output(NamedTuple):
    """The node sends it by its next hop: a process, its stack, or IPVS."""

    state: State
    host: Host


class PostRouting(NamedTuple):
    """It has its next hop, and is about to leave."""

    state: State
    host: Host


class Emit(NamedTuple):
    """It leaves the node by its `oif`."""

    state: State
    host: Host


class Reach(NamedTuple):
    """It comes to a pod, or to an endpoint that is no node; `host` None where the node before it is not known."""

    state: State
    host: Host | None
    attached: Attached


class AnswerOut(NamedTuple):
    """The node itself sends an answer or an error."""

    state: State
    host: Host


Door = (
    Enter
    | PreRouting
    | RouteIn
    | Forward
    | BridgeForward
    | LocalIn
    | Deliver
    | Output
    | PostRouting
    | Emit
    | Reach
    | AnswerOut
)
