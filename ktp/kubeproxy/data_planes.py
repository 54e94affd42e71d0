"""Which nodes' Services are served by something else than kube-proxy's rules, told by its agents, devices and chains.

Facts: `cilium_host` and `cilium_net` are made by Cilium's agent at its start, `bpfin.cali` and `bpfout.cali` by felix
with bpfEnabled, `ovn-k8s-mp0` by ovnkube-node, `antrea-gw0` by antrea-agent, `kube-dummy-if` and KUBE-ROUTER-SERVICES
by kube-router with --run-service-proxy. Cilium's programs meet a packet before any rule, with and without
kubeProxyReplacement; Antrea, OVN-Kubernetes and kube-router leave node ports to kube-proxy where it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from weakref import WeakKeyDictionary

from ktp.kubeproxy.names import KUBE_SERVICES, NFT_TABLE
from ktp.model.cluster import Pod
from ktp.model.diagnosis import Evidence
from ktp.model.host import NodeState
from ktp.model.record import dataclass
from ktp.model.ruleset import Ruleset, has_chain, recorded_of
from ktp.model.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlane:
    """An implementation of Services and what shows it. `apps` are labels `k8s-app` or `app` of its agent's pods.

    `replaces` tells that it decides even where kube-proxy's rules are. `look` is what prints its Services, in a pod
    with the label `agent` or on the node; `{namespace}` and `{name}` are the Service's. `is_read` tells that ktp reads
    its tables.
    """

    name: str
    devices: tuple[str, ...] = ()
    chains: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    replaces: bool = True
    look: str = ""
    agent: str = ""
    is_read: bool = False


CILIUM = DataPlane(
    name="Cilium",
    devices=("cilium_host", "cilium_net"),
    chains=("CILIUM_",),
    apps=("cilium",),
    look="cilium-dbg bpf lb list",
    agent="cilium",
    is_read=True,
)
DATA_PLANES = (
    CILIUM,
    DataPlane(
        name="Calico's eBPF data plane",
        devices=("bpfin.cali", "bpfout.cali"),
        look="calico-node -bpf nat dump",
        agent="calico-node",
    ),
    DataPlane(
        name="OVN-Kubernetes",
        devices=("ovn-k8s-mp0", "ovn-k8s-gw0"),
        chains=("OVN-KUBE-",),
        apps=("ovnkube-node",),
        replaces=False,
        look="ovn-nbctl lb-list",
        agent="ovnkube-node",
    ),
    DataPlane(
        name="Antrea",
        devices=("antrea-gw0",),
        chains=("ANTREA-",),
        apps=("antrea-agent",),
        replaces=False,
        look="antctl get ovsflows -S {name} -n {namespace}",
        agent="antrea-agent",
    ),
    DataPlane(
        name="kube-router's service proxy",
        devices=("kube-dummy-if",),
        chains=("KUBE-ROUTER-SERVICES",),
        replaces=False,
        look="ipvsadm -Ln",
        agent="kube-router",
    ),
)
_BY_NAME = {plane.name: plane for plane in DATA_PLANES}


def way_to_look(state: NodeState, pods: Iterable[Pod], namespace: str, name: str) -> str:
    """The command that prints what the node's data plane holds of a Service; "" where kube-proxy serves it.

    Through the agent's pod of that node, where it is known.
    """
    plane = _BY_NAME.get(state.data_plane or "")
    if plane is None:
        return ""
    command = plane.look.format(namespace=namespace, name=name)
    for pod in pods:
        labels = {pod.labels.get(key) for key in ("k8s-app", "app", "component")}
        if pod.node_name == state.name and pod.host_network and plane.agent in labels:
            return f"kubectl exec -n {pod.namespace} {pod.name} -- {command}"
    return f"{command}   # on {state.name}, or in its agent's pod"


def is_readable_plane(state: NodeState) -> bool:
    """Whether ktp reads the tables of the node's data plane, where it is given them."""
    plane = _BY_NAME.get(state.data_plane or "")
    return plane is not None and plane.is_read


def with_data_planes(snapshot: Snapshot) -> Snapshot:
    """The snapshot with `NodeState.data_plane` set where another data plane serves the node's Services.

    A node that is known by its agent's pod alone gets a state of which nothing else was read.
    """
    agents: dict[str, list[Pod]] = {}
    for pod in snapshot.cluster.pods or ():
        if pod.node_name is not None and pod.host_network:
            agents.setdefault(pod.node_name, []).append(pod)
    nodes = dict(snapshot.nodes)
    for name in {**(snapshot.cluster.nodes or {}), **snapshot.nodes}:
        state = nodes.get(name) or NodeState(name=name)
        plane = next((p for p in DATA_PLANES if _serves(p, state, agents.get(name, ()))), None)
        if plane is not None and state.data_plane != plane.name:
            nodes[name] = replace(state, data_plane=plane.name)
    return replace(snapshot, nodes=nodes) if nodes != snapshot.nodes else snapshot


def _serves(plane: DataPlane, state: NodeState, pods: Iterable[Pod]) -> bool:
    if plane is CILIUM and state.cilium is not None and state.cilium.config.replaces is not None:
        if state.cilium.is_readable or not has_kube_proxy(state):
            return state.cilium.config.replaces  # its own word; beside kube-proxy its maps serve pods alone
    if not plane.replaces and _has_chains_of_kube_proxy(state):
        return False
    return next(signs_of(plane, state, pods), None) is not None


def signs_of(plane: DataPlane, state: NodeState, pods: Iterable[Pod]) -> Iterator[Evidence]:
    """What shows the data plane on a node: a device, a chain, its agent's pod. At most one of each."""
    device = next(
        (i.name for i in state.interfaces or () if plane.devices and i.name.startswith(plane.devices)), None
    )
    if device is not None:
        yield Evidence("route", f"{state.name} ip addr", f"device {device}")
    for ruleset in state.rulesets:
        chain = _chains_of_planes(ruleset).get(plane.name)
        if chain is not None:
            yield Evidence("rule", f"{state.name} {ruleset.backend.value}", f"chain {chain}")
            break
    for pod in pods:
        if pod.node_name == state.name and {pod.labels.get("k8s-app"), pod.labels.get("app")} & {*plane.apps}:
            yield Evidence("field", f"Pod {pod.key}", f"runs on {state.name}")
            break


_CHAINS: WeakKeyDictionary[Ruleset, dict[str, str]] = WeakKeyDictionary()
"""What was found in a ruleset, for as long as that lives: each changed world asks again of nodes that are as before."""


def _chains_of_planes(ruleset: Ruleset) -> dict[str, str]:
    """The first chain of each data plane in a ruleset, by the plane's name."""
    ruleset = recorded_of(ruleset)
    found = _CHAINS.get(ruleset)
    if found is None:
        found = _CHAINS[ruleset] = {}
        beginnings = tuple(b for plane in DATA_PLANES for b in plane.chains)
        for table in ruleset.tables():
            for name in ruleset.chain_names(table):
                if name.startswith(beginnings):
                    for plane in DATA_PLANES:
                        if plane.chains and name.startswith(plane.chains):
                            found.setdefault(plane.name, name)
    return found


def has_kube_proxy(state: NodeState) -> bool:
    """Whether the node holds a chain, table or virtual server of kube-proxy's."""
    return _has_chains_of_kube_proxy(state) or (state.ipvs is not None and bool(state.ipvs.services))


def _has_chains_of_kube_proxy(state: NodeState) -> bool:
    """Virtual servers left aside: kube-router's are the same."""
    if any(has_chain(s, "nat", KUBE_SERVICES) for r in state.rulesets for s in (recorded_of(r), r)):
        return True
    return state.nft is not None and any(t.name == NFT_TABLE for t in state.nft.tables)
