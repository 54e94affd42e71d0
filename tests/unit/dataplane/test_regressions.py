"""The named cases of `tests/kernel/cases.py`, as the kernel did them once: the model is held to what was recorded."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.model.trace import Flow
from tests.kernel.cases import ALL, Named
from tests.kernel.compare import counters_differ, judge
from tests.kernel.drawing import flow_of
from tests.kernel.lab import topology_of_lab
from tests.kernel.record import capture_of, moved_of, read_recorded


@cache
def _recorded() -> dict[str, Any]:
    return read_recorded()


@pytest.mark.parametrize("named", ALL, ids=[named.name for named in ALL])
def test_model_says_what_the_kernel_did(named: Named) -> None:
    walker = Walker(topology_of_lab(capture_of(_recorded(), named.name)))
    outcomes = _recorded()["cases"][named.name]["outcomes"]
    for packet, told in zip(named.case.packets, outcomes, strict=True):
        answer = answer_flow(walker, Flow(**flow_of(packet, named.case.family)))
        judged = judge(packet, told["kernel"], answer)
        assert judged.agrees, judged.why
        assert judged.why != "undetermined", f"unknown to ktp: {answer.reason}"
        if named.counted:
            why = counters_differ(named.case, walker, packet, told["kernel"], answer, moved_of(told))
            assert why is None, why
