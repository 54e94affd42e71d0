"""The JSON of `ktp check` (kind NodeCheck), as the pods of a fleet serve it, → model."""

from __future__ import annotations

from typing import Any

from ktp.errors import EvidenceError
from ktp.model.fleet import NodeReport
from ktp.model.node_check import CheckedFrontEnd, FrontEndState
from ktp.model.trace import Symptom
from ktp.parse.text import SHAPE_ERRORS


def parse_node_report(found: Any, source: str) -> NodeReport:
    """One report. Raises EvidenceError, which names `source`, for what is none.

    A later ktp may say more; a state or symptom that this one does not know is `unknown`.
    """
    try:
        if found["kind"] != "NodeCheck":
            raise ValueError(f"its kind is {found['kind']!r}")
        return NodeReport(
            node=str(found["node"]),
            age=max(0.0, float(found["age"])) + max(0.0, float(found["at"]) - float(found["objectsAt"])),
            counts={state: int(found["frontends"].get(state.value, 0)) for state in FrontEndState},
            not_well=tuple(_item(item) for item in found["items"]),
            messages={(str(f["service"]), str(f["code"])): str(f["message"]) for f in found["findings"]},
        )
    except (*SHAPE_ERRORS, ValueError) as error:
        raise EvidenceError(f"what {source} answers is no report of ktp check: {error}") from None


def _item(item: Any) -> CheckedFrontEnd:
    return CheckedFrontEnd(
        namespace=str(item["service"]["namespace"]),
        name=str(item["service"]["name"]),
        policy=str(item["service"].get("externalTrafficPolicy", "")),
        title=str(item["frontend"]),
        state=_member(FrontEndState, item["state"], FrontEndState.UNKNOWN),
        symptom=_member(Symptom, item["symptom"], Symptom.UNKNOWN),
        intended=_member(Symptom, item["intended"], Symptom.UNKNOWN),
        reason=str(item["reason"]),
        cause=str(item["cause"]) if item["cause"] else None,
    )


def _member(kind: Any, value: object, otherwise: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        return otherwise
