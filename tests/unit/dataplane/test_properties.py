"""What holds for every ruleset. The rulesets are those of the differential tests, on the recorded laboratory."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ktp.dataplane.answer import answer_flow
from ktp.dataplane.walk import Walker
from ktp.model.capture import MemoryCapture
from ktp.model.trace import Flow, FlowAnswer, Symptom
from tests.kernel.drawing import Case, flow_of
from tests.kernel.generator import make_case
from tests.kernel.lab import topology_of_lab
from tests.kernel.record import read_recorded

SEEDS = st.integers(min_value=0, max_value=2**32)
# A packet that nobody sends, a set that nobody dumped, and an hour that nobody knows.
NEVER = "-s 192.0.2.77/32 -p 132 -m comment --comment never"
UNKNOWN = "-m u32 --u32 0=0"


@cache
def _base() -> dict[str, bytes]:
    return {name: text.encode() for name, text in read_recorded()["base"].items()}


def _walker(case: Case) -> Walker:
    files = dict(_base())
    word = "iptables" if case.family == 4 else "ip6tables"
    for (node, backend), text in case.rules.items():
        files[f"nodes/{node}/{word}-{backend}-save.txt"] = text.encode()
    for node, text in case.sets.items():
        files[f"nodes/{node}/ipset-save.txt"] = text.encode()
    return Walker(topology_of_lab(MemoryCapture(files=files, source="laboratory")))


def _flows(case: Case) -> list[Flow]:
    return [Flow(**flow_of(packet, case.family)) for packet in case.packets]


def _told(answer: FlowAnswer) -> tuple[Any, ...]:
    """What the client and the endpoints can tell."""
    chances: dict[tuple[Any, ...], float] = {}
    for path in answer.paths:
        # The endpoint that a packet was meant for and did not reach is nobody's to see.
        arrived = (path.endpoint_ip, path.endpoint_port, path.source_seen) if path.source_seen else None
        key = (path.symptom, path.disposition, arrived)
        chances[key] = round(chances.get(key, 0.0) + path.probability, 6)
    return answer.symptom, answer.disposition, tuple(sorted(map(str, chances.items())))


def _rule_lines(text: str) -> list[int]:
    return [n for n, line in enumerate(text.splitlines()) if line.startswith("-A")]


def _edited(case: Case, key: tuple[str, str], lines: list[str]) -> Case:
    rules = {**case.rules, key: "\n".join(lines) + "\n"}
    return Case(case.seed, case.family, rules, case.sets, case.sysctls, case.commands, case.packets)


@settings(max_examples=60)
@given(seed=SEEDS, data=st.data())
def test_a_rule_that_matches_no_packet_changes_nothing(seed: int, data: st.DataObject) -> None:
    case = make_case(seed, 6)
    key = data.draw(st.sampled_from(sorted(case.rules)))
    lines = case.rules[key].splitlines()
    places = _rule_lines(case.rules[key])
    if case.family == 6 or not places:
        return
    at = data.draw(st.sampled_from(places))
    target = data.draw(
        st.sampled_from(["-j ACCEPT", "-j RETURN", "-j MARK --set-xmark 0x1/0x1", "-j NOSUCH", ""])
    )
    rule = f"-A {lines[at].split()[1]} {NEVER} {target}"
    before, after = _walker(case), _walker(_edited(case, key, [*lines[:at], rule, *lines[at:]]))
    for flow in _flows(case):
        assert _told(answer_flow(before, flow)) == _told(answer_flow(after, flow))


@settings(max_examples=60)
@given(seed=SEEDS, data=st.data())
def test_an_answer_despite_an_unknown_match_is_the_same_whichever_way_it_goes(
    seed: int, data: st.DataObject
) -> None:
    case = make_case(seed, 6)
    key = data.draw(st.sampled_from(sorted(case.rules)))
    lines = case.rules[key].splitlines()
    places = _rule_lines(case.rules[key])
    if not places:
        return
    at = data.draw(st.sampled_from(places))
    words = lines[at].split(" ")
    unknown = " ".join([*words[:2], UNKNOWN, *words[2:]])
    asked = _walker(_edited(case, key, [*lines[:at], unknown, *lines[at + 1 :]]))
    matching = _walker(case)
    failing = _walker(_edited(case, key, [*lines[:at], *lines[at + 1 :]]))
    for flow in _flows(case):
        answer = answer_flow(asked, flow)
        if answer.symptom is Symptom.UNKNOWN:
            continue
        assert _told(answer) == _told(answer_flow(matching, flow))
        assert _told(answer) == _told(answer_flow(failing, flow))


@settings(max_examples=60)
@given(seed=SEEDS)
def test_every_walk_ends_and_its_chances_add_up(seed: int) -> None:
    case = make_case(seed, 6)
    walker = _walker(case)
    for flow in _flows(case):
        answer = answer_flow(walker, flow)
        assert answer.paths or answer.unknowns
        if answer.symptom is not Symptom.UNKNOWN:
            assert abs(sum(path.probability for path in answer.paths) - 1) < 1e-9
        assert _told(answer) == _told(answer_flow(walker, flow)), "the second answer to the same question"


@settings(max_examples=60)
@given(
    jumps=st.lists(
        st.tuples(
            st.sampled_from(["INPUT", "U0", "U1", "U2"]), st.sampled_from("jg"), st.sampled_from(["U0", "U1", "U2"]),
            st.sampled_from(["", UNKNOWN, "-m statistic --mode random --probability 0.50000000000"]),
        ),
        max_size=10,
    )
)  # fmt: skip
def test_chains_that_jump_anywhere_end(jumps: list[tuple[str, str, str, str]]) -> None:
    """The kernel refuses circles; a dump put together by hand may have them."""
    lines = ["*filter", ":INPUT ACCEPT [0:0]", *(f":U{n} - [0:0]" for n in range(3))]
    lines += [f"-A {chain} {match} -{how} {to}" for chain, how, to, match in jumps] + ["COMMIT"]
    case = Case(0, 4, {("a", "nft"): "\n".join(lines) + "\n"})
    answer = answer_flow(_walker(case), Flow(dst="10.1.0.11", port=8080, src="10.1.0.50"))
    assert answer.symptom in {Symptom.CONNECTS, Symptom.UNKNOWN}
