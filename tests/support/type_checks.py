"""Types of arguments and results are checked in tests, each by the quickest way."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping
from jaxtyping import _storage as storage


_WITH_SHAPES = jaxtyping.jaxtyped

CLOSURES = 16
"""Closures of one code that are checked: to compile a check takes 1 ms each time."""

_closures: Counter[CodeType] = Counter()


def install() -> None:
    """Let pytest's hook of jaxtyping decorate functions with `checked`."""
    jaxtyping.jaxtyped = checked


def checked(function: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """What `jaxtyped` does, with one pass of checks for its two.

    jaxtyping binds the arguments anew at each call and checks them twice, for the sake
    of its messages. Sizes of axes of the same name are compared here too: the checks of
    one call share jaxtyping's memory of sizes, which only annotations with shapes need.
    """
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if not inspect.isfunction(function):
        return _WITH_SHAPES(function, typechecker=typechecker)
    annotations = function.__annotations__
    if not annotations:
        return function
    if "<locals>" in function.__qualname__:
        _closures[function.__code__] += 1
        if _closures[function.__code__] > CLOSURES:
            return function
    if any(isinstance(a, str) for a in annotations.values()):
        # a string may name anything; it is looked up by jaxtyping
        return _WITH_SHAPES(function, typechecker=typechecker)
    shapes = any("jaxtyping." in repr(a) for a in annotations.values())
    strict = typechecker(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if not shapes:
            return strict(*args, **kwargs)
        storage.push_shape_memo({})
        try:
            return strict(*args, **kwargs)
        finally:
            storage.pop_shape_memo()

    return call
