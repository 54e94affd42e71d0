"""Matches that draw, count or remember: lots, rates, quotas, lists of addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ktp.dataplane.matches.compiled import Compiled, Rows, always
from ktp.model.assumption import Assumption, EvidenceKind
from ktp.model.ruleset import Match

if TYPE_CHECKING:
    pass


def _statistic(match: Match) -> Compiled | None:
    mode = match.option("--mode")
    if mode is None:
        return None
    if mode.args[0] == "random":
        option = match.option("--probability")
        if option is None:
            return None
        chance = float(option.args[0])
        return Compiled(always(True), probability=1 - chance if option.negated else chance)
    every = match.option("--every")
    if mode.args[0] == "nth" and every is not None:
        chance = 1 / int(every.args[0])
        return Compiled(
            always(True),
            Assumption(
                "the counter of a `statistic --mode nth` rule may stand anywhere, so it is drawn like a lot"
            ),
            1 - chance if every.negated else chance,
        )
    return None


def _recent(match: Match) -> Compiled | None:
    name_option = match.option("--name")
    name = name_option.args[0] if name_option is not None and name_option.args else "DEFAULT"
    side = "dst" if match.option("--rdest") is not None else "src"
    mode = next((o for o in match.options if o.flag in ("--set", "--rcheck", "--update", "--remove")), None)
    if mode is None:
        return None
    if mode.flag == "--set":
        return Compiled(always(not mode.negated), recent=(name, side, True))
    hits = match.option("--hitcount")
    note = Assumption(
        "no earlier connection of this client is remembered (`recent` match, session affinity)",
        EvidenceKind.CONNTRACK,
    )
    if hits is not None and int(hits.args[0]) > 1:
        return Compiled(always(mode.negated), note)
    return Compiled(always(mode.negated), note, recent=(name, side, False))


def _below_limit(what: str) -> Callable[[Match], Compiled | None]:
    def compile_it(match: Match) -> Compiled | None:
        return Compiled(always(True), Assumption(f"the traffic is below the limit of the `{what}` rule"))

    return compile_it


def _hashlimit(match: Match) -> Compiled | None:
    if not all(o.flag.startswith("--hashlimit") for o in match.options):
        return None
    above = match.option("--hashlimit-above") is not None
    upto = next((o for o in match.options if o.flag in ("--hashlimit-upto", "--hashlimit")), None)
    answer = not above
    if upto is not None and upto.negated:
        answer = not answer
    return Compiled(always(answer), Assumption("the traffic is below the limit of the `hashlimit` rule"))


def _connlimit(match: Match) -> Compiled | None:
    above = next((o for o in match.options if o.flag == "--connlimit-above"), None)
    upto = next((o for o in match.options if o.flag == "--connlimit-upto"), None)
    if above is not None:
        limit, answer = int(above.args[0]), above.negated
        if limit == 0:
            return Compiled(always(not above.negated))
    elif upto is not None:
        answer = not upto.negated
        if int(upto.args[0]) == 0:
            return Compiled(always(upto.negated))
    else:
        return None
    return Compiled(
        always(answer), Assumption("the client has fewer connections open than the `connlimit` rule allows")
    )


def _quota(match: Match) -> Compiled | None:
    option = match.option("--quota")
    if option is None:
        return None
    return Compiled(always(not option.negated), Assumption("the quota of the `quota` rule is not used up"))


def _nfacct(match: Match) -> Compiled | None:
    return Compiled(always(True))


def _comment(match: Match) -> Compiled | None:
    return Compiled(always(True))


ROWS: Rows = {
    "statistic": (
        _statistic,
        "exact",
        "random: both ways with their probabilities; nth: assumed to stand anywhere",
    ),
    "recent": (
        _recent,
        "assumed",
        "the lists are not in a dump: no earlier packet of the address is assumed",
    ),
    "comment": (_comment, "exact", ""),
    "nfacct": (_nfacct, "exact", "it counts and always matches"),
    "limit": (_below_limit("limit"), "assumed", "below the limit"),
    "hashlimit": (_hashlimit, "assumed", "below the limit"),
    "connlimit": (_connlimit, "assumed", "below the limit"),
    "quota": (_quota, "assumed", "not used up"),
}
