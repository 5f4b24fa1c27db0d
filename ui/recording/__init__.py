"""Conversations recorded with their telemetry, and played again without a model."""
