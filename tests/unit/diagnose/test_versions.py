"""What single versions of kube-proxy do by themselves is no fault: clusters whose rules such a version writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.service import diagnose_service
from ktp.kubeproxy import synthesis
from ktp.kubeproxy.node import proxy_node
from ktp.model.cluster import Pod
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.model.snapshot import Snapshot
from ktp.parse.snapshot import parse_snapshot

CASE = Path(__file__).resolve().parents[2] / "data/cases/core-1.36-iptables-nft"


def written_by(minor: int) -> Snapshot:
    """The recorded cluster with the rules of kube-proxy 1.`minor`."""
    snapshot = parse_snapshot(open_snapshot(CASE))
    cluster = snapshot.cluster
    version = f"v1.{minor}.2"
    proxies = tuple(
        Pod(
            namespace="kube-system", name=f"kube-proxy-{name}", node_name=name, host_network=True, phase="Running",
            images=(f"registry.k8s.io/kube-proxy:{version}",),
        )
        for name in cluster.nodes or {}
    )  # fmt: skip
    pods = (*(pod for pod in cluster.pods or () if pod.namespace != "kube-system"), *proxies)
    of_version = replace(snapshot, cluster=replace(cluster, version=version, pods=pods))
    assert proxy_node(of_version, "node-a").versions.minors() == (minor,)
    return synthesis.reprogram(of_version, of_version.cluster)


def diagnosed(snapshot: Snapshot, service: str) -> ServiceDiagnosis:
    return diagnose_service(snapshot, snapshot.cluster.services[service])


def codes(diagnosis: ServiceDiagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings}


def test_first_releases_of_1_22_refuse_nothing_where_endpoints_are_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pkg/proxy/topology.go of 1.22: "has endpoints" counted those that are not ready too; no REJECT was written."""
    with monkeypatch.context() as patched:
        patched.setattr(synthesis, "_counts_unready", lambda *_: True)
        early = written_by(22)
    late = written_by(22)
    for snapshot in (early, late):
        assert "KTP401" not in codes(diagnosed(snapshot, "edge/local-notready"))
    symptoms = [
        {r.cells["external"].symptom for m in diagnosed(s, "edge/local-notready").frontends for r in m.nodes
         if "external" in r.cells} for s in (early, late)
    ]  # fmt: skip
    assert symptoms[0] != symptoms[1]  # the two really differ


def test_1_18_does_not_keep_the_source_at_external_ips() -> None:
    """ExternalPolicyForExternalIP: off in 1.18, on since 1.19. That clients' addresses are lost there is no finding."""
    for minor, lost in ((18, True), (20, False)):
        found = diagnosed(written_by(minor), "edge/local-extip")
        kept = {
            row.cells["external"].source_kept
            for matrix in found.frontends
            if matrix.kind == "externalIP"
            for row in matrix.nodes
        }
        assert (False in kept) is lost
        assert "KTP506" not in codes(found)
