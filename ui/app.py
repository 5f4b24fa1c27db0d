"""The Textual application: themes, keys, the terminal's abilities, and the chat on its screen."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.widget import Widget

from offload.errors import DamagedFile, FinemoeError, StorageError
from ui.chat.commands import Commands
from ui.chat.conversation import Reach
from ui.chat.keymap import APP_KEYS, CHAT_KEYS, MESSAGE_KEYS, PROMPT_KEYS, effective, footer_key, parse_keymap
from ui.chat.setup import ChatSetup
from ui.job_control import StopSignals
from ui.mended import MendedApp
from ui.screens.chat import ChatScreen
from ui.sessions import SessionStore
from ui.widgets.ascii import AsciiFilter
from ui.widgets.prompt import Prompt
from ui.widgets.themes import DEFAULT, THEMES
from ui.widgets.turns import Turn

_TWICE_S = 2.0
_STORE_PATIENCE_S = 1.0


def _palette() -> type[Provider]:
    from ui.screens.palette import ChatCommands

    return ChatCommands


class ChatApp(MendedApp):
    """``finemoe chat``.

    Attributes:
        setup: What it was started with.
        keymap: Keys that the user changed.
        last_words: What is to be told when it has ended, in one line; empty for nothing.
    """

    CSS_PATH = "app.tcss"
    TITLE = "finemoe"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_palette}
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key.keys, key.action, key.label, id=key.id, show=key.shown, priority=True) for key in APP_KEYS
    ]

    def __init__(self, setup: ChatSetup) -> None:
        super().__init__()
        self.setup = setup
        self.keymap: dict[str, str] = {}
        self.last_words = ""
        self._last_interrupt = -_TWICE_S
        self._store: SessionStore | None = None
        if setup.ascii_only:
            self._filters.append(AsciiFilter(keep_letters=_is_utf8()))
        for theme in THEMES:
            self.register_theme(theme)

    @property
    def chat(self) -> ChatScreen:
        """The chat's screen; it is at the bottom of the stack."""
        return next(screen for screen in self.screen_stack if isinstance(screen, ChatScreen))

    def on_mount(self) -> None:
        StopSignals(self).watch()
        settings = self.setup.resolved.settings
        problems: list[str] = []
        if settings.theme in self.available_themes:
            self.theme = settings.theme
        else:
            self.theme = DEFAULT
            problems.append(f"there is no theme '{settings.theme}'; see /theme")
        self.keymap, wrong = parse_keymap(settings.keymap or "")
        self.set_keymap(self.keymap)
        self.setup.warnings.extend(problems + wrong)
        self._open_store()

    def _open_store(self) -> None:
        """Opens the sessions, and the chat with them; a damaged file can be put aside, or left alone."""
        path = self.setup.database
        try:
            self._store = SessionStore.open(path, timeout=_STORE_PATIENCE_S)
        except DamagedFile as error:
            from ui.screens.ask import Confirm

            damaged = error

            def answered(put_aside: bool | None) -> None:
                if put_aside:
                    try:
                        kept = SessionStore.set_aside(path)
                        self._store = SessionStore.open(path, timeout=_STORE_PATIENCE_S)
                        self.setup.warnings.append(f"the damaged sessions are kept in {kept}")
                    except StorageError as failure:
                        self._without_store(failure, self._reopen)
                        return
                    self._begin()
                else:
                    self._without_store(damaged)

            self.push_screen(
                Confirm(
                    "The sessions are damaged",
                    f"{error.message}\nThe file can be put aside, kept as it is, and a new one begun.",
                    "put it aside",
                    "chat without saving",
                ),
                answered,
            )
        except StorageError as error:
            self._without_store(error, self._reopen)
        else:
            self._begin()

    def _without_store(self, error: FinemoeError, reach: Reach | None = None) -> None:
        hint = f"; {error.hint}" if error.hint else ""
        then = "\nall of it is saved as soon as that can be" if reach is not None else ""
        self.setup.warnings.append(f"nothing is saved: {error.message}{hint}{then}")
        self._store = SessionStore.in_memory()
        self._begin(saved=False, reach=reach)

    def _reopen(self) -> SessionStore:
        """The sessions, which could not be opened when the chat began, if they can be now."""
        path = self.setup.database
        SessionStore.open(path, timeout=0).close()  # Nobody waits for who writes: that would be done every second.
        self._store = SessionStore.open(path, timeout=_STORE_PATIENCE_S)
        return self._store

    def _begin(self, *, saved: bool = True, reach: Reach | None = None) -> None:
        assert self._store is not None
        self.push_screen(ChatScreen(self.setup, self._store, saved=saved, reach=reach))

    # Keys that work everywhere.

    def action_interrupt(self) -> None:
        """Copies what is selected; or stops the reply; or, the second time, quits."""
        selected = self.screen.get_selected_text()
        if selected:
            self.copy_to_clipboard(selected)
            self.screen.clear_selection()
            return
        if isinstance(self.focused, Prompt) and self.focused.selected_text:
            self.focused.action_copy()
            return
        now = time.monotonic()
        if now - self._last_interrupt < _TWICE_S:
            self.call_later(self.action_quit)
            return
        self._last_interrupt = now
        chat = self.chat if any(isinstance(screen, ChatScreen) for screen in self.screen_stack) else None
        if chat is not None and chat.answering.busy:
            chat.answering.stop()
        self.notify("Ctrl-C once more quits", timeout=_TWICE_S)

    async def action_quit(self) -> None:
        """Ends the chat; everything is kept."""
        for screen in self.screen_stack:
            if isinstance(screen, ChatScreen):
                screen.leave()
        self.exit()

    async def on_unmount(self) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, ChatScreen):
                screen.leave()
        if self._store is not None:
            try:
                self._store.close()
            except StorageError:
                pass  # That nothing can be saved was told.

    # For the chat.

    def help_groups(
        self, focused: Widget | None, commands: Commands
    ) -> list[tuple[str, Sequence[tuple[str, str]]]]:
        """What F1 shows: first what can be done where the focus is."""
        prompt = ("In the prompt", PROMPT_KEYS)
        message = ("On a message", effective(MESSAGE_KEYS, self.keymap))
        keys = ("Keys", effective((*CHAT_KEYS, *APP_KEYS), self.keymap))
        slash = ("Commands", [(command.usage, command.about) for command in commands.all])
        first = [message, prompt] if isinstance(focused, Turn) else [prompt, message]
        return [first[0], keys, slash, first[1]]

    def edit_in_editor(self, prompt: Prompt) -> None:
        """Has what is in the prompt edited in the user's own editor."""
        editor = self.setup.resolved.settings.editor or os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if not editor:
            self.notify("set $EDITOR, or the setting editor, to your editor", severity="warning")
            return
        descriptor, name = tempfile.mkstemp(prefix="finemoe-message-", suffix=".md")
        path = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(prompt.whole)
            with self.suspend():
                done = subprocess.run([*shlex.split(editor), name], check=False)
            if done.returncode:
                self.notify(f"{editor} ended with {done.returncode}; the message is as it was", severity="warning")
            else:
                prompt.set_text(path.read_text(encoding="utf-8", errors="replace").rstrip("\n"))
        except SuspendNotSupported:
            self.notify("this terminal cannot be given to an editor", severity="warning")
        except (OSError, ValueError) as error:
            self.notify(f"cannot run {editor}: {error}", severity="warning", markup=False)
        finally:
            path.unlink(missing_ok=True)
        prompt.focus()

    @staticmethod
    def machine_bytes() -> int | None:
        """What a process may take on this machine."""
        from offload.telemetry.probes import HostProbe

        host = HostProbe().read()
        sizes = [size for size in (host.total_bytes, host.limit_bytes) if size]
        return min(sizes) if sizes else None

    def get_key_display(self, binding: Binding) -> str:
        return footer_key(binding)


def _is_utf8() -> bool:
    return (getattr(sys.__stdout__, "encoding", None) or "").lower().replace("-", "") == "utf8"
