"""Data sets in files: folders of BEIR's shape, and one's own judgements.

What is not as it should be is a ValueError that names the file and the line.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from headrace.evaluation.questions import Question, Span
from schemas import decode
from schemas.key import check_doc_id

T = TypeVar("T")
QUERY_CHARACTERS = 8192
"""Of a question at most, as the contract has it."""


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """A document of a data set."""

    doc_id: str
    title: str | None
    text: str


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """`train` is empty where the data set has no such split. `digest` names the documents: 16 hex digits over all."""

    name: str
    documents: Callable[[], Iterator[Passage]]
    """Reads them from the file, one at a time, in its order."""
    count: int
    digest: str
    test: list[Question]
    train: list[Question]

    @property
    def has_evidence(self) -> bool:
        return any(question.evidence for question in (*self.test, *self.train))


class _DocumentLine(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    title: str | None = None
    _id: str | int | None = None
    id: str | int | None = None


class _QueryLine(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    _id: str | int | None = None
    id: str | int | None = None
    evidence: Any = None


class _SpanLine(msgspec.Struct, frozen=True, kw_only=True):
    start: int
    end: int
    doc_id: str | int | None = None
    doc: str | int | None = None


class _JudgementLine(msgspec.Struct, frozen=True, kw_only=True):
    query: str
    id: str | int | None = None
    doc_ids: list[str | int] = []
    evidence: list[_SpanLine] = []


class _UnanswerableLine(msgspec.Struct, frozen=True, kw_only=True):
    query: str | None = None
    text: str | None = None
    id: str | int | None = None


def read_dataset(folder: Path) -> Dataset:
    """`corpus.jsonl`, `queries.jsonl` (either may end in .gz), and judgements in `qrels.tsv` or `qrels/test.tsv`.

    Documents and queries have an `id` or `_id`. What to tune on is in `qrels-train.tsv` or `qrels/train.tsv`, its
    queries in `queries-train.jsonl` where they are not with the others. A query without a relevant document and without
    evidence is left out.
    """
    corpus = _there(folder, "corpus.jsonl")
    lengths, digest = _read_corpus(corpus)
    queries = _read_queries(_there(folder, "queries.jsonl"))
    test = _first_there(folder, "qrels.tsv", "qrels/test.tsv")
    if test is None:
        raise ValueError(f"{folder}: has neither qrels.tsv nor qrels/test.tsv")
    train = _first_there(folder, "qrels-train.tsv", "qrels/train.tsv")
    of_train = _first_there(folder, "queries-train.jsonl", "queries-train.jsonl.gz")
    return Dataset(
        name=folder.resolve().name,
        documents=lambda: _documents(corpus),
        count=len(lengths),
        digest=digest,
        test=_questions(queries, test, lengths),
        train=_questions(queries | (_read_queries(of_train) if of_train else {}), train, lengths) if train else [],
    )


def read_judgements(file: Path) -> list[Question]:
    """JSON Lines of `query`, `doc_ids` that answer it, and `evidence` (`doc_id`, `start`, `end`), one or both of them;
    `id` is the number of the line where there is none.
    """
    questions: dict[str, Question] = {}
    for place, number, line in _lines(file):
        read = _decoded(line, _JudgementLine, place)
        name = str(read.id) if read.id is not None else str(number)
        if name in questions:
            raise ValueError(f"{place}: there is another judgement with the id {name!r}")
        evidence = [_span(span, place) for span in read.evidence]
        relevant = {_doc_id(doc, place): 1 for doc in (*read.doc_ids, *(span.doc_id for span in evidence))}
        if not relevant:
            raise ValueError(f"{place}: names no doc_ids and no evidence")
        questions[name] = Question(id=name, text=_text(read.query, place), relevant=relevant, evidence=evidence)
    if not questions:
        raise ValueError(f"{file}: is empty")
    return list(questions.values())


def read_unanswerable(file: Path) -> list[Question]:
    """A question a line: its text, or, where the line begins with a brace, JSON with `query` (or `text`). Where it has
    no `id`, its text is that, so it stays on its side of `halves` when others are added.
    """
    questions: dict[str, Question] = {}
    for place, _, line in _lines(file):
        read = _unanswerable(line.strip(), place)
        text = read.query if read.query is not None else read.text
        if text is None:
            raise ValueError(f"{place}: has no `query` (or `text`)")
        name = str(read.id) if read.id is not None else text
        if name in questions:
            raise ValueError(f"{place}: there is another question {name!r}")
        questions[name] = Question(id=name, text=_text(text, place))
    if not questions:
        raise ValueError(f"{file}: is empty")
    return list(questions.values())


def _unanswerable(line: bytes, place: str) -> _UnanswerableLine:
    if line.startswith(b"{"):
        return _decoded(line, _UnanswerableLine, place)
    try:
        return _UnanswerableLine(text=line.decode())
    except UnicodeDecodeError as exc:
        raise ValueError(f"{place}: {exc}") from exc


def _read_corpus(file: Path) -> tuple[dict[str, int], str]:
    """The texts' lengths by doc_id, and the digest of all documents."""
    lengths: dict[str, int] = {}
    digest = blake2b(digest_size=8)
    for passage in _documents(file, lengths):
        for part in (passage.doc_id, passage.title or "", passage.text):
            digest.update(len(part).to_bytes(8, "big") + part.encode())
    if not lengths:
        raise ValueError(f"{file}: has no documents")
    return lengths, digest.hexdigest()


def _documents(file: Path, lengths: dict[str, int] | None = None) -> Iterator[Passage]:
    known = {} if lengths is None else lengths
    for place, _, line in _lines(file):
        read = _decoded(line, _DocumentLine, place)
        doc_id = _doc_id(_named(read, place), place)
        if doc_id in known:
            raise ValueError(f"{place}: there is another document with the id {doc_id!r}")
        known[doc_id] = len(read.text)
        yield Passage(doc_id=doc_id, title=read.title or None, text=read.text)


def _read_queries(file: Path) -> dict[str, tuple[str, list[Span], str]]:
    """Text, evidence and place by id."""
    queries: dict[str, tuple[str, list[Span], str]] = {}
    for place, _, line in _lines(file):
        read = _decoded(line, _QueryLine, place)
        name = str(_named(read, place))
        if name in queries:
            raise ValueError(f"{place}: there is another query with the id {name!r}")
        # SciFact has its own evidence there, by sentence: not a list.
        spans = read.evidence if isinstance(read.evidence, list) else []
        try:
            evidence = [_span(msgspec.convert(span, _SpanLine), place) for span in spans]
        except msgspec.ValidationError as exc:
            raise ValueError(f"{place}: evidence: {exc}") from exc
        queries[name] = (_text(read.text, place), evidence, place)
    return queries


def _questions(
    queries: dict[str, tuple[str, list[Span], str]], judgements: Path, lengths: dict[str, int]
) -> list[Question]:
    relevant: dict[str, dict[str, int]] = {}
    for place, query, doc_id, grade in _judgements(judgements):
        if query not in queries:
            raise ValueError(f"{place}: judges the query {query!r}, which is not there")
        if doc_id not in lengths:
            raise ValueError(f"{place}: names the document {doc_id!r}, which is not there")
        if grade > 0:
            relevant.setdefault(query, {})[doc_id] = grade
    questions = []
    for name, grades in relevant.items():
        text, evidence, place = queries[name]
        for span in evidence:
            if span.end > lengths.get(span.doc_id, 0):
                raise ValueError(f"{place}: evidence {span.start} to {span.end} is not in the document {span.doc_id!r}")
        questions.append(Question(id=name, text=text, relevant=grades, evidence=evidence))
    if not questions:
        raise ValueError(f"{judgements}: judges no document as relevant")
    return questions


def _judgements(file: Path) -> Iterator[tuple[str, str, str, int]]:
    """Place, query, document, grade. A first line without a number is the header."""
    for place, number, line in _lines(file):
        parts = line.decode(errors="replace").rstrip("\r\n").split("\t")
        if len(parts) != 3:
            raise ValueError(f"{place}: has {len(parts)} columns, not query-id, corpus-id and score between tabs")
        try:
            grade = int(parts[2])
        except ValueError as exc:
            if number == 1:
                continue
            raise ValueError(f"{place}: the score {parts[2]!r} is not a whole number") from exc
        yield place, parts[0], parts[1], grade


def _lines(file: Path) -> Iterator[tuple[str, int, bytes]]:
    """Lines that aren't empty, with their place and number."""
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                if line.strip():
                    yield f"{file}:{number}", number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (OSError, EOFError, zlib.error) as exc:
        raise ValueError(f"{file}:{number + 1}: can't be read: {exc}") from exc


def _decoded(line: bytes, line_type: type[T], place: str) -> T:
    try:
        return decode(line, line_type)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"{place}: {exc}") from exc


def _named(read: _DocumentLine | _QueryLine, place: str) -> str | int:
    name = read._id if read._id is not None else read.id
    if name is None:
        raise ValueError(f"{place}: has no `id` (or `_id`)")
    return name


def _doc_id(name: str | int, place: str) -> str:
    try:
        return check_doc_id(str(name))
    except ValueError as exc:
        raise ValueError(f"{place}: {exc}") from exc


def _span(span: _SpanLine, place: str) -> Span:
    name = span.doc_id if span.doc_id is not None else span.doc
    if name is None:
        raise ValueError(f"{place}: evidence names no document (`doc_id`)")
    if not 0 <= span.start < span.end:
        raise ValueError(f"{place}: evidence from {span.start} to {span.end} is no span")
    return Span(doc_id=_doc_id(name, place), start=span.start, end=span.end)


def _text(text: str, place: str) -> str:
    if not 1 <= len(text) <= QUERY_CHARACTERS:
        raise ValueError(f"{place}: a question has 1 to {QUERY_CHARACTERS} characters")
    return text


def _there(folder: Path, name: str) -> Path:
    found = _first_there(folder, name, f"{name}.gz")
    if found is None:
        raise ValueError(f"{folder}: has no {name} (and no {name}.gz)")
    return found


def _first_there(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
