"""One expert: where it is, how often it was used and missed, and its share of its layer."""

from __future__ import annotations

import numpy as np

from offload.units import format_bytes
from ui.panes.expert_table import TIERS, ago, tiers
from ui.panes.pane import Line, Pane, percent


class ExpertDetail(Pane):
    """Four lines on the expert number `expert` (of L*E)."""

    DEFAULT_CSS = """
    ExpertDetail { height: 4; }
    """

    expert = 0

    def lines_wanted(self, width: int) -> int:
        return 4

    def draw(self, width: int, height: int) -> list[Line]:
        history = self.history
        if history is None or history.latest is None or history.facts is None:
            return []
        facts, frame = history.facts, history.latest
        layer, expert = divmod(self.expert, facts.experts)
        part = slice(layer * facts.experts, (layer + 1) * facts.experts)
        uses, misses = int(frame.uses[self.expert]), int(frame.misses[self.expert])
        in_layer = int(frame.uses[part].sum())
        rank = int(np.count_nonzero(history.heat[part] > history.heat[self.expert])) + 1
        state = TIERS[int(tiers(history)[self.expert])]
        return [
            self.title(
                width, f"layer {layer}, expert {expert}", f"{state}{self.dot}{format_bytes(facts.slot_bytes)}"
            ),
            self.fields(
                width,
                ("uses", f"{uses}"),
                ("waited for", f"{misses}"),
                ("that is", percent(misses / uses) if uses else ""),
            ),
            self.fields(
                width,
                ("share of its layer", percent(uses / in_layer, 1) if in_layer else ""),
                ("heat", f"number {rank} of {facts.experts}"),
            ),
            self.fields(
                width,
                ("used", _before(history.now - float(history.used_at[self.expert]))),
                ("waited for", _before(history.now - float(history.missed_at[self.expert]))),
            ),
        ]


def _before(seconds: float) -> str:
    return f"{ago(seconds)} ago" if np.isfinite(seconds) else "not seen"
