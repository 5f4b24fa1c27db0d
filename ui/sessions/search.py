"""Finding messages, by their words and by their meaning."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ui.sessions.database import Database

    Vectors: TypeAlias = NDArray[np.float32]

Embed: TypeAlias = "Callable[[list[str]], NDArray[Any]]"
"""Turns n texts into an array [n, d] of floats."""

Found: TypeAlias = tuple[int, str, float]
"""A message's id, the snippet, and the score."""

PIECE = 800
"""Characters of a message that become one vector: what a small embedder reads of a text, some 200 tokens."""

_BATCH = 64
_SNIPPET_WORDS = 16
_SNIPPET_CHARACTERS = 160


def by_words(connection: sqlite3.Connection, query: str, limit: int) -> list[Found]:
    """Messages with all words of ``query``, the best first."""
    expression = match_expression(query)
    if not expression:
        return []
    rows = connection.execute(
        f"""
        SELECT rowid, snippet(messages_text, 0, '', '', '…', {_SNIPPET_WORDS}), -bm25(messages_text)
        FROM messages_text WHERE messages_text MATCH ? ORDER BY rank LIMIT ?
        """,
        (expression, limit),
    )
    return [(message, " ".join(snippet.split()), score) for message, snippet, score in rows]


def match_expression(query: str) -> str:
    """``query`` in the language of FTS5: words quoted, the last one as a beginning; empty if there are none."""
    words = [word for word in query.replace("\0", " ").split() if any(map(str.isalnum, word))]
    quoted = ['"' + word.replace('"', '""') + '"' for word in words]
    return " ".join(quoted) + "*" if quoted else ""


def by_meaning(
    database: Database,
    query: str,
    embed: Embed,
    limit: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Found]:
    """Messages by the cosine of their nearest piece and ``query``, the nearest first.

    No transaction is open while ``embed`` works, which may take minutes for a store that is new to it.
    """
    import numpy as np

    if not query.strip():
        return []
    (wanted,) = _embedded(embed, [query])
    name = getattr(embed, "name", None)
    unknown = _new_vectors(_whole_messages(database, name, wanted.nbytes), embed, progress)
    if name is None:
        places = [(place, vector.tobytes()) for place, _, vector in unknown]
    else:
        for batch in _batches(unknown):
            _keep(database, name, batch)
        places = _kept(database, name, wanted.nbytes)
    if not places:
        return []
    scores = np.frombuffer(b"".join(vector for _, vector in places), np.float32).reshape(len(places), -1) @ wanted
    best: dict[int, tuple[_Place, float]] = {}
    for index in np.argsort(-scores, kind="stable"):
        place, _ = places[index]
        best.setdefault(place[0], (place, float(scores[index])))
        if len(best) == limit:
            break
    return _excerpts(database, list(best.values()))


def pieces(text: str) -> list[tuple[int, int]]:
    """Start and end of the parts of ``text`` that become a vector each, cut where it reads best."""
    spans = []
    start = 0
    while start < len(text):
        stop = min(start + PIECE, len(text))
        if stop < len(text):
            for mark in ("\n\n", "\n", ". ", " "):
                cut = text.rfind(mark, start + PIECE // 2, stop)
                if cut >= 0:
                    stop = cut + len(mark)
                    break
        if text[start:stop].strip():
            spans.append((start, stop))
        start = stop
    return spans


_Place: TypeAlias = tuple[int, int, int]
"""A message, and where one of its pieces begins and ends in it."""

_Row: TypeAlias = "tuple[_Place, str, Vectors]"
"""A piece, its message's whole text, and its vector."""


def _whole_messages(database: Database, embedder: str | None, vector_bytes: int) -> list[tuple[int, str]]:
    """Messages that have no vector of ``embedder``: all, if it is None."""
    with database.reading() as connection:
        return connection.execute(
            """
            SELECT id, content FROM searchable WHERE NOT EXISTS (
                SELECT 1 FROM embeddings WHERE message = id AND embedder = ? AND length(vector) = ?
            )
            """,
            (embedder, vector_bytes),
        ).fetchall()


def _new_vectors(
    messages: Sequence[tuple[int, str]], embed: Embed, progress: Callable[[int, int], None] | None
) -> Iterator[_Row]:
    """The vectors of all pieces of ``messages``, a message's own always in one go."""
    work: list[tuple[_Place, str]] = []
    for done, (message, content) in enumerate(messages, 1):
        work += [((message, *span), content) for span in pieces(content)]
        if work and (len(work) >= _BATCH or done == len(messages)):
            vectors = _embedded(embed, [content[start:stop] for (_, start, stop), content in work])
            yield from ((*piece, vector) for piece, vector in zip(work, vectors, strict=True))
            work = []
            if progress is not None:
                progress(done, len(messages))


def _embedded(embed: Embed, texts: list[str]) -> Vectors:
    """Vectors of length 1, [n, d] float32."""
    import numpy as np

    vectors = np.asarray(embed(texts), dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1))


def _batches(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    """``rows`` in lists that end where a message does."""
    batch: list[_Row] = []
    for row in rows:
        if len(batch) >= _BATCH and row[0][0] != batch[-1][0][0]:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _keep(database: Database, embedder: str, rows: list[_Row]) -> None:
    """Keeps the vectors of messages that are still what they were when they were read."""
    with database.writing() as connection:
        connection.executemany(
            """
            INSERT OR REPLACE INTO embeddings
            SELECT id, ?, ?, ?, ? FROM searchable WHERE id = ? AND content = ?
            """,
            [
                (embedder, start, stop, vector.tobytes(), message, content)
                for (message, start, stop), content, vector in rows
            ],
        )


def _kept(database: Database, embedder: str, vector_bytes: int) -> list[tuple[_Place, bytes]]:
    """All vectors of ``embedder``."""
    with database.reading() as connection:
        rows = connection.execute(
            "SELECT message, start, stop, vector FROM embeddings WHERE embedder = ? AND length(vector) = ?",
            (embedder, vector_bytes),
        )
        return [((message, start, stop), vector) for message, start, stop, vector in rows]


def _excerpts(database: Database, best: list[tuple[_Place, float]]) -> list[Found]:
    """What stands at the places."""
    found: list[Found] = []
    with database.reading() as connection:
        for (message, start, stop), score in best:
            for (content,) in connection.execute("SELECT content FROM messages WHERE id = ?", (message,)):
                found.append((message, _excerpt(content, start, stop), score))
    return found


def _excerpt(content: str, start: int, stop: int) -> str:
    """The beginning of a piece, on one line."""
    words = " ".join(content[start:stop].split())
    cut = words if len(words) <= _SNIPPET_CHARACTERS else words[:_SNIPPET_CHARACTERS].rpartition(" ")[0] or words
    cut = cut[:_SNIPPET_CHARACTERS]
    more = len(cut) < len(words) or stop < len(content.rstrip())
    return f"{'…' if start else ''}{cut}{'…' if more else ''}"
