"""A conversation without a screen: a question a line in, an answer out. Sessions are kept as on the screen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from finemoe_cli.answering import answer, open_engine
from finemoe_cli.output import Output
from finemoe_cli.signals import interrupts
from offload.errors import DamagedFile, FinemoeError, StorageError
from offload.models.spec import read_spec
from profiles.environment import prepare_process
from profiles.paths import sessions_file
from profiles.settings import Resolved
from ui.chat.conversation import Conversation
from ui.sessions import SessionStore

EnsureModel = Callable[[str, Output], Path]


def plain_chat(
    resolved: Resolved, output: Output, ensure_model: EnsureModel, *, resume: bool, session: str | None
) -> None:
    """Answers each line of stdin until it ends.

    Raises:
        FinemoeError: As ``finemoe run``.
    """
    settings = resolved.settings
    with plain_conversation(output, session) as conversation:
        store = conversation.store
        conversation.new(settings.model, settings.system or "")
        latest = store.find(session) if session is not None else store.latest() if resume else None
        if latest is not None:
            conversation.open(latest.id)
        folder = ensure_model(settings.model, output)
        read_spec(folder)
        if change := conversation.change_of_model(settings.model):
            output.note(change)
            conversation.set_model(settings.model)
        for warning in prepare_process():
            output.warn(warning)
        with open_engine(folder, resolved, output) as engine:
            interrupts.check()
            for question in _questions(output):
                conversation.say(question)
                said = answer(engine, conversation.messages(), resolved, output, stream=True)
                reply = conversation.begin_reply()
                stats = said | {"profile": resolved.profile.name}
                conversation.finish(reply.id, said["finish_reason"], said["text"], stats)
                output.line("")
                if conversation.catch_up(patient=True):
                    output.note("saved again, with all that was said meanwhile")
                interrupts.check()


@contextmanager
def plain_conversation(output: Output, session: str | None) -> Iterator[Conversation]:
    """A conversation that is saved, as soon as that can be; at the end it is told what was not.

    Raises:
        StorageError: The sessions cannot be opened, and ``session`` is to be found in them.
    """

    def unsaved(error: FinemoeError) -> None:
        until = "any more" if isinstance(error, DamagedFile) else "while that lasts"
        output.warn(f"{error.message}; nothing is saved {until}")

    saved, reach = True, None
    try:
        store = SessionStore.open(sessions_file())
    except StorageError as error:
        if session is not None:
            raise
        unsaved(error)
        store, saved = SessionStore.in_memory(), False
        reach = None if isinstance(error, DamagedFile) else lambda: SessionStore.open(sessions_file())
    conversation = Conversation(store, unsaved, saved=saved, reach=reach)
    try:
        yield conversation
    finally:
        if told := conversation.last_words(sessions_file().parent):
            output.warn(told)
        conversation.store.close()
        store.close()


def _questions(output: Output) -> Iterator[str]:
    """The lines of stdin that are not empty."""
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if sys.stdin is None:
        return
    stdin = sys.stdin.buffer
    while True:
        if terminal:
            output.note("ask, or end with Ctrl-D:")
        try:
            line = stdin.readline()
        except OSError as error:
            raise FinemoeError(f"cannot read stdin: {error.strerror or error}") from error
        if not line:
            return
        question = line.decode("utf-8", "replace").strip()
        if question:
            yield question
