"""What is read of WireGuard, and that no private or preshared key is ever asked for, kept or handed on."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from ktp.collect.local_node import collect_local_node
from ktp.collect.machine import CommandResult
from ktp.collect.remote_script import build_script
from ktp.collect.strip import strip_capture
from ktp.collect.wireguard import COLUMNS, MODULE, wireguard_command, wireguard_dump
from ktp.collect.xfrm import READS, SOCKETS
from ktp.errors import EvidenceError
from ktp.model.capture import EvidenceGap, GapCause, MemoryCapture
from ktp.model.tunnel import Wireguard
from ktp.parse.tunnel import parse_wireguard
from tests.unit.collect.test_local_node import PRESENT, PROC, READERS, FakeRunner
from tests.unit.collect.test_redact import node_file

ONE, TWO, OWN = ("4MJZOGE4VzpWXFP+0vZN2lUB/gM0zGDw6T6t5ScY6nk=", "wp7YMgGaZzceTuxWQO/CzNc1QyL8g63tF+fdGXUE0nQ=",
                 "QOGaZB2eeCdT4+dpxnZuUiVRSlCXCglRcJlEbrk1s3g=")  # fmt: skip
SECRET = "4k/v08gulABge5tjaavXWGofzglld7XGPUPWfV1FHzw="
# As wireguard-tools 1.0.20210914 prints them.
COLUMN = {
    "public-key": f"wg0\t{OWN}\n", "listen-port": "wg0\t51820\n", "fwmark": "wg0\t0x5\n",
    "endpoints": f"wg0\t{ONE}\t192.168.37.9:51821\n{TWO}\t(none)\n",
    "allowed-ips": f"wg0\t{ONE}\t10.244.1.0/24 fd12:3::/64\nwg0\t{TWO}\t(none)\n",
    "latest-handshakes": f"wg0\t{ONE}\t1769560000\nwg0\t{TWO}\t0\n",
    "transfer": f"wg0\t{ONE}\t92\t1480\nwg0\t{TWO}\t0\t148\n",
    "persistent-keepalive": f"wg0\t{ONE}\t25\nwg0\t{TWO}\toff\n",
}  # fmt: skip
DUMP = (
    f"wg0\t(hidden)\t{OWN}\t51820\t0x5\n"
    f"wg0\t{ONE}\t(hidden)\t192.168.37.9:51821\t10.244.1.0/24,fd12:3::/64\t1769560000\t92\t1480\t25\n"
    f"wg0\t{TWO}\t(hidden)\t(none)\t(none)\t0\t0\t148\toff\n"
)
LINK = '[{"ifname":"wg0","linkinfo":{"info_kind":"wireguard"}}]'


def machine(*, has_wg: bool = True, root: bool = True, link: str = LINK) -> FakeRunner:
    printed = {wireguard_command(column): text for column, text in COLUMN.items()} if has_wg else {}
    refused = {
        wireguard_command(c): CommandResult(
            status=1, stderr=b"Unable to access interface wg0: Operation not permitted"
        )
        for c in COLUMN
    }
    outputs: dict[str, str | CommandResult] = {
        **READERS,
        "ip -j -d link": link,
        **(printed if root or not has_wg else refused),
    }
    return FakeRunner(outputs, PROC, {*PRESENT, MODULE})


def gaps_of(runner: FakeRunner) -> list[EvidenceGap]:
    return [
        gap
        for gap in collect_local_node("node-a", runner, not_root=("", "")).gaps
        if gap.kind == "node-tunnels"
    ]


def test_columns_make_the_dump_that_is_parsed() -> None:
    assert wireguard_dump(COLUMN) == DUMP
    found = parse_wireguard(DUMP)["wg0"]
    assert (found.public_key, found.port, found.mark) == (OWN, 51820, 5)
    one, two = found.peers
    assert (one.public_key, one.endpoint) == (ONE, (ip_address("192.168.37.9"), 51821))
    assert one.allowed == (ip_network("10.244.1.0/24"), ip_network("fd12:3::/64"))
    assert (one.answered, one.heard, one.sent, one.keepalive) == (True, True, True, True)
    assert (two.endpoint, two.allowed, two.answered, two.heard, two.sent, two.keepalive) == (
        None,
        (),
        False,
        False,
        True,
        False,
    )


def test_endpoints_with_a_device_in_each_line_are_the_same() -> None:
    assert (
        wireguard_dump({**COLUMN, "endpoints": COLUMN["endpoints"].replace("\n" + TWO, "\nwg0\t" + TWO)})
        == DUMP
    )


def test_a_peer_that_came_meanwhile_is_left_out() -> None:
    assert wireguard_dump({**COLUMN, "transfer": f"wg0\t{ONE}\t92\t1480\n"}).count("\n") == 2
    assert wireguard_dump({**COLUMN, "fwmark": ""}) == ""


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [("[fd12:3::9]:51820", "fd12:3::9"), ("[fe80::1%eth0]:51820", "fe80::1")],
)
def test_endpoints_over_ipv6(line: str, endpoint: str) -> None:
    (peer,) = parse_wireguard(DUMP.splitlines()[0] + f"\nwg0\t{ONE}\tx\t{line}\t(none)\t0\t0\t0\toff\n")[
        "wg0"
    ].peers
    assert peer.endpoint == (ip_address(endpoint), 51820)


@pytest.mark.parametrize(
    "text",
    [
        "wg0\tone\n", f"wg0\t{SECRET}\t{OWN}\tport\toff\n", f"wg0\t{ONE}\t{SECRET}\t(none)\t(none)\t0\t0\t0\toff\n",
        DUMP + f"wg0\t{ONE}\t{SECRET}\twhere:51820\t(none)\t0\t0\t0\toff\n", "interface: wg0\n",
    ],
)  # fmt: skip
def test_what_is_no_dump_is_refused_without_telling_it(text: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        parse_wireguard(text)
    assert SECRET not in str(caught.value)
    assert "line " in str(caught.value)


def test_no_device_is_nothing() -> None:
    assert parse_wireguard("") == {}
    assert parse_wireguard(DUMP.splitlines()[0]) == {"wg0": Wireguard(public_key=OWN, port=51820, mark=5)}


def test_keys_are_never_asked_for() -> None:
    assert not {"private-key", "preshared-keys", "dump"} & set(COLUMNS)
    runner = machine()
    capture = collect_local_node("node-a", runner)
    assert capture.read("nodes/node-a/wg.txt").decode() == DUMP
    asked = {line for line in runner.ran if line.startswith("wg ")}
    assert asked == {wireguard_command(column) for column in COLUMNS}
    script = build_script(sudo=True, reach=None, command_timeout=1).text.decode()
    assert all(wireguard_command(column) in script for column in COLUMNS)
    assert not any(word in script for word in ("private-key", "preshared-key", "all dump"))


def test_keys_of_a_dump_made_by_hand_are_taken_out() -> None:
    text = (
        DUMP.replace("(hidden)", SECRET)
        + f"PrivateKey = {SECRET}\nwg0\t{ONE}\t{SECRET}\t(none)\t(none)\t0\t0\t0\toff\t{SECRET}\n"
    )
    capture = strip_capture(MemoryCapture(files={"nodes/node-a/wg.txt": text.encode()}))
    assert capture.read("nodes/node-a/wg.txt").decode() == DUMP
    assert SECRET not in node_file("wg.txt", text)


def test_redacted_peers_are_the_same_under_other_names() -> None:
    new = node_file("wg.txt", DUMP)
    assert not any(word in new for word in (ONE, TWO, OWN, "192.168.37.", "fd12:3:", "1769560000", "148"))
    found = parse_wireguard(new)["wg0"]
    assert len({found.public_key, *(peer.public_key for peer in found.peers)}) == 3
    assert [(p.endpoint is None, len(p.allowed), p.answered, p.sent) for p in found.peers] == [
        (False, 2, True, True),
        (True, 0, False, True),
    ]


def test_what_is_not_there_is_not_missed() -> None:
    assert gaps_of(machine()) == []
    assert gaps_of(machine(has_wg=False, link="[]")) == []
    runner = FakeRunner()  # without the module nothing is asked, which could load it
    collect_local_node("node-a", runner)
    assert not any(line.startswith("wg ") for line in runner.ran)


def test_what_is_there_and_cannot_be_read_is_a_gap() -> None:
    (gap,) = gaps_of(machine(has_wg=False))
    assert (gap.cause, "wireguard-tools" in (gap.remedy or "")) == (GapCause.NOT_INSTALLED, True)
    (gap,) = gaps_of(machine(root=False))
    assert gap.cause is GapCause.NOT_READ


@pytest.mark.parametrize(("has_module", "root"), [(True, True), (True, False), (False, True)])
def test_ipsec_is_asked_where_the_kernel_has_it_already_and_never_for_keys(
    has_module: bool, root: bool
) -> None:
    sockets = b"sk               Eth Pid        Groups\n0000000057f724e6 6   0          00000000\n"
    files = {**PROC, SOCKETS: sockets if has_module else sockets.replace(b" 6 ", b" 7 ")}
    runner = FakeRunner({**READERS, **{line: "" for _, line in READS}}, files, root=root)
    capture = collect_local_node("node-a", runner, not_root=("", ""))
    read = {file for file, _ in READS if capture.has(f"nodes/node-a/{file}")}
    assert read == ({file for file, _ in READS} if has_module and root else set())
    asked = [line for line in runner.ran if "xfrm" in line]
    assert all(line in ("ip xfrm policy", "ip xfrm state list nokeys") for line in asked)
