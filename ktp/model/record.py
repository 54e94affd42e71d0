"""`dataclass`, with its methods made when the first object is.

Most runs make objects of a third of ktp's dataclasses. Python writes and compiles the source of some eight methods for
each as its module is imported, which was half the time that ktp took to start.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    _UNMADE = "_make_methods"
    _making = threading.RLock()

    def dataclass(**how: Any) -> Callable[[type], type]:
        """As `dataclasses.dataclass`, with slots, for classes that are looked into by their objects alone."""

        def prepare(cls: type) -> type:
            for base in cls.__mro__[1:]:
                if make_methods := vars(base).get(_UNMADE):
                    make_methods()
            return _prepared(cls, {name: value for name, value in how.items() if name != "slots"})

        return prepare

    def _prepared(cls: type, how: dict[str, Any]) -> type:
        names = tuple(cls.__annotations__)
        left_out = ("__dict__", "__weakref__", *names)
        body = {k: v for k, v in vars(cls).items() if k not in left_out}
        made = type(cls)(cls.__name__, cls.__bases__, {**body, "__slots__": names})
        made.__qualname__ = cls.__qualname__

        def make_methods() -> None:
            with _making:
                if _UNMADE not in vars(made):
                    return  # another thread was first
                # On the class without slots, which has the defaults, and then to the one with them.
                before = dict(vars(cls))
                dataclasses.dataclass(**how)(cls)
                methods = {k: v for k, v in vars(cls).items() if k not in names and before.get(k) is not v}
                if how.get("frozen"):
                    methods.update(__getstate__=_state, __setstate__=_set_state)
                init = methods.pop("__init__")
                for name, method in methods.items():
                    setattr(made, name, method)
                made.__init__ = init  # from now on other threads do without this
                delattr(made, _UNMADE)

        def first(self: Any, *args: Any, **kwargs: Any) -> None:
            make_methods()
            made.__init__(self, *args, **kwargs)

        made.__init__ = first
        setattr(made, _UNMADE, staticmethod(make_methods))
        return made

    def _state(self: Any) -> list[Any]:
        return [getattr(self, f.name) for f in dataclasses.fields(self)]

    def _set_state(self: Any, state: list[Any]) -> None:
        for f, value in zip(dataclasses.fields(self), state, strict=True):
            object.__setattr__(self, f.name, value)
