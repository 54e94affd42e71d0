"""A change to a Service or its nodes, as `ktp what-if` makes it up."""

from __future__ import annotations

from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change, of one of these kinds, and its argument.

    policy, target-port ("N", or "PORT=N" of several ports), drain, cordon, scale, pod-on, delete-pod, forward-policy.
    """

    kind: str
    value: str

    @property
    def arguments(self) -> tuple[str, str]:
        """The change as words of `ktp what-if`."""
        return f"--{self.kind}", self.value

    @property
    def words(self) -> str:
        """The change in words."""
        return {
            "policy": f"externalTrafficPolicy: {self.value}",
            "target-port": f"targetPort {self.value.rpartition('=')[2]}"
            + (f" of port {self.value.partition('=')[0]}" if "=" in self.value else ""),
            "drain": f"node {self.value} drained",
            "cordon": f"node {self.value} cordoned",
            "scale": f"{self.value} pods behind the Service",
            "pod-on": f"one more ready pod on {self.value}",
            "delete-pod": f"pod {self.value} deleted",
            "forward-policy": f"policy {self.value} of FORWARD",
        }[self.kind]
