"""What should happen to a client of a Service on a node, by the API objects and kube-proxy's version and mode.

The outcome is computed from facts about kube-proxy since 1.18, not from rules: `ktp.dataplane` answers the same
question from the node's own state. Where version, mode or configuration is not known, every possibility is computed;
where all end alike the answer stands, where they differ it is UNKNOWN and says what it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeVar

from ktp.kubeproxy.endpoints import EndpointSelection, SliceIndex, select_endpoints
from ktp.kubeproxy.frontends import FrontEnd, FrontEndKind, ignored_reason, ip_versions_of
from ktp.kubeproxy.iptables_mode import iptables_outcome
from ktp.kubeproxy.ipvs_mode import ipvs_outcome
from ktp.kubeproxy.nftables_mode import nftables_outcome
from ktp.kubeproxy.node import ProxyMode, ProxyNode
from ktp.kubeproxy.outcome import (
    HERE,
    KNOWN_AS,
    ON_THE_NODE,
    PODS,
    Client,
    IntendedEndpoint,
    Outcome,
    Question,
    Vantage,
    World,
    unknown,
)
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.cluster import Service, ServicePort, networks_of
from ktp.model.record import dataclass
from ktp.model.trace import Disposition, Symptom

T = TypeVar("T")

_OUTCOME_OF_MODE: dict[ProxyMode, Callable[[Question], Outcome]] = {
    ProxyMode.IPTABLES: iptables_outcome,
    ProxyMode.NFTABLES: nftables_outcome,
    ProxyMode.IPVS: ipvs_outcome,
}
_FIRST_NFTABLES_MINOR = 29

_DIMENSIONS: tuple[tuple[str, Callable[[World], str]], ...] = (
    ("the version of kube-proxy", lambda w: f"1.{w.minor}"),
    ("the mode of kube-proxy", lambda w: w.mode.value),
    ("how kube-proxy tells pods (detectLocalMode, clusterCIDR)", lambda w: w.detector.value),
    ("whether the CNI masquerades pods that dial a node", lambda w: "yes" if w.pods_masqueraded else "no"),
    (
        "the client's address (spec.loadBalancerSourceRanges)",
        lambda w: "inside" if w.in_ranges else "outside",
    ),
    ("the patch release of kube-proxy", lambda w: "early" if w.unready_count or w.early_1_18 else "late"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """What kube-proxy means to do for one client of one front end on one node, and what decides it.

    `passes` is set where its rules leave the packet alone and routing takes it out of the node: where that ends is
    beyond the API. `depends_on` names what would have to be known, where the symptom is UNKNOWN or a detail
    (disposition UNDETERMINED, an endpoint's probability None) is left open.
    """

    node: str
    vantage: Vantage
    front_end: FrontEnd
    symptom: Symptom
    disposition: Disposition
    endpoints: tuple[IntendedEndpoint, ...] = ()
    source_kept: bool | None = None
    because: str = ""  # with HERE and KNOWN_AS in the place of the node's names
    known_as: str = ""
    passes: bool = False
    depends_on: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    should: Intent | None = None  # what kube-proxy would do where another data plane decides

    @property
    def decided_by(self) -> str:
        """What decides, in words."""
        return self.because.replace(HERE, self.node).replace(KNOWN_AS, self.known_as or self.node)


class PortOnNode:
    """One service port on one node: answers questions about it, choosing its endpoints once a version."""

    __slots__ = ("_selections", "index", "node", "port", "service")

    def __init__(self, index: SliceIndex, service: Service, port: ServicePort, node: ProxyNode) -> None:
        """Nothing is computed before it is asked for."""
        self.index = index
        self.service = service
        self.port = port
        self.node = node
        self._selections: dict[tuple[int, int, bool], EndpointSelection] = {}

    def selection(
        self, minor: int | None = None, *, ip_version: int = 4, unready_count: bool = False
    ) -> EndpointSelection:
        """The endpoints that kube-proxy 1.`minor` uses here (default: the newest that the node may run)."""
        minor = self.node.versions.minors()[-1] if minor is None else minor
        key = (minor, ip_version, unready_count)
        found = self._selections.get(key)
        if found is None:
            found = self._selections[key] = select_endpoints(
                self.index,
                self.service,
                self.port,
                self.node,
                minor=minor,
                ip_version=ip_version,
                unready_count=unready_count,
            )
        return found

    def outcome(self, front_end: FrontEnd, client: Client, *, pods_masqueraded: bool | None = None) -> Intent:
        """What should happen to `client` dialling `front_end` on this node.

        `front_end.ip` is set; a node port's is taken to be an address of this node. `pods_masqueraded` says whether
        the CNI replaces the source of pods that dial an address outside the pod network (flannel, bridge with
        ipMasq) or not (routed pods); None where it is not known.
        """
        outcome, depends_on = self._outcome(front_end, client, pods_masqueraded)
        return Intent(
            node=self.node.name,
            vantage=client.vantage,
            front_end=front_end,
            symptom=outcome.symptom,
            disposition=outcome.disposition,
            endpoints=outcome.endpoints,
            source_kept=outcome.source_kept,
            because=outcome.decided_by,
            known_as=self.node.known_as,
            passes=outcome.passes,
            depends_on=depends_on,
            assumptions=outcome.assumptions,
        )

    def _outcome(
        self, front_end: FrontEnd, client: Client, pods_masqueraded: bool | None
    ) -> tuple[Outcome, tuple[str, ...]]:
        if reason := ignored_reason(self.service):
            return unknown(f"kube-proxy ignores this Service: {reason}", passes=True), ()
        if front_end.ip_version not in ip_versions_of(self.service):
            return unknown(f"the Service has no IPv{front_end.ip_version} cluster IP", passes=True), ()
        if not self.index.knows(self.service):
            return unknown("neither EndpointSlices nor Endpoints of it were read"), ()
        elsewhere = client.vantage in {Vantage.POD_OTHER_NODE, Vantage.OTHER_NODE}
        if elsewhere and front_end.kind is not FrontEndKind.NODE_PORT:
            why = f"a {front_end.kind.value} is captured on the client's own node, not here"
            return unknown(why), ()
        worlds = self._worlds(front_end, client, pods_masqueraded)
        if not worlds:
            return unknown(f"kube-proxy {self.node.versions} has no nftables mode"), ()
        fates: dict[Hashable, tuple[IntendedEndpoint, ...]] = {}
        outcomes = [
            (
                world,
                _OUTCOME_OF_MODE[world.mode](
                    Question(
                        service=self.service,
                        port=self.port,
                        node=self.node,
                        front_end=front_end,
                        client=client,
                        world=world,
                        fates=fates,
                        selection=self.selection(
                            world.minor, ip_version=front_end.ip_version, unready_count=world.unready_count
                        ),
                    )
                ),
            )
            for world in worlds
        ]
        merged, depends_on = _merge(outcomes)
        if not self.node.versions.is_modelled:
            nearest = Assumption(
                f"kube-proxy {self.node.versions} behaves as the nearest version that ktp knows",
                EvidenceKind.VERSION,
                self.node.name,
            )
            merged = replace(merged, assumptions=(*merged.assumptions, nearest))
        return merged, depends_on

    def _worlds(self, front_end: FrontEnd, client: Client, pods_masqueraded: bool | None) -> list[World]:
        """Every possibility that the node's description and the client leave open."""
        node = self.node
        masqueraded: tuple[bool | None, ...] = (None,)
        if client.vantage in PODS:
            masqueraded = (False, True) if pods_masqueraded is None else (pods_masqueraded,)
        worlds = []
        for mode, minor, detector, masquerade, in_ranges in product(
            node.modes,
            node.versions.minors(),
            node.detectors,
            masqueraded,
            self._in_ranges(front_end, client),
        ):
            if mode is ProxyMode.NFTABLES and minor < _FIRST_NFTABLES_MINOR:
                continue
            world = World(
                minor=minor,
                mode=mode,
                detector=detector,
                pods_masqueraded=masquerade,
                in_ranges=in_ranges,
            )
            worlds.append(world)
            if minor == 22:
                worlds.append(replace(world, unready_count=True))
            elif minor == 18:
                worlds.append(replace(world, early_1_18=True))
        return worlds

    def _in_ranges(self, front_end: FrontEnd, client: Client) -> tuple[bool, ...]:
        """Whether loadBalancerSourceRanges let the client in: both answers where its address is not known.

        Ranges of the other family only do not restrict this one (all versions).
        """
        ranges = networks_of(self.service.load_balancer_source_ranges, front_end.ip_version)
        if front_end.kind is not FrontEndKind.LOAD_BALANCER or not ranges:
            return (True,)
        source = client.ip
        if source is None and client.vantage in ON_THE_NODE:
            source = next((ip for ip in self.node.primary_ips if ip.version == front_end.ip_version), None)
        return (True, False) if source is None else (any(source in r for r in ranges),)


def _merge(outcomes: Sequence[tuple[World, Outcome]]) -> tuple[Outcome, tuple[str, ...]]:
    """One answer of all possibilities, and what the parts that it leaves open depend on."""
    newest = outcomes[-1][1]  # whose words stand where all end alike
    if all(outcome == newest for _, outcome in outcomes):
        return newest, ()
    assumptions = tuple(dict.fromkeys(a for _, outcome in outcomes for a in outcome.assumptions))
    if any(outcome.symptom is not newest.symptom for _, outcome in outcomes):
        depends_on = _depends_on(outcomes, lambda o: o.symptom.value)
        why = "it depends on " + " and on ".join(depends_on)
        return replace(unknown(why), assumptions=assumptions), depends_on
    depends_on = ()
    disposition = _common(outcome.disposition for _, outcome in outcomes)
    if disposition is None:
        depends_on = _depends_on(outcomes, lambda o: o.disposition.value)
    endpoints = newest.endpoints
    if any(outcome.endpoints != endpoints for _, outcome in outcomes):
        endpoints = _merge_endpoints([outcome for _, outcome in outcomes])
        alike = {each: str(n) for n, each in enumerate({o.endpoints: None for _, o in outcomes})}
        depends_on = depends_on or _depends_on(outcomes, lambda o: alike[o.endpoints], values=False)
    merged = replace(
        newest,
        disposition=disposition or Disposition.UNDETERMINED,
        endpoints=endpoints,
        source_kept=_common(outcome.source_kept for _, outcome in outcomes),
        passes=all(outcome.passes for _, outcome in outcomes),
        assumptions=assumptions,
    )
    return merged, depends_on


def _merge_endpoints(outcomes: Sequence[Outcome]) -> tuple[IntendedEndpoint, ...]:
    """Every endpoint that some possibility draws, with what all of them agree on."""
    by_address: dict[tuple[str, int], list[IntendedEndpoint]] = {}
    for outcome in outcomes:
        for endpoint in outcome.endpoints:
            by_address.setdefault((endpoint.ip, endpoint.port), []).append(endpoint)
    return tuple(
        replace(
            found[-1],
            probability=_common(e.probability for e in found) if len(found) == len(outcomes) else None,
            symptom=_common(e.symptom for e in found) or Symptom.UNKNOWN,
            disposition=_common(e.disposition for e in found) or Disposition.UNDETERMINED,
            source_kept=_common(e.source_kept for e in found),
        )
        for found in by_address.values()
    )


def _common(values: Iterable[T]) -> T | None:
    """The value that all have, or None."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _depends_on(
    outcomes: Sequence[tuple[World, Outcome]], aspect: Callable[[Outcome], str], *, values: bool = True
) -> tuple[str, ...]:
    """What an aspect of the outcomes depends on; where it is one thing, with its values, unless not `values`."""
    keys = [tuple(value_of(world) for _, value_of in _DIMENSIONS) for world, _ in outcomes]
    aspects = [aspect(outcome) for _, outcome in outcomes]
    involved = []
    for i, (words, value_of) in enumerate(_DIMENSIONS):
        groups: dict[tuple[str, ...], set[str]] = {}
        for key, found in zip(keys, aspects, strict=True):
            groups.setdefault(key[:i] + key[i + 1 :], set()).add(found)
        if any(len(found_by_it) > 1 for found_by_it in groups.values()):
            involved.append((words, value_of))
    if len(involved) != 1 or not values:
        return tuple(words for words, _ in involved)
    words, value_of = involved[0]
    by_aspect: dict[str, dict[str, None]] = {}
    for (world, _), found in zip(outcomes, aspects, strict=True):
        by_aspect.setdefault(found, {})[value_of(world)] = None
    details = "; ".join(f"{_listed(tuple(those))}: {found}" for found, those in by_aspect.items())
    return (f"{words} ({details})",)


def _listed(values: tuple[str, ...]) -> str:
    """`1.25 to 1.36` for a run of versions, else the values with commas."""
    if len(values) > 2 and all(value.startswith("1.") for value in values):
        minors = [int(value.removeprefix("1.")) for value in values]
        if minors == list(range(minors[0], minors[-1] + 1)):
            return f"{values[0]} to {values[-1]}"
    return ", ".join(values)
