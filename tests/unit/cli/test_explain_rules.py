"""`ktp explain-rules` from outside: screens, exit status, bad input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ktp.cli import run
from ktp.model.explanation import Explanation

REPOSITORY = Path(__file__).resolve().parents[3]
DATA = REPOSITORY / "tests" / "data" / "explain"
GOLDEN = REPOSITORY / "tests" / "golden" / "explain"
B20 = str(DATA / "1.20-node-b.txt")
B36 = str(DATA / "1.36-node-b.txt")
CILIUM = "../cases/cilium-1.19.4-tunnel-leftover-kube-proxy"


def ktp(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = run(["explain-rules", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


SCREENS = [
    ("cilium-local-not-here", "cilium-node-b.json", ["--node-port", "31015"], 1),
    ("cilium-cluster", "cilium-node-b.json", ["--node-port", "31465"], 0),
    ("cilium-service-list", "cilium-service-list.txt", ["--node-port", "31015"], 1),
    ("1.20-local-here", "1.20-node-a.txt", ["--node-port", "31015"], 0),
    ("1.20-local-not-here", "1.20-node-b.txt", ["--node-port", "31015"], 1),
    ("1.20-cluster", "1.20-node-b.txt", ["--node-port", "31465"], 0),
    ("1.20-local-not-here-from-pod", "1.20-node-b.txt", ["--node-port", "31015", "--from", "pod"], 0),
    ("1.20-chain-xlb", "1.20-node-b.txt", ["--chain", "KUBE-XLB-3LS5F4HE6J2O753K"], 0),
    ("1.24-local-not-here", "1.24.txt", ["--node-port", "30080"], 1),
    ("1.24-no-endpoints", "1.24.txt", ["--node-port", "30900"], 1),
    ("1.30-local-here", "1.30-node-a.txt", ["--node-port", "31015"], 0),
    ("1.30-local-not-here", "1.30-node-b.txt", ["--node-port", "31015"], 1),
    ("1.36-local-not-here", "1.36-node-b.txt", ["--node-port", "31015"], 1),
    ("1.36-local-not-here-from-node", "1.36-node-b.txt", ["--node-port", "31015", "--from", "node"], 0),
    (
        "1.36-local-not-here-from-localhost",
        "1.36-node-b.txt",
        ["--node-port", "31015", "--from", "localhost"],
        0,
    ),
    ("1.36-affinity", "1.36-node-b.txt", ["--node-port", "30010"], 0),
    ("1.36-ipv6", "1.36-node-b-ip6.txt", ["--node-port", "31015"], 1),
    ("1.29-ufw", "1.29-node-b-ufw.txt", ["--node-port", "31015"], 1),
    ("nft-1.29-local-not-here-from-node", "nft-1.29.nft", ["--node-port", "30002", "--from", "node"], 1),
    ("nft-1.29-no-endpoints", "nft-1.29.nft", ["--node-port", "30003"], 1),
    ("nft-1.29-cluster", "nft-1.29.nft", ["--node-port", "30001"], 0),
    ("nft-1.31-chain-firewall", "../nft/kube-proxy-1.31.nft", ["--chain", "firewall-check"], 0),
    ("nft-1.33-local-not-here", "nft-1.33.nft", ["--node-port", "3002"], 1),
    ("nft-1.33-from-pod", "nft-1.33.nft", ["--node-port", "3002", "--from", "pod"], 0),
    ("nft-1.36-local-not-here", "../nft/kube-proxy-1.36.nft", ["--node-port", "31015"], 1),
    ("nft-1.36-local-not-here-from-localhost", "../nft/kube-proxy-1.36.json",
     ["--node-port", "31015", "--from", "localhost"], 1),
    ("nft-1.36-affinity", "../nft/kube-proxy-1.36.json", ["--node-port", "30010"], 0),
    ("nft-1.36-cluster", "../nft/kube-proxy-1.36.json", ["--node-port", "31465"], 0),
    ("nft-1.36-chain", "../nft/kube-proxy-1.36.json", ["--chain", "service-V6HGSSIP-edge/affinity-local/tcp/http"], 0),
    ("ipvs-balanced", "ipvs-1.30/nodes/node-a/ipvsadm.txt", ["--node-port", "30080"], 0),
    ("ipvs-no-real-server", "ipvs-1.30/nodes/node-a/ipvsadm.txt", ["--node-port", "30082"], 1),
]  # fmt: skip


SNAPSHOTS = [
    ("ipvs-snapshot-cluster", "ipvs-1.30", 30080, "external", 0),
    ("ipvs-snapshot-local-not-here", "ipvs-1.30", 30081, "external", 1),
    ("ipvs-snapshot-no-endpoints", "ipvs-1.30", 30082, "pod", 1),
    ("cilium-snapshot-external", CILIUM, 31015, "external", 1),
    ("cilium-snapshot-from-pod", CILIUM, 31015, "pod", 0),
]


@pytest.mark.parametrize(
    ("name", "snapshot", "port", "vantage", "status"), SNAPSHOTS, ids=[s[0] for s in SNAPSHOTS]
)
def test_screens_of_snapshots(
    name: str, snapshot: str, port: int, vantage: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ktp.app.explain_rules import explain_node_port
    from ktp.app.settings import Settings

    monkeypatch.chdir(DATA)
    explained = explain_node_port(Settings(snapshot=snapshot), str(port), vantage, None)
    assert explained.status == status
    compare(name, explained.explanations)


def compare(name: str, explanations: Sequence[Explanation]) -> None:
    from ktp.render.rules_tree import print_explanations

    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="utf-8")
    print_explanations(explanations, out, width=80, fold_rules=True)
    out.flush()
    text = raw.getvalue().decode("utf-8")
    assert all(len(line) <= 80 or " " not in line.strip(" │├└─|-`") for line in text.splitlines()), text
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("KTP_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(("name", "dump", "args", "status"), SCREENS, ids=[s[0] for s in SCREENS])
def test_screens(name: str, dump: str, args: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """KTP_UPDATE_GOLDEN=1 writes the files again; read the difference. 80 columns, as on a terminal."""
    from ktp.app.explain_rules import explain_chain, explain_node_port, open_rules
    from ktp.app.settings import Settings

    monkeypatch.chdir(DATA)
    rules = open_rules(dump, sys.stdin)
    if args[0] == "--chain":
        explained = explain_chain(Settings(), args[1], rules)
    else:
        explained = explain_node_port(Settings(), args[1], args[3] if len(args) > 2 else "external", rules)
    assert explained.status == status
    compare(name, explained.explanations)


def test_a_dump_of_cilium_has_no_chains_and_names_the_missing_port(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dump = str(DATA / "cilium-service-list.txt")
    status, _, err = ktp(capsys, "--chain", "KUBE-SERVICES", "--rules", dump)
    assert (status, "no chains" in err) == (2, True)
    status, _, err = ktp(capsys, "--node-port", "31016", "--rules", dump)
    assert (status, err) == (2, f"ktp: {dump} has no front end with port 31016/tcp\n")


def test_rules_are_whole_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--node-port", "31015", "--rules", B20)
    assert status == 1
    assert (
        '-A KUBE-XLB-3LS5F4HE6J2O753K -m comment --comment "test/nginx-externaltrafficpolicy:80-80-tcp has no local '
        'endpoints" -j KUBE-MARK-DROP' in out
    )
    assert "\x1b" not in out
    assert "192.0.2." not in out
    assert "198.51.100." not in out


def test_standard_input_needs_nothing_else() -> None:
    with open(B36, "rb") as dump:
        done = subprocess.run(
            [sys.executable, "-m", "ktp", "explain-rules", "--node-port", "31015", "--rules", "-"],
            stdin=dump, capture_output=True, cwd=REPOSITORY, check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"},
        )  # fmt: skip
    assert done.returncode == 1
    text = done.stdout.decode("ascii")
    assert "DROPPED: the client's connection attempts time out" in text
    assert "`- => 1. every new connection: on to KUBE-SERVICES" in text


def test_imports_are_few() -> None:
    code = (
        "import sys; from ktp.cli import run; "
        f"run(['explain-rules', '--node-port', '31015', '--rules', {B36!r}]); "
        "names = {'rich', 'kubernetes', 'yaml', 'iptc', 'subprocess', 'ktp.model.nftables', 'ktp.parse.nft', "
        "'ktp.parse.ipvs', 'ktp.explain.nft_tree', 'ktp.explain.ipvs', 'ktp.dataplane.nft', 'ktp.diagnose'}; "
        "print(sorted(names & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY, check=True)
    assert done.stderr.decode().strip() == "[]"


def test_brackets_are_not_markup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = Path(B36).read_text().replace("*nat\n", "*nat\n", 1)
    text = text.replace(
        "-A PREROUTING ",
        '-A PREROUTING -m comment --comment "[bold]x[/bold]" -j LOG --log-prefix "[x] "\n[0:0] -A PREROUTING ',
        1,
    )
    dump = tmp_path / "dump.txt"
    dump.write_text(text)
    for color in ("never", "always"):
        _, out, _ = ktp(capsys, "--node-port", "31015", "--rules", str(dump), "--color", color)
        assert "[bold]x[/bold]" in out
        assert "[x]" in out


@pytest.mark.parametrize(
    ("args", "status", "sentence"),
    [
        (["--node-port", "31016", "--rules", B36], 2, "near it there are 31015/tcp"),
        (["--node-port", "31015/udp", "--rules", B36], 2, "31015/tcp"),
        (["--node-port", "x", "--rules", B36], 2, "is not a node port"),
        (["--node-port", "0", "--rules", B36], 2, "is not a node port"),
        (["--chain", "KUBE-MARK-MASK", "--rules", B36], 2, "did you mean KUBE-MARK-MASQ"),
        (["test/x", "--rules", B36], 2, "a dump knows no Services"),
        (["--rules", B36], 2, "say what to explain"),
        (["a/b", "--chain", "X"], 2, "three different questions"),
        (["--demo", "--node-port", "1", "--rules", B36], 2, "different evidence"),
        (["--demo", "test/nope"], 2, "there is no Service 'nope'"),
        (["--demo", "--node-port", "31016"], 2, "31015/tcp"),
        (["--node-port", "31015", "--rules", "/nonexistent"], 3, "No such file"),
        (["--node-port", "31015", "--rules", sys.executable], 3, "binary"),
    ],
)
def test_bad_questions(
    args: list[str], status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = ktp(capsys, *args)
    assert got == status
    assert sentence in err
    assert not out
    assert "Traceback" not in err


def test_truncated_dump(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dump = tmp_path / "cut.txt"
    dump.write_text(Path(B36).read_text()[:9000])
    status, out, _ = ktp(capsys, "--node-port", "31015", "--rules", str(dump))
    assert status == 4
    assert "breaks off" in out


def test_dump_without_kube_proxy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dump = tmp_path / "plain.txt"
    dump.write_text("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")
    status, _, err = ktp(capsys, "--node-port", "31015", "--rules", str(dump))
    assert status == 3
    assert "no rules of kube-proxy" in err
    assert "both back ends" in err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--node-port", "31465", "--rules", B20, "-o", "json")
    assert status == 0
    data = json.loads(out)
    assert data["kind"] == "RuleExplanation"
    verdict = data["verdict"]
    assert verdict["disposition"] == "delivered"
    assert verdict["clientSource"] == "replaced"
    assert [(e["address"], e["share"]) for e in verdict["endpoints"]] == [
        ("10.244.1.12:80", 0.5),
        ("10.244.2.11:80", 0.5),
    ]
    assert [(s["hook"], s["chain"]["table"]) for s in data["stages"]] == [
        ("PREROUTING", "nat"),
        ("FORWARD", "filter"),
        ("POSTROUTING", "nat"),
    ]


def test_demo_service_is_explained_on_every_node(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--demo", "test/nginx-externaltrafficpolicy", "-o", "json")
    assert status == 1
    ends = {
        (item["node"], item["verdict"]["disposition"])
        for item in json.loads(out)["items"]
        if item["subject"].startswith("node port 31015")
    }
    assert ends == {("node-a", "delivered"), ("node-b", "dropped"), ("node-c", "dropped")}


@pytest.mark.parametrize("vantage", ["node", "localhost", "pod"])
def test_demo_from_inside(vantage: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--demo", "--node-port", "31015", "--node", "node-b", "--from", vantage)
    assert status == 0
    assert "DELIVERED" in out


def test_flushed_prerouting_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = Path(B36).read_text().splitlines(keepends=True)
    nat = next(i for i, line in enumerate(lines) if line.startswith("*nat"))
    kept = [line for i, line in enumerate(lines) if i < nat or " -A PREROUTING " not in line]
    dump = tmp_path / "flushed.txt"
    dump.write_text("".join(kept).replace(" -j DROP\n", " -j ACCEPT\n"))
    status, out, _ = ktp(capsys, "--node-port", "31465", "--rules", str(dump))
    assert status == 1
    assert "no packet gets to them" in out.replace("\n    ", " ")


def test_a_large_dump_is_answered_like_a_small_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The same rules among so many others that chains are searched and not indexed."""
    lines = Path(B36).read_text().splitlines()
    at = max(i for i, line in enumerate(lines) if "-A KUBE-SERVICES" in line)
    extra = [
        f"[0:0] -A KUBE-SERVICES -d 10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}/32 -p tcp -m comment --comment "
        f'"big/svc-{n}:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-3LS5F4HE6J2O753K'
        for n in range(30_000)
    ]
    dump = tmp_path / "large.txt"
    dump.write_text("\n".join([*lines[:at], *extra, *lines[at:]]) + "\n")
    status, out, _ = ktp(capsys, "--node-port", "31015", "--rules", str(dump), "-o", "json")
    small_status, small, _ = ktp(capsys, "--node-port", "31015", "--rules", B36, "-o", "json")
    assert status == small_status == 1
    assert json.loads(out)["verdict"]["why"] == json.loads(small)["verdict"]["why"]
    services = json.loads(out)["stages"][0]["chain"]["rules"][0]["chain"]
    assert services["leftOut"] > 30_000
    assert [r["goesTo"] for r in services["rules"]] == ["KUBE-NODEPORTS"]
    status, out, _ = ktp(capsys, "--chain", "KUBE-SVC-3LS5F4HE6J2O753K", "--rules", str(dump))
    assert status == 0
    assert "more rules lead here" in out


# -- nftables and IPVS

NFT = DATA.parent / "nft"
NFT_TEXT = str(NFT / "kube-proxy-1.36.nft")
NFT_JSON = str(NFT / "kube-proxy-1.36.json")
IPVS_DUMP = str(DATA / "ipvs-1.30" / "nodes" / "node-a" / "ipvsadm.txt")


@pytest.mark.parametrize(
    ("args", "status", "sentence"),
    [
        (["--node-port", "31016", "--rules", NFT_TEXT], 2, "near it there are 31015/tcp"),
        (["--node-port", "31015/udp", "--rules", NFT_JSON], 2, "31015/tcp (test/nginx-externaltrafficpolicy"),
        (["--node-port", "31015", "--rules", str(NFT / "docker.nft")], 3, "no rules of kube-proxy"),
        (["--chain", "service-nodeports", "--rules", NFT_JSON], 2, "but map service-nodeports of table ip kube-proxy"),
        (["--chain", "edge/udp-local", "--rules", NFT_JSON], 2, "did you mean service-T7GZSJZU-edge/udp-local"),
        (["--node-port", "30083", "--rules", IPVS_DUMP], 2, "near it there are 30082/tcp"),
        (["--chain", "KUBE-SERVICES", "--rules", IPVS_DUMP], 2, "virtual servers, and no chains"),
    ],
)  # fmt: skip
def test_bad_questions_to_nftables_and_ipvs(
    args: list[str], status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = ktp(capsys, *args)
    assert got == status
    assert sentence in err.replace("\n     ", " ")
    assert not out


def test_iptables_rules_in_an_nft_listing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dump = tmp_path / "ruleset.nft"
    dump.write_text(
        "table ip nat {\n\tchain KUBE-SERVICES {\n\t}\n\n\tchain PREROUTING {\n"
        "\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t\tjump KUBE-SERVICES\n\t}\n}\n"
    )
    status, _, err = ktp(capsys, "--node-port", "31015", "--rules", str(dump))
    assert status == 3
    assert "those of iptables-nft (table ip nat)" in err
    assert "KUBE-PROXY-POD -- iptables-save" in err


def test_the_element_that_drops_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--node-port", "31015", "--rules", NFT_JSON, "-o", "json")
    assert status == 1
    data = json.loads(out)
    decided = data["verdict"]["decidedBy"]
    assert decided["map"] == "no-endpoint-nodeports"
    assert decided["element"] == 'tcp . 31015 comment "test/nginx-externaltrafficpolicy:80-80-tcp" : drop'
    stages = [(s["hook"], s["chain"]["name"], s["priority"], s["type"]) for s in data["stages"]]
    assert stages == [
        ("PREROUTING", "filter-prerouting-pre-dnat", -110, "filter"),
        ("PREROUTING", "nat-prerouting", -100, "nat"),
        ("INPUT", "filter-input", 0, "filter"),
    ]
    services = data["stages"][1]["chain"]["rules"][0]["chain"]
    lookup = services["rules"][2]["lookups"][1]
    assert (lookup["name"], len(lookup["elements"]), lookup["leftOut"]) == ("service-nodeports", 1, 20)
    assert lookup["elements"][0]["share"] == 1.0
    assert lookup["elements"][0]["chain"]["name"].startswith("external-GWV5UQX5-")
    assert services["rules"][2]["handle"]


def test_shares_of_a_draw(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ktp(capsys, "--node-port", "31465", "--rules", NFT_JSON, "-o", "json")
    assert status == 0
    text = json.dumps(json.loads(out)["stages"])
    assert text.count('"kind": "draw"') == 1
    shares = [(e["address"], e["share"]) for e in json.loads(out)["verdict"]["endpoints"]]
    assert shares == [("10.244.1.12:80", 0.5), ("10.244.2.11:80", 0.5)]


def nft_snapshot(folder: Path) -> Path:
    """node-b of the recorded nftables cluster, with one Service of it."""
    spec = {
        "type": "NodePort",
        "clusterIP": "172.16.198.119",
        "clusterIPs": ["172.16.198.119"],
        "ipFamilies": ["IPv4"],
        "externalTrafficPolicy": "Local",
        "ports": [{"name": "80-80-tcp", "protocol": "TCP", "port": 80, "nodePort": 31015}],
    }
    metadata = {"namespace": "test", "name": "nginx-externaltrafficpolicy"}
    nodes = [
        {
            "metadata": {"name": name},
            "spec": {"podCIDRs": [pods]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }
        for name, pods, address in (
            ("node-a", "10.244.1.0/24", "10.0.0.3"),
            ("node-b", "10.244.2.0/24", "10.0.0.10"),
        )
    ]
    conditions = {"ready": True, "serving": True, "terminating": False}
    slice_ = {
        "metadata": {
            "namespace": "test",
            "name": "s",
            "labels": {"kubernetes.io/service-name": "nginx-externaltrafficpolicy"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "80-80-tcp", "protocol": "TCP", "port": 80}],
        "endpoints": [{"addresses": ["10.244.1.10"], "conditions": conditions, "nodeName": "node-a"}],
    }
    files: dict[str, dict[str, Any]] = {
        "cluster/endpointslices.json": {"items": [slice_]},
        "cluster/services.json": {"items": [{"metadata": metadata, "spec": spec}]},
        "cluster/nodes.json": {"items": nodes},
    }

    for path, items in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps({"apiVersion": "v1", "kind": "List", **items}))
    own = folder / "nodes" / "node-b"
    own.mkdir(parents=True)
    (own / "nft-ruleset.json").write_bytes(Path(NFT_JSON).read_bytes())
    address = {"family": "inet", "local": "10.0.0.10", "prefixlen": 24, "scope": "global"}
    eth0 = {"ifindex": 2, "ifname": "eth0", "flags": ["UP"], "link_type": "ether", "addr_info": [address]}
    local = {"type": "local", "table": "local", "scope": "host"}
    routes = [
        {"dst": "default", "gateway": "10.0.0.1", "dev": "eth0"},
        {"dst": "10.0.0.0/24", "dev": "eth0", "scope": "link", "prefsrc": "10.0.0.10"},
        {"dst": "10.244.1.0/24", "gateway": "10.0.0.3", "dev": "eth0"},
        {"dst": "10.244.2.0/24", "dev": "cni0", "scope": "link"},
        {**local, "dst": "10.0.0.10", "dev": "eth0", "prefsrc": "10.0.0.10"},
        {**local, "dst": "127.0.0.0/8", "dev": "lo", "prefsrc": "127.0.0.1"},
    ]
    (own / "ip-addr.json").write_text(json.dumps([eth0]))
    (own / "ip-route.json").write_text(json.dumps(routes))
    (own / "ss.txt").write_text("")
    return folder


def test_a_service_of_an_nftables_cluster(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    snapshot = str(nft_snapshot(tmp_path))
    status, out, err = ktp(capsys, "test/nginx-externaltrafficpolicy", "--snapshot", snapshot, "-o", "json")
    assert status == 1, err
    items = {i["subject"].split(" of ")[0]: i for i in json.loads(out)["items"]}
    port = items["node port 31015/tcp"]
    assert port["verdict"]["disposition"] == "dropped"
    assert (
        "externalTrafficPolicy of test/nginx-externaltrafficpolicy:80-80-tcp is Local"
        in port["verdict"]["why"]
    )
    assert port["rulesOf"].startswith("kube-proxy 1.36 or newer, nftables mode")
    assert items["cluster IP 172.16.198.119:80/tcp"]["verdict"]["disposition"] == "delivered"


@pytest.mark.parametrize(
    ("vantage", "disposition"),
    [("node", "delivered"), ("pod", "delivered"), ("external", "dropped"), ("localhost", "no_listener")],
)
def test_who_asks_an_nftables_node(
    vantage: str, disposition: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    snapshot = str(nft_snapshot(tmp_path))
    _, out, err = ktp(capsys, "--node-port", "31015", "--snapshot", snapshot, "--from", vantage, "-o", "json")
    assert json.loads(out)["verdict"]["disposition"] == disposition, err


def test_chains_of_a_snapshot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    snapshot = str(nft_snapshot(tmp_path))
    status, out, _ = ktp(capsys, "--chain", "masquerading", "--snapshot", snapshot)
    assert status == 0
    assert "chain masquerading, node-b" in out
    assert "hairpin-connections" in out


# --------------------------------------------------------------------------------------------------- any address

RECORDED = Path(__file__).resolve().parents[2] / "data" / "cases"
DUMPS = {
    "core-1.20-iptables-legacy": "iptables-legacy-save.txt",
    "core-1.36-iptables-nft": "iptables-nft-save.txt",
    "core-1.36-nftables": "nft-ruleset.json",
    "ipvs-1.36-legacy": "ipvsadm.txt",
    "cilium-1.19.4-policy": "cilium/bpf-lb-list.json",
}


def explained(text: str) -> list[dict[str, Any]]:
    """What was printed: one explanation alone, or several."""
    found = json.loads(text)
    return list(found.get("items", [found]))


def ends_of(case: str, name: str) -> tuple[str, int, int]:
    """The cluster IP, port and node port of a recorded Service."""
    services = json.loads((RECORDED / case / "cluster/services.json").read_text())["items"]
    (spec,) = [s["spec"] for s in services if s["metadata"]["name"] == name]
    return spec["clusterIP"], spec["ports"][0]["port"], spec["ports"][0]["nodePort"]


@pytest.mark.parametrize("case", DUMPS)
def test_any_address_is_explained_from_a_dump(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A cluster IP and a load balancer's address, in each form of rules."""
    dump = RECORDED / case / "nodes" / "node-a" / DUMPS[case]
    cluster_ip, port, _ = ends_of(case, "nginx-log")
    for address in (cluster_ip, "10.99.0.12"):
        assert run(["explain-rules", f"{address}:{port}", "--rules", str(dump), "-o", "json"]) == 0
        (found,) = explained(capsys.readouterr().out)
        assert found["verdict"]["disposition"] == "delivered"
        assert f"{address}:{port}/tcp" in found["subject"]


@pytest.mark.parametrize("case", [c for c in DUMPS if c.startswith("core")])
@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_an_address_is_taken_for_the_nodes_own_where_only_that_explains_it(
    case: str, node: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node port under Local, whose pod was on one node: what a node's own address gets is told from the rules."""
    dump = str(RECORDED / case / "nodes" / node / DUMPS[case])
    slices = json.loads((RECORDED / case / "cluster/endpointslices.json").read_text())["items"]
    name = "nginx-externaltrafficpolicy"
    held = {
        e["nodeName"]
        for s in slices
        if s["metadata"]["labels"]["kubernetes.io/service-name"] == name
        for e in s["endpoints"]
    }
    _, _, node_port = ends_of(case, name)
    own = "192.0.2.77"
    if case == "core-1.36-nftables":  # its rules name the addresses that node ports are served on
        assert run(["explain-rules", f"{own}:{node_port}", "--rules", dump, "-o", "json"]) == 4
        (found,) = explained(capsys.readouterr().out)
        own = {"node-a": "10.0.0.3", "node-b": "10.0.0.10"}[node]
    assert run(["explain-rules", f"{own}:{node_port}", "--rules", dump, "-o", "json"]) == (node not in held)
    (found,) = explained(capsys.readouterr().out)
    taken = [n for n in found["notes"] if f"{own} is taken for an address of this node" in n]
    assert bool(taken) is (case != "core-1.36-nftables")
    # Of another port it is not known whose it is, and nothing is taken for granted.
    assert run(["explain-rules", "192.0.2.77:9", "--rules", dump, "-o", "json"]) == 4
    (found,) = explained(capsys.readouterr().out)
    assert not [n for n in found["notes"] if "taken for" in n]


@pytest.mark.parametrize("what", ["10.0.0.10:31015", "10.99.0.12:80", "10.0.0.10:22"])
def test_an_address_of_a_snapshot_is_asked_where_it_is(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A node's own address on that node alone, with its sockets; a load balancer's on every node."""
    status = run(["--demo", "explain-rules", what, "-o", "json"])
    found = explained(capsys.readouterr().out)
    nodes = [each["node"] for each in found]
    assert nodes == (["node-a", "node-b", "node-c"] if "99" in what else ["node-b"])
    assert status == (0 if "99" in what else 1)
    if what.endswith(":22"):
        assert found[0]["subject"] == "10.0.0.10:22/tcp"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("192.0.2.1:99999", "99999"),
        ("192.0.2.1:80/quic", "192.0.2.1:80/quic"),
        ("192.0.2.300:80", "192.0.2.300"),
    ],
)
def test_an_address_that_is_none(what: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    dump = str(RECORDED / "core-1.36-nftables/nodes/node-a/nft-ruleset.json")
    assert run(["explain-rules", what, "--rules", dump]) == 2
    assert said in capsys.readouterr().err


def test_a_dump_without_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    dump = str(RECORDED / "ipvs-1.36-legacy/nodes/node-a/ipvsadm.txt")
    assert run(["explain-rules", "192.0.2.1:80", "--rules", dump]) == 2
    assert "has nothing for 192.0.2.1:80" in capsys.readouterr().err
