"""What `cilium-dbg` (up to 1.14 `cilium`) prints on a node → CiliumState.

The forms of a key of `bpf lb list` by version (pkg/maps/lbmap, types.go; cilium-dbg/cmd/bpf_lb_list.go):
up to 1.15 `IP:PORT[/i]` with all slots in one list, 1.16 `IP:PORT[/i] (SLOT)`, from 1.17 `IP:PORT/PROTO[/i] (SLOT)`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from ktp.errors import EvidenceError
from ktp.model.cilium import (
    CiliumConfig,
    CiliumEndpoint,
    CiliumPolicy,
    CiliumState,
    IpcacheEntry,
    LbBackend,
    LbFlag,
    LbFrontend,
    LbKind,
    NodePortMode,
    PolicyEntry,
)
from ktp.model.host import IPAddress, IPNetwork
from ktp.parse.text import decode_text, load_json, object_of

_WHERE = r"(?:\[(?P<ip6>[0-9a-fA-F:.]+)\]|(?P<ip>[0-9a-fA-F:.]+?)):(?P<port>\d+)(?:/(?P<proto>[A-Z]+[0-9]*))?"
_KEY = re.compile(rf"{_WHERE}(?P<internal>/i)?(?:\s*\((?P<slot>\d+)\))?\s*$")
_VALUE = re.compile(rf"{_WHERE}\s+\((?P<revnat>\d+)\)\s+\((?P<slot>\d+)\)(?:\s+\[(?P<flags>[^\]]*)\])?\s*$")
_COUNT = re.compile(r"\d+\s+(?P<count>\d+)(?:\[\d+\])?\s+\((?P<revnat>\d+)\)")
_LINE = re.compile(
    r"(?P<key>\S+:\d+\S*(?:\s+\(\d+\))?)?\s+(?P<value>\S+:\d+\S*\s+\(\d+\)\s+\(\d+\)(?:\s+\[[^\]]*\])?)\s*$"
)
_RANGE = re.compile(r"(?P<net>[0-9a-fA-F:.]+/\d+)\s+\((?P<revnat>\d+)\)")
_ENDPOINT = re.compile(r"\bid=(?P<id>\d+)\b.*?\bifindex=(?P<index>\d+)\b")
_VERSION = re.compile(r"(?:Daemon|Client):\s*v?(\d+)\.(\d+)")
_OWN = "(localhost)"
_PROTOCOLS = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}
_KINDS = {kind.value: kind for kind in LbKind if kind.value}
_FLAGS = {flag.value: flag for flag in LbFlag}
# Flags of versions before 1.14, and ones that change nothing of a packet's way.
_OLDER = {"LocalOnly": LbFlag.EXTERNAL_LOCAL}
_IDLE = frozenset(("fwd-mode-dsr", "fwd-mode-snat"))
_EGRESS = 1
_DENY = 1


def parse_lb_list(
    data: bytes | str, *, source: str = "bpf-lb-list.json", counts: Mapping[str, int] | None = None
) -> tuple[LbFrontend, ...]:
    """`cilium-dbg bpf lb list`, as JSON or text, of every version → front ends in the order printed.

    `counts` is how many slots of each key are drawn (`parse_lb_counts`); without it all are, and `counted` is False.
    Raises EvidenceError where the text is something else.
    """
    text = decode_text(data, source)
    pairs = _pairs_of_json(text, source) if text.lstrip().startswith("{") else _pairs_of_text(text)
    slots: dict[tuple[Any, ...], dict[int, tuple[re.Match[str], str]]] = {}
    for key, value in pairs:
        where, what = _KEY.match(key.strip()), _VALUE.match(value.strip())
        if where is None or what is None:
            raise EvidenceError(
                f"{source}: not an entry of `cilium-dbg bpf lb list`: {key} {value}".rstrip(),
                hint="save it again: cilium-dbg bpf lb list -o json",
            )
        slots.setdefault(_identity(where), {})[int(what["slot"])] = (what, f"{key.strip()} {value.strip()}")
    return tuple(_frontend(identity, each, counts) for identity, each in slots.items())


def _identity(where: re.Match[str]) -> tuple[Any, ...]:
    return (
        ip_address(where["ip6"] or where["ip"]), int(where["port"]), _PROTOCOLS.get(where["proto"] or ""),
        bool(where["internal"]),
    )  # fmt: skip


def _map(data: bytes | str, source: str) -> dict[str, Any]:
    """A map as the command prints it; an empty one may be printed as nothing, and is kept as `[]`."""
    return object_of(load_json(data, source) or None)


def _pairs_of_json(text: str, source: str) -> Iterator[tuple[str, str]]:
    for key, values in _map(text, source).items():
        for value in values:
            yield key, str(value)


def _pairs_of_text(text: str) -> Iterator[tuple[str, str]]:
    key = ""
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue  # the heading, a prompt
        key = found["key"] or key
        yield key, found["value"]


def _frontend(
    identity: tuple[Any, ...], slots: dict[int, tuple[re.Match[str], str]], counts: Mapping[str, int] | None
) -> LbFrontend:
    ip, port, protocol, internal = identity
    master, text = slots.get(0, (None, ""))
    words = [w.strip() for w in (master["flags"] or "").split(",")] if master is not None else []
    backends = tuple(
        LbBackend(ip=ip_address(m["ip6"] or m["ip"]), port=int(m["port"]))
        for slot, (m, _) in sorted(slots.items()) if slot
    )  # fmt: skip
    count = (counts or {}).get(_name(ip, port, protocol, internal))
    used = len(backends) if count is None else count
    known = {*_KINDS, *_FLAGS, *_OLDER, *_IDLE, ""}
    return LbFrontend(
        ip=ip, port=port, protocol=protocol, internal=internal,
        kind=next((_KINDS[w] for w in words if w in _KINDS), LbKind.UNKNOWN),
        flags=frozenset((_FLAGS | _OLDER)[w] for w in words if w in _FLAGS or w in _OLDER),
        flags_known=known.issuperset(words) and master is not None,
        revnat=int(master["revnat"]) if master is not None else 0,
        backends=backends[:used], spare=backends[used:], counted=count is not None or not backends, text=text,
    )  # fmt: skip


def _name(ip: IPAddress, port: int, protocol: str | None, internal: bool) -> str:
    return f"{ip} {port} {protocol} {internal}"


def parse_lb_counts(data: bytes | str, *, source: str = "bpf-lb-frontends.json") -> dict[str, int]:
    """`bpf lb list --frontends -o json` → the number of drawn slots by front end, for `parse_lb_list`."""
    counts: dict[str, int] = {}
    for key, value in _pairs_of_json(decode_text(data, source), source):
        where, found = _KEY.match(key.strip()), _COUNT.match(value.strip())
        if where is None or found is None:
            raise EvidenceError(f"{source}: not an entry of `bpf lb list --frontends`: {key} {value}")
        if int(where["slot"] or 0) == 0 or _name(*_identity(where)) not in counts:
            counts[_name(*_identity(where))] = int(found["count"])
    return counts


_AGENT_LINE = re.compile(
    r"(?:\d+\s+(?P<key>\S+:\d+\S*)\s+(?P<type>[A-Za-z]+))?\s*(?:\d+ => (?P<to>\S+:\d+)\S*(?: \((?P<state>\w+)\))?)?\s*$"
)


def parse_front_ends(data: bytes | str, source: str) -> tuple[LbFrontend, ...]:
    """`bpf lb list` or `service list`, as JSON or text: told by what it looks like."""
    text = decode_text(data, source).lstrip()
    if text.startswith("["):
        return parse_service_list(text, source=source)
    if text.startswith("ID"):
        return _parse_service_text(text)
    return parse_lb_list(text, source=source)


def _parse_service_text(text: str) -> tuple[LbFrontend, ...]:
    """`service list` as text: a front end a line, further backends on lines of their own."""
    out: list[LbFrontend] = []
    for line in text.splitlines()[1:]:
        found = _AGENT_LINE.match(line.strip())
        if found is None:
            continue
        if found["key"] and (where := _KEY.match(found["key"])) is not None:
            ip, port, protocol, internal = _identity(where)
            kind = _KINDS.get(found["type"], LbKind.UNKNOWN)
            out.append(
                LbFrontend(
                    ip=ip,
                    port=port,
                    protocol=protocol,
                    internal=internal,
                    kind=kind,
                    flags_known=False,
                    text=line.strip(),
                )
            )
        to = re.match(_WHERE, found["to"] or "")
        if to is not None and out:
            last, backend = out[-1], LbBackend(ip=ip_address(to["ip6"] or to["ip"]), port=int(to["port"]))
            if found["state"] in (None, "active"):
                out[-1] = replace(last, backends=(*last.backends, backend))
            else:
                out[-1] = replace(last, spare=(*last.spare, backend))
    return tuple(replace(f, backends=f.spare, spare=()) if not f.backends and f.spare else f for f in out)


def parse_service_list(data: bytes | str, *, source: str = "service-list.json") -> tuple[LbFrontend, ...]:
    """`cilium-dbg service list -o json` → front ends as the agent means them. Only active backends are drawn, and the
    terminating ones where none is active."""
    out = []
    for item in load_json(data, source) or ():
        spec = (item.get("status") or {}).get("realized") or item.get("spec") or {}
        address, flags = spec.get("frontend-address") or {}, spec.get("flags") or {}
        backends = spec.get("backend-addresses") or ()
        active = [b for b in backends if b.get("state", "active") == "active"]
        used = active or [b for b in backends if b.get("state") == "terminating"]
        words = {
            LbFlag.EXTERNAL_LOCAL: flags.get("extTrafficPolicy", flags.get("trafficPolicy")) == "Local",
            LbFlag.INTERNAL_LOCAL: flags.get("intTrafficPolicy") == "Local",
        }
        protocol = str(address.get("protocol") or "").upper()
        ip, port = ip_address(address["ip"]), int(address.get("port", 0))
        kind = _KINDS.get(str(flags.get("type", "")).replace("externalIPs", "ExternalIPs"), LbKind.UNKNOWN)
        out.append(
            LbFrontend(
                ip=ip, port=port, protocol=_PROTOCOLS.get(protocol), internal=address.get("scope") == "internal",
                kind=kind, flags=frozenset(f for f, is_set in words.items() if is_set), flags_known=False,
                revnat=int(item.get("spec", {}).get("id", 0)), backends=tuple(_backend(b) for b in used),
                spare=tuple(_backend(b) for b in backends if b not in used),
                text=f"{ip}:{port}/{protocol} {kind.value} {flags.get('namespace', '')}/{flags.get('name', '')}",
            )
        )  # fmt: skip
    return tuple(out)


def _backend(b: Mapping[str, Any]) -> LbBackend:
    return LbBackend(ip=ip_address(b["ip"]), port=int(b.get("port", 0)))


def parse_source_ranges(
    data: bytes | str, *, source: str = "bpf-lb-source-ranges.json"
) -> dict[int, tuple[IPNetwork, ...]]:
    """`bpf lb list --source-ranges -o json` → networks by reverse NAT index."""
    out: dict[int, list[IPNetwork]] = {}
    for key in _map(data, source):
        found = _RANGE.match(key.strip())
        if found is None:
            raise EvidenceError(f"{source}: not an entry of `bpf lb list --source-ranges`: {key}")
        out.setdefault(int(found["revnat"]), []).append(ip_network(found["net"], strict=False))
    return {number: tuple(networks) for number, networks in out.items()}


def parse_ipcache(data: bytes | str, *, source: str = "bpf-ipcache-list.json") -> tuple[IpcacheEntry, ...]:
    """`bpf ipcache list -o json`. `tunnelendpoint` is printed in native routing too: who asks must know the mode."""
    out = []
    for network, values in _map(data, source).items():
        fields = dict(word.partition("=")[::2] for word in " ".join(map(str, values)).split())
        # Up to 1.16 there is no `flags=`, and a tunnel's far end tells the tunnel.
        end = fields.get("tunnelendpoint", "0.0.0.0")
        tunnelled = "hastunnel" in fields["flags"] if "flags" in fields else end not in ("0.0.0.0", "::")
        out.append(
            IpcacheEntry(
                network=ip_network(network, strict=False),
                identity=int(fields["identity"]),
                tunnelled=tunnelled,
            )
        )
    return tuple(out)


def parse_endpoints(
    data: bytes | str, *, source: str = "bpf-endpoint-list.json"
) -> dict[IPAddress, CiliumEndpoint]:
    """`bpf endpoint list -o json` → what is delivered on this node, by address."""
    out: dict[IPAddress, CiliumEndpoint] = {}
    for key, values in _map(data, source).items():
        address = ip_address(key.rpartition(":")[0].strip("[]"))
        text = " ".join(map(str, values))
        found = _ENDPOINT.search(text)
        out[address] = CiliumEndpoint(
            identifier=int(found["id"]) if found else None, ifindex=int(found["index"]) if found else 0,
            is_host=_OWN in text,
        )  # fmt: skip
    return out


def parse_policies(
    data: bytes | str, *, source: str = "bpf-policy-get.json"
) -> dict[int, tuple[PolicyEntry, ...]]:
    """`bpf policy get --all -o json` → what may come in to each endpoint, by its identifier."""
    out: dict[int, tuple[PolicyEntry, ...]] = {}
    for item in load_json(data, source) or ():
        entries = []
        for content in item.get("Content") or ():
            key = content["Key"]
            port = int(key.get("DestPortNetwork", key.get("DestPort", 0)))
            # pkg/maps/policymap: a prefix of 40 bits covers identity and direction; protocol and port follow.
            bits = max(0, min(16, int(key.get("Prefixlen", 64)) - 48)) if port else 16
            entries.append(
                PolicyEntry(
                    identity=int(key.get("Identity", 0)), protocol=int(key.get("Nexthdr", 0)),
                    port=int.from_bytes(port.to_bytes(2, "big"), "little"), port_bits=bits,
                    deny=bool(int(content.get("Flags", 0)) & _DENY),
                    egress=key.get("TrafficDirection") == _EGRESS,
                )
            )  # fmt: skip
        out[int(item["EndpointID"])] = tuple(entries)
    return out


_NAMESPACE = "io.kubernetes.pod.namespace"
_POLICY = "io.cilium.k8s.policy."


def parse_policy_get(data: bytes | str, *, source: str = "policy-get.json") -> tuple[CiliumPolicy, ...]:
    """`cilium-dbg policy get -o json` → the policies by name. The rules are JSON in a string of its own."""
    text = _map(data, source).get("policy") or "[]"
    out: dict[tuple[str, str, str], CiliumPolicy] = {}
    for rule in load_json(text, source) or ():
        words = {
            x["key"].removeprefix(_POLICY): x["value"] for x in rule.get("Labels") or rule.get("labels") or ()
        }
        subject = rule.get("Subject") or rule.get("endpointSelector") or {}
        labels = {re.sub(r"^(k8s|any)[:.]", "", k): v for k, v in (subject.get("matchLabels") or {}).items()}
        namespace = labels.pop(_NAMESPACE, words.get("namespace", ""))
        if "name" in words:
            found = CiliumPolicy(
                name=words["name"], namespace=namespace, kind=words.get("derived-from", ""), labels=labels
            )
            out.setdefault((found.kind, namespace, found.name), found)
    return tuple(out.values())


def parse_identities(data: bytes | str, *, source: str = "identity-list.json") -> dict[int, tuple[str, ...]]:
    """`cilium-dbg identity list -o json` → the labels of each identity."""
    return {int(item["id"]): tuple(item.get("labels") or ()) for item in load_json(data, source) or ()}


def parse_config(status: Any, config: Mapping[str, str], version: str) -> CiliumConfig:
    """`status -o json` (decoded), `config -a` (key → value), and what `version` prints; each may be empty."""
    kpr = object_of(object_of(status).get("kube-proxy-replacement"))
    features = object_of(kpr.get("features"))
    node_port = object_of(features.get("nodePort"))
    mode = str(kpr.get("mode", ""))
    replaces: bool | None = None
    if mode in ("True", "Strict"):
        replaces = True
    elif mode:
        replaces = bool(node_port.get("enabled"))
    elif (said := config.get("KubeProxyReplacement")) is not None:
        replaces = said.lower() in ("true", "strict")
    routing = object_of(object_of(status).get("routing"))
    found = _VERSION.search(version)
    socket_lb = object_of(features.get("socketLB")).get(
        "enabled", bool(features.get("hostReachableServices")) or None
    )
    answer = config.get("ServiceNoBackendResponse")
    number = (int(found[1]), int(found[2])) if found else None
    rejects = answer == "reject" if answer else None if number is None else number >= (1, 15)
    between = str(
        routing.get("inter-host-routing-mode") or config.get("RoutingMode") or config.get("Tunnel") or ""
    ).lower()
    within = str(routing.get("intra-host-routing-mode") or "").lower()
    legacy = within == "legacy" if within else _bool(config.get("EnableHostLegacyRouting"))
    policy = config.get("PolicyEnforcement") or config.get("EnablePolicy")
    return CiliumConfig(
        version=number,
        replaces=replaces,
        mode=next((m for m in NodePortMode if m.value == str(node_port.get("mode", "")).lower()), None),
        socket_lb=bool(socket_lb) if kpr else None,
        socket_lb_host_only=_bool(features.get("bpfSocketLBHostnsOnly", config.get("BPFSocketLBHostnsOnly"))),
        tunnel=None if not between else between not in ("native", "disabled"),
        legacy_routing=legacy,
        rejects=rejects,
        enforces_policy=None if policy is None else policy != "never",
        external_ip_mitigated=_bool(config.get("DisableExternalIPMitigation")) is not True,
        devices=tuple(map(str, kpr.get("devices") or (d.get("name") for d in kpr.get("deviceList") or ()))),
        direct_device=kpr.get("directRoutingDevice") or None,
    )


def _bool(value: Any) -> bool | None:
    return None if value is None else str(value).lower() == "true"


def parse_config_text(text: str) -> dict[str, str]:
    """`cilium-dbg config -a`: `Key : value` a line (or its JSON) → the scalar values."""
    if text.lstrip().startswith("{"):
        flat: dict[str, str] = {}
        stack = [object_of(json.loads(text))]
        while stack:
            for key, value in stack.pop().items():
                if isinstance(value, dict):
                    stack.append(value)
                elif not isinstance(value, list):
                    flat[key] = str(value)
        return flat
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith(("#", "\t", " ")))
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


Attempt = Callable[..., Any]


def parse_cilium(files: Iterable[str], parse: Attempt) -> CiliumState | None:
    """The files of nodes/NODE/cilium/ → what is known; None where there is none of them.

    `parse(name, parser)` gives `parser(data, source=…)` of a file, None where it is missing or garbled.
    """
    if not set(files):
        return None
    status = parse("status.json", lambda data, *, source: load_json(data, source))
    config = parse("config.txt", lambda data, *, source: parse_config_text(decode_text(data, source)))
    if config is None:
        config = parse("config.json", lambda data, *, source: parse_config_text(decode_text(data, source)))
    version = parse("version.txt", lambda data, *, source: decode_text(data, source))
    counts = parse("bpf-lb-frontends.json", parse_lb_counts)
    read_from, frontends = "", None
    for name in ("bpf-lb-list.json", "bpf-lb-list.txt"):
        if frontends is None:
            read_from, frontends = parse(
                name, lambda data, *, source: (source, parse_lb_list(data, source=source, counts=counts))
            ) or ("", None)
    agents = parse("service-list.json", parse_service_list)
    if frontends is not None and counts is None and agents is not None:
        frontends = _counted_by_agent(frontends, agents)
    said = parse_config(status or {}, config or {}, version or "")
    if said.replaces is None and any(f.kind is LbKind.NODE_PORT for f in frontends or ()):
        # A stopped agent says nothing, and its maps stay: without the replacement they have no node ports.
        said = replace(said, replaces=True)
    return CiliumState(
        source=read_from,
        config=said,
        frontends=frontends,
        source_ranges=parse("bpf-lb-source-ranges.json", parse_source_ranges),
        ipcache=parse("bpf-ipcache-list.json", parse_ipcache),
        endpoints=parse("bpf-endpoint-list.json", parse_endpoints),
        policies=parse("bpf-policy-get.json", parse_policies),
        named_policies=parse("policy-get.json", parse_policy_get) or (),
        identities=parse("identity-list.json", parse_identities) or {},
    )


def _counted_by_agent(
    frontends: tuple[LbFrontend, ...], agents: Iterable[LbFrontend]
) -> tuple[LbFrontend, ...]:
    """Without the counts of the map: the agent tells which backends of a front end are drawn."""
    drawn = {(f.ip, f.port, f.protocol, f.internal): frozenset(f.backends) for f in agents}
    out = []
    for f in frontends:
        used = drawn.get((f.ip, f.port, f.protocol, f.internal))
        if f.counted or used is None:
            out.append(f)
            continue
        out.append(
            replace(
                f, backends=tuple(b for b in f.backends if b in used),
                spare=tuple(b for b in f.backends if b not in used), counted=True,
            )
        )  # fmt: skip
    return tuple(out)
