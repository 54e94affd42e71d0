"""Lookups in nft sets and maps: exact keys by dict, intervals by bisection, concatenations part by part.

A key may have parts that are not known: then the answer is known only where no element that might match could change
it (nft(8), SETS and MAPS; net/netfilter/nft_set_{hash,rbtree,pipapo}.c).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from ktp.dataplane.nft_values import (
    EVERY,
    UNKNOWN,
    EveryValue,
    NamePrefix,
    Span,
    constant,
    matches,
)
from ktp.model.nftables import Concat, SetElement

_CACHE_SIZE = 50_000


class Found(NamedTuple):
    """The outcome of a lookup: the element's payload, if `element` is one; `maybe` all that it might be instead.

    `maybe` empty: certain. `element` None among them means that nothing may be found.
    """

    element: Any
    maybe: tuple[Any, ...] = ()


MISS: Final = Found(None)


class SetLookup:
    """A set or map ready to be asked; `payload(element)` is what is found for an element."""

    __slots__ = (
        "_cache",
        "_catchall",
        "_ends",
        "_exact",
        "_other",
        "_single",
        "_starts",
        "_values",
        "unreadable",
    )

    def __init__(
        self,
        elements: Iterable[SetElement],
        key_types: Sequence[str | None],
        payload: Callable[[SetElement], Any],
    ) -> None:
        self.unreadable = 0  # elements whose key is not understood: each may match anything
        self._single = len(key_types) == 1
        self._exact: dict[Any, Any] = {}
        self._other: list[tuple[Any, Any]] = []
        self._catchall: Any = None
        self._cache: dict[Any, Found] = {}
        spans: list[tuple[int, int, Any]] = []
        for element in elements:
            value = payload(element)
            try:
                key = self._key(element, key_types)
            except (ValueError, KeyError, OSError):
                self.unreadable += 1
                continue
            if isinstance(key, EveryValue):
                self._catchall = value
            elif isinstance(key, Span):
                spans.append((key.low, key.high, value))
            elif isinstance(key, NamePrefix) or (
                isinstance(key, tuple)
                and any(isinstance(part, Span | NamePrefix | EveryValue) for part in key)
            ):
                self._other.append((key, value))
            else:
                self._exact.setdefault(key, value)
        spans.sort(key=lambda span: span[0])
        self._starts = [span[0] for span in spans]
        self._ends = [span[1] for span in spans]
        self._values = [span[2] for span in spans]

    def _key(self, element: SetElement, key_types: Sequence[str | None]) -> Any:
        key = element.key
        if isinstance(key, Concat):
            if len(key.parts) != len(key_types):
                raise ValueError(str(key))  # nft 1.0.6 lists some concatenations in part
            return tuple(
                constant(part, datatype) for part, datatype in zip(key.parts, key_types, strict=True)
            )
        if not self._single:
            found = constant(key, None)
            if found is EVERY:
                return found
            raise ValueError(str(key))
        return constant(key, key_types[0])

    def find(self, key: Any) -> Found:
        """The element for `key` (a value, or a tuple of the parts of a concatenation)."""
        found = self._cache.get(key)
        if found is None:
            found = self._find(key)
            if len(self._cache) > _CACHE_SIZE:
                self._cache.clear()
            self._cache[key] = found
        return found

    def _find(self, key: Any) -> Found:
        parts = key if isinstance(key, tuple) else (key,)
        if any(part is UNKNOWN or isinstance(part, Span) for part in parts):
            return self._find_partly_known(parts)
        found = self._exact.get(key)
        if found is None and isinstance(key, int) and self._starts:
            at = bisect_right(self._starts, key) - 1
            if at >= 0 and key <= self._ends[at]:
                found = self._values[at]
        if found is None:
            for wanted, value in self._other:
                pairs = zip(wanted, parts, strict=False) if isinstance(wanted, tuple) else ((wanted, key),)
                if all(matches(w, v) for w, v in pairs):
                    found = value
                    break
        if found is None:
            found = self._catchall
            if self.unreadable:
                return Found(found, (UNKNOWN, found))
        return Found(found) if found is not None else MISS

    def _find_partly_known(self, parts: tuple[Any, ...]) -> Found:
        maybe: list[Any] = []
        for wanted, value in self._all():
            answer: bool | None = True
            for w, v in zip(wanted, parts, strict=False):
                one = matches(w, v)
                if one is False:
                    answer = False
                    break
                if one is None:
                    answer = None
            if answer is True:
                return Found(value)
            if answer is None and value not in maybe:
                maybe.append(value)
        if self.unreadable:
            maybe.append(UNKNOWN)
        if not maybe:
            return Found(self._catchall) if self._catchall is not None else MISS
        return Found(self._catchall, (*maybe, self._catchall))

    def _all(self) -> Iterable[tuple[tuple[Any, ...], Any]]:
        for key, value in self._exact.items():
            yield (key if isinstance(key, tuple) else (key,)), value
        for low, high, value in zip(self._starts, self._ends, self._values, strict=True):
            yield (Span(low, high),), value
        for key, value in self._other:
            yield (key if isinstance(key, tuple) else (key,)), value
