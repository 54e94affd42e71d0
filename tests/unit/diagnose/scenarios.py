"""For every code a cluster in which it is found, and a healthy twin, much like it, in which it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from ktp.diagnose.probing import Predictor, Sender, compare, with_probes
from ktp.diagnose.reconcile import health_targets
from ktp.diagnose.service import diagnose_service
from ktp.kubeproxy.changes import with_ready_pod_on
from ktp.model.diagnosis import ServiceDiagnosis
from ktp.model.probing import Attempt, HealthAnswer, Observation
from ktp.model.snapshot import Snapshot
from ktp.model.trace import Symptom
from tests.unit.diagnose.scenarios_catalogue import CATALOGUE
from tests.unit.diagnose.worlds import (
    CLUSTER,
    LEGACY,
    LOCAL,
    NFT,
    Asked,
    both,
    demo,
    first_rule,
    in_order,
    not_ready,
    policy,
    programmed,
    recorded,
    routes,
    service_with,
    sysctl,
    without_endpoints,
    without_rules,
)


@dataclass(frozen=True)
class Scenario:
    """`fires` is a cluster in which the code is found, `silent` one in which it is not."""

    fires: Callable[[], Asked]
    silent: Callable[[], Asked]


@dataclass(frozen=True)
class Healthy(Asked):
    """With an answer of each node's healthCheckNodePort, which counts `more` endpoints than there are."""

    more: int = 0

    def diagnosis(self) -> ServiceDiagnosis:
        service = self.snapshot.cluster.services[self.service]
        counts = {w.node: (w.local_ready or 0) + self.more for w in super().diagnosis().reconciliation}
        health = {
            t.node: HealthAnswer(
                target=t, status=200 if counts[t.node] else 503, local_endpoints=counts[t.node]
            )
            for t in health_targets(self.snapshot, service)
        }
        return diagnose_service(self.snapshot, service, health=health)


@dataclass(frozen=True)
class Probed(Asked):
    """With tries of the node ports from outside: `met` has what those of each node met."""

    met: tuple[tuple[str, tuple[Symptom, ...]], ...] = ()

    def diagnosis(self) -> ServiceDiagnosis:
        predictor = Predictor(self.snapshot, self.snapshot.cluster.services[self.service])
        met = dict(self.met)
        observed = [
            Observation(
                target=target,
                source="10.0.0.200",
                attempts=tuple(Attempt(symptom=s, seconds=0.001) for s in met[target.node]),
            )
            for target in predictor.targets(Sender())
            if target.node in met
        ]
        return with_probes(super().diagnosis(), compare(predictor, observed))


_C, _T = Symptom.CONNECTS, Symptom.TIMES_OUT


def _no_selector() -> Asked:
    change = both(service_with(CLUSTER, selector={}), without_endpoints(CLUSTER))
    return Asked(programmed(demo(), CLUSTER, change), CLUSTER)


def _none_ready() -> Asked:
    change = not_ready(CLUSTER, "test/nginx-log-0", "test/nginx-log-1")
    return Asked(programmed(demo(), CLUSTER, change), CLUSTER)


def _selector_off() -> Asked:
    change = both(service_with(CLUSTER, selector={"app": "lgo"}), without_endpoints(CLUSTER))
    return Asked(programmed(demo(), CLUSTER, change), CLUSTER)


def _with_pods(*nodes: str) -> Snapshot:
    """The Local Service with one more ready pod on each of `nodes`, its rules in step."""
    base = demo()
    grown = base
    for node in nodes:
        grown = with_ready_pod_on(grown, LOCAL, node)
    return programmed(replace(base, nodes=grown.nodes), LOCAL, lambda _: grown.cluster)


def _rules_behind() -> Asked:
    """A pod came up on node-b, and the rules of node-b do not know it."""
    return Asked(with_ready_pod_on(demo(), LOCAL, "node-b"), LOCAL)


def _old_rules_in_the_other_backend(text: str) -> str:
    """What an earlier kube-proxy left: every Service's endpoint is one that is gone."""
    del text
    rules = (demo_file("node-b", LEGACY)).replace("10.244.1.12:80", "10.244.9.9:80")
    return rules.replace("10.244.2.11:80", "10.244.9.8:80")


def demo_file(node: str, file: str) -> str:
    from ktp.app.settings import demo_path

    return (demo_path() / "nodes" / node / file).read_text()


def _second_way_out() -> Asked:
    """The default route leaves by another interface than the one that has the node's address, which is strict."""
    address = {
        "ifindex": 99, "ifname": "eth9", "flags": ["BROADCAST", "UP", "LOWER_UP"], "mtu": 1500, "link_type": "ether",
        "addr_info": [{"family": "inet", "local": "192.168.9.10", "prefixlen": 24, "scope": "global"}],
    }  # fmt: skip
    return Asked(
        demo(
            {
                ("node-b", "ip-addr.json"): lambda text: json.dumps([*json.loads(text), address]),
                ("node-b", "ip-route.json"): routes(
                    {"dst": "default", "gateway": "192.168.9.1", "dev": "eth9", "flags": []},
                    {"dst": "192.168.9.0/24", "dev": "eth9", "scope": "link", "flags": []},
                    without="default",
                ),
                ("node-b", "sysctl.txt"): sysctl("net.ipv4.conf.eth0.rp_filter", "1"),
            }
        ),
        CLUSTER,
    )


def _in_demo(service: str, *edits: tuple[str, str, Callable[[str], str]]) -> Callable[[], Asked]:
    return lambda: Asked(demo({(node, file): edit for node, file, edit in edits}), service)


def _in_recorded(service: str, client: str | None = None) -> Callable[[], Asked]:
    return lambda: Asked(recorded(), service, client)


_DROP = "-A FORWARD -p tcp -m tcp --dport {port} -j DROP"
_TAKEN = "-A PREROUTING -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.0.0.99:80"

_BLACKHOLE: dict[str, object] = {"type": "blackhole", "dst": "10.244.1.0/24", "flags": []}


def _rule_that_swallows(text: str) -> str:
    """Policy routing, which no check looks at."""
    rule = {"priority": 100, "src": "all", "dst": "10.244.1.0", "dstlen": 24, "action": "blackhole"}
    return json.dumps([*json.loads(text), rule])


def _bridged(filtered: str) -> dict[tuple[str, str], Callable[[str], str]]:
    """The pods of node-a on one bridge, as flannel's CNI plugin has them; its packets pass the rules, or do not."""

    def addresses(text: str) -> str:
        links = json.loads(text)
        for link in links:
            if link["ifname"].startswith("v"):
                link["master"] = "cni0"
        gateway = {"family": "inet", "local": "10.244.1.1", "prefixlen": 24, "scope": "global"}
        return json.dumps([*links, {**links[1], "ifname": "cni0", "ifindex": 90, "addr_info": [gateway]}])

    def to_pods(text: str) -> str:
        kept = [r for r in json.loads(text) if not r["dst"].startswith("10.244.1.")]
        net = {"dst": "10.244.1.0/24", "dev": "cni0", "protocol": "kernel", "scope": "link", "flags": []}
        own = {
            "type": "local",
            "dst": "10.244.1.1",
            "dev": "cni0",
            "table": "local",
            "scope": "host",
            "flags": [],
        }
        return json.dumps([*kept, net, own])

    return {
        ("node-a", "ip-addr.json"): addresses,
        ("node-a", "ip-route.json"): to_pods,
        ("node-a", "sysctl.txt"): lambda text: f"{text}{filtered}\n",
    }


def _untracked(ports: str) -> Callable[[str], str]:
    hooks = ":PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
    return lambda text: f"{text}*raw\n{hooks}-A PREROUTING -p tcp -m tcp --dport {ports} -j NOTRACK\nCOMMIT\n"


SCENARIOS: dict[str, Scenario] = {
    "KTP101": Scenario(
        fires=_no_selector,
        silent=lambda: Asked(programmed(demo(), CLUSTER, service_with(CLUSTER, selector={})), CLUSTER),
    ),
    "KTP102": Scenario(
        fires=_none_ready,
        silent=lambda: Asked(programmed(demo(), CLUSTER, not_ready(CLUSTER, "test/nginx-log-0")), CLUSTER),
    ),
    "KTP103": Scenario(fires=_selector_off, silent=_none_ready),
    "KTP201": Scenario(
        fires=_in_demo(CLUSTER, ("node-a", "sysctl.txt", sysctl("net.ipv4.ip_forward", "0"))),
        silent=_in_demo(CLUSTER, ("node-a", "sysctl.txt", sysctl("net.ipv4.ip_forward", "2"))),
    ),
    "KTP202": Scenario(
        fires=_in_demo(CLUSTER, ("node-a", "sysctl.txt", sysctl("net.ipv4.conf.all.route_localnet", "0"))),
        silent=_in_demo(CLUSTER),
    ),
    "KTP203": Scenario(
        fires=_second_way_out,
        silent=_in_demo(CLUSTER, ("node-b", "sysctl.txt", sysctl("net.ipv4.conf.eth0.rp_filter", "1"))),
    ),
    "KTP301": Scenario(
        fires=_in_demo(CLUSTER, ("node-a", LEGACY, first_rule("filter", _DROP.format(port=80)))),
        silent=_in_demo(CLUSTER, ("node-a", LEGACY, first_rule("filter", _DROP.format(port=8081)))),
    ),
    "KTP302": Scenario(
        fires=_in_demo(LOCAL, ("node-a", LEGACY, policy("filter", "FORWARD", "DROP"))),
        silent=_in_demo(
            LOCAL,
            ("node-a", LEGACY, in_order(
                policy("filter", "FORWARD", "DROP"),
                first_rule("filter", "-A FORWARD -d 10.244.0.0/16 -j ACCEPT"),
                first_rule("filter", "-A FORWARD -s 10.244.0.0/16 -j ACCEPT"),
            )),
        ),
    ),
    "KTP401": Scenario(fires=_rules_behind, silent=lambda: Asked(_with_pods("node-b"), LOCAL)),
    "KTP402": Scenario(
        fires=_in_demo(CLUSTER, ("node-b", NFT, _old_rules_in_the_other_backend)),
        silent=_in_demo(CLUSTER, ("node-b", NFT, lambda _: "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")),
    ),
    "KTP404": Scenario(
        fires=_in_demo(CLUSTER, ("node-b", LEGACY, without_rules("-A PREROUTING", "KUBE-SERVICES"))),
        silent=_in_demo(CLUSTER),
    ),
    "KTP405": Scenario(
        fires=_in_demo(CLUSTER, ("node-b", LEGACY, first_rule("nat", _TAKEN.format(port=31465)))),
        silent=_in_demo(CLUSTER, ("node-b", LEGACY, first_rule("nat", _TAKEN.format(port=31466)))),
    ),
    "KTP501": Scenario(
        fires=lambda: Asked(demo(), LOCAL),
        silent=lambda: Asked(_with_pods("node-b", "node-c"), LOCAL),
    ),
    "KTP502": Scenario(fires=_in_recorded("edge/itp-local"), silent=_in_recorded("test/nginx")),
    "KTP503": Scenario(
        fires=lambda: Asked(_with_pods("node-b", "node-b", "node-b"), LOCAL),
        silent=lambda: Asked(_with_pods("node-b"), LOCAL),
    ),
    "KTP504": Scenario(fires=lambda: Asked(demo(), LOCAL), silent=lambda: Asked(demo(), CLUSTER)),
    "KTP505": Scenario(fires=lambda: Asked(demo(), LOCAL), silent=lambda: Asked(demo(), CLUSTER)),
    "KTP601": Scenario(
        fires=_in_recorded("edge/lb-ranges", client="198.51.100.7"),
        silent=lambda: Asked(
            programmed(
                recorded(), "edge/lb-ranges", service_with("edge/lb-ranges", load_balancer_source_ranges=())
            ),
            "edge/lb-ranges",
            "198.51.100.7",
        ),
    ),
    "KTP209": Scenario(
        fires=_in_demo(CLUSTER, ("node-b", "ip-route.json", routes(_BLACKHOLE, without="10.244.1.0/24"))),
        # The way is there, and something else is in it.
        silent=_in_demo(CLUSTER, ("node-b", "ip-rule.json", _rule_that_swallows)),
    ),
    "KTP210": Scenario(
        fires=lambda: Asked(demo(_bridged("net.bridge.bridge-nf-call-iptables = 0")), CLUSTER),
        silent=lambda: Asked(demo(_bridged("net.bridge.bridge-nf-call-iptables = 1")), CLUSTER),
    ),
    "KTP303": Scenario(
        fires=_in_demo(CLUSTER, ("node-a", LEGACY, _untracked("30000:32767"))),
        silent=_in_demo(CLUSTER, ("node-a", LEGACY, _untracked("443"))),
    ),
    "KTP901": Scenario(
        fires=_in_demo(CLUSTER, ("node-b", "ip-rule.json", _rule_that_swallows)),
        silent=_in_demo(CLUSTER),
    ),
    # Its pods are on node-a and node-b: half of the connections of those go to the other.
    "KTP217": Scenario(
        fires=lambda: Probed(
            recorded(), CLUSTER, met=(("node-a", (_C, _T, _C)), ("node-b", (_T, _C)), ("node-c", (_T, _T, _T)))
        ),
        silent=lambda: Probed(
            recorded(), CLUSTER, met=(("node-a", (_T, _T)), ("node-b", (_C, _C)), ("node-c", (_T, _T)))
        ),
    ),
    # A snapshot alone has none: here the health checks were asked too.
    "KTP902": Scenario(
        fires=lambda: Healthy(recorded(), "edge/local-lb", more=1),
        silent=lambda: Healthy(recorded(), "edge/local-lb"),
    ),
}  # fmt: skip
SCENARIOS.update({code: Scenario(fires=fires, silent=silent) for code, (fires, silent) in CATALOGUE.items()})
