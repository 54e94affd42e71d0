"""One command in a container, through the API server: the exec subprotocol over a WebSocket.

Kubernetes' channel protocol (k8s.io/apimachinery/pkg/util/remotecommand, k8s.io/apiserver/pkg/util/wsstream):
every message is binary and its first byte names the channel: 0 stdin, 1 stdout, 2 stderr, 3 the end as a v1
Status. v5 adds 255, "this channel is closed", which is how stdin can end. Nothing is decoded, so dumps arrive
byte for byte.
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from ktp.collect.children import Answer
from ktp.collect.kube_api import tls_error
from ktp.errors import (
    ApiAnswerError,
    ApiError,
    ApiForbiddenError,
    ApiUnauthorizedError,
    ApiUnreachableError,
)
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.kube_api import KubeApi

V4 = "v4.channel.k8s.io"
V5 = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, END, CLOSE = 0, 1, 2, 3, 255
MAX_OUTPUT = 1 << 30
NOT_FOUND = 127
# websocket-client looks into NO_PROXY where it is given an empty list of what needs no proxy.
_NOWHERE = "nowhere.invalid"
_STDIN_PIECE = 1 << 15
_LAST_WORDS = 2.0
# What container runtimes say of a program that is not in the image (runc, crun; CRI-O prints it as output).
_NO_PROGRAM = re.compile(
    rb"executable file (?:`[^`]*` )?not found|exec format error|OCI runtime exec failed.*no such file"
    rb"|stat [^\s:]+: no such file or directory",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """What a command printed. `status` is its exit status (127: not in the image), None if it took too long.

    `complete` is False where the connection ended before the command did.
    """

    status: int | None
    stdout: bytes
    stderr: bytes
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """Where a command is run."""

    namespace: str
    pod: str
    container: str


def exec_in_pod(
    api: KubeApi,
    where: Container,
    command: Sequence[str],
    *,
    timeout: float,
    stdin: bytes = b"",
    answer: Answer | None = None,
) -> ExecResult:
    """Run a command without a terminal. Raises ApiError where the API server does not let the exec begin.

    With `answer`, stdin stays open behind `stdin`: it is given what the command prints and says what comes next.
    """
    deadline = time.monotonic() + timeout
    socket = _connect(api, where, command, bool(stdin), timeout)
    try:
        return _exchange(socket, stdin, answer, deadline)
    finally:
        socket.shutdown()


def _connect(api: KubeApi, where: Container, command: Sequence[str], with_stdin: bool, timeout: float) -> Any:
    import websocket

    query = [("container", where.container), ("stdout", "true"), ("stderr", "true")]
    query += [("stdin", "true")] if with_stdin else []
    query += [("command", word) for word in command]
    path = f"/api/v1/namespaces/{quote(where.namespace, safe='')}/pods/{quote(where.pod, safe='')}/exec"
    url = re.sub("^http", "ws", api.host) + f"{path}?{urlencode(query)}"
    header = {"User-Agent": "ktp"}
    if (authorization := api.authorization()) is not None:
        header["Authorization"] = authorization
    connection: Any = websocket.WebSocket(sslopt=_tls(api.client), skip_utf8_validation=True)
    connection.settimeout(max(0.1, min(timeout, 30.0)))
    try:
        connection.connect(
            url, header=header, subprotocols=[V5, V4], suppress_origin=True, **_proxy(api.client)
        )
    except websocket.WebSocketBadStatusException as error:
        raise _refusal(api, where, error) from None
    except ssl.SSLError as error:
        raise tls_error(api.host, error) from None
    except (websocket.WebSocketTimeoutException, TimeoutError):
        raise ApiUnreachableError(
            f"the API server {api.host} did not begin the exec in pod {where.pod} in time",
            hint="it asks the kubelet of that node, which may be down; --timeout gives it longer",
        ) from None
    except (websocket.WebSocketException, OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ApiUnreachableError(
            f"no exec connection to {api.host}: {' '.join(words.split()).lower() or type(error).__name__}",
            hint="a proxy on the way may not let WebSockets through",
        ) from None
    return connection


def _tls(client: Any) -> dict[str, Any]:
    """As kubernetes.stream.ws_client.create_websocket sets it."""
    if client is None:
        return {}
    options: dict[str, Any] = {"cert_reqs": ssl.CERT_NONE, "check_hostname": False}
    if client.verify_ssl:
        options = {"cert_reqs": ssl.CERT_REQUIRED}
        if client.ssl_ca_cert:
            options["ca_certs"] = client.ssl_ca_cert
        if client.assert_hostname is not None:
            options["check_hostname"] = client.assert_hostname
    for option, attribute in (
        ("certfile", "cert_file"),
        ("keyfile", "key_file"),
        ("server_hostname", "tls_server_name"),
    ):
        if value := getattr(client, attribute, None):
            options[option] = value
    return options


def _proxy(client: Any) -> dict[str, Any]:
    if client is None or not client.proxy:
        # Without this, websocket-client takes a proxy from the environment, which the other requests do not.
        return {"http_no_proxy": ["*"]}
    proxy = urlsplit(client.proxy)
    options: dict[str, Any] = {
        "http_proxy_host": proxy.hostname,
        "http_proxy_port": proxy.port or {"http": 80, "https": 443}.get(proxy.scheme, 1080),
        "proxy_type": {"socks5": "socks5", "socks5h": "socks5h"}.get(proxy.scheme, "http"),
    }
    # Whether the proxy is meant for this server was settled with the configuration.
    options["http_no_proxy"] = [_NOWHERE]
    if proxy.username:
        options["http_proxy_auth"] = (unquote(proxy.username), unquote(proxy.password or ""))
    return options


def _refusal(api: KubeApi, where: Container, error: Any) -> ApiError:
    status = error.status_code
    try:
        said = str(json.loads(error.resp_body or b"{}").get("message", ""))
    except (ValueError, AttributeError):
        said = ""
    said = " ".join(said.split())[:200]
    if status == 401:
        return ApiUnauthorizedError(
            f"the API server {api.host} refuses the credentials (401 Unauthorized)", hint="log in again"
        )
    if status == 403:
        user, verb = re.search(r'User "([^"]*)"', said), re.search(r'cannot (\w+) resource "pods/exec"', said)
        who = f'user "{user[1]}"' if user else "the user of these credentials"
        asked = verb[1] if verb else "create"
        return ApiForbiddenError(
            f'{who} may not {asked} pods/exec in namespace "{where.namespace}"',
            # A WebSocket is a GET, which is authorized as "get"; from Kubernetes 1.35 on "create" is asked for too.
            hint="bind that user to a role made with `kubectl create role ktp-exec "
            f"-n {where.namespace} --verb=get,create --resource=pods/exec`, or use --node-access ssh",
            verb=asked,
            resource="pods/exec",
            namespace=where.namespace,
        )
    return ApiAnswerError(
        f"the API server {api.host} answers an exec in pod {where.pod} with HTTP {status}"
        + (f": {said}" if said else ""),
        hint="the pod may have ended; try again",
        status=status,
    )


def _exchange(socket: Any, stdin: bytes, answer: Answer | None, deadline: float) -> ExecResult:
    import websocket

    received: dict[int, list[bytes]] = {STDOUT: [], STDERR: [], END: []}
    size = 0
    try:
        socket.settimeout(max(0.01, deadline - time.monotonic()))
        _send_stdin(socket, stdin)
        if stdin and answer is None and socket.getsubprotocol() == V5:
            socket.send_binary(bytes([CLOSE, STDIN]))
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            socket.settimeout(left)
            opcode, message = socket.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                break
            if isinstance(message, str):
                message = message.encode()
            # An empty message opens a channel; 255 closes one.
            if message and message[0] in received and len(message) > 1:
                received[message[0]].append(message[1:])
                size += len(message)
                if size > MAX_OUTPUT:
                    return ExecResult(status=1, stdout=b"", stderr=b"it printed too much", complete=False)
                if message[0] == STDOUT and answer is not None:
                    _send_stdin(socket, answer(message[1:]))
                if message[0] == END:
                    # The server hangs up now; what it still had on the way counts.
                    deadline = min(deadline, time.monotonic() + _LAST_WORDS)
    except (websocket.WebSocketTimeoutException, TimeoutError):
        if not received[END]:
            return ExecResult(
                status=None, stdout=b"".join(received[STDOUT]), stderr=b"".join(received[STDERR])
            )
    except (websocket.WebSocketException, OSError):
        pass  # hung up: whether before or after the end is told by the end
    stdout, stderr = b"".join(received[STDOUT]), b"".join(received[STDERR])
    if not received[END]:
        return ExecResult(status=1, stdout=stdout, stderr=stderr, complete=False)
    return _ended(stdout, stderr, b"".join(received[END]))


def _send_stdin(socket: Any, stdin: bytes) -> None:
    for at in range(0, len(stdin), _STDIN_PIECE):
        socket.send_binary(bytes([STDIN]) + stdin[at : at + _STDIN_PIECE])


def _ended(stdout: bytes, stderr: bytes, end: bytes) -> ExecResult:
    """The result by the v1 Status that the error channel ends with (remotecommand v4)."""
    try:
        status = json.loads(end)
        if status.get("status") == "Success":
            return ExecResult(status=0, stdout=stdout, stderr=stderr)
        message = str(status.get("message", "")).encode()
        causes = (status.get("details") or {}).get("causes") or ()
        codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
    except (ValueError, KeyError, TypeError, AttributeError):
        message, codes = end, []
    # A runtime's own failure comes without an exit status, or with 126 to 128 and its words as output.
    if _NO_PROGRAM.search(message) or (
        codes and codes[0] in {126, 127, 128} and _NO_PROGRAM.search(stdout[:2048] + stderr[:2048])
    ):
        return ExecResult(status=NOT_FOUND, stdout=b"", stderr=message)
    return ExecResult(status=codes[0] if codes else 1, stdout=stdout, stderr=stderr or message)
