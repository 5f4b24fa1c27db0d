"""The last step of a transfer: where a lane reads to, and how the bytes get from there into a slot."""

from __future__ import annotations

from typing import Protocol

from offload.memory.arena import HostArena


class Stage(Protocol):
    """Both steps are called one after the other on the lane that does the transfer.

    Attributes:
        in_place: Whether the target is the slot itself. If not, it is the lane's, for one transfer at a time.
    """

    in_place: bool

    def target(self, slot: int) -> memoryview:
        """Writable, block-aligned bytes that the expert for ``slot`` is read into."""
        ...

    def land(self, slot: int) -> None:
        """Brings what was read into ``slot``; when it returns, the slot can be computed with."""
        ...


class HostStage:
    """Experts are read straight into the arena's slots: nothing is left to land."""

    in_place = True

    def __init__(self, arena: HostArena) -> None:
        self._arena = arena

    def target(self, slot: int) -> memoryview:
        """The slot itself."""
        return self._arena.slot(slot)

    def land(self, slot: int) -> None:
        """Nothing: the bytes are there."""
