"""Markdown that grows.

A long document in one widget is laid out whole with every change, so that a reply of thousands of tokens would keep
the screen busy with itself. It is written in parts: what has become long and cannot change any more is left alone,
and a new widget goes on below it.
"""

from __future__ import annotations

from functools import cache
from threading import Lock

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markdown_it.utils import EnvType
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Markdown
from textual.widgets._markdown import MarkdownParagraph  # in no public module, but meant for `BLOCKS`

PART_CHARACTERS = 1_500
"""From here on a part is closed where a block ends."""


class _Parser(MarkdownIt):
    """One for all: making one takes longer than parsing a few words.

    What finds links in it keeps notes while it works, so it works for one thread at a time.
    """

    _lock = Lock()

    def parse(self, src: str, env: EnvType | None = None) -> list[Token]:
        with self._lock:
            return super().parse(src, env)


@cache
def _parser() -> MarkdownIt:
    return _Parser("gfm-like")


class Paragraph(MarkdownParagraph):
    """A paragraph that asks for a new layout of the screen only when it becomes higher."""

    def set_content(self, content: Content) -> None:
        self._content = content
        size = self.content_size
        if not size:
            self.update(content)
            return
        self.update(content, layout=False)
        if self.get_content_height(size, self.app.size, size.width) != size.height:
            self.refresh(layout=True)


class ReplyMarkdown(Markdown):
    """A reply, or a part of one. Links open only when they are clicked, and only pages of the web."""

    def __init__(self, text: str) -> None:
        super().__init__(text, open_links=False, parser_factory=_parser)
        self.BLOCKS = {**self.BLOCKS, "paragraph_open": Paragraph}

    def on_markdown_link_clicked(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        if event.href.startswith(("https://", "http://")):
            self.app.open_url(event.href)


class MarkdownWriter:
    """Writes a document as it comes.

    Args:
        parent: Where further parts are mounted, each after the one before.
        first: The first part, empty.

    Attributes:
        whole: All that was written.
    """

    def __init__(self, parent: Widget, first: ReplyMarkdown) -> None:
        self.whole = ""
        self._parent = parent
        self._part = first
        self._text = ""
        self._look_again = PART_CHARACTERS

    async def write(self, text: str) -> None:
        """Adds ``text`` at the end."""
        if not text:
            return
        self.whole += text
        self._text += text
        await self._part.append(text)
        if len(self._text) >= self._look_again:
            await self._begin_part()

    async def close(self) -> None:
        """It is whole: its last part is laid out once more, as a document that will not grow."""
        if self._text:
            await self._part.update(self._text)

    async def _begin_part(self) -> None:
        """Closes the part before its last block, if it has more than one."""
        begin = last_block(self._text)
        if not begin:
            self._look_again = len(self._text) + PART_CHARACTERS
            return
        done, rest = self._text[:begin], self._text[begin:]
        with self._parent.app.batch_update():
            await self._part.update(done)
            part = ReplyMarkdown(rest)
            await self._parent.mount(part, after=self._part)
        self._part, self._text = part, rest
        self._look_again = max(PART_CHARACTERS, len(rest) + PART_CHARACTERS // 2)


def last_block(text: str) -> int:
    """Where the last block of a document begins, in characters; 0 if it is the only one."""
    tokens = _parser().parse(text)
    lines = [token.map[0] for token in tokens if token.map is not None and token.level == 0]
    if not lines:
        return 0
    return sum(len(line) + 1 for line in text.split("\n")[: lines[-1]])
