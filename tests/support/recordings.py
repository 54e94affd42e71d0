"""Where recordings of whole clusters are, beside the packaged parts of some: the folder KTP_CASES (`make test-cases`)."""

from __future__ import annotations

import os
from pathlib import Path

# A folder that is not there where none is named: globs of it are empty, and its tests say why they are skipped.
RECORDINGS = Path(os.environ.get("KTP_CASES") or "/nonexistent/recordings")
