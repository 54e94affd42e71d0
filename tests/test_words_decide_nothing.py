"""No code decides by reading a sentence, a comment or a rule's text: facts travel as data and become words at the end."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
# What is words: of steps, findings, gaps, fixes, verdicts, rules.
WORDS = frozenset(
    (
        "message",
        "remedy",
        "reason",
        "why",
        "headline",
        "summary",
        "outcome",
        "words",
        "said",
        "text",
        "comment",
    )
)
READING = frozenset(
    (
        "split", "partition", "rpartition", "rsplit", "startswith", "endswith", "replace", "lower", "upper",
        "casefold", "find", "index", "count", "removeprefix", "removesuffix",
    )
)  # fmt: skip
PATTERNS = frozenset(("search", "match", "fullmatch", "findall", "finditer", "sub", "split"))
# Words are made and laid out in the first two; text is what the third is there to read.
LEFT_OUT = frozenset(("render", "explain", "parse"))


def is_words(node: ast.expr) -> bool:
    """Whether an expression is words, or made of words."""
    match node:
        case ast.Attribute(attr=name):
            return name in WORDS
        case ast.JoinedStr(values=values):
            return any(is_words(v.value) for v in values if isinstance(v, ast.FormattedValue))
        case ast.BinOp(left=left, right=right):
            return is_words(left) or is_words(right)
        case ast.Call(func=ast.Attribute(value=inner, attr=name)):
            return name in READING and is_words(inner)
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
            return name in WORDS
        case _:
            return False


def breaches(source: str) -> list[str]:
    """The places of a module that read words to decide: `line: expression`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        bad = False
        match node:
            case ast.Compare(left=left, ops=ops, comparators=sides):
                for op, before, after in zip(ops, (left, *sides), sides, strict=False):
                    if isinstance(op, ast.In | ast.NotIn):
                        bad |= is_words(after) or (
                            is_words(before) and isinstance(after, ast.Constant | ast.Tuple)
                        )
                    elif isinstance(op, ast.Eq | ast.NotEq):
                        bad |= (is_words(before) and isinstance(after, ast.Constant)) or (
                            is_words(after) and isinstance(before, ast.Constant)
                        )
            case ast.Call(func=ast.Attribute(value=inner, attr=name), args=arguments):
                bad = (name in READING and is_words(inner)) or (
                    name in PATTERNS and not is_words(inner) and any(is_words(a) for a in arguments)
                )
            case ast.Match(subject=subject):
                bad = is_words(subject)
        if bad:
            found.append(f"{getattr(node, 'lineno', 0)}: {ast.unparse(node)}")
    return found


def modules() -> list[Path]:
    return [
        path
        for path in sorted((REPOSITORY / "ktp").rglob("*.py"))
        if path.relative_to(REPOSITORY / "ktp").parts[0] not in LEFT_OUT
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(REPOSITORY / "ktp").as_posix())
def test_no_code_decides_by_words(path: Path) -> None:
    assert breaches(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        'x = "is not installed" in gap.message',
        'x = "redirect" in f"{step.text} {step.chain}"',
        'x = step.words.startswith("dnat")',
        "x = re.search(pattern, step.said)",
        "x = _DNAT.findall(rule.text)",
        'x = "reject" in self.text.lower()',
        'if finding.message == "nothing listens": pass',
        'x = "drop" in decided.rule + decided.comment',
        'x = getattr(step, "text").partition(" ")',
        "match finding.summary:\n    case 'a': pass",
        'x = gap.remedy.replace("a", "b")',
    ],
)
def test_a_planted_breach_is_caught(line: str) -> None:
    assert breaches(line)


@pytest.mark.parametrize(
    "line",
    [
        "x = gap.message",
        'print(f"{finding.message}: {finding.summary}")',
        'x = "a" in names',
        'x = step.chain.startswith("KUBE-")',
        "x = before.reason != after.reason",
        "x = isinstance(step.effects[-1], Drop)",
        "x = text.partition(' ')",
    ],
)
def test_what_only_carries_words_is_let_pass(line: str) -> None:
    assert breaches(line) == []
