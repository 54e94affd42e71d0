"""Consistent pseudonyms for addresses and names, so that a redacted snapshot still answers as the original does.

An address keeps its relations: two addresses that share their first n bits share them afterwards too, so that every
subnet, route and mask still holds. What kind of address it is (private, public, loopback, multicast …) stays.
"""

from __future__ import annotations

import re
from base64 import b32encode
from collections.abc import Mapping
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address

_WIDTH = {4: 32, 6: 128}
_STRIDE = 8

# Kinds of address that stay what they are: what lies in one of these lies in it afterwards.
_KINDS = {
    4: (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.168.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
    ),
    6: ("::/8", "2000::/3", "fc00::/8", "fd00::/8", "fe80::/10", "ff00::/8"),
}  # fmt: skip
# Addresses that mean the same everywhere are not changed at all.
_FIXED = {
    4: ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"),
    6: ("::/8", "ff00::/8"),
}
_LINK_LOCAL = 0xFE80 << 112
_V4_MAPPED = 0xFFFF << 32
_NAT64 = 0x64FF9B << 96


def _prefix(text: str) -> tuple[int, int]:
    """`ADDRESS/LENGTH` → (length, its first `length` bits)."""
    address, _, length = text.partition("/")
    ip = ip_address(address)
    return int(length), int(ip) >> (_WIDTH[ip.version] - int(length))


class AddressMap:
    """A prefix-preserving permutation of all addresses of both families, chosen by `key`.

    `note_network` and `keep_order` say what it must keep besides and have to come before the first question.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key
        self._kind_ancestors = {
            version: {
                (n, bits >> (length - n)) for length, bits in map(_prefix, kinds) for n in range(length)
            }
            for version, kinds in _KINDS.items()
        }
        self._frozen: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        self._networks: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        self._known: dict[int, dict[tuple[int, int], int]] = {4: {}, 6: {}}
        self.seen: dict[str, str] = {}
        for version, prefixes in _FIXED.items():
            for length, bits in map(_prefix, prefixes):
                self._frozen[version].setdefault(length, set()).add(bits)

    def note_network(self, address: IPv4Address | IPv6Address, length: int) -> None:
        """Let the first and the last address of a network stay its first and its last."""
        width = _WIDTH[address.version]
        if 0 < length < width:
            self._networks[address.version].setdefault(length, set()).add(int(address) >> (width - length))

    def keep_order(self, address: IPv4Address | IPv6Address, length: int) -> None:
        """Below this prefix change nothing, because a range or an odd mask asks for the bits themselves."""
        bits = int(address) >> (_WIDTH[address.version] - length)
        self._frozen[address.version].setdefault(length, set()).add(bits)

    def keep_range(self, first: IPv4Address | IPv6Address, last: IPv4Address | IPv6Address) -> None:
        """Let `first`-`last` stay a range with the same places in it."""
        width = _WIDTH[first.version]
        self.keep_order(first, width - (int(first) ^ int(last)).bit_length())

    def address(self, ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
        """The pseudonym of one address."""
        if ip.version == 4:
            new: IPv4Address | IPv6Address = IPv4Address(self._top(4, int(ip), 32))
        else:
            new = IPv6Address(self._v6(int(ip)))
        self.seen.setdefault(str(ip), str(new))
        return new

    def network(self, ip: IPv4Address | IPv6Address, length: int) -> IPv4Address | IPv6Address:
        """The pseudonym of `ip` in `ip/length`: bits that are no host's stay zero."""
        host = _WIDTH[ip.version] - length
        new = self.address(ip)
        if int(ip) & ((1 << host) - 1):
            return new
        return type(new)(int(new) >> host << host)

    def _v6(self, value: int) -> int:
        if value >> 32 in (_V4_MAPPED >> 32, _NAT64 >> 32):
            return value >> 32 << 32 | self._top(4, value & 0xFFFFFFFF, 32)
        return self._top(6, value, 128)

    def _top(self, version: int, bits: int, length: int) -> int:
        """The pseudonym of the first `length` bits of an address."""
        if length == 0:
            return 0
        known = self._known[version].get((length, bits))
        if known is not None:
            return known
        base = (length - 1) // _STRIDE * _STRIDE
        new = self._top(version, bits >> (length - base), base)
        for n in range(base, length):
            above = bits >> (length - n)
            new = new << 1 | (bits >> (length - n - 1) & 1) ^ self._flip(version, n, above)
        self._known[version][length, bits] = new
        return new

    def _flip(self, version: int, length: int, bits: int) -> int:
        """Whether the bit that follows the prefix `bits` is turned."""
        if (length, bits) in self._kind_ancestors[version]:
            return 0
        if version == 6 and length < 64 and bits == _LINK_LOCAL >> (128 - length):
            return 0  # fe80::/64, whose lower half is made of hardware addresses
        for n, frozen in self._frozen[version].items():
            if n <= length and bits >> (length - n) in frozen:
                return 0
        for n, networks in self._networks[version].items():
            if n <= length and bits >> (length - n) in networks:
                rest, ones = bits & ((1 << (length - n)) - 1), (1 << (length - n)) - 1
                if rest in (0, ones):
                    return 0
        return self._digest(f"{version}/{length}/{bits:x}")[0] & 1

    def _digest(self, text: str) -> bytes:
        return blake2b(text.encode(), key=self.key, digest_size=16).digest()

    def mac(self, text: str) -> str:
        """The pseudonym of a hardware address; broadcast, multicast and all zeros stay."""
        text = text.lower()
        if int(text[:2], 16) & 1 or set(text) <= {"0", ":"}:
            return text
        new = "02:" + ":".join(f"{byte:02x}" for byte in self._digest(f"mac/{text}")[:5])
        self.seen.setdefault(text, new)
        return new

    def opaque(self, text: str) -> str:
        """As many letters and digits of the same alphabet (hexadecimal, base 32, else lower case) as `text`."""
        digest = blake2b(f"opaque/{text}".encode(), key=self.key, digest_size=64).digest()
        if re.fullmatch(r"[0-9a-f]+", text):
            return digest.hex()[: len(text)].ljust(len(text), "0")
        base32 = b32encode(digest).decode().rstrip("=")
        base32 = base32 if text.isupper() else base32.lower()
        return base32[: len(text)].ljust(len(text), "A" if text.isupper() else "a")


class NameMap:
    """Pseudonyms for words such as `node-07`: a kind and a number, in the order of the words themselves.

    Whatever is sorted by name is sorted alike afterwards. Words are first shown with `learn`, all of them, and
    then numbered by `settle`. A name with dots keeps them, and a word with capitals gets a pseudonym with capitals.
    """

    # The kind that counts where a word is used for several, first to last; others come behind.
    _RANK = (
        "namespace", "node", "service", "pod", "slice", "owner", "zone", "host", "port", "container",
        "image", "key", "value",
    )  # fmt: skip

    def __init__(self, kept: frozenset[str], known: Mapping[str, str] | None = None) -> None:
        self._kept = kept
        self._kinds: dict[str, str] = {}
        self.seen: dict[str, str] = dict(known or {})

    def learn(self, kind: str, text: str) -> None:
        """Note that `text` is used as the name of a `kind`."""
        for word in self._words(text):
            rank = self._kinds.get(word)
            if rank is None or self._order(kind) < self._order(rank):
                self._kinds[word] = kind

    def settle(self) -> None:
        """Number every word learnt."""
        by_kind: dict[str, list[str]] = {}
        for word, kind in self._kinds.items():
            if word not in self.seen:
                by_kind.setdefault(kind, []).append(word)
        taken = set(self.seen.values())
        for kind, words in by_kind.items():
            width = len(str(len(words) + len(taken)))
            number = 0
            for word in sorted(words):
                number += 1
                while f"{kind}-{number:0{width}}" in taken:
                    number += 1
                self.seen[word] = f"{kind}-{number:0{width}}"

    def knows(self, text: str) -> bool:
        """Whether `text` was learnt as a name."""
        return all(word in self.seen or word in self._kept for word in self._words(text))

    def name(self, text: str) -> str:
        """The pseudonym of a name that was learnt."""
        return ".".join([self._part(part) for part in text.split(".")])

    def _part(self, part: str) -> str:
        word = part.lower()
        if word in self._kept or not word:
            return part
        prefix = self._kept_prefix(word)
        new = prefix + self.seen[word[len(prefix) :]]
        if part == word:
            return new
        return new.upper() if part == part.upper() else new.title()

    def _words(self, text: str) -> list[str]:
        words = [part.lower() for part in text.split(".")]
        return [word[len(self._kept_prefix(word)) :] for word in words if word and word not in self._kept]

    def _kept_prefix(self, word: str) -> str:
        """`kube-proxy-` of `kube-proxy-x7k2p`: a pod's name begins with that of its owner."""
        at = word.rfind("-")
        while at > 0:
            if word[:at] in self._kept and "-" in word[:at]:
                return word[: at + 1]
            at = word.rfind("-", 0, at)
        return ""

    def _order(self, kind: str) -> int:
        return self._RANK.index(kind) if kind in self._RANK else len(self._RANK)
