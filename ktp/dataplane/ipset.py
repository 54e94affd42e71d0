"""Membership in an ipset (ipset(8)), compiled to dictionaries.

All hash:*, bitmap:* and list:set types; nomatch, wildcards of interfaces, protocol names, ranges. What the dump cannot
tell (timeouts that may have run out since) is answered as of the dump.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from ipaddress import ip_network

from ktp.dataplane.packet import ICMP, ICMP6, PROTOCOLS, Packet, to_int
from ktp.model.host import IpSet

Tester = Callable[[Packet, str], "bool | None"]

_MOST_PORTS = 256  # how many elements are tried for a port of which only the range is known


def compile_set(name: str, sets: Mapping[str, IpSet], seen: tuple[str, ...] = ()) -> Tester | None:
    """The test of set `name`: (packet, directions as in `--match-set NAME src,dst`) → member or not, None unknown.

    None where the set is not in the dump, or of a type that is not modelled.
    """
    found = sets.get(name)
    if found is None or name in seen:
        return None
    kind, _, fields_text = found.type.partition(":")
    fields = tuple(fields_text.split(","))
    family = 6 if found.family == "inet6" or found.options.get("family") == "inet6" else 4
    if kind == "list":
        members = [compile_set(entry, sets, (*seen, name)) for entry, _ in found.entries]
        if any(m is None for m in members):
            return None
        testers = [m for m in members if m is not None]
        negated = [("nomatch" in options) for _, options in found.entries]

        def in_list(p: Packet, directions: str) -> bool | None:
            unknown = False
            for tester, no in zip(testers, negated, strict=True):
                answer = tester(p, directions)
                if answer is None:
                    unknown = True
                elif answer and not no:
                    return True
            return None if unknown else False

        return in_list
    if kind not in ("hash", "bitmap"):
        return None
    if any(f not in ("ip", "net", "port", "iface", "mark", "mac") for f in fields) or "mac" in fields:
        return None
    return _Elements(found, fields, family).test


class _Elements:
    """The elements of one hash or bitmap set.

    For each combination of prefix lengths that occurs, a dictionary of exact keys: the way the kernel's hash:net
    types look up, most specific first (`nomatch` entries win where they are as specific or more).
    """

    def __init__(self, ipset: IpSet, fields: tuple[str, ...], family: int) -> None:
        self._fields = fields
        self._family = family
        self._bits = 32 if family == 4 else 128
        self._markmask = int(ipset.options.get("markmask", "0xffffffff"), 0)
        self._tables: dict[tuple[int, ...], dict[tuple[object, ...], bool]] = {}
        self._ranges: list[tuple[list[tuple[object, object]], bool]] = []
        self._unknown = False
        for element, options in ipset.entries:
            if not self._add(element, "nomatch" not in options):
                self._unknown = True
        self._order = sorted(self._tables, key=sum, reverse=True)
        self._ports = self._known_ports()

    def _add(self, element: str, positive: bool) -> bool:
        parts = element.split(",")
        if len(parts) != len(self._fields):
            return False
        lengths: list[int] = []
        key: list[object] = []
        ranged: list[tuple[object, object]] = []
        is_range = False
        for field, part in zip(self._fields, parts, strict=True):
            try:
                if field in ("ip", "net"):
                    if "-" in part and ":" not in part:
                        low, _, high = part.partition("-")
                        ranged.append((to_int(low)[1], to_int(high)[1]))
                        is_range = True
                        lengths.append(0)
                        key.append(0)
                        continue
                    net = ip_network(part, strict=False)
                    lengths.append(net.prefixlen)
                    number = int(net.network_address)
                    key.append(number)
                    ranged.append((number, number | (1 << (self._bits - net.prefixlen)) - 1))
                elif field == "port":
                    proto, _, port = part.rpartition(":")
                    number = PROTOCOLS.get(proto.lower(), 6) if proto else 6
                    if "-" in port:
                        low, _, high = port.partition("-")
                        ranged.append(((number, int(low)), (number, int(high))))
                        is_range = True
                    elif "/" in port or not port.isdigit():
                        return False
                    else:
                        ranged.append(((number, int(port)), (number, int(port))))
                    key.append((number, int(port) if port.isdigit() else 0))
                elif field == "mark":
                    key.append(int(part, 0))
                    ranged.append((int(part, 0), int(part, 0)))
                else:
                    key.append(part)
                    ranged.append((part, part))
            except ValueError:
                return False
        if is_range:
            self._ranges.append((ranged, positive))
        else:
            self._tables.setdefault(tuple(lengths), {})[tuple(key)] = positive
        return True

    def _known_ports(self) -> list[int]:
        """The ports of all elements, sorted, to ask about a port of which only the range is known."""
        if "port" not in self._fields:
            return []
        at = self._fields.index("port")
        ports = set()
        for table in self._tables.values():
            for key in table:
                pair = key[at]
                assert isinstance(pair, tuple)
                ports.add(pair[1])
        for ranged, _ in self._ranges:
            low, high = ranged[at]
            assert isinstance(low, tuple)
            assert isinstance(high, tuple)
            ports.update(range(low[1], high[1] + 1))
        return sorted(ports)

    def _test_any_port(self, p: Packet, directions: str, ports: tuple[int, int]) -> bool | None:
        """The answer for a port that is one of a range: False where no element of the set can match, else unknown."""
        first, last = bisect_left(self._ports, ports[0]), bisect_right(self._ports, ports[1])
        if last - first > _MOST_PORTS:
            return None
        for port in self._ports[first:last]:
            q = p.copy()
            q.sport = port if isinstance(p.sport, tuple) else p.sport
            q.dport = port if isinstance(p.dport, tuple) else p.dport
            if self.test(q, directions) is not False:
                return None
        return None if self._unknown else False

    def test(self, p: Packet, directions: str) -> bool | None:
        """Whether the packet's fields, taken in `directions`, are in the set."""
        if p.family != self._family and any(f in ("ip", "net") for f in self._fields):
            return False
        where = directions.split(",")
        if len(where) < len(self._fields):
            return None if len(where) < 1 else False
        values: list[object] = []
        for field, direction in zip(self._fields, where, strict=False):
            src = direction == "src"
            if field in ("ip", "net"):
                values.append(p.src if src else p.dst)
            elif field == "port":
                if p.proto in (ICMP, ICMP6):
                    t, c = p.icmp or (8, 0)
                    values.append((p.proto, t << 8 | c))
                else:
                    port = p.sport if src else p.dport
                    if not isinstance(port, int):
                        return self._test_any_port(p, directions, port)
                    values.append((p.proto, port))
            elif field == "iface":
                values.append((p.iif if src else p.oif) or "")
            elif field == "mark":
                values.append(p.mark & self._markmask)
        for lengths in self._order:
            table = self._tables[lengths]
            key: list[object] = []
            n = 0
            for field, value in zip(self._fields, values, strict=True):
                if field in ("ip", "net"):
                    assert isinstance(value, int)
                    shift = self._bits - lengths[n]
                    n += 1
                    key.append(value >> shift << shift)
                else:
                    key.append(value)
            hit = table.get(tuple(key))
            if hit is not None:
                return hit
        if self._fields == ("port",):  # bitmap:port knows no protocol but tcp and udp
            for proto in (6, 17):
                port_value = values[0]
                assert isinstance(port_value, tuple)
                if port_value[0] in (6, 17) and self._tables.get((), {}).get(((proto, port_value[1]),)):
                    return True
        for ranged, positive in self._ranges:
            if all(low <= v <= high for (low, high), v in zip(ranged, values, strict=True)):  # type: ignore[operator]
                return positive
        return None if self._unknown else False
