"""What the live generation goes by and another one does not know of: documents that it never got, and deletions.

A new generation learns from Kafka alone. Compaction leaves of a document's records the last one in each topic, and of a
null value not even that for longer than a day: what was deleted may stand there as if it never had been.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from headrace.auth import Bearer
from headrace.cli.publishing import Tally, deletion, publish
from headrace.cli.verifying import COMPACTED, LOOK_DOCUMENTS
from headrace.config import Settings
from headrace.errors import Transient
from headrace.stores import ManifestStore
from headrace.versions import DELETED_FINGERPRINT
from schemas import Intake, Key, Manifest, Revision


def stands(manifest: Manifest) -> Revision | None:
    """What another generation must know of a document: its deletion, as soon as that was let in, or what is live."""
    intake, live = manifest.intake, manifest.live
    if intake is not None and intake.deleted:
        return intake.revision
    return None if live is None else live.revision


def is_deletion(revision: Revision) -> bool:
    return revision.fingerprint == DELETED_FINGERPRINT


def is_lacking(revision: Revision, intake: Intake | None) -> bool:
    """Whether a generation whose newest version of the document is `intake` lacks this one. A document of which it
    has nothing needs no deletion.
    """
    if is_deletion(revision):
        return intake is not None and not intake.deleted and intake.revision.order < revision.order
    return intake is None or intake.revision.version < revision.version


def lacking(manifests: ManifestStore, revisions: Mapping[Key, Revision]) -> Iterator[tuple[Key, Revision]]:
    """Those that the generation of these manifests lacks, each looked at a moment before it comes."""
    keys = sorted(revisions)
    for first in range(0, len(keys), LOOK_DOCUMENTS):
        page = keys[first : first + LOOK_DOCUMENTS]
        there = manifests.read(page)
        yield from ((key, revisions[key]) for key in page if is_lacking(revisions[key], there[key].manifest.intake))


def delete_again(
    settings: Settings, manifests: ManifestStore, revisions: Mapping[Key, Revision], say: Callable[[str], None]
) -> None:
    """Publish the deletions that these manifests lack, wherever a text may still be, each as of its version: it wins
    over what it won over before, and over nothing newer. As a message of its own it stays in Kafka.
    """
    records = (
        deletion(key, revision.version, topic) for key, revision in lacking(manifests, revisions) for topic in COMPACTED
    )
    tally = publish(records, settings.kafka, _Problems(say), bearer=Bearer(settings.auth))
    if not tally.fine:
        raise Transient("kafka", f"{tally.undelivered:,} deletions were not taken")
    say(f"deletions published again that Kafka no longer had: {tally.sent // len(COMPACTED):,}")


@dataclass(frozen=True)
class _Problems:
    say: Callable[[str], None]

    def changed(self, tally: Tally) -> None: ...

    def problem(self, where: str, why: str) -> None:
        self.say(f"{where}: {why}")
