"""Evaluation: prompts answered under several policies and budgets, and what that cost, in a folder of plain files.

``prompts`` finds the prompts, ``plan`` says what is to be done, ``engines`` and ``worker`` are an engine in a
process of its own, ``learning`` is what policies learn from the history, ``runner`` holds the conversations,
``folder`` keeps the rows, and ``metrics`` and ``summary`` work out what they come to. How it is measured is in
``docs/evaluation.md``.
"""
