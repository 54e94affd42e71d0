"""What a dump is, told by its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktp.errors import EvidenceError
from ktp.parse.rules import RulesDump, open_rules_dump

DATA = Path(__file__).resolve().parents[2] / "data"
IPVS = DATA / "explain" / "ipvs-1.30" / "nodes" / "node-a"


def kind(dump: RulesDump) -> str:
    if dump.hosts:
        return dump.hosts[0].rulesets[0].family
    return "nft" if dump.nft is not None else "ipvs"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (DATA / "explain" / "1.36-node-b.txt", "ip"),
        (DATA / "explain" / "1.36-node-b-ip6.txt", "ip6"),
        (DATA / "explain" / "1.20-node-a.txt", "ip"),
        (DATA / "nft" / "kube-proxy-1.36.nft", "nft"),
        (DATA / "nft" / "kube-proxy-1.36.json", "nft"),
        (IPVS / "iptables-save.txt", "ip"),
        (IPVS / "ipvsadm.txt", "ipvs"),
    ],
)
def test_files_and_pipes(path: Path, expected: str) -> None:
    assert kind(open_rules_dump(path, "f")) == expected
    assert kind(open_rules_dump(path.read_bytes(), "f")) == expected
    assert kind(open_rules_dump(b"\n\n" + path.read_bytes(), "f")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*nat\r\n:PREROUTING ACCEPT [0:0]\r\nCOMMIT\r\n", "ip"),
        ("# Warning: iptables-legacy tables present, use iptables-legacy-save to see them\n"
         "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", "ip"),
        ("# my rules\n" * 600 + "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", "ip"),
        ("# of node-a\n\ntable inet x {\n}\n", "nft"),
        ('  {"nftables": [{"metainfo": {"version": "1.0.6"}}]}', "nft"),
        ("-A -u 10.0.0.3:53 -s rr\n", "ipvs"),
        ("--add-service --tcp-service 10.0.0.3:80 --scheduler rr\n", "ipvs"),
        ("-A -f 7 -s wlc\n", "ipvs"),
        ("IP Virtual Server version 1.2.1 (size=4096)\n", "ipvs"),
    ],
)  # fmt: skip
def test_beginnings(text: str, expected: str) -> None:
    assert kind(open_rules_dump(text.encode(), "f")) == expected


@pytest.mark.parametrize(
    ("data", "sentence", "hint"),
    [
        (b"", "is empty", "iptables-save"),
        (b"hello\n", "first line: 'hello'", "ipvsadm -Sn or cilium-dbg bpf lb list"),
        (b"\x7fELF\0\0", "is binary", "iptables-save"),
        (b"apiVersion: v1\nkind: Service\n", "objects of the Kubernetes API", "`iptables-save > FILE`"),
        (b"NAME   READY   STATUS\nweb-1  1/1  Running\n", "a table of kubectl", "`iptables-save > FILE`"),
        (b"create KUBE-LOOP-BACK hash:ip,port,ip family inet\n", "`ipset save`", "iptables-save"),
        (b"add table ip x\nadd chain ip x y\n", "`nft -f`", "nft -j list ruleset"),
        (b'{"items": []}', "is not what `nft -j list ruleset` prints", "nft -j list ruleset"),
        (b"table ip kube-proxy {\n\tchain services {\n", "is not what `nft list ruleset` prints", "nft"),
        (b"-A -t nonsense\n", "is not one of `ipvsadm -Sn`", "ipvsadm -Sn"),
    ],
)  # fmt: skip
def test_other_things(data: bytes, sentence: str, hint: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        open_rules_dump(data, "f")
    assert sentence in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_missing_file() -> None:
    with pytest.raises(EvidenceError, match="No such file"):
        open_rules_dump(Path("/nonexistent"), "f")
