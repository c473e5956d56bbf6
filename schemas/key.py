"""The record key `tenant/doc_id`, which every hop of a document's way shares."""

import re
from typing import NamedTuple

TENANT_PATTERN = r"[a-z0-9][a-z0-9_-]{0,47}"
DOC_ID_MAX_BYTES = 512
DEFAULT_TENANT = "default"

_tenant = re.compile(TENANT_PATTERN)


class Key(NamedTuple):
    """Names one document. Hashable, so it also groups what belongs to one document."""

    tenant: str
    doc_id: str

    def encode(self) -> bytes:
        return f"{self.tenant}/{self.doc_id}".encode()

    def __str__(self) -> str:
        return f"{self.tenant}/{self.doc_id}"


def check_tenant(tenant: str) -> str:
    """Return the tenant; raise ValueError when it is not of the contract's form."""
    if not _tenant.fullmatch(tenant):
        raise ValueError(f"tenant {tenant[:80]!r} does not match {TENANT_PATTERN}")
    return tenant


def check_doc_id(doc_id: str) -> str:
    """Return the doc_id; raise ValueError when it is empty or longer than 512 bytes of UTF-8."""
    if not doc_id:
        raise ValueError("the doc_id is empty")
    try:
        size = len(doc_id.encode())
    except UnicodeEncodeError as exc:
        raise ValueError(f"doc_id {doc_id!r} is not valid Unicode: {exc.reason}") from None
    if size > DOC_ID_MAX_BYTES:
        raise ValueError(f"the doc_id has {size} bytes; at most {DOC_ID_MAX_BYTES} are allowed")
    return doc_id


def parse_key(raw: bytes | None) -> Key:
    """Split a record key at its first `/`.

    Raises ValueError when there is no key, no `/`, or either side is not of the contract's form.
    """
    if raw is None:
        raise ValueError("the record has no key; it must be tenant/doc_id")
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        raise ValueError(f"the key is not UTF-8: {exc.reason} at byte {exc.start}") from None
    tenant, slash, doc_id = text.partition("/")
    if not slash:
        raise ValueError(f"the key {text[:80]!r} has no '/'; it must be tenant/doc_id")
    return Key(check_tenant(tenant), check_doc_id(doc_id))
