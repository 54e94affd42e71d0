"""Reading a node by its shell: a POSIX script that runs every command, and the stream that it answers with.

The script is read from standard input (`sh -s`), so nothing is copied to the node and nothing remains there: no
file is written, not even a temporary one. It follows the rules of `ktp.collect.local_node` for what may be run
without changing the node, and `RecordedRunner` then answers that module's questions from the stream: what a node
far away is read by is the same code that reads this machine.

The stream is a sequence of frames between marker lines; the marker is random and sent within the script, so no
output can hold it. A frame is `begin WHAT`, bytes, `end STATUS`, what went to stderr, `done`; the last line is
`complete`. Whatever is cut in the middle lacks its `end`, and is not taken for a shorter dump.

That is one round trip, save where a large node's rules are searched chain by chain (`ktp.collect.nft_chains`): then the
script ends with `waiting`, and `Conversation` tells the shell which chains to print, one round trip a wave.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from ktp.collect.local_node import (
    CILIUM_FOLDER,
    CILIUM_READS,
    IPV4_CONF_KEYS,
    IPV6_CONF_KEYS,
    SINGLE_SYSCTLS,
    collect_local_node,
)
from ktp.collect.machine import CILIUM_AGENT, CILIUM_DEVICE, CommandResult
from ktp.collect.nft_chains import (
    FIRST_CHAINS,
    LARGE_CHAINS,
    LARGE_SERVICES,
    ChainReader,
    Reach,
    Search,
    search_reachable,
)
from ktp.collect.offloads import offload_command
from ktp.collect.passing import (
    CONNECTION_FILE,
    CONNTRACK_MODULE,
    connection_commands,
    connection_file_command,
    counter_command,
    most_entries,
)
from ktp.collect.pod_namespaces import POD_LEGACY, POD_READS, POD_RULES, PodAddresses, in_proc
from ktp.collect.wireguard import COLUMNS, wireguard_command
from ktp.collect.wireguard import MODULE as WIREGUARD_MODULE
from ktp.collect.xfrm import READS as XFRM_READS
from ktp.collect.xfrm import SOCKETS
from ktp.model.capture import EvidenceGap, GapCause, MemoryCapture
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ktp.collect.children import ChildResult

# The last line of what is said at one go, by a shell that is told more; "complete" by one that has ended.
_WAITING = "waiting"
_CUT = b"the connection ended before its output was complete"
_TIMED_OUT = 124  # timeout(1)
_SUDO = "sudo -n -l"

COMMANDS = (
    "ip", "ss", "conntrack", "nft", "ipset", "ipvsadm", "nsenter", "sysctl", "bridge", "wg", "ethtool", "timeout",
    "awk", "sudo", "cilium-dbg", "cilium",
    *(f"{family}{kind}{save}" for family in ("iptables", "ip6tables") for kind in ("", "-nft", "-legacy")
      for save in ("", "-save")),
)  # fmt: skip

# Everything is within one function, so that a script that arrives cut does nothing at all.
_SCRIPT = r"""
ktp_main() {
exec 3>&1
PATH=$PATH:@PATH@; LC_ALL=C; export PATH LC_ALL
unset ENV BASH_ENV
mark='@MARK@'; limit='@LIMIT@'; want_sudo='@SUDO@'; reach='@REACH@'
large_services=@LARGE_SERVICES@; large_chains=@LARGE_CHAINS@

has() { command -v "$1" >/dev/null 2>&1; }
line() { printf '\n%s %s\n' "$mark" "$*" >&3; }
slowly() { if [ -n "$limit" ]; then timeout "$limit" "$@"; else "$@"; fi; }
# What was caught of a command (stderr, then its status) ends its frame.
finish() { line "end ${1##*ktp-status=}"; printf '%s' "${1%ktp-status=*}" >&3; line done; }
# The output goes straight to the stream; stderr and the status are caught.
run() { line "begin command $*"; finish "$( { slowly "$@" 3>&-; echo "ktp-status=$?" >&2; } 2>&1 >&3 )"; }
root() { line "begin command $*"; finish "$( { slowly $as_root "$@" 3>&-; echo "ktp-status=$?" >&2; } 2>&1 >&3 )"; }
# As root, and an awk program sees the output on its way; what it says in the end is left in $noted.
noting() {
  program=$1; shift
  line "begin command $*"
  caught=$( {
    { slowly $as_root "$@" 3>&-; echo "ktp-status=$?" >&2; } |
      awk "{ print } $program END { print \"ktp-noted=\" noted | \"cat 1>&2\" }" >&3 3>&-
  } 2>&1 )
  noted=${caught##*ktp-noted=}
  finish "${caught%?ktp-noted=*}"
}
said() { line "begin $1"; shift; printf '%s\n' "$@" >&3; line "end 0"; line done; }
# As root, and no more lines than are of use: a command that has more to say ends with another status.
some() {
  most=$1; shift
  line "begin command $*"
  finish "$( { { slowly $as_root "$@" 3>&-; echo "ktp-status=$?" >&2; } | head -n "$most" >&3; } 2>&1 )"
}
file() {
  [ -e "$1" ] || return 1
  line "begin file $1"
  if [ -r "$1" ]; then
    finish "$( { $2 "$1" 3>&-; echo "ktp-status=$?" >&2; } 2>&1 >&3 )"
  else
    finish "$( { $as_root cat "$1" 3>&-; echo "ktp-status=$?" >&2; } 2>&1 >&3 )"
  fi
}

timeout 1 true >/dev/null 2>&1 || limit=
uid=$(id -u 2>/dev/null) || uid=
as_root=
if [ -n "$want_sudo" ] && [ "$uid" != 0 ]; then
  # One question, so that a refusal is one line in the node's log.
  line "begin command @SUDO_LIST@"
  caught=$( { @SUDO_LIST@ >/dev/null; echo "ktp-status=$?" >&2; } 2>&1 )
  finish "$caught"
  [ "${caught##*ktp-status=}" = 0 ] && as_root='sudo -n' && uid=0
fi
said uid "$uid"
said hostname "$(uname -n 2>/dev/null)"
found=; for name in @COMMANDS@; do has "$name" && found="$found $name"; done
said commands $found
found=
for path in /sys/module/nf_tables /sys/module/ip_set /proc/modules /proc/sys/net/ipv6 @CONNTRACK_MODULE@ \
  @CONNECTION_FILE@ @CILIUM_FOLDER@ @WIREGUARD_MODULE@; do
  [ -e "$path" ] && found="$found $path"
done
said paths $found

symbols() { head -n 1 "$1"; grep -e ' nf_tables_newrule' -e ' ip_set_create' "$1" || :; }
kernel_has() {
  [ -e "/sys/module/$1" ] && return 0
  [ -e /proc/modules ] || return 0
  [ -r /proc/kallsyms ] && [ -n "$(head -n 1 /proc/kallsyms)" ] || return 0
  grep -q -e " $2\$" -e " $2[[:space:]]" /proc/kallsyms
}
if [ -e /proc/modules ] && { [ ! -e /sys/module/nf_tables ] || [ ! -e /sys/module/ip_set ]; }; then
  file /proc/kallsyms symbols
fi
nf=; kernel_has nf_tables nf_tables_newrule && nf=1
sets=; kernel_has ip_set ip_set_create && sets=1

if has ip; then
  run ip -j addr; run ip -j rule; run ip -j route show table all
  if [ -e /proc/sys/net/ipv6 ]; then run ip -6 -j rule; run ip -6 -j route show table all; fi
fi
has ss && run ss -lntuH
has ip && { run ip -j -d link; run ip -j neigh; }
has bridge && run bridge -j fdb
if has wg && { [ -e @WIREGUARD_MODULE@ ] || [ ! -e /proc/modules ]; }; then
@WIREGUARD@
fi
if [ "$uid" = 0 ] && has ip && file @SOCKETS@ cat && grep -q '^[^ ]*  *6  *0 ' @SOCKETS@; then
@XFRM@
fi
has ip && has ethtool && has awk && @OFFLOADS@
if has conntrack && { [ -e @CONNTRACK_MODULE@ ] || [ ! -e /proc/modules ]; }; then
  :
@CONNECTIONS@
elif [ -e @CONNECTION_FILE@ ] && has awk; then
  :
@CONNECTIONS_IN_FILE@
fi
line 'begin sysctls'
grep '' /dev/null @SYSCTL_GLOBS@ >&3 2>/dev/null
line 'end 0'; line done
file /proc/net/ip_vs 'head -n 4' && has ipvsadm &&
  [ "$(head -n 4 /proc/net/ip_vs 2>/dev/null | wc -l)" -gt 3 ] && root ipvsadm -Sn
file /proc/net/ip_tables_names cat
file /proc/net/ip6_tables_names cat
agent=
has cilium-dbg && agent=cilium-dbg
[ -z "$agent" ] && has cilium && [ -e @CILIUM_FOLDER@ ] && agent=cilium
if [ -z "$agent" ] && [ -e @CILIUM_DEVICE@ ] && [ "$uid" = 0 ] && has nsenter; then
  for at in /proc/[0-9]*; do
    name=; { read -r name <"$at/comm"; } 2>/dev/null
    [ "$name" = @CILIUM_AGENT@ ] || continue
    agent=cilium; $as_root test -e "$at/root/usr/bin/cilium-dbg" && agent=cilium-dbg
    agent="nsenter --mount=$at/ns/mnt --net=$at/ns/net $agent"; said agent "$agent"; break
  done
fi
if [ -n "$agent" ]; then
@CILIUM_READS@
fi

listed=
if [ -n "$nf" ] && has nft; then
  root nft list flowtables
  listed=$($as_root nft list flowtables 2>/dev/null | awk '/^table / { print $2 "/" $3 }')
fi
any_large=; foreign=; searched=; saves=
family iptables ip ip_tables
family ip6tables ip6 ip6_tables
[ -n "$sets" ] && has ipset && root ipset save

if [ -n "$nf" ] && has nft; then
  if [ -n "$any_large" ]; then
    for table in $listed; do
      case $table in
        ip/raw|ip/mangle|ip/nat|ip/filter|ip/security) dump=iptables-nft-save ;;
        ip6/raw|ip6/mangle|ip6/nat|ip6/filter|ip6/security) dump=ip6tables-nft-save ;;
        *) dump= ;;
      esac
      case " $foreign " in *" $table "*) dump= ;; esac
      [ -n "$dump" ] && has "$dump" || root nft -j list table "${table%%/*}" "${table#*/}"
    done
  else
    root nft -j list ruleset
  fi
  if [ -z "$any_large" ] || [ -n "$($as_root cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null)" ]
  then
    root nft list hooks
  fi
fi
pods='@PODS@'
if [ -n "$pods" ] && [ "$uid" = 0 ] && has nsenter && has awk; then
  # One process of each network namespace but this one's, then the addresses that it has.
  for path in $($as_root ls -l /proc/[0-9]*/ns/net 2>/dev/null | awk -v own="$($as_root readlink /proc/1/ns/net)" '
      $NF != own && !seen[$NF]++ { print $(NF - 2) }'); do
    at=${path%/ns/net}
    has_pod=
    for address in $($as_root cat "$at/net/fib_trie" "$at/net/if_inet6" 2>/dev/null | awk '
        /host LOCAL/ { print last } { last = $2 } length($1) == 32 { print $1 }'); do
      case " $pods " in *" $address "*) has_pod="$has_pod $address" ;; esac
    done
    [ -n "$has_pod" ] || continue
    said "pod ${at#/proc/}" $has_pod
    enter="nsenter --net=$at/ns/net"
@POD_READS@
    if [ -n "$nf" ]; then
@POD_RULES@
    fi
@POD_LEGACY@
  done
fi
@COUNTERS@
[ -n "$searched" ] || { line complete; exit; }
said searched $searched
line @WAITING@
}

# One family (iptables ip ip_tables): legacy tables where there are some, those in nf_tables whole or by chains.
family() {
  legacy=$1-legacy-save; nft=$1-nft-save
  if ! has "$legacy" && ! has "$nft" && has "$1-save"; then
    run "$1" --version
    case $("$1" --version 2>/dev/null) in *nf_tables*) nft=$1-save ;; *) legacy=$1-save ;; esac
  fi
  [ -n "$($as_root cat "/proc/net/$3_names" 2>/dev/null)" ] && has "$legacy" &&
    { root "$legacy" -c; saves="$saves $legacy"; }
  [ -n "$nf" ] && has "$nft" || return 0
  single=${nft%-save}; large=; tables=
  has "$single" && has awk && measure "$single" "$2"
  [ -n "$large" ] && [ -n "$reach" ] || { root "$nft" -c; saves="$saves $nft"; return; }
  searched="$searched $single"
  for chain in @FIRST_CHAINS@; do
    case " $tables " in *" ${chain%/*} "*) root "$single" -t "${chain%/*}" -S "${chain#*/}" -v ;; esac
  done
}

# Sets $large and $tables (those that may be asked for single chains), and adds to $foreign.
measure() {
  for table in $listed; do
    case $table in
      "$2"/raw|"$2"/mangle|"$2"/nat|"$2"/filter|"$2"/security) tables="$tables ${table#*/}" ;;
    esac
  done
  run "$1" --version
  new=$("$1" --version 2>/dev/null | awk '
    { sub(/.* v/, ""); split($0, v, /[^0-9]+/); n = v[1] * 1000000 + v[2] * 1000 + v[3]
      if (n >= 1008008) print "new" }')
  if ! has nft; then
    [ "$new" = new ] || return 0
    tables='raw mangle nat filter security'
  else
    [ -n "$tables" ] || return 0
    noting "$ktp_chains" nft list chains "$2"
    # number of chains; tables with base chains of others; tables with all of iptables' base chains
    chains=${noted%%|*}; others=${noted#*|}
    foreign="$foreign ${others%|*}"
    if [ "$new" != new ]; then
      for table in $tables; do
        case " ${noted##*|} " in *" $table "*) ;; *) tables=; return 0 ;; esac
      done
    fi
    [ "$chains" -ge "$large_chains" ] && large=1
  fi
  # Where the number of chains has told already, the long chain is not listed twice.
  [ -z "$large" ] && case " $tables " in *" nat "*)
    noting '/^-A / { noted++ }' "$1" -t nat -S KUBE-SERVICES -v
    [ "${noted:-0}" -ge "$large_services" ] && large=1 ;;
  esac
  [ -n "$large" ] && any_large=1
}
ktp_chains=@AWK_CHAINS@
ktp_main </dev/null
"""

# Counts the chains of `nft list chains`, and tells which tables hold whose base chains.
_AWK_CHAINS = r"""
/^table / { table = $3; where = $2 "/" $3 }
/^\tchain / { chain = $2; chains++ }
/^\t\ttype / {
  if (chain ~ /^(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)$/) base[table]++
  else foreign = foreign " " where
}
END {
  if (base["raw"] == 2) all = all " raw"
  if (base["mangle"] == 5) all = all " mangle"
  if (base["nat"] == 4) all = all " nat"
  if (base["filter"] == 3) all = all " filter"
  if (base["security"] == 3) all = all " security"
  noted = chains + 0 "|" foreign "|" all
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteScript:
    """The script for one node, and the marker that its answer is framed by."""

    text: bytes
    mark: str


def build_script(
    *, sudo: bool, reach: Reach | None, command_timeout: float, pods: Iterable[str] = (), counters: int = 0
) -> RemoteScript:
    """The script that reads everything; with `sudo`, what only root may read through `sudo -n`.

    `pods` are addresses whose network namespaces are read, too. `counters` are the seconds between two readings of
    the kernel's counters; 0: none.
    """
    mark = f"ktp-{secrets.token_hex(16)}"
    globs = [*(_sysctl_path(key) for key in SINGLE_SYSCTLS)]
    globs += [f"/proc/sys/net/ipv4/conf/*/{key}" for key in IPV4_CONF_KEYS]
    globs += [f"/proc/sys/net/ipv6/conf/*/{key}" for key in IPV6_CONF_KEYS]
    parts = {
        "PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
        "MARK": mark,
        "LIMIT": str(max(1, int(command_timeout))),
        "SUDO": "1" if sudo else "",
        "SUDO_LIST": _SUDO,
        "COMMANDS": " ".join(COMMANDS),
        "SYSCTL_GLOBS": " ".join(globs),
        "CILIUM_FOLDER": CILIUM_FOLDER,
        "CILIUM_DEVICE": CILIUM_DEVICE,
        "CILIUM_AGENT": CILIUM_AGENT,
        "CILIUM_READS": "\n".join(f"  root $agent {words}" for _, words, _ in CILIUM_READS),
        "PODS": " ".join(map(in_proc, pods)),
        "CONNTRACK_MODULE": CONNTRACK_MODULE,
        "WIREGUARD_MODULE": WIREGUARD_MODULE,
        "WIREGUARD": "\n".join(f"  root {wireguard_command(column)}" for column in COLUMNS),
        "SOCKETS": SOCKETS,
        "XFRM": "\n".join(f"  root {words}" for _, words in XFRM_READS),
        "CONNECTIONS": "\n".join(
            _some(words) for words in connection_commands(reach, counters=bool(counters))
        ),
        "CONNECTION_FILE": CONNECTION_FILE,
        "CONNECTIONS_IN_FILE": _some(connection_file_command(reach)),
        "OFFLOADS": f"run {' '.join(map(_quoted, offload_command()))}",
        "COUNTERS": _counters(counters) if counters else "",
        "POD_READS": "\n".join(_in_pod(words) for _, words, _ in POD_READS),
        "POD_RULES": "\n".join(f"  {_in_pod(words)}" for _, words in POD_RULES),
        "POD_LEGACY": "\n".join(
            f'    file "$at/net/{names}" cat\n    [ -n "$($as_root cat "$at/net/{names}" 2>/dev/null)" ] && '
            f"{_in_pod(words).strip()}"
            for _, words, names in POD_LEGACY
        ),
        "LARGE_SERVICES": str(LARGE_SERVICES),
        "LARGE_CHAINS": str(LARGE_CHAINS),
        "REACH": "1" if reach is not None else "",
        "FIRST_CHAINS": " ".join(map("/".join, FIRST_CHAINS)),
        "WAITING": _WAITING,
        "AWK_CHAINS": _quoted(_AWK_CHAINS.strip()),
    }
    text = _SCRIPT
    for name, value in parts.items():
        text = text.replace(f"@{name}@", value)
    return RemoteScript(text=text.encode(), mark=mark)


def _some(words: Sequence[str]) -> str:
    """A line of the script that prints entries of the connection table, and not too many; "" without words."""
    return f"  some {most_entries(words) + 1} {' '.join(map(_quoted, words))}" if words else ""


def _counters(seconds: int) -> str:
    """Lines of the script: one that takes its time, and therefore no limit, and those that read rules once more."""
    *shell, text = counter_command(seconds)
    return f"""kept=$limit; limit=; run {" ".join(shell)} {_quoted(text)}; limit=$kept
if [ -z "$any_large" ]; then
  for save in $saves; do root "$save" --counters; done
  [ -n "$nf" ] && has nft && root nft --json list ruleset
fi"""


def _in_pod(words: str) -> str:
    """A line of the script that runs a command of the node in a pod's network namespace."""
    return f"    has {words.split(maxsplit=1)[0]} && root $enter {words}"


def _quoted(text: str) -> str:
    """`text` as one word of the shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _sysctl_path(key: str) -> str:
    return "/proc/sys/" + key.replace(".", "/")


# ------------------------------------------------------------------------------------------------- the answer


@dataclass(slots=True)
class Recording:
    """The frames of one answer.

    `started` tells whether the script ran at all, `complete` whether it came to its end.
    """

    commands: dict[str, CommandResult] = field(default_factory=dict)
    files: dict[str, CommandResult] = field(default_factory=dict)
    facts: dict[str, bytes] = field(default_factory=dict)
    pods: dict[int, tuple[str, ...]] = field(default_factory=dict)
    started: bool = False
    complete: bool = False

    @property
    def refused_by_sudo(self) -> str | None:
        """What sudo says instead of running commands; None where it was not asked or agreed."""
        answer = self.commands.get(_SUDO)
        if answer is None or answer.status == 0:
            return None
        return answer.stderr.decode(errors="replace").strip().rpartition("\n")[2].strip() or "no reason given"


def parse_stream(stream: bytes, mark: str, recording: Recording | None = None) -> Recording:
    """The frames of a stream, added to those of a `recording`; one that lacks its end is left out."""
    recording = recording or Recording()
    marker = f"\n{mark} ".encode()
    pieces: list[tuple[str, bytes]] = []
    at = stream.find(marker)
    while at >= 0:
        end = stream.find(b"\n", at + len(marker))
        if end < 0:
            break
        following = stream.find(marker, end)
        # Each marker line begins with a line feed of its own: the bytes before it are the command's, unchanged.
        body = stream[end + 1 : following] if following >= 0 else stream[end + 1 :]
        pieces.append((stream[at + len(marker) : end].decode(errors="surrogateescape"), body))
        at = following
    recording.started = bool(pieces)
    for (first, body), (second, errors), (third, _) in zip(pieces, pieces[1:], pieces[2:], strict=False):
        if first.startswith("begin ") and second.startswith("end ") and third == "done":
            _add(recording, first.removeprefix("begin "), body, second.removeprefix("end ").strip(), errors)
    recording.complete = bool(pieces) and pieces[-1][0] == "complete"
    return recording


def _add(recording: Recording, what: str, body: bytes, status: str, errors: bytes) -> None:
    number = int(status) if status.isdecimal() else 1
    kind, _, name = what.partition(" ")
    result = CommandResult(
        status=None if number == _TIMED_OUT else number, stdout=body, stderr=errors.rstrip(b"\n")
    )
    if kind == "command":
        recording.commands[name] = result
    elif kind == "file":
        recording.files[name] = result
    elif kind == "pod" and name.isdecimal():
        recording.pods[int(name)] = tuple(body.decode(errors="replace").split())
    else:
        recording.facts[kind] = body


class Conversation:
    """What a node's shell is told behind its script: the chains to print next, and at last to end."""

    def __init__(self, node: str, script: RemoteScript, reach: Reach) -> None:
        self._node = node
        self._mark = script.mark
        self._reach = reach
        self._recording = Recording()
        self._heard: list[bytes] = []
        self._tail = b""  # of what was heard
        self._searches: list[tuple[str, Search]] | None = None

    def answer(self, printed: bytes) -> bytes:
        """What to say to the next piece of what the shell prints; nothing while it has not done."""
        self._heard.append(printed)
        self._tail = (self._tail + printed[-100:])[-100:]
        if not self._tail.replace(b"\r", b"").endswith(f"{self._mark} {_WAITING}\n".encode()):
            return b""  # a terminal, which is complained of later, puts returns into it
        parse_stream(b"".join(self._heard), self._mark, self._recording)
        self._heard, self._tail = [], b""
        if self._searches is None:
            runner = RecordedRunner(self._recording)
            commands = self._recording.facts.get("searched", b"").decode().split()
            self._searches = [
                (command, search_reachable(ChainReader(runner, command), self._node, self._reach))
                for command in commands
            ]
            for _, search in self._searches:
                next(search, ())  # FIRST_CHAINS, which the script has printed
        lines = [
            f"root {command} -t {table} -S {_quoted(chain)} -v"
            for command, search in self._searches
            for table, chain in next(search, ())
        ]
        if not lines:
            return b"line complete; exit\n"
        # A function, so that one that arrives cut does nothing.
        return "\n".join(
            ("ktp_more() {", *lines, f"line {_WAITING}", "}", "ktp_more </dev/null", "")
        ).encode()


class RecordedRunner:
    """A `ktp.collect.machine.CommandRunner` that answers from a recording."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._sysctls: dict[str, bytes] = {}
        for line in recording.facts.get("sysctls", b"").split(b"\n"):
            path, colon, value = line.partition(b":")
            if colon:
                # A value of several lines comes as several lines; these are all of one.
                self._sysctls[path.decode(errors="replace")] = value + b"\n"
        self._commands = frozenset(recording.facts.get("commands", b"").decode().split())
        self._paths = frozenset(recording.facts.get("paths", b"").decode().split())

    def run(self, command: Sequence[str], *, timeout: float) -> CommandResult:  # noqa: ARG002 - the protocol's
        """What the command printed on the node."""
        answer = self._recording.commands.get(" ".join(command))
        return answer or CommandResult(
            status=1, stderr=_CUT if not self._recording.complete else b"it was not run"
        )

    def has_command(self, name: str) -> bool:
        """Whether the node has the command; True where that did not arrive, so that its loss is told as such."""
        return name in self._commands or "commands" not in self._recording.facts

    def read_file(self, path: str) -> bytes:
        """The file's content on the node; OSError as `open` would raise it there."""
        if path in self._sysctls:
            return self._sysctls[path]
        answer = self._recording.files.get(path)
        if answer is None:
            if self._recording.complete:
                raise FileNotFoundError(2, "No such file or directory")
            raise OSError(5, _CUT.decode())
        if answer.status != 0:
            raise PermissionError(13, "Permission denied")
        return answer.stdout

    def list_folder(self, path: str) -> list[str]:
        """The names in a folder of sysctls."""
        prefix = path + "/"
        return sorted({key[len(prefix) :].split("/")[0] for key in self._sysctls if key.startswith(prefix)})

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder at `path`; True where that did not arrive."""
        if "paths" not in self._recording.facts:
            return True
        return path in self._paths or path in self._recording.files or path in self._sysctls

    def hostnames(self) -> tuple[str, ...]:
        """The node's name for itself."""
        return (self._recording.facts.get("hostname", b"").decode(errors="replace").strip(),)

    def namespaces(self, addresses: Sequence[str]) -> dict[str, int]:
        """For each address that a network namespace had, a process in it."""
        spelled = {in_proc(address): address for address in addresses}
        return {
            spelled[text]: pid
            for pid, texts in self._recording.pods.items()
            for text in texts
            if text in spelled
        }

    def agents_command(self) -> str:
        """As the script found it."""
        return self._recording.facts.get("agent", b"").decode(errors="replace").strip()

    def is_root(self) -> bool:
        """Whether what root alone may read could be read."""
        return self._recording.facts.get("uid", b"").strip() == b"0"


def why_cut(done: ChildResult, timeout: float) -> str:
    """Why an answer did not come to its end, behind "the answer of node X"."""
    if done.overflowed:
        return "is larger than ktp takes"
    return f"took longer than {timeout:g} s" if done.status is None else "broke off"


def collect_recorded(
    node: str,
    recording: Recording,
    *,
    reach: Reach | None,
    source: str,
    not_root: tuple[str, str],
    why_cut: str,
    pods: PodAddresses | None = None,
    counters: int = 0,
) -> MemoryCapture:
    """A node's files from a recording. One that is not complete costs one gap, which says `why_cut`."""
    runner = RecordedRunner(recording)
    read = collect_local_node(
        node, runner, reach=reach, source=source, not_root=not_root, pods=pods, counters=counters
    )
    if recording.complete:
        return read
    gap = EvidenceGap(
        "node-rules",
        node,
        f"the answer of node {node} {why_cut}, and only what came whole until then is used",
        remedy="try again, with a longer --timeout if the node is slow or large",
    )
    # What each command of those that did not arrive would say is said.
    kept = tuple(gap for gap in read.gaps if gap.cause is GapCause.NOT_INSTALLED)
    return MemoryCapture(files=read.files, gaps=(gap, *kept), source=read.source)
