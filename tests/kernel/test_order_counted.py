"""The order of base chains at one priority, told by counters: random tables, in every order of registration.

Legacy iptables, iptables-nft and a native table of nft hang at the same hooks. Real packets come between two readings
of the rules. What ktp then says of the order is what was registered, and what it says of a connection is what the
kernel does; where no packet came it says nothing. KTP_KERNEL_CASES and KTP_KERNEL_SEED are those of
`test_differential.py`; no more than 150 worlds are made.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ktp.collect.remote_script import build_script, collect_recorded, parse_stream
from ktp.dataplane.answer import answer_flow
from ktp.dataplane.hooks import HANDLE_NOTE
from ktp.dataplane.order_told import Told, told_at
from ktp.dataplane.places import Places
from ktp.dataplane.walk import Walker
from ktp.model.capture import MemoryCapture
from ktp.model.host import NodeState
from ktp.model.trace import Flow, Symptom
from ktp.parse.snapshot import parse_snapshot
from tests.kernel.lab import Agent, topology_of_nodes
from tests.kernel.test_orders import CLIENT, ENDS, NODE, OWNERS, PORT, command, ends

__all__ = ["ends"]

pytestmark = pytest.mark.kernel

WORLDS = min(150, int(os.environ.get("KTP_KERNEL_CASES", "8")))
_SEED = os.environ.get("KTP_KERNEL_SEED", "0")
FIRST = random.randrange(1_000_000) if _SEED == "random" else int(_SEED)
PORTS = (30099, 30100, 30101)
HOOKS = {"nat": ("PREROUTING", "OUTPUT"), "mangle": ("PREROUTING",)}
PRIORITY = {"nat": -100, "mangle": -150}
KEYS = {
    "legacy": "iptables-legacy {}",
    "nft": "iptables-nft {}",
    "own": "nftables ip own",
    "both": "nftables inet own",
}


@dataclass
class World:
    """The commands that make it, in order, and at each hook whose chain is registered when (the last runs first)."""

    table: str
    commands: list[list[str]] = field(default_factory=list)
    registered: dict[str, list[str]] = field(default_factory=dict)


def drawn(seed: int) -> World:
    """A world by lot: owners, the order in which each registers at each hook, and their rules."""
    lot = random.Random(seed)
    world = World(lot.choice(("nat", "nat", "nat", "mangle")))
    hooks = HOOKS[world.table]
    owners = lot.sample(OWNERS, lot.choice((2, 2, 3)))
    family = lot.choice(("ip", "ip", "inet"))
    apart = world.table == "nat" and lot.random() < 0.3  # each hook for itself
    turns = [(owner, hook) for owner in owners for hook in hooks]
    if apart:
        lot.shuffle(turns)
    made: set[str] = set()
    for owner, hook in turns:
        name = KEYS["both" if owner == "own" and family == "inet" else owner].format(world.table)
        for each in hooks if owner == "legacy" else (hook,):
            order = world.registered.setdefault(each, [])
            if name not in order:
                order.append(name)
        first = owner not in made
        made.add(owner)
        if owner == "own":
            world.commands += _native(lot, world.table, family, hook)
        else:
            world.commands += _iptables(lot, f"iptables-{owner}", world.table, hook, ENDS[owner], user=first)
    return world


def _iptables(
    lot: random.Random, command: str, table: str, hook: str, end: int, *, user: bool
) -> Iterator[list[str]]:
    add = [command, "-w", "-t", table]
    target = f"-j REDIRECT --to-ports {end}" if table == "nat" else "-j DROP"
    local = lot.choice(("", "", "-m addrtype --dst-type LOCAL"))
    chain = hook
    if user:
        yield [*add, "-N", "OWN"]
    if lot.random() < 0.4:
        chain = "OWN"
        yield [*add, "-A", hook, *local.split(), "-j", chain]
        if not user:
            return
    device = "-i eth0" if hook == "PREROUTING" and chain == hook else ""
    conditions = [
        "",
        "",
        "",
        local,
        f"-d {NODE}",
        f"-s {CLIENT}",
        "-m mark --mark 5",
        "! -s 10.9.7.9",
        device,
    ]
    for port in lot.sample(PORTS, lot.randint(1, 3)):
        more = f" {lot.choice(conditions)}"
        if lot.random() < 0.25:
            way = lot.choice(("ACCEPT", "RETURN"))
            yield [*add, "-A", chain, *f"-p tcp --dport {port} {lot.choice(conditions)} -j {way}".split()]
        if lot.random() < 0.25:
            more += " -m statistic --mode random --probability 0.5"
        ports = f"--dport {port}" if lot.random() < 0.7 else f"-m multiport --dports {port},{port + 5}"
        yield [*add, "-A", chain, *f"-p tcp {ports}{more} {target}".split()]
    if lot.random() < 0.2:
        yield [*add, "-A", chain, "-p", "tcp", *target.split()]


def _native(lot: random.Random, table: str, family: str, hook: str) -> Iterator[list[str]]:
    kind = "nat" if table == "nat" else "filter"
    name = hook.lower()
    base = f"{{ type {kind} hook {name} priority {PRIORITY[table]}; }}"
    yield ["nft", f"add table {family} own; add chain {family} own {name} {base}"]
    verdict = f"meta l4proto tcp redirect to :{ENDS['own']}" if table == "nat" else "drop"
    conditions = ["", "", f"ip daddr {NODE} ", f"ip saddr {CLIENT} ", "fib daddr type local "]
    conditions += ["meta nfproto ipv4 "] if family == "inet" else []
    for port in lot.sample(PORTS, lot.randint(1, 3)):
        counter = "counter " if lot.random() < 0.8 else ""
        how = lot.random()
        if how < 0.2:
            match = f"meta l4proto . th dport vmap {{ tcp . {port} : jump go }}"
            yield [
                "nft",
                f"add chain {family} own go; add rule {family} own {name} {lot.choice(conditions)}{match}",
            ]
            yield ["nft", f"add rule {family} own go {verdict.replace('tcp ', f'tcp {counter}')}"]
            continue
        yield [
            "nft",
            f"add rule {family} own {name} {lot.choice(conditions)}tcp dport {port} {counter}{verdict.removeprefix('meta l4proto tcp ')}",
        ]


def read(node: Agent) -> dict[str, bytes]:
    """The files of a node."""
    return {name: text.encode("latin-1") for name, text in node.ask(do="collect", node="node-a").items()}


def state_of(first: dict[str, bytes], last: dict[str, bytes]) -> NodeState:
    """The node, with the rules of both readings."""
    again = {
        f"nodes/node-a/again/{name.rpartition('/')[2]}": content
        for name, content in last.items()
        if "tables" in name or "nft-ruleset" in name
    }
    files = {**first, **again, "cluster/services.json": b'{"items": []}'}
    return parse_snapshot(MemoryCapture(files=files)).nodes["node-a"]


def told_in(state: NodeState, world: World) -> list[tuple[str, Told]]:
    """All that counters tell, by hook."""
    places = Places(topology_of_nodes({"node-a": state}))
    host = places.host("node-a")
    assert host is not None
    place = ("nat" if world.table == "nat" else "table", PRIORITY[world.table])
    return [
        (hook, told)
        for hook in HOOKS[world.table]
        for group in places.groups_of(host, 4, hook)
        if (group.kind, group.priority) == place
        for told in told_at(host, 4, hook, group.programs)
    ]


@pytest.mark.parametrize("seed", range(FIRST, FIRST + WORLDS))
def test_what_counters_tell_is_the_order(ends: tuple[Agent, Agent], seed: int) -> None:
    (node, client), world = ends, drawn(seed)
    for words in world.commands:
        done = node.run(*words, check=False)
        if done["status"] != 0:
            pytest.skip(f"this kernel does not take it: {done['stderr']}")
    first = read(node)
    lot = random.Random(seed)
    probes = [
        {"dst": NODE, "port": port, "proto": "tcp", "timeout": 2.5}
        for port in (*PORTS, *ENDS.values())
        if port in ENDS.values() or lot.random() < 0.8
    ]
    met = client.ask(do="probe", probes=probes)
    if lot.random() < 0.5:
        node.ask(do="probe", probes=probes[:2])
    last = read(node)

    assert not told_in(state_of(first, first), world)
    state = state_of(first, last)
    for hook, told in told_in(state, world):
        a, b = " ".join(told.first), " ".join(told.second)
        if len(told.hooks) == 1:
            order = world.registered[hook]
            assert order.index(a) > order.index(b), told.words
        else:  # of one of them it is so
            assert any(
                order.index(a) > order.index(b) for order in (world.registered[h] for h in told.hooks)
            ), told.words
    walker = Walker(topology_of_nodes({"node-a": state}))
    for probe, one in zip(probes, met, strict=True):
        asked = Flow(src=CLIENT, via="node-a", dst=NODE, port=int(str(probe["port"])), protocol="tcp")
        answer = answer_flow(walker, asked)
        if answer.symptom is not Symptom.UNKNOWN:
            expected = (one["outcome"], one["port"] if one["outcome"] == "connects" else None)
            said = {
                (path.symptom.value, path.endpoint_port if path.symptom is Symptom.CONNECTS else None)
                for path in answer.paths
            }
            assert expected in said, (probe, answer)


ORDERS = [order for count in (2, 3) for order in itertools.permutations(OWNERS, count)]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_connection_between_two_readings_decides(ends: tuple[Agent, Agent], order: tuple[str, ...]) -> None:
    node, client = ends
    for number, owner in enumerate(order):
        words = command(owner, "nat", number)
        words[-1] = words[-1].replace(" redirect", " counter redirect")
        node.run(*words)
    first = read(node)
    met = client.ask(do="probe", probes=[{"dst": NODE, "port": PORT, "proto": "tcp", "timeout": 10}])[0]
    asked = Flow(src=CLIENT, via="node-a", dst=NODE, port=PORT, protocol="tcp")
    for last, known in ((first, False), (read(node), True)):
        answer = answer_flow(Walker(topology_of_nodes({"node-a": state_of(first, last)})), asked)
        by_handles = any(each.taken == HANDLE_NOTE for each in answer.assumptions)
        assert by_handles or (answer.symptom is not Symptom.UNKNOWN) == known, answer.reason
    assert [(path.symptom.value, path.endpoint_port) for path in answer.paths] == [
        (met["outcome"], met["port"])
    ]
    assert met["port"] == ENDS[order[-1]]
    assert by_handles or any("counted" in each.taken for each in answer.assumptions)


def test_a_live_run_reads_the_rules_twice(ends: tuple[Agent, Agent]) -> None:
    node, client = ends
    for number, owner in enumerate(("nft", "legacy")):
        node.run(*command(owner, "nat", number))
    script = build_script(sudo=False, reach=None, command_timeout=10, counters=2)
    probe = {"dst": NODE, "port": PORT, "proto": "tcp", "timeout": 10}
    with subprocess.Popen(
        ["ip", "netns", "exec", node.namespace, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(script.text)
        shell.stdin.close()
        stream = b""
        while part := os.read(shell.stdout.fileno(), 1 << 16):
            stream += part
            if b"begin command sh" in part:  # the last before both readings of the counters
                client.ask(do="probe", probes=[probe])
    recording = parse_stream(stream, script.mark)
    read = collect_recorded(
        "node-a", recording, reach=None, source="", not_root=("", ""), why_cut="", counters=2
    )
    assert {name for name in read.files if "/again/" in name} == {
        f"nodes/node-a/again/{file}"
        for file in ("iptables-legacy-save.txt", "iptables-nft-save.txt", "nft-ruleset.json")
    }
    files = {**read.files, "cluster/services.json": b'{"items": []}'}
    state = parse_snapshot(MemoryCapture(files=files)).nodes["node-a"]
    asked = Flow(src=CLIENT, via="node-a", dst=NODE, port=PORT, protocol="tcp")
    answer = answer_flow(Walker(topology_of_nodes({"node-a": state})), asked)
    assert [path.endpoint_port for path in answer.paths] == [ENDS["legacy"]]
