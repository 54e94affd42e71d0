"""The walk of a flow: from its sender through every node to its end, and the answer's way back.

One packet opens a connection (a TCP SYN, the first datagram) and walks raw, conntrack, mangle, nat, routing, filter,
security as the kernel orders them; where it arrives, the answer walks back through the same nodes' connection
tracking. Every step is recorded as it is decided.

A walk goes through rooms, modules with one job each. A room takes the packet's `State` and the `Walk`, does its part,
and names the doors (`doors`) through which the packet goes on; `walker` opens them one after the other. So no room
calls one that comes earlier on a packet's way, and none keeps anything between two calls.
"""

from ktp.dataplane.state import LimitExceededError
from ktp.dataplane.topology import Attached, Topology
from ktp.dataplane.walk.context import Leaf
from ktp.dataplane.walk.walker import Walker

__all__ = ["Attached", "Leaf", "LimitExceededError", "Topology", "Walker"]
