"""Files, folders, JSON Lines and stdin, read into documents one at a time.

What can't be read is a Problem among the documents, never an end: the ones behind it go on.
"""

import gzip
import html
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import msgspec
from msgspec.structs import replace

from schemas import Document, Key, decode
from schemas.document import ContentType, Deletion
from schemas.key import DEFAULT_TENANT, check_doc_id, check_tenant
from topics import RAW_MAX_BYTES

STDIN = "-"
CONTENT_TYPES: dict[str, ContentType] = {
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".html": "text/html",
    ".htm": "text/html",
}
JSON_LINES = (".jsonl", ".ndjson")
LINE_MAX_BYTES = 6 * RAW_MAX_BYTES + 1_000_000
"""JSON may spell every byte of the largest record as \\u00xx; nothing longer is taken into memory."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A document, and where it was found, for messages to people."""

    where: str
    key: Key
    document: Document | Deletion
    is_file: bool = False
    """The document is a file, whose name is its doc_id."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was meant to be a document and can't be read."""

    where: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file in a folder that isn't of a kind that is published."""

    where: str


Reading = Found | Problem | Skipped


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the command line says of every document. Without a tenant it is each JSON line's, then `default`."""

    tenant: str | None = None
    tags: tuple[str, ...] = ()
    doc_id: str | None = None


class _Line(Document, frozen=True, kw_only=True, omit_defaults=True):
    """A document as JSON Lines carry it; data sets call the doc_id `id`."""

    id: str | int | None = None


class _DeletionLine(Deletion, frozen=True, kw_only=True, omit_defaults=True):
    op: Literal["delete"]
    id: str | int | None = None


class _Operation(msgspec.Struct):
    op: Literal["upsert", "delete"] = "upsert"


def read_paths(paths: Sequence[str], labels: Labels, stdin: IO[bytes]) -> Iterator[Reading]:
    """Everything under the paths, in the order given and folders in the order of their names. `-` is stdin."""
    seen: dict[str, str] = {}
    for path in paths:
        for reading in _read_path(path, labels, stdin):
            if isinstance(reading, Found) and reading.is_file:
                doc_id = reading.key.doc_id
                if doc_id in seen:
                    why = (
                        f"{seen[doc_id]} has the doc_id {doc_id!r} too; publish the folder above both, or use --doc-id"
                    )
                    yield Problem(where=reading.where, why=why)
                    continue
                seen[doc_id] = reading.where
            yield reading


def _read_path(path: str, labels: Labels, stdin: IO[bytes]) -> Iterator[Reading]:
    if path == STDIN:
        if labels.doc_id is None:
            yield from read_json_lines(nullcontext(stdin), "stdin", labels)
        else:
            yield _text(stdin.read(RAW_MAX_BYTES + 1), "stdin", labels.doc_id, labels, "text/plain", source=None)
        return
    file = Path(path)
    if file.is_dir():
        yield from _read_folder(file, labels)
    elif is_json_lines(path):
        yield from _read_json_lines_file(file, path, labels)
    elif file.suffix.lower() in CONTENT_TYPES:
        yield _read_file(file, labels.doc_id or file.name, labels)
    elif file.exists():
        yield Problem(where=path, why=f"is of no kind that is known here ({known_kinds()})")
    else:
        yield Problem(where=path, why="does not exist")


def known_kinds() -> str:
    return ", ".join([*CONTENT_TYPES, *JSON_LINES, *(f"{suffix}.gz" for suffix in JSON_LINES)])


def is_json_lines(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(JSON_LINES)


def _read_folder(folder: Path, labels: Labels) -> Iterator[Reading]:
    """Hidden files and folders are left alone, links to folders are not followed."""
    unreadable: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            file = Path(root, name)
            if is_json_lines(name):
                yield from _read_json_lines_file(file, str(file), labels)
            elif file.suffix.lower() in CONTENT_TYPES:
                yield _read_file(file, file.relative_to(folder).as_posix(), labels)
            else:
                yield Skipped(where=str(file))
        while unreadable:
            exc = unreadable.pop()
            yield Problem(where=str(exc.filename), why=exc.strerror or str(exc))
    while unreadable:
        exc = unreadable.pop()
        yield Problem(where=str(exc.filename), why=exc.strerror or str(exc))


def _read_file(file: Path, doc_id: str, labels: Labels) -> Found | Problem:
    try:
        with file.open("rb") as opened:
            raw = opened.read(RAW_MAX_BYTES + 1)
    except OSError as exc:
        return Problem(where=str(file), why=exc.strerror or str(exc))
    content_type = CONTENT_TYPES[file.suffix.lower()]
    return _text(raw, str(file), doc_id, labels, content_type, source=file.resolve().as_uri())


def _text(
    raw: bytes, where: str, doc_id: str, labels: Labels, content_type: ContentType, source: str | None
) -> Found | Problem:
    if len(raw) > RAW_MAX_BYTES:
        return Problem(where=where, why=too_large(None))
    try:
        # A byte order mark is an encoding's, not the text's; line ends stay, so that offsets fit the file.
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        return Problem(where=where, why=f"is not UTF-8: {exc.reason} at byte {exc.start}")
    try:
        key = Key(check_tenant(labels.tenant or DEFAULT_TENANT), check_doc_id(doc_id))
    except ValueError as exc:
        return Problem(where=where, why=str(exc))
    document = _Line(
        text=text,
        title=title_of(text, content_type),
        content_type=content_type,
        source=source,
        tags=list(labels.tags),
    )
    return Found(where=where, key=key, document=document, is_file=source is not None)


def too_large(size: int | None) -> str:
    """Why a record of so many bytes isn't sent (None: more than a record, it wasn't read to its end)."""
    found = "more" if size is None else f"{size:,} bytes"
    return f"is too large: a record may have {RAW_MAX_BYTES:,} bytes with its key, this has {found}; split the document"


def _read_json_lines_file(file: Path, where: str, labels: Labels) -> Iterator[Reading]:
    try:
        opened = _opened(file)
    except OSError as exc:
        yield Problem(where=where, why=exc.strerror or str(exc))
        return
    yield from read_json_lines(opened, where, labels)


def _opened(file: Path) -> IO[bytes]:
    if file.suffix.lower() == ".gz":
        return gzip.open(file)  # type: ignore[return-value]  # it is one in all but its type
    return file.open("rb")


def read_json_lines(source: AbstractContextManager[IO[bytes]], where: str, labels: Labels) -> Iterator[Found | Problem]:
    """One document a line; empty lines are passed over. Streams: one line at a time is in memory."""
    with source as lines:
        number = 0
        while True:
            number += 1
            place = f"{where}:{number}"
            try:
                line = lines.readline(LINE_MAX_BYTES)
                cut = len(line) == LINE_MAX_BYTES and not line.endswith(b"\n")
                if cut:
                    while (rest := lines.readline(LINE_MAX_BYTES)) and not rest.endswith(b"\n"):
                        pass
            except (OSError, EOFError, zlib.error) as exc:
                yield Problem(where=place, why=f"can't be read: {exc}")
                return
            if not line:
                return
            if cut:
                yield Problem(where=place, why=too_large(None))
            elif line.strip():
                yield _read_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, place, labels)


def _read_line(line: bytes, where: str, labels: Labels) -> Found | Problem:
    try:
        deletes = decode(line, _Operation).op == "delete"
        read = decode(line, _DeletionLine) if deletes else decode(line, _Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        return Problem(where=where, why=f"is no document: {exc}")
    try:
        key = _key(read, labels)
    except ValueError as exc:
        return Problem(where=where, why=str(exc))
    # The key names the document; in the value its name would only be said twice.
    if isinstance(read, _DeletionLine):
        return Found(where=where, key=key, document=replace(read, id=None, doc_id=None, tenant=None))
    tags = list(dict.fromkeys([*read.tags, *labels.tags]))
    return Found(where=where, key=key, document=replace(read, id=None, doc_id=None, tenant=None, tags=tags))


def _key(read: _Line | _DeletionLine, labels: Labels) -> Key:
    doc_id = read.doc_id if read.doc_id is not None else read.id
    if doc_id is None:
        raise ValueError("has no `doc_id` (or `id`)")
    if labels.tenant is not None and read.tenant not in (None, labels.tenant):
        raise ValueError(f"is of tenant {read.tenant!r}, not of {labels.tenant!r} as --tenant says")
    tenant = labels.tenant or read.tenant or DEFAULT_TENANT
    return Key(check_tenant(tenant), check_doc_id(str(doc_id)))


_FENCE = re.compile(r" {0,3}(```|~~~)")
_MARKDOWN_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$")
_HTML_TITLES = tuple(
    re.compile(rf"<{tag}\b[^>]*>(.*?)</{tag}\s*>", re.IGNORECASE | re.DOTALL) for tag in ("title", "h1")
)
_TAG = re.compile(r"<[^>]*>")


def title_of(text: str, content_type: ContentType) -> str | None:
    """The first heading of Markdown; the title of HTML, or else its first h1. Plain text has none."""
    if content_type == "text/markdown":
        return _markdown_title(text)
    if content_type == "text/html":
        for pattern in _HTML_TITLES:
            if found := pattern.search(text):
                return " ".join(html.unescape(_TAG.sub(" ", found[1])).split()) or None
    return None


def _markdown_title(text: str) -> str | None:
    fence = None
    for line in text.splitlines():
        if mark := _FENCE.match(line):
            if fence is None:
                fence = mark[1]
            elif fence == mark[1]:
                fence = None
        elif fence is None and (found := _MARKDOWN_HEADING.match(line)):
            return found[1]
    return None
