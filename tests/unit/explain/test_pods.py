"""The rules of a pod's own network namespace are among those that its packet meets: behind the node's, by the pod's name."""

from __future__ import annotations

from ktp.diagnose.explain_rules import explain_service_ends
from ktp.explain.explain import EXTERNAL
from ktp.model.explanation import Explanation
from tests.unit.diagnose.scenarios_catalogue import _TO_SIDECAR, DEADPORT, DEADPORT_SOCKETS, replaced
from tests.unit.diagnose.worlds import recorded

RULES = "pods/edge_deadport-0/iptables-nft-save.txt"
LISTENS = replaced("tcp LISTEN 0 5 *:8081 *:*\ntcp LISTEN 0 5 *:15006 *:*\n")


def explained(*, with_rules: bool, node: str = "node-a") -> Explanation:
    edits = {("node-a", DEADPORT_SOCKETS): LISTENS}
    if with_rules:
        edits["node-a", RULES] = replaced(_TO_SIDECAR)
    snapshot = recorded(edits)
    return explain_service_ends(snapshot, snapshot.cluster.services[DEADPORT], EXTERNAL, [node])[0]


def test_the_sidecars_rule_stands_behind_the_nodes() -> None:
    found = explained(with_rules=True)
    places = [stage.pod for stage in found.stages]
    assert places == sorted(places)  # the node's first
    (inside,) = [stage for stage in found.stages if stage.pod]
    assert (inside.pod, inside.hook, inside.chain.table) == ("edge/deadport-0", "PREROUTING", "nat")
    (rule,) = inside.chain.rules
    assert rule.share == 1.0
    assert rule.text.endswith("-j REDIRECT --to-ports 15006")


def test_without_rules_or_where_the_packet_does_not_get_there_is_no_stage_of_a_pod() -> None:
    assert not any(stage.pod for stage in explained(with_rules=False).stages)
    assert not any(stage.pod for stage in explained(with_rules=True, node="node-b").stages)
