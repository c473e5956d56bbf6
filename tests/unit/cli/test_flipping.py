"""A flip against a small model of a deployment: workers that look late, batches in hand, and a command that is killed."""

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace.cli import flipping
from headrace.cli.flipping import Marks, TooFarBehind, flip, near, registered, target_of, without
from headrace.errors import HeadraceError
from schemas.generations import IDLE_LEASE_S, Generations

OLD, NEW = "", "2"
NOW = datetime(2026, 5, 1, tzinfo=UTC)


class KilledError(Exception):
    """Stands for SIGKILL: nothing of the command runs after it."""


@dataclass
class Generation:
    """Its `commit`: what it has made live, what it has in hand, and what it keeps to itself. A document is a number,
    and its version is that number.
    """

    name: str
    sees: Generations
    live: int = 0
    in_hand: int | None = None
    untold: list[int] = field(default_factory=list)

    def step(self, published: int, events: list[int]) -> None:
        if self.in_hand is not None:
            (events if self.sees.telling == self.name else self.untold).append(self.in_hand)
            self.in_hand = None
        elif self.live < published and self.name not in self.sees.held:
            self.live += 1
            self.in_hand = self.live


@dataclass
class Model:
    """A deployment under load, as a `World`. Workers see any record since the last wait; waits show them the newest."""

    random_: random.Random
    record: Generations
    kill_at: int = -1
    published: int = 0
    events: list[int] = field(default_factory=list)
    generations: dict[str, Generation] = field(default_factory=dict)
    asked_of: list[Generations] = field(default_factory=list)
    """What each query worker goes by."""
    effects: int = 0
    stands_still: str | None = None
    """The generation that nobody works on."""
    begun: Marks = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generations = {name: Generation(name, self.record) for name in (OLD, NEW)}
        self.asked_of = [self.record, self.record]

    def write(self, record: Generations) -> None:
        with self._effect():
            self.record = record

    def until_known(self) -> None:
        with self._effect():
            for generation in self.generations.values():
                generation.sees = self.record
            self.asked_of = [self.record for _ in self.asked_of]

    def marks(self, generation: str) -> Marks:
        with self._effect():
            return {"untold": {"0": len(self.generations[generation].untold)}}

    def beginnings(self, generation: str) -> Marks:
        del generation
        return {"untold": {"0": 0}}

    def passed(self, generation: str, *, within_s: float | None = None) -> bool:
        with self._effect():
            if generation == self.stands_still:
                assert within_s is not None, "it would be waited for without an end"
                return False
            end = self.published
            its = self.generations[generation]
            while its.live < end or its.in_hand is not None:
                if its.name in its.sees.held and its.in_hand is None:
                    return False
                self._step(generation)
            return True

    def tell(self, record: Generations) -> Generations:
        with self._effect():
            untold = self.generations[record.live].untold
            self.events += untold[record.marks["untold"]["0"] :]
            return flipping.replace(record, marks={"untold": {"0": len(untold)}})

    def _effect(self) -> "_Effect":
        return _Effect(self)

    def work(self) -> None:
        for _ in range(self.random_.randrange(6)):
            self._step(self.random_.choice([OLD, NEW]))
            self.published += self.random_.random() < 0.4
            if self.random_.random() < 0.3:
                self.random_.choice(list(self.generations.values())).sees = self.record
            if self.random_.random() < 0.3:
                self.asked_of[self.random_.randrange(len(self.asked_of))] = self.record
            self.check()

    def _step(self, name: str) -> None:
        if name != self.stands_still:
            self.generations[name].step(self.published, self.events)
            self.check()

    def check(self) -> None:
        """Whoever asks now gets all that was told by now."""
        for seen in self.asked_of:
            live = self.generations[seen.live].live
            assert max(self.events, default=0) <= live, f"stale: {max(self.events)} was told, {live} is live"


@dataclass
class _Effect:
    """Work goes on before and after each effect of the command, and it may be killed at either moment."""

    model: Model

    def __enter__(self) -> None:
        self._moment()

    def __exit__(self, *_: object) -> None:
        self._moment()

    def _moment(self) -> None:
        self.model.work()
        self.model.effects += 1
        if self.model.effects == self.model.kill_at:
            raise KilledError


def ready() -> Generations:
    return near(registered(Generations(), NEW, {"model": "new"}, live_encoder={"model": "old"}, now=NOW), NEW)


def carried_out(seed: int, kill_at: int = -1) -> Model:
    """A flip, killed at one moment, and run again; then all that is published is worked on."""
    model = Model(random.Random(seed), ready(), kill_at=kill_at)
    for _ in range(20):
        model.work()
    for _ in range(2):
        try:
            flip(model.record, NEW, model, catch_up_s=60)
            break
        except KilledError:
            assert target_of(model.record) == NEW or model.record.phase == "done"
    for generation in model.generations.values():
        generation.sees = model.record
        while generation.live < model.published or generation.in_hand is not None:
            generation.step(model.published, model.events)
            model.check()
    return model


def moments() -> Iterator[tuple[int, int]]:
    for seed in range(40):
        effects = carried_out(seed).effects
        yield from ((seed, kill_at) for kill_at in range(1, effects + 1))


def test_nothing_is_stale_and_every_version_is_told_wherever_the_command_is_killed() -> None:
    times = 0
    for seed, kill_at in moments():
        model = carried_out(seed, kill_at)
        assert set(model.events) == set(range(1, model.published + 1)), f"seed {seed}, killed at {kill_at}"
        assert (model.record.live, model.record.telling, model.record.held) == (NEW, NEW, [])
        assert (model.record.phase, model.record.previous, model.record.marks) == ("done", OLD, {})
        times += 1
    assert times > 400


_passed = Model.passed


def _old_at_once(self: Model, generation: str, *, within_s: float | None = None) -> bool:
    """As if the live generation needn't have told what the new one has told by the time of the marks."""
    return generation == OLD or _passed(self, generation, within_s=within_s)


def _new_at_once(self: Model, generation: str, *, within_s: float | None = None) -> bool:
    """As if the new generation needn't have what was told."""
    return generation == NEW or _passed(self, generation, within_s=within_s)


@pytest.mark.parametrize(
    ("skipped", "by", "found"),
    [
        ("until_known", lambda _: None, "stale"),
        ("passed", _new_at_once, "stale"),
        ("passed", _old_at_once, "killed at"),
        ("tell", lambda _, record: record, "killed at"),
    ],
)
def test_the_model_finds_a_flip_that_leaves_out_one_of_its_waits(
    monkeypatch: pytest.MonkeyPatch, skipped: str, by: Any, found: str
) -> None:
    monkeypatch.setattr(Model, skipped, by)
    with pytest.raises(AssertionError, match=found):
        test_nothing_is_stale_and_every_version_is_told_wherever_the_command_is_killed()


def test_a_generation_that_cannot_catch_up_leaves_everything_as_it_was() -> None:
    model = Model(random.Random(1), ready(), stands_still=NEW)
    model.published = 5
    with pytest.raises(TooFarBehind, match="did not catch up within 60 s"):
        flip(model.record, NEW, model, catch_up_s=60)
    assert (model.record.live, model.record.telling, model.record.held) == (OLD, OLD, [])
    assert (model.record.phase, model.record.lease_s, target_of(model.record)) == ("filling", IDLE_LEASE_S, NEW)


def test_all_that_was_kept_back_is_told_where_the_live_generation_stands_still() -> None:
    model = Model(random.Random(1), ready(), stands_still=OLD)
    model.published = 5
    while model.generations[NEW].live < 5 or model.generations[NEW].in_hand is not None:
        model.generations[NEW].step(5, model.events)
    flip(model.record, NEW, model, catch_up_s=60)
    assert set(model.events) >= {1, 2, 3, 4, 5}


def test_a_rollback_is_the_same_in_the_other_direction() -> None:
    model = carried_out(7)
    model.record = near(model.record, OLD)
    assert target_of(model.record) == OLD
    flip(model.record, OLD, model, catch_up_s=60)
    assert (model.record.live, model.record.telling, model.record.previous) == (OLD, OLD, NEW)
    assert model.record.known[NEW].state == flipping.STATE_LEFT


def test_a_rollback_that_is_not_wanted_after_all_leaves_nothing_under_way() -> None:
    back = flipping.far(near(carried_out(7).record, OLD))
    assert (back.phase, back.known[OLD].state, target_of(back)) == ("done", flipping.STATE_KEPT, None)


def returning() -> Generations:
    """A rollback that has just begun."""
    record = carried_out(7).record
    return registered(record, OLD, {"model": "old"}, live_encoder={"model": "new"}, now=NOW)


def test_a_rollback_that_is_killed_while_the_old_one_catches_up_is_still_under_way() -> None:
    record = returning()
    assert (record.phase, target_of(record), flipping.goes_back(record)) == ("filling", OLD, True)
    assert record.known[OLD].encoder == {"model": "old"}


@pytest.mark.parametrize("phase", ["near", "closing", "flipped", "telling"])
def test_a_flip_and_a_rollback_are_told_apart_in_every_phase(phase: str) -> None:
    for record, target, back in ((ready(), NEW, False), (near(returning(), OLD), OLD, True)):
        steps = {"near": record, "closing": flipping.closing(record, {})}
        steps["flipped"] = flipping.flipped(steps["closing"], target)
        steps["telling"] = flipping.telling(steps["flipped"])
        assert (target_of(steps[phase]), flipping.goes_back(steps[phase])) == (target, back)


def test_a_record_of_a_release_that_noted_no_target_goes_on() -> None:
    record = flipping.replace(ready(), target=None)
    assert target_of(record) == NEW
    assert target_of(flipping.far(record)) == NEW


def test_a_flip_that_is_not_wanted_after_all_is_still_under_way() -> None:
    record = flipping.far(ready())
    assert (record.phase, record.lease_s, target_of(record)) == ("filling", IDLE_LEASE_S, NEW)


def test_generations_are_numbered_from_two_and_no_number_is_given_twice() -> None:
    assert flipping.next_name(Generations()) == "2"
    assert flipping.next_name(ready()) == "3"
    assert flipping.next_name(without(ready(), NEW)) == "3"


def test_a_number_is_not_given_again_where_a_command_of_an_earlier_release_forgot_the_highest() -> None:
    assert flipping.next_name(flipping.replace(ready(), highest=1)) == "3"
    assert flipping.next_name(Generations(live="4")) == "5"


def test_the_live_generation_and_one_that_a_flip_goes_to_are_not_dropped() -> None:
    record = ready()
    with pytest.raises(HeadraceError, match="generation 1 is live"):
        without(record, OLD)
    half_done = flipping.flipped(deepcopy(record), NEW)
    with pytest.raises(HeadraceError, match="half done"):
        without(half_done, OLD)
    dropped = without(record, NEW)
    assert (list(dropped.known), dropped.phase) == ([OLD], "done")


def test_what_a_rollback_would_need_is_forgotten_when_it_is_dropped() -> None:
    record = flipping.done(flipping.telling(flipping.flipped(ready(), NEW)))
    dropped = without(record, OLD)
    assert (list(dropped.known), dropped.previous) == ([NEW], None)
