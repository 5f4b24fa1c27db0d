"""Where the budget goes, what is really taken, and what the machine and the GPU have left."""

from __future__ import annotations

from offload.telemetry.frame import Frame
from offload.telemetry.probes import DeviceReading
from offload.units import format_bytes
from ui.panes.pane import WAITING, Line, Look, Pane

PARTS = (
    ("base", "base_bytes"),
    ("dense", "dense_bytes"),
    ("kv", "kv_bytes"),
    ("work", "workspace_bytes"),
    ("resident", "arena_bytes"),
)
"""Component class and field of `MemoryUse`; the workspace is shown with buffers of the lanes and of the policy, and
without what it lends to the experts."""

_NAMES = {"base": "base", "dense": "dense", "kv": "KV", "work": "work", "resident": "experts"}
_FILL = {
    Look.COLOUR: dict.fromkeys(_NAMES, "█"),
    Look.SHAPES: {"base": "░", "dense": "▒", "kv": "▚", "work": "▓", "resident": "█"},
    Look.ASCII: {"base": ":", "dense": "=", "kv": "%", "work": "+", "resident": "#"},
}


_ROOMY = 50
"""Columns from which the parts of the plan have room in two lines."""


class Memory(Pane):
    """The plan as one bar against the budget, the process's memory under it, then host and GPU."""

    DEFAULT_CSS = """
    Memory { height: auto; }
    """

    def lines_wanted(self, width: int) -> int:
        return 8 if width < _ROOMY else 7

    def draw(self, width: int, height: int) -> list[Line]:
        if self.history is None or self.history.latest is None:
            return [self.title(width, "memory"), [self.piece(WAITING, "dim")]]
        frame = self.history.latest
        memory = frame.memory
        on_gpu = frame.facts.device.startswith("cuda")
        name = f"budget {format_bytes(memory.budget_bytes)}"
        lines = [
            self.title(width, "memory", f"{frame.profile}{self.dot}{name}" if frame.profile else name),
            self.plan_bar(frame, width),
            *self.plan_words(frame, width),
            self._taken(frame, width, on_gpu),
            self._host(frame),
            gpu_line(self, frame),
        ]
        return lines[:height]

    def plan_bar(self, frame: Frame, width: int) -> Line:
        """The parts of the plan, side by side; the whole width is the budget."""
        parts, budget = _parts(frame), max(frame.memory.budget_bytes, 1)
        whole = max(budget, sum(parts.values()))
        line: Line = []
        done, at = 0, 0
        for name, count in parts.items():
            done += count
            end = round(width * done / whole)
            line.append(self.piece(_FILL[self.look][name] * (end - at), name))
            at = end
        return [*line, self.piece(("." if self.look is Look.ASCII else "░") * (width - at), "free")]

    def plan_words(self, frame: Frame, width: int) -> list[Line]:
        """The parts by name and size, over as many lines as it takes."""
        lines: list[Line] = [[]]
        used = 0
        for name, count in reversed(_parts(frame).items()):
            if not count:
                continue
            words = f"{_NAMES[name]} {format_bytes(count)}"
            if used + len(words) + 4 > width and used:
                lines.append([])
                used = 0
            mark = "■" if self.look is Look.COLOUR else _FILL[self.look][name]
            lines[-1] += [self.piece(f"{mark} ", name), self.piece(f"{words}  ", "text")]
            used += len(words) + 4
        return lines

    def _taken(self, frame: Frame, width: int, on_gpu: bool) -> Line:
        """A thin bar of the memory taken, with a tick at the most so far, on the scale of the plan."""
        memory = frame.memory
        words = f" {format_bytes(memory.rss_bytes)}"
        most = f" peak {format_bytes(memory.peak_bytes)}"
        label = "host RSS " if on_gpu else "RSS "
        columns = width - len(label) - len(words) - len(most)
        if on_gpu or columns < 6:
            return self.fields(width, (label.strip(), words.strip()), ("peak", most.removeprefix(" peak ")))
        whole = max(memory.budget_bytes, sum(_parts(frame).values()), 1)
        over = memory.rss_bytes > memory.budget_bytes
        full, rest, tick = ("=", "-", "|") if self.look is Look.ASCII else ("━", "─", "┃")
        end = min(columns, round(columns * memory.rss_bytes / whole))
        at = min(columns - 1, round(columns * memory.peak_bytes / whole))
        bar = [full] * end + [rest] * (columns - end)
        bar[at] = tick
        line = [self.piece(label, "dim")]
        line += [
            self.piece("".join(bar[: min(end, at)]), "warn" if over else "text"),
            self.piece("".join(bar[min(end, at) : at]), "free"),
        ]
        line += [self.piece(tick, "text"), self.piece("".join(bar[at + 1 :]), "free")]
        return [*line, self.piece(words, "warn" if over else "value"), self.piece(most, "dim")]

    def _host(self, frame: Frame) -> Line:
        host = frame.host
        if host.available_bytes is None or host.total_bytes is None:
            return [self.piece("host ", "dim"), self.piece(host.reason or "not known", "warn")]
        whole = host.usable_bytes or host.total_bytes
        limit = " limit" if host.limit_bytes is not None and host.limit_bytes == whole else ""
        return [
            self.piece("host ", "dim"),
            self.piece(format_bytes(host.available_bytes), "value"),
            self.piece(f" free of {format_bytes(whole)}{limit}", "text"),
        ]


def gpu_line(pane: Pane, frame: Frame) -> Line:
    """The GPU's memory; where there is none, that; where it cannot be read, why."""
    head: Line = [pane.piece("GPU  ", "dim")]
    gpu: DeviceReading | None = frame.gpu
    if gpu is None:
        return [*head, pane.piece("none, experts are in host memory", "dim")]
    if gpu.used_bytes is None or gpu.total_bytes is None:
        return [*head, pane.piece(gpu.reason or "not known", "warn")]
    share = gpu.used_bytes / max(1, gpu.total_bytes)
    line = [
        *head,
        pane.piece(format_bytes(gpu.used_bytes), "warn" if share > 0.97 else "value"),
        pane.piece(f" of {format_bytes(gpu.total_bytes)}", "text"),
    ]
    if gpu.process_bytes is not None:
        line.append(pane.piece(f"{pane.dot}ours {format_bytes(gpu.process_bytes)}", "text"))
    elif gpu.reason:
        line.append(pane.piece(f"{pane.dot}{gpu.reason}", "dim"))
    return line


def _parts(frame: Frame) -> dict[str, int]:
    parts = {name: int(getattr(frame.memory, field)) for name, field in PARTS}
    parts["work"] += frame.memory.staging_bytes + frame.memory.policy_bytes - frame.memory.lent_bytes
    return parts
