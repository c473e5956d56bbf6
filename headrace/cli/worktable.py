"""What a verification has read and found, in a temporary file: no number of documents is too many for memory."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import groupby

import msgspec

from headrace.cli.kafka import Place
from headrace.verification import NOTES, Difference, Evidence, Fact, Kind, Sent, gather
from schemas import Key

_CACHE_KIB = 32 * 1024
_SCHEMA = """
CREATE TABLE facts (tenant TEXT, doc_id TEXT, fact BLOB);
CREATE TABLE differences (
    tenant TEXT, doc_id TEXT, kind TEXT, remedy TEXT, difference BLOB, state BLOB, confirmed INTEGER,
    topic TEXT, partition INTEGER, place INTEGER, newest BLOB
);
CREATE INDEX differences_of ON differences (tenant, doc_id);
"""
_encode = msgspec.msgpack.Encoder().encode
_fact = msgspec.msgpack.Decoder(Fact)
_difference = msgspec.msgpack.Decoder(Difference)
_sent = msgspec.msgpack.Decoder(Sent | None)


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """A document with differences. `state` tells whether it was touched between two looks; `confirmed`, that it was not
    and still has them, so that they are not those of work on its way.
    """

    key: Key
    newest: Sent | None
    state: bytes
    differences: list[Difference]
    confirmed: bool = False


class WorkTable:
    """Facts by document, then what is different. It goes with the process, however that ends."""

    def __init__(self) -> None:
        # Without a name SQLite makes a file that is deleted at once, and writes it only when its cache is full.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_CACHE_KIB}; {_SCHEMA}"
        )
        self._db.execute("BEGIN")

    def add(self, facts: Iterable[tuple[Key, Fact]]) -> None:
        self._db.executemany("INSERT INTO facts VALUES (?, ?, ?)", ((*key, _encode(fact)) for key, fact in facts))

    def documents(self) -> Iterator[Evidence]:
        """Each document with all that is known of it."""
        return (gather(key, facts) for key, facts in self.facts())

    def facts(self) -> Iterator[tuple[Key, Iterator[Fact]]]:
        """By document; those of one are to be gone through before the next."""
        with closing(self._db.execute("SELECT tenant, doc_id, fact FROM facts ORDER BY tenant, doc_id")) as rows:
            for key, group in groupby(rows, key=lambda row: Key(row[0], row[1])):
                yield key, (_fact.decode(fact) for _, _, fact in group)

    def note(self, suspect: Suspect) -> None:
        """In place of what was noted of this document before; without differences, nothing is."""
        self._db.execute("DELETE FROM differences WHERE tenant = ? AND doc_id = ?", suspect.key)
        newest = suspect.newest
        place = (None, None, None) if newest is None else (newest.topic, newest.partition, newest.offset)
        shared = (suspect.state, suspect.confirmed, *place, _encode(newest))
        self._db.executemany(
            "INSERT INTO differences VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((*suspect.key, one.kind, one.remedy, _encode(one), *shared) for one in suspect.differences),
        )

    def unconfirmed(self, after: Key | None, limit: int) -> list[Suspect]:
        """The next documents, by key, whose differences may be those of work on its way."""
        found = self._db.execute(
            "SELECT tenant, doc_id, newest, state, difference FROM differences WHERE (tenant, doc_id) IN ("
            "SELECT DISTINCT tenant, doc_id FROM differences"
            " WHERE NOT confirmed AND (tenant, doc_id) > (?, ?) ORDER BY tenant, doc_id LIMIT ?"
            ") ORDER BY tenant, doc_id, rowid",
            (*(after or ("", "")), limit),
        ).fetchall()
        suspects = []
        for key, group in groupby(found, key=lambda row: Key(row[0], row[1])):
            rows = list(group)
            _, _, newest, state, _ = rows[0]
            noted = [_difference.decode(row[4]) for row in rows]
            suspects.append(Suspect(key=key, newest=_sent.decode(newest), state=state, differences=noted))
        return suspects

    def forget_unconfirmed(self) -> int:
        """Of how many documents something was noted that was not confirmed, and no longer is noted."""
        documents = self._count("SELECT count(DISTINCT tenant || '/' || doc_id) FROM differences WHERE NOT confirmed")
        self._db.execute("DELETE FROM differences WHERE NOT confirmed")
        return documents

    def counts(self) -> dict[Kind, int]:
        return dict(self._db.execute("SELECT kind, count(*) FROM differences GROUP BY kind ORDER BY kind"))

    def found(self, kind: Kind, limit: int = -1) -> Iterator[Difference]:
        """Those of one kind, by key; -1 is no limit."""
        query = "SELECT difference FROM differences WHERE kind = ? ORDER BY tenant, doc_id, rowid LIMIT ?"
        return self._differences(query, kind, limit)

    def redeliveries(self) -> int:
        """How many records are to be worked on again."""
        return self._count(
            "SELECT count(*) FROM (SELECT DISTINCT topic, partition, place FROM differences WHERE remedy = 'redeliver')"
        )

    def places(self, topic: str) -> Iterator[Place]:
        """Where the records of a topic are that are to be worked on again."""
        query = "SELECT DISTINCT partition, place FROM differences WHERE remedy = 'redeliver' AND topic = ?"
        yield from self._db.execute(f"{query} ORDER BY partition, place", (topic,))

    def sweeps(self) -> Iterator[Difference]:
        return self._differences("SELECT difference FROM differences WHERE remedy = 'sweep' ORDER BY tenant, doc_id")

    def without_remedy(self) -> int:
        """Differences that nothing can mend; notes are none."""
        counts = self._db.execute("SELECT kind, count(*) FROM differences WHERE remedy IS NULL GROUP BY kind")
        return sum(count for kind, count in counts if kind not in NOTES)

    def close(self) -> None:
        self._db.close()

    def _differences(self, query: str, *bound: str | int) -> Iterator[Difference]:
        with closing(self._db.execute(query, bound)) as rows:
            for [difference] in rows:
                yield _difference.decode(difference)

    def _count(self, query: str) -> int:
        [(count,)] = self._db.execute(query)
        return int(count)
