"""F4: the memory profiles, what each takes of this model, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from offload.memory.budget import FixedCosts
from offload.units import format_bytes
from profiles.budget import Budget
from profiles.store import Profile

if TYPE_CHECKING:
    from offload.telemetry.frame import Frame


@dataclass(frozen=True, slots=True)
class Offer:
    """A profile for this model.

    Attributes:
        name: Its name.
        budget: As it is given.
        takes: Bytes it would take; None where that is not known.
        slots: Experts resident at once; None where that is not known.
        problem: Why it does not fit, in a few words; empty if it does, or if nobody knows yet.
        about: Its description.
    """

    name: str
    budget: str
    takes: int | None
    slots: int | None
    problem: str
    about: str


def offer(profile: Profile, frame: Frame | None, machine_bytes: int | None) -> Offer:
    """What ``profile`` would be for the model that is open.

    Args:
        frame: The engine's latest; None while there is none.
        machine_bytes: What a process may take here.
    """
    budget = str(profile.budget)
    if frame is None:
        return Offer(profile.name, budget, None, None, "", profile.description)
    takes, slots = _plan(profile.budget, frame)
    smallest, _ = _plan(Budget(experts_fraction=0.0), frame)
    problem = ""
    if takes < smallest:
        problem = f"too small: {format_bytes(smallest)} is the least"
    elif machine_bytes is not None and takes > machine_bytes:
        problem = f"more than the {format_bytes(machine_bytes)} here"
    return Offer(profile.name, budget, takes, slots, problem, profile.description)


def _plan(budget: Budget, frame: Frame) -> tuple[int, int]:
    """Bytes and slots, by the engine's own arithmetic (`offload.memory.budget`)."""
    memory, facts = frame.memory, frame.facts
    fixed = FixedCosts(**{part.name: getattr(memory, part.name) for part in fields(FixedCosts)})
    experts = facts.layers * facts.experts
    if budget.total_bytes is not None:
        room = budget.total_bytes - fixed.total + fixed.lendable_bytes
        return budget.total_bytes, max(min(room // memory.slot_bytes, experts), 0)
    assert budget.experts_fraction is not None
    slots = max(min(2 * facts.top_k, experts), round(budget.experts_fraction * experts))
    return fixed.total + slots * memory.slot_bytes, slots


class ProfilesScreen(ModalScreen[str | None]):
    """Chooses a profile; None if it was left with Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f4", "leave", "Leave it")]

    def __init__(self, offers: Sequence[Offer], current: str, holding: str) -> None:
        super().__init__()
        self._offers = offers
        self._current = current
        self._holding = holding

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Static("Memory profile", classes="title", markup=False)
            yield Static(self._holding, classes="about", markup=False)
            yield OptionList(*(Option(self._row(one), id=one.name) for one in self._offers), compact=True)
            yield Static(
                "Enter: change, a reply's text stays the same · Esc: back",
                classes="keys",
                markup=False,
            )

    def on_mount(self) -> None:
        names = [one.name for one in self._offers]
        options = self.query_one(OptionList)
        options.highlighted = names.index(self._current) if self._current in names else 0
        options.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_leave(self) -> None:
        self.dismiss(None)

    def _row(self, one: Offer) -> Content:
        mark = "●" if one.name == self._current else " "
        width = max(len(other.name) for other in self._offers)
        takes = format_bytes(one.takes) if one.takes is not None else ""
        slots = f"{one.slots:,} experts" if one.slots is not None else ""
        numbers = f"{one.budget:<8} {takes:>9}  {slots:<15}"
        verdict = (one.problem, "$error") if one.problem else (("fits", "$success") if takes else ("", ""))
        return Content.assemble(
            (f"{mark} {one.name.ljust(width)}  ", "bold"), (numbers, "$foreground 60%"), verdict
        )
