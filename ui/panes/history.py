"""What was seen of an engine in the last minutes, as the panes need it: rates, heat, percentiles, marks.

Frames carry counts since the engine's opening or the last reset. Here they become sums that only grow: a frame
whose counts are smaller than the last one's begins anew at zero, and what it shows is added to what was there.
Another engine (another process, model or shape), or a frame older than the last, starts an empty history.

Nothing here asks for the time: now is the time of the latest frame, so that a recording draws as it was.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from offload.telemetry.counters import Kind, Phase
from offload.telemetry.frame import DECODE, Facts, Frame, Mark, TokenRecord
from ui.source import TelemetrySource

SERIES = ("tokens", "prefetch", "demand", "wasted", "stall_ns", "selections", "hits")
"""What `FrameHistory.per_second` knows."""

_SECONDS = 600.0
_RATE = 4.0
_RECORDS = 2048
_MARKS = 256
_HEAT_HALF = 128.0
_RECENT_HALF = 6.0
_NEVER = -np.inf
_MOMENT = 1.0


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two moments.

    Attributes:
        seconds: How long it was.
        tokens: Decoded.
        tally: [2, 4, L] int64, selections by phase, kind and layer.
        stall_ns: [2, L] int64.
        prefetch / demand / wasted: Bytes.
    """

    seconds: float
    tokens: int
    tally: NDArray[np.int64]
    stall_ns: NDArray[np.int64]
    prefetch: int
    demand: int
    wasted: int

    @property
    def hit_rate(self) -> float | None:
        """Of decoding; of the prompt while nothing was decoded; None without selections."""
        kinds = self.kinds
        total = int(kinds.sum())
        return float(kinds[Kind.RESIDENT] + kinds[Kind.PREFETCHED]) / total if total else None

    @property
    def kinds(self) -> NDArray[np.int64]:
        """[4], selections by kind, of decoding, or of the prompt while nothing was decoded."""
        kinds: NDArray[np.int64] = self.by_layer.sum(axis=1)
        return kinds

    @property
    def by_layer(self) -> NDArray[np.int64]:
        """[4, L], the same by layer."""
        phase = Phase.DECODE if self.tally[Phase.DECODE].any() else Phase.PREFILL
        counts: NDArray[np.int64] = self.tally[phase]
        return counts

    @property
    def stall_ms_per_token(self) -> float | None:
        """Of decoding; None where nothing was decoded."""
        return float(self.stall_ns[Phase.DECODE].sum()) / 1e6 / self.tokens if self.tokens else None


@dataclass(frozen=True, slots=True)
class Oracle:
    """What Belady's MIN would have hit in a reply, with as many slots.

    Attributes:
        request: The reply's request.
        hits: [L] hits by layer; `selections` [L] of how many.
    """

    request: int
    hits: NDArray[np.int64]
    selections: NDArray[np.int64]

    @property
    def hit_rate(self) -> float | None:
        total = int(self.selections.sum())
        return float(self.hits.sum()) / total if total else None


class FrameHistory:
    """A bounded ring of frames, reduced to what is drawn.

    Args:
        seconds: How far back it reaches.
        rate: Frames a second that it is made for; more of them reach less far back.

    Attributes:
        latest: The last frame; None before the first.
        facts: Of the engine that is watched.
        heat: [L*E] float64, uses of each expert, half of it forgotten every 128 decoded tokens. For ranking.
        recent: [L*E] float64, the same with 6 tokens, at most about 1. For shading.
        used_at / missed_at: [L*E] float64, time of the frame that showed the last use or miss; -inf before.
        records: The latest token records, oldest first.
        oracle: Of the last finished reply, where somebody worked it out.
        next_record: Number of the record to ask for next.
        generation: Counts the times it began anew.
    """

    def __init__(self, seconds: float = _SECONDS, rate: float = _RATE) -> None:
        self._capacity = max(2, round(seconds * rate))
        self.generation = 0
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.generation += 1
        self.latest: Frame | None = None
        self.facts: Facts | None = None
        self.records: deque[TokenRecord] = deque(maxlen=_RECORDS)
        self.next_record = 0
        self.oracle: Oracle | None = None
        self._marks: deque[Mark] = deque(maxlen=_MARKS)
        self._count = 0
        self._time = np.zeros(0)
        self._scalars = np.zeros((0, len(SERIES)))
        self._tally = np.zeros((0, 2, 4, 0), np.int64)
        self._stall = np.zeros((0, 2, 0), np.int64)
        self.heat = self.recent = np.zeros(0)
        self.used_at = self.missed_at = np.zeros(0)

    def follow(self, source: TelemetrySource) -> bool:
        """Takes what is new at ``source``. Returns whether there was a new frame."""
        frame = source.frame()
        if frame is None or (self.latest is not None and _same_moment(frame, self.latest)):
            return False
        self.add(frame)
        self.add_records(source.records(self.next_record))
        return True

    def add(self, frame: Frame) -> None:
        """Takes one frame; its arrays are kept and must not change afterwards."""
        last = self.latest
        if last is not None and (frame.facts != last.facts or frame.time_s < last.time_s):
            self.clear()
            last = None
        if last is None:
            self._begin(frame)
        else:
            self._go_on(last, frame)
        self.latest, self.facts = frame, frame.facts
        self._take_marks(frame.marks)

    def add_records(self, records: Iterable[TokenRecord]) -> None:
        """Takes token records, oldest first; those that are known already are passed over."""
        for record in records:
            if record.number >= self.next_record:
                self.records.append(record)
                self.next_record = record.number + 1

    def frozen(self) -> Self:
        """A copy that does not go on."""
        other = copy.copy(self)
        for name in ("_time", "_scalars", "_tally", "_stall", "heat", "recent", "used_at", "missed_at"):
            setattr(other, name, getattr(self, name).copy())
        other.records, other._marks = self.records.copy(), self._marks.copy()
        return other

    # What it tells

    @property
    def now(self) -> float:
        """Unix time of the latest frame; 0.0 without one."""
        return 0.0 if self.latest is None else self.latest.time_s

    @property
    def marks(self) -> tuple[Mark, ...]:
        """All that are within reach, oldest first."""
        times = self._times()
        first = float(times[0]) if len(times) else 0.0
        return tuple(mark for mark in self._marks if mark.time_s >= first)

    def window(self, seconds: float) -> Window:
        """What happened in the last ``seconds``, or since the history began if that is shorter."""
        times = self._times()
        if len(times) < 2:
            layers = self._tally.shape[-1]
            return Window(0.0, 0, np.zeros((2, 4, layers), np.int64), np.zeros((2, layers), np.int64), 0, 0, 0)
        order = self._order()
        first = min(int(np.searchsorted(times, times[-1] - seconds - 1e-9)), len(times) - 2)
        begin, end = order[first], order[-1]
        change = dict(zip(SERIES, self._scalars[end] - self._scalars[begin], strict=True))
        return Window(
            float(times[-1] - times[first]),
            int(change["tokens"]),
            self._tally[end] - self._tally[begin],
            self._stall[end] - self._stall[begin],
            int(change["prefetch"]),
            int(change["demand"]),
            int(change["wasted"]),
        )

    def total(self) -> Window:
        """What happened since the history began, what has left the ring included."""
        if self.latest is None:
            return self.window(0.0)
        end = self._order()[-1]
        now = dict(zip(SERIES, self._scalars[end], strict=True))
        return Window(
            self.latest.time_s - self._began,
            int(now["tokens"]),
            self._tally[end].copy(),
            self._stall[end].copy(),
            int(now["prefetch"]),
            int(now["demand"]),
            int(now["wasted"]),
        )

    def per_second(self, name: str, columns: int, step: float) -> NDArray[np.float64]:
        """A graph of one of `SERIES`: its rate in each of the last ``columns`` steps of ``step`` seconds.

        Steps begin at whole multiples of ``step``, so that a column keeps its value while it moves to the left.
        The last one is the latest that is over. NaN where the history does not reach.

        Returns:
            [columns] float64, oldest first.
        """
        edges = self.edges(columns, step)
        times = self._times()
        if len(times) < 2:
            return np.full(columns, np.nan)
        values = self._scalars[self._order(), SERIES.index(name)]
        at_edges = np.interp(edges, times, values)
        rate: NDArray[np.float64] = np.diff(at_edges) / step
        rate[(edges[1:] <= times[0]) | (edges[:-1] >= times[-1])] = np.nan
        return rate

    def edges(self, columns: int, step: float) -> NDArray[np.float64]:
        """[columns + 1], Unix times at which the steps of `per_second` begin and end."""
        end = np.floor(self.now / step)
        edges: NDArray[np.float64] = (end + np.arange(-columns, 1)) * step
        return edges

    def tokens_per_s(self, seconds: float = 2.0) -> float | None:
        """Speed of decoding now; None while nothing is decoded."""
        if self.latest is None or self.latest.phase != DECODE:
            return None
        window = self.window(seconds)
        return window.tokens / window.seconds if window.tokens and window.seconds else None

    def pass_ms(self, quantiles: Sequence[float], last: int = 256) -> list[float] | None:
        """Percentiles of the time a decoded token took, over the ``last`` records; None without records."""
        times = [record.pass_ns for record in list(self.records)[-last:]]
        return [value / 1e6 for value in np.quantile(times, quantiles).tolist()] if times else None

    def just_missed(self) -> NDArray[np.intp]:
        """Numbers (of L*E) of the experts that were waited for just now.

        Those are the last token's, if it is at most a second old; else those of the latest frame, as while a prompt
        is read.
        """
        record = self.records[-1] if self.records else None
        if self.facts is not None and record is not None and record.time_s >= self.now - _MOMENT:
            layers = np.arange(len(record.chosen))[:, None] * self.facts.experts
            return np.asarray((layers + record.chosen)[record.kinds >= Kind.LATE], np.intp)
        return np.flatnonzero(self.missed_at >= self.now)

    def reply(self, request: int) -> list[TokenRecord]:
        """The records of one request that are still there, oldest first."""
        return [record for record in self.records if record.request == request]

    # How it is kept

    def _begin(self, frame: Frame) -> None:
        layers, experts = frame.tally.shape[2], len(frame.state)
        size = self._capacity
        self._time = np.zeros(size)
        self._scalars = np.zeros((size, len(SERIES)))
        self._tally = np.zeros((size, 2, 4, layers), np.int64)
        self._stall = np.zeros((size, 2, layers), np.int64)
        self._count = 0
        self._began = frame.time_s
        self.heat, self.recent = np.asarray(frame.uses, np.float64), np.zeros(experts)
        self.used_at, self.missed_at = np.full(experts, _NEVER), np.full(experts, _NEVER)
        # The first frame is the zero that all sums start from.
        self._write(
            frame, np.zeros(len(SERIES)), np.zeros((2, 4, layers), np.int64), np.zeros((2, layers), np.int64)
        )

    def _go_on(self, last: Frame, frame: Frame) -> None:
        # Who is behind a reset is compared with zero.
        now, before = _scalars(frame), _scalars(last)
        fresh = _was_reset(last, frame) or bool(np.any(now < before))
        scalars = now - (0.0 if fresh else before)
        tally = frame.tally - (0 if fresh else last.tally)
        stall = frame.stall_ns - (0 if fresh else last.stall_ns)
        uses = frame.uses - (0 if fresh else last.uses)
        misses = frame.misses - (0 if fresh else last.misses)
        newest = (self._count - 1) % self._capacity
        self._write(
            frame, self._scalars[newest] + scalars, self._tally[newest] + tally, self._stall[newest] + stall
        )
        passes = float(tally.sum()) / max(1, frame.facts.layers * frame.facts.top_k)
        if passes:
            self.heat = self.heat * 0.5 ** (passes / _HEAT_HALF) + uses
            fade = 0.5 ** (1 / _RECENT_HALF)
            # As if the uses were spread evenly over the passes between the two frames.
            self.recent = self.recent * fade**passes + (1 - fade**passes) * np.minimum(1.0, uses / passes)
            self.used_at[uses > 0] = frame.time_s
            self.missed_at[misses > 0] = frame.time_s

    def _write(
        self, frame: Frame, scalars: NDArray[np.float64], tally: NDArray[np.int64], stall: NDArray[np.int64]
    ) -> None:
        at = self._count % self._capacity
        self._count += 1
        self._time[at] = frame.time_s
        self._scalars[at] = scalars
        self._tally[at], self._stall[at] = tally, stall

    def _order(self) -> NDArray[np.intp]:
        """Places in the ring, oldest first."""
        if self._count <= self._capacity:
            return np.arange(self._count)
        return np.arange(self._count, self._count + self._capacity) % self._capacity

    def _times(self) -> NDArray[np.float64]:
        return self._time[self._order()]

    def _take_marks(self, marks: Sequence[Mark]) -> None:
        for mark in marks:
            newest = self._marks[-1].time_s if self._marks else mark.time_s
            if mark.time_s >= newest and mark not in self._marks:
                self._marks.append(mark)


def _scalars(frame: Frame) -> NDArray[np.float64]:
    kinds = frame.tally.sum(axis=(0, 2))
    return np.array(
        [
            frame.tokens,
            sum(frame.bytes_prefetch),
            sum(frame.bytes_demand),
            sum(frame.bytes_prefetch_wasted),
            frame.stall_ns.sum(),
            kinds.sum(),
            kinds[Kind.RESIDENT] + kinds[Kind.PREFETCHED],
        ],
        np.float64,
    )


def _was_reset(last: Frame, frame: Frame) -> bool:
    return bool(
        any(mark.kind == "reset" and mark not in last.marks for mark in frame.marks)
        or np.any(frame.uses < last.uses)
        or np.any(frame.misses < last.misses)
        or np.any(frame.tally < last.tally)
        or np.any(frame.stall_ns < last.stall_ns)
    )


def _same_moment(frame: Frame, last: Frame) -> bool:
    return frame.time_s == last.time_s and frame.facts == last.facts
