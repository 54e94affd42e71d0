"""Writes the archive and the manifest by which krew installs ktp: `python tools/gen_krew.py dist/ktp.pyz REPOSITORY`.

`dist/kubectl-ktp.tar.gz` holds the one file that `make pyz` built and the licence, `dist/ktp.yaml` is the manifest of
that version. REPOSITORY is where releases are, https://github.com/OWNER/NAME. Try it with
`kubectl krew install --manifest=dist/ktp.yaml --archive=dist/kubectl-ktp.tar.gz`.

The form is that of krew's developer guide ("Writing Krew plugin manifests").
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from ktp import __version__  # noqa: E402

ARCHIVE, MANIFEST = "kubectl-ktp.tar.gz", "ktp.yaml"
_DESCRIPTION = """\
Reads Services, Pods, EndpointSlices and Nodes, and the packet rules of nodes (iptables, nftables, IPVS, Cilium's maps),
walks the packets of each kind of client, and says why a NodePort or load-balancer port does not answer: on which node,
by which rule, for whom, and what would mend it. It only reads.
"""
_CAVEATS = """\
ktp runs on Python 3.10 or newer, as `python3`.
Nodes are read where you ask for it: kubectl ktp diagnose svc NAME --node-access agent (or ssh).
"""


def archive_of(pyz: bytes, licence: bytes) -> bytes:
    """A tar.gz of the program and its licence, the same bytes for the same content."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content, mode in (("kubectl-ktp", pyz, 0o755), ("LICENSE", licence, 0o644)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as stream:
        stream.write(plain.getvalue())
    return packed.getvalue()


def manifest_of(archive: bytes, repository: str, version: str = __version__) -> dict[str, Any]:
    """The manifest of a release whose archive that is. Python runs where there is a shell: Linux and macOS."""
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "ktp"},
        "spec": {
            "version": f"v{version}",
            "homepage": repository,
            "shortDescription": "Tells why a NodePort or load-balancer port does not answer",
            "description": _DESCRIPTION,
            "caveats": _CAVEATS,
            "platforms": [
                {
                    "selector": {
                        "matchExpressions": [{"key": "os", "operator": "In", "values": ["darwin", "linux"]}]
                    },
                    "uri": f"{repository}/releases/download/v{version}/{ARCHIVE}",
                    "sha256": hashlib.sha256(archive).hexdigest(),
                    "files": [{"from": "kubectl-ktp", "to": "."}, {"from": "LICENSE", "to": "."}],
                    "bin": "kubectl-ktp",
                }
            ],
        },
    }


class _Blocks(yaml.SafeDumper):
    """Texts of several lines as people write them."""


_Blocks.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def main() -> None:
    """Write both beside the program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pyz", type=Path)
    parser.add_argument("repository")
    arguments = parser.parse_args()
    archive = archive_of(arguments.pyz.read_bytes(), (ROOT / "LICENSE").read_bytes())
    (arguments.pyz.parent / ARCHIVE).write_bytes(archive)
    manifest = manifest_of(archive, arguments.repository.rstrip("/"))
    (arguments.pyz.parent / MANIFEST).write_text(
        yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True)
    )


if __name__ == "__main__":
    main()
