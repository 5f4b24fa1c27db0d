"""Expert maps: the store of past iterations, searching it, and its files."""

from offload.policy.maps.file import StoreModel, maps_file
from offload.policy.maps.matcher import Match, Matcher
from offload.policy.maps.store import CAPACITY, DISTANCE, MapStore, memory_bytes, open_maps

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
