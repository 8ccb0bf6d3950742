"""The place that laws are tried on, and what is called before each of its operations and may end the process there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

from raysnap.store.backends.place import Place
from raysnap.store.store import Store
from raysnap.store.store_file import check_or_create


class Killed(BaseException):
    """The process is gone: nothing after this may change anything."""


class NewPlace(Protocol):
    """An empty place; each `open` is as another process sees it."""

    def open(self) -> Place:
        """Return the place, with nothing kept from other calls."""

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass on all clocks that the place goes by; nothing where it goes by none."""


def open_store(place: Place, *, create: bool = False) -> Store:
    """Open the store in a place."""
    check_or_create(place, create)
    return Store(cast(Any, place.where()), place)


class Operation(NamedTuple):
    """One operation of a place, before it is done: its number, from 1, and its name."""

    number: int
    name: str


Before: TypeAlias = Callable[[Operation], None]
"""Called before an operation is done; may raise `Killed`."""


def watched(place: Place, before: Before) -> Place:
    """Return the place with all its operations, and those of its drafts and garbage, shown before they are done.

    Once `before` has raised `Killed`, so does each further operation: that process is gone.
    """
    return cast(Place, _Watched(place, _Watch(before)))


class _Watch:
    def __init__(self, before: Before):
        self._before, self._num, self._is_dead = before, 0, False
        self.left: list[object] = []  # what a dead process had open, kept from being closed

    def __call__(self, name: str) -> None:
        if self._is_dead:
            raise Killed
        self._num += 1
        try:
            self._before(Operation(self._num, name))
        except Killed:
            self._is_dead = True
            raise


class _Watched:
    """An object whose methods are shown to a watch; what they return and give out is watched, too."""

    def __init__(self, inner: Any, watch: _Watch):
        self._inner, self._watch = inner, watch

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value) or name in ("where", "map"):
            return value

        def shown(*args: Any, **kwargs: Any) -> Any:
            self._watch(name)
            result = value(*args, **kwargs)
            if isinstance(result, AbstractContextManager):
                return self._entered(name, result)
            return result

        return shown

    @contextmanager
    def _entered(self, name: str, manager: AbstractContextManager[Any]) -> Iterator[Any]:
        """Do as the context manager, unless the process dies inside: then what it does at its end is not done."""
        entered = manager.__enter__()
        try:
            yield _Watched(entered, self._watch) if name in ("draft", "condemn") else entered
        except Killed:
            if name == "hold_names":  # the system lets go of a dead process's lock
                manager.__exit__(None, None, None)
            self._watch.left.append(manager)
            raise
        except BaseException as error:
            if not manager.__exit__(type(error), error, error.__traceback__):
                raise
        else:
            self._watch(f"end of {name}")
            manager.__exit__(None, None, None)


def killed_at(step: int) -> Before:
    """End the process in place of the operation of this number."""

    def before(operation: Operation) -> None:
        if operation.number == step:
            raise Killed

    return before


def count_operations(place: Place, act: Callable[[Store], object]) -> int:
    """Do something with the store in a place, and return how many operations it took."""
    numbers = [0]
    act(open_store(watched(place, lambda operation: numbers.append(operation.number))))
    return max(numbers)
