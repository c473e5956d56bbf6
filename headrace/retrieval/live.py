"""The live check: of what the stores found, only chunks of the version that the document's manifest names. Pure.

Stores may still hold older versions (a sweep is pending), newer ones (not yet whole), and deleted documents; none is
shown.
"""

from collections.abc import Mapping

from schemas.revision import revision_of


def live_chunks(documents: Mapping[str, str], revisions: Mapping[str, str]) -> set[str]:
    """Of these chunks, given with their doc_ids, those of the documents' live revisions. A document that is deleted, or
    has never been whole, has none. The id decides: it begins with its revision's.
    """
    return {chunk for chunk, doc_id in documents.items() if revisions.get(doc_id) == revision_of(chunk)}
