"""Pseudonyms keep what answers depend on, and nothing else."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktp.collect.pseudonyms import AddressMap, NameMap

KEY = b"0123456789abcdef"
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def common_bits(first: IPv4Address | IPv6Address, second: IPv4Address | IPv6Address) -> int:
    return first.max_prefixlen - (int(first) ^ int(second)).bit_length()


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_addresses_share_as_many_bits_as_before(first: IPv4Address, second: IPv4Address) -> None:
    pseudonyms = AddressMap(KEY)
    assert common_bits(pseudonyms.address(first), pseudonyms.address(second)) == common_bits(first, second)


@given(st.ip_addresses(network="2000::/3"), st.ip_addresses(network="fc00::/7"))
def test_kinds_of_ipv6_addresses_stay_apart(public: IPv6Address, private: IPv6Address) -> None:
    pseudonyms = AddressMap(KEY)
    assert pseudonyms.address(public) in ip_network("2000::/3")
    assert pseudonyms.address(private) in ip_network("fc00::/7")


@pytest.mark.parametrize(
    "network", ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fe80::/64", "fd00::/8"]
)
def test_what_kind_an_address_is_stays(network: str) -> None:
    pseudonyms = AddressMap(KEY)
    net = ip_network(network)
    for host in range(1, 2000, 97):
        assert pseudonyms.address(net[host]) in net


@given(addresses)
def test_public_addresses_stay_public(ip: IPv4Address | IPv6Address) -> None:
    new = AddressMap(KEY).address(ip)
    assert (new.is_loopback, new.is_multicast, new.is_link_local, new.is_unspecified) == (
        ip.is_loopback, ip.is_multicast, ip.is_link_local, ip.is_unspecified,
    )  # fmt: skip


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "0.0.0.0", "169.254.169.254", "255.255.255.255", "224.0.0.1", "::", "::1", "ff02::1"],
)
def test_addresses_of_no_one_stay(address: str) -> None:
    assert str(AddressMap(KEY).address(ip_address(address))) == address


def test_a_network_keeps_its_first_and_last_address() -> None:
    pseudonyms = AddressMap(KEY)
    net = ip_network("192.168.37.0/24")
    pseudonyms.note_network(net[0], 24)
    new = ip_network(f"{pseudonyms.network(net[0], 24)}/24")
    assert new != net
    assert pseudonyms.address(net[0]) == new[0]
    assert pseudonyms.address(net[255]) == new[255]


def test_a_range_stays_a_range() -> None:
    pseudonyms = AddressMap(KEY)
    first, last = ip_address("192.168.37.5"), ip_address("192.168.37.20")
    pseudonyms.keep_range(first, last)
    new = [int(pseudonyms.address(first + n)) for n in range(16)]
    assert new == list(range(new[0], new[0] + 16))


def test_a_mapped_ipv4_address_goes_with_the_plain_one() -> None:
    pseudonyms = AddressMap(KEY)
    plain = pseudonyms.address(ip_address("192.168.37.5"))
    mapped = pseudonyms.address(ip_address("::ffff:192.168.37.5"))
    assert isinstance(mapped, IPv6Address)
    assert mapped.ipv4_mapped == plain


def test_keys_choose_the_pseudonyms() -> None:
    ip = ip_address("192.168.37.5")
    assert AddressMap(KEY).address(ip) == AddressMap(KEY).address(ip)
    assert len({str(AddressMap(bytes([n]) * 16).address(ip)) for n in range(8)}) > 1


def test_hardware_addresses() -> None:
    pseudonyms = AddressMap(KEY)
    assert pseudonyms.mac("ff:ff:ff:ff:ff:ff") == "ff:ff:ff:ff:ff:ff"
    new = pseudonyms.mac("52:54:00:12:34:56")
    assert new != "52:54:00:12:34:56"
    assert new == pseudonyms.mac("52:54:00:12:34:56")


class TestNames:
    def names(self, *words: str) -> NameMap:
        names = NameMap(frozenset(("kube-system", "kube-proxy")))
        for word in words:
            names.learn("node", word)
        names.settle()
        return names

    def test_order_stays(self) -> None:
        words = [f"worker-{chr(97 + n)}" for n in range(26)]
        names = self.names(*reversed(words))
        assert [names.name(word) for word in words] == sorted(names.name(word) for word in words)

    def test_parts_of_a_host_name_stay_parts(self) -> None:
        names = self.names("a.example.com", "b.example.com", "a")
        assert names.name("a.example.com").split(".")[1:] == names.name("b.example.com").split(".")[1:]
        assert names.name("a.example.com").split(".")[0] == names.name("a")

    def test_capitals_stay_capitals(self) -> None:
        names = self.names("worker", "WORKER")
        assert names.name("WORKER") == names.name("worker").upper()

    def test_what_everybody_has_stays(self) -> None:
        names = self.names("kube-system", "kube-proxy-x7k2p")
        assert names.name("kube-system") == "kube-system"
        assert names.name("kube-proxy-x7k2p").startswith("kube-proxy-node-")

    def test_known_names_keep_their_pseudonyms(self) -> None:
        names = NameMap(frozenset(), {"worker": "node-7"})
        names.learn("node", "worker")
        names.learn("node", "other")
        names.settle()
        assert names.name("worker") == "node-7"
        assert names.name("other") != "node-7"
