"""API objects in a capture, for what is collected by them: parse reads them in full, and reports damaged lists."""

from __future__ import annotations

import json
from typing import Any

from ktp.errors import EvidenceError
from ktp.model.capture import Capture


def items_of(capture: Capture, file: str) -> list[dict[str, Any]]:
    """The objects of one list; none of a damaged one."""
    if not capture.has(file):
        return []
    try:
        return [item for item in json.loads(capture.read(file))["items"] if isinstance(item, dict)]
    except (ValueError, KeyError, TypeError, EvidenceError):
        return []
