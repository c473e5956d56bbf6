"""One version of a document as it is processed, the order of versions, and the ids of a version's chunks."""

import hashlib

import msgspec

from schemas.key import Key

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one document, chunked and encoded in one way.

    `version` is what the producer named, or the record's timestamp in Unix milliseconds; `timestamp` (Unix ms) and
    `offset` are the record's and break ties. `fingerprint` covers the text, what describes it, and the pipeline
    settings, so the same version processed under other settings has rows of its own.
    """

    version: int
    timestamp: int
    offset: int
    fingerprint: str

    @property
    def order(self) -> tuple[int, int, int]:
        """Versions of one document compare by this, whatever order they arrive in."""
        return (self.version, self.timestamp, self.offset)


def revision_id(key: Key, revision: Revision) -> str:
    """32 hex digits, the same for the same revision on every worker."""
    named = [*key, *revision.order, revision.fingerprint]
    return hashlib.blake2b(msgspec.json.encode(named), digest_size=16).hexdigest()


def chunk_id(revision: str, ordinal: int) -> str:
    """The id of a chunk in both stores, from its revision's id: replaying a message overwrites the same rows."""
    return f"{revision}-{ordinal}"


def revision_of(chunk: str) -> str:
    """The revision's id that a chunk's id begins with."""
    return chunk.rpartition("-")[0]
