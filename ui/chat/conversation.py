"""One session as the chat sees it: the branch that is shown, and the reply that is being written.

It goes on whatever happens to the store: where that cannot be written, the branch moves into memory, whoever shows
the chat is told, and what was said since is written down as soon as it can be. A session that was deleted under it
is made anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from offload.errors import DamagedFile, FinemoeError, NotFound, StorageError
from ui.engine_link import Conversation as Messages
from ui.sessions import Copies, Message, Session, SessionStore, rescue

T = TypeVar("T")
OnUnsaved = Callable[[FinemoeError], None]
Reach = Callable[[], SessionStore]
"""Opens the store on the disk. Raises :class:`StorageError`."""

_AGAIN_S = 1.0
_AGAIN_SHARE = 20
"""How long after an attempt to save the next one comes: a second, or so many times as long as it took."""

_IN_MEMORY = 1 << 40
"""From here on messages in memory are numbered: no file has as many, so that no number means two."""


class Conversation:
    """The conversation on the screen.

    Args:
        store: Where it is kept.
        on_unsaved: Told when nothing can be saved any more, or not for now.
        reach: Where ``store`` is in memory because the file cannot be opened: opens it, when that can be again.

    Attributes:
        session: None until something was said.
        branch: Its messages, oldest first.
        saved: Whether it is kept on the disk.
        model: Name of the model it is with.
        system: The system prompt; empty if there is none.
    """

    def __init__(
        self, store: SessionStore, on_unsaved: OnUnsaved, *, saved: bool = True, reach: Reach | None = None
    ) -> None:
        self.store = store
        self.session: Session | None = None
        self.branch: list[Message] = []
        self.saved = saved
        self.model = ""
        self.system = ""
        self._on_unsaved = on_unsaved
        self._renamed: dict[int, int] = {}
        self._reach = reach
        self._known = Copies()
        self._next_try = 0.0

    def new(self, model: str, system: str) -> None:
        """Begins another conversation, which is written down with its first message."""
        self.session, self.branch = None, []
        self.model, self.system = model, system
        self._renamed = {}

    def open(self, session_id: int, message_id: int | None = None) -> None:
        """Goes on with a kept one, on the branch of ``message_id`` if that is given.

        Raises:
            NotFound: It is not there.
            StorageError: It cannot be read.
        """
        session = self.store.get(session_id)
        if message_id is not None:
            session = self.store.select(session_id, message_id)
        branch = self.store.path(session.leaf)
        self.session, self.branch = session, branch
        self.model, self.system = session.model, session.system
        self._renamed = {}

    @property
    def title(self) -> str:
        """What it is about; empty before anything was said."""
        return self.session.title if self.session else ""

    @property
    def last(self) -> Message | None:
        """The last message."""
        return self.branch[-1] if self.branch else None

    def say(self, text: str) -> Message:
        """Adds a message of the user's at the end."""
        return self._add("user", text)

    def begin_reply(self) -> Message:
        """Adds a reply that is being written."""
        return self._add("assistant", "")

    def grow(self, message_id: int, text: str) -> None:
        """Adds text to it."""
        self._keep(lambda: self.store.append(self.id_of(message_id), text))

    def finish(self, message_id: int, reason: str, text: str, stats: dict[str, Any] | None) -> Message:
        """Ends it: ``text`` is all of it."""

        def work() -> Message:
            if self.store.message(self.id_of(message_id)).content != text:
                self.store.replace(self.id_of(message_id), text)
            return self.store.finish(self.id_of(message_id), reason, stats)

        message = self._keep(work)
        self.branch = [message if old.id == message.id else old for old in self.branch]
        return message

    def go_back_to(self, message_id: int | None) -> None:
        """Makes ``message_id`` the last one shown; what follows it stays in the store as another branch."""
        ids = [message.id for message in self.branch]
        kept = 0 if message_id is None else ids.index(self.id_of(message_id)) + 1
        self.branch = self.branch[:kept]

    def siblings(self, message_id: int) -> tuple[int, int]:
        """Which of how many versions of a message it is, counted from 1."""
        ids = self._sibling_ids(message_id)
        return ids.index(self.id_of(message_id)) + 1, len(ids)

    def move(self, message_id: int, step: int) -> bool:
        """Shows the version ``step`` after this one; False if there is none."""
        ids = self._sibling_ids(message_id)
        place = ids.index(self.id_of(message_id)) + step
        if not 0 <= place < len(ids) or self.session is None:
            return False
        session = self.session.id
        self.session = self._keep(lambda: self.store.select(session, ids[place]))
        self.branch = self.store.path(self.session.leaf)
        return True

    def set_system(self, system: str) -> None:
        """Gives it another system prompt; an empty one is none."""
        self.system = system
        if self.session is not None:
            self.session = self._keep(lambda: self.store.set_system(self._session_id, system))

    def change_of_model(self, model: str) -> str:
        """What to tell the user before `model` goes on with it; empty where it did all along."""
        return "" if self.model == model else f"this session was with {self.model}, and goes on with {model}"

    def set_model(self, model: str) -> None:
        """Goes on with another model."""
        self.model = model
        if self.session is not None:
            self.session = self._keep(lambda: self.store.set_model(self._session_id, model))

    def rename(self, title: str) -> None:
        """Gives it another title.

        Raises:
            ConfigError: The title is empty.
        """
        if self.session is not None:
            self.session = self._keep(lambda: self.store.rename(self._session_id, title))

    def messages(self) -> Messages:
        """The branch as a chat template takes it. Replies of which there is nothing are left out."""
        said = [{"role": "system", "content": self.system}] if self.system else []
        return said + [{"role": one.role, "content": one.content} for one in self.branch if one.content]

    def id_of(self, message_id: int) -> int:
        """The id that a message has now; it changes when the conversation moves into memory."""
        return self._renamed.get(message_id, message_id)

    def catch_up(self, *, patient: bool = False) -> bool:
        """Writes down what is only in memory, if it is time to try again; whether all is saved from now on.

        Args:
            patient: Try at any time, and wait for another process that writes.
        """
        begun = time.monotonic()
        if self.saved or self._reach is None or (begun < self._next_try and not patient):
            return False
        memory, session, branch = self.store, self.session, self.branch
        try:
            disk = self._reach()
            self._reach = lambda: disk
            written = disk.take_over(memory, self._known, patient=patient)
            if session is not None:
                session = disk.get(written.sessions[session.id])
                branch = disk.path(written.messages[branch[-1].id]) if branch else []
        except StorageError:
            now = time.monotonic()
            self._next_try = now + max(_AGAIN_S, _AGAIN_SHARE * (now - begun))
            return False
        self.store, self.session, self.branch, self.saved = disk, session, branch, True
        self._reach = None
        renamed = {old: written.messages.get(new, new) for old, new in self._renamed.items()}
        self._renamed = renamed | written.messages
        memory.close()
        return True

    def last_words(self, folder: Path) -> str:
        """At the end: saves what is only in memory, or else writes it to files in ``folder``.

        Returns:
            What to tell the user, in one line; empty if all is saved.
        """
        if self.saved or self.catch_up(patient=True):
            return ""
        return rescue(self.store, folder)

    @property
    def _session_id(self) -> int:
        assert self.session is not None
        return self.session.id

    def _add(self, role: str, text: str) -> Message:
        def work() -> Message:
            if self.session is None:
                self.session = self.store.create(model=self.model, system=self.system)
            parent = self.branch[-1].id if self.branch else None
            message = self.store.add(self.session.id, parent, role, text)
            self.session = self.store.get(self.session.id)
            return message

        message = self._keep(work)
        self.branch.append(message)
        return message

    def _sibling_ids(self, message_id: int) -> list[int]:
        return [message.id for message in self._keep(lambda: self.store.siblings(self.id_of(message_id)))]

    def _keep(self, work: Callable[[], T]) -> T:
        try:
            try:
                return work()
            except NotFound:  # Another process deleted the session. Who goes on with it wants it kept.
                self._move_into(self.store)
                return work()
        except StorageError as error:
            if not self.saved:
                raise
            self._go_on_in_memory(error)
            return work()

    def _go_on_in_memory(self, error: StorageError) -> None:
        disk, session, branch = self.store, self.session, self.branch
        self.saved = False
        self._reach = None if isinstance(error, DamagedFile) else lambda: disk
        self._next_try = time.monotonic() + _AGAIN_S
        self._move_into(SessionStore.in_memory(after=max([_IN_MEMORY, *self._renamed])))
        self._known = Copies()
        if session is not None and self.session is not None:
            self._known.sessions[self.session.id] = session.id
            moved = zip(self.branch, branch, strict=True)
            self._known.messages.update({copy.id: message.id for copy, message in moved})
        self._on_unsaved(error)

    def _move_into(self, store: SessionStore) -> None:
        """Copies the branch into a session of ``store``; other branches cannot be read any more."""
        before, branch = self.session, self.branch
        self.store = store
        self.session, self.branch = None, []
        if before is None:
            return
        self.session = self.store.create(before.title, self.model, self.system)
        for old in branch:
            parent = self.branch[-1].id if self.branch else None
            made = self.store.add(self.session.id, parent, old.role, old.content)
            if old.finish_reason is not None:
                made = self.store.finish(made.id, old.finish_reason, old.stats)
            self._renamed[old.id] = made.id
            self.branch.append(made)
        for source, target in list(self._renamed.items()):
            self._renamed[source] = self._renamed.get(target, target)
        self.session = self.store.get(self.session.id)
