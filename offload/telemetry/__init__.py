"""Counters the engine increments, immutable snapshots others read, probes of memory."""
