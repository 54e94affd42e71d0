"""Rulesets as small as a question allows: one node port, of one Service, in the form of kube-proxy 1.36."""

from __future__ import annotations

from collections.abc import Sequence

from ktp.explain.explain import EXTERNAL, ask_dump, explain_flow
from ktp.explain.front_end import node_port_rules
from ktp.model.explanation import Explanation
from ktp.model.host import NodeState
from ktp.parse.iptables_save import open_ruleset

SERVICE = "KUBE-SVC-3LS5F4HE6J2O753K"
EXTERNALLY = "KUBE-EXT-3LS5F4HE6J2O753K"
NAMED = '-m comment --comment "test/web:http"'
PORT = 30080

ENTER = ("-A PREROUTING -j KUBE-SERVICES", "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
LEAD = f"-A KUBE-NODEPORTS -p tcp {NAMED} -m tcp --dport {PORT} -j {EXTERNALLY}"
CLUSTER = (
    f"-A {EXTERNALLY} -j KUBE-MARK-MASQ",
    f"-A {EXTERNALLY} -j {SERVICE}",
    "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    "-A POSTROUTING -j KUBE-POSTROUTING",
    "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
    "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
)


def endpoints(*chances: float) -> tuple[str, ...]:
    """The rules of as many endpoints, the last of which takes what the lots of the others leave."""
    rules: list[str] = []
    for number, chance in enumerate(chances):
        name = f"KUBE-SEP-{'ABCDEFGH'[number] * 16}"
        lot = f" -m statistic --mode random --probability {chance:.11f}" if chance < 1 else ""
        rules.append(f"-A {SERVICE} {NAMED}{lot} -j {name}")
        rules.append(f"-A {name} -p tcp -m tcp -j DNAT --to-destination 10.244.{number}.10:8080")
    return tuple(rules)


def save(nat: Sequence[str], filter_: Sequence[str] = (), policy: str = "ACCEPT") -> bytes:
    """A dump with those rules, and the chains that they need."""
    lines: list[str] = []
    for table, built_in, rules in (
        ("nat", ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), nat),
        ("filter", ("INPUT", "FORWARD", "OUTPUT"), filter_),
    ):
        words = [rule.split() for rule in rules]
        targets = {w[w.index("-j") + 1] for w in words} | {w[1] for w in words}
        own = sorted(name for name in targets if name.startswith("KUBE-") and name not in built_in)
        policies = [f":{c} {policy if c == 'FORWARD' else 'ACCEPT'} [0:0]" for c in built_in]
        lines += [f"*{table}", *policies, *(f":{name} - [0:0]" for name in own), *rules, "COMMIT"]
    return ("\n".join(lines) + "\n").encode()


def explained(dump: bytes, vantage: str = EXTERNAL, *, every_rule: bool = False) -> Explanation:
    """The whole answer about the node port."""
    ruleset = open_ruleset(dump, source="dump")
    rules = node_port_rules(ruleset, "tcp", PORT)
    state = NodeState(name="node-a", rulesets=(ruleset,))
    return explain_flow(*ask_dump(state, ruleset, "tcp", PORT, vantage, rules), every_rule=every_rule)
