"""A comment or a name in the evidence changes no answer: small clusters that once were misread for theirs."""

from __future__ import annotations

from pathlib import Path

from ktp.collect.snapshot import open_snapshot
from ktp.diagnose.explain_rules import explain_service_ends
from ktp.diagnose.service import diagnose_service
from ktp.explain.explain import EXTERNAL
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.parse.snapshot import parse_snapshot

REPORTS = Path(__file__).resolve().parents[2] / "data" / "reports" / "structure"


def diagnosis(name: str, service: str, *nodes: str) -> ServiceDiagnosis:
    snapshot = parse_snapshot(open_snapshot(REPORTS / name))
    return diagnose_service(snapshot, snapshot.cluster.services[service], nodes=nodes)


def test_a_comment_that_says_redirect_and_reject_is_a_comment() -> None:
    told, plain = (
        diagnosis(name, "test/nginx-externaltrafficpolicy", "node-a")
        for name in ("comment-says-redirect", "comment-plain")
    )
    assert [f.code for f in told.findings] == [f.code for f in plain.findings]
    assert [f.message for f in told.findings] == [f.message for f in plain.findings]
    assert "KTP405" not in {f.code for f in told.findings}
    stopping = next(f for f in told.findings if f.code == "KTP301")
    assert "drops" in stopping.message


def test_a_service_named_refused_is_not_refused() -> None:
    snapshot = parse_snapshot(open_snapshot(REPORTS / "service-named-refused"))
    service = snapshot.cluster.services["test/nginx-externaltrafficpolicy"]
    told = explain_service_ends(snapshot, service, EXTERNAL, ["node-b"])[0].verdict
    assert told is not None
    assert told.why == (
        "externalTrafficPolicy of test/nginx-refused:80-80-tcp is Local, and no usable endpoint of it runs on this node"
    )
