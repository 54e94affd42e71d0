"""Nodes by SSH, through the system's OpenSSH client: one connection for each.

The client is run as the user runs it, so ~/.ssh/config, agents, jump hosts and ControlMaster apply. It is never
told to accept a host key; with BatchMode it asks nobody, and what it would have asked becomes a sentence.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ktp.collect.children import Answer, ChildResult, ending_children, run_child
from ktp.collect.objects import items_of
from ktp.collect.parallel import OnProgress, run_each
from ktp.collect.remote_script import (
    Conversation,
    Recording,
    build_script,
    collect_recorded,
    parse_stream,
    why_cut,
)
from ktp.errors import EvidenceError, UsageError
from ktp.model.capture import Capture, EvidenceGap, MemoryCapture, merge_captures
from ktp.model.cluster import is_address
from ktp.model.record import dataclass

if TYPE_CHECKING:
    from ktp.collect.nft_chains import Reach
    from ktp.collect.pod_namespaces import PodAddresses

PARALLEL = 16
TIMEOUT = 120.0
CONNECT_TIMEOUT = 10
# The part of a node's time that connecting may take; the commands on the node have the rest.
CONNECT_SHARE = 5.0
_CONFIG_TIMEOUT = 10.0

# A Node's name is a DNS subdomain (Kubernetes: apimachinery IsDNS1123Subdomain); a host name may hold a bit more.
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_USER_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\$+-]*")
_ADDRESS_ORDER = ("Hostname", "InternalIP", "InternalDNS", "ExternalIP", "ExternalDNS")
# No such host, so what `ssh -G` says of it is what it says of every host that the user did not configure.
_NOBODY = "ktp-no-such-host.invalid"
_NOT_COMPARED = frozenset({"host", "hostname", "controlpath", "localcommand", "remotecommand"})

# Forced, whatever the configuration says: these would ask, open or run something that the question does not need.
_FORCED = (
    "-T", "-a", "-x",
    "-o", "BatchMode=yes",
    "-o", "RemoteCommand=none",
    "-o", "ClearAllForwardings=yes",
    "-o", "PermitLocalCommand=no",
    "-o", "EscapeChar=none",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSettings:
    """How to log in to nodes. `options` are ssh's own, KEY=VALUE each; `program` the client with leading options.

    Raises UsageError where a value cannot be what it is meant to be.
    """

    user: str | None = None
    options: tuple[str, ...] = ()
    sudo: bool = False
    parallel: int = PARALLEL
    timeout: float = TIMEOUT
    program: tuple[str, ...] = ("ssh",)
    counters: int = 0  # seconds between two readings of the kernel's counters; 0: none

    def __post_init__(self) -> None:
        """Check what could be taken for something else on ssh's command line."""
        if self.user is not None and not _USER_NAME.fullmatch(self.user):
            raise UsageError(f"--ssh-user {self.user!r} is no user name", hint="as in --ssh-user root")
        for option in self.options:
            if not re.match(r"[A-Za-z]\w*[= ]", option):
                raise UsageError(
                    f"--ssh-option {option!r} is not of the form KEY=VALUE",
                    hint="as in --ssh-option Port=2222",
                )

    def arguments(self) -> tuple[str, ...]:
        """ssh's options, those of the user before the defaults: of one option the first counts."""
        options = [word for option in self.options for word in ("-o", option)]
        user = ("-l", self.user) if self.user is not None else ()
        connect = ("-o", f"ConnectTimeout={max(1, min(CONNECT_TIMEOUT, int(self.timeout)))}")
        return (*self.program, *_FORCED, *options, *connect, *user)


def collect_over_ssh(
    capture: Capture,
    nodes: Sequence[str],
    settings: SshSettings,
    *,
    reach: Reach | None = None,
    pods: Mapping[str, PodAddresses] | None = None,
    on_progress: OnProgress | None = None,
) -> MemoryCapture:
    """What `nodes` say about themselves; `capture` has their addresses in cluster/nodes.json.

    `pods` are those of each node whose network namespaces are read, too.

    A node that cannot be read is a gap. Raises EvidenceError only if there is no ssh client.
    """
    addresses = node_addresses(capture)
    visitor = Visitor(settings, reach, pods)
    return read_each(
        nodes,
        lambda node: visitor.visit(node, addresses.get(node, ())),
        parallel=settings.parallel,
        on_progress=on_progress,
        how="by ssh",
    )


def read_each(
    nodes: Sequence[str],
    visit: Callable[[str], MemoryCapture],
    *,
    parallel: int,
    on_progress: OnProgress | None,
    how: str,
) -> MemoryCapture:
    """What `visit` reads of each node, several at once, and told to `on_progress`."""
    with ending_children():
        if on_progress is not None:
            on_progress(0, len(nodes), "")
        captures = run_each(nodes, visit, workers=parallel, on_progress=on_progress)
    count = f"{len(nodes)} nodes" if len(nodes) != 1 else f"node {nodes[0]}"
    return merge_captures(*captures, source=f"{count} {how}")


def node_addresses(capture: Capture) -> dict[str, tuple[str, ...]]:
    """The names and addresses of every Node in cluster/nodes.json, the likeliest to be reachable first."""
    found: dict[str, tuple[str, ...]] = {}
    for item in items_of(capture, "cluster/nodes.json"):
        try:
            name = str(item["metadata"]["name"])
            listed: list[dict[str, Any]] = (item.get("status") or {}).get("addresses") or []
            entries = [entry for entry in listed if entry.get("type") in _ADDRESS_ORDER]
        except (KeyError, TypeError, AttributeError):
            continue
        entries.sort(key=lambda entry: _ADDRESS_ORDER.index(entry["type"]))
        found[name] = tuple(str(entry.get("address")) for entry in entries)
    return found


class Visitor:
    """Reads nodes, one at a call, from several threads."""

    def __init__(
        self, settings: SshSettings, reach: Reach | None, pods: Mapping[str, PodAddresses] | None = None
    ) -> None:
        self._settings = settings
        self._pods = pods or {}
        self._reach = reach
        self._arguments = settings.arguments()
        # The only way to ask somebody without a terminal; a jump host's client does not know of BatchMode.
        self._environment = {**os.environ, "LC_ALL": "C", "SSH_ASKPASS_REQUIRE": "never"}
        self._environment.pop("SSH_ASKPASS", None)
        self._unconfigured: dict[str, str] | None = None
        self._lock = threading.Lock()

    def visit(self, node: str, addresses: Sequence[str]) -> MemoryCapture:
        """What one node says, or the gap that says why not."""
        if not is_host(node):
            return _gap(
                node,
                f"{node!r} is no host name, and so ktp did not connect to it",
                "see who could give a Node such a name",
            )
        destination = self._destination(node, [address for address in addresses if is_host(address)])
        settings = self._settings
        script = build_script(
            sudo=settings.sudo,
            reach=self._reach,
            command_timeout=max(1.0, settings.timeout - min(CONNECT_SHARE, settings.timeout / 2)),
            pods=self._pods.get(node, ()),
            counters=settings.counters,
        )
        talk = Conversation(node, script, self._reach).answer if self._reach is not None else None
        done = self._run((*self._arguments, "--", destination, "sh -s"), settings.timeout, script.text, talk)
        recording = parse_stream(done.stdout, script.mark)
        if not recording.started:
            return _gap(node, *self._connection_problem(node, destination, done))
        return self._read(node, destination, recording, done)

    def run_script(
        self, node: str, addresses: Sequence[str], script: bytes, *, timeout: float
    ) -> ChildResult | EvidenceGap:
        """Run a shell script on a node; the gap where it did not run. A script prints something at once."""
        if not is_host(node):
            return EvidenceGap("probe", node, f"{node!r} is no host name")
        destination = self._destination(node, [address for address in addresses if is_host(address)])
        done = self._run((*self._arguments, "--", destination, "sh -s"), timeout, script)
        if done.stdout:
            return done
        message, remedy = self._connection_problem(node, destination, done)
        return EvidenceGap("probe", node, message, remedy=remedy)

    def _run(
        self, command: Sequence[str], timeout: float, stdin: bytes = b"", answer: Answer | None = None
    ) -> ChildResult:
        environment = self._environment
        try:
            return run_child(
                command, timeout=timeout, stdin=stdin, answer=answer, environment=environment, spare=True
            )
        except OSError as error:
            raise EvidenceError(
                f"the SSH client {command[0]!r} cannot be run: {(error.strerror or str(error)).lower()}",
                hint="install openssh-client, or choose another --node-access",
            ) from None

    # ------------------------------------------------------------------------------------------- where to

    def _destination(self, node: str, addresses: Sequence[str]) -> str:
        """The name or address that the user's configuration or known hosts have, else the first IP address.

        A Node's name need not resolve from here, and its address need not be in known_hosts.
        """
        candidates = list(dict.fromkeys((node, *addresses)))
        if len(candidates) == 1:
            return node
        configurations = {host: self._configuration(host) for host in candidates}
        with self._lock:
            if self._unconfigured is None:
                self._unconfigured = self._configuration(_NOBODY)
            nobody = self._unconfigured
        for host, configuration in configurations.items():
            name = configuration.get("hostname", host)
            if (name.lower() != host.lower() and name != nobody.get("hostname")) or any(
                configuration.get(key) != nobody.get(key) for key in {*configuration, *nobody} - _NOT_COMPARED
            ):
                return host
        for host, configuration in configurations.items():
            if self._is_known(host, configuration):
                return host
        return next((host for host in candidates if is_address(host)), node)

    def _configuration(self, host: str) -> dict[str, str]:
        """What `ssh -G` says of a host, by option; options that come several times are joined."""
        done = self._run((*self._arguments, "-G", "--", host), _CONFIG_TIMEOUT)
        found: dict[str, str] = {}
        for line in done.stdout.decode(errors="replace").splitlines():
            key, _, value = line.partition(" ")
            found[key] = f"{found[key]}\n{value}" if key in found else value
        return found

    def _is_known(self, host: str, configuration: dict[str, str]) -> bool:
        """Whether one of the known_hosts files has a key of this host, also where names are hashed."""
        name = configuration.get("hostkeyalias", "")
        if not name:
            port = configuration.get("port", "22")
            name = host if port == "22" else f"[{host}]:{port}"
        files = (
            f"{configuration.get('userknownhostsfile', '')} {configuration.get('globalknownhostsfile', '')}"
        )
        for file in map(os.path.expanduser, files.split()):
            if os.path.exists(file):
                done = self._run(("ssh-keygen", "-F", name, "-f", file), _CONFIG_TIMEOUT)
                if done.status == 0 and done.stdout:
                    return True
        return False

    # ------------------------------------------------------------------------------------------ what came

    def _read(self, node: str, destination: str, recording: Recording, done: ChildResult) -> MemoryCapture:
        """The node's files, and a gap for what a broken connection or a missing right cost."""
        return collect_recorded(
            node,
            recording,
            reach=self._reach,
            source=f"node {node} (ssh {destination})",
            not_root=self._not_root(node, recording),
            why_cut=why_cut(done, self._settings.timeout),
            pods=self._pods.get(node),
            counters=self._settings.counters,
        )

    def _not_root(self, node: str, recording: Recording) -> tuple[str, str]:
        said = recording.refused_by_sudo
        lost = f"and so the packet rules of node {node} cannot be read"
        if said is None:
            user = f"the user {self._settings.user}" if self._settings.user else "the user of the SSH login"
            return f"{user} is not root, {lost}", "give --sudo, or --ssh-user root"
        if re.search(r"password is required|terminal is required|no tty present|askpass", said):
            return (
                f"sudo on node {node} asks for a password, {lost}",
                "let sudo run iptables-save and the like without one (NOPASSWD), or give --ssh-user root",
            )
        if re.search(r"not found|No such file", said):
            return f"there is no sudo on node {node}, {lost}", "give --ssh-user root"
        return (
            f"sudo on node {node} refuses ({short(said)}), {lost}",
            "ask for the right, or give --ssh-user root",
        )

    def _connection_problem(self, node: str, destination: str, done: ChildResult) -> tuple[str, str]:
        """The sentence and the remedy for a node that gave no answer at all."""
        where = f"node {node}" if destination == node else f"node {node} ({destination})"
        said = done.stderr.decode(errors="replace")
        by_hand = f"connect once by hand: ssh {destination}"
        for pattern, message, remedy in _PROBLEMS:
            if re.search(pattern, said):
                return message.format(where=where), remedy.format(by_hand=by_hand, destination=destination)
        if done.status is None:
            return (
                f"{where} did not answer within {self._settings.timeout:g} s over ssh",
                f"{by_hand}; --timeout gives it longer",
            )
        last = short(said.strip().rpartition("\n")[2])
        if done.status == 255:
            return f"ssh to {where} failed: {last or 'it says no reason'}", by_hand
        printed = short(done.stdout.decode(errors="replace").strip().partition("\n")[0])
        return (
            f"{where} lets ssh in but runs no shell script "
            f"(exit status {done.status}: {last or printed or 'no output'})",
            f"see what `ssh {destination} sh -s` says",
        )


# In order: what OpenSSH says (sshconnect.c, readconf.c, ssh.c), the sentence, the remedy.
_PROBLEMS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .*has changed",
        "the host key of {where} is not the one in known_hosts: the node was reinstalled, or another machine answers",
        "compare the key with the node's own, and only then remove the old one: ssh-keygen -R {destination}",
    ),
    (
        r"key .*is revoked|REVOKED HOST KEY",
        "the host key of {where} is marked as revoked",
        "do not connect to it",
    ),
    (
        r"host key is known for|Host key verification failed",
        "the host key of {where} is not known, and ktp accepts none by itself",
        "{by_hand}, and compare the fingerprint that it shows",
    ),
    (
        r"Too many authentication failures",
        "{where} refused the login after too many keys were tried",
        "name the right key: --ssh-option IdentityFile=FILE --ssh-option IdentitiesOnly=yes",
    ),
    (
        r"Permission denied \(",
        "{where} refused the login: no key that ssh offers is accepted there",
        "give --ssh-user, or the key by --ssh-option IdentityFile=FILE; {by_hand}",
    ),
    (
        r"Could not resolve hostname",
        "the name of {where} does not resolve here",
        "add it to ~/.ssh/config with its HostName",
    ),
    (
        r"[Cc]onnection timed out|Operation timed out|timed out during banner exchange",
        "{where} does not answer on its SSH port",
        "see whether it is reachable from here, or goes through a jump host: --ssh-option ProxyJump=HOST",
    ),
    (
        r"Connection refused",
        "{where} refuses connections to its SSH port",
        "see whether sshd runs there; {by_hand}",
    ),
    (
        r"No route to host|Network is unreachable",
        "there is no route from here to {where}",
        "go through a host that has one: --ssh-option ProxyJump=HOST",
    ),
    (
        r"Bad configuration option|[Uu]nsupported option|Bad owner or permissions|extra arguments|missing argument",
        "ssh does not accept its configuration or an --ssh-option, and so {where} was not read",
        "see what `ssh {destination}` says",
    ),
)


def is_host(text: str) -> bool:
    """Whether `text` can only be a host name or an IP address: no option, no URI, nothing that ssh expands."""
    return _HOST_NAME.fullmatch(text) is not None or is_address(text)


def short(text: str) -> str:
    """What a program said, as part of a sentence."""
    return " ".join(text.split()).rstrip(".")[:200]


def _gap(node: str, message: str, remedy: str) -> MemoryCapture:
    gap = EvidenceGap("node-rules", node, message, remedy=remedy)
    return MemoryCapture(files={}, gaps=(gap,), source=f"node {node} (ssh)")


def all_nodes(capture: Capture, chosen: Iterable[str]) -> tuple[str, ...]:
    """The chosen nodes, or every Node of the capture."""
    chosen = tuple(dict.fromkeys(chosen))
    return chosen or tuple(node_addresses(capture))
