"""A way that parts from another takes all with it that belongs to its packet."""

from __future__ import annotations

import pytest

from ktp.dataplane.packet import TCP, Conn, Packet
from ktp.dataplane.state import State


def _packet() -> Packet:
    return Packet(4, TCP, 1, 2, (32768, 60999), 80)


@pytest.mark.parametrize(
    "made", [_packet(), Conn("node-a", _packet()), State(_packet())], ids=lambda made: type(made).__name__
)
def test_a_copy_has_every_slot(made: Packet | Conn | State) -> None:
    for name in type(made).__slots__:
        setattr(made, name, made if name == "packet" else None)
    if isinstance(made, State):
        made.packet = _packet()
        copied: Packet | Conn | State = made.fork()
    else:
        copied = made.copy()
    assert [name for name in type(made).__slots__ if not hasattr(copied, name)] == []


def test_a_copied_packet_has_an_entry_of_its_own() -> None:
    one = _packet()
    one.ct = Conn("node-a", one)
    other = one.copy()
    assert other.ct is not None
    assert other.ct is not one.ct
    other.ct.mark = 7
    assert one.ct.mark == 0
