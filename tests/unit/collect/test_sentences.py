"""What a user is told where ktp cannot go on: one sentence, and what to do about it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktp import errors
from ktp.errors import EvidenceError, ExitCode, KtpError, UsageError

COLLECT = Path(errors.__file__).parent / "collect"
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, KtpError) and kind is not KtpError
}


def told() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(COLLECT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                yield f"{path.name}:{node.lineno}", node


def words_of(argument: ast.expr) -> str:
    """The literal words of a message, {} for what is filled in."""
    if isinstance(argument, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in argument.values
        )
    if isinstance(argument, ast.BinOp):
        return words_of(argument.left) + words_of(argument.right)
    return str(argument.value) if isinstance(argument, ast.Constant) else "{}"


def test_every_message_is_one_sentence_with_what_to_do() -> None:
    without, misshapen, number = [], [], 0
    for where, call in told():
        number += 1
        words = words_of(call.args[0])
        if "did you mean" not in words and not any(keyword.arg == "hint" for keyword in call.keywords):
            without.append(f"{where}: {words}")
        if words.endswith(".") or "\n" in words or (words[:1].isupper() and not words[1:2].isupper()):
            misshapen.append(f"{where}: {words}")
    assert number > 50
    assert without == []
    assert misshapen == []


@pytest.mark.parametrize("name", sorted(KINDS))
def test_exit_statuses(name: str) -> None:
    """Wrong words of the user are 2, evidence that cannot be had is 3 (design §5)."""
    kind = KINDS[name]
    assert issubclass(kind, UsageError | EvidenceError)
    assert kind.exit_code is (ExitCode.USAGE if issubclass(kind, UsageError) else ExitCode.EVIDENCE)
