"""A small API server over real HTTP or HTTPS that serves the lists of a snapshot folder, and misbehaves on demand.

What it does was taken from kube-apiserver: lists come as `ServiceList` with items that name neither kind nor
version, `limit` and `continue`, label and field selectors, and v1 Status objects for errors.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.exec_server import ExecHandler, ExecServer

# resource → (API prefix, kind, file of a snapshot)
RESOURCES = {
    "services": ("/api/v1", "Service", "services.json"),
    "endpoints": ("/api/v1", "Endpoints", "endpoints.json"),
    "nodes": ("/api/v1", "Node", "nodes.json"),
    "pods": ("/api/v1", "Pod", "pods.json"),
    "namespaces": ("/api/v1", "Namespace", None),
    "configmaps": ("/api/v1", "ConfigMap", None),
    "endpointslices": ("/apis/discovery.k8s.io/v1", "EndpointSlice", "endpointslices.json"),
    "networkpolicies": ("/apis/networking.k8s.io/v1", "NetworkPolicy", "networkpolicies.json"),
    "ipaddresspools": ("/apis/metallb.io/v1beta1", "IPAddressPool", None),
    "l2advertisements": ("/apis/metallb.io/v1beta1", "L2Advertisement", None),
    "bgpadvertisements": ("/apis/metallb.io/v1beta1", "BGPAdvertisement", None),
    "servicel2statuses": ("/apis/metallb.io/v1beta1", "ServiceL2Status", None),
    "ciliumloadbalancerippools": ("/apis/cilium.io/v2", "CiliumLoadBalancerIPPool", None),
    "ciliumbgpadvertisements": ("/apis/cilium.io/v2", "CiliumBGPAdvertisement", None),
    "ciliuml2announcementpolicies": ("/apis/cilium.io/v2alpha1", "CiliumL2AnnouncementPolicy", None),
    "ciliumbgppeeringpolicies": ("/apis/cilium.io/v2alpha1", "CiliumBGPPeeringPolicy", None),
    "leases": ("/apis/coordination.k8s.io/v1", "Lease", None),
}
# Groups that a cluster has only where somebody installed them.
OPTIONAL = {"/apis/metallb.io/v1beta1", "/apis/cilium.io/v2", "/apis/cilium.io/v2alpha1"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What one request gets instead of its answer, or with it: a status, a delay, half of it, nothing."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"
    delay: float = 0.0
    truncate: bool = False
    hang_up: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str | None
    client_name: str | None


class ApiServer:
    """The server; `objects` holds the API objects by resource and may be changed before requests come.

    `certificate` is another certificate and key than the one of `pki`; without `asks_clients` no client is asked
    for its certificate in the TLS handshake. `execs` answers execs in pods.
    """

    def __init__(
        self,
        folder: Path,
        *,
        token: str | None = None,
        pki: Pki | None = None,
        certificate: tuple[Path, Path] | None = None,
        asks_clients: bool = True,
        execs: ExecServer | None = None,
    ) -> None:
        self.objects: dict[str, list[dict[str, Any]]] = {resource: [] for resource in RESOURCES}
        for resource, (_, _, file) in RESOURCES.items():
            if file and (path := folder / "cluster" / file).exists():
                self.objects[resource] = json.loads(path.read_text())["items"]
        names = {item["metadata"].get("namespace") for items in self.objects.values() for item in items}
        self.objects["namespaces"] = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            for name in sorted(filter(None, names))
        ]
        self.execs = execs
        self.version = json.loads((folder / "cluster/version.json").read_text())
        self.token = token
        self.forbidden: set[str] = set()
        self.user = "jane"
        self.tells_user = True
        self.unknown: set[str] = set()
        self.requests: list[Request] = []
        self.groups: set[str] = set()  # of OPTIONAL, those that there are
        self.pages: dict[str, dict[str, Any]] = {}  # what pods answer through the server's proxy, by path
        self._faults: list[tuple[re.Pattern[str], list[Fault]]] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._events: list[tuple[int, str, str, dict[str, Any]]] = []  # version, resource, type, object
        self._forgotten = 0
        self.bookmark_every = 60.0
        self.version_of_all = 1000
        handlers = (_Handler,) if execs is None else (_HandlerWithExec,)
        handler = type("Handler", handlers, {"owner": self, "exec_owner": execs})
        self._http = _QuietServer(("127.0.0.1", 0), handler)
        if pki:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*(certificate or (pki.server_cert, pki.server_key)))
            context.load_verify_locations(pki.ca)
            context.verify_mode = ssl.CERT_OPTIONAL if asks_clients else ssl.CERT_NONE
            self._http.socket = context.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'s' if pki else ''}://127.0.0.1:{self._http.server_address[1]}"

    def misbehave(self, pattern: str, *faults: Fault) -> None:
        """Gives the next requests whose path and query match `pattern` one of `faults` each, in order."""
        self._faults.append((re.compile(pattern), list(faults)))

    def behave(self) -> None:
        """Forget the faults that are still to come."""
        with self._lock:
            self._faults.clear()

    def put(self, resource: str, *objects: dict[str, Any]) -> None:
        """Create or replace objects, as who watches is told."""
        with self._changed:
            for found in objects:
                self._replace(resource, found, kept=found)
            self._changed.notify_all()

    def delete(self, resource: str, *objects: dict[str, Any]) -> None:
        """Delete objects, as who watches is told."""
        with self._changed:
            for found in objects:
                self._replace(resource, found, kept=None)
            self._changed.notify_all()

    def _replace(self, resource: str, found: dict[str, Any], *, kept: dict[str, Any] | None) -> None:
        identity = _identity(found)
        place = next(
            (at for at, old in enumerate(self.objects[resource]) if _identity(old) == identity), None
        )
        self.version_of_all += 1
        found["metadata"]["resourceVersion"] = str(self.version_of_all)
        happened = "DELETED" if kept is None else "ADDED" if place is None else "MODIFIED"
        if place is not None:
            self.objects[resource][place : place + 1] = [] if kept is None else [kept]
        elif kept is not None:
            self.objects[resource].append(kept)
        self._events.append((self.version_of_all, resource, happened, found))

    def forget(self) -> None:
        """Compact the history: a watch from an earlier version is answered with 410, and running watches end so."""
        with self._changed:
            self.version_of_all += 1
            self._forgotten = self.version_of_all
            self._changed.notify_all()

    def watched(self, path: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        """The events of a watch: those after its resourceVersion, then others as they happen; bookmarks in between."""
        resource = path.rpartition("/")[2]
        prefix, kind, _ = RESOURCES[resource]
        seen = int(query["resourceVersion"])
        ends = time.monotonic() + float(query.get("timeoutSeconds", 3600))
        bookmark = time.monotonic() + self.bookmark_every
        while time.monotonic() < ends:
            with self._changed:
                if seen < self._forgotten:
                    yield {"type": "ERROR", "object": _status(410, "Expired", "too old resource version")}
                    return
                news = self._events[bisect_right(self._events, seen, key=lambda each: each[0]) :]
                if not news:
                    self._changed.wait(min(0.05, self.bookmark_every))
            for version, of, happened, found in news:
                seen = version
                if of == resource:
                    yield {"type": happened, "object": found}
            if time.monotonic() > bookmark:
                bookmark = time.monotonic() + self.bookmark_every
                group = prefix.removeprefix("/apis/").removeprefix("/api/")
                metadata = {"resourceVersion": str(seen)}
                yield {
                    "type": "BOOKMARK",
                    "object": {"kind": kind, "apiVersion": group, "metadata": metadata},
                }

    def paths(self) -> list[str]:
        """The paths asked for so far."""
        return [request.path for request in self.requests]

    def fault_for(self, target: str) -> Fault:
        """The fault that this request is to get."""
        with self._lock:
            for pattern, faults in self._faults:
                if faults and pattern.search(target):
                    return faults.pop(0)
        return Fault()

    @contextmanager
    def running(self) -> Iterator[ApiServer]:
        """Serves until the block ends."""
        thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Status and body of a request that nothing is wrong with."""
        if path == "/version":
            return 200, self.version
        if path == "/apis":
            served_by: dict[str, list[dict[str, str]]] = {}
            for each in sorted(
                {prefix for prefix, _, _ in RESOURCES.values() if prefix.startswith("/apis/")}
            ):
                if each not in OPTIONAL or each in self.groups:
                    group, _, version = each.removeprefix("/apis/").partition("/")
                    served_by.setdefault(group, []).append({"version": version})
            return 200, {
                "kind": "APIGroupList",
                "groups": [{"name": group, "versions": versions} for group, versions in served_by.items()],
            }
        if path in OPTIONAL and path in self.groups:
            served = [{"name": name} for name, (prefix, _, _) in RESOURCES.items() if prefix == path]
            return 200, {
                "kind": "APIResourceList",
                "groupVersion": path.removeprefix("/apis/"),
                "resources": served,
            }
        if path.partition("/proxy/")[1] and path in self.pages:
            return 200, self.pages[path]
        for resource, (prefix, kind, _) in RESOURCES.items():
            match = re.fullmatch(
                rf"{prefix}(?:/namespaces/(?P<namespace>[^/]+))?/{resource}(?:/(?P<name>[^/]+))?", path
            )
            if (
                match is None
                or resource in self.unknown
                or (prefix in OPTIONAL and prefix not in self.groups)
            ):
                continue
            namespace, name = match["namespace"], match["name"]
            if resource in self.forbidden:
                verb = "get" if name else "list"
                where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
                group = "discovery.k8s.io" if "discovery" in prefix else ""
                return 403, _status(
                    403,
                    "Forbidden",
                    f'{resource} is forbidden: User "jane" cannot {verb} resource "{resource}" '
                    f'in API group "{group}"{where}',
                )
            found = [
                item
                for item in self.objects[resource]
                if namespace in {None, item["metadata"].get("namespace")}
                and name in {None, item["metadata"]["name"]}
            ]
            if name:
                if not found:
                    return 404, _status(404, "NotFound", f'{resource} "{name}" not found')
                return 200, found[0]
            return 200, _page(found, kind, prefix, query, self.version_of_all)
        return 404, _status(404, "NotFound", "the server could not find the requested resource")

    def review(self, path: str, question: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of a POSTed review: `forbidden` holds resources, or "VERB RESOURCE"."""
        if path == "/apis/authentication.k8s.io/v1/selfsubjectreviews" and self.tells_user:
            user = {"username": self.user, "groups": ["system:authenticated"]}
            return 201, {**question, "status": {"userInfo": user}}
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            asked = question["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
            allowed = not self.forbidden & {resource, f"{asked['verb']} {resource}"}
            return 201, {**question, "status": {"allowed": allowed}}
        return 404, _status(404, "NotFound", "the server could not find the requested resource")


def _identity(found: dict[str, Any]) -> tuple[str | None, str]:
    return found["metadata"].get("namespace"), found["metadata"]["name"]


def _page(
    items: list[dict[str, Any]], kind: str, prefix: str, query: dict[str, str], version_of_all: int
) -> dict[str, Any]:
    for requirement in filter(None, query.get("labelSelector", "").split(",")):
        key, value = requirement.split("=")
        items = [item for item in items if item["metadata"].get("labels", {}).get(key) == value]
    for requirement in filter(None, query.get("fieldSelector", "").split(",")):
        key, value = requirement.split("=")
        assert key == "metadata.name", "only metadata.name is served"
        items = [item for item in items if item["metadata"]["name"] == value]
    start = int(base64.b64decode(query["continue"])) if "continue" in query else 0
    limit = int(query.get("limit", 0)) or len(items)
    metadata: dict[str, Any] = {"resourceVersion": str(version_of_all)}
    if start + limit < len(items):
        metadata["continue"] = base64.b64encode(str(start + limit).encode()).decode()
        metadata["remainingItemCount"] = len(items) - start - limit
    bare = [
        {key: value for key, value in item.items() if key not in {"kind", "apiVersion"}}
        for item in items[start : start + limit]
    ]
    version = prefix.removeprefix("/apis/").removeprefix("/api/")
    return {"kind": f"{kind}List", "apiVersion": version, "metadata": metadata, "items": bare}


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    }  # fmt: skip


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up in the middle is what some tests are about; a fault of this file is not."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: ApiServer

    def setup(self) -> None:
        # In this connection's own thread: a client that breaks off the handshake must not stop the server.
        if isinstance(self.request, ssl.SSLSocket):
            self.request.settimeout(5)
            self.request.do_handshake()
        super().setup()

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self._respond(lambda path, _query: self.owner.review(path, json.loads(content)))

    def do_GET(self) -> None:
        self._respond(self.owner.answer)

    def _record(self) -> Request:
        parts = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=unquote(parts.path),
            query={key: values[0] for key, values in parse_qs(parts.query).items()},
            authorization=self.headers.get("Authorization"),
            client_name=self._client_name(),
        )
        self.owner.requests.append(request)
        return request

    def _respond(self, answer: Callable[[str, dict[str, str]], tuple[int, dict[str, Any]]]) -> None:
        request = self._record()
        fault = self.owner.fault_for(self.path)
        time.sleep(fault.delay)
        if fault.hang_up:
            self.close_connection = True
            return
        allowed = self.owner.token is None or request.client_name is not None
        if not allowed and request.authorization != f"Bearer {self.owner.token}":
            status, body = 401, _status(401, "Unauthorized", "Unauthorized")
        elif "watch" in request.query and fault == Fault(delay=fault.delay):
            self._stream(self.owner.watched(request.path, request.query))
            return
        elif fault.status is not None or fault.body is not None:
            status = fault.status or 200
            body = _status(status, "Fault", f"made to answer {status}")
        else:
            status, body = answer(request.path, request.query)
        content = json.dumps(body).encode() if fault.body is None else fault.body
        self.send_response(status)
        self.send_header("Content-Type", fault.content_type)
        self.send_header("Content-Length", str(len(content)))
        for key, value in fault.headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault.truncate else content)
        if fault.truncate:
            self.close_connection = True

    def _stream(self, events: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def _client_name(self) -> str | None:
        if not isinstance(self.connection, ssl.SSLSocket):
            return None
        subject: Any = (self.connection.getpeercert() or {}).get("subject", ())
        return next((value for part in subject for key, value in part if key == "commonName"), None)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
        """Keeps the test output clean."""


class _HandlerWithExec(ExecHandler, _Handler):  # type: ignore[misc]
    def do_GET(self) -> None:
        if urlsplit(self.path).path.endswith("/exec"):
            self._record()
            self.serve_exec()
        else:
            super().do_GET()


# ------------------------------------------------------------------------------------------------- certificates


@dataclass(frozen=True, kw_only=True)
class Pki:
    """File names of a CA, a server certificate for 127.0.0.1, a client certificate, and a CA of nobody."""

    ca: Path
    other_ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path


def make_pki(folder: Path) -> Pki:
    """Makes the certificates with the openssl command."""
    for name in ("ca", "other-ca"):
        subject = ("-days", "2", "-subj", f"/CN={name}")
        _openssl(folder, "req", "-x509", *_new_key(name), "-out", f"{name}.crt", *subject)
    server_cert, server_key = issue(folder, "server", SERVER)
    client_cert, client_key = issue(folder, "client", CLIENT)
    return Pki(
        ca=folder / "ca.crt",
        other_ca=folder / "other-ca.crt",
        server_cert=server_cert,
        server_key=server_key,
        client_cert=client_cert,
        client_key=client_key,
    )


SERVER = "subjectAltName=IP:127.0.0.1,DNS:kubernetes.test"
CLIENT = "extendedKeyUsage=clientAuth"
EXPIRED = ("20200101000000Z", "20200102000000Z")
NOT_YET = ("20990101000000Z", "20990102000000Z")


def issue(folder: Path, name: str, extension: str, valid: tuple[str, str] | None = None) -> tuple[Path, Path]:
    """A certificate and its key by the CA in `folder`; `valid` from when to when, else for two days from now."""
    (folder / f"{name}.cnf").write_text(
        f"[ca]\ndefault_ca=it\n[it]\ndir=.\ndatabase={name}.index\nnew_certs_dir=.\nrand_serial=yes\n"
        f"default_md=sha256\npolicy=any\nx509_extensions=more\n[any]\ncommonName=supplied\n[more]\n{extension}\n"
    )
    (folder / f"{name}.index").touch()
    _openssl(folder, "req", *_new_key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
    times = ("-days", "2") if valid is None else ("-startdate", valid[0], "-enddate", valid[1])
    _openssl(
        folder, "ca", "-batch", "-notext", "-config", f"{name}.cnf", "-cert", "ca.crt", "-keyfile", "ca.key",
        "-in", f"{name}.csr", "-out", f"{name}.crt", *times,
    )  # fmt: skip
    return folder / f"{name}.crt", folder / f"{name}.key"


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _new_key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key")
