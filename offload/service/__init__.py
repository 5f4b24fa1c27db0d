"""The engine in a process of its own: commands and tokens over a pipe, counters in a file that anyone may watch."""
