"""The live API server: authenticated requests for JSON that read, and nothing else.

Of the `kubernetes` package only configuration, authentication and the connection pool are used. Its typed
models take 5 to 20 times as long to fill as plain JSON takes to read, and importing them takes longer than
most answers.
"""

from __future__ import annotations

import contextlib
import email.utils
import gc
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ktp.collect.kube_config import ApiConfiguration, load_configuration
from ktp.errors import (
    ApiAnswerError,
    ApiError,
    ApiForbiddenError,
    ApiNotFoundError,
    ApiTlsError,
    ApiUnauthorizedError,
    ApiUnreachableError,
    KubeConfigError,
)
from ktp.model.record import dataclass

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
PAGE_SIZE = 500  # kubectl's --chunk-size
MAX_ATTEMPTS = 4
# A server that is not there stays away; each try may cost the whole timeout.
MAX_UNANSWERED_ATTEMPTS = 2
MAX_LIST_RESTARTS = 3
MAX_RETRY_WAIT = 10.0
WATCH_GRACE = 10.0  # seconds that a server may take to end a watch
FIRST_RETRY_WAIT = 0.25

# Validity of an X.509 certificate, DER: a SEQUENCE of two times (RFC 5280, 4.1.2.5); the second is notAfter.
_VALIDITY = re.compile(
    rb"\x30.(?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)(?:\x17\x0d(\d{12}Z)|\x18\x0f(\d{14}Z))", re.DOTALL
)
_NO_API_SERVER = (
    "check the server address in the kubeconfig; what answers there may be no API server, or a proxy"
)
_RENEW = (
    "get a new one (`kubeadm certs renew` on a control plane of kubeadm), or see whether a clock is wrong"
)
_RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectList:
    """A list of API objects as JSON text, one bytes object an item; `keys` are `NAMESPACE/NAME` of the items.

    Items are kept as text and not as dicts: 10,000 pods are 60 MB of text and 440 MB of dicts.
    """

    keys: tuple[str, ...]
    items: tuple[bytes, ...]
    resource_version: str = ""  # of the whole list, for a watch to begin at

    def to_json(self) -> bytes:
        """A v1 List, as `kubectl get -o json` prints one."""
        return b'{"apiVersion":"v1","kind":"List","items":[\n' + b",\n".join(self.items) + b"\n]}\n"

    def __add__(self, other: ObjectList) -> ObjectList:
        """Both lists in order, without the objects of the second that the first has already."""
        known = set(self.keys)
        new = [(key, item) for key, item in zip(other.keys, other.items, strict=True) if key not in known]
        return ObjectList(
            keys=self.keys + tuple(key for key, _ in new), items=self.items + tuple(item for _, item in new)
        )


EMPTY_LIST = ObjectList(keys=(), items=())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Access:
    """What RBAC calls a request: the permission that a 403 says is missing."""

    verb: str
    resource: str
    namespace: str | None

    @classmethod
    def of_path(cls, path: str) -> _Access:
        match = re.fullmatch(
            r"/(?:api/[^/]+|apis/(?P<group>[^/]+)/[^/]+)"
            r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?",
            path,
        )
        if match is None:
            return cls(verb="get", resource=path, namespace=None)
        group, resource = match["group"], match["resource"]
        return cls(
            verb="get" if match["name"] else "list",
            resource=f"{resource}.{group}" if group else resource,
            namespace=match["namespace"],
        )

    def __str__(self) -> str:
        where = f'in namespace "{self.namespace}"' if self.namespace else "across the cluster"
        return f"{self.verb} {self.resource} {where}"


class KubeApi:
    """One API server. Safe to use from several threads.

    `host` is the server's URL, `pool` a urllib3 PoolManager, `authorization` gives the header's current value
    (exec plugins renew theirs), `source` says in words which server this is, `default_namespace` is what a
    name without a namespace means. `client` is the `kubernetes.client.Configuration` that this was made from, for
    the one kind of request that is no HTTP request (exec). Every method raises the ApiError that fits.
    """

    def __init__(
        self,
        *,
        host: str,
        pool: Any,
        authorization: Callable[[], str | None],
        source: str,
        default_namespace: str = "default",
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        sleep: Callable[[float], None] = time.sleep,
        client: Any = None,
    ) -> None:
        self.client = client
        self.host = host.rstrip("/")
        self.source = source
        self.default_namespace = default_namespace
        self._pool = pool
        self._authorization = authorization
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._sleep = sleep

    def authorization(self) -> str | None:
        """The current value of the Authorization header; None for client certificates."""
        return self._authorization()

    def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The JSON object at `path` (`/api/v1/…`)."""
        return self._request(path, dict(params or {}))

    def review(self, path: str, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a review object (SelfSubjectAccessReview and its like), which the server does not keep.

        Reviews are POSTed, and are nevertheless questions: nothing in the cluster changes.
        """
        return self._request(path, {}, json.dumps(question).encode())

    def list_pages(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        limit: int = PAGE_SIZE,
        pack: Callable[[str, dict[str, Any], bytes], bytes | None] = lambda _key, _object, item: item,
    ) -> ObjectList:
        """Every object of a collection, read `limit` at a time, as one state of the collection.

        A continue token lives some minutes; where it expired (410) the list is begun again, and the last time
        without pages, as client-go's pager does. Items are completed with the `apiVersion` and `kind` that a
        list leaves out, and stripped of `managedFields`, as kubectl does. `pack` makes of an object (its key, itself,
        its text) what is kept of it, None for nothing: so a long list is never in memory whole.
        """
        for restart in range(MAX_LIST_RESTARTS + 1):
            try:
                return self._read_pages(
                    path, dict(params or {}), limit if restart < MAX_LIST_RESTARTS else 0, pack
                )
            except ExpiredError:
                continue
        raise ApiAnswerError(
            f"the list {path} of {self.host} expired again and again while it was read",
            hint="try again; the API server or its etcd is overloaded",
            status=410,
        )

    def _read_pages(
        self,
        path: str,
        params: dict[str, str],
        limit: int,
        pack: Callable[[str, dict[str, Any], bytes], bytes | None],
    ) -> ObjectList:
        if limit:
            params["limit"] = str(limit)
        keys: list[str] = []
        items: list[bytes] = []
        seen: set[str] = set()
        while True:
            page = self._request(path, params)
            fragments = page.get("items")
            if not str(page.get("kind")).endswith("List") or not isinstance(fragments, list | None):
                raise ApiAnswerError(
                    f"the answer of {self.host} to {path} is not a list of API objects", hint=_NO_API_SERVER
                )
            kind, api_version = page["kind"].removesuffix("List"), page.get("apiVersion", "v1")
            for fragment in fragments or ():
                if not isinstance(fragment, dict):
                    raise ApiAnswerError(
                        f"the list {path} of {self.host} holds what is no API object", hint=_NO_API_SERVER
                    )
                key, item = _item(fragment, kind, api_version)
                if (packed := pack(key, fragment, item)) is not None:
                    keys.append(key)
                    items.append(packed)
            metadata = page.get("metadata", {})
            token = metadata.get("continue")
            if not token:
                version = str(metadata.get("resourceVersion", ""))
                return ObjectList(keys=tuple(keys), items=tuple(items), resource_version=version)
            if token in seen:
                raise ApiAnswerError(
                    f"the list {path} of {self.host} does not end: a page came twice", hint=_NO_API_SERVER
                )
            seen.add(token)
            params["continue"] = token

    # ------------------------------------------------------------------------------------------ one request

    def _request(self, path: str, params: dict[str, str], body: bytes | None = None) -> dict[str, Any]:
        """The JSON object that `path` answers with, asked for again where that may help; POST with a `body`."""
        url = self.host + path + ("?" + urlencode(params) if params else "")
        failures = unanswered = 0
        while True:
            try:
                return self._answer(url, path, "continue" in params, body)
            except _RetryableError as error:
                failures += 1
                unanswered += isinstance(error.reason, ApiUnreachableError)
                if failures >= MAX_ATTEMPTS or unanswered >= MAX_UNANSWERED_ATTEMPTS:
                    raise error.reason from None
                wait = FIRST_RETRY_WAIT * 2 ** (failures - 1) if error.wait is None else error.wait
                self._sleep(min(wait, MAX_RETRY_WAIT))

    def watch(self, path: str, resource_version: str, *, seconds: int) -> Iterator[WatchEvent]:
        """What becomes of a collection after `resource_version`, as it happens, for about `seconds`.

        Bookmarks are among the events: they say how far the server is, where nothing happens. The iterator ends when
        the server ends the watch. Raises ExpiredError where the server no longer knows what came after that version.
        """
        import urllib3

        timeout = seconds + WATCH_GRACE
        params = {
            "watch": "1",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        try:
            response = self._send(
                f"{self.host}{path}?{urlencode(params)}",
                path,
                True,
                timeout=timeout,
                stream=True,
            )
        except _RetryableError as error:
            raise error.reason from None
        try:
            for line in _lines(response):
                yield _event(line, self.host, path)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            reason = self._connection_error(error, timeout)
            raise reason.reason if isinstance(reason, _RetryableError) else reason from None
        finally:
            response.close()

    def _answer(self, url: str, path: str, continued: bool, body: bytes | None = None) -> dict[str, Any]:
        return self._decode(self._send(url, path, continued, body), path)

    def _send(
        self,
        url: str,
        path: str,
        continued: bool,
        body: bytes | None = None,
        *,
        timeout: float | None = None,
        stream: bool = False,
    ) -> Any:
        """The answer to one request, its body unread with `stream`. Raises as `_connection_error` says."""
        import urllib3

        headers = {"Accept": "application/json", "User-Agent": "ktp"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if (authorization := self._authorization()) is not None:
            headers["Authorization"] = authorization
        try:
            response = self._pool.request(
                "GET" if body is None else "POST",
                url,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=self._connect_timeout, read=timeout or self._read_timeout),
                retries=False,
                redirect=False,
                preload_content=not stream,
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise self._connection_error(error, timeout) from None
        if response.status != 200 and not (body is not None and response.status == 201):
            raise self._status_error(response, path, continued)
        return response

    def _decode(self, response: Any, path: str) -> dict[str, Any]:
        content_type = response.headers.get("Content-Type", "")
        if "json" not in content_type:
            raise ApiAnswerError(
                f"{self.host} answers {path} with {content_type or 'data of no type'} where an API server "
                "answers with JSON",
                hint="check the server address in the kubeconfig; a login page or proxy may be in between",
                status=200,
            )
        try:
            with _gc_paused():
                decoded = json.loads(response.data)
        except (ValueError, RecursionError):
            reason = ApiAnswerError(
                f"the answer of {self.host} to {path} breaks off or is not JSON",
                hint="try again; a proxy in between may cut long answers",
            )
            raise _RetryableError(reason) from None
        if not isinstance(decoded, dict):
            raise ApiAnswerError(
                f"the answer of {self.host} to {path} is not an API object", hint=_NO_API_SERVER
            )
        return decoded

    # ----------------------------------------------------------------------------------------------- errors

    def _certificate_ended(self) -> str | None:
        """When the client certificate expired, if it did and is all that says who asks."""
        file = getattr(self.client, "cert_file", None)
        ends = _end_of_certificate(file) if file else None
        if ends is None or ends > datetime.now(timezone.utc) or self._authorization() is not None:
            return None
        return ends.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _connection_error(self, error: Exception, timeout: float | None = None) -> Exception:
        """What a failed exchange means: a _RetryableError where another try may help, else an ApiError."""
        import ssl

        from urllib3 import exceptions

        cause = _innermost(error)
        words = _words(cause)
        if isinstance(error, exceptions.ProxyError):
            return _RetryableError(
                ApiUnreachableError(
                    f"the proxy on the way to {self.host} cannot be used: {words}",
                    hint="check proxy-url in the kubeconfig and HTTPS_PROXY",
                )
            )
        if isinstance(error, exceptions.SSLError | exceptions.ProtocolError) or isinstance(
            cause, ssl.SSLError
        ):
            # With TLS 1.3 the server refuses a certificate after the handshake, and hangs up: what it says of it is
            # often lost (RFC 8446, 4.4.4 and 6.2).
            if (ended := self._certificate_ended()) is not None:
                return ApiTlsError(
                    f"the API server {self.host} hangs up: the client certificate of this context expired at {ended}",
                    hint=_RENEW,
                )
        if isinstance(error, exceptions.SSLError) or isinstance(cause, ssl.SSLError):
            return tls_error(self.host, cause)
        # A subclass of ConnectTimeoutError, though nothing timed out.
        if isinstance(error, exceptions.NewConnectionError):
            reason = ApiUnreachableError(
                f"cannot connect to the API server {self.host}: {words}",
                hint="check the address and whether the API server runs; "
                "--kubeconfig and --context choose another server",
            )
        elif isinstance(error, exceptions.ConnectTimeoutError):
            reason = ApiUnreachableError(
                f"cannot connect to the API server {self.host}: no answer within {self._connect_timeout:g} s",
                hint="check the address, VPN and firewall; --kubeconfig and --context choose another server",
            )
        elif isinstance(error, exceptions.ReadTimeoutError):
            reason = ApiUnreachableError(
                f"the API server {self.host} took the request and gave no answer within "
                f"{timeout or self._read_timeout:g} s",
                hint="try again later; the API server or its etcd may be overloaded",
            )
        elif isinstance(error, exceptions.ProtocolError):
            # Also a keep-alive connection that the server closed: no sign that the server is away.
            return _RetryableError(
                ApiAnswerError(
                    f"the connection to {self.host} broke off: {words}",
                    hint="try again; a proxy or load balancer in between may cut connections",
                )
            )
        elif isinstance(error, ValueError):
            # Without its words: http.client quotes a header that it refuses, and with it the token.
            return KubeConfigError(
                f"the server address {self.host} or the token makes no valid HTTP request",
                hint="check both in the kubeconfig",
            )
        else:
            return ApiUnreachableError(
                f"cannot ask the API server {self.host}: {words}",
                hint="see whether kubectl works with the same kubeconfig",
            )
        return _RetryableError(reason)

    def _status_error(self, response: Any, path: str, continued: bool) -> Exception:
        """What an HTTP status other than 200 means; as `_connection_error`."""
        status, said = response.status, _status_message(response.data)
        suffix = f": {said}" if said else ""
        if status == 401 and (ended := self._certificate_ended()) is not None:
            return ApiUnauthorizedError(
                f"the API server {self.host} refuses the credentials (401 Unauthorized): the client certificate of "
                f"this context expired at {ended}",
                hint=_RENEW,
            )
        if status == 401:
            return ApiUnauthorizedError(
                f"the API server {self.host} refuses the credentials (401 Unauthorized)",
                hint="they are wrong or expired (a token or certificate by the server's clock): log in again, or "
                "choose others with --kubeconfig or --context",
            )
        if status == 403:
            return _forbidden(_Access.of_path(path), said)
        if status == 404:
            return ApiNotFoundError(f"the API server {self.host} has no {path}{suffix}", hint=_NO_API_SERVER)
        if status == 410 and continued:
            return ExpiredError()
        reason = ApiAnswerError(
            f"the API server {self.host} answers {path} with HTTP {status}{suffix}",
            hint="check the server address in the kubeconfig" if status < 429 else "try again later",
            status=status,
        )
        if status in _RETRIED_STATUSES:
            return _RetryableError(reason, _retry_after(response.headers.get("Retry-After")))
        return reason


def connect(
    kubeconfig: str | Path | None = None,
    context: str | None = None,
    *,
    connect_timeout: float = CONNECT_TIMEOUT,
    read_timeout: float = READ_TIMEOUT,
    sleep: Callable[[float], None] = time.sleep,
) -> KubeApi:
    """The API server of a kubeconfig, found as `load_configuration` says; nothing is asked of it yet.

    Raises UsageError or KubeConfigError where there is no usable configuration.
    """
    configuration = load_configuration(kubeconfig, context)
    client = configuration.client
    where = f"context {configuration.context}" if configuration.context else configuration.origin
    return KubeApi(
        host=client.host,
        pool=_pool(configuration),
        authorization=lambda: _authorization(client),
        source=f"API server {client.host} ({where})",
        default_namespace=configuration.namespace,
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        sleep=sleep,
        client=client,
    )


def _pool(configuration: ApiConfiguration) -> Any:
    """The urllib3 pool that the kubernetes package sets up: TLS, client certificate, proxy, server name."""
    import urllib3
    from kubernetes.client import ApiClient

    if not configuration.client.verify_ssl:
        # The kubeconfig says insecure-skip-tls-verify: a warning for each request is no news to its owner.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    try:
        return ApiClient(configuration.client).rest_client.pool_manager
    except (urllib3.exceptions.HTTPError, OSError, ValueError, ImportError) as error:
        raise KubeConfigError(
            f"no connection can be set up as the {configuration.origin} says: {_words(error)}",
            hint="check proxy-url and the certificate files; a SOCKS proxy needs the package PySocks",
        ) from None


def _authorization(client: Any) -> str | None:
    """The value of the Authorization header, or None for client certificates and anonymous requests.

    A token file commonly ends in a newline, which the kubernetes package leaves in the header.
    """
    setting = client.auth_settings().get("BearerToken")
    return " ".join(setting["value"].split()) if setting and setting["value"] else None


class _RetryableError(Exception):
    """Another try may help: `reason` is what to raise if none did, `wait` what Retry-After asked for."""

    def __init__(self, reason: ApiError, wait: float | None = None) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.wait = wait


class ExpiredError(Exception):
    """A continue token or resourceVersion is older than the history that the server keeps (410 Gone)."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch. `type` is ADDED, MODIFIED, DELETED or BOOKMARK, `line` all of it as it came."""

    type: str
    object: dict[str, Any]
    line: bytes

    @property
    def key(self) -> str:
        """`NAMESPACE/NAME` of the object."""
        metadata = self.object.get("metadata") or {}
        return f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"

    @property
    def resource_version(self) -> str:
        """The version of the collection with this event in it."""
        return str((self.object.get("metadata") or {}).get("resourceVersion", ""))


def _lines(response: Any) -> Iterator[bytes]:
    """The lines of a body as they arrive; what is left of a line that was cut off is none."""
    rest = b""
    for chunk in response.stream(None):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())


def _event(line: bytes, host: str, path: str) -> WatchEvent:
    """Raises ExpiredError for the event that says so, ApiAnswerError for another error, and for what is no event."""
    try:
        said = json.loads(line)
        event = WatchEvent(said["type"], dict(said["object"]), line)
        dict(event.object.get("metadata") or {})
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ApiAnswerError(f"what {host} sends of {path} is no watch event", hint=_NO_API_SERVER) from None
    if event.type != "ERROR":
        return event
    if event.object.get("code") == 410:
        raise ExpiredError
    raise ApiAnswerError(
        f"the watch of {path} at {host} ended: {event.object.get('message', 'no reason given')}",
        hint="try again later",
        status=event.object.get("code") if isinstance(event.object.get("code"), int) else None,
    )


def _item(fragment: dict[str, Any], kind: str, api_version: str) -> tuple[str, bytes]:
    metadata = fragment.get("metadata") or {}
    metadata.pop("managedFields", None)
    if kind == "Pod":
        _drop_environment(fragment)
    completed = {"apiVersion": api_version, "kind": kind, **fragment}
    key = f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
    return key, json.dumps(completed, ensure_ascii=False, separators=(",", ":")).encode()


def _drop_environment(pod: dict[str, Any]) -> None:
    """Takes out a pod's environment, which commonly holds passwords: no answer needs it, and snapshots travel.

    The annotation of `kubectl apply` repeats the whole manifest, environment included.
    """
    annotations = pod.get("metadata", {}).get("annotations") or {}
    annotations.pop("kubectl.kubernetes.io/last-applied-configuration", None)
    spec = pod.get("spec") or {}
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            container.pop("env", None)


def _forbidden(access: _Access, said: str) -> ApiForbiddenError:
    user = re.search(r'User "([^"]*)"', said)
    who = f'user "{user[1]}"' if user else "the user of these credentials"
    scope = f"-n {access.namespace}" if access.namespace else "--all-namespaces"
    hint = (
        f"bind that user to a role made with `kubectl create clusterrole ktp-reader --verb=get,list "
        f"--resource={access.resource}`; "
        f"`kubectl auth can-i {access.verb} {access.resource} {scope}` tells whether it may"
    )
    if user and user[1] == "system:anonymous":
        hint = "no credentials were sent: check the user of this context in the kubeconfig"
    return ApiForbiddenError(
        f"{who} may not {access}",
        hint=hint,
        verb=access.verb,
        resource=access.resource,
        namespace=access.namespace,
    )


def _status_message(body: bytes) -> str:
    """The message of a v1 Status, else the start of the text, on one line."""
    try:
        decoded = json.loads(body)
        text = str(decoded.get("message", "")) if isinstance(decoded, dict) else ""
    except ValueError:
        text = body[:200].decode(errors="replace")
        if "<" in text:  # a proxy's HTML page says nothing in one line
            text = ""
    return " ".join(text.split())[:200]


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from either form of the header (RFC 9110 §10.2.3); None if there is none."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def tls_error(host: str, cause: BaseException) -> ApiTlsError:
    """The sentence about a TLS handshake that failed, and what to do about it."""
    words = _words(cause)
    return ApiTlsError(f"the TLS handshake with {host} failed: {words}", hint=_tls_hint(words))


def _tls_hint(words: str) -> str:
    # What the server says of our certificate comes as an alert (RFC 8446, 6.2).
    if "alert certificate expired" in words:
        return "the client certificate of this context has expired, by the server's clock: get a new one"
    if "certificate required" in words or "bad certificate" in words or "unknown ca" in words:
        return "the server does not accept the client certificate of this context: it is wrong or expired"
    if "certificate has expired" in words:
        return "the server's certificate has expired, or the clock of this machine is wrong"
    if "not yet valid" in words:
        return (
            "the clock of this machine is behind, or that of the machine that made the certificate was ahead"
        )
    if "verify failed" in words or "doesn't match" in words:
        return (
            "the server's certificate is not signed by the CA in the kubeconfig, or is for "
            "another name: check certificate-authority(-data), tls-server-name and the server address"
        )
    if "pem lib" in words or "no certificate" in words:
        return (
            "a certificate or key of this context is not PEM text: check the files or data in the kubeconfig"
        )
    return "check that the server address is an https port, and the certificate files in the kubeconfig"


def _end_of_certificate(file: str) -> datetime | None:
    """notAfter of the first certificate in a PEM file; None where it cannot be found."""
    import ssl

    try:
        text = Path(file).read_text(encoding="ascii", errors="replace")
        first = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
        found = _VALIDITY.search(ssl.PEM_cert_to_DER_cert(first[0])) if first else None
        if found is None:
            return None
        # A UTCTime of 50 and above means 1950 to 1999 (RFC 5280, 4.1.2.5.1), when there was no Kubernetes.
        written = (found[2] or b"20" + found[1]).decode()
        return datetime.strptime(written, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
    except (OSError, ValueError):
        return None


def _innermost(error: BaseException) -> BaseException:
    """The first cause: urllib3 wraps the socket's error, in `args` as well as in `__cause__`."""
    seen = {id(error)}
    while True:
        inner = error.__cause__ or next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        if inner is None or id(inner) in seen:
            return error
        seen.add(id(inner))
        error = inner


def _words(error: BaseException) -> str:
    """An error's own words on one line, lower case, without Python's class names and addresses."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.sub(r"<[^>]* object at 0x[0-9a-f]+>:? ?|\[(?:SSL|X509)[^\]]*\] ?|\(_ssl\.c:\d+\)", "", text)
    return " ".join(text.split()).rstrip(". ").lower() or type(error).__name__


_gc_lock = threading.Lock()
_gc_pauses = 0
_gc_was_enabled = False


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """Keeps the cycle collector off while a large JSON text becomes objects, which it would walk over and over.

    Parsing is three times as fast without it (63 MB of pods: 1.5 s and 0.5 s). Threads may overlap here.
    """
    global _gc_pauses, _gc_was_enabled  # noqa: PLW0603 - the collector's switch is global too
    with _gc_lock:
        if _gc_pauses == 0:
            _gc_was_enabled = gc.isenabled()
            gc.disable()
        _gc_pauses += 1
    try:
        yield
    finally:
        with _gc_lock:
            _gc_pauses -= 1
            if _gc_pauses == 0 and _gc_was_enabled:
                gc.enable()
