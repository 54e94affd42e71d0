"""What redaction knows of texts: which words are names and addresses, and how files are read and written."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from typing import Any

from ktp.collect.redact_schema import PUBLIC_DOMAINS
from ktp.errors import SnapshotError

COLLECT_AGAIN = "collect that file again, or remove it"
SERVICE_CHAIN = re.compile(r"(KUBE-(?:SVC|SVL|EXT|XLB|FW)-)([A-Z2-7]{16})")
ENDPOINT_CHAIN = re.compile(r"(KUBE-SEP-)([A-Z2-7]{16})")
ANY_SERVICE_CHAIN = re.compile(r"\bKUBE-(?:SVC|SVL|EXT|XLB|FW|SEP)-[A-Z2-7]{16}\b")
NFT_CHAIN = re.compile(
    r"(service-|local-|external-|firewall-|endpoint-|affinity-)([A-Z2-7]{8})-"
    r"(?P<namespace>[^/\s]+)/(?P<service>[^/\s]+)/(?P<protocol>tcp|udp|sctp)/(?P<port>[^/\s]*?)"
    r"(?:__(?P<ip>[0-9a-f.]+)/(?P<number>\d+))?(?P<cut>\.\.\.)?"
)
HASH = re.compile(r"(?<=[-_])(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{8,}$|(?<=[-_])[A-Z2-7]{16}$")
VETH = re.compile(r"\b(cali|veth|lxc|azv|eni|v|tap|gke|nodelocaldns|h)(?=[0-9a-f]*\d)([0-9a-f]{6,})\b")
SERVICE_PORT = re.compile(
    r"(?<![\w./-])([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)/([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)(?::([a-z0-9-]*))?(?![\w/])"
)
V4 = r"(?:\d{1,3}\.){3}\d{1,3}"
ADDRESS = re.compile(
    rf"(?<![\w.])(?P<v4>{V4})(?:-(?P<last4>{V4})|/(?P<len4>\d{{1,2}})(?![\d.])|/(?P<mask4>{V4}))?(?![\w])(?!\.\d)"
    r"|(?<![0-9A-Za-z:.])(?P<mac>(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})(?![0-9A-Za-z:])"
    r"|(?<![0-9A-Za-z:.])(?P<v6>[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]*(?:\d+\.\d+\.\d+\.\d+)?)"
    r"(?:-(?P<last6>[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]+)|/(?P<len6>\d{1,3}))?(?![0-9A-Za-z])"
)
# Cilium's maps hold addresses and numbers; what its agent lists by name is left out.
CILIUM_MAPS = frozenset(
    f"cilium/{name}"
    for name in (
        "bpf-lb-list.json", "bpf-lb-frontends.json", "bpf-lb-source-ranges.json", "bpf-ipcache-list.json",
        "bpf-endpoint-list.json", "bpf-policy-get.json", "version.txt",
    )
)  # fmt: skip
_CILIUM_SETTING = re.compile(
    r"(?:EnablePolicy|PolicyEnforcement|BPFSocketLBHostnsOnly|ServiceNoBackendResponse|RoutingMode|Tunnel"
    r"|EnableHostLegacyRouting|DisableExternalIPMitigation|KubeProxyReplacement)\s*:"
)
TUNNEL = (
    "id",
    "local",
    "local6",
    "remote",
    "remote6",
    "group",
    "port",
    "external",
    "learning",
    "df",
    "pmtudisc",
    "ignore_df",
)
ENTRY = frozenset(("src", "dst", "sport", "dport", "type", "code", "id", "packets", "bytes", "mark", "use"))
NEIGHBOUR = ("dst", "dev", "lladdr", "state")
FORWARDING = ("mac", "ifname", "dst")
WORD = re.compile(r"[A-Za-z][\w-]*(?:\.[\w-]+)*")
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')
IMAGE = re.compile(r"(?P<path>(?:[^/@\s]+/)*)(?P<name>[^/:@\s]+)(?::(?P<tag>[\w.-]+))?(?P<digest>@\S+)?")
VERSION_TAG = re.compile(r"v?\d+\.\d+[\w.-]*")


def counters(text: str) -> str:
    """The lines of the kernel's counters: names and numbers, and nothing else."""
    return "".join(f"{line}\n" for line in text.splitlines() if re.fullmatch(r"[\w.: -]*", line))


def cilium_settings(text: str) -> str:
    """Of the agent's settings those that ktp reads."""
    return "\n".join(line for line in text.splitlines() if _CILIUM_SETTING.match(line)) + "\n"


def offloads(text: str) -> str:
    """The lines of `ethtool -k`: a device, its features."""
    return "".join(
        f"{line}\n"
        for line in text.splitlines()
        if re.fullmatch(r"Features for \S+:|\s*[\w-]+: (?:on|off)(?: \[[a-z ]+\])?", line)
    )


def is_public_domain(domain: str) -> bool:
    """Whether a domain is of everybody (kubernetes.io, …), and so tells nothing of anybody."""
    return any(domain == public or domain.endswith("." + public) for public in PUBLIC_DOMAINS)


def is_address(text: Any) -> bool:
    """Whether it is an IP address."""
    if not isinstance(text, str):
        return False
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def as_word(text: str) -> str:
    """What may be part of a pseudonym: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9-]", "-", text.lower()).strip("-")


def split_service_port(text: str) -> tuple[str, str, str | None]:
    """NAMESPACE/NAME:PORT → the three; the port None where there is none."""
    key, colon, port = text.partition(":")
    namespace, _, name = key.partition("/")
    return namespace, name, port if colon else None


def load_json(name: str, content: bytes) -> Any:
    """A file of JSON. Raises SnapshotError where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise SnapshotError(f"{name} is not JSON, so it cannot be redacted", hint=COLLECT_AGAIN) from None


def to_json(value: Any) -> bytes:
    """On one line, as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
