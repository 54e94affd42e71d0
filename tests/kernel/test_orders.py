"""Chains of one priority: which the kernel runs first, and what ktp says of it.

Legacy iptables, iptables-nft and a native table of nft hang at one hook, registered in every order. What ktp says must
be what the kernel does, or unknown; where `nft list hooks` names the chains (since Linux 6.12, of nat since Linux 7) it
must be known. `make test-vm KERNEL=trixie` runs this under such a kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.model.capture import MemoryCapture
from ktp.model.trace import Flow, Symptom
from ktp.parse.nft_hooks import parse_nft_hooks
from ktp.parse.snapshot import parse_snapshot
from tests.kernel.lab import Agent, topology_of_nodes

pytestmark = pytest.mark.kernel

OWNERS = ("legacy", "nft", "own")
PORT, NODE, CLIENT = 30099, "10.9.7.1", "10.9.7.2"
ENDS = dict(zip(OWNERS, (81, 82, 83), strict=True))
PRIORITIES = {"nat": -100, "mangle": -150}
_MARKS = (
    ("-j MARK --set-mark 1", "meta mark set 1"),
    ("-m mark --mark 1 -j DROP", "meta mark 1 drop"),
)


def command(owner: str, table: str, number: int) -> list[str]:
    """What makes the owner's rule, and with it its chain at PREROUTING.

    In nat each redirects the port to one of its own; in mangle the first sets a mark, which the second drops.
    """
    words, native = _MARKS[number] if table == "mangle" else ("", "")
    if table == "nat":
        words = f"-p tcp --dport {PORT} -j REDIRECT --to-ports {ENDS[owner]}"
        native = f"tcp dport {PORT} redirect to :{ENDS[owner]}"
    if owner != "own":
        return [f"iptables-{owner}", "-t", table, "-A", "PREROUTING", *words.split()]
    kind = "nat" if table == "nat" else "filter"
    chain = f"{{ type {kind} hook prerouting priority {PRIORITIES[table]}; }}"
    return ["nft", f"add table ip own; add chain ip own pre {chain}; add rule ip own pre {native}"]


CASES = [
    (table, *order)
    for table, count in (("nat", 2), ("nat", 3), ("mangle", 2))
    for order in itertools.permutations(OWNERS, count)
]


@pytest.fixture
def ends(make_netns: Callable[[str], str]) -> Iterator[tuple[Agent, Agent]]:
    """A node that listens, and a client of it: in namespaces of their own, where no table was ever registered."""
    node, client = make_netns("on"), make_netns("oc")
    agents = Agent(node, "node-a"), Agent(client, "client")
    try:
        agents[0].run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client)
        for agent, address in zip(agents, (NODE, CLIENT), strict=True):
            agent.run("ip", "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                agent.run("ip", "link", "set", device, "up")
        agents[0].ask(do="serve", servers=[("tcp", "0.0.0.0", port) for port in ENDS.values()])
        yield agents
    finally:
        for agent in agents:
            agent.close()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_what_was_registered_last_runs_first(ends: tuple[Agent, Agent], case: tuple[str, ...]) -> None:
    (node, client), (table, *order) = ends, case
    for number, owner in enumerate(order):
        done = node.run(*command(owner, table, number), check=False)
        if done["status"] != 0:
            pytest.skip(f"this kernel does not take it: {done['stderr']}")
    port = PORT if table == "nat" else ENDS["own"]
    met = client.ask(do="probe", probes=[{"dst": NODE, "port": port, "proto": "tcp", "timeout": 1.5}])[0]
    files = {name: text.encode("latin-1") for name, text in node.ask(do="collect", node="node-a").items()}
    nodes = parse_snapshot(MemoryCapture(files={**files, "cluster/services.json": b'{"items": []}'})).nodes
    asked = Flow(src=CLIENT, via="node-a", dst=NODE, port=port, protocol="tcp")
    answer = answer_flow(Walker(topology_of_nodes(dict(nodes))), asked)
    if answer.symptom is not Symptom.UNKNOWN:
        assert [(path.symptom.value, path.endpoint_port) for path in answer.paths] == [
            (met["outcome"], met["port"])
        ]
    last = {"outcome": "connects", "port": ENDS[order[-1]]} if table == "nat" else {"outcome": "connects"}
    assert met.items() >= last.items()
    listed = parse_nft_hooks(files.get("nodes/node-a/nft-hooks.txt", b"").decode())
    named = [e for e in listed.at("ip", "prerouting", PRIORITIES[table]) if e.chain or e.legacy]
    if len(named) == len(order) == 2:
        assert answer.symptom is not Symptom.UNKNOWN, answer.reason


@pytest.mark.parametrize(("priority", "end"), [(-90, "nft"), (-110, "own")])
def test_a_chain_of_nft_in_a_table_of_iptables(ends: tuple[Agent, Agent], priority: int, end: str) -> None:
    """iptables-nft-save prints the table without it; what it prints is not walked once more as nft lists it."""
    node, client = ends
    words = "-t nat -A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport"
    node.run("iptables-nft", *words.split(), str(PORT), "-j", "REDIRECT", "--to-ports", str(ENDS["nft"]))
    chain = f"{{ type nat hook prerouting priority {priority}; }}"
    rule = f"tcp dport {PORT} redirect to :{ENDS['own']}"
    node.run("nft", f"add chain ip nat own {chain}; add rule ip nat own {rule}")
    met = client.ask(do="probe", probes=[{"dst": NODE, "port": PORT, "proto": "tcp", "timeout": 10}])[0]
    files = {name: text.encode("latin-1") for name, text in node.ask(do="collect", node="node-a").items()}
    nodes = parse_snapshot(MemoryCapture(files={**files, "cluster/services.json": b'{"items": []}'})).nodes
    asked = Flow(src=CLIENT, via="node-a", dst=NODE, port=PORT, protocol="tcp")
    answer = answer_flow(Walker(topology_of_nodes(dict(nodes))), asked)
    assert [(path.symptom.value, path.endpoint_port) for path in answer.paths] == [
        (met["outcome"], met["port"])
    ]
    assert met["port"] == ENDS[end]
