"""Reads a pickle without running it: what it builds is plain values, and records of the names that it would have called.

A pickle is a program for a stack machine, and Python's own machine imports and calls whatever it names. This one has the opcodes of plain
values and containers, and four that name or call something, of which it writes down the name and the arguments. A name or an opcode that is
not listed here is an error. Nothing is looked up, imported or called.
"""

import mmap
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from repro.errors import one_line

MOST_OPCODES = 2**20  # a network has some 100,000; each takes a few hundred bytes of memory at most


@dataclass(frozen=True)
class Name:
    """What the pickle names: a class or a function, `module.name`; nothing but the text."""

    text: str


@dataclass(eq=False)
class Made:
    """What the pickle would have made.

    Attributes:
        what: The name that it would have called.
        arguments: With which arguments.
        state: What it would have set afterwards.
    """

    what: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False)
class Persistent:
    """What the pickle says lies elsewhere."""

    reference: Any


class _Mark:
    """Where a run of items begins on the stack."""


def read_pickle(stream: BinaryIO | mmap.mmap, names: Collection[str]) -> Any:
    """Returns what a pickle holds; the stream is left after its end.

    An ordered dictionary is a dictionary, and a set a list.

    Args:
        stream: Of a file that is mapped or in memory already, so that a length in it can ask for no more than there is.
        names: Those that it may name.

    Raises:
        ValueError: It is none, or has an opcode or a name that is not known here.
    """
    machine = _Machine(names)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(BinaryIO, stream))):
            if count == MOST_OPCODES:
                raise ValueError(f"it has more than {MOST_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except (IndexError, KeyError, TypeError) as error:  # the stack or the memo lacks what is asked of it
        raise ValueError(f"it is no pickle ({error})") from error
    raise ValueError("it ends too early")


class _Machine:
    """The stack and the memo."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        # All opcodes that are known.
        self._opcodes: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"), self._push),
            **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), self._push),
            "NONE": lambda _: self._push(None),
            "NEWTRUE": lambda _: self._push(True),
            "NEWFALSE": lambda _: self._push(False),
            "MARK": lambda _: self._push(_Mark),
            "EMPTY_TUPLE": lambda _: self._push(()),
            "TUPLE1": lambda _: self._push_tuple(1),
            "TUPLE2": lambda _: self._push_tuple(2),
            "TUPLE3": lambda _: self._push_tuple(3),
            "TUPLE": lambda _: self._push(tuple(self._since_mark())),
            **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda _: self._push([])),
            "APPEND": lambda _: self._extend([self.pop()]),
            **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda _: self._extend(self._since_mark())),
            "EMPTY_DICT": lambda _: self._push({}),
            "SETITEM": lambda _: self._update([self.pop(), self.pop()][::-1]),
            "SETITEMS": lambda _: self._update(self._since_mark()),
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._remember),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda place: self._push(self._memo[place])),
            "GLOBAL": lambda text: self._push(self._known(text.replace(" ", ".", 1))),
            "STACK_GLOBAL": lambda _: self._push(self._known(".".join([self.pop(), self.pop()][::-1]))),
            **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda _: self._call()),
            "BUILD": lambda _: self._set_state(),
            "BINPERSID": lambda _: self._push(Persistent(self.pop())),
        }

    def run(self, name: str, argument: Any) -> None:
        """Does what one opcode says."""
        if name not in self._opcodes:
            raise ValueError(f"its opcode {name} is not one of plain values and tensors")
        self._opcodes[name](argument)

    def pop(self) -> Any:
        """Takes the topmost value off the stack."""
        value = self._stack.pop()
        if value is _Mark:
            raise ValueError("it is no pickle (a mark in place of a value)")
        return value

    def _top(self) -> Any:
        value = self.pop()
        self._push(value)
        return value

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _push_tuple(self, length: int) -> None:
        self._push(tuple([self.pop() for _ in range(length)][::-1]))

    def _remember(self, place: int) -> None:
        self._memo[place] = self._top()

    def _since_mark(self) -> list[Any]:
        items = []
        while (value := self._stack.pop()) is not _Mark:
            items.append(value)
        return items[::-1]

    def _known(self, text: str) -> Name:
        if text not in self._names:
            raise ValueError(f"it names {one_line(text, 80)}, which is not one of {', '.join(self._names)}")
        return Name(text)

    def _call(self) -> None:
        arguments, what = self.pop(), self.pop()
        if not isinstance(what, Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no name")
        ordered = what.text == "collections.OrderedDict" and not arguments
        self._push({} if ordered else Made(what.text, arguments))

    def _set_state(self) -> None:
        state, made = self.pop(), self._top()
        if not isinstance(made, Made) or made.state is not None:
            raise ValueError("it sets the state of what it did not make")
        made.state = state

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise ValueError("it appends to what is no list")
        target += items

    def _update(self, items: list[Any]) -> None:
        target, keys = self._top(), items[::2]
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise ValueError("it has a dictionary whose keys are neither text nor numbers")
        target.update(zip(keys, items[1::2], strict=True))
