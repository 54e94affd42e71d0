"""`ktp check` on a node with many Services (`make test-kernel`: a thousand), while things break and are repaired there.

The node is a network namespace with kube-proxy's rules in the kernel, the API server a small one that is watched. Each
fault must show up at the next look, for the Services that it hits and no others, and be gone after its repair.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ktp.app.check import Looker, ThisNode
from ktp.collect import watching
from ktp.collect.kube_api import KubeApi
from ktp.collect.watching import ClusterWatch
from ktp.kubeproxy.synthesis_iptables import LocalMatch, RuleKnobs
from ktp.model.capture import MemoryCapture
from ktp.model.node_check import FrontEndState, NodeCheck
from ktp.parse.snapshot import parse_snapshot
from tests.support.api_server import ApiServer
from tests.support.kube_rules import iptables_save
from tests.support.node_netns import become_node, inside

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("iptables-restore") is None, reason="needs iptables"),
]

NODE = "node-b"
NETNS = f"ktp-chk{os.getpid() % 10000}"
SERVICES = int(os.environ.get("KTP_CHECK_SERVICES", "120"))
LOOKS = int(os.environ.get("KTP_CHECK_LOOKS", "30"))
KNOBS = RuleKnobs(local=LocalMatch("-s", "10.244.0.0/16"))


# ----------------------------------------------------------------------------------------------- the cluster


def node(name: str, ip: str, pods: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeProxyVersion": "v1.36.0", "kubeletVersion": "v1.36.0"},
        },
    }


def service(number: int) -> dict[str, Any]:
    """A node port; every second has the policy Local. The last tenth of all have none, as most Services."""
    external = number < SERVICES * 9 // 10
    spec: dict[str, Any] = {
        "type": "NodePort" if external else "ClusterIP",
        "clusterIP": (ip := f"172.16.{number >> 8}.{number & 255}"),
        "clusterIPs": [ip],
        "ipFamilies": ["IPv4"],
        "selector": {"app": f"s{number}"},
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        "internalTrafficPolicy": "Cluster",
        "sessionAffinity": "None",
    }
    if external:
        spec["externalTrafficPolicy"] = "Local" if number % 2 else "Cluster"
        spec["ports"][0]["nodePort"] = 30000 + number
    return {
        "metadata": {"namespace": "shop", "name": f"s{number}"},
        "spec": spec,
        "status": {"loadBalancer": {}},
    }


def endpoints(number: int) -> dict[str, Any]:
    """One on this node, one on another; each fourth Service has only that one."""
    here = {"addresses": [f"10.244.2.{number % 200 + 2}"], "nodeName": NODE}
    there = {"addresses": [f"10.244.1.{number % 200 + 2}"], "nodeName": "node-a"}
    return {
        "metadata": {
            "namespace": "shop", "name": f"s{number}-x", "labels": {"kubernetes.io/service-name": f"s{number}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {**e, "conditions": {"ready": True, "serving": True, "terminating": False}}
            for e in ([there] if number % 4 == 3 else [here, there])
        ],
    }  # fmt: skip


def write_cluster(folder: Path) -> Path:
    cluster = folder / "cluster"
    cluster.mkdir()
    for name, items in {
        "services": [service(n) for n in range(SERVICES)],
        "endpointslices": [endpoints(n) for n in range(SERVICES)],
        "nodes": [node("node-a", "10.0.0.3", "10.244.1.0/24"), node(NODE, "10.0.0.10", "10.244.2.0/24")],
    }.items():
        (cluster / f"{name}.json").write_text(json.dumps({"items": items}))
    (cluster / "version.json").write_text(json.dumps({"major": "1", "minor": "36", "gitVersion": "v1.36.0"}))
    return folder


# ---------------------------------------------------------------------------------------------------- the node


def sh(command: str, text: str = "") -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", NETNS, "sh", "-ec", command],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cluster(tmp_path_factory.mktemp("check"))


@pytest.fixture(scope="module")
def rules(folder: Path) -> str:
    """The dump of kube-proxy's rules on the node."""
    files = {f"cluster/{path.name}": path.read_bytes() for path in (folder / "cluster").iterdir()}
    return iptables_save(parse_snapshot(MemoryCapture(files=files)), NODE, KNOBS)


@pytest.fixture(scope="module")
def kernel(rules: str) -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", NETNS], check=True)
    try:
        become_node(NETNS, "10.0.0.10")
        sh(
            "ip link set lo up; ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.244.2.1/24 dev cni0; "
            "ip route add 10.244.1.0/24 via 10.0.0.3; sysctl -qw net.ipv4.ip_forward=1; iptables-restore",
            rules,
        )
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NETNS], check=False)


# -------------------------------------------------------------------------------------------------- the faults


@dataclass
class Fault:
    """How something is broken and repaired, and which of the Services (their numbers) are then not well."""

    name: str
    break_: Callable[[ApiServer], Any]
    repair: Callable[[ApiServer], Any]
    hits: Callable[[int], bool]
    cause: str | None = None


def shell(command: str) -> Callable[[ApiServer], Any]:
    return lambda _: sh(command)


def rule_again(rules: str, chain: str, table: str = "nat") -> str:
    """The commands that fill a chain again as the dump has it."""
    section = rules.partition(f"*{table}\n")[2].partition("COMMIT")[0]
    lines = [line for line in section.splitlines() if line.startswith(f"-A {chain} ")]
    assert lines
    return "; ".join(f"iptables -t {table} {line}" for line in lines)


def chain_of(rules: str, number: int, prefix: str) -> str:
    line = next(
        line for line in rules.splitlines() if f'"shop/s{number}:http' in line and f"-j {prefix}" in line
    )
    return line.rpartition(" ")[2]


def emptied(number: int) -> dict[str, Any]:
    return {**endpoints(number), "endpoints": []}


def faults(rules: str) -> list[Fault]:
    def is_external(number: int) -> bool:
        return number < SERVICES * 9 // 10

    def answers(number: int) -> bool:
        return is_external(number) and not (number % 2 and number % 4 == 3)

    one, two = 8, 12
    ext = chain_of(rules, one, "KUBE-EXT-")
    svc = chain_of(rules, two, "KUBE-SVC-")
    sep = next(line for line in rules.splitlines() if line.startswith(f"-A {svc} ") and "KUBE-SEP" in line)
    sep_chain = sep.rpartition(" ")[2]
    prerouting = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    newcomer = service(one)
    newcomer["metadata"]["name"] = "newcomer"
    newcomer["spec"]["ports"][0]["nodePort"] = 32000
    return [
        Fault(
            "a node port's rule is gone",
            shell(f"iptables -t nat -D {next(x for x in rules.splitlines() if f'-j {ext}' in x)[3:]}"),
            shell(
                rule_again(rules, "KUBE-NODEPORTS").split("; ")[
                    [x for x in rules.splitlines() if x.startswith("-A KUBE-NODEPORTS ")].index(
                        next(x for x in rules.splitlines() if f"-j {ext}" in x)
                    )
                ]
            ),
            lambda n: n == one,
            "KTP401",
        ),
        Fault(
            "an endpoint's chain leads to a pod that is gone",
            shell(
                f"iptables -t nat -F {sep_chain}; iptables -t nat -A {sep_chain} -p tcp -m tcp -j DNAT --to-destination 10.244.2.250:8080"
            ),
            shell(f"iptables -t nat -F {sep_chain}; {rule_again(rules, sep_chain)}"),
            lambda n: n == two,
            "KTP401",
        ),
        Fault(
            "a chain is empty",
            shell(f"iptables -t nat -F {ext}"),
            shell(rule_again(rules, ext)),
            lambda n: n == one,
        ),
        Fault(
            "the endpoints are gone, and kube-proxy has not followed",
            lambda server: server.put("endpointslices", emptied(two)),
            lambda server: server.put("endpointslices", endpoints(two)),
            lambda n: n == two,
        ),
        Fault(
            "a rule stops forwarded packets to a pod",
            shell(f"iptables -I FORWARD -d 10.244.2.{one + 2} -j DROP"),
            shell(f"iptables -D FORWARD -d 10.244.2.{one + 2} -j DROP"),
            lambda n: answers(n) and n % 200 == one,
            "KTP301",
        ),
        Fault(
            "forwarding is off",
            shell("sysctl -qw net.ipv4.ip_forward=0"),
            shell("sysctl -qw net.ipv4.ip_forward=1"),
            answers,
            "KTP201",
        ),
        Fault(
            "the policy of FORWARD is DROP",
            # kube-proxy lets through what it marked; what keeps its source address is not marked.
            shell("iptables -P FORWARD DROP"),
            shell("iptables -P FORWARD ACCEPT"),
            lambda n: answers(n) and n % 2 == 1,
            "KTP302",
        ),
        Fault(
            "the jump from PREROUTING is gone",
            shell(f"iptables -t nat -D PREROUTING {prerouting}"),
            shell(f"iptables -t nat -A PREROUTING {prerouting}"),
            answers,  # what filter drops for want of a local endpoint is silent all the same
            "KTP404",
        ),
        Fault(
            "a Service is new, and kube-proxy has no rules for it",
            lambda server: (
                server.put("services", newcomer),
                server.put("endpointslices", _named(endpoints(one), "newcomer")),
            ),
            lambda server: (
                server.delete("services", newcomer),
                server.delete("endpointslices", _named(endpoints(one), "newcomer")),
            ),
            lambda n: n == -1,
        ),
        Fault(
            "nothing is masqueraded",
            shell("iptables -t nat -F KUBE-MARK-MASQ"),
            shell(rule_again(rules, "KUBE-MARK-MASQ")),
            lambda n: is_external(n) and n % 2 == 0,
        ),
    ]


def _named(part: dict[str, Any], name: str) -> dict[str, Any]:
    part = copy.deepcopy(part)
    part["metadata"]["name"], part["metadata"]["labels"]["kubernetes.io/service-name"] = f"{name}-x", name
    return part


def sick(found: NodeCheck) -> set[str]:
    return {e.key for e in found.not_well}


# --------------------------------------------------------------------------------------------------- the tests


@pytest.fixture
def server(folder: Path) -> Iterator[ApiServer]:
    with ApiServer(folder).running() as running:
        running.bookmark_every = 0.2
        yield running


@pytest.fixture
def looker(server: ApiServer, kernel: None) -> Iterator[Looker]:
    import urllib3

    api = KubeApi(
        host=server.url, pool=urllib3.PoolManager(maxsize=4), authorization=lambda: None, source="test",
        sleep=lambda _: None,
    )  # fmt: skip
    feed = ClusterWatch(api, NODE)
    feed.start(watch=True)

    this = ThisNode(NODE)

    def reading() -> MemoryCapture:
        with inside(NETNS):
            return this.read()

    def revision() -> object:
        feed.refresh()
        return feed.revision

    yield Looker(
        node=NODE, objects=feed.capture, reading=reading, revision=revision, heard=lambda: feed.heard,
        problem=lambda: feed.problem,
    )  # fmt: skip
    feed.stop()


@pytest.mark.slow
def test_each_fault_shows_at_the_next_look_and_is_gone_after_the_repair(
    looker: Looker, server: ApiServer, rules: str
) -> None:
    looks = 0

    def look() -> NodeCheck:
        nonlocal looks
        looks += 1
        return looker.look()

    first = look()
    assert not first.not_well, first.not_well[:3]
    external = SERVICES * 9 // 10
    assert first.total == external
    assert first.count(FrontEndState.SILENT) == len([n for n in range(external) if n % 4 == 3])
    every = faults(rules)
    quiet = max(0, (LOOKS - 3 * len(every)) // len(every))
    for fault in every:
        before = server.version_of_all
        fault.break_(server)
        time.sleep(0.3 if server.version_of_all != before else 0)
        found = look()
        expected = {f"shop/s{n}" for n in range(SERVICES) if fault.hits(n)} or {"shop/newcomer"}
        assert sick(found) == expected, (fault.name, sorted(sick(found) ^ expected)[:5])
        causes = {e.cause for e in found.not_well} - {None}
        assert causes, (fault.name, found.not_well, found.undiagnosed, found.findings)
        if fault.cause is not None:
            assert causes == {fault.cause}, fault.name
        assert sick(look()) == expected
        before = server.version_of_all
        fault.repair(server)
        time.sleep(0.3 if server.version_of_all != before else 0)
        assert not look().not_well, fault.name
        for _ in range(quiet):
            assert not look().not_well, fault.name
    assert looks >= LOOKS - len(every)
    assert not looker.errors


def test_the_api_server_away_is_said_and_nothing_is_concluded_from_it(
    looker: Looker, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.api_server import Fault as ApiFault

    monkeypatch.setattr(watching, "_FIRST_WAIT", 0.05)
    monkeypatch.setattr(watching, "_MOST_WAIT", 0.1)
    assert not looker.look().not_well
    server.misbehave(".", *[ApiFault(hang_up=True)] * 4000)
    server.forget()
    time.sleep(0.5)
    found = looker.look()
    assert not found.not_well
    assert [g.kind for g in found.gaps if g.kind == "api-away"] == ["api-away"]
    server.behave()
    deadline = time.monotonic() + 30
    while any(g.kind == "api-away" for g in looker.look().gaps):
        assert time.monotonic() < deadline
    assert not looker.look().not_well


def test_serve_in_the_nodes_network(folder: Path, kernel: None, tmp_path: Path) -> None:
    with inside(NETNS):
        server = ApiServer(folder)
    with server.running():
        config = tmp_path / "config"
        config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "t",
                    "clusters": [{"name": "c", "cluster": {"server": server.url}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [{"name": "t", "context": {"cluster": "c", "user": "u"}}],
                }
            )
        )
        command = [
            "ip", "netns", "exec", NETNS, sys.executable, "-m", "ktp", "check", "--serve", "127.0.0.1:9497",
            "--interval", "1", "--kubeconfig", str(config),
        ]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as ktp:
            try:
                assert ktp.stderr is not None
                assert (
                    "serving /metrics, /healthz and /report of node-b on 127.0.0.1:9497"
                    in ktp.stderr.readline()
                )
                metrics = _page("/metrics", "ktp_frontends")
                external = SERVICES * 9 // 10
                silent = len([n for n in range(external) if n % 4 == 3])
                assert f'ktp_frontends{{state="silent"}} {float(silent)}' in metrics
                assert f'ktp_frontends{{state="answers"}} {float(external - silent)}' in metrics
                assert "ktp_finding{" not in metrics
                assert _page("/healthz", "ok") == "ok\n"
                sh("sysctl -qw net.ipv4.ip_forward=0")
                report = json.loads(_page("/report", f'"fails": {external - silent}'))
                assert {item["cause"] for item in report["items"]} >= {"KTP201"}
                assert 'code="KTP201",namespace="shop",service="s0",severity="error"' in _page(
                    "/metrics", "ktp_finding{"
                )
                sh("sysctl -qw net.ipv4.ip_forward=1")
                _page("/report", '"fails": 0')
                assert "ktp_finding{" not in _page("/metrics", "ktp_frontends")
            finally:
                sh("sysctl -qw net.ipv4.ip_forward=1")
                ktp.send_signal(signal.SIGTERM)
                ktp.wait(20)
            assert ktp.returncode == 0


def _page(path: str, until: str) -> str:
    """The page, once these words are on it."""
    deadline = time.monotonic() + 60
    text = ""
    while time.monotonic() < deadline:
        try:
            with inside(NETNS), urllib.request.urlopen(f"http://127.0.0.1:9497{path}", timeout=10) as answer:
                text = str(answer.read().decode())
            if until in text:
                return text
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{path} has no {until!r}: {text[:2000]}")
