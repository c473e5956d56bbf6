"""The live check: of what the stores found, only chunks of the version that the document's manifest names. Pure.

Stores may still hold older versions (a sweep is pending), newer ones (not yet whole), and deleted documents; none is
shown.
"""

from collections.abc import Iterable, Mapping

from headrace.stores.ports import Candidate
from schemas import Manifest, revision_id
from schemas.revision import revision_of


def live_revisions(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """The live revision's id by doc_id. A document that is deleted, or has never been whole, is not in it."""
    return {
        doc_id: revision_id(manifest.key, manifest.live.revision)
        for doc_id, manifest in manifests.items()
        if manifest.live is not None and not manifest.live.deleted
    }


def keep_live(candidates: Iterable[Candidate], revisions: Mapping[str, str]) -> list[Candidate]:
    """The candidates of these revisions, in their order. The id decides: it begins with its revision's."""
    return [candidate for candidate in candidates if revisions.get(candidate.doc_id) == revision_of(candidate.id)]
