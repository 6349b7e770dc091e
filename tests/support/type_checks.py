"""Types of arguments and results are checked in tests, each by the quickest way."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping


_WITH_SHAPES = jaxtyping.jaxtyped

CLOSURES = 16
"""Closures of one code that are checked: to compile a check takes 1 ms each time."""

_closures: Counter[CodeType] = Counter()


def install() -> None:
    """Let pytest's hook of jaxtyping decorate functions with `checked`."""
    jaxtyping.jaxtyped = checked


def checked(function: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """What `jaxtyped` does, without its bookkeeping where no shape is to be compared.

    jaxtyping binds the arguments anew at each call and checks them twice, which is
    needed only to compare axes of the same name.
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
    # a string may name anything; it is looked up by jaxtyping
    if any(isinstance(a, str) or "jaxtyping." in repr(a) for a in annotations.values()):
        return _WITH_SHAPES(function, typechecker=typechecker)
    strict = typechecker(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        chosen = function if jaxtyping.config.jaxtyping_disable else strict
        return chosen(*args, **kwargs)

    return call
