"""Which kube-proxy a node runs, from each kind of evidence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ktp.kubeproxy.version import (
    NEWEST,
    VersionRange,
    iptables_bounds,
    nftables_bounds,
    parse_version,
    proxy_version,
    version_of_image,
)
from ktp.model.cluster import Cluster, Node, Pod
from ktp.model.host import NodeState
from ktp.model.nftables import NftChain, NftRuleset, NftTable
from ktp.model.ruleset import Backend, Chain, DictRuleset
from ktp.parse.iptables_save import parse_rule

XLB = "KUBE-XLB-3LS5F4HE6J2O753K"
EXT = "KUBE-EXT-3LS5F4HE6J2O753K"
NEW_FORWARD = ["-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]
OLD_FORWARD = [
    f"-A KUBE-FORWARD {way} 10.244.0.0/16 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    for way in ("-s", "-d")
]
NFACCT = ["-A KUBE-FORWARD -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP"]


def rules(
    nat: list[str], filter_chains: dict[str, list[str]], backend: Backend = Backend.LEGACY
) -> DictRuleset:
    tables: dict[str, Any] = {"nat": dict.fromkeys(["KUBE-NODEPORTS", *nat], ()), "filter": filter_chains}
    return DictRuleset(
        "ip",
        backend,
        "test",
        {
            t: {name: Chain(t, name, list(raw), parse_rule) for name, raw in c.items()}
            for t, c in tables.items()
        },
    )


EVERY = f"1.18 to 1.{NEWEST[1]}"
RULES_1_20 = rules([XLB], {"KUBE-EXTERNAL-SERVICES": [], "KUBE-FORWARD": OLD_FORWARD})
RULES_1_25 = rules([EXT], {"KUBE-NODEPORTS": [], "KUBE-PROXY-FIREWALL": [], "KUBE-FORWARD": NEW_FORWARD})


def state(*rulesets: DictRuleset) -> NodeState:
    return NodeState(name="node-a", rulesets=rulesets)


def cluster(
    *, kubelet: str = "", kube_proxy: str = "", api: str | None = None, images: tuple[str, ...] = ()
) -> Cluster:
    pods = tuple(
        Pod(namespace="kube-system", name=f"kube-proxy-{i}", node_name="node-a", images=(image,))
        for i, image in enumerate(images)
    )
    node = Node(name="node-a", kubelet_version=kubelet, kube_proxy_version=kube_proxy)
    return Cluster(nodes={"node-a": node}, pods=pods, version=api)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v1.30.5+k3s1", (1, 30)),
        ("1.36", (1, 36)),
        ("v1.29.0-eks-1ae3", (1, 29)),
        ("v1.36.2", (1, 36)),
        ("", None),
        ("latest", None),
    ],
)
def test_parse_version(text: str, version: tuple[int, int] | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("registry.k8s.io/kube-proxy:v1.30.5", (1, 30)),
        ("k8s.gcr.io/kube-proxy-amd64:v1.18.2", (1, 18)),
        ("localhost:5000/kube-proxy:v1.27.1@sha256:00ff", (1, 27)),
        ("602401143452.dkr.ecr.eu-west-1.amazonaws.com/eks/kube-proxy:v1.29.0-minimal-eksbuild.1", (1, 29)),
        ("gcr.io/google-containers/hyperkube:v1.18.6", (1, 18)),
        ("registry.k8s.io/kube-proxy@sha256:00ff", None),
        ("quay.io/coreos/kube-rbac-proxy:v0.15.0", None),
        ("example.org/my-kube-proxy:v1.30.5", None),
    ],
)
def test_version_of_image(image: str, version: tuple[int, int] | None) -> None:
    assert version_of_image(image) == version


@pytest.mark.parametrize(
    ("evidence", "rulesets", "expected", "words"),
    [
        (cluster(images=("registry.k8s.io/kube-proxy:v1.29.1",), kubelet="v1.30.0"), (), "1.29", "image"),
        (
            cluster(images=("a/kube-proxy:v1.29.1", "a/kube-proxy:v1.30.0")),
            (),
            "1.29 to 1.30",
            "Pod kube-system/kube-proxy-1",
        ),
        (cluster(kube_proxy="v1.30.0", kubelet="v1.30.0", api="v1.36.2"), (), "1.30", "kubeProxyVersion"),
        (cluster(kubelet="v1.33.0", api="v1.36.2"), (RULES_1_25,), "1.33", "kubelet's version"),
        (cluster(kubelet="v1.33.0"), (RULES_1_20,), "1.18 to 1.20", "KUBE-XLB-"),
        (cluster(api="v1.36.2"), (RULES_1_25,), "1.25 to 1.36", "KUBE-PROXY-FIREWALL"),
        (cluster(api="v1.29.3"), (), "1.18 to 1.29", "API server"),
        (cluster(), (), EVERY, "nothing tells"),
        (cluster(), (RULES_1_20, RULES_1_25), EVERY, "nothing tells"),
    ],
)
def test_proxy_version(
    evidence: Cluster, rulesets: tuple[DictRuleset, ...], expected: str, words: str
) -> None:
    found = proxy_version(evidence, "node-a", state(*rulesets))
    assert str(found) == expected
    assert words in found.source


def test_iptables_bounds_of_each_generation() -> None:
    transition = rules(
        [EXT], {"KUBE-EXTERNAL-SERVICES": [], "KUBE-NODEPORTS": [], "KUBE-FORWARD": NEW_FORWARD}
    )
    assert {(b.low, b.high) for b in iptables_bounds(transition)} >= {((1, 24), (1, 24))}
    counting = rules([], {"KUBE-NODEPORTS": [], "KUBE-FORWARD": NFACCT})
    assert ((1, 31), None) in {(b.low, b.high) for b in iptables_bounds(counting)}
    assert not list(iptables_bounds(rules([], {})))


@pytest.mark.parametrize(
    ("chains", "bounds"),
    [
        (["firewall-check", "mark-for-masquerade"], {((1, 29), None), (None, (1, 29)), (None, (1, 35))}),
        (["filter-output-post-dnat"], {((1, 29), None), ((1, 30), (1, 32))}),
        (["filter-prerouting-pre-dnat"], {((1, 29), None), ((1, 33), None)}),
    ],
)
def test_nftables_bounds(chains: list[str], bounds: set[object]) -> None:
    table = NftTable(family="ip", name="kube-proxy", chains={c: NftChain(name=c) for c in chains})
    assert {(b.low, b.high) for b in nftables_bounds(NftRuleset(tables=(table,)))} == bounds
    assert not list(nftables_bounds(NftRuleset(tables=())))


def test_range_knows_what_is_modelled() -> None:
    newer = VersionRange(low=NEWEST, high=(1, NEWEST[1] + 2), source="")
    assert newer.minors() == (NEWEST[1],)
    assert not newer.is_modelled
    with pytest.raises(ValueError, match="empty"):
        VersionRange(low=(1, 30), high=(1, 29), source="")


def test_the_documents_name_the_newest_version() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "data-planes.md").read_text()
    ends = re.findall(r"^\| kube-proxy, \w+.*?, 1\.\d+ to 1\.(\d+) \|", text, re.MULTILINE)
    assert ends == [str(NEWEST[1])] * 3
