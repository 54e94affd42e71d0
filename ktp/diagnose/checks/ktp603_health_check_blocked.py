"""The node's healthCheckNodePort does not answer the load balancer.

# What it means
With policy Local kube-proxy answers on healthCheckNodePort of every node: 200 where the node holds a ready endpoint,
503 where not, also while the last ones there are terminating and still serve. On this node the question does not get
through: a rule drops it, or nobody listens.

# Why traffic fails
The load balancer takes the node for down and sends it nothing, though its pods are ready: the others get its share, and
if it was the last one, the load balancer has no node left. The node port itself answers, which misleads: its packets
are translated and never pass INPUT, the health check's do.

# Evidence
The rule or the missing socket, and that the health check gets through without the rule.

# Confirm by hand
    curl -s -o /dev/null -w '%{http_code}\\n' http://NODE-IP:HEALTHCHECKNODEPORT/     # from another machine
    ss -lnt | grep HEALTHCHECKNODEPORT                                              # on the node

# Fix
Let the load balancer's addresses reach healthCheckNodePort in the node's firewall; where nobody listens, see why
kube-proxy does not run or could not open the port.

# Example
A hardened node drops TCP 30000 to 32767 in INPUT: node ports go on working, the load balancer empties.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ktp.dataplane.answer import answer_flow
from ktp.diagnose.case import Case
from ktp.diagnose.checks.base import Check, counterfactual, field
from ktp.diagnose.checks.kube_common import kube_proxy_evidence
from ktp.diagnose.checks.rule_common import RuleInPlace, deciding_rule
from ktp.diagnose.questions import external_client, node_addresses
from ktp.kubeproxy.data_planes import has_kube_proxy
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind
from ktp.model.diagnosis import Evidence, Finding, Fix, Severity
from ktp.model.trace import Disposition, Flow, FlowAnswer, Symptom


def run(case: Case) -> Iterable[Finding]:
    """Fires for each node on which the health check is stopped by a rule or meets no listener."""
    service = case.service
    number = service.health_check_node_port
    if (
        not number
        or service.type != "LoadBalancer"
        or service.external_traffic_policy != "Local"
        or not case.entries
    ):
        return
    for node in case.nodes:
        state = case.state(node)
        if state is None or not state.has_rules or not has_kube_proxy(state):
            continue
        flow = _flow(case, node, number)
        answer = answer_flow(case.examiner.walker, flow) if flow is not None else None
        if flow is None or answer is None or answer.symptom in (Symptom.CONNECTS, Symptom.UNKNOWN):
            continue
        rules = [r for p in answer.paths if (r := deciding_rule(p)) is not None]
        if answer.disposition is Disposition.NO_LISTENER:
            if state.sockets is not None and not _waits(case, node):
                yield _not_listening(case, node, number, answer)
        elif rules:
            yield from _blocked(case, node, number, flow, answer, rules[0])
        elif answer.decided_by is not None and answer.disposition is Disposition.DROPPED:
            decided = answer.decided_by
            evidence = Evidence(
                decided.kind.value, f"{node} {decided.backend} {decided.table}".strip(), decided.rule
            )
            yield _finding(case, node, number, answer, f"{answer.reason}", [evidence], verified=False)


def _flow(case: Case, node: str, number: int) -> Flow | None:
    """The load balancer's question: from outside, to the node's first address."""
    address = next((a for a in node_addresses(case.snapshot, node) if a.version == 4), None)
    if address is None:
        return None
    front_end = FrontEnd(kind=FrontEndKind.NODE_PORT, ip=address, port=number, protocol="TCP", ip_version=4)
    client = external_client(case.snapshot, case.service, front_end, node, case.examiner.client)
    return Flow(dst=str(address), port=number, src=str(client), via=node)


def _holds(case: Case, node: str) -> int:
    """How many usable endpoints the node holds."""
    return max(
        (
            sum(
                1
                for e in case.examiner.port_on(case.service, port, node).selection().usable
                if e.node_name == node
            )
            for port in case.service.ports
        ),
        default=0,
    )


def _waits(case: Case, node: str) -> bool:
    """Whether the node's kube-proxy opens no health check for want of endpoints anywhere."""
    return not any(
        case.examiner.port_on(case.service, p, node).selection().has_endpoints for p in case.service.ports
    )


def _blocked(
    case: Case, node: str, number: int, flow: Flow, answer: FlowAnswer, rule: RuleInPlace
) -> Iterable[Finding]:
    world = case.world(rule.label, partial(rule.removed, case.snapshot))
    if world is None:
        return
    after = answer_flow(world.walker, flow)
    if after.symptom is answer.symptom and after.reason == answer.reason:
        return
    opened = after.symptom is Symptom.CONNECTS
    then = (
        f"{flow.src} connects to port {number} of {node}"
        if opened
        else f"port {number} of {node}: {after.reason}"
    )
    evidence = [rule.evidence(), counterfactual(f"without this rule, {then}")]
    words = f"a rule in {rule.place} {rule.verb} it (written by {rule.author})"
    yield _finding(case, node, number, answer, words, evidence, verified=opened)


def _not_listening(case: Case, node: str, number: int, answer: FlowAnswer) -> Finding:
    evidence = [
        Evidence("socket", f"{node} ss -lntu", f"nothing listens on port {number}"),
        *kube_proxy_evidence(case, node),
    ]
    return _finding(case, node, number, answer, "nobody listens there", evidence, verified=False)


def _finding(
    case: Case,
    node: str,
    number: int,
    answer: FlowAnswer,
    words: str,
    evidence: list[Evidence],
    *,
    verified: bool,
) -> Finding:
    count = _holds(case, node)
    effect = (
        f"load balancers take {node} for down, though it holds {count} usable endpoint{'s' * (count != 1)}"
        if count
        else f"{node} holds no endpoint, so that no traffic is lost by it"
    )
    return CHECK.finding(
        f"healthCheckNodePort {number} of {case.service.key} does not answer on {node} "
        f"({answer.symptom.value}): {words}; {effect}",
        node=node,
        evidence=[field(f"Service {case.service.key}", f"spec.healthCheckNodePort: {number}"), *evidence],
        fix=Fix(
            f"let the load balancer's addresses reach TCP port {number} on {node}"
            if verified
            else f"see why kube-proxy on {node} does not answer on port {number}",
            cost="the port tells anybody who reaches it how many endpoints the node holds",
            verified=verified,
            outcome=f"without the rule the health check connects on {node}" if verified else "",
        ),
        severity=Severity.ERROR if count else Severity.INFO,
    )


CHECK = Check("KTP603", "HealthCheckBlocked", Severity.ERROR, run)
