"""The text of a trace: what is shown, once and where."""

from __future__ import annotations

import io
from dataclasses import replace

from ktp.model.assumption import Assumption
from ktp.model.effect import Effect, Endpoint, Jump, Nat, Note, Translate
from ktp.model.ruleset import Match, Option, Rule, Target
from ktp.model.trace import (
    DecidedBy,
    Disposition,
    Flow,
    FlowAnswer,
    Header,
    Hop,
    Path,
    Step,
    StepKind,
    Symptom,
    Unknown,
)
from ktp.render.trace_text import Layout, trace_lines, write_lines

FLOW = Flow(dst="10.0.0.3", port=31015, src="10.0.0.100")
ARRIVED = Header(src="10.0.0.100", sport=-1, dst="10.0.0.3", dport=31015)
JUMP = Rule(
    table="nat",
    chain="PREROUTING",
    text='-A PREROUTING -m comment --comment "to the \x1b[31mServices" ! -s 10.0.0.0/8 -j SERVICES',
    matches=(
        Match("comment", (Option("--comment", ("to the \x1b[31mServices",), quoted=1),)),
        Match("", (Option("-s", ("10.0.0.0/8",), negated=True),)),
    ),
    target=Target("SERVICES"),
    line=12,
    position=1,
)


def step_of(rule: Rule, effect: Effect, hook: str = "PREROUTING", backend: str = "iptables-nft") -> Step:
    return Step(
        kind=StepKind.RULE, hook=hook, table=rule.table, chain=rule.chain, text=rule.text, effects=(effect,), backend=backend,
        line=rule.line, position=rule.position, rule=rule,
    )  # fmt: skip


def dnat(ip: str, line: int) -> Step:
    rule = Rule(
        table="nat",
        chain="SERVICES",
        text=f"-A SERVICES -j DNAT --to-destination {ip}:80",
        line=line,
        position=line,
    )
    return step_of(rule, Translate(Nat.DNAT, Endpoint("10.0.0.3", 31015), Endpoint(ip, 80)))


def path_to(ip: str, line: int, *, probability: float = 0.5, lost: bool = False) -> Path:
    chosen = dnat(ip, line)
    after = Header(src="10.0.0.100", sport=-1, dst=ip, dport=80)
    request = Hop(
        node="node-a", direction="request", arrived=ARRIVED, left=after, in_interface="eth0", out_interface="veth1",
        steps=(step_of(JUMP, Jump("SERVICES")), chosen),
    )  # fmt: skip
    back = Step(
        kind=StepKind.NAT,
        hook="POSTROUTING",
        table="nat",
        effects=(Translate(Nat.DESTINATION_UNDONE, Endpoint(ip, 80), Endpoint("10.0.0.3", 31015)),),
    )
    end = Step(kind=StepKind.ROUTE, hook="ROUTING", effects=(Note("the answer is lost here"),))
    reply = Hop(
        node="node-a", direction="reply", arrived=Header(src=ip, sport=80, dst="10.0.0.100", dport=-1),
        left=Header(src="10.0.0.3", sport=31015, dst="10.0.0.100", dport=-1), in_interface="veth1",
        out_interface="eth0", steps=(end,) if lost else (back,),
    )  # fmt: skip
    return Path(
        probability=probability,
        disposition=Disposition.LOST if lost else Disposition.DELIVERED,
        symptom=Symptom.TIMES_OUT if lost else Symptom.CONNECTS,
        reason="the answer is lost here" if lost else f"delivered to test/{ip}",
        hops=(request, reply),
        endpoint_ip=ip,
        endpoint_port=80,
        endpoint_name=f"test/{ip}",
        endpoint_node="node-a",
        source_seen="10.0.0.100",
        decided_by=DecidedBy(node="node-a", kind=StepKind.ROUTE, step=end)
        if lost
        else DecidedBy(node="node-a", kind=StepKind.RULE, step=chosen),
    )  # fmt: skip


def answer_of(*paths: Path, symptom: Symptom = Symptom.CONNECTS) -> FlowAnswer:
    return FlowAnswer(
        flow=FLOW, disposition=paths[0].disposition, symptom=symptom, reason=paths[0].reason, paths=paths,
        decided_by=paths[0].decided_by if len(paths) == 1 else None,
    )  # fmt: skip


def text_of(answer: FlowAnswer, layout: Layout | None = None, *, color: bool = False) -> str:
    stream = io.StringIO()
    write_lines(
        trace_lines(answer, layout or Layout(sender="10.0.0.100 (outside the cluster)")), stream, color=color
    )
    return stream.getvalue()


def test_one_way() -> None:
    text = text_of(answer_of(path_to("10.244.1.1", 3, probability=1.0)))
    assert text == (
        "connects: delivered to test/10.244.1.1\n"
        "from 10.0.0.100 (outside the cluster) to 10.0.0.3:31015/tcp\n"
        "\n"
        "node-a  request, in by eth0, out by veth1\n"
        "  10.0.0.100:* -> 10.0.0.3:31015\n"
        "  PREROUTING\n"
        "    nat PREROUTING rule 1, line 12: jump SERVICES\n"
        "        if ! -s 10.0.0.0/8  # to the \\x1b[31mServices\n"
        "  > nat SERVICES rule 3, line 3: dnat to 10.244.1.1:80\n"
        "        -A SERVICES -j DNAT --to-destination 10.244.1.1:80\n"
        "  leaves as 10.0.0.100:* -> 10.244.1.1:80\n"
        "\n"
        "answer, in short\n"
        "  node-a, in by veth1, out by eth0: 10.244.1.1:80 -> 10.0.0.100:*\n"
        "    destination translation undone: from 10.0.0.3\n"
        "  ends as 10.0.0.3:31015 -> 10.0.0.100:*\n"
    )


def test_what_all_ways_share_is_shown_once() -> None:
    paths = [path_to(f"10.244.1.{n}", n, probability=0.25) for n in (1, 2, 3, 4)]
    text = text_of(answer_of(*paths))
    assert text.startswith("connects: delivered to one of 4 endpoints\n")
    assert text.count("nat PREROUTING rule 1") == 1
    assert text.count("--- with") == 1
    assert "  25%  10.244.1.4:80 test/10.244.1.4 on node-a: connects, sees 10.0.0.100\n" in text
    others = "in the same way: 10.244.1.2:80 test/10.244.1.2 on node-a (25%), 10.244.1.3:80"
    assert others in " ".join(text.split())
    in_full = text_of(answer_of(*paths), Layout(verbose=True))
    assert in_full.count("--- with 25%") == 4
    assert in_full.count("dnat to") == 4
    assert in_full.count("nat PREROUTING rule 1") == 1
    assert "in the same way" not in in_full


def test_the_way_that_fails_comes_first_and_its_answer_in_full() -> None:
    answer = replace(
        answer_of(
            path_to("10.244.1.1", 1), path_to("10.244.1.2", 2, lost=True), symptom=Symptom.INTERMITTENT
        ),
        disposition=Disposition.LOST,
        reason="connects in 50% of tries; otherwise: the answer is lost here",
    )
    text = text_of(answer)
    assert text.startswith(
        "intermittent (lost): connects in 50% of tries; otherwise: the answer is lost\n  here\n"
    )
    failing, working = text.index("--- with 50%: 10.244.1.2"), text.index("--- with 50%: 10.244.1.1")
    assert failing < working
    assert "  > the answer is lost here" in text[failing:working]
    assert "answer, in short" not in text[failing:working]
    assert "answer, in short" in text[working:]


def test_verbose_shows_rules_verbatim_and_the_answer_in_full() -> None:
    text = text_of(answer_of(path_to("10.244.1.1", 3, probability=1.0)), Layout(verbose=True, width=120))
    assert "        " + JUMP.text.replace("\x1b", "\\x1b") + "\n" in text
    assert "answer, in short" not in text
    assert "node-a  answer, in by veth1, out by eth0\n" in text


def test_unknown_names_the_rule() -> None:
    rule = Rule(
        table="filter", chain="FORWARD", text="-A FORWARD -m u32 --u32 0x0=0x1 -j DROP", line=9, position=2
    )
    why = "the match u32 is not modelled"
    whole = f"{why}: filter {rule.text}"
    answer = FlowAnswer(
        flow=FLOW, disposition=Disposition.UNDETERMINED, symptom=Symptom.UNKNOWN,
        reason=whole,
        unknowns=(Unknown(node="node-a", what=rule.text, why=whole, rule=rule),),
        assumptions=(Assumption("the rate is below the limit"),),
    )  # fmt: skip
    assert text_of(answer) == (
        "undetermined: the match u32 is not modelled: filter FORWARD, line 9\n"
        "from 10.0.0.100 (outside the cluster) to 10.0.0.3:31015/tcp\n"
        "\n"
        "not known:\n"
        "  - node-a: the match u32 is not modelled\n"
        "    filter FORWARD, line 9: -A FORWARD -m u32 --u32 0x0=0x1 -j DROP\n"
        "\n"
        "assumed:\n"
        "  - the rate is below the limit\n"
    )


def test_the_back_end_is_named_where_both_have_rules() -> None:
    path = path_to("10.244.1.1", 3, probability=1.0)
    request = path.hops[0]
    legacy = step_of(JUMP, Jump("SERVICES"), backend="iptables-legacy")
    both = replace(path, hops=(replace(request, steps=(legacy, *request.steps)), *path.hops[1:]))
    text = text_of(answer_of(both))
    assert "nat (iptables-legacy) PREROUTING rule 1, line 12: jump SERVICES" in text
    assert "nat (iptables-nft) PREROUTING rule 1, line 12: jump SERVICES" in text
    assert "(iptables-nft)" not in text_of(answer_of(path))


def test_where_the_lines_are() -> None:
    sources = {
        ("node-a", "iptables-nft"): "nodes/node-a/iptables-nft-save.txt",
        ("node-b", "iptables-nft"): "other",
    }
    text = text_of(answer_of(path_to("10.244.1.1", 3, probability=1.0)), Layout(sources=sources))
    assert text.endswith("\nlines are of:\n  nodes/node-a/iptables-nft-save.txt\n")


def test_colour_adds_nothing_but_colour() -> None:
    answer = answer_of(path_to("10.244.1.1", 1), path_to("10.244.1.2", 2))
    plain, colored = text_of(answer), text_of(answer, color=True)
    assert "\x1b" not in plain
    assert "\x1b[1;32mconnects\x1b[0m" in colored
    bare = "".join(
        piece.partition("m")[2] if number else piece for number, piece in enumerate(colored.split("\x1b["))
    )
    assert [line.rstrip() for line in bare.splitlines()] == plain.splitlines()
