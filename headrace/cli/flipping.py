"""From one generation to another: the steps, and why nobody sees anything stale meanwhile.

    filling   the new generation is made beside the live one, and tells nobody of it
    near      every worker looks at the record often, so that what follows takes seconds
    closing   the live generation's `commit` begins nothing more: what it has told is all that it will have told
    flipped   the new generation has all of that, and questions are answered from it; nobody tells anything
    telling   the new generation tells what it makes live, and what it had kept to itself is told after the fact
    done

Each step is one write of the record `Generations`, and rests on the wait before it: a worker may go by what it read
last for as long as that record's lease. Killed anywhere, the same steps go on from the record.
"""

from datetime import datetime
from typing import Any, Literal, Protocol

from msgspec.structs import replace

from headrace.errors import HeadraceError
from schemas.generations import HALF_DONE, IDLE_LEASE_S, LEASE_S, GenerationInfo, Generations

Phase = Literal["filling", "near", "closing", "flipped", "telling", "done"]
Marks = dict[str, dict[str, int]]
"""Where to begin to tell after the fact, by topic and partition."""
STATE_FILLING, STATE_LIVE, STATE_READY, STATE_KEPT = "is being made", "is live", "is ready", "is kept for a rollback"
STATE_LEFT = "is kept after a rollback"


class TooFarBehind(HeadraceError):
    """The new generation didn't catch up in time; the hold is undone, and nothing has changed for anybody."""


def display(generation: str) -> str:
    """A name for people: the first generation has none."""
    return generation or "1"


def next_name(record: Generations) -> str:
    """A number that no generation ever had: topics, groups and rows of one that was dropped may still be there."""
    # A command of an earlier release forgets `highest`.
    return str(1 + max(record.highest, *(_number(name) for name in (record.live, *record.known))))


def _number(name: str) -> int:
    return int(name or 1)


def registered(
    record: Generations, name: str, encoder: dict[str, Any], *, live_encoder: dict[str, Any], now: datetime
) -> Generations:
    """`name`, which may have been there before, is made from now on. The live one is there, too, which a record that
    nobody wrote says nothing of.
    """
    known = dict(record.known)
    known.setdefault(record.live, GenerationInfo(encoder=live_encoder, since=now, state=STATE_LIVE))
    before = known.get(name, GenerationInfo(encoder=encoder, since=now))
    return replace(
        record,
        known={**known, name: replace(before, state=STATE_FILLING)},
        highest=max(record.highest, _number(name)),
        target=name,
        phase="filling",
        lease_s=IDLE_LEASE_S,
    )


def near(record: Generations, target: str) -> Generations:
    return replace(record, known=_said(record, target, STATE_READY), target=target, phase="near", lease_s=LEASE_S)


def far(record: Generations) -> Generations:
    """Nothing is about to change after all: whoever is held goes on. A generation that was never live stays under way,
    and one that was is kept as before.
    """
    known, target = record.known, target_of(record)
    if target is not None and target == record.previous:
        known, target = _said(record, target, STATE_KEPT), None
    phase = "done" if target is None else "filling"
    return replace(record, known=known, target=target, held=[], phase=phase, lease_s=IDLE_LEASE_S, marks={})


def closing(record: Generations, marks: Marks) -> Generations:
    return replace(record, held=[record.live], phase="closing", lease_s=LEASE_S, marks=marks)


def flipped(record: Generations, target: str) -> Generations:
    """What is held stays so: it would be told too late."""
    left = STATE_LEFT if target == record.previous else STATE_KEPT
    known = _said(replace(record, known=_said(record, record.live, left)), target, STATE_LIVE)
    return replace(record, live=target, telling=None, previous=record.live, known=known, phase="flipped")


def telling(record: Generations) -> Generations:
    return replace(record, telling=record.live, held=[], phase="telling")


def done(record: Generations) -> Generations:
    return replace(record, target=None, marks={}, phase="done", lease_s=IDLE_LEASE_S)


def without(record: Generations, name: str) -> Generations:
    """It is not there any more. Raises HeadraceError for one that anybody goes by."""
    if name == record.live:
        raise HeadraceError(f"generation {display(name)} is live: questions are answered from it")
    if record.phase in HALF_DONE:
        raise HeadraceError("a flip is half done: run `headrace reindex` again to end it, then drop")
    known = {other: info for other, info in record.known.items() if other != name}
    previous = None if record.previous == name else record.previous
    target = None if target_of(record) == name else target_of(record)
    phase = "done" if target is None else "filling"
    return replace(record, known=known, previous=previous, target=target, phase=phase, lease_s=IDLE_LEASE_S)


def target_of(record: Generations) -> str | None:
    """Which generation a flip that is not done yet goes to."""
    if record.phase == "done":
        return None
    if record.phase in ("flipped", "telling"):
        return record.live
    if record.target is not None:
        return record.target
    # A record of a release that noted no target.
    made = [name for name, info in record.known.items() if info.state in (STATE_FILLING, STATE_READY)]
    return max(made, key=lambda name: record.known[name].since, default=None)


def goes_back(record: Generations) -> bool:
    """Whether what is under way is a rollback."""
    if record.phase in ("flipped", "telling"):
        return record.previous in record.known and record.known[record.previous].state == STATE_LEFT
    return record.previous is not None and target_of(record) == record.previous


def _said(record: Generations, name: str, state: str) -> dict[str, GenerationInfo]:
    return {**record.known, name: replace(record.known[name], state=state)} if name in record.known else record.known


class World(Protocol):
    """What a flip does, and what it waits for. Each may raise, or be the last thing that this process does."""

    def write(self, record: Generations) -> None:
        """Returns when everybody can read it. Raises HeadraceError when another run has begun."""

    def until_known(self) -> None:
        """Waits until nobody goes by anything older than what was written last, whoever wrote it."""

    def marks(self, generation: str) -> Marks:
        """The ends of the topics that a generation tells into while it is not its turn."""

    def beginnings(self, generation: str) -> Marks:
        """The beginnings of the same."""

    def passed(self, generation: str, *, within_s: float | None = None) -> bool:
        """Waits until a generation has done all that is in its topics now. False when it isn't in that time, or nothing
        moves.
        """

    def tell(self, record: Generations) -> Generations:
        """Tells what stands behind the marks, and moves them, both or none; the record with the marks moved."""


def flip(record: Generations, target: str, world: World, *, catch_up_s: float) -> Generations:
    """From `near` or anything after it to the end; what the record is then.

    Raises TooFarBehind before the flip, when the new generation needs longer than `catch_up_s`.
    """
    if record.phase == "near":
        record = _close(record, target, world, catch_up_s)
    if record.phase == "closing":
        world.until_known()
        # All that was ever told as live came from records that are there now.
        if not world.passed(target, within_s=catch_up_s):
            world.write(far(record))
            raise TooFarBehind(
                f"generation {display(target)} did not catch up within {catch_up_s:.0f} s: nothing was flipped, and "
                f"generation {display(record.live)} goes on; give the new one more workers, and run this again"
            )
        record = flipped(record, target)
        world.write(record)
    if record.phase == "flipped":
        world.until_known()
        record = telling(record)
        world.write(record)
    if record.phase == "telling":
        world.until_known()
        record = world.tell(record)
        # A batch that was begun before the new one's turn may have told where nobody reads until it is acked.
        while not world.passed(record.live):
            record = world.tell(record)
        record = done(world.tell(record))
        world.write(record)
    return record


def _close(record: Generations, target: str, world: World, catch_up_s: float) -> Generations:
    world.until_known()
    # What the new one told so far needs no telling, once the live one has told it, too.
    marks = world.marks(target)
    if not world.passed(record.live, within_s=catch_up_s):
        marks = world.beginnings(target)
    record = closing(record, marks)
    world.write(record)
    return record
