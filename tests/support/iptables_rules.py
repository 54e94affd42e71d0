"""Rules written as `iptables-save` prints them: the inverse of parsing."""

from __future__ import annotations

from ktp.model.ruleset import Option, Rule

# libxt_nfacct's save function prints two spaces before the object's name.
_TWO_SPACES = frozenset(("--nfacct-name",))


def render_rule(rule: Rule, *, counters: bool = True) -> str:
    """Rule → the line that `iptables-save` prints for it, from the parsed parts (not from `rule.text`).

    A rule with an `error` is given back verbatim.
    """
    head = f"[{rule.counters.packets}:{rule.counters.bytes}] " if counters and rule.counters else ""
    if rule.error is not None:
        return head + rule.text
    parts = ["-A", rule.chain]
    for match in rule.matches:
        if match.name:
            parts += ("-m", match.name)
        for option in match.options:
            _render_option(parts, option)
    if rule.target is not None:
        parts += ("-g" if rule.target.goto else "-j", rule.target.name)
        for option in rule.target.options:
            _render_option(parts, option)
    return head + " ".join(parts)


def _render_option(parts: list[str], option: Option) -> None:
    if option.negated:
        parts.append("!")
    parts.append(option.flag)
    if option.flag in _TWO_SPACES:
        parts.append("")
    for i, arg in enumerate(option.args):
        if option.quoted >> i & 1:
            escaped = arg.replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f'"{escaped}"')
        else:
            parts.append(arg)
