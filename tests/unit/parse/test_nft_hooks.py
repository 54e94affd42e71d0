"""`nft list hooks`, as kernels print it."""

from __future__ import annotations

from ktp.model.nft_hooks import HookEntry
from ktp.parse.nft_hooks import parse_nft_hooks

# Linux 6.12 with nft 1.0.6, and of 7.3 the nat hook: legacy iptables was registered first, then `own`, then iptables-nft.
LINUX_6_12 = """\
family ip {
\thook prerouting {
\t\t-0000000100 nf_nat_ipv4_pre_routing [nf_nat]
\t}
\thook input {
\t\t 0000000000 ipt_do_table [ip_tables]
\t\t 0000000000 chain ip own in [nf_tables]
\t\t 0000000000 chain ip filter INPUT [nf_tables]
\t\t+0000000100 nf_nat_ipv4_local_in [nf_nat]
\t}
\thook postrouting {
\t\t-0000000225 apparmor_ip_postroute
\t\t+0000000100 nf_nat_ipv4_out [nf_nat]
\t}
}
family ip6 {
\thook postrouting {
\t\t-0000000225 apparmor_ip_postroute
\t}
}
"""
LINUX_7_3 = """\
family ip {
\thook prerouting {
\t\t-0000000100 chain ip nat PREROUTING [nft_chain_nat]
\t\t-0000000100 ipt_do_table [ip_tables]
\t\t-0000000100 chain ip own pre [nft_chain_nat]
\t}
}
"""


def test_chains_by_name_legacy_tables_by_their_function() -> None:
    listing = parse_nft_hooks(LINUX_6_12)
    assert listing.at("ip", "input", 0) == (
        HookEntry(priority=0, legacy=True),
        HookEntry(priority=0, chain=("ip", "own", "in")),
        HookEntry(priority=0, chain=("ip", "filter", "INPUT")),
    )
    assert listing.at("ip", "prerouting", -100) == (HookEntry(priority=-100),)
    assert listing.at("ip", "postrouting", 100) == (HookEntry(priority=100),)
    assert listing.at("ip6", "postrouting", -225) == (HookEntry(priority=-225),)
    assert listing.at("ip6", "input", 0) == ()


def test_since_linux_7_nat_chains_are_listed_too() -> None:
    entries = parse_nft_hooks(LINUX_7_3).at("ip", "prerouting", -100)
    assert [(e.chain or ("", "", ""))[1] for e in entries] == ["nat", "", "own"]
    assert [e.legacy for e in entries] == [False, True, False]


def test_older_kernels_name_the_module_of_the_table_and_devices_have_hooks_of_their_own() -> None:
    text = (
        "family netdev {\n\thook ingress device eth0 {\n\t\t 0000000010 chain netdev x y [nf_tables]\n\t}\n}\n"
        "family ip {\n\thook input {\n\t\t 0000000000 iptable_filter_hook [iptable_filter]\n\t}\n}\n"
    )
    listing = parse_nft_hooks(text)
    assert listing.at("ip", "input", 0) == (HookEntry(priority=0, legacy=True),)
    assert listing.at("netdev", "ingress", 10)[0].chain == ("netdev", "x", "y")


def test_what_is_no_listing_lists_nothing() -> None:
    assert parse_nft_hooks("Error: Could not process rule\n").entries == {}
