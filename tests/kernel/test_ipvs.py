"""Random virtual servers, sets, settings and packets: what a kernel with IPVS does, and what ktp says it does.

Most kernels of small virtual machines have no IPVS: `make test-vm` boots one that has (user-mode Linux) and runs this
file in it. KTP_KERNEL_CASES and KTP_KERNEL_SEED are those of `test_differential.py`.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from kernel.compare import Outcome, run_case, tell
from kernel.ipvs_generator import make_case
from kernel.lab import Lab

pytestmark = pytest.mark.kernel

_CASES = int(os.environ.get("KTP_KERNEL_CASES", "8"))
_SEED = os.environ.get("KTP_KERNEL_SEED", "1")
_FIRST = random.randrange(10**9) if _SEED == "random" else int(_SEED)
_BLOCK = 5


@pytest.fixture(scope="module")
def tally() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("first", range(_FIRST, _FIRST + _CASES, _BLOCK))
def test_virtual_servers(lab: Lab, tally: Counter[str], first: int) -> None:
    if not lab.ipvs:
        pytest.skip("this kernel has no IPVS: `make test-vm` boots one that has")
    wrong: list[str] = []
    for seed in range(first, min(first + _BLOCK, _FIRST + _CASES)):
        case = make_case(seed)
        outcomes: list[Outcome] = run_case(lab, case)
        tally.update(
            "undetermined" if each.why == "undetermined" else each.kernel["outcome"] for each in outcomes
        )
        wrong += [tell(case, each) for each in outcomes if not each.agrees]
    assert not wrong, f"{len(wrong)} of {_BLOCK * 12}\n" + "\n\n".join(wrong[:8])


def test_few_are_left_open(tally: Counter[str]) -> None:
    """Less than one in ten, and every outcome was among them."""
    print(dict(tally))  # noqa: T201 - what `-s` shows
    if sum(tally.values()) < 300:
        pytest.skip("too few pairs were asked to say so")
    assert tally["undetermined"] < 0.1 * sum(tally.values()), tally
    assert {"connects", "refused", "times_out"} <= set(tally)
