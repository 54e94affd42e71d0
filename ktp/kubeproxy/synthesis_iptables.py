"""The iptables rules that kube-proxy writes for one service port on one node, kube-proxy since 1.18.

Text as `iptables-save` prints it: the header options first, `MARK` and `recent` spelled out. Facts:
`pkg/proxy/iptables/proxier.go` (`syncProxyRules`). What is written where nothing depends on a Service (KUBE-FORWARD,
KUBE-POSTROUTING, the jumps of built-in chains) is not here: a node's recorded rules keep theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ktp.kubeproxy.endpoints import (
    EndpointSelection,
    ProxyEndpoint,
    SliceIndex,
    external_policy_local,
    internal_policy_local,
    select_endpoints,
)
from ktp.kubeproxy.frontends import FrontEndKind, front_ends
from ktp.kubeproxy.names import (
    KUBE_EXTERNAL_SERVICES,
    KUBE_FORWARD,
    KUBE_MARK_DROP,
    KUBE_MARK_MASQ,
    KUBE_NODEPORTS,
    KUBE_PROXY_FIREWALL,
    KUBE_SERVICES,
    SVC_PREFIX,
    SVL_PREFIX,
    ServiceChains,
    endpoint_chain,
    host_port,
    service_chains,
    service_port_string,
)
from ktp.kubeproxy.node import DetectLocal, IPNetwork, ProxyNode
from ktp.model.cluster import Cluster, Service, ServicePort, networks_of
from ktp.model.host import IPAddress, KubeProxyConfig
from ktp.model.ruleset import Rule, Ruleset

LARGE_CLUSTER_ENDPOINTS = 1000
"""With more endpoints than that, kube-proxy leaves the comments of per-endpoint rules out (all versions)."""

_LOCALHOST_COUNTER = "localhost_nps_accepted_pkts"
_INVALID_COUNTER = "ct_state_invalid_dropped_pkts"


@dataclass(frozen=True, slots=True)
class LocalMatch:
    """How rules tell a pod of the cluster: `-s CIDR` or `-i INTERFACE` (`proxyutil.LocalTrafficDetector`)."""

    option: str  # "-s" or "-i"
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleKnobs:
    """What of kube-proxy's configuration and surroundings shows in a Service's rules of one address family."""

    local: LocalMatch | None = None  # None: no detector, no "pod traffic" rules
    masquerade_all: bool = False
    comments: bool = True  # False in large clusters
    nfacct: bool = False  # 1.31 and later, where the kernel has the match


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRules:
    """The rules of one service port on one node.

    `own` holds its chains of table nat, complete; `shared` its rules in the chains that all Services share, by
    (table, chain). `name` is the port's name in comments, `suffix` what its chains' names end in.
    """

    name: str
    suffix: str
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shared: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)


def ip_version(family: str) -> int:
    """4 of "ip", 6 of "ip6"."""
    return 6 if family == "ip6" else 4


# ------------------------------------------------------------------------------------------------------- knobs


def knobs_of(node: ProxyNode, family: str, config: KubeProxyConfig | None = None) -> RuleKnobs:
    """The knobs that a node's description and configuration give.

    `config` is needed for the detectors by interface (1.24 and later) alone. A detector that is not known, or has
    nothing of this family, is none.
    """
    version = ip_version(family)
    detector = node.detectors[0] if len(node.detectors) == 1 else DetectLocal.NONE
    local = None
    networks: tuple[IPNetwork, ...] = ()
    if detector is DetectLocal.CLUSTER_CIDR:
        networks = node.cluster_cidrs
    elif detector is DetectLocal.NODE_CIDR:
        networks = node.pod_cidrs
    elif detector is DetectLocal.BRIDGE_INTERFACE and config is not None and config.bridge_interface:
        local = LocalMatch("-i", config.bridge_interface)
    elif (
        detector is DetectLocal.INTERFACE_NAME_PREFIX and config is not None and config.interface_name_prefix
    ):
        local = LocalMatch("-i", f"{config.interface_name_prefix}+")
    for network in networks:
        if network.version == version:
            local = LocalMatch("-s", str(network))
            break
    return RuleKnobs(local=local, masquerade_all=node.masquerade_all)


def observed_knobs(ruleset: Ruleset, *, limit: int = 64) -> RuleKnobs | None:
    """The knobs that a node's rules show, None where no rule of a cluster IP tells.

    Reads the first `limit` cluster IPs of KUBE-SERVICES at most: what masquerades them stands before their jump up
    to 1.21, at the head of their SVC or SVL chain since 1.22.
    """
    services = ruleset.chain("nat", KUBE_SERVICES)
    if services is None:
        return None
    nfacct = shows_nfacct(ruleset)
    jumps = 0
    for i in range(len(services)):
        if "cluster IP" not in services.raw(i):
            continue
        rule = services.rule(i)
        target = rule.target.name if rule.target is not None else ""
        if target == KUBE_MARK_MASQ:
            return _knobs_of_rule(rule, nfacct)
        if target.startswith((SVC_PREFIX, SVL_PREFIX)):
            jumps += 1
            chain = ruleset.chain("nat", target)
            if chain is not None and len(chain):
                first = chain.rule(0)
                if first.target is not None and first.target.name == KUBE_MARK_MASQ:
                    if (first.comment or "").endswith("cluster IP"):
                        return _knobs_of_rule(first, nfacct)
        if jumps > limit:
            break
    return RuleKnobs(nfacct=nfacct) if jumps else None


def shows_nfacct(ruleset: Ruleset) -> bool:
    """Whether kube-proxy's rules count with nfacct (1.31 and later, where the kernel has it)."""
    node_ports = ruleset.chain("nat", KUBE_NODEPORTS)
    if node_ports is not None and len(node_ports):
        return _LOCALHOST_COUNTER in node_ports.raw(0)
    forward = ruleset.chain("filter", KUBE_FORWARD)
    return forward is not None and any(
        _INVALID_COUNTER in forward.raw(i) for i in range(min(len(forward), 8))
    )


def _knobs_of_rule(rule: Rule, nfacct: bool) -> RuleKnobs:
    for match in rule.matches:
        for option in match.options:
            if match.name == "" and option.flag in {"-s", "-i"} and option.negated:
                return RuleKnobs(local=LocalMatch(option.flag, option.args[0]), nfacct=nfacct)
    return RuleKnobs(masquerade_all=True, nfacct=nfacct)


def is_large_cluster(cluster: Cluster, family: str) -> bool:
    """Whether kube-proxy leaves comments out: more endpoints than LARGE_CLUSTER_ENDPOINTS in this family."""
    kind = "IPv6" if family == "ip6" else "IPv4"
    slices = cluster.slices if cluster.slices is not None else cluster.endpoints
    total = 0
    for one in slices or ():
        if one.address_type == kind:
            total += len(one.endpoints) * len(one.ports)
    return total > LARGE_CLUSTER_ENDPOINTS


# ------------------------------------------------------------------------------------------------------- rules


def _host(ip: IPAddress | str) -> str:
    """One address as `-s` and `-d` print it."""
    text = str(ip)
    return f"{text}/128" if ":" in text else f"{text}/32"


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}"'


@dataclass(kw_only=True, eq=False)
class PortFacts:
    """What a service port has in one address family on a node: addresses, node port, policies, source ranges.

    `selection` is what kube-proxy 1.`minor` on `node` chose of the endpoints.
    """

    service: Service
    port: ServicePort
    node: ProxyNode
    selection: EndpointSelection
    family: str
    minor: int
    knobs: RuleKnobs

    def __post_init__(self) -> None:
        """Find what the port has."""
        service, port, node, minor = self.service, self.port, self.node, self.minor
        self.version = ip_version(self.family)
        self.protocol = port.protocol.lower()
        self.name = service_port_string(
            service.namespace, service.name, port.name, legacy_unnamed=minor <= 18
        )
        ends = front_ends(service, port, node, minor=minor)

        def addresses(kind: FrontEndKind) -> tuple[IPAddress, ...]:
            found = (f.ip for f in ends.of(kind) if f.ip is not None and f.ip_version == self.version)
            return tuple(dict.fromkeys(found))

        cluster_ips = addresses(FrontEndKind.CLUSTER_IP)
        self.cluster_ip = cluster_ips[0] if cluster_ips else None
        self.external_ips = addresses(FrontEndKind.EXTERNAL_IP)
        self.lb_ips = addresses(FrontEndKind.LOAD_BALANCER)
        node_ports = [f for f in ends.of(FrontEndKind.NODE_PORT) if f.ip_version == self.version]
        self.node_port = node_ports[0].port if node_ports else 0
        self.external_local = external_policy_local(service, minor, node)
        self.internal_local = internal_policy_local(service, minor, node)

    @property
    def is_external(self) -> bool:
        """Whether the port has an external front end in this family (`ExternallyAccessible`)."""
        return bool(self.node_port or self.external_ips or self.lb_ips)

    @property
    def has_affinity(self) -> bool:
        """Whether clients stick to the endpoint that they drew first."""
        return self.service.session_affinity == "ClientIP"

    def reachable(self) -> tuple[ProxyEndpoint, ...]:
        """The endpoints that either policy uses on this node (`allLocallyReachableEndpoints`)."""
        everywhere, here = self.selection.cluster, self.selection.local
        return (*everywhere, *(e for e in here if e not in everywhere))

    def source_ranges(self) -> tuple[IPNetwork, ...]:
        """spec.loadBalancerSourceRanges of this family; since 1.34 a range of everything restricts nothing."""
        found = networks_of(self.service.load_balancer_source_ranges, self.version)
        if self.minor >= 34 and any(n.prefixlen == 0 for n in found):
            return ()
        return found

    def ranges_hold_node(self, ranges: Sequence[IPNetwork]) -> bool:
        """Whether the node's own address is in a range: then the load balancer's addresses are let through too."""
        own = [ip for ip in self.node.primary_ips if ip.version == self.version]
        return any(ip in network for ip in own[:1] for network in ranges)


@dataclass(kw_only=True, eq=False)
class _Writer(PortFacts):
    """Collects the rules of one service port."""

    own: dict[str, list[str]] = field(default_factory=dict)
    shared: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chains: ServiceChains = service_chains(self.name, self.protocol)

    # -- one rule

    def line(
        self,
        chain: str,
        *rest: str,
        target: str = "",
        src: str = "",
        dst: str = "",
        pod: bool | None = None,
        proto: bool = False,
    ) -> str:
        """A rule: `pod` True matches pods alone, False all others; `proto` the port's protocol."""
        words = ["-A", chain]
        local = self.knobs.local if pod is not None else None
        negation = [] if pod else ["!"]
        if local is not None and local.option == "-s":
            words += [*negation, "-s", local.value]
        if src:
            words += ["-s", src]
        if dst:
            words += ["-d", dst]
        if local is not None and local.option == "-i":
            words += [*negation, "-i", local.value]
        if proto:
            words += ["-p", self.protocol]
        words += [part for part in rest if part]
        if target:
            words += ["-j", target]
        return " ".join(words)

    def add(self, chain: str, *rest: str, table: str = "nat", **options: str | bool | None) -> None:
        """Append a rule to a chain of the port's own, where it has been made, or else to a shared one."""
        line = self.line(chain, *rest, **options)  # type: ignore[arg-type]
        if table == "nat" and chain in self.own:
            self.own[chain].append(line)
        else:
            self.shared.setdefault((table, chain), []).append(line)

    def make(self, chain: str) -> None:
        """Declare a chain of the port's own."""
        self.own.setdefault(chain, [])

    def dport(self, number: int) -> str:
        return f"-m {self.protocol} --dport {number}"

    def stop(self, chain: str, target: str, why: str, *, dst: str = "", node_port: bool = False) -> None:
        """A filter rule that rejects or drops what dials an address or the node port."""
        if target == "REJECT":
            target = f"REJECT --reject-with icmp{'6' if self.version == 6 else ''}-port-unreachable"
        self.add(
            chain,
            _comment(f"{self.name} {why}"),
            "-m addrtype --dst-type LOCAL" if node_port else "",
            self.dport(self.node_port if node_port else self.port.port),
            table="filter",
            dst=dst,
            proto=True,
            target=target,
        )

    def capture(
        self, what: str, ip: IPAddress, *rest: str, target: str, pod: bool | None = None, chain: str = ""
    ) -> None:
        """A nat rule for one address: in KUBE-SERVICES, or in `chain`."""
        self.add(
            chain or KUBE_SERVICES,
            _comment(f"{self.name} {what}"),
            self.dport(self.port.port),
            *rest,
            dst=_host(ip),
            proto=True,
            pod=pod,
            target=target,
        )

    def masquerade_cluster_ip(self, chain: str) -> None:
        """The rule that masquerades what is no pod and dials the cluster IP (all with masqueradeAll)."""
        if self.cluster_ip is None or not (self.knobs.masquerade_all or self.knobs.local):
            return
        pod = None if self.knobs.masquerade_all else False
        self.capture("cluster IP", self.cluster_ip, pod=pod, target=KUBE_MARK_MASQ, chain=chain)

    # -- endpoints

    def chain_of(self, endpoint: ProxyEndpoint) -> str:
        return endpoint_chain(self.name, self.protocol, endpoint.ip, endpoint.port)

    def recent(self, chain: str, options: str) -> str:
        mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" if self.version == 6 else "255.255.255.255"
        return f"-m recent {options} --name {chain} --mask {mask} --rsource"

    def affinity(self, chain: str, endpoints: Sequence[ProxyEndpoint], *, named: bool) -> None:
        if not self.has_affinity:
            return
        check = f"--rcheck --seconds {self.service.session_affinity_timeout} --reap"
        for endpoint in endpoints:
            sep = self.chain_of(endpoint)
            comment = self.endpoint_comment(endpoint if named else None)
            self.add(chain, comment, self.recent(sep, check), target=sep)

    def endpoint_comment(self, endpoint: ProxyEndpoint | None, text: str = "") -> str:
        if not self.knobs.comments:
            return ""
        if endpoint is not None:
            return _comment(f"{self.name} -> {host_port(endpoint.ip, endpoint.port)}")
        return _comment(text or self.name)

    def balance(
        self, chain: str, endpoints: Sequence[ProxyEndpoint], *, named: bool, numbered: bool = False
    ) -> None:
        """One rule an endpoint: `named` comments name it (1.24 and later), `numbered` ones count (XLB to 1.22)."""
        count = len(endpoints)
        for i, endpoint in enumerate(endpoints):
            text = f"Balancing rule {i} for {self.name}" if numbered else ""
            comment = _comment(text) if numbered else self.endpoint_comment(endpoint if named else None)
            statistic = ""
            if i < count - 1:
                statistic = f"-m statistic --mode random --probability {_as_kernel_keeps(1 / (count - i))}"
            self.add(chain, comment, statistic, target=self.chain_of(endpoint))

    def endpoint_chains(self, endpoints: Sequence[ProxyEndpoint]) -> None:
        for endpoint in endpoints:
            chain = self.chain_of(endpoint)
            self.make(chain)
            comment = self.endpoint_comment(None)
            self.add(chain, comment, src=_host(endpoint.ip), target=KUBE_MARK_MASQ)
            recent = self.recent(chain, "--set") if self.has_affinity else ""
            target = f"DNAT --to-destination {host_port(endpoint.ip, endpoint.port)}"
            self.add(chain, comment, recent, f"-m {self.protocol}", proto=True, target=target)

    # -- source ranges and health checks

    def firewall(self, ranges: Sequence[IPNetwork], vips: Sequence[IPAddress], target: str) -> None:
        """The rules of KUBE-FW that let the ranges through."""
        comment = _comment(f"{self.name} loadbalancer IP")
        for network in ranges:
            src = str(network) if network.prefixlen else ""  # iptables-save leaves `-s 0.0.0.0/0` out
            self.add(self.chains.fw, comment, src=src, target=target)
        if self.ranges_hold_node(ranges):
            for ip in vips:
                self.add(self.chains.fw, comment, src=_host(ip), target=target)

    def health_check(self) -> None:
        """The rule that lets the load balancer's health checks in (1.21 and later), one a service port."""
        service = self.service
        wants = service.type == "LoadBalancer" and service.external_traffic_policy == "Local"
        if self.minor < 21 or not wants or not service.health_check_node_port:
            return
        comment = _comment(f"{self.name} health check node port")
        match = f"-p tcp {comment} -m tcp --dport {service.health_check_node_port}"
        self.add(KUBE_NODEPORTS, match, table="filter", target="ACCEPT")

    def rules(self) -> ServiceRules:
        suffix = self.chains.svc.removeprefix(SVC_PREFIX)
        return ServiceRules(
            name=self.name,
            suffix=suffix,
            own={chain: tuple(lines) for chain, lines in self.own.items()},
            shared={where: tuple(lines) for where, lines in self.shared.items()},
        )


def _as_kernel_keeps(probability: float) -> str:
    """A probability as iptables-save prints it back: the kernel keeps 31 bits of what kube-proxy writes (`%0.10f`)."""
    written = float(f"{probability:.10f}")
    return f"{round(written * 0x80000000) / 0x80000000:.11f}"


def synthesize_port(
    service: Service,
    port: ServicePort,
    node: ProxyNode,
    index: SliceIndex,
    *,
    family: str,
    minor: int,
    knobs: RuleKnobs | None = None,
    unready_count: bool = False,
) -> ServiceRules:
    """The rules that kube-proxy 1.`minor` on `node` writes for a service port in `family` ("ip" or "ip6").

    Empty for a Service that it ignores, or that has no cluster IP of that family. `unready_count` is about 1.22
    alone, see `select_endpoints`. `knobs` default to those that `node` itself tells.
    """
    selection = select_endpoints(
        index,
        service,
        port,
        node,
        minor=minor,
        ip_version=ip_version(family),
        unready_count=unready_count,
    )
    writer = _Writer(
        service=service,
        port=port,
        node=node,
        selection=selection,
        family=family,
        minor=minor,
        knobs=knobs if knobs is not None else knobs_of(node, family),
    )
    if writer.cluster_ip is None:
        return writer.rules()
    if minor <= 23:
        _write_le_1_23(writer)
    else:
        _write_ge_1_24(writer)
    writer.health_check()
    return writer.rules()


# --------------------------------------------------------------------------------------------- up to 1.23: XLB


def _write_le_1_23(w: _Writer) -> None:
    """KUBE-SVC where there are endpoints, KUBE-XLB wherever the policy is Local, KUBE-FW for load-balancer IPs."""
    has_endpoints = w.selection.has_endpoints
    svc, xlb = w.chains.svc, w.chains.xlb
    if has_endpoints:
        w.make(svc)
    if w.external_local:
        w.make(xlb)
    _cluster_ip_le_1_23(w)
    if not has_endpoints:
        _reject_all(w)
        return
    for ip in w.external_ips:
        _external_ip_le_1_23(w, ip)
    for ip in w.lb_ips:
        _lb_ip_le_1_23(w, ip)
    if w.node_port:
        _node_port_le_1_23(w)
    # 1.22 writes affinity rules and chains for endpoints that are not ready too, and balances over ready ones.
    kept = w.selection.listed if w.minor == 22 else w.selection.usable
    w.affinity(svc, kept, named=False)
    w.balance(svc, w.selection.cluster, named=False)
    w.endpoint_chains(kept)
    if w.external_local:
        _xlb(w)


def _cluster_ip_le_1_23(w: _Writer) -> None:
    if w.cluster_ip is None or not w.selection.has_endpoints:
        return
    w.masquerade_cluster_ip(KUBE_SERVICES if w.minor <= 21 else w.chains.svc)
    w.capture("cluster IP", w.cluster_ip, target=w.chains.svc)


def _external_ip_le_1_23(w: _Writer, ip: IPAddress) -> None:
    """Up to 1.20 two jumps that spare bridged and local packets; since 1.21 one, and pods keep their source."""
    local = external_policy_local(w.service, w.minor, w.node, external_ip=True)
    target = w.chains.xlb if local else w.chains.svc
    what = "external IP"
    if w.minor <= 20:
        if not local:
            w.capture(what, ip, target=KUBE_MARK_MASQ)
        w.capture(what, ip, "-m physdev ! --physdev-is-in", "-m addrtype ! --src-type LOCAL", target=target)
        w.capture(what, ip, "-m addrtype --dst-type LOCAL", target=target)
        return
    if not local:
        chain = KUBE_SERVICES if w.minor == 21 else w.chains.svc
        w.capture(what, ip, pod=False, target=KUBE_MARK_MASQ, chain=chain)
    w.capture(what, ip, target=target)


def _lb_ip_le_1_23(w: _Writer, ip: IPAddress) -> None:
    fw = w.chains.fw
    w.make(fw)
    w.capture("loadbalancer IP", ip, target=fw)
    comment = _comment(f"{w.name} loadbalancer IP")
    if not w.external_local:
        w.add(fw, comment, target=KUBE_MARK_MASQ)
    target = w.chains.xlb if w.external_local else w.chains.svc
    ranges = w.source_ranges()
    if ranges:
        w.firewall(ranges, (ip,), target)
    else:
        w.add(fw, comment, target=target)
    w.add(fw, comment, target=KUBE_MARK_DROP)


def _node_port_le_1_23(w: _Writer) -> None:
    match = (_comment(w.name), w.dport(w.node_port))
    if w.external_local:
        loopback = "::1/128" if w.version == 6 else "127.0.0.0/8"
        w.add(KUBE_NODEPORTS, *match, src=loopback, proto=True, target=KUBE_MARK_MASQ)
        w.add(KUBE_NODEPORTS, *match, proto=True, target=w.chains.xlb)
        return
    chain = KUBE_NODEPORTS if w.minor <= 21 else w.chains.svc
    w.add(chain, *match, proto=True, target=KUBE_MARK_MASQ)
    w.add(KUBE_NODEPORTS, *match, proto=True, target=w.chains.svc)


def _xlb(w: _Writer) -> None:
    xlb, svc = w.chains.xlb, w.chains.svc
    if w.knobs.local is not None:
        text = "Redirect pods trying to reach external loadbalancer VIP to clusterIP"
        w.add(xlb, _comment(text), pod=True, target=svc)
    local = "-m addrtype --src-type LOCAL"
    w.add(xlb, _comment(f"masquerade LOCAL traffic for {w.name} LB IP"), local, target=KUBE_MARK_MASQ)
    w.add(xlb, _comment(f"route LOCAL traffic for {w.name} LB IP to service chain"), local, target=svc)
    here = w.selection.local
    if not here:
        w.add(xlb, _comment(f"{w.name} has no local endpoints"), target=KUBE_MARK_DROP)
        return
    w.affinity(xlb, here, named=False)
    w.balance(xlb, here, named=False, numbered=w.minor <= 22)


def _reject_all(w: _Writer) -> None:
    """No endpoint at all (all versions): REJECT for every front end.

    Load-balancer IPs in KUBE-SERVICES in 1.18.2, in KUBE-EXTERNAL-SERVICES since 1.18.6.
    """
    why = "has no endpoints"
    if w.cluster_ip is not None:
        w.stop(KUBE_SERVICES, "REJECT", why, dst=_host(w.cluster_ip))
    for ip in (*w.external_ips, *w.lb_ips):
        w.stop(KUBE_EXTERNAL_SERVICES, "REJECT", why, dst=_host(ip))
    if w.node_port:
        w.stop(KUBE_EXTERNAL_SERVICES, "REJECT", why, node_port=True)


# --------------------------------------------------------------------------------------- 1.24 and later: EXT


def _write_ge_1_24(w: _Writer) -> None:
    """KUBE-EXT for external traffic, KUBE-SVC and KUBE-SVL for the endpoints of either policy.

    1.24 marks packets without local endpoints for dropping; since 1.25 rules of filter drop them.
    """
    if not w.selection.has_endpoints:
        _reject_all(w)
        return
    marks = w.minor == 24
    everywhere, here = w.selection.cluster, w.selection.local
    chains = w.chains
    externally = w.is_external
    uses_cluster = bool(everywhere) or (marks and (externally or not w.internal_local))
    uses_local = bool(here) or (marks and (w.internal_local or (externally and w.external_local)))
    has_internal = marks or not w.internal_local or bool(here)
    has_external = marks or not w.external_local or bool(here)
    internal = chains.svl if w.internal_local else chains.svc
    ranges = w.source_ranges() if w.lb_ips else ()
    if uses_cluster:
        w.make(chains.svc)
    if uses_local:
        w.make(chains.svl)
    if externally:
        w.make(chains.ext)
    if ranges:
        w.make(chains.fw)

    if has_internal and w.cluster_ip is not None:
        w.capture("cluster IP", w.cluster_ip, target=internal)
    elif w.cluster_ip is not None:
        w.stop(KUBE_SERVICES, "DROP", "has no local endpoints", dst=_host(w.cluster_ip))
    for ip in w.external_ips:
        w.capture("external IP", ip, target=chains.ext)
    for ip in w.lb_ips:
        w.capture("loadbalancer IP", ip, target=chains.fw if ranges else chains.ext)
        if ranges and not marks:
            w.stop(KUBE_PROXY_FIREWALL, "DROP", f"traffic not accepted by {chains.fw}", dst=_host(ip))
    if not has_external:
        for ip in (*w.external_ips, *w.lb_ips):
            w.stop(KUBE_EXTERNAL_SERVICES, "DROP", "has no local endpoints", dst=_host(ip))
    if w.node_port:
        _node_port_ge_1_24(w)
        if not has_external:
            w.stop(KUBE_EXTERNAL_SERVICES, "DROP", "has no local endpoints", node_port=True)

    if has_internal:
        w.masquerade_cluster_ip(internal)
    if externally:
        _ext(w, has_external=has_external)
    if ranges:
        w.firewall(ranges, w.lb_ips, chains.ext)
        if marks:
            w.add(chains.fw, _comment(f"{w.name} loadbalancer IP"), target=KUBE_MARK_DROP)
        elif w.minor >= 27:
            w.add(chains.fw, _comment(f"other traffic to {w.name} will be dropped by {KUBE_PROXY_FIREWALL}"))
    if uses_cluster:
        w.affinity(chains.svc, everywhere, named=True)
        w.balance(chains.svc, everywhere, named=True)
    if uses_local:
        if here:
            w.affinity(chains.svl, here, named=True)
            w.balance(chains.svl, here, named=True)
        else:
            w.add(chains.svl, _comment(f"{w.name} has no local endpoints"), target=KUBE_MARK_DROP)
    w.endpoint_chains(w.reachable())


def _node_port_ge_1_24(w: _Writer) -> None:
    """The jump to KUBE-EXT; since 1.31 a counting one for loopback addresses before it, where there is nfacct."""
    match = (_comment(w.name), w.dport(w.node_port))
    if w.minor >= 31 and w.knobs.nfacct and w.version == 4 and w.node.localhost_node_ports:
        counter = f"-m nfacct --nfacct-name  {_LOCALHOST_COUNTER}"  # libxt_nfacct prints two spaces
        w.add(KUBE_NODEPORTS, *match, counter, dst="127.0.0.0/8", proto=True, target=w.chains.ext)
    w.add(KUBE_NODEPORTS, *match, proto=True, target=w.chains.ext)


def _ext(w: _Writer, *, has_external: bool) -> None:
    ext, svc = w.chains.ext, w.chains.svc
    if not w.external_local:
        w.add(ext, _comment(f"masquerade traffic for {w.name} external destinations"), target=KUBE_MARK_MASQ)
        w.add(ext, target=svc)
        return
    if w.knobs.local is not None:
        w.add(ext, _comment(f"pod traffic for {w.name} external destinations"), pod=True, target=svc)
    local = "-m addrtype --src-type LOCAL"
    text = f"masquerade LOCAL traffic for {w.name} external destinations"
    w.add(ext, _comment(text), local, target=KUBE_MARK_MASQ)
    w.add(ext, _comment(f"route LOCAL traffic for {w.name} external destinations"), local, target=svc)
    if has_external:
        w.add(ext, target=w.chains.svl)
