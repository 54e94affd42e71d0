"""The container image: built by the Containerfile, and run as the DaemonSet runs it.

Where no registry is at hand the base is a root file system that mmdebstrap makes. `make test-image` runs this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ktp
from tests.support.node_netns import become_node

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("buildah") is None or shutil.which("mmdebstrap") is None,
        reason="needs buildah and mmdebstrap",
    ),
]

REPOSITORY = Path(__file__).resolve().parents[2]
RULES = REPOSITORY / "ktp" / "demo" / "article" / "nodes" / "node-b" / "iptables-legacy-save.txt"
SUITE = os.environ.get("KTP_IMAGE_SUITE", "bookworm")
PACKAGES = (
    "ca-certificates,conntrack,ethtool,iproute2,ipset,iptables,ipvsadm,nftables,procps,python3,python3-venv"
)
# As the kubelet starts a container of the DaemonSet: its root, two capabilities, nothing to write to.
AS_A_POD = """
set -e
mount --make-rprivate /
mount --bind "$0" "$0"; mount -o remount,ro,bind "$0"
mount -t proc proc "$0/proc"; mount -t sysfs sysfs "$0/sys"
exec chroot "$0" setpriv --bounding-set=-all,+net_admin,+net_raw env -i PATH=/opt/ktp/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file system of the image."""
    store = tmp_path_factory.mktemp("containers")
    base = store / "base.tar"

    def buildah(*words: str) -> str:
        command: list[str | Path] = [
            "buildah",
            "--root",
            store / "root",
            "--runroot",
            store / "run",
            "--storage-driver",
            "vfs",
            *words,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, check=False,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()

    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, base], check=True
    )
    scratch = buildah("from", "scratch")
    buildah("add", "-q", scratch, str(base), "/")
    buildah("commit", "-q", scratch, "localhost/base")
    base.unlink()
    mounts = [f"-v={path}:{path}:ro" for path in ("/etc/pip.conf", "/etc/ssl/certs") if Path(path).exists()]
    buildah(
        "build",
        "-q",
        "--network=host",
        "--build-arg=BASE=localhost/base",
        *mounts,
        "-f=Containerfile",
        "-t=ktp",
        ".",
    )
    container = buildah("from", "localhost/ktp")
    try:
        yield Path(buildah("mount", container))
    finally:
        buildah("umount", container)
        shutil.rmtree(store, ignore_errors=True)


def in_a_pod(root: Path, netns: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", netns, "unshare", "-m", "sh", "-c", AS_A_POD, str(root), *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def node(make_netns: Callable[[str], str]) -> str:
    netns = make_netns("image")
    become_node(netns, "10.0.0.10", RULES)
    return netns


def test_two_capabilities_and_no_place_to_write_are_enough(root: Path, node: str) -> None:
    rights = in_a_pod(root, node, "grep", "CapEff", "/proc/self/status")
    assert rights.stdout.split() == ["CapEff:", "0000000000003000"]
    assert in_a_pod(root, node, "touch", "/x").returncode != 0
    for netns_rules in ("legacy", "nft"):
        if netns_rules == "nft":
            subprocess.run(["ip", "netns", "exec", node, "nft", "add", "table", "inet", "own"], check=True)
        found = in_a_pod(root, node, "ktp", "explain-rules", "--node-port", "31015")
        assert found.returncode == 1, found.stderr
        assert "DROPPED: the client's connection attempts time out" in found.stdout
    assert in_a_pod(root, node, "ktp", "--version").stdout.strip() == f"ktp, version {ktp.__version__}"


def test_it_holds_what_a_node_is_read_by(root: Path, node: str) -> None:
    for command in (
        "iptables-legacy-save", "iptables-nft-save", "ip6tables-legacy-save", "ip6tables-nft-save", "nft", "ipset",
        "ipvsadm", "ip", "bridge", "ss", "sysctl", "conntrack", "ethtool",
    ):  # fmt: skip
        assert in_a_pod(root, node, "sh", "-c", f"command -v {command}").returncode == 0, command
    assert "kind: DaemonSet" in in_a_pod(root, node, "ktp", "fleet", "manifest").stdout
    assert in_a_pod(root, node, "/opt/ktp/bin/python", "-c", "import prometheus_client").returncode == 0
