"""A document that is written in parts is the document."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from textual.app import App
from textual.containers import Vertical

from ui.widgets.markdown import PART_CHARACTERS, MarkdownWriter, ReplyMarkdown, last_block

BLOCKS = (
    "A paragraph of *some* words, on\ntwo lines.\n\n",
    "- a list\n- of two\n\n",
    "1. numbered\n\n   and loose\n\n2. twice\n\n",
    "```python\nx = 1\n\n\ny = 2\n```\n\n",
    "> quoted\n\n",
    "# A heading\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n",
    "---\n\n",
    "\n",
    "    indented code\n\n",
)


@given(st.lists(st.sampled_from(BLOCKS)).map("".join))
def test_the_last_block_begins_where_it_can_be_read_alone(text):
    begin = last_block(text)
    assert 0 <= begin <= len(text)
    together = MarkdownIt("gfm-like").render(text[:begin]) + MarkdownIt("gfm-like").render(text[begin:])
    assert together == MarkdownIt("gfm-like").render(text)


def test_a_long_document_is_in_several_parts_and_whole():
    text = "".join(f"{number}: {BLOCKS[number % 4]}" for number in range(200))

    class Page(App[None]):
        def compose(self):
            with Vertical():
                yield ReplyMarkdown("")

    async def run():
        async with Page().run_test(size=(80, 24)) as pilot:
            page = pilot.app.query_one(Vertical)
            writer = MarkdownWriter(page, page.query_one(ReplyMarkdown))
            for begin in range(0, len(text), 97):
                await writer.write(text[begin : begin + 97])
            await writer.close()
            await pilot.pause()
            parts = [part.source for part in page.query(ReplyMarkdown)]
            assert writer.whole == "".join(parts) == text
            assert len(parts) > 3
            assert all(len(part) < 2 * PART_CHARACTERS for part in parts)

    asyncio.run(run())
