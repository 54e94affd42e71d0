"""Words of strangers for a terminal: comments of rules, names in a snapshot, files in an archive."""

from __future__ import annotations


def clean(text: str) -> str:
    """With control characters, and others that do not show, spelled out; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
