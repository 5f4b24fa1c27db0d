"""Random weights that cost little to make, and an embedding that makes routers behave like trained ones.

**Matrices** are pieces of one block of normal numbers, scaled for each width and cut at another place for each
matrix, so that all bytes differ and making them costs next to nothing.

**Hidden states.** Routers are random matrices, so what they choose follows from the hidden state alone, and that is
mostly the token's embedding, a sum of three parts with variances k, (1 - k) p and (1 - k)(1 - p):

    constant    the same for every token: its share k is the skew
    subject     changes slowly from one token number to the next, at four paces: within 4 to within 256 of them
    own         another one for each token: what is left beside the persistence p

The head expects after the own part of a token the token with the next number, so generated text goes through the
vocabulary in steps of one: it never repeats itself, and its subject drifts at the pace that the embedding has. A
byte of a prompt has no token that follows it, and a short vector, so that what attention makes of the whole prompt
chooses the first token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from offload.models.shards import BFloat16, Float32, bfloat16
from offload.models.synthetic.tokenizer import Vocabulary

_PLACES = 1_048_583  # prime, so that equal steps come to every place before they come to one again
_STEP = 618_033
_ROWS = 1024
_SUBJECT_SPANS = (4, 16, 64, 256)
_PROMPT_SCALE = 0.03
_HEAD_SCALE = 0.04
_CONSTANT, _SUBJECT, _OWN, _ROUTER, _BLOCK = range(5)
"""What a random stream is for."""


class RandomBlock:
    """Matrices of independent normal numbers, as bfloat16 bits.

    Args:
        seed: Of all numbers.
        largest: Numbers of the largest matrix that will be taken.
    """

    def __init__(self, seed: int, largest: int) -> None:
        self._normal = np.random.default_rng([seed, _BLOCK]).standard_normal(largest + _PLACES, dtype=np.float32)
        self._scaled: dict[float, BFloat16] = {}

    def take(self, number: int, count: int, deviation: float) -> BFloat16:
        """``count`` numbers [count] with this standard deviation; others for each ``number`` below a million."""
        block = self._scaled.get(deviation)
        if block is None:
            block = self._scaled[deviation] = bfloat16(self._normal * np.float32(deviation))
        place = number * _STEP % _PLACES
        return block[place : place + count]


class Embedding:
    """The rows of the embedding table and of the head, a thousand at a time.

    Args:
        seed: Of all numbers.
        vocabulary: Which row is what.
        hidden: Width of a row.
        skew / persistence: See the module.
    """

    def __init__(self, seed: int, vocabulary: Vocabulary, hidden: int, skew: float, persistence: float) -> None:
        self._seed = seed
        self._vocabulary = vocabulary
        self._hidden = hidden
        self._constant = np.float32(skew**0.5) * self._normal(_CONSTANT, 0, 0)
        self._subject_share = np.float32(((1 - skew) * persistence / len(_SUBJECT_SPANS)) ** 0.5)
        self._own_share = np.float32(((1 - skew) * (1 - persistence)) ** 0.5)

    def table(self) -> Iterator[BFloat16]:
        """The embedding table [V, H], in pieces of whole rows."""
        for first in range(0, self._vocabulary.size, _ROWS):
            last = min(first + _ROWS, self._vocabulary.size)
            rows = self._own_share * self._own(first // _ROWS)[: last - first]
            rows += self._constant
            for span in _SUBJECT_SPANS:
                rows += self._subject_share * self._subject(first, last, span)
            words = slice(self._vocabulary.first_word, self._vocabulary.end_of_words)
            rows[: max(words.start - first, 0)] *= np.float32(_PROMPT_SCALE)
            rows[max(words.stop - first, 0) :] *= np.float32(_PROMPT_SCALE)
            yield bfloat16(rows)

    def head(self) -> Iterator[BFloat16]:
        """The head [V, H], in pieces of whole rows: for each word the own part of the word before it."""
        words = range(self._vocabulary.first_word, self._vocabulary.end_of_words)
        before = self._own(words[-1] // _ROWS)[words[-1] % _ROWS]  # The first word follows the last.
        for first in range(0, self._vocabulary.size, _ROWS):
            last = min(first + _ROWS, self._vocabulary.size)
            own = self._own(first // _ROWS)
            rows = np.zeros((last - first, self._hidden), np.float32)
            for token in range(max(first, words.start), min(last, words.stop)):
                rows[token - first] = before
                before = own[token - first]
            yield bfloat16(np.float32(_HEAD_SCALE) * rows)

    def _own(self, block: int) -> Float32:
        """The own parts of a thousand tokens, [1024, H]."""
        return np.random.default_rng([self._seed, _OWN, block]).standard_normal(
            (_ROWS, self._hidden), dtype=np.float32
        )

    def _subject(self, first: int, last: int, span: int) -> Float32:
        """[last - first, H]: goes from one random vector to the next within ``span`` tokens, on an arc."""
        tokens = np.arange(first, last)
        begin = first // span
        marks = np.stack([self._normal(_SUBJECT, span, n) for n in range(begin, (last - 1) // span + 2)])
        at = tokens // span - begin
        angle = (tokens % span * (np.pi / 2 / span)).astype(np.float32)[:, None]
        return np.asarray(np.cos(angle) * marks[at] + np.sin(angle) * marks[at + 1], np.float32)

    def _normal(self, purpose: int, *numbers: int) -> Float32:
        return np.random.default_rng([self._seed, purpose, *numbers]).standard_normal(
            self._hidden, dtype=np.float32
        )


def router(seed: int, layer: int, experts: int, hidden: int, deviation: float) -> BFloat16:
    """A layer's router [E, H]."""
    rows = np.random.default_rng([seed, _ROUTER, layer]).standard_normal((experts, hidden), dtype=np.float32)
    return bfloat16(rows * np.float32(deviation * hidden**-0.5))
