"""Ctrl-O: every session, found as you type, opened, renamed, deleted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from offload.errors import FinemoeError
from ui.screens.ask import AskLine, Confirm
from ui.sessions import Hit, Session, SessionStore
from ui.sessions.meaning import Embedder, open_embedder
from ui.text import without_controls

_TITLE_COLUMNS = 40
"""What a title may take in the list; a longer one is cut."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A session to open, on the branch of a message if one was found."""

    session: int
    message: int | None


class SessionsScreen(ModalScreen[Chosen | None]):
    """All sessions; with words in its line, the messages that have them.

    Args:
        store: Where they are.
        query: What to search for at once.
        current: The session that is on the screen; it can be renamed here, and deleted.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+o", "leave", "Back", priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
        Binding("pagedown", "move(10)", "Down", show=False, priority=True),
        Binding("pageup", "move(-10)", "Up", show=False, priority=True),
        Binding("ctrl+r", "rename", "Rename", priority=True),
        Binding("ctrl+d,delete", "delete", "Delete", priority=True),
        Binding("ctrl+t", "meaning", "By meaning", priority=True),
    ]

    def __init__(self, store: SessionStore, query: str = "", current: int | None = None) -> None:
        super().__init__()
        self._store = store
        self._query = query
        self._current = current
        self._rows: list[Session | Hit] = []
        self._by_meaning = False
        self._embedder: Embedder | None = None
        self.deleted: list[int] = []
        self.renamed = False

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog wide"):
            yield Static("Sessions", classes="title", markup=False)
            yield Input(self._query, placeholder="type to search every message", compact=True)
            yield OptionList(compact=True)
            yield Static("", id="problem", markup=False)
            yield Static(
                "Enter: open · ^R: rename · ^D: delete · ^T: by meaning · Esc: back",
                classes="keys",
                markup=False,
            )

    def on_mount(self) -> None:
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self._find()

    def on_unmount(self) -> None:
        if self._embedder is not None:
            self._embedder.close()

    def on_input_changed(self) -> None:
        if self._by_meaning:
            self._say("Enter searches by meaning")
        else:
            self._find()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self._by_meaning and event.value.strip() and event.value != self._query:
            self._query = event.value
            self.run_worker(self._find_by_meaning(event.value), exclusive=True)
        else:
            self._open()

    def on_option_list_option_selected(self) -> None:
        self._open()

    def action_leave(self) -> None:
        self.dismiss(None)

    def action_move(self, step: int) -> None:
        options = self.query_one(OptionList)
        if self._rows:
            options.highlighted = min(max((options.highlighted or 0) + step, 0), len(self._rows) - 1)

    def action_meaning(self) -> None:
        """Turns the search by meaning on and off."""
        if self._by_meaning:
            self._by_meaning = False
            self._find()
            return
        try:
            self._embedder = self._embedder or open_embedder()
        except FinemoeError as error:
            self._say(error.message)
            return
        if self._embedder is None:
            self._say("no embedder is installed here; see docs/sessions.md")
            return
        self._by_meaning = True
        self._query = ""
        self._say("write what it was about; Enter searches by meaning")

    def action_rename(self) -> None:
        session = self._session
        if session is None:
            return

        def rename(title: str | None) -> None:
            if title is None:
                return
            try:
                self._store.rename(session.id, title)
                self.renamed = True
            except FinemoeError as error:
                self._say(error.message)
            self._find()

        self.app.push_screen(AskLine("Another title", session.title), rename)

    def action_delete(self) -> None:
        session = self._session
        if session is None:
            return

        def delete(sure: bool | None) -> None:
            if not sure:
                return
            try:
                self._store.delete(session.id)
                self.deleted.append(session.id)
            except FinemoeError as error:
                self._say(error.message)
            self._find()

        count = f"{session.messages} {'message' if session.messages == 1 else 'messages'}"
        self.app.push_screen(
            Confirm(
                f"Delete “{session.title}”?", f"It has {count}, and cannot be had back.", "delete it", "keep it"
            ),
            delete,
        )

    @property
    def _session(self) -> Session | None:
        row = self._row
        return row.session if isinstance(row, Hit) else row

    @property
    def _row(self) -> Session | Hit | None:
        place = self.query_one(OptionList).highlighted
        return self._rows[place] if place is not None and place < len(self._rows) else None

    def _open(self) -> None:
        row = self._row
        if isinstance(row, Hit):
            self.dismiss(Chosen(row.session.id, row.message.id))
        elif row is not None:
            self.dismiss(Chosen(row.id, None))

    def _find(self) -> None:
        query = self.query_one(Input).value
        try:
            found = self._store.search(query) if query.strip() else self._store.sessions()
        except FinemoeError as error:
            self._say(error.message)
            return
        self._show(list(found))
        self._say("" if found else ("nothing has these words" if query.strip() else "no session yet"))

    async def _find_by_meaning(self, query: str) -> None:
        assert self._embedder is not None
        embedder = self._embedder
        self._say("searching by meaning ...")
        try:
            found = await asyncio.to_thread(self._store.search_by_meaning, query, embedder)
        except FinemoeError as error:
            self._say(error.message)
            return
        self._show(list(found))
        self._say("Enter opens what is highlighted" if found else "there is nothing to search")

    def _show(self, rows: list[Session | Hit]) -> None:
        before = self._row
        self._rows = rows
        options = self.query_one(OptionList)
        options.clear_options()
        titles = [cell_len(_title(row)) for row in rows if isinstance(row, Session)]
        width = min(max(titles, default=0), _TITLE_COLUMNS)
        options.add_options(Option(self._line(row, width)) for row in rows)
        # A session that was renamed stays the one that is meant.
        same = [n for n, row in enumerate(rows) if _key(row) == _key(before)]
        options.highlighted = (same[0] if same else 0) if rows else None

    def _line(self, row: Session | Hit, width: int) -> Content:
        """A row; the titles of sessions take ``width`` columns, so that what follows stands in one."""
        if isinstance(row, Hit):
            who = "you" if row.message.role == "user" else "model"
            title = without_controls(row.session.title)
            return Content.assemble(
                (title or "without a title", "bold"), (f"  {who}: ", "$primary"), without_controls(row.snippet)
            )
        mark = "● " if row.id == self._current else "  "
        count = f"{row.messages} {'message' if row.messages == 1 else 'messages'}"
        facts = " · ".join(part for part in (when(row.updated), count, row.model) if part)
        title = _title(row)
        shown = title if cell_len(title) <= width else set_cell_size(title, width - 1) + "…"
        return Content.assemble(
            (mark + set_cell_size(shown, width), "bold"), (f"  {without_controls(facts)}", "$foreground 60%")
        )

    def _say(self, text: str) -> None:
        self.query_one("#problem", Static).update(text)


def _title(session: Session) -> str:
    return without_controls(session.title) or "without a title"


def _key(row: Session | Hit | None) -> tuple[int, int]:
    if row is None:
        return (0, 0)
    return (row.session.id, row.message.id) if isinstance(row, Hit) else (row.id, 0)


def when(seconds: float) -> str:
    """A time as people say it: the hour today, otherwise the day."""
    time = datetime.fromtimestamp(seconds)
    if time.date() == datetime.now().date():
        return f"{time:%H:%M}"
    return f"{time:%Y-%m-%d}"
