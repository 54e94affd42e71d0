"""Nodes read through kube-proxy's pods: exec over a real WebSocket."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
import yaml

from ktp.collect.kube_api import KubeApi, connect
from ktp.collect.kube_proxy_exec import collect_through_kube_proxy, kube_proxy_of
from ktp.collect.pod_exec import Container, exec_in_pod
from ktp.errors import (
    ApiAnswerError,
    ApiForbiddenError,
    ApiTlsError,
    ApiUnauthorizedError,
    ApiUnreachableError,
)
from ktp.model.capture import Capture, EvidenceGap, MemoryCapture
from tests.integration.conftest import DEMO, TOKEN
from tests.support.api_server import ApiServer, Pki
from tests.support.exec_server import V4, V5, ExecServer, Program
from tests.support.tunnel import Tunnel

WHERE = Container(namespace="kube-system", pod="kube-proxy-x", container="kube-proxy")
ABSENT = Program(status=None)
EVERY_BYTE = bytes(range(256))


def api_of(server: ExecServer) -> KubeApi:
    return KubeApi(
        host=server.url,
        pool=urllib3.PoolManager(),
        authorization=lambda: "Bearer good",
        source="test",
        sleep=lambda _: None,
    )


def pod(name: str, node: str, labels: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "kube-system", "labels": dict(labels or {})},
        "spec": {"nodeName": node, "hostNetwork": True, "containers": [{"name": "kube-proxy"}], **spec},
        "status": {"phase": "Running"},
    }


def only_gap(capture: Capture) -> EvidenceGap:
    assert len(capture.gaps) == 1, capture.gaps
    return capture.gaps[0]


# -------------------------------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize("protocol", [V4, V5])
def test_output_errors_and_status_are_separate_and_exact(protocol: str) -> None:
    program = Program(stdout=EVERY_BYTE * 1000, stderr=b"oops \xff\n", status=3)
    with ExecServer(lambda command, stdin: program, protocols=(protocol,)).running() as server:
        answer = exec_in_pod(api_of(server), WHERE, ("nft", "list", "table x"), timeout=60)
    assert answer.stdout == EVERY_BYTE * 1000
    assert (answer.stderr, answer.status, answer.complete) == (b"oops \xff\n", 3, True)
    (asked,) = server.execs
    assert (asked.pod, asked.container, asked.command) == (
        "kube-proxy-x",
        "kube-proxy",
        ("nft", "list", "table x"),
    )
    assert asked.authorization == "Bearer good"
    assert asked.protocol == protocol


@pytest.mark.parametrize("protocol", [V4, V5])
def test_stdin_arrives_whole(protocol: str) -> None:
    text = b"x" * 100_000 + b"\nktp_main </dev/null\n"
    with ExecServer(lambda command, stdin: Program(stdout=stdin), protocols=(protocol,)).running() as server:
        assert exec_in_pod(api_of(server), WHERE, ("sh", "-s"), timeout=60, stdin=text).stdout == text


@pytest.mark.parametrize("protocol", [V4, V5])
def test_a_program_is_told_more_as_it_asks(protocol: str) -> None:
    told: list[bytes] = []

    def more(text: bytes) -> Program:
        told.append(text)
        return Program(stdout=b"well?", more=more) if len(told) < 3 else Program(stdout=b"bye")

    first = Program(stdout=b"well?", more=more)
    with ExecServer(lambda command, stdin: first, protocols=(protocol,)).running() as server:
        answer = exec_in_pod(
            api_of(server),
            WHERE,
            ("sh", "-s"),
            timeout=60,
            stdin=b"\nktp_main </dev/null\n",
            answer=lambda printed: b"more" if printed == b"well?" else b"",
        )
    assert (answer.status, answer.stdout, told) == (0, b"well?well?well?bye", [b"more"] * 3)


def test_a_hundred_megabytes_of_rules() -> None:
    rules = os.urandom(1 << 20) * 100
    with ExecServer(lambda command, stdin: Program(stdout=rules)).running() as server:
        before = time.monotonic()
        answer = exec_in_pod(api_of(server), WHERE, ("iptables-save",), timeout=60)
    assert answer.status == 0
    assert answer.stdout == rules
    assert time.monotonic() - before < 50


def test_a_program_that_is_not_in_the_image() -> None:
    with ExecServer(lambda command, stdin: ABSENT).running() as server:
        assert exec_in_pod(api_of(server), WHERE, ("sh",), timeout=60).status == 127


@pytest.mark.parametrize("status", [126, 127])
def test_a_runtime_that_tells_so_in_the_output(status: int) -> None:
    words = (
        b'OCI runtime exec failed: exec failed: exec: "sh": executable file not found in $PATH: unknown\r\n'
    )
    with ExecServer(lambda command, stdin: Program(stdout=words, status=status)).running() as server:
        answer = exec_in_pod(api_of(server), WHERE, ("sh",), timeout=60)
    assert (answer.status, answer.stdout) == (127, b"")


def test_a_connection_that_breaks_off_is_not_complete() -> None:
    with ExecServer(lambda command, stdin: Program(stdout=b"*nat\n", break_off=True)).running() as server:
        answer = exec_in_pod(api_of(server), WHERE, ("iptables-save",), timeout=60)
    assert not answer.complete
    assert answer.status == 1


def test_a_command_that_hangs() -> None:
    with ExecServer(lambda command, stdin: Program(stdout=b"*nat\n", hang=True)).running() as server:
        before = time.monotonic()
        assert exec_in_pod(api_of(server), WHERE, ("iptables-save",), timeout=0.3).status is None
        assert time.monotonic() - before < 30


@pytest.mark.parametrize(
    ("code", "said", "kind", "words"),
    [
        (
            403,
            'pods "kube-proxy-x" is forbidden: User "jane" cannot create resource "pods/exec" in API group ""',
            ApiForbiddenError,
            'user "jane" may not create pods/exec in namespace "kube-system"',
        ),
        (
            403,
            'pods "kube-proxy-x" is forbidden: User "jane" cannot get resource "pods/exec" in API group ""',
            ApiForbiddenError,
            'user "jane" may not get pods/exec in namespace "kube-system"',
        ),
        (401, "Unauthorized", ApiUnauthorizedError, "refuses the credentials"),
        (404, 'pods "kube-proxy-x" not found', ApiAnswerError, 'HTTP 404: pods "kube-proxy-x" not found'),
        (500, "", ApiAnswerError, "HTTP 500"),
    ],
)
def test_a_refusal_is_a_sentence(code: int, said: str, kind: type[Exception], words: str) -> None:
    server = ExecServer(lambda command, stdin: Program(), refuse=(code, said))
    with server.running() as running, pytest.raises(kind) as caught:
        exec_in_pod(api_of(running), WHERE, ("sh",), timeout=60)
    assert words in str(caught.value)


def test_no_server() -> None:
    with ExecServer(lambda command, stdin: Program()).running() as server:
        pass
    with pytest.raises(ApiUnreachableError, match="no exec connection"):
        exec_in_pod(api_of(server), WHERE, ("sh",), timeout=60)


@pytest.fixture
def https(pki: Pki) -> Iterator[ApiServer]:
    execs = ExecServer(lambda command, stdin: Program(stdout=b"*nat\n"))
    with ApiServer(DEMO, token=TOKEN, pki=pki, execs=execs).running() as running:
        yield running


@pytest.mark.parametrize(
    "how", ["token", "client certificate", "proxy of the environment", "proxy-url with a password"]
)
def test_exec_goes_the_way_that_other_requests_go(
    how: str, https: ApiServer, pki: Pki, kubeconfig: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = {"client-certificate": str(pki.client_cert), "client-key": str(pki.client_key)}
    far = https.url.replace("127.0.0.1", "kubernetes.test")
    tunnel = Tunnel(urlsplit(https.url).port or 0, password="YTpi" if "password" in how else None)
    with tunnel.running() as place:
        if how == "proxy of the environment":
            monkeypatch.setenv("HTTPS_PROXY", f"http://{place}")
        config = kubeconfig(far if "proxy" in how else https.url, user=user if "certificate" in how else None)
        if how.startswith("proxy-url"):
            content = yaml.safe_load(config.read_text())
            content["clusters"][0]["cluster"]["proxy-url"] = f"http://a:b@{place}"
            config.write_text(yaml.safe_dump(content))
            monkeypatch.setenv("NO_PROXY", "*")  # which is about the environment's proxies
        answer = exec_in_pod(connect(config), WHERE, ("iptables-save",), timeout=60)
    assert (answer.status, answer.stdout) == (0, b"*nat\n")
    (request,) = https.requests
    assert request.client_name == ("client" if "certificate" in how else None)
    assert request.authorization == (None if "certificate" in how else f"Bearer {TOKEN}")
    assert tunnel.asked == ([urlsplit(far).netloc] if "proxy" in how else [])


def test_exec_with_a_server_that_nobody_vouches_for(
    https: ApiServer, pki: Pki, kubeconfig: Callable[..., Path]
) -> None:
    with pytest.raises(ApiTlsError, match="certificate verify failed") as caught:
        exec_in_pod(connect(kubeconfig(https.url, ca=pki.other_ca)), WHERE, ("true",), timeout=60)
    assert "not signed by the CA in the kubeconfig" in str(caught.value.hint)


# ------------------------------------------------------------------------------------------------- which pod


@pytest.mark.parametrize(
    ("name", "labels", "spec", "container"),
    [
        ("kube-proxy-4x7kd", {"k8s-app": "kube-proxy"}, {}, "kube-proxy"),  # kubeadm, EKS, TKE
        ("kube-proxy-9qz2v", {"component": "kube-proxy", "tier": "node"}, {}, "kube-proxy"),  # AKS
        ("kube-proxy-gke-pool-1-abc", {"component": "kube-proxy", "tier": "node"}, {}, "kube-proxy"),  # GKE
        ("kube-proxy-node-a", {"component": "kube-proxy", "tier": "control-plane"}, {}, "kube-proxy"),  # RKE2
        ("kube-proxy-abc", {}, {}, "kube-proxy"),
        ("kube-proxy-abc", {"k8s-app": "kube-proxy"}, {"containers": [{"name": "log"}, {"name": "p", "image": "x/kube-proxy:v1"}]}, "p"),
        ("kube-proxy-abc", {"k8s-app": "kube-proxy"}, {"containers": [{"name": "main"}]}, "main"),
        ("kube-proxy-abc", {"k8s-app": "kube-proxy"}, {"hostNetwork": False}, None),
        ("kube-proxy-abc", {"k8s-app": "kube-proxy"}, {"nodeName": "node-b"}, None),
        ("coredns-abc", {"k8s-app": "kube-dns"}, {}, None),
    ],
)  # fmt: skip
def test_kube_proxy_is_found(
    name: str, labels: dict[str, str], spec: dict[str, Any], container: str | None
) -> None:
    found = kube_proxy_of([pod(name, "node-a", labels, **spec)], "node-a")
    assert (found.container if found else None) == container


def test_a_pod_that_ends_is_passed_over() -> None:
    old, new = (pod(name, "node-a", {"k8s-app": "kube-proxy"}) for name in ("kube-proxy-1", "kube-proxy-2"))
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    pending = pod("kube-proxy-0", "node-a", {"k8s-app": "kube-proxy"})
    pending["status"]["phase"] = "Pending"
    found = kube_proxy_of([pending, old, new], "node-a")
    assert found is not None
    assert found.pod == "kube-proxy-2"


# -------------------------------------------------------------------------------------------------- the nodes


def distroless(command: Sequence[str], stdin: bytes) -> Program:
    """registry.k8s.io/kube-proxy: iptables, nft, ipset, and neither shell nor cat nor ip."""
    answers = {
        "iptables-nft-save --version": b"iptables-nft-save v1.8.9 (nf_tables)\n",
        "iptables-nft-save -c": b"*nat\nCOMMIT\n",
        "iptables-legacy-save -c": b"",
        "ip6tables-nft-save -c": b"",
        "ip6tables-legacy-save -c": b"",
        "nft -j list ruleset": b'{"nftables": []}',
        "nft list flowtables": b"",
    }
    line = " ".join(command)
    if line in answers:
        return Program(stdout=answers[line])
    if command[0].startswith(("iptables", "ip6tables")) and command[-1] == "--version":
        return Program(stdout=b"iptables v1.8.9 (nf_tables)\n")
    if command[0] in {"nft", "ipset", "iptables-nft", "ip6tables-nft"}:
        return Program(status=1, stderr=b"not in this test\n")
    return ABSENT


def read(
    server: ExecServer, *nodes: str, capture: Capture | None = None, timeout: float = 20
) -> MemoryCapture:
    return collect_through_kube_proxy(
        api_of(server), nodes, capture or MemoryCapture(files={}), timeout=timeout
    )


def test_an_image_without_a_shell() -> None:
    server = ExecServer(distroless, pods=[pod("kube-proxy-x", "node-a", {"k8s-app": "kube-proxy"})])
    with server.running():
        found = read(server, "node-a")
    assert found.read("nodes/node-a/iptables-nft-save.txt") == b"*nat\nCOMMIT\n"
    assert found.read("nodes/node-a/nft-ruleset.json") == b'{"nftables": []}'
    gap = only_gap(found)
    assert gap.message == (
        "kube-proxy's image on node node-a has no commands for the node's addresses, routes, sockets, sysctls, "
        "and so they are not known"
    )
    commands = [" ".join(one.command) for one in server.execs]
    # Nothing that could make the kernel load a module or make a table.
    assert not [
        line
        for line in commands
        if line.startswith(("ipset", "ipvsadm")) or ("legacy" in line and "-t" in line.split())
    ]


def test_sets_are_read_where_rules_ask_for_them() -> None:
    def ipvs(command: Sequence[str], stdin: bytes) -> Program:
        line = " ".join(command)
        if line == "iptables-nft-save -c":
            return Program(
                stdout=b"*nat\n-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n"
            )
        if line == "ipset save":
            return Program(stdout=b"create KUBE-CLUSTER-IP hash:ip,port\n")
        return distroless(command, stdin)

    server = ExecServer(ipvs, pods=[pod("kube-proxy-x", "node-a", {"k8s-app": "kube-proxy"})])
    with server.running():
        found = read(server, "node-a")
    assert found.read("nodes/node-a/ipset-save.txt") == b"create KUBE-CLUSTER-IP hash:ip,port\n"
    assert "IPVS table" in only_gap(found).message


@pytest.mark.kernel
@pytest.mark.parametrize("protocol", [V4, V5])
def test_an_image_with_a_shell_takes_one_exec(make_netns: Callable[[str], str], protocol: str) -> None:
    netns = make_netns("exec")

    def shell(command: Sequence[str], stdin: bytes) -> Program:
        done = subprocess.run(
            ["ip", "netns", "exec", netns, *command], input=stdin, capture_output=True, check=False
        )
        return Program(stdout=done.stdout, stderr=done.stderr, status=done.returncode)

    subprocess.run(
        ["ip", "netns", "exec", netns, "iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES"], check=True
    )
    pods = [pod("kube-proxy-x", "node-a", {"k8s-app": "kube-proxy"})]
    server = ExecServer(shell, pods=pods, protocols=(protocol,))
    with server.running():
        found = read(server, "node-a")
    assert [one.command for one in server.execs] == [("sh", "-s")]
    assert found.gaps == ()
    assert b":KUBE-SERVICES - [0:0]" in found.read("nodes/node-a/iptables-nft-save.txt")
    assert found.has("nodes/node-a/sysctl.txt")


def test_many_nodes_and_one_that_fails() -> None:
    def one_fails(command: Sequence[str], stdin: bytes) -> Program:
        return distroless(command, stdin)

    names = [f"node-{number}" for number in range(8)]
    server = ExecServer(
        one_fails, pods=[pod(f"kube-proxy-{name}", name, {"k8s-app": "kube-proxy"}) for name in names[1:]]
    )
    with server.running():
        found = read(server, *names)
    assert set(found.node_names()) == set(names[1:])
    assert [gap.message for gap in found.gaps if gap.subject == "node-0"] == [
        "no kube-proxy pod runs on node node-0"
    ]


def test_exec_that_is_forbidden_names_the_right_that_is_missing() -> None:
    said = 'pods "kube-proxy-x" is forbidden: User "jane" cannot create resource "pods/exec" in API group ""'
    pods = [pod("kube-proxy-x", "node-a", {"k8s-app": "kube-proxy"})]
    with ExecServer(distroless, refuse=(403, said), pods=pods).running() as server:
        gap = only_gap(read(server, "node-a"))
    assert gap.message == (
        'user "jane" may not create pods/exec in namespace "kube-system"; node node-a cannot be read through its '
        "kube-proxy pod"
    )
    assert "--verb=get,create --resource=pods/exec" in str(gap.remedy)


def test_pods_that_may_not_be_listed() -> None:
    with ExecServer(distroless, forbidden_pods=True).running() as server:
        gap = only_gap(read(server, "node-a", "node-b"))
    assert gap.kind == "api-forbidden"
    assert gap.message.startswith('user "jane" may not list pods in namespace "kube-system"')


@pytest.mark.parametrize(
    ("version", "labels", "words"),
    [
        (
            "v1.30.4+k3s1",
            None,
            "no kube-proxy pod runs on node node-a: k3s runs kube-proxy within its own process",
        ),
        (
            "v1.30.4",
            {"k8s-app": "cilium"},
            "no kube-proxy pod runs on node node-a; Cilium runs there, and may do its work",
        ),
        ("v1.30.4", None, "no kube-proxy pod runs on node node-a"),
    ],
)
def test_a_node_without_kube_proxy_is_said_plainly(
    version: str, labels: dict[str, str] | None, words: str
) -> None:
    nodes = f'{{"items": [{{"metadata": {{"name": "node-a"}}, "status": {{"nodeInfo": {{"kubeletVersion": "{version}"}}}}}}]}}'
    pods = [pod("agent", "node-a", labels)] if labels else []
    with ExecServer(distroless, pods=pods).running() as server:
        gap = only_gap(
            read(server, "node-a", capture=MemoryCapture(files={"cluster/nodes.json": nodes.encode()}))
        )
    assert gap.message == words
    assert "--node-access ssh" in str(gap.remedy)


def test_a_shell_whose_answer_is_cut() -> None:
    def cut(command: Sequence[str], stdin: bytes) -> Program:
        if command[0] != "sh":
            return distroless(command, stdin)
        done = subprocess.run(["sh", "-s"], input=stdin, capture_output=True, check=False)
        return Program(stdout=done.stdout[:500], break_off=True)

    server = ExecServer(cut, pods=[pod("kube-proxy-x", "node-a", {"k8s-app": "kube-proxy"})])
    with server.running():
        found = read(server, "node-a")
    assert (
        only_gap(found).message
        == "the answer of node node-a broke off, and only what came whole until then is used"
    )


# ---------------------------------------------------------------------------------------------- Cilium's agent

MAPS = '{"10.0.0.3:30006/TCP (0)": ["0.0.0.0:0 (1) (0) [NodePort, Local]"]}'


def agent_pod(name: str, node: str) -> dict[str, object]:
    return pod(name, node, {"k8s-app": "cilium"}, containers=[{"name": "config"}, {"name": "cilium-agent"}])


def agent_of(folder: Path, netns: str) -> Callable[[Sequence[str], bytes], Program]:
    """A container with a shell, iproute2 and Cilium's command."""
    command = folder / "cilium-dbg"
    command.write_text(
        f"#!/bin/sh\ncase \"$*\" in 'bpf lb list -o json') echo '{MAPS}' ;; 'status -o json') echo '{{}}' ;;"
        " version) echo 'Daemon: 1.19.4 x' ;; *) echo \"no $*\" >&2; exit 1 ;; esac\n"
    )
    command.chmod(0o755)

    def answer(command: Sequence[str], stdin: bytes) -> Program:
        done = subprocess.run(
            ["ip", "netns", "exec", netns, *command], input=stdin, capture_output=True, check=False,
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        )  # fmt: skip
        return Program(stdout=done.stdout, stderr=done.stderr, status=done.returncode)

    return answer


@pytest.mark.kernel
def test_a_node_of_cilium_is_read_through_its_agent(make_netns: Callable[[str], str], tmp_path: Path) -> None:
    server = ExecServer(agent_of(tmp_path, make_netns("exec")), pods=[agent_pod("cilium-x", "node-a")])
    with server.running():
        found = read(server, "node-a")
    assert [(one.pod, one.container, one.command) for one in server.execs] == [
        ("cilium-x", "cilium-agent", ("sh", "-s"))
    ]
    assert found.read("nodes/node-a/cilium/bpf-lb-list.json").decode().strip() == MAPS
    assert found.has("nodes/node-a/cilium/version.txt")
    assert found.has("nodes/node-a/ip-addr.json")
    assert not found.has("nodes/node-a/cilium/policy-get.json")  # it failed there, and only names things
    assert {gap.kind for gap in found.gaps} == {"data-plane"}
    assert sorted(gap.message for gap in found.gaps)[0].startswith(
        "`cilium-dbg bpf endpoint list -o json` failed"
    )
    assert found.source == "node node-a through Cilium's pods"


@pytest.mark.kernel
def test_beside_kube_proxy_its_pod_tells_the_rules(make_netns: Callable[[str], str], tmp_path: Path) -> None:
    agent = agent_of(tmp_path, make_netns("exec"))

    def both(command: Sequence[str], stdin: bytes) -> Program:
        return agent(command, stdin) if server.execs[-1].pod == "cilium-x" else distroless(command, stdin)

    pods = [pod("kube-proxy-x", "node-a", {"k8s-app": "kube-proxy"}), agent_pod("cilium-x", "node-a")]
    server = ExecServer(both, pods=pods)
    with server.running():
        found = read(server, "node-a")
    assert found.read("nodes/node-a/iptables-nft-save.txt") == b"*nat\nCOMMIT\n"
    assert found.has("nodes/node-a/ip-addr.json")
    assert found.has("nodes/node-a/cilium/bpf-lb-list.json")
    assert {gap.kind for gap in found.gaps} == {
        "data-plane"
    }  # kube-proxy's image has no ip, and Cilium's has
    assert found.source == "node node-a through kube-proxy's and Cilium's pods"
