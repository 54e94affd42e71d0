"""Runs a command under a whole Debian kernel in qemu, which needs no /dev/kvm: ten times slower than this machine.

    python tests/support/whole_kernel.py --suite trixie -- COMMAND…

The kernel's package of that suite is downloaded and unpacked, not installed. The guest's root is this machine's own file
system under an overlay, as in `user_mode_linux.py`. Debian's packages `qemu-system-x86 busybox-static kmod cpio xz-utils`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from user_mode_linux import RUN, NoGuestError, modules_of, told

QEMU = "qemu-system-x86_64"
PACKAGES = ("qemu-system-x86", "busybox-static", "kmod", "cpio", "xz-utils")
# What mounts the root, with what they need; the job's modules are loaded from there.
_FIRST = ("virtio_pci", "9pnet_virtio", "9p", "overlay")

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /host /up /new
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for m in {first}; do $b insmod /modules/$m; done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=loose,ro root /host
$b mount -t tmpfs tmpfs /up
$b mkdir -p /up/up /up/work
$b mount -t overlay overlay -o lowerdir=/host,upperdir=/up/up,workdir=/up/work /new
$b mount -t proc proc /new/proc
$b mount -t sysfs sysfs /new/sys
$b mount -t devtmpfs devtmpfs /new/dev
$b mkdir -p /new/dev/shm /new/dev/pts
$b mount -t tmpfs tmpfs /new/dev/shm
$b mount -t devpts devpts /new/dev/pts
$b mount -t tmpfs tmpfs /new/run
$b mkdir -p /new{job} /new/lib/modules
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 job /new{job}
$b ln -s {modules} /new/lib/modules/$($b uname -r)
echo /modprobe > /proc/sys/kernel/modprobe
$b chroot /new /bin/sh {job}/run.sh > /dev/ttyS0 2>&1
echo $? > /new{job}/status
$b sync
$b poweroff -f
"""
_MODPROBE = '#!/bin/busybox sh\nexec /bin/busybox chroot /new /sbin/modprobe "$@"\n'


def _run(*words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode != 0:
        raise NoGuestError(f"{words[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def fetch(suite: str, into: Path) -> tuple[Path, Path]:
    """The kernel and the folder of the modules of the newest generic kernel of a Debian suite, in `into`."""
    mirrors = _run(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"
    ).split("\n")
    mirror = next((line.split()[0] for line in mirrors if line.endswith(" main")), None)
    if mirror is None:
        raise NoGuestError("apt-get has no mirror to take a kernel from: run apt-get update")
    for folder in ("lists/partial", "cache/archives/partial"):
        (into / folder).mkdir(parents=True)
    (into / "list").write_text(
        f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n"
    )
    options = [
        "-o", f"Dir::Etc::SourceList={into}/list", "-o", "Dir::Etc::SourceParts=/dev/null",
        "-o", f"Dir::State::Lists={into}/lists", "-o", f"Dir::Cache={into}/cache",
    ]  # fmt: skip
    _run("apt-get", *options, "-qq", "update")
    depends = _run("apt-cache", *options, "depends", "linux-image-amd64")
    names = re.findall(r"(linux-(?:image|binary|modules)-\d\S+)", depends)
    if not names:
        raise NoGuestError(f"{suite} has no generic kernel")
    version = re.sub(r"^linux-(?:image|binary|modules)-", "", names[0])
    # Since 7.x the image's package holds nothing: what does is beside it.
    parts = [f"linux-{part}-{version}" for part in ("image", "binary", "modules")]
    told = subprocess.run(
        ["apt-cache", *options, "show", *parts], capture_output=True, text=True, check=False
    ).stdout
    known = sorted(set(re.findall(r"^Package: (\S+)$", told, re.MULTILINE)))
    _run("apt-get", *options, "download", *known, cwd=into)
    for package in into.glob("*.deb"):
        _run("dpkg-deb", "-x", str(package), str(into / "kernel"))
    unpacked = into / "kernel"
    kernel = next(
        itertools.chain(unpacked.glob("boot/vmlinuz-*"), unpacked.glob("usr/lib/modules/*/vmlinuz")), None
    )
    modules = next(unpacked.glob("**/lib/modules/*"), None)
    if kernel is None or modules is None:
        raise NoGuestError(f"the packages of {version} hold no kernel or no modules")
    return kernel, modules


def _initramfs(job: Path, modules: Path) -> Path:
    """busybox, the modules that mount the root, and the init script."""
    root = job / "initramfs"
    (root / "bin").mkdir(parents=True)
    (root / "modules").mkdir()
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    _run("depmod", "-b", str(modules.parents[2]), modules.name)
    needed: list[str] = []
    lines = (modules / "modules.dep").read_text().splitlines()
    depends = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    for name in _FIRST:
        path = next((p for p in depends if Path(p).name.partition(".")[0] == name), None)
        for each in (
            [*reversed(depends[path]), path] if path is not None else []
        ):  # built in where there is none
            if each not in needed:
                needed.append(each)
    names = []
    for number, each in enumerate(needed):
        name = f"{number:02}-{Path(each).name.partition('.')[0]}.ko"
        content = (modules / each).read_bytes()
        if each.endswith(".xz"):
            content = subprocess.run(["xz", "-dc"], input=content, capture_output=True, check=True).stdout
        (root / "modules" / name).write_bytes(content)
        names.append(name)
    init = root / "init"
    init.write_text(_INIT.format(first=" ".join(names), job=job, modules=modules))
    (root / "modprobe").write_text(_MODPROBE)
    init.chmod(0o755)
    (root / "modprobe").chmod(0o755)
    image = job / "initrd"
    _run(
        "sh",
        "-c",
        f"cd {shlex.quote(str(root))} && find . | cpio -o -H newc --quiet > {shlex.quote(str(image))}",
    )
    return image


def run(
    suite: str, command: list[str], *, environment: dict[str, str] | None = None, timeout: float = 3000
) -> int:
    """Run `command` under the kernel of `suite`, in this process's working directory. Its exit status.

    Raises NoGuestError where the kernel cannot be had or the guest ends without one.
    """
    lacking = [tool for tool in (QEMU, "cpio", "xz", "depmod", "/bin/busybox") if shutil.which(tool) is None]
    if lacking:
        raise NoGuestError(f"{', '.join(lacking)} missing; install the packages {' '.join(PACKAGES)}")
    with tempfile.TemporaryDirectory(prefix="ktp-kernel-", dir="/var/tmp") as folder:
        job = Path(folder)
        kernel, modules = fetch(suite, job / "fetched")
        initrd = _initramfs(job, modules)
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in (environment or {}).items())
        (job / "run.sh").write_text(
            RUN.format(
                loaded=" ".join(modules_of(modules)), folder=shlex.quote(os.getcwd()), environment=exports,
                command=shlex.join(command),
            )
        )  # fmt: skip
        guest = [
            QEMU, "-accel", "tcg,thread=multi", "-m", "2048", "-smp", "2", "-nographic", "-no-reboot", "-net", "none",
            "-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1",
            "-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
            "-virtfs", f"local,path={job},mount_tag=job,security_model=none",
        ]  # fmt: skip
        try:
            subprocess.run(guest, check=False, timeout=timeout, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as error:
            raise NoGuestError(f"the guest did not end within {timeout:.0f} s") from error
        status = job / "status"
        if not status.exists():
            raise NoGuestError("the guest ended without an exit status")
        return int(status.read_text())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="trixie")
    return int(told(parser, lambda words, command, **how: run(words.suite, command, **how), timeout=3000))


if __name__ == "__main__":
    sys.exit(main())
