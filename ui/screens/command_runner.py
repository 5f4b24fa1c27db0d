"""What each slash command does."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offload.config import POLICIES
from offload.errors import ConfigError, FinemoeError, StorageError
from offload.files import storage_errors
from profiles.budget import Budget
from profiles.config_file import store_setting
from profiles.models import DEMO, pulled_models
from profiles.settings import check_setting
from profiles.store import list_profiles, profile_names
from ui.chat.commands import SAMPLING, Command, Commands, code_blocks
from ui.screens.telemetry import recordings
from ui.sessions import export_json, export_markdown

if TYPE_CHECKING:
    from ui.screens.chat import ChatScreen


class CommandRunner:
    """Runs commands for a chat; each of its methods ``do_...`` is one."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self.commands = Commands(
            profiles=profile_names,
            models=lambda: list(dict.fromkeys([DEMO, *pulled_models()])),
            themes=lambda: sorted(screen.app.available_themes),
            recordings=lambda: map(str, recordings()),
        )

    async def run(self, command: Command, argument: str) -> None:
        """Runs one; what is wrong with it is told."""
        work: Callable[[str], Coroutine[Any, Any, None]] = getattr(self, f"do_{command.name.replace('-', '_')}")
        try:
            await work(argument)
        except FinemoeError as error:
            hint = f"\n{error.hint}" if error.hint else ""
            await self._screen.say(f"{command.usage}: {error.message}{hint}", "error")

    def from_palette(self, command: Command, argument: str) -> None:
        """Runs one; where it needs an argument that is not there yet, the prompt is where to write it."""
        if command.needs_argument and not argument:
            self._screen.prompt.set_text(f"/{command.name} ")
            self._screen.prompt.focus()
        else:
            self._screen.call_later(self.run, command, argument)

    def choose_profile(self) -> None:
        """F4."""
        from ui.screens.profiles import ProfilesScreen, offer

        screen, room = self._screen, self._screen.room
        frame, machine = screen.telemetry.frame, screen.chat_app.machine_bytes()
        offers = [offer(profile, frame, machine) for profile in list_profiles().profiles]
        holding = f"now: {room.profile or room.budget.describe()}"

        def chosen(name: str | None) -> None:
            if name is not None:
                self._later(self.do_profile(name))

        screen.app.push_screen(ProfilesScreen(offers, room.profile, holding), chosen)

    async def do_help(self, argument: str) -> None:
        self._screen.action_help()

    async def do_new(self, argument: str) -> None:
        await self._screen.show_session(None)

    async def do_sessions(self, argument: str) -> None:
        self._screen.action_sessions(argument)

    async def do_search(self, argument: str) -> None:
        self._screen.action_sessions(argument)

    async def do_rename(self, argument: str) -> None:
        if self._screen.conversation.session is None:
            raise ConfigError("nothing was said yet", "a session begins with its first message")
        self._screen.conversation.rename(argument)
        self._screen.refresh_state()

    async def do_system(self, argument: str) -> None:
        conversation = self._screen.conversation
        if argument:
            conversation.set_system("" if argument.lower() == "none" else argument)
        await self._screen.say(
            f"system prompt: {conversation.system}" if conversation.system else "no system prompt"
        )

    async def do_set(self, argument: str) -> None:
        changed = self._screen.answering.sampling
        name, _, value = argument.partition(" ")
        value = value.strip().removeprefix("=").strip()
        if name:
            if name not in SAMPLING:
                raise ConfigError(f"'{name}' cannot be set here", f"it is one of {', '.join(SAMPLING)}")
            if value.lower() == "default":
                changed.pop(name, None)
            elif value:
                changed[name] = check_setting(name, value, name)
        settings = self._screen.setup.resolved.settings
        now = {key: changed.get(key, getattr(settings, key)) for key in SAMPLING}
        shown = [f"{key} {'as the model has it' if held is None else held}" for key, held in now.items()]
        await self._screen.say(
            " · ".join(shown if not name else [line for line in shown if line.split()[0] == name])
        )

    async def do_model(self, argument: str) -> None:
        room = self._screen.room
        if not argument:
            ready = room.driver.ready
            more = (
                f", {ready.device}, {ready.kernels} kernels, {ready.context:,} tokens of context" if ready else ""
            )
            await self._screen.say(f"model: {room.model}{more}")
        elif self._screen.answering.busy:
            raise ConfigError("a reply is coming", "stop it first (Esc)")
        else:
            self._later(room.open_model(argument))

    async def do_profile(self, argument: str) -> None:
        if argument:
            self._later(self._change(lambda: self._screen.room.use_profile(argument)))
        else:
            self.choose_profile()

    async def do_budget(self, argument: str) -> None:
        budget = Budget.parse(argument)
        self._later(self._change(lambda: self._screen.room.use_budget(budget)))

    async def do_policy(self, argument: str) -> None:
        room = self._screen.room
        if argument:
            if argument not in POLICIES:
                raise ConfigError(f"no policy '{argument}'", f"it is one of {', '.join(POLICIES)}")
            changed = await room.driver.set_policy(argument)
            room.policy = changed.policy
        await self._screen.say(f"policy: {room.driver.policy or room.policy}")

    async def do_reset_stats(self, argument: str) -> None:
        await self._screen.room.driver.reset_stats()
        await self._screen.say("all counters are at zero")

    async def do_record(self, argument: str) -> None:
        await self._screen.say(self._screen.telemetry.record(Path(argument).expanduser() if argument else None))
        self._screen.refresh_state()

    async def do_replay(self, argument: str) -> None:
        self._screen.telemetry.replay(Path(argument).expanduser() if argument else None)

    async def do_export(self, argument: str) -> None:
        conversation = self._screen.conversation
        if conversation.session is None:
            raise ConfigError("nothing was said yet", "a session begins with its first message")
        session = conversation.session
        path = Path(argument).expanduser() if argument else _free_name(session.title)
        if path.is_dir():
            path = path / _free_name(session.title).name
        if path.exists():
            raise StorageError(f"{path} is there already", "give another name")
        if path.suffix == ".json":
            text = json.dumps(export_json(conversation.store, session.id), ensure_ascii=False, indent=1) + "\n"
        else:
            text = export_markdown(conversation.store, session.id)
        with storage_errors("the session", path):
            path.write_text(text, encoding="utf-8")
        await self._screen.say(f"written to {path.absolute()}")

    async def do_copy(self, argument: str) -> None:
        replies = [message for message in self._screen.conversation.branch if message.role == "assistant"]
        text = replies[-1].content if replies else ""
        self._screen.copy(code_blocks(text) if argument == "code" else text)

    async def do_regen(self, argument: str) -> None:
        await self._screen.branches.regenerate()

    async def do_edit(self, argument: str) -> None:
        said = [message for message in self._screen.conversation.branch if message.role == "user"]
        if not said:
            raise ConfigError("nothing was said yet")
        self._screen.branches.edit(said[-1])

    async def do_editor(self, argument: str) -> None:
        self._screen.action_editor()

    async def do_theme(self, argument: str) -> None:
        app = self._screen.app
        if not argument:
            await self._screen.say(f"theme: {app.theme}; there are {', '.join(sorted(app.available_themes))}")
            return
        if argument not in app.available_themes:
            raise ConfigError(f"no theme '{argument}'", f"it is one of {', '.join(sorted(app.available_themes))}")
        app.theme = argument
        store_setting("theme", argument)

    async def do_layout(self, argument: str) -> None:
        if argument:
            layout = str(check_setting("layout", argument, "layout"))
            self._screen.telemetry.set_layout(layout)
            store_setting("layout", layout)
        await self._screen.say(f"layout: {self._screen.telemetry.layout}")

    async def do_quit(self, argument: str) -> None:
        await self._screen.app.action_quit()

    async def _change(self, work: Callable[[], Coroutine[Any, Any, str]]) -> None:
        """Changes the budget; in the middle of a reply it is told in the reply's own line."""
        try:
            told = await work()
        except FinemoeError as error:
            room = self._screen.room
            held = room.profile or room.budget.describe()
            hint = f"\n{error.hint}" if error.hint else ""
            await self._screen.say(f"{error.message}{hint}\nit stays at {held}", "error")
            return
        if self._screen.answering.busy:
            self._screen.answering.note(f"now {told}")
        else:
            await self._screen.say(told)
        self._screen.refresh_state()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what waits for the engine, so that nothing else waits for it."""
        self._screen.run_worker(work, group="change")


def _free_name(title: str) -> Path:
    """A file in the current folder that is not there yet, called after the session."""
    words = "".join(one if one.isalnum() else " " for one in title.lower()).split()
    stem = "-".join(words)[:60] or "session"
    return next(
        path
        for number in range(1, 10_000)
        if not (path := Path(f"{stem}{f'-{number}' if number > 1 else ''}.md")).exists()
    )
