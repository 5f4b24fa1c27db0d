"""What an expert's past says of its future: decayed frequencies and recencies, and weights for them.

A frequency follows how often an expert was used, over tens to hundreds of tokens; a recency follows how long ago it
was used last. Roots are there because bursts count less than in proportion. The sums are linear in them, as in a
self-exciting process (Hawkes 1971); the default weights were fitted on traces of the demo model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The features of a past. Both `Past` and the kernels of `auto` take them from here.
DECAYS = (0.5, 0.8, 0.92, 0.97, 0.99, 0.997)
ROOTS = (2, 3, 4)
RECENCIES = (2.0, 8.0, 32.0, 128.0)
DECAY = np.array(DECAYS, np.float32)
"""What a token leaves of each frequency."""
FADE = np.exp(-1 / np.array(RECENCIES)).astype(np.float32)
"""What a token leaves of each recency."""
SAMPLES = 300_000
"""Pairs of a token and an expert that weights are fitted from."""
HORIZON = 4.0
"""Tokens over which a future use falls to 1/e of its worth."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Limits:
    prompt_tokens: int = 96
    """Tokens of a prompt that count, the last ones: a long text would wash away everything else."""


PAST = _Limits()

SOON = np.array(
    [0.370, -0.781, 2.122, -0.091, -0.090, 0.117, -0.960, 0.445, -0.140, -0.060, 0.038, 0.184, -0.046, 0.014],
    np.float32,
)
"""For the probability that the next token uses an expert: frequencies, roots, recencies, constant."""
LATER = np.array(
    [0.164, -0.972, 2.910, -0.472, -0.405, 0.132, -1.380, 0.980, -0.111, -0.038, 0.142, 0.337, -0.122, 0.045, 0],
    np.float32,
)
"""For exp(-(tokens to the next use after that) / HORIZON): the same, and the topic, of which nothing is known."""


class Past:
    """The past of all experts, token by token.

    Attributes:
        frequency: [6, L*E] float32.
        recency: [4, L*E] float32.

    It begins as what is to be expected of experts that are used by chance, `rate` times a token: weights that were
    fitted from a long past would make anything of a beginning that no past looks like.
    """

    def __init__(self, total: int, rate: float) -> None:
        self.frequency: Floats = np.full((len(DECAYS), total), rate, np.float32)
        expected = rate / (1 - (1 - rate) * FADE)
        self.recency: Floats = np.repeat(expected[:, None], total, axis=1).astype(np.float32)

    def see(self, used: NDArray[np.int64]) -> None:
        """One token has used the experts `used`."""
        self.frequency *= DECAY[:, None]
        self.frequency[:, used] += 1 - DECAY[:, None]
        self.recency *= FADE[:, None]
        self.recency[:, used] = 1

    def features(self) -> Floats:
        """[14, L*E] float32: frequencies, roots, recencies, ones."""
        roots = np.sqrt(self.frequency[list(ROOTS)])
        return np.concatenate([self.frequency, roots, self.recency, np.ones_like(self.frequency[:1])])

    @classmethod
    def fit(
        cls,
        chosen: NDArray[np.int64],
        observed: NDArray[np.bool_],
        experts: int,
        topic: Floats | None = None,
        told: NDArray[np.bool_] | None = None,
    ) -> tuple[Floats, Floats, Floats]:
        """Weights from what was chosen, token by token: [T, L, K]; `observed` [T] marks tokens of prompts.

        Args:
            topic: [T, L*E], what the topic said before each token; zeros if not given.
            told: [T], tokens whose topic was told by a predictor that had not seen them: `later` is fitted there.

        Returns:
            soon: [14], for the probability that the next decoded token uses an expert.
            later: [15], for exp(-(tokens to its next use - 1) / HORIZON), given that the next token does not; the
                last weight is the topic's.
            odds: [T, L*E], the log-odds of `soon` as they were before each token.
        """
        tokens, layers, top_k = chosen.shape
        total = layers * experts
        used = (chosen + np.arange(layers)[None, :, None] * experts).reshape(tokens, -1)
        until = np.full((tokens, total), 1e4, np.float32)  # decoded tokens from behind this one to the next use
        ahead = np.full(total, 1e4, np.float32)
        for t in range(tokens - 1, -1, -1):
            until[t] = ahead
            if not observed[t]:
                ahead += 1
                ahead[used[t]] = 1
        past, random = cls(total, top_k / experts), np.random.default_rng(0)
        features = np.empty((tokens, 14, total), np.float16)
        for t in range(tokens):
            features[t] = past.features()  # before the token
            past.see(used[t])
        behind = np.arange(min(100, tokens // 4), tokens - min(100, tokens // 4))
        behind = behind[~observed[behind]]

        def draw(tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
            """Tokens, experts, their features and when they are used next, 1 for the token itself."""
            token, expert = random.choice(tokens, SAMPLES), random.integers(0, total, SAMPLES)
            return token, expert, features[token, :, expert].astype(np.float32), until[token - 1, expert]

        _, _, x, first = draw(behind)
        soon = np.linalg.lstsq(x, (first == 1).astype(np.float32), rcond=None)[0].astype(np.float32)
        if told is not None and told[behind].any():
            behind = behind[told[behind]]
        token, expert, x, first = draw(behind)
        said = np.zeros(SAMPLES, np.float32) if topic is None else topic[token, expert]
        x = np.concatenate([x, said[:, None]], axis=1)[first > 1]
        worth = np.exp(-(first[first > 1] - 2) / HORIZON)
        later = np.linalg.lstsq(x, worth, rcond=None)[0].astype(np.float32)
        p = np.clip(np.stack([soon @ one.astype(np.float32) for one in features]), 0.003, 0.997)
        return soon, later, np.log(p / (1 - p)).astype(np.float32)
