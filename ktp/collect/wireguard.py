"""WireGuard's devices and peers as `wg show all dump` prints them (wg(8)), but for the private and preshared keys.

Each column is asked for by itself, those of the keys never: nothing that ktp runs prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

MODULE = "/sys/module/wireguard"  # has a version, and so a folder also where it is built in
_OF_DEVICE = ("public-key", "listen-port", "fwmark")
_OF_PEER = ("endpoints", "allowed-ips", "latest-handshakes", "transfer", "persistent-keepalive")
COLUMNS = (*_OF_DEVICE, *_OF_PEER)
HIDDEN = "(hidden)"
# Fields of a device's line and of a peer's, and which of them is what.
_DEVICE, _PEER = 5, 9
_SECRET = {_DEVICE: 1, _PEER: 2}
_PUBLIC_KEY = {_DEVICE: 2, _PEER: 1}


def wireguard_command(column: str) -> str:
    """The command that prints a column of all devices or of all peers."""
    return f"wg show all {column}"


def wireguard_dump(columns: Mapping[str, str]) -> str:
    """`wg show all dump` of what the commands printed, by column. What came or went meanwhile is left out."""
    devices: dict[str, list[str]] = {}
    peers: dict[str, dict[str, list[str]]] = {}
    for column in _OF_DEVICE:
        for line in columns[column].splitlines():
            name, _, value = line.partition("\t")
            devices.setdefault(name, [name, HIDDEN]).append(value)
    for column in _OF_PEER:
        name = ""
        for line in columns[column].splitlines():
            # Of endpoints wireguard-tools 1.0.20210914 names the device in the first line alone.
            *device_of, key, value = line.split("\t", 2)
            name = device_of[0] if device_of else name
            row = peers.setdefault(name, {}).setdefault(key, [name, key, HIDDEN])
            # Of allowed IPs alone the separator differs.
            row.append(value.replace(" ", ",") if column == "allowed-ips" else value)
    rows = []  # `transfer` prints two columns
    for name, device in devices.items():
        if len(device) == _DEVICE:
            rows += [device, *(row for row in peers.get(name, {}).values() if len(row) == _PEER - 1)]
    return _joined(rows)


def without_keys(dump: str) -> str:
    """A `wg show all dump` that somebody made by hand, without its keys; lines of another form are left out."""
    return _joined(_rows(dump))


def renamed(
    dump: str,
    device: Callable[[str], str],
    name: Callable[[str, str], str],
    addresses: Callable[[str], str],
) -> str:
    """The same with other names, public keys and addresses, and of times and bytes whether there are any.

    `name` gives a pseudonym for a kind of name, "key", and the name.
    """
    rows = list(_rows(dump))
    for row in rows:
        at = _PUBLIC_KEY[len(row)]
        row[0], row[at] = device(row[0]), name("key", row[at])
        if len(row) == _PEER:
            row[3:5] = map(addresses, row[3:5])
            row[5:8] = ["0" if number == "0" else "1" for number in row[5:8]]
    return _joined(rows)


def _rows(dump: str) -> Iterator[list[str]]:
    for line in dump.splitlines():
        row = line.split("\t")
        if len(row) in _SECRET:
            row[_SECRET[len(row)]] = HIDDEN
            yield row


def _joined(rows: Iterable[list[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)
