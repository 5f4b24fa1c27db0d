"""Checkpoints of full size with random weights: the shapes and files of published models, without the download.

They say nothing sensible. What they are for is measuring: every byte that a real model of this shape reads,
computes and keeps, they do too, and their routers are as skewed and as persistent as they are asked to be.
Importing this package costs next to nothing.
"""

from offload.models.synthetic.card import SyntheticCard, read_card
from offload.models.synthetic.recipe import SHAPES, Recipe, recipe

__all__ = ["SHAPES", "Recipe", "SyntheticCard", "read_card", "recipe"]
