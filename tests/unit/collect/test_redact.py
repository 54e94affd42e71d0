"""A redacted snapshot answers as the original does, and tells nothing of whose cluster it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any

import pytest

from ktp.app.evidence import walker_for
from ktp.app.snapshot import chain_naming
from ktp.collect.redact import Redaction, redact_capture
from ktp.collect.snapshot import open_snapshot
from ktp.dataplane.answer import answer_flow
from ktp.diagnose.service import diagnose_service
from ktp.model.capture import Capture, EvidenceGap, MemoryCapture
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.model.trace import Flow, FlowAnswer
from ktp.parse.iptables_save import open_ruleset
from ktp.parse.kubernetes import parse_pods
from ktp.parse.offloads import parse_offloads
from ktp.parse.passing import parse_connections
from ktp.parse.policy import parse_policies
from ktp.parse.snapshot import parse_snapshot

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"
KEY = b"k" * 16
Map = Callable[[str], str]
# Names in the recordings that are words of Kubernetes as well (service.kubernetes.io/headless).
_PUBLIC = {"default", "kubernetes", "udp", "true", "local", "headless"}


def redact(capture: Capture) -> Redaction:
    return redact_capture(capture, chain_naming(), key=KEY)


@pytest.fixture(scope="module", params=["core-1.20-iptables-legacy", "core-1.36-iptables-nft"])
def case(request: pytest.FixtureRequest) -> Path:
    return CASES / str(request.param)


@pytest.fixture(scope="module")
def original(case: Path) -> Capture:
    return open_snapshot(case)


@pytest.fixture(scope="module")
def redaction(original: Capture) -> Redaction:
    return redact(original)


def flow_of(probe: dict[str, Any], address: Map, name: Map) -> Flow:
    node = probe.get("vantage_node")
    return Flow(
        dst=address(probe["dst"]),
        port=probe["port"],
        protocol=probe["proto"],
        src=address(probe["src_ip"]),
        from_node=name(node) if node else None,
        via=name(probe["via"]) if probe.get("via") else None,
    )


def told(answer: FlowAnswer, address: Map, name: Map) -> object:
    """What an answer says, in the words of `address` and `name`."""
    paths = [
        (
            round(path.probability, 6), path.disposition.value, path.symptom.value,
            address(path.endpoint_ip) if path.endpoint_ip else "", path.endpoint_port or 0,
            "/".join(name(part) for part in (path.endpoint_name or "").split("/") if part),
            name(path.endpoint_node) if path.endpoint_node else "",
            address(path.source_seen) if path.source_seen else "",
            path.decided_by.table if path.decided_by else "", path.decided_by.kind if path.decided_by else "",
        )
        for path in answer.paths
    ]  # fmt: skip
    return (
        answer.disposition, answer.symptom, answer.source_preserved,
        sorted(address(source) for source in answer.sources_seen), sorted(paths),
    )  # fmt: skip


def same(text: str) -> str:
    return text


def test_every_flow_has_the_same_answer(case: Path, original: Capture, redaction: Redaction) -> None:
    def address(text: str) -> str:
        return str(redaction.addresses.address(ip_address(text)))

    name = redaction.names.name
    before, after = (walker_for(parse_snapshot(each)) for each in (original, redaction.capture))
    probes = json.loads((case / "probes.json").read_text())
    assert len(probes) > 100
    for probe in probes:
        old = answer_flow(before, flow_of(probe, same, same), trace=False)
        new = answer_flow(after, flow_of(probe, address, name), trace=False)
        assert told(old, address, name) == told(new, same, same), probe


def test_services_have_the_same_diagnosis(original: Capture, redaction: Redaction) -> None:
    name = redaction.names.name
    before, after = parse_snapshot(original), parse_snapshot(redaction.capture)
    for key, service in list(before.cluster.services.items())[::3]:  # each takes two diagnoses
        new = after.cluster.services["/".join(name(part) for part in key.split("/"))]
        old_report, new_report = diagnose_service(before, service), diagnose_service(after, new)
        assert outline(old_report, name) == outline(new_report, same), key


def outline(report: ServiceDiagnosis, name: Map) -> object:
    """Symptoms and causes of the matrix, and the findings."""
    cells = [
        (frontend.node_port, name(row.node), vantage, cell.symptom, cell.cause)
        for frontend in report.frontends
        for row in frontend.nodes
        for vantage, cell in row.cells.items()
    ]
    findings = [
        (f.code, f.severity, name(f.node) if f.node else None, [fix.verified for fix in f.fixes])
        for f in report.findings
    ]
    return sorted(cells, key=str), sorted(findings, key=str)


def test_nothing_is_missing_afterwards(redaction: Redaction) -> None:
    assert parse_snapshot(redaction.capture).gaps == ()


def test_no_name_is_left(original: Capture, redaction: Redaction) -> None:
    cluster = parse_snapshot(original).cluster
    names = {part for key in cluster.services for part in key.split("/")}
    names |= {part for pod in cluster.pods or () for part in (*pod.key.split("/"), *pod.labels.values())}
    names |= set(cluster.nodes or ())
    names = {name for name in names if not name.isdigit()}
    zones = {node.zone for node in (cluster.nodes or {}).values()}  # are named as their pseudonyms are
    for file in redaction.capture.names():
        words = set(re.findall(r"[A-Za-z0-9][\w-]*", f"{file} {redaction.capture.read(file).decode()}"))
        left = words & (names - zones - _PUBLIC)
        assert not left, file


def test_no_address_is_left(original: Capture, redaction: Redaction) -> None:
    for file in redaction.capture.names():
        found = set(re.findall(r"(?:\d+\.){3}\d+|[0-9a-f:]{7,}", redaction.capture.read(file).decode()))
        assert not found & (addresses(original) - {"fe80::"}), file


def addresses(capture: Capture) -> set[str]:
    """Every address of the cluster and every hardware address."""
    text = "\n".join(capture.read(name).decode() for name in capture.names())
    found = set(re.findall(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", text)) - {
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
    }
    for word in re.findall(r"(?:\d+\.){3}\d+|[0-9a-f:]{6,}", text):
        try:
            ip = ip_address(word)
        except ValueError:
            continue
        if not (ip.is_loopback or ip.is_multicast or ip.is_unspecified or int(ip) == 0xFFFFFFFF):
            found.add(word)
    return found


def test_chains_are_named_after_the_pseudonyms(original: Capture, redaction: Redaction) -> None:
    from ktp.kubeproxy.names import service_suffix

    dumps = [redaction.capture.read(name).decode() for name in redaction.capture.names() if "tables" in name]
    chains = set(re.findall(r":KUBE-SVC-(\w+)", "\n".join(dumps)))
    cluster = parse_snapshot(redaction.capture).cluster
    expected = {
        service_suffix(f"{service.key}:{port.name}" if port.name else service.key, port.protocol)
        for service in cluster.services.values()
        for port in service.ports
    }
    # In the reduced recordings some rules are of Services whose objects are not there.
    assert len(chains & expected) >= len(cluster.services) / 2


def test_the_same_key_gives_the_same_pseudonyms(original: Capture, redaction: Redaction) -> None:
    again = redact_capture(original, chain_naming(), key=KEY, known=redaction.mapping()["names"])
    assert again.names.seen == redaction.names.seen
    assert dict(again.capture.files) == dict(redaction.capture.files)


# ------------------------------------------------------------------------------------------------- single files


def node_file(file: str, content: str) -> str:
    """What becomes of one file of a node."""
    capture = MemoryCapture(files={f"nodes/worker-a/{file}": content.encode()})
    files = redact(capture).capture.files
    return files[f"nodes/node-1/{file}"].decode()


RULES = """# Generated by iptables-save v1.8.9 on Mon Jan  5 10:00:00 2026
*filter
:INPUT ACCEPT [0:0]
:ACME-BLOCK - [0:0]
-A INPUT -m iprange --src-range 192.168.37.5-192.168.37.20 -j ACME-BLOCK
-A INPUT -s 192.168.37.0/255.255.255.0 ! -i veth01ab23cd -p tcp -m comment --comment "see ticket ACME-4711" -j DROP
-A INPUT -m set --match-set acme-office src -m recent --set --name acme-list --mask 255.255.255.255 --rsource
-A ACME-BLOCK -j LOG --log-prefix "acme blocked "
-A ACME-BLOCK -m string --string "acme.example" --algo bm -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


def test_rules_of_ones_own_stay_rules() -> None:
    new = node_file("iptables-save.txt", RULES)
    assert "acme" not in new.lower()
    assert "4711" not in new
    ruleset = open_ruleset(new.encode(), source="new")
    chains = {
        name: list(chain)
        for name in ruleset.chain_names("filter")
        if (chain := ruleset.chain("filter", name))
    }
    assert {len(rules) for rules in chains.values()} == {2, 3}
    assert all(rule.error is None for rules in chains.values() for rule in rules)
    assert re.search(r"--src-range (\S+\.)\d+-\1\d+ -j chain-1", new)
    assert re.search(r"-s 192\.168\.\d+\.0/255\.255\.255\.0 ! -i veth[0-9a-f]{8} ", new)
    assert "--mask 255.255.255.255" in new


def test_rules_read_twice_are_the_same_rules() -> None:
    files = {f"nodes/node-a/{folder}iptables-save.txt": RULES.encode() for folder in ("", "again/")}
    files["cluster/services.json"] = b'{"items": []}'
    hidden = redact(MemoryCapture(files=files)).capture
    first, again = (hidden.read(name) for name in sorted(hidden.names(), reverse=True) if "nodes" in name)
    assert {name.rpartition("/")[2] for name in hidden.names() if "/again/" in name} == {"iptables-save.txt"}
    assert first == again
    assert b"acme" not in again.lower()


def test_sets_keep_their_elements() -> None:
    new = node_file(
        "ipset-save.txt",
        'create acme-office hash:net family inet comment\nadd acme-office 192.168.37.0/24 comment "ACME Berlin"\n'
        "create KUBE-CLUSTER-IP hash:ip,port family inet\nadd KUBE-CLUSTER-IP 10.96.0.10,udp:53\n",
    )
    assert "acme" not in new.lower()
    assert "berlin" not in new.lower()
    assert re.search(r'add set-1 192\.168\.\d+\.0/24 comment "word-1 word-2"', new)
    assert re.search(r"add KUBE-CLUSTER-IP 10\.\d+\.\d+\.\d+,udp:53", new)


def test_that_a_key_of_bridges_is_not_there_is_kept() -> None:
    complaint = (
        "sysctl: cannot stat /proc/sys/net/bridge/bridge-nf-call-iptables: No such file or directory\n"
    )
    assert node_file("sysctl.txt", complaint + "sysctl: cannot stat /proc/sys/net/secret\n") == complaint
    assert (
        node_file("sysctl.txt", 'error: "net.bridge.bridge-nf-call-iptables" is an unknown key\n')
        == complaint
    )


def test_lines_that_are_no_sysctl_of_the_network_are_left_out() -> None:
    text = "kernel.hostname = acme-1\nnet.ipv4.ip_forward = 1\nnet.ipv4.conf.cali0123456789a.rp_filter = 0\n"
    new = node_file("sysctl.txt", text)
    assert "acme" not in new
    assert "net.ipv4.ip_forward = 1" in new
    assert re.search(r"net\.ipv4\.conf\.cali[0-9a-f]{11}\.rp_filter = 0", new)
    assert "0123456789a" not in new


def test_sockets_lose_their_processes() -> None:
    new = node_file("ss.txt", 'tcp LISTEN 0 4096 192.168.37.5:22 0.0.0.0:* users:(("acmed",pid=1,fd=3))\n')
    assert "acmed" not in new
    assert new.startswith("tcp LISTEN 0 4096 192.168.")


def test_entries_of_connections_keep_their_ends_alone() -> None:
    ends = "src=192.168.37.9 dst=192.168.37.5 sport=4000 dport=31053 [UNREPLIED] src=10.7.0.3 dst=192.168.37.9 sport=53 dport=4000"
    line = f"udp      17 29 {ends} mark=0 secctx=acme_u:acme_r:acme_t:s0 zone=7 helper=acme use=1\n"
    new = node_file("conntrack.txt", line)
    assert "acme" not in new
    assert "192.168.37." not in new
    (entry,) = parse_connections(new)
    assert (entry.original.dport, entry.reply.sport, entry.is_answered) == (31053, 53, False)
    assert entry.original.src == entry.reply.dst != entry.original.dst
    six = node_file(
        "conntrack.txt",
        "ipv6 10 udp 17 9 src=fd12:3::9 dst=fd12:3::1 sport=1 dport=2 src=fd12:3::1 dst=fd12:3::9 sport=2 dport=1\n",
    )
    assert "fd12:3::" not in six
    assert len(parse_connections(six)) == 1


def test_of_offloads_devices_and_features_are_kept() -> None:
    text = "Features for veth0a1b2c3d:\ntx-checksumming: on\n\ttx-checksum-sctp: off [fixed]\nacme says no\n"
    new = node_file("ethtool.txt", text)
    assert "acme" not in new
    assert "0a1b2c3d" not in new
    assert [list(features.items()) for features in parse_offloads(new).values()] == [
        [("tx-checksumming", True), ("tx-checksum-sctp", False)]
    ]


def test_a_stale_entry_is_told_after_redaction_too() -> None:
    case = open_snapshot(CASES / "core-1.36-iptables-nft")
    line = (
        "udp 17 22 src=10.0.0.100 dst=10.0.0.10 sport=40053 dport=30011 [UNREPLIED] src=10.244.2.99 dst=10.0.0.100 "
        "sport=5353 dport=40053 mark=0 use=1\n"
    )
    counts = "1.00 1.00\nentries  clashres invalid\n0000000a 00000000 {:08x}\n"
    files = {name: case.read(name) for name in case.names()}
    files["nodes/node-b/conntrack.txt"] = line.encode()
    files["nodes/node-b/netstat.txt"] = (counts.format(1) + counts.format(4)).encode()
    original = MemoryCapture(files=files)
    hidden = redact(original)
    told = []
    for capture, name in ((original, "edge/udp-local"), (hidden.capture, "")):
        snapshot = parse_snapshot(capture)
        service = next(
            s
            for s in snapshot.cluster.services.values()
            if s.key == name or (not name and s.ports[0].node_port == 30011)
        )
        found = diagnose_service(snapshot, service).findings
        told.append([(f.code, f.severity) for f in found if f.code in ("KTP218", "KTP219", "KTP221")])
    assert told[0] == told[1]
    assert "KTP218" in dict(told[0])
    assert len(told[0]) == 2


def test_a_kube_proxy_configuration_loses_its_kubeconfig() -> None:
    new = node_file(
        "kube-proxy-config.yaml",
        "kind: KubeProxyConfiguration\nmode: ipvs\nclusterCIDR: 10.7.0.0/16,fd00:7::/48\nhostnameOverride: worker-a\n"
        "clientConnection: {kubeconfig: /home/acme/kubeconfig}\n",
    )
    assert "acme" not in new
    assert "mode: ipvs" in new
    assert "hostnameOverride: node-1" in new
    assert re.search(r"clusterCIDR: 10\.\d+\.0\.0/16,fd", new)


def test_nftables_names_and_ranges() -> None:
    document = {
        "nftables": [
            {"table": {"family": "inet", "name": "acme"}},
            {"chain": {"family": "inet", "table": "acme", "name": "acme-in", "type": "filter", "hook": "input"}},
            {
                "rule": {
                    "family": "inet", "table": "acme", "chain": "acme-in", "comment": "ACME ticket",
                    "expr": [
                        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                                   "right": {"set": [{"prefix": {"addr": "192.168.37.0", "len": 24}},
                                                     {"range": ["172.16.5.1", "172.16.5.9"]}]}}},
                        {"log": {"prefix": "acme drop"}},
                        {"jump": {"target": "acme-in"}},
                    ],
                }
            },
        ]
    }  # fmt: skip
    new = node_file("nft-ruleset.json", json.dumps(document))
    assert "acme" not in new.lower()
    rule = json.loads(new)["nftables"][2]["rule"]
    prefix, span = rule["expr"][0]["match"]["right"]["set"]
    assert prefix["prefix"]["addr"].endswith(".0")
    first, last = (int(ip_address(each)) for each in span["range"])
    assert last - first == 8
    assert rule["chain"] == rule["expr"][2]["jump"]["target"]


def test_policies_choose_the_same_pods_and_clients() -> None:
    def items(*objects: object) -> bytes:
        return json.dumps({"items": objects}).encode()

    spec = {
        "podSelector": {"matchLabels": {"acme/tier": "gold"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [
                    {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.64/26"]}},
                    {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "acme", "operator": "Exists"}]}},
                ],
                "ports": [{"protocol": "TCP", "port": 8080}, {"port": "acme-port"}],
            },
            {},
        ],
    }  # fmt: skip
    pods = [
        {
            "metadata": {
                "namespace": "acme",
                "name": f"acme-{tier}",
                "labels": {"acme/tier": tier, "acme": "x"},
            }
        }
        for tier in ("gold", "iron")
    ]
    policy = {"metadata": {"namespace": "acme", "name": "acme-allow"}, "spec": spec}
    files = redact(
        MemoryCapture(
            files={"cluster/pods.json": items(*pods), "cluster/networkpolicies.json": items(policy)}
        )
    ).capture.files
    assert not [name for name, content in files.items() if b"acme" in content or b"203.0.113" in content]
    (new,) = parse_policies(files["cluster/networkpolicies.json"])
    gold, iron = parse_pods(files["cluster/pods.json"])
    assert (new.pods.selects(gold.labels), new.pods.selects(iron.labels)) == (True, False)
    assert (new.namespace, new.isolates, len(new.rules)) == (gold.namespace, True, 2)
    old = parse_policies(items(policy))[0].rules[0]
    block, peer = json.loads(files["cluster/networkpolicies.json"])["items"][0]["spec"]["ingress"][0]["from"]
    network, hole = IPv4Network(block["ipBlock"]["cidr"]), IPv4Network(block["ipBlock"]["except"][0])
    assert (network.prefixlen, hole.prefixlen) == (24, 26)
    assert hole.subnet_of(network)
    assert peer["namespaceSelector"] == {}
    assert len(new.rules[0].ports) == len(old.ports) == 2


def test_an_unknown_file_is_left_out_with_a_gap() -> None:
    capture = MemoryCapture(files={"nodes/worker-a/notes.txt": b"secret"})
    redacted = redact(capture).capture
    assert redacted.files == {}
    assert [gap.kind for gap in redacted.gaps] == ["redacted"]


def test_gaps_keep_their_subject_and_lose_their_words() -> None:
    gap = EvidenceGap(
        "node-rules", "worker-a", "ssh: worker-a.acme.example refused", remedy="ssh acme@worker-a"
    )
    capture = MemoryCapture(files={"nodes/worker-a/sysctl.txt": b""}, gaps=(gap,))
    (new,) = redact(capture).capture.gaps
    assert (new.kind, new.subject, new.remedy) == ("node-rules", "node-1", None)
    assert "acme" not in new.message
