"""Prompts for the exactness tests: many kinds, 1 to about 600 tokens of the demo's tokenizer."""

from __future__ import annotations

PARAGRAPH = (
    "The lighthouse keeper wrote down every ship that passed: its name, its flag, the hour, and what the sea was "
    "doing at the time. After forty years the books filled a whole room, and nobody but him had ever read them. "
)

PROMPTS: tuple[str, ...] = (
    "A",
    "Hello",
    "What is 17 * 23?",
    "def fibonacci(n):",
    "Wie heißt die Hauptstadt von Australien?",
    "¿Cuántos días tiene un año bisiesto?",
    "请用一句话介绍长城。",
    "SELECT name, COUNT(*) FROM ships GROUP BY name HAVING COUNT(*) > 3 ORDER BY 2 DESC;",
    "Translate into French: the cat sleeps on the warm roof.",
    "List three rivers in Africa, with their lengths in kilometres.",
    "You are a pirate. Tell me how to make tea.",
    '{"name": "Ada", "born": 1815, "fields": ["mathematics", "poetry"]}',
    "Rewrite politely: give me the report now or else.",
    "Once upon a time, in a village between two mountains, there lived a clockmaker who had never been late.",
    "| day | rain |\n|---|---|\n| Mon | 3 |\n| Tue | 0 |\n\nWhich day was dry?",
    "0 1 1 2 3 5 8 13 21 34 55 89 144 233 377 610 987",
    "Summarise: " + PARAGRAPH,
    "Summarise: " + PARAGRAPH * 3,
    "Count the sentences: " + PARAGRAPH * 6,
    "Continue the story. " + PARAGRAPH * 12,
)
