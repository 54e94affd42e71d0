"""What `cilium-dbg` prints, by version."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest

from ktp.errors import EvidenceError
from ktp.model.cilium import LbBackend, LbFlag, LbFrontend, LbKind, NodePortMode, PolicyEntry
from ktp.parse.cilium import (
    parse_config,
    parse_config_text,
    parse_endpoints,
    parse_ipcache,
    parse_lb_counts,
    parse_lb_list,
    parse_policies,
    parse_service_list,
    parse_source_ranges,
)

# The same two front ends as each version prints them (cilium-dbg/cmd/bpf_lb_list.go, pkg/maps/lbmap/types.go).
UP_TO_1_15 = {
    "10.0.0.3:30006": [
        "10.244.1.7:80 (37) (1)",
        "10.244.1.8:80 (37) (2)",
        "0.0.0.0:0 (37) (0) [NodePort, Local]",
    ],
    "10.0.0.3:30006/i": ["0.0.0.0:0 (39) (0) [NodePort, Local]"],
}
OF_1_16 = {
    "10.0.0.3:30006 (0)": ["0.0.0.0:0 (37) (0) [NodePort, Local]"],
    "10.0.0.3:30006 (1)": ["10.244.1.7:80 (37) (1)"],
    "10.0.0.3:30006 (2)": ["10.244.1.8:80 (37) (2)"],
    "10.0.0.3:30006/i (0)": ["0.0.0.0:0 (39) (0) [NodePort, Local]"],
}
FROM_1_17 = {
    "10.0.0.3:30006/TCP (0)": ["0.0.0.0:0 (37) (0) [NodePort, Local] "],
    "10.0.0.3:30006/TCP (1)": ["10.244.1.7:80/TCP (37) (1)"],
    "10.0.0.3:30006/TCP (2)": ["10.244.1.8:80/TCP (37) (2)"],
    "10.0.0.3:30006/TCP/i (0)": ["0.0.0.0:0 (39) (0) [NodePort, Local] "],
}
TEXT_OF_1_15 = """SERVICE ADDRESS     BACKEND ADDRESS (REVNAT_ID) (SLOT)
10.0.0.3:30006      10.244.1.7:80 (37) (1)
                    10.244.1.8:80 (37) (2)
                    0.0.0.0:0 (37) (0) [NodePort, Local]
10.0.0.3:30006/i    0.0.0.0:0 (39) (0) [NodePort, Local]
"""
TEXT_OF_1_17 = """SERVICE ADDRESS              BACKEND ADDRESS (REVNAT_ID) (SLOT)
10.0.0.3:30006/TCP (0)       0.0.0.0:0 (37) (0) [NodePort, Local]
10.0.0.3:30006/TCP (1)       10.244.1.7:80/TCP (37) (1)
10.0.0.3:30006/TCP (2)       10.244.1.8:80/TCP (37) (2)
10.0.0.3:30006/TCP/i (0)     0.0.0.0:0 (39) (0) [NodePort, Local]
"""


@pytest.mark.parametrize(
    ("printed", "protocol"),
    [
        (json.dumps(UP_TO_1_15), None),
        (json.dumps(OF_1_16), None),
        (json.dumps(FROM_1_17), "tcp"),
        (TEXT_OF_1_15, None),
        (TEXT_OF_1_17, "tcp"),
    ],
    ids=["1.15", "1.16", "1.17", "1.15 text", "1.17 text"],
)
def test_front_ends_of_every_version(printed: str, protocol: str | None) -> None:
    external, internal = parse_lb_list(printed)
    assert (external.ip, external.port, external.protocol) == (ip_address("10.0.0.3"), 30006, protocol)
    assert (external.internal, internal.internal) == (False, True)
    assert (external.kind, external.flags) == (LbKind.NODE_PORT, frozenset((LbFlag.EXTERNAL_LOCAL,)))
    assert [str(b.ip) for b in external.backends] == ["10.244.1.7", "10.244.1.8"]
    assert (external.revnat, internal.revnat, internal.backends) == (37, 39, ())
    assert not external.counted  # how many slots are drawn was not told
    assert internal.counted


def test_slots_past_the_count_are_not_drawn() -> None:
    counts = parse_lb_counts(
        json.dumps(
            {
                "10.0.0.3:30006/TCP (0)": ["0 1[1] (37) [0x6 0x20]"],
                "10.0.0.3:30006/TCP (1)": ["9 0[0] (37) [0x6 0x20]"],
            }
        )
    )
    external, _ = parse_lb_list(json.dumps(FROM_1_17), counts=counts)
    assert external.counted
    assert external.backends == (LbBackend(ip=ip_address("10.244.1.7"), port=80),)
    assert external.spare == (LbBackend(ip=ip_address("10.244.1.8"), port=80),)


def test_flags_and_addresses() -> None:
    printed = {
        "[::]:30006/TCP/i (0)": [
            "[::]:0 (1) (0) [NodePort, InternalLocal, two-scopes, sessionAffinity, non-routable, dsr] "
        ],
        "10.99.0.11:80/UDP (0)": ["0.0.0.0:0 (2) (0) [LoadBalancer, check source-range, deny]"],
        "10.99.0.11:0/ANY (0)": ["0.0.0.0:0 (0) (0) [LoadBalancer, non-routable]"],
        "10.99.0.12:80/SCTP (0)": ["0.0.0.0:0 (3) (0) [ClusterIP, a-flag-of-tomorrow]"],
    }
    node_port, ranges, whole, tomorrow = parse_lb_list(json.dumps(printed))
    assert node_port.internal
    assert (node_port.ip, node_port.protocol) == (ip_address("::"), "tcp")
    assert node_port.flags == {
        LbFlag.INTERNAL_LOCAL, LbFlag.TWO_SCOPES, LbFlag.AFFINITY, LbFlag.NON_ROUTABLE, LbFlag.DSR,
    }  # fmt: skip
    assert ranges.flags == {LbFlag.SOURCE_RANGE, LbFlag.SOURCE_RANGE_DENY}
    assert (whole.port, whole.protocol) == (0, None)
    assert [f.flags_known for f in (node_port, ranges, whole, tomorrow)] == [True, True, True, False]


@pytest.mark.parametrize(
    "printed", ['{"10.0.0.3:30006": ["what is this"]}', '{"nonsense": ["0.0.0.0:0 (1) (0)"]}', "{"]
)
def test_what_is_no_listing_is_refused(printed: str) -> None:
    with pytest.raises(EvidenceError):
        parse_lb_list(printed)


def test_the_agents_own_list() -> None:
    printed = [
        {
            "spec": {"id": 13},
            "status": {
                "realized": {
                    "frontend-address": {
                        "ip": "0.0.0.0",
                        "port": 30001,
                        "protocol": "TCP",
                        "scope": "external",
                    },
                    "flags": {
                        "type": "NodePort",
                        "extTrafficPolicy": "Local",
                        "name": "web",
                        "namespace": "shop",
                    },
                    "backend-addresses": [
                        {"ip": "10.244.1.7", "port": 80, "state": "terminating"},
                        {"ip": "10.244.1.8", "port": 80, "state": "active"},
                    ],
                }
            },
        }
    ]
    (found,) = parse_service_list(json.dumps(printed))
    assert isinstance(found, LbFrontend)
    assert [str(b.ip) for b in found.backends] == ["10.244.1.8"]
    assert [str(b.ip) for b in found.spare] == ["10.244.1.7"]
    assert (found.kind, found.flags, found.internal) == (
        LbKind.NODE_PORT,
        frozenset((LbFlag.EXTERNAL_LOCAL,)),
        False,
    )


def test_small_maps() -> None:
    ranges = parse_source_ranges(
        '{"10.0.0.100/32 (41)": [""], "fd00::/8 (41)": [""], "10.0.0.0/8 (2)": [""]}'
    )
    assert ranges == {
        41: (ip_network("10.0.0.100/32"), ip_network("fd00::/8")),
        2: (ip_network("10.0.0.0/8"),),
    }
    near, far, old = parse_ipcache(
        json.dumps(
            {
                "0.0.0.0/0": ["identity=2 encryptkey=0 tunnelendpoint=0.0.0.0 flags=<none>"],
                "10.244.2.0/24": ["identity=2 encryptkey=0 tunnelendpoint=10.0.0.10 flags=hastunnel"],
                "10.244.3.7/32": ["identity=4711 encryptkey=0 tunnelendpoint=10.0.0.13 nodeid=3"],
            }
        )
    )
    assert [(e.identity, e.tunnelled) for e in (near, far, old)] == [(2, False), (2, True), (4711, True)]
    endpoints = parse_endpoints(
        '{"10.0.0.3:0": ["(localhost)"], "10.244.1.7:0": ["id=178 sec_id=47168 flags=0x0000 ifindex=7 mac=36:47"], '
        '"[fd00::7]:0": ["id=178 sec_id=47168 flags=0x0000 ifindex=7 mac=36:47"]}'
    )
    assert endpoints[ip_address("10.0.0.3")].is_host
    assert (endpoints[ip_address("10.244.1.7")].identifier, endpoints[ip_address("fd00::7")].ifindex) == (
        178,
        7,
    )


def test_policy_maps() -> None:
    def content(port: int = 0, bits: int = 40, direction: int = 0, flags: int = 0) -> dict[str, object]:
        key = {
            "Prefixlen": bits,
            "Identity": 409,
            "TrafficDirection": direction,
            "Nexthdr": 6,
            "DestPortNetwork": port,
        }
        return {"Flags": flags, "ProxyPortNetwork": 0, "Key": key}

    # 20480 is 80 with its bytes swapped, as the map has it; a prefix of 62 bits leaves the last two of the port open.
    printed = [
        {
            "EndpointID": "99",
            "Content": [content(20480, 64), content(20480, 62), content(direction=1), content(flags=1)],
        }
    ]
    assert parse_policies(json.dumps(printed)) == {
        99: (
            PolicyEntry(identity=409, protocol=6, port=80),
            PolicyEntry(identity=409, protocol=6, port=80, port_bits=14),
            PolicyEntry(identity=409, protocol=6, egress=True),
            PolicyEntry(identity=409, protocol=6, deny=True),
        )
    }


def test_what_the_agent_says_of_itself() -> None:
    status = {
        "kube-proxy-replacement": {
            "mode": "True", "devices": ["eth0"], "directRoutingDevice": "eth0",
            "features": {"nodePort": {"enabled": True, "mode": "Hybrid"}, "socketLB": {"enabled": True}, "bpfSocketLBHostnsOnly": True},
        },
        "routing": {"inter-host-routing-mode": "Tunnel", "intra-host-routing-mode": "BPF"},
    }  # fmt: skip
    text = "#### Read-only configurations ####\nServiceNoBackendResponse : drop\nEnablePolicy : never\nHiveConfig\n\tStart : 1\n"
    found = parse_config(status, parse_config_text(text), "Daemon: 1.16.3 abc")
    assert (found.version, found.replaces, found.mode) == ((1, 16), True, NodePortMode.HYBRID)
    assert (found.socket_lb, found.socket_lb_host_only, found.tunnel) == (True, True, True)
    assert (found.legacy_routing, found.rejects, found.enforces_policy) == (False, False, False)
    assert (found.devices, found.direct_device) == (("eth0",), "eth0")


@pytest.mark.parametrize(
    ("mode", "node_port", "replaces"),
    [
        ("True", True, True),
        ("Strict", True, True),
        ("Partial", True, True),
        ("Partial", False, False),
        ("Disabled", False, False),
        ("False", False, False),
    ],
)
def test_kube_proxy_replacement_by_version(mode: str, node_port: bool, replaces: bool) -> None:
    """Up to 1.13 the mode has other words (--kube-proxy-replacement strict, partial, probe, disabled)."""
    status = {"kube-proxy-replacement": {"mode": mode, "features": {"nodePort": {"enabled": node_port}}}}
    assert parse_config(status, {}, "").replaces is replaces


def test_nothing_said_is_nothing_known() -> None:
    found = parse_config({}, {}, "")
    assert (found.replaces, found.mode, found.tunnel, found.rejects, found.socket_lb) == (None,) * 5
    assert parse_config({}, {}, "Client: 1.14.2").rejects is False
    assert parse_config({}, {}, "Client: 1.15.0").rejects is True
