"""The same probes sent from nodes, by a shell there, with what a node has: bash's /dev/tcp and /dev/udp, and timeout.

One connection to each node carries the script and its answers. Nothing is written on the node.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil

from ktp.collect.children import ChildResult, ending_children
from ktp.collect.node_shell import NodeShell, run_by_shell
from ktp.collect.parallel import run_in_parallel
from ktp.collect.prober import ProbeSettings, datagram_for, http_request
from ktp.collect.ssh import SshSettings, Visitor, is_host
from ktp.model.capture import EvidenceGap
from ktp.model.probing import (
    Attempt,
    LengthAttempt,
    LengthRow,
    LengthTarget,
    Observation,
    ProbeTarget,
)
from ktp.model.trace import Symptom

# In the inner shell: $0 host, $1 port, $2 what to send in printf's escapes, "" for nothing. "open": it connected.
_TCP = (
    'exec 3<>"/dev/tcp/$0/$1" || exit 9; echo open; [ -z "$2" ] && exit 0; '
    'printf "$2" >&3; IFS= read -r line <&3; echo "$line"'
)
_UDP = 'exec 3<>"/dev/udp/$0/$1" || exit 9; printf "$2" >&3; [ -n "$(head -c 1 <&3 | od -An -tx1)" ] && echo open'

# A port that traceroute tries first, and that nobody listens on: the pod's kernel answers that it is not reachable.
_CLOSED = 33434
# In the inner shell: $0 host, $1 "full" or how many bytes follow the header, $2 seconds. ICMP echo where ping can
# forbid that it is cut, since the answer is as long; else a datagram, whose answer is short.
_LENGTH = f"""
size=$1
case $0 in *:*) head=48 ;; *) head=28 ;; esac
if [ "$1" = full ]; then
  route=$(ip -o route get "$0") || exit 9
  case $route in
    *" mtu "*) mtu=${{route##* mtu }}; mtu=${{mtu#lock }}; mtu=${{mtu%% *}} ;;
    *) device=${{route#* dev }}; read -r mtu <"/sys/class/net/${{device%% *}}/mtu" ;;
  esac
  size=$((mtu - head))
fi
echo "size $((size + head))"
case $(ping -V 2>/dev/null) in
  *iputils*) exec ping -n -c 1 -w "$2" -M do -s "$size" "$0" ;;
esac
exec 3<>"/dev/udp/$0/{_CLOSED}" || exit 9
printf "%${{size}}s" "" >&3
head -c 1 <&3
"""
_SMALL = 72  # bytes behind the header
_MTU = re.compile(r"\bmtu[ =:]+(\d+)")

_SCRIPT = r"""
echo '@MARK@ hello'
for c in bash timeout head od; do
  command -v "$c" >/dev/null 2>&1 || { echo "@MARK@ lacks $c"; exit 0; }
done
exec bash -c '
LC_ALL=C; export LC_ALL
one() {
  began=${EPOCHREALTIME:-0}
  said=$(timeout "$5" bash -c "$4" "$2" "$3" "$6" 2>&1 </dev/null | tr "\r\n" "  "; exit "${PIPESTATUS[0]}")
  status=$?
  echo "@MARK@ $1 $status $began ${EPOCHREALTIME:-0} $said"
}
running=0
while IFS="|" read -r number host port wait kind send; do
  case $kind in tcp) code=$TCP ;; length) code=$LENGTH ;; *) code=$UDP ;; esac
  one "$number" "$host" "$port" "$code" "$wait" "$send" &
  running=$((running + 1))
  if [ "$running" -ge @PARALLEL@ ]; then wait; running=0; fi
done <<<"$PROBES"
wait
'
"""


# A node, a script and how many seconds it may take.
_Run = Callable[[str, bytes, float], ChildResult | EvidenceGap]


def probe_from_nodes(
    addresses: Mapping[str, Sequence[str]],
    targets: Mapping[str, Sequence[ProbeTarget]],
    settings: ProbeSettings,
    access: SshSettings | NodeShell,
    lengths: Mapping[str, Sequence[LengthTarget]] | None = None,
) -> tuple[list[Observation], list[LengthRow], list[EvidenceGap]]:
    """Each node of `targets` dials its targets; the observations, and a gap for each node that could not.

    `addresses` holds where each node may be logged in to, `lengths` to which pods it sends short and full packets.
    """
    visitor = Visitor(access, None) if isinstance(access, SshSettings) else None

    def run(node: str, script: bytes, timeout: float) -> ChildResult | EvidenceGap:
        if visitor is not None:
            return visitor.run_script(node, addresses.get(node, ()), script, timeout=timeout)
        assert isinstance(access, NodeShell)
        return run_by_shell(node, access, script, timeout=timeout)

    with ending_children():
        found = run_in_parallel(
            [
                partial(_one_node, run, n, wanted, (lengths or {}).get(n, ()), settings)
                for n, wanted in targets.items()
            ],
            workers=max(1, access.parallel),
        )
    observations = [o for seen, _, _ in found for o in seen]
    rows = [row for _, rows, _ in found for row in rows]
    return observations, rows, [gap for _, _, gap in found if gap is not None]


def _one_node(
    run: _Run,
    node: str,
    targets: Sequence[ProbeTarget],
    lengths: Sequence[LengthTarget],
    settings: ProbeSettings,
) -> tuple[list[Observation], list[LengthRow], EvidenceGap | None]:
    wanted = [
        t for _ in range(settings.tries) for t in targets if t.protocol in ("TCP", "UDP") and is_host(t.host)
    ]
    mark = f"ktp-{secrets.token_hex(8)}"
    packets = [t for _ in range(min(settings.tries, _MOST_PACKETS)) for t in lengths if is_host(t.host)]
    rounds = 1 + (len(wanted) + len(packets)) // max(1, settings.parallel)
    script = build_probe_script([*wanted, *packets], settings, mark)
    done = run(node, script, 20 + rounds * (settings.timeout + 3))
    if isinstance(done, EvidenceGap):
        return [], [], done
    lacks = re.search(rf"^{mark} lacks (\S+)", done.stdout.decode(errors="replace"), re.MULTILINE)
    if lacks is not None:
        message = f"node {node} has no {lacks.group(1)}, and so nothing was dialled from it"
        return [], [], EvidenceGap("probe", node, message, remedy="run ktp probe on the node")
    attempts = parse_answers(done.stdout, mark, wanted, settings)
    observations = []
    for t in targets:
        why = "" if t in attempts else "the node did not say what came of it"
        observations.append(
            Observation(
                target=t,
                sender=node,
                attempts=tuple(attempts.get(t, ())),
                skipped=why if t in wanted else f"{t.protocol} to {t.host} is not probed",
                asked_http=settings.http is not None and t.protocol == "TCP",
            )
        )
    sent = parse_lengths(done.stdout, mark, packets, first=len(wanted))
    return observations, _rows(node, lengths, sent), None


# Of each length to each pod: a kernel sends about one ICMP error a second to the same address, behind a first handful.
_MOST_PACKETS = 3


def _rows(
    node: str, lengths: Sequence[LengthTarget], sent: Mapping[LengthTarget, Sequence[LengthAttempt]]
) -> list[LengthRow]:
    rows: dict[tuple[str, str], LengthRow] = {}
    for t in lengths:
        row = rows.get((t.pod, t.host)) or LengthRow(sender=node, pod=t.pod, node=t.node, host=t.host)
        attempts = tuple(sent.get(t, ()))
        rows[t.pod, t.host] = replace(row, full=attempts) if t.is_full else replace(row, small=attempts)
    return list(rows.values())


def build_probe_script(
    wanted: Sequence[ProbeTarget | LengthTarget], settings: ProbeSettings, mark: str
) -> bytes:
    """The script for one node: it prints a line for each of `wanted`, by its number."""
    lines = []
    for number, target in enumerate(wanted):
        if isinstance(target, LengthTarget):
            seconds, size = ceil(settings.timeout), "full" if target.is_full else _SMALL
            lines.append(f"{number}|{target.host}|{size}|{seconds + 2}|length|{seconds}")
            continue
        kind, send = "udp", _escaped(datagram_for(target, settings))
        if target.protocol == "TCP":
            kind, send = "tcp", ""
            if settings.http is not None:
                send = _escaped(http_request(target.dialled, settings.http, "HTTP/1.1"))
        lines.append(f"{number}|{target.host}|{target.port}|{settings.timeout:g}|{kind}|{send}")
    head = "".join(
        f"{name}={shlex.quote(text)}; export {name}\n"
        for name, text in (("TCP", _TCP), ("UDP", _UDP), ("LENGTH", _LENGTH), ("PROBES", "\n".join(lines)))
    )
    script = _SCRIPT.replace("@MARK@", mark).replace("@PARALLEL@", str(max(1, settings.parallel)))
    return (head + script).encode()


def _escaped(content: bytes) -> str:
    r"""Bytes as printf's \xHH."""
    return "".join(f"\\x{byte:02x}" for byte in content)


def parse_answers(
    stdout: bytes, mark: str, wanted: Sequence[ProbeTarget], settings: ProbeSettings
) -> dict[ProbeTarget, list[Attempt]]:
    """What the script printed: the attempts at each target."""
    found: dict[ProbeTarget, list[Attempt]] = {}
    for number, status, seconds, said in _printed(stdout, mark):
        if number < len(wanted):
            attempt = _attempt(wanted[number], status, said, seconds, settings)
            found.setdefault(wanted[number], []).append(attempt)
    return found


def parse_lengths(
    stdout: bytes, mark: str, packets: Sequence[LengthTarget], *, first: int
) -> dict[LengthTarget, list[LengthAttempt]]:
    """What the script printed of packets, which are numbered from `first` on."""
    found: dict[LengthTarget, list[LengthAttempt]] = {}
    for number, _, _, said in _printed(stdout, mark):
        if 0 <= number - first < len(packets):
            found.setdefault(packets[number - first], []).append(_length(said))
    return found


def _length(said: str) -> LengthAttempt:
    """What ping or bash says: ping's are iputils' words, and the C library's."""
    size = re.match(r"size (\d+) ?", said)
    if size is None:
        return LengthAttempt(answered=False, problem=said.strip()[:120] or "nothing was sent")
    words = said[size.end() :]
    told = _MTU.search(words)
    is_refused = "onnection refused" in words  # the port unreachable that the datagram asks for
    unsent = re.search(r"[Oo]peration not permitted|[Nn]etwork is unreachable|[Nn]o route to host", words)
    return LengthAttempt(
        answered=" bytes from " in words or is_refused,
        size=int(size[1]),
        told=int(told[1]) if told is not None else None,
        problem=unsent[0] if unsent is not None else "",
    )


def _printed(stdout: bytes, mark: str) -> Iterator[tuple[int, str, float, str]]:
    """The lines of the answer: number, exit status, seconds, what was said."""
    for line in stdout.decode(errors="replace").splitlines():
        fields = line.split(maxsplit=5) if line.startswith(mark) else ()
        if len(fields) >= 5 and fields[1].isdigit():
            seconds = max(0.0, _number(fields[4]) - _number(fields[3]))
            yield int(fields[1]), fields[2], seconds, fields[5] if len(fields) > 5 else ""


def _attempt(target: ProbeTarget, status: str, said: str, seconds: float, settings: ProbeSettings) -> Attempt:
    """What bash's words and exit status mean: 124 is timeout's own."""
    if said.startswith("open"):
        if settings.http is None or target.protocol != "TCP":
            return Attempt(symptom=Symptom.CONNECTS, seconds=seconds)
        http = re.match(r"open HTTP/\d(?:\.\d)? (\d{3})\b", said)
        if http is None:
            return Attempt(
                symptom=Symptom.CONNECTS, seconds=seconds, detail="the GET is answered with nothing"
            )
        number = int(http.group(1))
        return Attempt(symptom=Symptom.CONNECTS, seconds=seconds, detail=f"HTTP {number}", http=number)
    if "onnection refused" in said or "onnection reset" in said:
        return Attempt(symptom=Symptom.REFUSED, seconds=seconds)
    if "No route to host" in said or "unreachable" in said or "Host is down" in said:
        return Attempt(symptom=Symptom.UNREACHABLE, seconds=seconds)
    if status == "124" or "timed out" in said or "not permitted" in said:
        return Attempt(symptom=Symptom.TIMES_OUT, seconds=seconds)
    return Attempt(
        symptom=Symptom.UNKNOWN, seconds=seconds, detail=said.strip()[:120] or f"exit status {status}"
    )


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return 0.0
