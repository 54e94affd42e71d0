"""A capture without anything that tells whose cluster it is: every name, address and label becomes a pseudonym.

The same pseudonym stands for the same thing in every file, so that the redacted snapshot answers as the original
does. Of API objects only the fields listed here are kept; of a node only the files that ktp knows, line by line.
The work is done twice: once to learn what there is, once to write, so that nothing can be met unprepared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from typing import Any

from ktp.collect import redact_schema as schema
from ktp.collect import redact_text as forms
from ktp.collect.pseudonyms import AddressMap, NameMap
from ktp.collect.wireguard import renamed
from ktp.collect.xfrm import without_keys
from ktp.errors import SnapshotError
from ktp.model.announcing import LEASE_PREFIX
from ktp.model.capture import NO_BRIDGE_NETFILTER, PARTIAL, Capture, EvidenceGap, MemoryCapture
from ktp.model.cluster import Scope
from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainNaming:
    """How kube-proxy derives chain names from names and addresses; ktp.kubeproxy.names knows.

    `service_suffix(SERVICE_PORT, PROTOCOL)`, `endpoint_suffix(SERVICE_PORT, PROTOCOL, IP, PORT)`,
    `nft_service(NAMESPACE, SERVICE, PROTOCOL, PORT_NAME)` and `nft_endpoint(…, IP, PORT)`, both without prefix.
    """

    service_suffix: Callable[[str, str], str]
    endpoint_suffix: Callable[[str, str, str, int], str]
    nft_service: Callable[[str, str, str, str], str]
    nft_endpoint: Callable[[str, str, str, str, str, int], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """A redacted capture, and what became of what (which is as secret as the original)."""

    capture: MemoryCapture
    addresses: AddressMap
    names: NameMap

    def mapping(self) -> dict[str, Any]:
        """What --redact-map writes: a later run that is given it uses the same pseudonyms."""
        return {
            "key": self.addresses.key.hex(),
            "names": dict(sorted(self.names.seen.items())),
            "addresses": dict(sorted(self.addresses.seen.items())),
        }


def redact_capture(
    capture: Capture, naming: ChainNaming, *, key: bytes, known: Mapping[str, str] | None = None
) -> Redaction:
    """`capture` with pseudonyms. `key` chooses those of addresses; `known` holds names that have theirs already.

    What is not understood is left out and leaves a gap. Raises SnapshotError where a list of API objects cannot be
    read: what is in it could not be told.
    """
    redactor = _Redactor(naming, key, known)
    for name in capture.names():
        redactor.file(name, capture)
    for gap in capture.gaps:
        redactor.gap(gap)
    redactor.settle()
    files: dict[str, bytes] = {}
    left_out: list[str] = []
    for name in capture.names():
        written = redactor.file(name, capture)
        if written is None:
            left_out.append(name)
        else:
            files[written[0]] = written[1]
    gaps = [redactor.gap(gap) for gap in capture.gaps]
    if left_out:
        message = (
            f"{len(left_out)} files were left out when the snapshot was redacted, for ktp cannot read them"
        )
        gaps.append(EvidenceGap("redacted", "files", message))
    return Redaction(
        capture=MemoryCapture(files=files, gaps=tuple(gaps), source="redacted snapshot"),
        addresses=redactor.addresses,
        names=redactor.names,
    )


class _Redactor:
    """Both passes over all files: `learning` is the first, in which texts come back as they are."""

    def __init__(self, naming: ChainNaming, key: bytes, known: Mapping[str, str] | None) -> None:
        self.addresses = AddressMap(key)
        self.names = NameMap(schema.PUBLIC_NAMES, known)
        self.learning = True
        self._naming = naming
        self._service_ports: dict[str, None] = {}
        self._endpoints: dict[str, tuple[str, str, str, int]] = {}
        self._lease_of: dict[
            str, tuple[str, str]
        ] = {}  # end of a lease's name → namespace and name of a Service
        self._suffixes: dict[str, str] = {}
        self._cache: dict[tuple[str, str], str] = {}

    def settle(self) -> None:
        """End the first pass: number the names and compute the chains' new names."""
        self.learning = False
        self._cache.clear()
        self.names.settle()
        naming = self._naming
        for service_port in self._service_ports:
            new = self._new_service_port(service_port)
            for protocol in ("tcp", "udp", "sctp"):
                self._suffixes[naming.service_suffix(service_port, protocol)] = naming.service_suffix(
                    new, protocol
                )
        for suffix, (service_port, protocol, ip, port) in self._endpoints.items():
            address = str(self.addresses.address(ip_address(ip)))
            new = self._new_service_port(service_port)
            self._suffixes[suffix] = naming.endpoint_suffix(new, protocol, address, port)

    # ----------------------------------------------------------------------------------------------------- files

    def file(self, name: str, capture: Capture) -> tuple[str, bytes] | None:
        """New name and content of one file; None where it is not known what it holds."""
        parts = name.split("/")
        if parts[0] == "cluster":
            content = self._cluster_file(name, capture)
            return None if content is None else (name, content)
        folder = f"nodes/{self._name('node', parts[1])}"
        file = "/".join(parts[2:])
        if parts[2] == "pods" and len(parts) == 5:
            namespace, _, pod = parts[3].partition("_")
            folder += f"/pods/{self._name('namespace', namespace)}_{self._name('pod', pod)}"
            file = parts[4]
        written = self._node_file(file.removeprefix("again/"), capture.read(name))
        return None if written is None else (f"{folder}/{file}", written)

    def gap(self, gap: EvidenceGap) -> EvidenceGap:
        """A gap without its words, which quote names, addresses, users and paths."""
        subject = "/".join(
            [
                part
                if re.search(r"\.(json|txt|yaml)$", part) or part in schema.VOCABULARY
                else self._name("host", part)
                for part in gap.subject.split("/")
            ]
        )
        return EvidenceGap(gap.kind, subject, f"{gap.kind} of {subject} could not be had", remedy=None)

    def _cluster_file(self, name: str, capture: Capture) -> bytes | None:
        if name == "cluster/version.json":
            document = forms.load_json(name, capture.read(name))
            return forms.to_json(self._fields(document.get("serverVersion") or document, schema.VERSION))
        if name == PARTIAL:
            document = forms.load_json(name, capture.read(name))
            scopes = {
                file: str(document[file]) for file in sorted(schema.FILE_KINDS.keys() & document.keys())
            }
            known = {each.value for each in Scope}
            return forms.to_json({file: scope for file, scope in scopes.items() if scope in known})
        if name not in schema.FILE_KINDS:
            return None
        kind = schema.FILE_KINDS[name]
        document = forms.load_json(name, capture.read(name))
        if isinstance(document, dict) and "items" not in document and "metadata" not in document:
            raise SnapshotError(
                f"{name} holds no list of API objects, so it cannot be redacted", hint=forms.COLLECT_AGAIN
            )
        items = document if isinstance(document, list) else document.get("items", [document])
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise SnapshotError(
                f"{name} holds no list of API objects, so it cannot be redacted", hint=forms.COLLECT_AGAIN
            )
        objects = [self._object(item, kind) for item in items if item.get("kind", kind) == kind]
        lines = b",\n".join(forms.to_json(each) for each in objects)
        return b'{"apiVersion":"v1","kind":"List","items":[\n' + lines + b"\n]}\n"

    def _node_file(self, file: str, content: bytes) -> bytes | None:
        if re.fullmatch(r"ip6?tables(-legacy|-nft)?-save\.txt", file):
            return self._rules(content.decode(errors="replace")).encode()
        if file in forms.CILIUM_MAPS:
            return self._scrub(content.decode(errors="replace")).encode()
        if file in {"kube-proxy-config.yaml", "kube-proxy-config.json"}:
            return self._kube_proxy_config(file, content)
        text_files: dict[str, Callable[[str], str]] = {
            "ipset-save.txt": self._ipsets,
            "sysctl.txt": self._sysctls,
            "ss.txt": self._sockets,
            "ipvsadm.txt": self._scrub,
            "ip-xfrm-policy.txt": lambda text: self._interface(self._scrub(without_keys(text))),
            "ip-xfrm-state.txt": lambda text: self._interface(self._scrub(without_keys(text))),
            "cilium/config.txt": forms.cilium_settings,
            "nft-hooks.txt": self._nft_text,
            "conntrack.txt": self._connections,
            "netstat.txt": forms.counters,
            "wg.txt": lambda dump: renamed(dump, self._interface, self._name, self._scrub),
            "ethtool.txt": lambda text: self._interface(forms.offloads(text)),
            "nft-ruleset.txt": self._nft_text,
        }
        if file in text_files:
            return text_files[file](content.decode(errors="replace")).encode()
        readers: dict[str, Callable[[Any], Any]] = {
            "ip-addr.json": self._links,
            "ip-link.json": self._tunnels,
            "ip-neigh.json": lambda entries: [self._kept(entry, forms.NEIGHBOUR) for entry in entries],
            "bridge-fdb.json": lambda entries: [self._kept(entry, forms.FORWARDING) for entry in entries],
            "ip-route.json": lambda entries: [self._fields(entry, schema.ROUTE) for entry in entries],
            "ip6-route.json": lambda entries: [self._fields(entry, schema.ROUTE) for entry in entries],
            "ip-rule.json": lambda entries: [self._routing_rule(entry) for entry in entries],
            "ip6-rule.json": lambda entries: [self._routing_rule(entry) for entry in entries],
            "nft-ruleset.json": self._nft,
            "cilium/status.json": self._cilium_status,
        }
        if file not in readers:
            return None
        try:
            document = json.loads(content)
            return forms.to_json(readers[file](document)) + b"\n"
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return None  # what cannot be read cannot be redacted

    def _cilium_status(self, status: Mapping[str, Any]) -> Any:
        """Of the agent's status what ktp reads: how it serves node ports and how it routes."""
        kept = {key: status[key] for key in ("kube-proxy-replacement", "routing") if key in status}
        return json.loads(self._scrub(json.dumps(kept)))

    # ----------------------------------------------------------------------------------------- single values

    def _name(self, kind: str, text: str) -> str:
        if self.learning:
            self.names.learn(kind, text)
            return text
        return self.names.name(text)

    def _port_name(self, text: str) -> str:
        if (
            not text
            or text in schema.PUBLIC_PORT_NAMES
            or all(word.isdigit() or word in schema.PUBLIC_PORT_NAMES for word in text.split("-"))
        ):
            return text
        return self._name("port", text)

    def _address(self, text: str) -> str:
        """An address or CIDR; anything else in its place (`None`, a host name) is a name or a public word."""
        if text in {"None", "default", "all", "any", "", "primary", "*"}:
            return text
        new, count = forms.ADDRESS.subn(self._replace, text)
        return new if count else self._host(text)

    def _host(self, text: str) -> str:
        return self._address(text) if forms.ADDRESS.fullmatch(text) else self._name("host", text)

    def _scrub(self, text: str) -> str:
        """Every address in a text, and nothing else."""
        return forms.ADDRESS.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        if match["mac"]:
            return match["mac"] if self.learning else self.addresses.mac(match["mac"])
        version = "4" if match["v4"] else "6"
        try:
            ip = ip_address(match[f"v{version}"])
            last = ip_address(match[f"last{version}"]) if match[f"last{version}"] else None
        except ValueError:
            return match[0]  # a time, a counter, a hash
        if last is not None:
            if self.learning:
                self.addresses.keep_range(ip, last)
                return match[0]
            return f"{self.addresses.address(ip)}-{self.addresses.address(last)}"
        length = match[f"len{version}"]
        mask = match["mask4"] if version == "4" else None
        if mask:
            return f"{self._masked(ip, mask)}/{mask}"
        if length and int(length) <= ip.max_prefixlen:
            return f"{self._network(ip, int(length))}/{length}"
        if self.learning:
            return match[0]
        return str(self.addresses.address(ip)) + (f"/{length}" if length else "")

    def _network(self, ip: IPv4Address | IPv6Address, length: int) -> IPv4Address | IPv6Address:
        if self.learning:
            self.addresses.note_network(ip, length)
            return ip
        return self.addresses.network(ip, length)

    def _masked(self, ip: IPv4Address | IPv6Address, mask: str) -> IPv4Address | IPv6Address:
        bits = f"{int(IPv4Address(mask)):032b}"
        length = len(bits) - len(bits.lstrip("1"))
        if "1" in bits[length:] and self.learning:
            self.addresses.keep_order(ip, length)
        if "1" not in bits[length:]:
            return self._network(ip, length)
        return ip if self.learning else self.addresses.address(ip)

    def _interface(self, text: str) -> str:
        """Names such as veth0a1b2c are made of pods' names; others name hardware."""
        return text if self.learning else forms.VETH.sub(lambda m: m[1] + self.addresses.opaque(m[2]), text)

    def _key(self, text: str) -> str:
        """The key of a label, annotation or taint."""
        domain, slash, key = text.rpartition("/")
        if text in schema.PUBLIC_KEYS or (slash and forms.is_public_domain(domain)):
            return text
        if not slash:
            return self._name("key", text)
        return f"{self._name('host', domain)}/{self._name('key', key)}"

    def _value(self, text: str) -> str:
        """The value of a label or annotation."""
        if text.lower() in schema.PUBLIC_VALUES:
            return text
        new, count = forms.ADDRESS.subn(self._replace, text)
        return new if count else self._name("value", text)

    def _labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {
            self._key(key): value if key in schema.KEPT_LABEL_VALUES else self._value(str(value))
            for key, value in labels.items()
        }

    def _annotations(self, annotations: Mapping[str, str]) -> dict[str, str]:
        """Those of public APIs, save copies of manifests and documents."""
        return {
            key: self._value(value)
            for key, value in annotations.items()
            if forms.is_public_domain(key.rpartition("/")[0])
            and "last-applied" not in key
            and isinstance(value, str)
            and len(value) < 64
            and not re.search(r"[{}\[\]\"\s]", value)
        }

    def _text(self, text: str) -> str:
        """Words that somebody wrote: those of kube-proxy and the like stay, the others become `word-3`."""
        if text in schema.PUBLIC_VALUES:
            return text
        pieces, end = [], 0
        for match in forms.SERVICE_PORT.finditer(text):
            pieces += [self._words(text[end : match.start()]), self._service_port(match[0])]
            end = match.end()
        return "".join([*pieces, self._words(text[end:])])

    def _words(self, text: str) -> str:
        text = forms.ANY_SERVICE_CHAIN.sub(lambda m: self._chain(m[0]), text)
        text = self._scrub(text)

        def word(match: re.Match[str]) -> str:
            found = match[0]
            if (
                found.lower() in schema.VOCABULARY
                or schema.PUBLIC_CHAIN.match(found)
                or found in schema.PUBLIC_NAMES
            ):
                return found
            return self._name("word", found.strip(".-_").replace("_", "-").lower() or "x")

        # An IPv6 address has letters as well; it was dealt with above.
        parts = re.split(r"([0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.:]*)", text)
        return "".join(part if i % 2 else forms.WORD.sub(word, part) for i, part in enumerate(parts))

    def _service_port(self, text: str) -> str:
        """`namespace/name` or `namespace/name:port`."""
        if self.learning:
            self._service_ports[text] = None
            namespace, name, port = forms.split_service_port(text)
            self._name("namespace", namespace)
            self._name("service", name)
            self._port_name(port or "")
            return text
        return self._new_service_port(text)

    def _new_service_port(self, text: str) -> str:
        namespace, name, port = forms.split_service_port(text)
        new = f"{self.names.name(namespace)}/{self.names.name(name)}"
        return new if port is None else f"{new}:{self._port_name(port)}"

    def _image(self, text: str) -> str:
        """Base name and version of what every cluster runs; of other images a pseudonym."""
        match = forms.IMAGE.fullmatch(text)
        if match and any(
            name in match["name"] for name in ("kube-proxy", "coredns", "kube-router", "hyperkube")
        ):
            tag = match["tag"]
            return match["name"] + (f":{tag}" if tag and forms.VERSION_TAG.fullmatch(tag) else "")
        word = re.sub(r"[^a-z0-9-]", "-", text.lower())
        return self._name("image", f"i{word}")

    def _provider(self, text: str) -> str:
        scheme, separator, rest = text.partition("://")
        word = re.sub(r"[^a-z0-9-]", "-", rest.lower())
        return (
            f"{scheme}{separator}/{self._name('instance', word)}"
            if separator
            else self._name("instance", text)
        )

    # ------------------------------------------------------------------------------------------ API objects

    def _object(self, item: dict[str, Any], kind: str) -> dict[str, Any]:
        metadata = item.get("metadata") or {}
        own = self._fields(
            metadata,
            {
                "name": f"name:{schema.OWN_NAME[kind]}", "namespace": "name:namespace", "labels": "labels",
                "annotations": "annotations", **schema.METADATA_TIMES,
                "ownerReferences": {"kind": "keep", "controller": "keep", "name": "name:owner"},
            },
        )  # fmt: skip
        version = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
        new = {
            "apiVersion": item.get("apiVersion", version), "kind": kind, "metadata": own,
            **self._fields(item, schema.KINDS[kind]),
        }  # fmt: skip
        if self.learning:
            self._learn_chains(item, kind, metadata)
        return new

    def _block(self, value: Any) -> dict[str, str]:
        """`cidr`, or `start` and `stop`, which stay in order as one range."""
        block = {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}
        if "start" in block and "stop" in block:
            start, _, stop = self._scrub(f"{block['start']}-{block['stop']}").partition("-")
            return {"start": start, "stop": stop}
        return {key: self._address(block[key]) for key in ("cidr", "start") if key in block}

    def _lease(self, name: str) -> str:
        """The name of a lease of Cilium's is made of a Service's namespace and name."""
        namespace, own = self._lease_of.get(name.removeprefix(LEASE_PREFIX), ("", ""))
        if self.learning or not own:
            return name if self.learning else f"{LEASE_PREFIX}unknown"
        return f"{LEASE_PREFIX}{self._name('namespace', namespace)}-{self._name('service', own)}"

    def _learn_chains(self, item: dict[str, Any], kind: str, metadata: dict[str, Any]) -> None:
        """The service ports and endpoints that chains may be named after."""
        namespace, name = metadata.get("namespace", ""), metadata.get("name", "")
        if kind == "Service":
            self._lease_of[f"{namespace}-{name}"] = (namespace, name)
            for port in (item.get("spec") or {}).get("ports") or ():
                self._learn_service_port(namespace, name, port.get("name") or "")
        elif kind == "EndpointSlice":
            name = (metadata.get("labels") or {}).get("kubernetes.io/service-name", "")
            addresses = [a for e in item.get("endpoints") or () for a in e.get("addresses") or ()]
            self._learn_endpoints(namespace, name, item.get("ports") or (), addresses)
        elif kind == "Endpoints":
            for subset in item.get("subsets") or ():
                addresses = [a.get("ip") for a in subset.get("addresses") or ()]
                self._learn_endpoints(namespace, name, subset.get("ports") or (), addresses)

    def _learn_service_port(self, namespace: str, name: str, port: str) -> list[str]:
        base = f"{namespace}/{name}"
        # kube-proxy up to 1.18 kept the colon of a port without a name.
        texts = [f"{base}:{port}"] if port else [base, f"{base}:"]
        for text in texts:
            self._service_port(text)
        return texts

    def _learn_endpoints(
        self, namespace: str, name: str, ports: Sequence[Mapping[str, Any]], addresses: Sequence[str]
    ) -> None:
        for port in ports:
            number, protocol = port.get("port"), str(port.get("protocol") or "TCP").lower()
            if not name or not isinstance(number, int):
                continue
            for text in self._learn_service_port(namespace, name, port.get("name") or ""):
                for address in addresses:
                    if forms.is_address(address):
                        suffix = self._naming.endpoint_suffix(text, protocol, address, number)
                        self._endpoints[suffix] = (text, protocol, address, number)

    def _fields(self, value: Any, listed: schema.Schema) -> dict[str, Any]:
        """What is `listed` of an object, each field by its rule; all else is left out."""
        if not isinstance(value, dict):
            return {}
        return {
            field: self._field(value[field], rule)
            for field, rule in listed.items()
            if field in value and value[field] is not None
        }

    def _field(self, value: Any, rule: Any) -> Any:
        if isinstance(value, list) and rule not in ("keep", "command"):
            return [self._field(each, rule) for each in value]
        if not isinstance(rule, str):
            return self._fields(value, rule)
        if rule == "block":
            return self._block(value)
        if rule == "keep":
            return value
        if rule == "labels":
            return self._labels(value) if isinstance(value, dict) else {}
        if rule == "annotations":
            return self._annotations(value) if isinstance(value, dict) else {}
        if rule == "flags":
            return {k: v for k, v in value.items() if isinstance(v, bool)} if isinstance(value, dict) else {}
        if rule == "command":
            return ["redacted"]
        if not isinstance(value, str):
            return value if isinstance(value, (int, float)) else None
        return self._string(value, rule)

    def _string(self, value: str, rule: str) -> str:
        if rule == "name:lease":
            return self._lease(value)
        if rule.startswith("name:"):
            return self._name(rule.removeprefix("name:"), value) if value else value
        if rule == "addresses":
            return ",".join([self._address(part.strip()) for part in value.split(",")])
        if rule == "condition":
            return value if value in schema.CONDITIONS else self._key(value)
        if rule == "path":
            return (
                value
                if re.fullmatch(r"/(health|healthz|ready|readyz|live|livez|status|ping)?/?", value)
                else "/path"
            )
        rules: dict[str, Callable[[str], str]] = {
            "address": self._address, "host": self._host, "port": self._port_name, "image": self._image,
            "key": self._key, "value": self._value, "text": self._text, "interface": self._interface,
            "scrub": self._scrub, "provider": self._provider,
        }  # fmt: skip
        return rules[rule](value) if value else value

    # --------------------------------------------------------------------------------------------- packet rules

    def _rules(self, dump: str) -> str:
        """An `iptables-save` dump, its chains sorted by their new names as iptables sorts them."""
        out: list[str] = []
        builtin: list[str] = []
        user: dict[str, str] = {}
        rules: dict[str, list[str]] = {}
        declared = {line[1:].split(" ", 1)[0] for line in dump.splitlines() if line.startswith(":")}
        self._cache = {key: value for key, value in self._cache.items() if key[0] not in {"-j", "-g"}}
        for line in dump.splitlines():
            if line.startswith(":"):
                chain, _, rest = line[1:].partition(" ")
                new = self._chain(chain)
                if rest.startswith("-"):
                    user[new] = f":{new} {rest}"
                else:
                    builtin.append(new)
                    out.append(f":{new} {rest}")
                rules.setdefault(new, [])
            elif line.startswith("COMMIT"):
                order = sorted(user)
                out += [user[chain] for chain in order]
                out += [
                    rule
                    for chain in dict.fromkeys([*builtin, *order, *rules])
                    for rule in rules.get(chain, ())
                ]
                out.append(line)
                builtin, user, rules = [], {}, {}
            elif line.startswith(("-", "[")):
                chain, new = self._rule(line, declared)
                rules.setdefault(chain, []).append(new)
            else:
                out.append(line if line.startswith(("#", "*")) else "")
        for left in rules.values():  # a dump that breaks off stays one that breaks off
            out += left
        return "\n".join(out) + "\n"

    def _rule(self, line: str, declared: set[str]) -> tuple[str, str]:
        """(chain, rule)."""
        chain = option = ""
        out: list[str] = []
        tokens = forms.TOKEN.findall(line)
        for token in tokens:
            if token.startswith("-") and option not in schema.FREE_TEXT and option != "--comment":
                option = token
                out.append(token)
                continue
            if token == "!":
                option = ""
                out.append(token)
                continue
            new = self._argument(option, token, declared)
            if option in {"-A", "--append"}:
                chain = new
            if option in schema.FREE_TEXT or option in {"--comment", "-A"}:
                option = ""
            elif option in schema.SET_OPTIONS:
                option = "set directions"
            out.append(new)
        if self.learning:
            self._learn_rule(tokens)
        return chain, " ".join(out)

    def _learn_rule(self, tokens: list[str]) -> None:
        """What the chain of an endpoint is named after, where the rule that translates to it says all of it."""
        if "--to-destination" not in tokens or "--comment" not in tokens:
            return
        options = dict(pairwise(tokens))
        found = forms.ENDPOINT_CHAIN.fullmatch(options.get("-A", ""))
        service_port = options["--comment"].strip('"').partition(" ")[0]
        host, _, port = options["--to-destination"].rpartition(":")
        if not found or not forms.SERVICE_PORT.fullmatch(service_port) or not port.isdigit():
            return
        made_of = (service_port, options.get("-p", "tcp"), host.strip("[]"), int(port))
        if forms.is_address(made_of[2]) and self._naming.endpoint_suffix(*made_of) == found[2]:
            self._endpoints[found[2]] = made_of

    def _argument(self, option: str, token: str, declared: set[str]) -> str:
        cached = self._cache.get((option, token))
        if cached is None:
            cached = self._cache[option, token] = self._new_argument(option, token, declared)
        return cached

    def _new_argument(self, option: str, token: str, declared: set[str]) -> str:
        bare = token[1:-1] if token.startswith('"') and len(token) > 1 else token
        if option == "--comment":
            new = self._text(bare.replace('\\"', "'"))
        elif option in {"-A", "--append"} or (
            option in {"-j", "-g", "--jump", "--goto"} and token in declared
        ):
            return self._chain(token)
        elif option in schema.FREE_TEXT:
            new = self._name("text", re.sub(r"[^a-z0-9-]", "-", bare.lower()) or "x")
        elif option in schema.NAMED and forms.ANY_SERVICE_CHAIN.fullmatch(bare):
            return self._chain(bare)  # session affinity remembers clients under the name of the chain
        elif option in schema.NAMED:
            return token if token in {"DEFAULT"} or not re.search("[a-z]", bare) else self._name("list", bare)
        elif option in schema.SET_OPTIONS:
            return self._set_name(token)
        elif option in schema.INTERFACES:
            return self._interface(token)
        elif option in schema.ADDRESSES and "," not in token:
            return self._address(token)
        else:
            return self._scrub(token)
        return f'"{new}"' if token.startswith('"') or re.search(r"[^\w-]", new) else new

    def _chain(self, name: str) -> str:
        if self.learning:
            if not (name in schema.BUILT_IN_CHAINS or schema.PUBLIC_CHAIN.match(name)):
                self._name("chain", forms.as_word(name))
            return name
        for pattern in (forms.SERVICE_CHAIN, forms.ENDPOINT_CHAIN):
            if found := pattern.fullmatch(name):
                return found[1] + (self._suffixes.get(found[2]) or self.addresses.opaque(found[2]))
        if name in schema.BUILT_IN_CHAINS:
            return name
        if schema.PUBLIC_CHAIN.match(name):
            name = self._interface(name)
            return forms.HASH.sub(lambda m: self.addresses.opaque(m[0]), name)
        return self.names.name(forms.as_word(name))

    def _set_name(self, name: str) -> str:
        if schema.PUBLIC_SET.match(name):
            return name if self.learning else forms.HASH.sub(lambda m: self.addresses.opaque(m[0]), name)
        return self._name("set", forms.as_word(name))

    def _ipsets(self, dump: str) -> str:
        out = []
        for line in dump.splitlines():
            tokens = forms.TOKEN.findall(line)
            if len(tokens) < 3 or tokens[0] not in {"create", "add"}:
                continue
            new = [tokens[0], self._set_name(tokens[1].strip('"'))]
            previous = ""
            for token in tokens[2:]:
                if previous == "comment" and tokens[0] == "add":
                    new.append(f'"{self._text(token.strip(chr(34)))}"')
                elif tokens[0] == "add" and not previous:
                    # An element of several parts (10.0.0.0/8,tcp:80,eth0), or of a list of sets.
                    new.append(self._element(token))
                else:
                    new.append(self._scrub(token))
                previous = token
            out.append(" ".join(new))
        return "".join(f"{line}\n" for line in out)

    def _element(self, token: str) -> str:
        bare = token.strip('"')
        if "," not in bare and not forms.ADDRESS.search(bare) and not re.match(r"\d|\w+:\d", bare):
            return self._set_name(bare)
        return ",".join([self._interface(self._scrub(part)) for part in bare.split(",")])

    # --------------------------------------------------------------------------------------------------- nftables

    def _nft(self, document: Any) -> Any:
        return {"nftables": [self._nft_value("", each) for each in document["nftables"]]}

    def _nft_value(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            if key == "prefix" and "addr" in value and "len" in value and forms.is_address(value["addr"]):
                return {**value, "addr": str(self._network(ip_address(value["addr"]), int(value["len"])))}
            return {k: self._nft_value(k, v) for k, v in value.items() if k != "sym"}
        if isinstance(value, list):
            if key == "range" and len(value) == 2 and all(forms.is_address(each) for each in value):
                first, last = (ip_address(each) for each in value)
                if self.learning:
                    self.addresses.keep_range(first, last)
                    return value
                return [str(self.addresses.address(first)), str(self.addresses.address(last))]
            if key == "&" and len(value) == 2 and forms.is_address(value[1]):
                return value  # a mask
            return [self._nft_value("" if key != "dev" else key, each) for each in value]
        if not isinstance(value, str):
            return value
        if key in {"name", "chain", "target", "table", "set", "map", "flowtable"} or value.startswith("@"):
            at = "@" if value.startswith("@") else ""
            return at + self._nft_name(value.removeprefix("@"))
        if key == "comment":
            return self._text(value)
        if key == "prefix":  # of a log line
            return self._name("text", forms.as_word(value) or "x")
        if key in {"type", "hook", "family", "op", "policy"}:
            return value
        return self._interface(self._scrub(value))

    def _nft_name(self, name: str) -> str:
        if found := forms.NFT_CHAIN.fullmatch(name):
            return self._nft_chain(found)
        if name in schema.PUBLIC_NFT_NAMES or name.startswith("xtables"):
            return name
        if name.startswith("__"):
            return name  # of a set without a name
        return self._chain(name)

    def _nft_chain(self, found: re.Match[str]) -> str:
        if self.learning:
            port = "" if found["cut"] else found["port"]
            self._learn_service_port(found["namespace"], found["service"], port)
            return found[0]
        if found["cut"]:
            return found[1] + self.addresses.opaque(found[2]) + "-" + self.addresses.opaque("cut" + found[0])
        words = (
            self.names.name(found["namespace"]), self.names.name(found["service"]), found["protocol"],
            self._port_name(found["port"]),
        )  # fmt: skip
        if found["ip"] is None:
            return found[1] + self._naming.nft_service(*words)
        text = found["ip"]
        ip = ip_address(text if re.fullmatch(forms.V4, text) else text.replace(".", ":"))
        return found[1] + self._naming.nft_endpoint(
            *words, str(self.addresses.address(ip)), int(found["number"])
        )

    def _nft_text(self, text: str) -> str:
        """What `nft list ruleset` or `nft list hooks` print."""
        text = re.sub(forms.NFT_CHAIN.pattern + r"(?=[\s;{},\"]|$)", self._nft_chain, text)
        text = re.sub(r"(?<=comment )\"([^\"]*)\"", lambda m: '"' + self._text(m[1]) + '"', text)
        text = re.sub(
            r"(?<=log prefix )\"([^\"]*)\"",
            lambda m: '"' + self._name("text", forms.as_word(m[1]) or "x") + '"',
            text,
        )

        def named(match: re.Match[str]) -> str:
            return match[1] + (match[2] if "/" in match[2] else self._nft_name(match[2]))

        text = re.sub(
            r"((?:^|[\s{:])(?:(?:table|chain) (?:ip6?|inet|arp|bridge|netdev) |(?:chain|jump|goto|set|map) )|@)"
            r"([A-Za-z_][\w./-]*)",
            named,
            text,
        )
        return self._interface(self._scrub(text))

    # --------------------------------------------------------------------------------------- the rest of a node

    def _tunnels(self, links: Any) -> list[Any]:
        """Of each device its kind and, of a tunnel, where it leads."""
        return [
            {
                **self._kept(link, ("ifname", "flags")),
                "linkinfo": {
                    "info_kind": (info := link.get("linkinfo") or {}).get("info_kind"),
                    "info_data": self._kept(info.get("info_data") or {}, forms.TUNNEL),
                },
            }
            for link in links
        ]

    def _kept(self, entry: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Some fields of an entry, with other addresses and names of devices."""
        kept = {key: entry[key] for key in keys if key in entry}
        return {k: self._interface(self._scrub(v)) if isinstance(v, str) else v for k, v in kept.items()}

    def _links(self, links: Any) -> list[Any]:
        if self.learning:
            for link in links:
                for info in (link or {}).get("addr_info") or ():
                    if forms.is_address(info.get("local")) and isinstance(info.get("prefixlen"), int):
                        self.addresses.note_network(ip_address(info["local"]), info["prefixlen"])
        return [self._fields(link, schema.LINK) for link in links]

    def _routing_rule(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A rule of `ip -j rule`, whose prefix is in two fields."""
        new = {}
        for field, value in entry.items():
            if field in {"src", "dst"} and isinstance(value, str):
                length = entry.get(f"{field}len")
                if isinstance(length, int) and forms.is_address(value):
                    new[field] = str(self._network(ip_address(value), length))
                else:
                    new[field] = self._address(value)
            elif field in {"iif", "oif"} and isinstance(value, str):
                new[field] = self._interface(value)
            else:
                new[field] = value
        return new

    def _sysctls(self, text: str) -> str:
        out = []
        for line in text.splitlines():
            key, _, value = line.partition("=")
            if absent := NO_BRIDGE_NETFILTER.match(line):
                out.append(
                    f"sysctl: cannot stat /proc/sys/net/bridge/{absent[1]}: No such file or directory\n"
                )
            if key.startswith("net.") and re.fullmatch(r"[\d\s,-]*", value):
                out.append(f"{self._interface(key)}={value}\n")
        return "".join(out)

    def _sockets(self, text: str) -> str:
        lines = [" ".join(line.split()[:6]) for line in text.splitlines()]
        return "".join(f"{self._interface(self._scrub(line))}\n" for line in lines)

    def _connections(self, text: str) -> str:
        """Entries of the connection table, without what others have noted there (zones, helpers, contexts, labels)."""
        lines = (
            " ".join(w for w in line.split() if "=" not in w or w.partition("=")[0] in forms.ENTRY)
            for line in text.splitlines()
        )
        return "".join(f"{self._scrub(line)}\n" for line in lines)

    def _kube_proxy_config(self, file: str, content: bytes) -> bytes | None:
        import yaml

        try:
            text = content.decode(errors="replace")
            if file.endswith(".json") and text.lstrip().startswith("{"):
                return forms.to_json(self._fields(json.loads(text), schema.KUBE_PROXY_CONFIG))
            document = yaml.safe_load(text)
            if isinstance(document, dict) and document.get("kind") == "ConfigMap":
                held = document.get("data") or {}
                document = yaml.safe_load(held.get("config.conf") or held.get("config") or "")
        except (ValueError, yaml.YAMLError, RecursionError):
            return None
        return yaml.safe_dump(self._fields(document, schema.KUBE_PROXY_CONFIG), sort_keys=False).encode()
