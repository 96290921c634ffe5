"""An object of another library gets methods of ours before its own class's, and keeps its identity and its class's name."""

from __future__ import annotations

import functools


@functools.cache
def _class_of(plain: type, before: type) -> type:
    members = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__, "_conclave_plain_class": plain}
    return type(plain.__name__, (before, plain), members)


def stand_before(instance: object, before: type) -> None:
    """Unlike a method put on the instance, this goes along with a deep copy, and acts there on the copy. Once only."""
    if not isinstance(instance, before):
        instance.__class__ = _class_of(type(instance), before)


def plain_class(derived: type) -> type:
    """The class that an object had before `stand_before`, and before fully_shard if that came later."""
    return getattr(derived, "_conclave_plain_class", derived)
