"""Label selectors, as NetworkPolicies and others choose objects by (apimachinery, labels.Selector)."""

from __future__ import annotations

from collections.abc import Mapping

from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True)
class Requirement:
    """A matchExpression: `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels meet it (apimachinery, labels.Requirement.Matches)."""
        if self.operator == "In":
            return labels.get(self.key) in self.values and self.key in labels
        if self.operator == "NotIn":
            return self.key not in labels or labels[self.key] not in self.values
        return (self.key in labels) is (self.operator == "Exists")


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A selector of objects; one without requirements selects all."""

    requirements: tuple[Requirement, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels meet every requirement."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    @property
    def text(self) -> str:
        """Its requirements as fields print them: `tier In gold; zone Exists`."""
        return "; ".join(f"{r.key} {r.operator} {','.join(r.values)}".rstrip() for r in self.requirements)
