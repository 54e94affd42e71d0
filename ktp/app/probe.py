"""`ktp probe`: the front ends dialled, and what came of it beside what was predicted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ktp.app.evidence import snapshot_for_service
from ktp.app.settings import Settings, offline
from ktp.errors import EvidenceError, ExitCode, UsageError
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.node_shell import NodeShell
    from ktp.collect.prober import ProbeSettings
    from ktp.collect.ssh import SshSettings
    from ktp.diagnose.probing import Predictor
    from ktp.model.cluster import Service
    from ktp.model.probing import HealthAnswer, LengthRow, LengthTarget, MovedRule, ProbeRow, WitnessRow
    from ktp.model.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """How `ktp probe` and `diagnose svc --probe` dial. `progress` is told (tries done, tries in all, address)."""

    tries: int = 5
    timeout: float = 2.0
    http: str | None = None
    data: str | None = None
    from_nodes: bool = False
    to_pods: bool = False
    dial_recorded: bool = False
    progress: Callable[[int, int, str], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dialled:
    rows: tuple[ProbeRow, ...]
    left_out: int
    notes: tuple[str, ...] = ()
    moved: tuple[MovedRule, ...] | None = None
    lengths: tuple[LengthRow, ...] | None = None


def probe_service(
    settings: Settings, name: str, probing: Probing, *, health: bool = False, counters: bool = False
) -> ExitCode:
    """`ktp probe`: dial the front ends of a Service, and write what came of it beside what was predicted."""
    from ktp.diagnose.probing import length_findings, probe_findings
    from ktp.diagnose.service import diagnose_service
    from ktp.model.probing import ServiceProbe

    snapshot, service = snapshot_for_service(settings, name)
    dialled = dial(settings, snapshot, service, probing, counters=counters)
    if not any(r.verdict != "skipped" for r in dialled.rows):
        why = next((f": {said}" for said in (*(r.note for r in dialled.rows), *dialled.notes) if said), "")
        raise EvidenceError(
            f"nothing of {service.key} can be dialled from here{why}",
            hint="an external front end is a node port, a load balancer IP or an external IP",
        )
    findings = [*probe_findings(dialled.rows, snapshot), *length_findings(dialled.lengths or ())]
    witnesses: tuple[WitnessRow, ...] = ()
    if health:
        said = health_answers(settings, snapshot, service, probing)
        report = diagnose_service(snapshot, service, nodes=settings.nodes, health=said)
        witnesses = report.reconciliation
        findings += (f for f in report.findings if f.code == "KTP902")
    answer = ServiceProbe(
        namespace=service.namespace,
        name=service.name,
        rows=dialled.rows,
        findings=tuple(findings),
        reconciliation=witnesses,
        moved=dialled.moved,
        lengths=dialled.lengths,
        left_out=dialled.left_out,
        notes=dialled.notes,
        source=snapshot.source,
    )
    if settings.output == "text":
        from ktp.render.probe import print_probe
        from ktp.render.terminal import make_console

        print_probe(answer, make_console(settings.color, sys.stdout), verbose=settings.verbose)
    else:
        from ktp.render.probe import probe_object
        from ktp.render.structured import dump

        dump(probe_object(answer), settings.output, sys.stdout)
    if answer.findings or any(r.fails for r in answer.rows):
        return ExitCode.FINDINGS
    if any(r.verdict == "silent" for r in answer.rows):
        return ExitCode.UNDETERMINED
    return ExitCode.OK


def dial(
    settings: Settings, snapshot: Snapshot, service: Service, probing: Probing, *, counters: bool = False
) -> _Dialled:
    """Dial from here, or from the nodes, and compare."""
    _require_own_network(settings, probing)
    from ktp.collect.prober import ProbeSettings, probe_all, source_address
    from ktp.diagnose.probing import Predictor, Sender, compare, sender_of

    how = ProbeSettings(
        tries=probing.tries,
        parallel=settings.parallel,
        timeout=probing.timeout,
        http=probing.http,
        datagram=probing.data.encode() if probing.data is not None else None,
        dns_ports=frozenset(
            number for p in service.ports if p.port == 53 for number in (p.port, p.node_port) if number
        ),
    )
    predictor = Predictor(snapshot, service, nodes=settings.nodes)
    if probing.from_nodes:
        return _dial_from_nodes(settings, snapshot, predictor, how, to_pods=probing.to_pods)
    here = Sender()
    for target in predictor.targets(here):
        here = sender_of(snapshot, source_address(target.host))
        if here.node is not None:
            break
    before = _counters(snapshot, here.node) if counters else {}
    observed = probe_all(predictor.targets(here), how, on_progress=probing.progress)
    rows = tuple(compare(predictor, observed, here))
    if not counters:
        return _Dialled(rows=rows, left_out=predictor.left_out)
    if here.node is None or here.pod is not None:
        note = "--counters reads the rules of the node that ktp runs on, and this machine is none"
        return _Dialled(rows=rows, left_out=predictor.left_out, notes=(note,))
    if not before:
        note = (
            f"the counters of {here.node} could not be read: they need root, and rules of iptables"
            " (kube-proxy's nftables mode counts nothing)"
        )
        return _Dialled(rows=rows, left_out=predictor.left_out, notes=(note,))
    from ktp.diagnose.probing import moved_rules

    moved = moved_rules(here.node, service, before, _counters(snapshot, here.node))
    return _Dialled(rows=rows, left_out=predictor.left_out, moved=tuple(moved))


# Nodes that dial with --from-nodes; --node names others.
_MOST_SENDERS = 10


def _dial_from_nodes(
    settings: Settings, snapshot: Snapshot, predictor: Predictor, how: ProbeSettings, *, to_pods: bool = False
) -> _Dialled:
    """Let the nodes dial, and with `to_pods` each other's pods; a node on which nothing could be run is a note."""
    from ktp.collect.remote_prober import probe_from_nodes
    from ktp.diagnose.probing import Sender, compare

    access = _shells(settings)
    senders = predictor.nodes if settings.nodes else predictor.nodes[:_MOST_SENDERS]
    addresses = {
        node.name: tuple(a for kind, a in node.addresses if kind != "Hostname")
        for node in (snapshot.cluster.nodes or {}).values()
    }
    targets = {node: predictor.targets(Sender(node=node)) for node in senders}
    lengths: dict[str, list[LengthTarget]] = {}
    for node in senders if to_pods else ():
        more, lengths[node] = predictor.pods(Sender(node=node))
        targets[node] += more
    observed, packets, gaps = probe_from_nodes(addresses, targets, how, access, lengths)
    notes = [f"{gap.message}" + (f" ({gap.remedy})" if gap.remedy else "") for gap in gaps]
    if len(senders) < len(predictor.nodes):
        notes.append(
            f"{len(predictor.nodes) - len(senders)} more nodes did not dial; --node names those that do"
        )
    return _Dialled(
        rows=tuple(compare(predictor, observed)),
        lengths=tuple(packets) if to_pods else None,
        left_out=predictor.left_out,
        notes=tuple(notes),
    )


def _shells(settings: Settings) -> SshSettings | NodeShell:
    """How the nodes are made to dial. Raises UsageError for ways that give no shell there."""
    from ktp.collect.node_shell import NodeShell
    from ktp.collect.ssh import SshSettings

    if settings.node_access == "shell":
        shell = NodeShell(command=settings.node_shell or "", parallel=settings.parallel)
        if shell.preset.makes:
            raise UsageError(
                f"--node-shell {shell.command} makes {shell.preset.makes}, which --from-nodes does not",
                hint="give another command, or --node-access ssh",
            )
        return shell
    if settings.node_access != "ssh":
        raise UsageError(
            "--from-nodes needs a shell on the nodes", hint="add --node-access ssh, or --node-shell COMMAND"
        )
    return SshSettings(
        user=settings.ssh_user,
        options=settings.ssh_options,
        parallel=settings.parallel,
        timeout=settings.timeout,
    )


def _counters(snapshot: Snapshot, node: str | None) -> dict[str, bytes]:
    """This machine's rules with counters, of the back ends that the node is known to have rules in."""
    from ktp.collect.prober import read_counters

    state = snapshot.nodes.get(node) if node is not None else None
    if state is None:
        return {}
    return read_counters(dict.fromkeys(r.backend.value for r in state.rulesets if r.tables()))


def _require_own_network(settings: Settings, probing: Probing | None) -> None:
    """UsageError for addresses that were recorded: here they may be somebody else's."""
    if offline(settings) and not (probing is not None and probing.dial_recorded):
        raise UsageError(
            "the addresses of a snapshot were recorded, belong to another network than this one perhaps, and are not "
            "dialled",
            hint="on a machine of that very network add --dial-recorded",
        )


def health_answers(
    settings: Settings, snapshot: Snapshot, service: Service, probing: Probing | None
) -> dict[str, HealthAnswer]:
    """What the healthCheckNodePort of each node says; nothing where the Service has none."""
    _require_own_network(settings, probing)
    from ktp.collect.prober import ask_health
    from ktp.diagnose.reconcile import health_targets

    targets = health_targets(snapshot, service, settings.nodes)
    timeout = probing.timeout if probing is not None else 2.0
    answers = ask_health(targets, timeout=timeout, parallel=settings.parallel)
    return {answer.target.node: answer for answer in answers}
