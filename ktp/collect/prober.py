"""Real connections from this machine: TCP, UDP, an HTTP GET where asked, several times, concurrently, bounded.

It opens connections and sends at most one datagram or GET on each, and nothing else. SCTP is left alone: the first
SCTP socket makes the kernel load a module.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
import time
from collections.abc import Iterable, Sequence

from ktp.collect.children import ending_children
from ktp.collect.machine import CommandRunner, LocalRunner
from ktp.collect.parallel import OnProgress, run_each
from ktp.model.probing import Attempt, HealthAnswer, HealthTarget, Observation, ProbeTarget
from ktp.model.record import dataclass
from ktp.model.trace import Symptom

_REFUSED = frozenset({errno.ECONNREFUSED, errno.ECONNRESET})
_UNREACHABLE = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EACCES}
)
_MAX_BODY = 1 << 16
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})\b")
_DNS_PORT = 53
# A query for the name servers of the root: id 0x6b74, recursion desired, one question ". NS IN" (RFC 1035, 4.1).
_DNS_QUERY = b"\x6b\x74\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"
_DATAGRAM = b"ktp probe\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """How to probe. `http` is the path to GET on TCP connections, None for none; `datagram` what UDP sends.

    `dns_ports` are ports that get a DNS query in place of the usual datagram.
    """

    tries: int = 5
    parallel: int = 16
    timeout: float = 2.0
    http: str | None = None
    datagram: bytes | None = None
    dns_ports: frozenset[int] = frozenset({_DNS_PORT})


def source_address(host: str, port: int = 9) -> str | None:
    """The address that this machine would send from to `host`; None where it has no way there. Sends nothing."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.connect(address)
            return str(s.getsockname()[0]).partition("%")[0]
    except OSError:
        return None


def probe_all(
    targets: Sequence[ProbeTarget], settings: ProbeSettings, *, on_progress: OnProgress | None = None
) -> list[Observation]:
    """Every target `settings.tries` times, at most `settings.parallel` at once; the observations in order."""
    sources = {t.host: source_address(t.host) for t in targets}
    skipped = {t: _why_not(t, sources[t.host]) for t in targets}
    # Try by try and not target by target, so that no server meets all its connections at once.
    wanted = [t for _ in range(settings.tries) for t in targets if not skipped[t]]
    attempts = run_each(
        wanted,
        lambda target: probe_once(target, settings),
        workers=settings.parallel,
        on_progress=on_progress,
        name=lambda target: target.dialled,
    )
    by_target: dict[ProbeTarget, list[Attempt]] = {}
    for target, found in zip(wanted, attempts, strict=True):
        by_target.setdefault(target, []).append(found)
    return [
        Observation(
            target=t,
            source=sources[t.host],
            attempts=tuple(by_target.get(t, ())),
            skipped=skipped[t],
            asked_http=settings.http is not None and t.protocol == "TCP",
        )
        for t in targets
    ]


def _why_not(target: ProbeTarget, source: str | None) -> str:
    if target.protocol not in ("TCP", "UDP"):
        return f"{target.protocol} is not probed"
    if source is None:
        return f"this machine has no way to {target.host}"
    return ""


def probe_once(target: ProbeTarget, settings: ProbeSettings) -> Attempt:
    """One connection, or one datagram and the wait for its answer."""
    started = time.monotonic()
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            target.host,
            target.port,
            type=socket.SOCK_STREAM if target.protocol == "TCP" else socket.SOCK_DGRAM,
        )[0]
        with socket.socket(family, kind) as s:
            s.settimeout(settings.timeout)
            s.connect(address)
            if target.protocol == "TCP":
                if s.getsockname() == s.getpeername():
                    # Nobody listens, and the kernel chose the dialled port as the source port: TCP met itself.
                    return Attempt(symptom=Symptom.REFUSED, seconds=time.monotonic() - started)
                seconds = time.monotonic() - started
                return _get(s, target, settings, seconds)
            s.send(datagram_for(target, settings))
            s.recv(_MAX_BODY)
            return Attempt(symptom=Symptom.CONNECTS, seconds=time.monotonic() - started)
    except OSError as error:
        return _failed(error, target.protocol, time.monotonic() - started)


def datagram_for(target: ProbeTarget, settings: ProbeSettings) -> bytes:
    """What UDP sends to a target."""
    if settings.datagram is not None:
        return settings.datagram
    return _DNS_QUERY if target.port in settings.dns_ports else _DATAGRAM


def _get(s: socket.socket, target: ProbeTarget, settings: ProbeSettings, seconds: float) -> Attempt:
    """The connection as it is, or with an HTTP answer where a path is asked for."""
    if settings.http is None:
        return Attempt(symptom=Symptom.CONNECTS, seconds=seconds)
    deadline = time.monotonic() + settings.timeout
    try:
        answer = _exchange(s, http_request(target.dialled, settings.http, "HTTP/1.1"), deadline, until=b"\n")
    except OSError as error:
        why = "nothing" if isinstance(error, TimeoutError) else "an error"
        return Attempt(symptom=Symptom.CONNECTS, seconds=seconds, detail=f"the GET is answered with {why}")
    found = _STATUS.match(answer)
    if found is None:
        why = "no HTTP" if answer else "nothing"
        return Attempt(symptom=Symptom.CONNECTS, seconds=seconds, detail=f"the GET is answered with {why}")
    status = int(found.group(1))
    return Attempt(symptom=Symptom.CONNECTS, seconds=seconds, detail=f"HTTP {status}", http=status)


def http_request(host: str, path: str, version: str) -> bytes:
    """A GET that asks for the connection to be closed behind the answer."""
    return (
        f"GET {path} {version}\r\nHost: {host}\r\nUser-Agent: ktp-probe\r\nAccept: */*\r\n"
        "Connection: close\r\n\r\n"
    ).encode()


def _exchange(s: socket.socket, request: bytes, deadline: float, *, until: bytes = b"") -> bytes:
    """What is answered to `request`, up to `until` or the end. TimeoutError behind the deadline, however it drips."""
    s.settimeout(max(0.01, deadline - time.monotonic()))
    s.sendall(request)
    answer = b""
    while len(answer) < _MAX_BODY and not (until and until in answer):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        s.settimeout(left)
        chunk = s.recv(_MAX_BODY)
        if not chunk:
            break
        answer += chunk
    return answer


def _failed(error: OSError, protocol: str, seconds: float) -> Attempt:
    code = errno.errorcode.get(error.errno or 0, "")
    if isinstance(error, socket.gaierror):
        return Attempt(
            symptom=Symptom.UNKNOWN, seconds=seconds, detail=f"the name does not resolve: {error.strerror}"
        )
    if isinstance(error, TimeoutError):
        detail = "no answer: lost, or an application that does not answer" if protocol == "UDP" else ""
        return Attempt(symptom=Symptom.TIMES_OUT, seconds=seconds, detail=detail)
    symptom = Symptom.UNKNOWN
    if error.errno == errno.EPERM:
        # A rule of this machine drops what it sends: the only sign that UDP gets, where TCP waits in vain.
        return Attempt(
            symptom=Symptom.TIMES_OUT, seconds=seconds, detail="EPERM: a rule of the sender drops it"
        )
    if error.errno in _REFUSED:
        symptom = Symptom.REFUSED
    elif error.errno in _UNREACHABLE:
        symptom = Symptom.UNREACHABLE
    usual = error.errno in (errno.ECONNREFUSED, errno.EHOSTUNREACH)
    return Attempt(symptom=symptom, seconds=seconds, detail="" if usual else code or str(error))


# ----------------------------------------------------------------------------------------------- health checks


def ask_health(
    targets: Sequence[HealthTarget], *, timeout: float = 2.0, parallel: int = 16
) -> list[HealthAnswer]:
    """What each healthCheckNodePort says to a GET of /."""
    return run_each(targets, lambda target: _ask_one(target, timeout), workers=parallel)


def _ask_one(target: HealthTarget, timeout: float) -> HealthAnswer:
    deadline = time.monotonic() + timeout
    host = f"[{target.address}]" if ":" in target.address else target.address
    try:
        with socket.create_connection((target.address, target.port), timeout=timeout) as s:
            # HTTP/1.0: the body then comes in one piece, as it is.
            answer = _exchange(s, http_request(f"{host}:{target.port}", "/", "HTTP/1.0"), deadline)
    except TimeoutError:
        return HealthAnswer(target=target, problem="does not answer")
    except OSError as error:
        return HealthAnswer(target=target, problem=_problem(error))
    status = _STATUS.match(answer)
    if status is None:
        return HealthAnswer(target=target, problem="answers no HTTP")
    said: object = None
    with contextlib.suppress(ValueError):
        said = json.loads(answer.partition(b"\r\n\r\n")[2])
    fields = said if isinstance(said, dict) else {}
    local, healthy = fields.get("localEndpoints"), fields.get("serviceProxyHealthy")
    return HealthAnswer(
        target=target,
        status=int(status.group(1)),
        local_endpoints=local if isinstance(local, int) else None,
        proxy_healthy=healthy if isinstance(healthy, bool) else None,
    )


def _problem(error: OSError) -> str:
    if error.errno in _REFUSED:
        return "is refused"
    if error.errno in _UNREACHABLE:
        return "is unreachable"
    return f"cannot be asked: {(error.strerror or str(error)).lower()}"


# ---------------------------------------------------------------------------------------------------- counters


def read_counters(backends: Iterable[str], runner: CommandRunner | None = None) -> dict[str, bytes]:
    """This machine's rules with counters, by "BACKEND/FAMILY"; only of back ends named, which have rules already.

    Asking for no others matters: some readers make the tables that they look for.
    """
    runner = runner or LocalRunner()
    found: dict[str, bytes] = {}
    with ending_children():
        for backend in backends:
            kind = backend.removeprefix("iptables-")
            for family, command in (("ip", "iptables"), ("ip6", "ip6tables")):
                program = f"{command}-{kind}-save"
                if kind not in ("legacy", "nft") or not runner.has_command(program):
                    continue
                done = runner.run((program, "-c"), timeout=30.0)
                if done.status == 0:
                    found[f"{backend}/{family}"] = done.stdout
    return found
