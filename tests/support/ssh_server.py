"""A real sshd with keys of its own on the loopback interface, and nodes that are an sshd in namespaces of their own.

Nothing of the machine's own SSH configuration, keys or known hosts is used or changed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SSHD = shutil.which("sshd", path="/usr/sbin:/sbin") or ""
USER = "ktpuser"
USER_ID = 64999


def why_no_sshd() -> str | None:
    """Says why there can be no sshd here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("ssh", "ssh-keygen", "unshare") if shutil.which(name) is None]
    if not SSHD:
        missing.append("sshd")
    return f"needs the commands {', '.join(missing)}" if missing else None


class SshLab:
    """Keys, a client configuration, a daemon, and nodes that exist while somebody is connected to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "sshd.log"
        folder.chmod(0o755)  # sshd reads authorized_keys as the user who logs in
        for name in ("host", "other_host", "client", "stranger"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)],
                check=True,
            )
        shutil.copy(folder / "client.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.config = folder / "ssh_config"
        self._hosts: list[str] = []
        self._write_server_config("sshd_config", folder)
        self.write_known_hosts("host")
        self._write_client_config()

    # ---------------------------------------------------------------------------------------------- the client

    @property
    def program(self) -> tuple[str, ...]:
        """The client with a configuration of its own and nothing of the machine's."""
        return ("ssh", "-F", str(self.config))

    def write_known_hosts(self, *keys: str) -> None:
        """Have the client know these keys for every host."""
        lines = ["ktp-lab " + " ".join((self.folder / f"{key}.pub").read_text().split()[:2]) for key in keys]
        (self.folder / "known_hosts").write_text("".join(f"{line}\n" for line in lines))

    def add_host(self, name: str, *lines: str) -> None:
        """Configure one host for the client; what is said first counts."""
        self._hosts.append("\n  ".join((f"Host {name}", *lines)))
        self._write_client_config()

    @contextmanager
    def more_hosts(self) -> Iterator[None]:
        """Hosts that are configured within the block are forgotten after it."""
        before = list(self._hosts)
        try:
            yield
        finally:
            self._hosts = before
            self._write_client_config()

    def _write_client_config(self) -> None:
        common = (
            "Host *",
            "HostName 127.0.0.1",
            f"Port {self.port}",
            "User root",
            f"IdentityFile {self.folder / 'client'}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            f"UserKnownHostsFile {self.folder / 'known_hosts'}",
            "GlobalKnownHostsFile /dev/null",
            "HostKeyAlias ktp-lab",
        )
        self.config.write_text("\n".join((*self._hosts, "\n  ".join(common))) + "\n")

    # ---------------------------------------------------------------------------------------------- the servers

    def _write_server_config(self, name: str, seen_at: Path, *lines: str) -> Path:
        path = self.folder / name
        text = f"""
            Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {seen_at / "host"}
            AuthorizedKeysFile {seen_at / "authorized_keys"}
            StrictModes no
            UsePAM no
            PermitRootLogin prohibit-password
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            MaxStartups 200
            MaxSessions 200
            PidFile none
            PrintMotd no
            Subsystem sftp internal-sftp
        """
        path.write_text("\n".join([*(line.strip() for line in text.splitlines()), *lines]) + "\n")
        return path

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """An sshd that listens on 127.0.0.1."""
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                        break
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(5)

    def node(
        self,
        name: str,
        *,
        netns: str | None = None,
        user: str = "root",
        path_first: Path | None = None,
        setup: str = "",
        after: str = "",
        client: tuple[str, ...] = (),
    ) -> Path:
        """A host whose sshd runs for each connection, in a network and a mount namespace of its own.

        Its /tmp, /var/tmp, /dev/shm and home folder are one folder, which is returned. `setup` is run before sshd,
        `after` gets what sshd sends (`| head -c 1000`), `path_first` comes first in the PATH of logins.
        """
        scratch = self.folder / f"scratch-{name}"
        scratch.mkdir(mode=0o777)
        scratch.chmod(0o1777)
        seen_at = Path("/mnt")
        lines = [
            f"SetEnv PATH={'/mnt/' + path_first.name + ':' if path_first else ''}/usr/bin:/bin:/usr/sbin:/sbin"
        ]
        config = self._write_server_config(f"sshd_config-{name}", seen_at, *lines)
        passwd = self.folder / "passwd"
        if not passwd.exists():
            kept = [
                line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")
            ]
            passwd.write_text(
                "\n".join(["root:x:0:0:root:/tmp:/bin/sh", *kept, f"{USER}:x:{USER_ID}:65534::/tmp:/bin/sh"])
                + "\n"
            )
            shutil.copy(SSHD, self.folder / "sshd")
        script = self.folder / f"start-{name}.sh"
        script.write_text(
            f"""
            set -e
            mount --bind {shlex.quote(str(self.folder))} /mnt
            mount --bind /mnt/passwd /etc/passwd
            for place in /tmp /var/tmp /dev/shm; do mount --bind /mnt/{scratch.name} $place; done
            {setup}
            exec 2>>/mnt/{self.log.name}
            /mnt/sshd -i -e -f /mnt/{config.name} {after}
            """
        )
        inside = f"unshare -m --propagation private sh {script}"
        command = f"ip netns exec {netns} {inside}" if netns else inside
        self.add_host(name, f"ProxyCommand {command}", f"User {user}", *client)
        return scratch
