"""What is known about each architecture, read from a model folder without importing torch."""

from offload.models.spec import ModelSpec, read_spec

__all__ = ["ModelSpec", "read_spec"]
