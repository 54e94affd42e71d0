"""Dataclasses whose methods are made late: they are what `dataclasses.dataclass` makes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from threading import Barrier, Thread

import pytest

from ktp.model.record import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Frozen, with defaults."""

    name: str
    number: int = 7
    more: tuple[int, ...] = dataclasses.field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """To be derived from."""

    left: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Base):
    """With a field more."""

    right: str


@dataclass(frozen=True, slots=True, eq=False)
class Same:
    """Compared by identity."""

    value: int


@dataclass(slots=True)
class Open:
    """Not frozen, with a factory and a last word."""

    items: list[int] = dataclasses.field(default_factory=list)
    total: int = 0

    def __post_init__(self) -> None:
        self.total = sum(self.items)


def test_positions_defaults_and_words() -> None:
    assert Place("a") == Place("a", 7, ())
    assert repr(Place("a", more=(1,))) == "Place(name='a', number=7, more=(1,))"
    assert (Place("a").number, Place("a").more) == (7, ())
    assert hash(Place("a")) == hash(Place("a", 7))
    assert Place("a") != Place("b")
    with pytest.raises(TypeError):
        Place()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Derived(1, "x")  # type: ignore[call-arg]


def test_frozen_and_without_a_dict() -> None:
    one = Place("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "b"  # type: ignore[misc]
    assert not hasattr(one, "__dict__")
    assert not hasattr(Open(), "__dict__")


def test_derived() -> None:
    assert Derived(right="x") == Derived(left=1, right="x")
    assert [f.name for f in dataclasses.fields(Base)] == ["left"]  # a derived class has its base made
    assert [f.name for f in dataclasses.fields(Derived(right="x"))] == ["left", "right"]


def test_identity_factory_and_post_init() -> None:
    assert Same(1) != Same(1)
    assert Open().items is not Open().items
    assert Open([1, 2]).total == 3


def test_matched_replaced_and_copied() -> None:
    one = Place("a", 2)
    match one:
        case Place(name, number):
            assert (name, number) == ("a", 2)
        case _:
            pytest.fail("not matched")
    assert dataclasses.replace(one, number=3) == Place("a", 3)
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one


def test_many_threads_make_the_first_objects() -> None:
    @dataclass(frozen=True, slots=True)
    class Asked:
        """Of every thread."""

        number: int
        word: str = "w"

    found: list[Asked] = []
    gate = Barrier(8)

    def make(number: int) -> None:
        gate.wait()
        found.append(Asked(number))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [Thread(target=make, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert sorted(a.number for a in found) == list(range(8))
    assert {a.word for a in found} == {"w"}
