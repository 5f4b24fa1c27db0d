"""Prompts to evaluate with: the sample that comes with finemoe, and readers of a user's own files.

``sample.jsonl`` was written for finemoe, in the manner of what people type to chat models (LMSYS-Chat-1M,
ShareGPT), and has the project's licence. It is no part of either data set, and results on it are not results on
them. ``docs/datasets.md`` has its schema, its statistics, and the forms of files that are accepted.
"""
