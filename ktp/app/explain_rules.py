"""`ktp explain-rules`: the rules of a port, a chain or a Service in words."""

from __future__ import annotations

import importlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktp.app.evidence import snapshot_for_all, snapshot_for_service
from ktp.app.settings import Settings, offline
from ktp.errors import EvidenceError, ExitCode, NotFoundError, UsageError
from ktp.model.record import dataclass
from ktp.model.trace import Symptom

if TYPE_CHECKING:
    from ktp.collect.nft_chains import Reach
    from ktp.model.explanation import Explanation
    from ktp.model.host import NodeState
    from ktp.model.snapshot import Snapshot
    from ktp.parse.rules import RulesDump


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What `ktp explain-rules` shows, and its exit status."""

    explanations: tuple[Explanation, ...]
    status: ExitCode


def open_rules(file: str | None, stdin: Any) -> RulesDump | None:
    """The dump of `--rules`, "-" being standard input; None where the option is not given."""
    if file is None:
        return None
    # Imported before the pipe is read: its writer is at work meanwhile.
    import ktp.explain.explain  # noqa: F401
    from ktp.parse.rules import open_rules_dump

    if file == "-":
        if stdin.isatty():
            raise UsageError("nothing is piped in", hint="iptables-save | ktp explain-rules … --rules -")
        return open_rules_dump(stdin.buffer.read(), "standard input")
    return open_rules_dump(Path(file), file)


def explain_node_port(settings: Settings, text: str, vantage: str, dump: RulesDump | None) -> Explained:
    """`ktp explain-rules --node-port`: from a dump, a snapshot, or this machine."""
    port, protocol = _node_port(text)
    if dump is None:
        from ktp.diagnose.explain_rules import explain_port

        snapshot = _rules_snapshot(settings, _port_reach(port, protocol, whole=settings.verbose))
        return _explained(
            explain_port(snapshot, protocol, port, vantage, settings.nodes, every_rule=settings.verbose)
        )
    from ktp.explain.explain import ask_dump, explain_flow
    from ktp.explain.front_end import NodePortRules, node_port_rules

    node = settings.nodes[0] if settings.nodes else "this node"
    found: list[Explanation] = []
    for state in _dump_as_nodes(dump, settings.nodes):
        for ruleset in state.rulesets:
            if rules := node_port_rules(ruleset, protocol, port):
                walker, asked = ask_dump(state, ruleset, protocol, port, vantage, rules)
                found.append(explain_flow(walker, asked, every_rule=settings.verbose))
    if found:
        return _explained(_with_note(found, dump.taken_for))
    if dump.nft is not None:
        from ktp.explain.nft_explain import ask_nft_dump

        questions = ask_nft_dump(dump.nft, node, protocol, port, vantage)
        if questions:
            return _explained([explain_flow(w, a, every_rule=settings.verbose) for w, a in questions])
    if dump.ipvs is not None:
        from ktp.explain.ipvs import explain_ipvs_dump

        one = explain_ipvs_dump(dump.ipvs, node, protocol, port)
        if one is not None:
            return _explained([one])
    if dump.cilium is not None:
        from ktp.explain.cilium import explain_cilium_dump

        one = explain_cilium_dump(dump.cilium, dump.source, node, protocol, port)
        if one is None:
            raise NotFoundError(f"{dump.source} has no front end with port {port}/{protocol}")
        return _explained([one])
    from ktp.explain.front_end import naming_notes, rules_naming

    for state in _dump_as_nodes(dump, settings.nodes):
        for ruleset in state.rulesets:
            if others := rules_naming(ruleset, protocol, port):
                walker, asked = ask_dump(state, ruleset, protocol, port, vantage, NodePortRules())
                asked = replace(
                    asked, subject=f"port {port}/{protocol}", notes=(*naming_notes(others), *asked.notes)
                )
                found.append(explain_flow(walker, asked, every_rule=settings.verbose))
    if found:
        return _explained(_with_note(found, dump.taken_for))
    from ktp.explain.find import no_such_node_port

    raise no_such_node_port(_dump_as_nodes(dump, settings.nodes), protocol, port)


def explain_address(settings: Settings, text: str, vantage: str, dump: RulesDump | None) -> Explained:
    """`ktp explain-rules IP:PORT`: any address, from a dump, a snapshot, or this machine."""
    from ktp.parse.dialled import parse_what

    what = parse_what(text)
    if what.ip is None or what.port is None:
        raise UsageError(
            f"{text!r} is no address with a port", hint="write IP:PORT, [IPv6]:PORT, or IP:PORT/udp"
        )
    address, port, protocol = str(what.ip), what.port, what.protocol or "tcp"
    if dump is None:
        from ktp.diagnose.explain_rules import explain_end

        snapshot = _rules_snapshot(settings)
        return _explained(
            explain_end(
                snapshot, what.ip, protocol, port, vantage, settings.nodes, every_rule=settings.verbose
            )
        )
    from ktp.explain.address import explain_address_in_rules

    node = settings.nodes[0] if settings.nodes else "this node"
    found: list[Explanation] = []
    family = "ip" if what.ip.version == 4 else "ip6"
    for state in _dump_as_nodes(dump, settings.nodes):
        found += explain_address_in_rules(
            state, family, address, protocol, port, vantage, every_rule=settings.verbose
        )
    if found:
        return _explained(_with_note(found, dump.taken_for))
    one = None
    if dump.ipvs is not None:
        from ktp.explain.ipvs import explain_ipvs_dump

        one = explain_ipvs_dump(dump.ipvs, node, protocol, port, address)
    elif dump.cilium is not None:
        from ktp.explain.cilium import explain_cilium_dump

        one = explain_cilium_dump(dump.cilium, dump.source, node, protocol, port, address)
    if one is None:
        raise NotFoundError(
            f"{dump.source} has nothing for {text}", hint="ktp explain-rules --node-port N asks for a port"
        )
    return _explained([one])


def explain_chain(settings: Settings, name: str, dump: RulesDump | None) -> Explained:
    """`ktp explain-rules --chain`: from a dump, a snapshot, or this machine."""
    from ktp.explain.find import explain_chains

    if dump is not None and (dump.ipvs is not None or dump.cilium is not None):
        whose = (
            "of ipvsadm: it has virtual servers" if dump.ipvs is not None else "of Cilium: it has front ends"
        )
        raise UsageError(f"{dump.source} is {whose}, and no chains", hint="ask for --node-port N")
    if dump is not None:
        states = _dump_as_nodes(dump, settings.nodes)
    else:
        from ktp.diagnose.explain_rules import nodes_with_rules, require_rules

        snapshot = _rules_snapshot(settings)
        require_rules(snapshot, settings.nodes)
        states = [snapshot.nodes[n] for n in nodes_with_rules(snapshot, settings.nodes)]
    places = [(s.name, r, None) for s in states for r in s.rulesets]
    native = [(s.name, None, s.nft) for s in states if s.nft is not None]
    explanations = explain_chains([*places, *native], name, every_rule=settings.verbose)
    shown = _with_note(explanations, dump.taken_for if dump is not None else "")
    return Explained(explanations=tuple(shown), status=ExitCode.OK)


def explain_service(settings: Settings, text: str, vantage: str) -> Explained:
    """`ktp explain-rules NAMESPACE/NAME`: every front end on each node with rules."""
    from ktp.diagnose.explain_rules import explain_service_ends

    snapshot, service = snapshot_for_service(settings, text)
    return _explained(
        explain_service_ends(snapshot, service, vantage, settings.nodes, every_rule=settings.verbose)
    )


def _dump_as_nodes(dump: RulesDump, names: tuple[str, ...]) -> list[NodeState]:
    """The nodes of a dump: one, save where a text has the rules of several."""
    from ktp.model.host import NodeState

    if len(dump.hosts) < 2:
        name = names[0] if names else "this node"
        rulesets = tuple(r for host in dump.hosts for r in host.rulesets)
        return [NodeState(name=name, rulesets=rulesets, nft=dump.nft, ipvs=dump.ipvs)]
    if len(names) not in (0, len(dump.hosts)):
        raise UsageError(
            f"{dump.source} has the rules of {len(dump.hosts)} nodes",
            hint="name none of them with --node, or all",
        )
    called = names or tuple(f"node {i} ({host.lines})" for i, host in enumerate(dump.hosts, 1))
    return [NodeState(name=n, rulesets=h.rulesets) for n, h in zip(called, dump.hosts, strict=True)]


def _with_note(explanations: list[Explanation], note: str) -> list[Explanation]:
    return [replace(e, notes=(note, *e.notes)) for e in explanations] if note else explanations


def _node_port(text: str) -> tuple[int, str]:
    number, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if not number.isdigit() or not 0 < int(number) < 65536 or protocol not in ("tcp", "udp", "sctp"):
        raise UsageError(f"{text!r} is not a node port; write 31015 or 31015/udp")
    return int(number), protocol


def _port_reach(port: int, protocol: str, *, whole: bool) -> Reach:
    from ktp.collect.nft_chains import Destination, Reach

    # One port's rules in words are wanted at once, and told apart from what else hooks in by `ktp diagnose`.
    asked = Destination(protocol=protocol, port=port)
    return Reach(destinations=(asked,), look_for_foreign_hooks=False, assume_services=not whole)


_TO_EXPLAIN = ("ktp.explain.explain", "ktp.diagnose.explain_rules", "ktp.render.rules_tree")


def _import_all(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)


def _rules_snapshot(settings: Settings, reach: Reach | None = None) -> Snapshot:
    """The snapshot, the cluster where one is named, else this machine alone: it needs no API server.

    With `reach`, of a large machine's rules in nf_tables only those that it reaches are read.
    """
    asks_cluster = (
        settings.kubeconfig is not None
        or settings.context is not None
        or settings.node_access not in {"auto", "local"}
    )
    if offline(settings) or asks_cluster:
        return snapshot_for_all(settings, None, reach=reach)
    import socket

    from ktp.collect.local_node import collect_local_node
    from ktp.parse.snapshot import parse_snapshot

    name = settings.nodes[0] if settings.nodes else socket.gethostname()
    # What explains is imported while the node's commands are at work.
    threading.Thread(target=_import_all, args=(_TO_EXPLAIN,), daemon=True).start()
    return parse_snapshot(collect_local_node(name, reach=reach))


def _explained(explanations: list[Explanation]) -> Explained:
    from ktp.explain.verdict import is_fine

    if not explanations:
        raise EvidenceError("no node with rules has an address to ask about")
    verdicts = [e.verdict for e in explanations if e.verdict is not None]
    status = ExitCode.OK
    if any(v.symptom == Symptom.UNKNOWN.value for v in verdicts):
        status = ExitCode.UNDETERMINED
    if any(not is_fine(v) and v.symptom != Symptom.UNKNOWN.value for v in verdicts):
        status = ExitCode.FINDINGS
    return Explained(explanations=tuple(explanations), status=status)
