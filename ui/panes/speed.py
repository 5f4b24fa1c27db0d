"""How fast it decodes and what a token waits for."""

from __future__ import annotations

from offload.telemetry.frame import DECODE, IDLE, LOADING, PREFILL, Frame
from ui.panes.history import FrameHistory
from ui.panes.pane import WAITING, Line, Pane, milliseconds, percent
from ui.panes.sparkline import Scale, graph, mark_columns, time_step

PHASES = {IDLE: "idle", PREFILL: "reading the prompt", DECODE: "answering", LOADING: "loading"}

_SECONDS = 50.0
_LABEL = 10
_HITS_SECONDS = 30.0


class Speed(Pane):
    """Tokens a second as a graph, then TTFT, TPOT, stall and hit rate."""

    DEFAULT_CSS = """
    Speed { height: 5; }
    """

    def __init__(self, *, ascii: bool = False, id: str | None = None) -> None:
        super().__init__(ascii=ascii, id=id)
        self.scale = Scale(1.0)

    def lines_wanted(self, width: int) -> int:
        return 5

    def draw(self, width: int, height: int) -> list[Line]:
        history = self.history
        if history is None or history.latest is None:
            return [self.title(width, "speed"), [self.piece(WAITING, "dim")]]
        frame = history.latest
        lines = [self.title(width, "speed", f"{PHASES.get(frame.phase, '')}{self.dot}{frame.policy}")]
        columns = max(1, width - _LABEL)
        step = time_step(columns, _SECONDS)
        values = history.per_second("tokens", columns, step)
        top = self.scale.include(values, history.generation)
        marks = mark_columns(history, columns, step)
        rows = max(1, height - 3)
        drawn = graph(
            values, rows, top, self.look, self.style("text"), self.style("rule"), self.style("mark"), marks
        )
        for number, line in enumerate(drawn):
            if number == rows - 1:
                label = self.piece(speed_words(history).rjust(_LABEL - 1) + " ", "value")
            else:
                label = self.piece((f"to {top:g}" if number == 0 else "").rjust(_LABEL - 1) + " ", "dim")
            lines.append([label, *line])
        p50, p95 = history.pass_ms((0.5, 0.95)) or (None, None)
        lines.append(
            self.fields(width, ("TTFT", ttft_words(frame)), ("TPOT", milliseconds(p50)), ("p95", milliseconds(p95)))
            or [self.piece("no token yet", "dim")]
        )
        window = history.window(_HITS_SECONDS)
        stall = window.stall_ms_per_token
        lines.append(
            self.fields(
                width,
                ("hit", percent(window.hit_rate, 1)),
                ("stall", f"{stall:.1f} ms/token" if stall is not None else ""),
            )
        )
        return lines[:height]


def speed_words(history: FrameHistory) -> str:
    """``10.2 tok/s`` of now; of the last tokens where nothing is decoded now; empty before the first."""
    rate = history.tokens_per_s()
    if rate is None:
        medians = history.pass_ms((0.5,), last=32)
        rate = 1000 / medians[0] if medians and medians[0] else None
    return "" if rate is None else f"{rate:.1f} t/s"


def ttft_words(frame: Frame) -> str:
    return "" if frame.ttft_s is None else f"{frame.ttft_s:.2f} s"
