"""finemoe's own colours: quiet, with one accent for you and one for the model."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="finemoe",
    primary="#7aa2c9",
    secondary="#8fb39a",
    accent="#d9a86c",
    foreground="#d4d7dc",
    background="#14171b",
    surface="#1a1e23",
    panel="#22272e",
    success="#8fb39a",
    warning="#d9a86c",
    error="#d9797a",
    dark=True,
    variables={
        "footer-background": "#14171b",
        "footer-key-foreground": "#7aa2c9",
        "footer-description-foreground": "#8a919b",
        "input-selection-background": "#7aa2c9 30%",
        "block-cursor-background": "#7aa2c9",
        "block-cursor-foreground": "#14171b",
        "border": "#3a424c",
        "border-blurred": "#2a3038",
        "scrollbar": "#2d343c",
        "scrollbar-background": "#14171b",
        "scrollbar-corner-color": "#14171b",
        "scrollbar-hover": "#3a424c",
        "scrollbar-active": "#7aa2c9",
    },
)

LIGHT = Theme(
    name="finemoe-light",
    primary="#2f6690",
    secondary="#3f7a55",
    accent="#a8682a",
    foreground="#2b2f36",
    background="#f7f6f3",
    surface="#f0efeb",
    panel="#e6e4de",
    success="#3f7a55",
    warning="#a8682a",
    error="#b04a4b",
    dark=False,
    variables={
        "footer-background": "#f7f6f3",
        "footer-key-foreground": "#2f6690",
        "footer-description-foreground": "#6b7079",
        "border": "#c5c2b9",
        "border-blurred": "#d8d5cc",
        "scrollbar": "#d0cdc4",
        "scrollbar-background": "#f7f6f3",
        "scrollbar-corner-color": "#f7f6f3",
        "scrollbar-hover": "#b9b5aa",
        "scrollbar-active": "#2f6690",
    },
)

THEMES = (DARK, LIGHT)
DEFAULT = DARK.name
