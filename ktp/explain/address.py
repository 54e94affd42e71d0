"""`ktp explain-rules IP:PORT` from a dump alone: any address, whosever it is."""

from __future__ import annotations

from ktp.dataplane.answer import answer_flow
from ktp.explain.explain import AskedAddress, ask_dump, explain_flow
from ktp.explain.front_end import NodePortRules, node_port_rules
from ktp.model.explanation import Explanation
from ktp.model.host import NodeState
from ktp.model.trace import Disposition


def explain_address_in_rules(
    state: NodeState, family: str, address: str, protocol: str, port: int, vantage: str, *, every_rule: bool
) -> list[Explanation]:
    """What the rules of one node do with packets to an address, taken for the node's own where only that explains it.

    Whose an address is no dump tells: rules that name it decide on it wherever it is. Where none does, and the port is
    a node port, the question is about one.
    """
    rulesets = [r for r in state.rulesets if r.family == family and r.tables()]
    kube = next((r for r in rulesets if r.chain("nat", "KUBE-SERVICES") is not None), None)
    rules = node_port_rules(kube, protocol, port) if kube is not None else NodePortRules()
    own = AskedAddress(address, is_own=True)
    if state.nft is not None and kube is None:
        from ktp.explain.nft_explain import ask_nft_dump

        asked = [
            ask_nft_dump(state.nft, state.name, protocol, port, vantage, d)
            for d in (AskedAddress(address, is_own=False), own)
        ]
        questions, as_own = (each[0] if each else None for each in asked)
    elif rulesets:
        ruleset = kube or rulesets[0]
        questions = ask_dump(
            state, ruleset, protocol, port, vantage, NodePortRules(), AskedAddress(address, is_own=False)
        )
        as_own = ask_dump(state, ruleset, protocol, port, vantage, rules, own)
    else:
        return []
    if questions is None:
        return []
    walker, question = questions
    answer = answer_flow(walker, question.flow)
    by_rules = answer.disposition in (Disposition.DROPPED, Disposition.REJECTED) or any(
        path.endpoint_ip not in (None, address) for path in answer.paths
    )
    if as_own is not None and as_own[1].rules and not by_rules:
        walker, question = as_own
    return [explain_flow(walker, question, every_rule=every_rule)]
