"""What a step did, in words."""

from __future__ import annotations

from ktp.model.effect import (
    Accept,
    Change,
    Count,
    Drop,
    Effect,
    Endpoint,
    Forbid,
    Goto,
    Jump,
    Keep,
    Leave,
    Mark,
    Nat,
    Note,
    NoTrack,
    PortsTaken,
    Refuse,
    Return,
    Steal,
    TooLong,
    Translate,
    Unmodelled,
    Untunnelled,
)
from ktp.model.trace import Step

_ALL = 0xFFFFFFFF
# The option of an xtables target that names what it translates to.
_TO = {
    Nat.DNAT: "--to-destination",
    Nat.SNAT: "--to-source",
    Nat.NETMAP: "--to",
    Nat.REDIRECT: "--to-ports",
}


def step_words(step: Step) -> str:
    """`jump KUBE-SERVICES`, `mark set to 0x4000, goto masquerade`, `no process of node-a listens on …`."""
    return ", ".join(_effect_words(effect, step) for effect in step.effects)


def _effect_words(effect: Effect, step: Step) -> str:
    match effect:
        case Jump(chain):
            return f"jump {chain}"
        case Goto(chain):
            return f"goto {chain}"
        case Return():
            return "return"
        case Accept():
            return "accept"
        case Drop():
            return "drop"
        case Refuse(kind):
            return "no real server: refused" if step.table == "ipvs" else f"reject with {kind}"
        case Mark():
            return f"{'connection mark' if effect.connection else 'mark'} {_mark_words(effect)}"
        case Translate(kind, _, after) | Keep(kind, after):
            return _translation_words(kind, after, step)
        case NoTrack():
            return "not tracked"
        case Steal(by):
            return by
        case Unmodelled(what) | Change(what):
            return what
        case Count(by):
            return by or "counted"
        case Leave():
            return "then no match"
        case (
            Note(words)
            | Forbid(_, words)
            | Untunnelled(_, _, words)
            | TooLong(words=words)
            | PortsTaken(words=words)
        ):
            return words


def _mark_words(mark: Mark) -> str:
    mask = _ALL & ~mark.keep
    if not mask:
        return f"flipped in bits {mark.flip:#x}"
    if not mark.flip and mask != _ALL:
        return f"cleared of bits {mask:#x}"
    if mask == _ALL:
        return f"set to {mark.flip:#x}"
    return f"set to {mark.flip:#x} under mask {mask:#x}"


def _translation_words(kind: Nat, after: Endpoint, step: Step) -> str:
    match kind:
        case Nat.DESTINATION_UNDONE:
            return f"destination translation undone: from {after.ip}"
        case Nat.SOURCE_UNDONE:
            return f"source translation undone: for {after.ip}"
        case Nat.IPVS:
            return f"real server {endpoint_words(after)}"
    target = step.rule.target if step.rule is not None else None
    if target is not None:
        to = target.value(_TO[kind]) if kind in _TO else None
        word = "redirect to port" if kind is Nat.REDIRECT else f"{kind.value} to"
        return f"{word} {to}" if to else kind.value
    if kind is Nat.MASQUERADE:
        return f"masquerade as {after.ip}"
    return f"snat to {after.ip}" if kind is Nat.SNAT else f"dnat to {endpoint_words(after)}"


def endpoint_words(endpoint: Endpoint) -> str:
    """`10.0.0.3:80`, `[fd00::3]:80`; `*` for one port of several."""
    ip = f"[{endpoint.ip}]" if ":" in endpoint.ip else endpoint.ip
    return f"{ip}:{'*' if endpoint.port is None else endpoint.port}"
