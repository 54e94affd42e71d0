"""Runs a command under another Linux kernel: user-mode Linux, which has IPVS where this machine's kernel lacks it.

    python tests/support/user_mode_linux.py [--modules ip_vs,…] COMMAND…

The guest's root is this machine's own file system under an overlay that is gone afterwards, so that Python, the
tests and every installed tool are there and nothing that the guest writes stays. Debian's packages
`user-mode-linux ipvsadm busybox-static kmod` are all it needs: neither qemu nor /dev/kvm.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")
PACKAGES = ("user-mode-linux", "ipvsadm", "busybox-static", "kmod")

# Where the modules lie that a network namespace may want. All are loaded: with registers taken away (below) the kernel
# cannot start modprobe by itself.
_LOADED = (
    "net/netfilter", "net/ipv4/netfilter", "net/ipv6/netfilter", "net/ipv4/ipip", "net/ipv4/gre", "net/ipv4/ip_gre",
    "net/ipv6/sit", "net/ipv6/ipv6", "net/bridge",
    "drivers/net/veth", "drivers/net/dummy", "drivers/net/vxlan", "drivers/net/geneve",
    "net/ipv4/esp4", "net/xfrm", "crypto/authenc", "crypto/echainiv", "crypto/ecb",
)  # fmt: skip

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t tmpfs tmpfs {scratch}
$b mkdir -p {scratch}/up {scratch}/work {scratch}/root
/sbin/modprobe -d {modules} overlay
$b mount -t overlay overlay -o lowerdir=/,upperdir={scratch}/up,workdir={scratch}/work {scratch}/root
R={scratch}/root
for f in proc sysfs devtmpfs; do
    case $f in proc) d=proc ;; sysfs) d=sys ;; devtmpfs) d=dev ;; esac
    $b mount -t $f $f $R/$d
done
$b mkdir -p $R/dev/shm $R/dev/pts
$b mount -t tmpfs tmpfs $R/dev/shm
$b mount -t devpts devpts $R/dev/pts
$b mount -t tmpfs tmpfs $R/run
$b mkdir -p $R{job} $R/run/lock
$b mount -t hostfs -o {job} none $R{job}
$b mkdir -p $R/lib/modules
$b ln -s {modules}/lib/modules/$($b uname -r) $R/lib/modules/$($b uname -r)
$b chroot $R /bin/sh {job}/run.sh
echo $? > $R{job}/status
echo o > /proc/sysrq-trigger
$b sleep 60
"""

RUN = """export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
modprobe -aq {loaded}
cd {folder}
{environment}
{command}
"""


# PTRACE_GETREGSET is refused with EIO: load the number of the call and its first word, compare, allow the rest.
_PTRACE, _GETREGSET = 101, 0x4204
_NO_REGISTER_SETS = (
    (0x20, 0, 0, 0), (0x15, 0, 3, _PTRACE), (0x20, 0, 0, 16), (0x15, 0, 1, _GETREGSET), (0x06, 0, 0, 0x00050005),
    (0x06, 0, 0, 0x7FFF0000),
)  # fmt: skip
# Without register sets a page fault loses the upper halves of vectors: no program in the guest may use them.
_NO_VECTORS = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-AVX_Fast_Unaligned_Load",
    "OPENSSL_ia32cap": "~0x1000000000000000:~0x20",
}


class NoGuestError(Exception):
    """What is missing to start one, as a sentence."""


def missing() -> list[str]:
    """The packages that must be installed first."""
    here = {
        "user-mode-linux": shutil.which(KERNEL) is not None and MODULES.is_dir(),
        "ipvsadm": shutil.which("ipvsadm") is not None,
        "busybox-static": Path("/bin/busybox").exists(),
        "kmod": shutil.which("depmod") is not None,
    }
    return [name for name, there in here.items() if not there]


def modules_of(folder: Path) -> list[str]:
    """The modules of a kernel that a network namespace may want."""
    kernel = folder / "kernel"
    return sorted(
        each.name.partition(".")[0]
        for each in kernel.rglob("*.ko*")
        if each.relative_to(kernel).as_posix().startswith(_LOADED)
    )


def wide_registers() -> bool:
    """Whether this processor's extended state is larger than the 2,696 bytes that user-mode Linux 6.1 keeps (AMX).

    Linux sets a process's NT_X86_XSTATE from a buffer of the whole size alone, so that such a guest dies at its first
    process: "ptrace set fp regs failed, errno = 14". It falls back to PTRACE_GETFPREGS where register sets are refused.
    """
    return "amx_tile" in Path("/proc/cpuinfo").read_text().split()


def _refuse_register_sets() -> None:
    """A seccomp filter for this process and its children (seccomp(2), no_new_privs)."""
    code = b"".join(struct.pack("=HBBI", *each) for each in _NO_REGISTER_SETS)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HxxxxxxP", len(_NO_REGISTER_SETS), ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def run(
    command: list[str],
    *,
    memory: str = "1536M",
    environment: dict[str, str] | None = None,
    timeout: float = 1800,
) -> int:
    """Run `command` in the guest, in this process's working directory; its output goes to standard output as it comes.

    Returns its exit status. Raises NoGuestError where a guest cannot be started or ended without one.
    """
    if lacking := missing():
        raise NoGuestError(f"user-mode Linux needs the packages {' '.join(lacking)}")
    version = next(iter(sorted(p.name for p in MODULES.iterdir())), "")
    with tempfile.TemporaryDirectory(prefix="ktp-uml-", dir="/var/tmp") as folder:
        job = Path(folder)
        modules = job / "modules"
        (modules / "lib").mkdir(parents=True)
        shutil.copytree(MODULES, modules / "lib" / "modules")
        subprocess.run(["depmod", "-b", str(modules), version], check=True, capture_output=True)
        wide = wide_registers()
        exported = {**(environment or {}), **(_NO_VECTORS if wide else {})}
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in exported.items())
        (job / "run.sh").write_text(
            RUN.format(
                loaded=" ".join(modules_of(MODULES / version)),
                folder=shlex.quote(os.getcwd()),
                environment=exports,
                command=shlex.join(command),
            )
        )
        init = job / "init"
        init.write_text(_INIT.format(scratch="/mnt", modules=modules, job=job))
        init.chmod(0o755)
        guest = [
            KERNEL, f"mem={memory}", "root=/dev/root", "rootfstype=hostfs", "hostfs=/", "ro", "quiet", f"init={init}",
            "con=null", "con0=null,fd:1", "ssl=null", f"umid={job.name}",
            *(f"{k}={v}" for k, v in (_NO_VECTORS if wide else {}).items()),
        ]  # fmt: skip
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else folder
        try:
            subprocess.run(
                guest, check=False, timeout=timeout, stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": shared},
                preexec_fn=_refuse_register_sets if wide else None,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise NoGuestError(f"the guest did not end within {timeout:.0f} s") from error
        status = job / "status"
        if not status.exists():
            raise NoGuestError("the guest ended without an exit status")
        return int(status.read_text())


def told(parser: argparse.ArgumentParser, start: Callable[..., int], *, timeout: float) -> int:
    """The command line of a guest: what `parser` has, environment, time limit, command. The exit status."""
    parser.add_argument("--timeout", type=float, default=timeout)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    words = parser.parse_args()
    environment = dict(each.split("=", 1) for each in words.env)
    command = words.command[words.command[:1] == ["--"] :]
    try:
        return start(words, command, environment=environment, timeout=words.timeout)
    except NoGuestError as error:
        sys.stderr.write(f"{error}\n")
        return 3


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", default="1536M")
    return told(parser, lambda words, command, **how: run(command, memory=words.memory, **how), timeout=1800)


if __name__ == "__main__":
    sys.exit(main())
