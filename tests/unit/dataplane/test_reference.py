from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ktp.dataplane.matches import compile_match, supported_matches
from ktp.dataplane.xtables import supported_targets
from ktp.model.ruleset import Match, Option

# Of these no option can change the answer, or whatever the options the answer is "unknown" where it is not False.
_ANY_OPTION = {
    "ah", "cgroup", "comment", "dst", "esp", "frag", "hbh", "ipcomp", "limit", "mh", "nfacct", "owner", "rt", "socket",
}  # fmt: skip


@pytest.fixture
def generator(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_reference", repository / "tools" / "gen_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_modelled_matches_is_what_the_code_says(generator: ModuleType) -> None:
    """`python tools/gen_reference.py` writes it."""
    assert generator.PAGE.read_text(encoding="utf-8") == generator.render()


def test_every_match_and_target_stands_on_the_page_once(generator: ModuleType) -> None:
    lines = generator.render().splitlines()
    for name in [m.name for m in supported_matches()] + [name for name, _, _ in supported_targets()[1:]]:
        assert sum(line.startswith(f"| `{name}` |") for line in lines) == 1, name


@pytest.mark.parametrize(
    "name", [m.name for m in supported_matches() if m.level != "unknown" and m.name[0] != "-"]
)
def test_an_option_that_is_not_modelled_makes_a_match_unknown(name: str) -> None:
    """Never is an option passed over and the rest of the match believed."""
    if name in _ANY_OPTION:
        return
    assert compile_match(Match(name, (Option("--no-such-option", ("1",)),))) is None
