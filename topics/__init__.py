"""Where it travels: one table of all topics in travel order, and their provisioning."""

from topics.table import (
    BY_NAME,
    GROUPS,
    LANES,
    RAW_MAX_BYTES,
    RECORD_MAX_BYTES,
    TOPICS,
    Lane,
    Names,
    Topic,
)

__all__ = ["BY_NAME", "GROUPS", "LANES", "RAW_MAX_BYTES", "RECORD_MAX_BYTES", "TOPICS", "Lane", "Names", "Topic"]
