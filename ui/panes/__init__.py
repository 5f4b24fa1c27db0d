"""Panes: everything that draws telemetry. One widget a file; data goes down by ``show``, nothing goes up."""
