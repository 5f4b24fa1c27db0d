"""Expert maps: the store of past iterations, searching it, and its files."""

from offload.policy.maps.matcher import Match, Matcher
from offload.policy.maps.shelf import DISTANCE, StoreModel
from offload.policy.maps.store import CAPACITY, MapStore, maps_file, memory_bytes, open_maps

__all__ = [
    "CAPACITY",
    "DISTANCE",
    "MapStore",
    "Match",
    "Matcher",
    "StoreModel",
    "maps_file",
    "memory_bytes",
    "open_maps",
]
