"""A teacher's answers on disk: each view of each sample is asked for once."""

from potstill.cache.cached import Cached
from potstill.cache.identity import Identity
from potstill.cache.known import KnownTeacher
from potstill.cache.settings import CacheConfig, TeacherConfig
from potstill.cache.shelf import Shelf
from potstill.cache.vault import FORMAT, Vault

__all__ = ["FORMAT", "CacheConfig", "Cached", "Identity", "KnownTeacher", "Shelf", "TeacherConfig", "Vault"]
