"""The chat's engine: having the model, opening it, changing it while it runs, and what to do when it ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offload.errors import EngineBroken, FinemoeError
from offload.units import format_bytes
from profiles.budget import Budget
from profiles.store import load_profile
from ui.chat.engine import EngineDriver, State
from ui.chat.setup import ChatSetup

if TYPE_CHECKING:
    from ui.screens.chat import ChatScreen


class EngineRoom:
    """Opens engines for the chat.

    Attributes:
        driver: Drives the one that is open.
        model: What is, or is to be, open.
        budget / profile: What it is, or is to be, opened with; the profile is empty for a bare budget.
        folder: Of the model.
        failed: Why it could not be opened.
    """

    def __init__(self, screen: ChatScreen, setup: ChatSetup) -> None:
        settings = setup.resolved.settings
        assert settings.budget is not None
        self.model = settings.model
        self.budget: Budget = settings.budget
        named = setup.resolved.origins["budget"].kind == "profile"
        self.profile = setup.resolved.profile.name if named else ""
        self.policy = settings.policy
        self.folder: Path | None = None
        self.failed: FinemoeError | None = None
        self.driver = EngineDriver(setup.make_link, screen.refresh_state, self._gone, screen.telemetry.event)
        self._screen = screen
        self._setup = setup
        self._settled = asyncio.Event()
        self._preparing: tuple[str, int, int] | None = None
        self._closing = False

    def start(self) -> None:
        """Opens the model, from its folder or, the demo, from nothing."""
        self._settled.clear()
        self._screen.run_worker(self._open(self.model), group="engine", exclusive=True)

    @property
    def loading(self) -> bool:
        """Whether the model is just being opened."""
        return not self._settled.is_set()

    @property
    def doing(self) -> str:
        """What it is doing, in a few words: ``loading the model 40 %``."""
        if self.loading:
            stage, done, total = self._preparing or self.driver.progress or ("start", 0, 0)
            words = "starting the engine" if stage == "start" else _stage_words(stage)
            return f"{words} {done / total:.0%}" if total else words
        if self.failed or self.driver.state in (State.OFF, State.GONE):
            return "no engine"
        return "ready"

    async def until_ready(self) -> None:
        """Waits until the model is open.

        Raises:
            FinemoeError: It cannot be.
        """
        if self._settled.is_set() and self.driver.state in (State.OFF, State.GONE):
            self.start()
        await self._settled.wait()
        if self.failed is not None:
            raise self.failed

    async def open_model(self, name: str) -> None:
        """Opens another model in the place of this one, which stays if there is no such model."""
        self._settled.clear()
        await self._open(name)

    async def use_profile(self, name: str) -> str:
        """Changes to a profile's budget, and its policy if it has one; a line that says what holds now.

        Raises:
            FinemoeError: There is no such profile, or it cannot be kept; nothing has changed.
        """
        profile = load_profile(name)
        told = await self.use_budget(profile.budget, profile.name)
        if profile.policy and profile.policy != self.driver.policy and self.driver.state is not State.OFF:
            await self.driver.set_policy(profile.policy)
        carried = [key for key in profile.carried() if key not in ("budget", "policy")]
        return told + (f"; its {' and '.join(carried)} come with the next start" if carried else "")

    async def use_budget(self, budget: Budget, profile: str = "") -> str:
        """Changes the memory budget, also during a reply; a line that says what holds now.

        Raises:
            DoesNotFit: It cannot be kept; the old one stays.
        """
        was_open = self.failed is None
        if was_open and self.driver.state in (State.OFF, State.LOADING):
            await self.until_ready()
        name = f"{profile}: " if profile else ""
        if self.driver.state in (State.READY, State.ANSWERING):
            changed = await self.driver.set_budget(budget.total_bytes, budget.experts_fraction, profile)
            self.budget, self.profile = budget, profile
            return f"{name}{format_bytes(changed.budget_bytes)}, {changed.slots:,} experts may be resident"
        self.budget, self.profile = budget, profile
        self.start()
        return f"{name}{budget.describe()}; opening the model with it"

    async def close(self) -> None:
        """Ends the engine."""
        self._closing = True
        await self.driver.close()

    async def _open(self, name: str) -> None:
        loop = asyncio.get_running_loop()

        def progress(stage: str, done: int, total: int) -> None:
            if self._closing:
                raise EngineBroken("the chat is closing")
            loop.call_soon_threadsafe(self._progress, stage, done, total)

        self.failed = None
        try:
            self._screen.refresh_state()
            folder = await asyncio.to_thread(self._setup.find_model, name, progress)
            self._preparing = None
            self.model, self.folder = name, folder
            config = replace(
                self._setup.resolved.engine_config(folder),
                budget_bytes=self.budget.total_bytes,
                experts_fraction=self.budget.experts_fraction,
                policy=self.policy,
            )
            ready = await self.driver.open(config, self.profile)
        except FinemoeError as error:
            self._preparing = None
            if self.driver.state is State.READY:  # Another model was wanted, and this one is still there.
                self._screen.tell(error)
            elif not self._closing:
                self.failed = error
                if self.driver.state is not State.GONE:
                    self._screen.tell(error, action="restart")
        else:
            self._screen.opened(ready)
        finally:
            self._settled.set()
            self._screen.refresh_state()

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._preparing = (stage, done, total)
        self._screen.refresh_state()

    def _gone(self, reason: str) -> None:
        if not self._closing:
            self._screen.engine_gone(reason)


def _stage_words(stage: str) -> str:
    from ui.progress import stage_words  # It can draw bars, too, with all that this takes.

    return stage_words(stage)
