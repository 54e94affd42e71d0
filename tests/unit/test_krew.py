"""What krew asks of a plugin (its developer guide, and internal/index/validation): manifest and archive."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from ktp import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = "#!/usr/bin/env python3\nimport sys\nprint('ktp', *sys.argv[1:])\n"
SEMVER = re.compile(r"v\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")


def make(folder: Path, repository: str) -> None:
    """Both files in the folder, of a program that says what it is asked."""
    (folder / "ktp.pyz").write_text(PROGRAM)
    command = [sys.executable, str(REPOSITORY / "tools/gen_krew.py"), str(folder / "ktp.pyz"), repository]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("krew")
    make(folder, "https://example.org/a/ktp/")
    return folder


def test_the_manifest_is_one_that_krew_takes(made: Path) -> None:
    manifest = yaml.safe_load((made / "ktp.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == (
        "krew.googlecontainertools.github.com/v1alpha2",
        "Plugin",
    )
    assert manifest["metadata"]["name"] == "ktp"  # as its file is called
    spec = manifest["spec"]
    assert SEMVER.fullmatch(spec["version"])
    assert spec["version"] == f"v{__version__}"
    assert 0 < len(spec["shortDescription"]) <= 80
    assert spec["homepage"] == "https://example.org/a/ktp"
    assert not set(spec) - {"version", "homepage", "shortDescription", "description", "caveats", "platforms"}
    (platform,) = spec["platforms"]
    assert set(platform) == {"selector", "uri", "sha256", "files", "bin"}
    assert platform["sha256"] == hashlib.sha256((made / "kubectl-ktp.tar.gz").read_bytes()).hexdigest()
    assert platform["uri"].endswith(f"/v{__version__}/kubectl-ktp.tar.gz")
    (expression,) = platform["selector"]["matchExpressions"]
    assert (expression["key"], expression["operator"]) == ("os", "In")
    assert set(expression["values"]) <= {"linux", "darwin", "windows"}


def test_the_archive_holds_a_program_that_runs(made: Path, tmp_path: Path) -> None:
    """Unpacked as krew does: each of `files` into its place, then `bin` from there."""
    (platform,) = yaml.safe_load((made / "ktp.yaml").read_text())["spec"]["platforms"]
    with tarfile.open(fileobj=io.BytesIO((made / "kubectl-ktp.tar.gz").read_bytes())) as archive:
        names = {each.name for each in archive.getmembers()}
        assert {each["from"] for each in platform["files"]} == names == {"kubectl-ktp", "LICENSE"}
        archive.extractall(tmp_path, filter="data")
    program = tmp_path / platform["bin"]
    assert os.access(program, os.X_OK)
    done = subprocess.run([program, "diagnose", "svc"], capture_output=True, text=True, check=True)
    assert done.stdout == "ktp diagnose svc\n"


def test_the_same_program_makes_the_same_archive(made: Path, tmp_path: Path) -> None:
    make(tmp_path, "https://example.org/a/ktp")
    for name in ("ktp.yaml", "kubectl-ktp.tar.gz"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
