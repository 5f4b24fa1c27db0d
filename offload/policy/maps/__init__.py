"""Expert maps: the store of past iterations, searching it, what topics need, and their files."""

from offload.policy.maps.matcher import Match, Matcher
from offload.policy.maps.shelf import DISTANCE, StoreModel
from offload.policy.maps.store import CAPACITY, MapStore, maps_file, memory_bytes, open_maps
from offload.policy.maps.topics import TopicStore, topics_file

__all__ = [
    "CAPACITY",
    "DISTANCE",
    "MapStore",
    "Match",
    "Matcher",
    "StoreModel",
    "TopicStore",
    "maps_file",
    "memory_bytes",
    "open_maps",
    "topics_file",
]
