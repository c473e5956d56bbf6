"""The plan and the rules that the chaos run is judged by."""

import pytest

from tests.chaos.reader import Asked, Told, covered, faults_of
from tests.chaos.workload import LONG, POINTS, SHORT, Expectation, Scale, Sent, draw

KEY = "acme/d"


def expecting(*versions: tuple[int, str | None]) -> Expectation:
    expectation = Expectation()
    for offset, (version, text) in enumerate(versions):
        expectation.note(Sent(key=KEY, version=version, timestamp=0, offset=offset, text=text, at=float(offset)))
    return expectation


def asked(told: Told | None, *hits: tuple[int, str]) -> Asked:
    found = [{"doc_id": "d", "version": version, "text": text, "start": 0, "end": len(text)} for version, text in hits]
    return Asked(
        tenant="acme",
        doc_id="d",
        told={} if told is None else {KEY: told},
        sent_at=0.0,
        answer={"hits": found, "error": None, "degraded": []},
        answered_at=100.0,
    )


def names(faulty: Asked, expectation: Expectation) -> list[str]:
    return [fault.partition(":")[0] for fault in faults_of(faulty, expectation)]


def test_the_same_seed_gives_the_same_plan() -> None:
    assert draw(7, LONG) == draw(7, LONG)
    assert draw(7, LONG) != draw(8, LONG)


@pytest.mark.parametrize("scale", [SHORT, LONG], ids=["short", "long"])
def test_every_stage_dies_by_either_signal_and_at_each_of_its_narrow_places(scale: Scale) -> None:
    plan = draw(7, scale)
    struck = {(blow.worker.rpartition("-")[0], blow.action) for blow in plan.blows}
    assert {(stage, action) for stage in POINTS for action in ("SIGKILL", "SIGTERM")} <= struck
    killed = {fault.point for fault in plan.faults if fault.action == "SIGKILL"}
    assert {point for points in POINTS.values() for point in points} <= killed


def test_the_long_form_harms_every_server_in_every_way() -> None:
    plan = draw(7, LONG)
    assert {(outage.server, outage.harm) for outage in plan.outages} >= {
        (server, harm) for server in ("kafka", "opensearch", "milvus") for harm in ("kill", "stop", "freeze")
    }
    assert len({send.key for send in plan.sends if send.kind != "poison"}) >= 2000


def test_one_version_of_a_document_has_one_text() -> None:
    for seed in range(20):
        texts: dict[tuple[str, int], str | None] = {}
        for send in draw(seed, SHORT).sends:
            if send.kind != "poison":
                version = send.timestamp if send.version is None else send.version
                assert texts.setdefault((send.key, version), send.text) == send.text


def test_the_highest_version_wins_and_its_content_may_be_older() -> None:
    expectation = expecting((3, "a"), (1, "a"), (2, "b"))
    assert expectation.winner(KEY).version == 3
    assert expectation.may_be_live(KEY) == {1, 3}


def test_a_right_answer_has_no_faults() -> None:
    expectation = expecting((1, "old"), (2, "new"))
    assert names(asked(Told(1, "indexed"), (1, "old")), expectation) == []
    assert names(asked(Told(1, "indexed"), (2, "new")), expectation) == []
    assert names(asked(None), expectation) == []


def test_an_answer_older_than_what_was_told_is_stale() -> None:
    expectation = expecting((1, "old"), (2, "new"), (3, None))
    assert names(asked(Told(2, "indexed"), (1, "old")), expectation) == ["stale"]
    assert names(asked(Told(3, "deleted"), (2, "new")), expectation) == ["stale"]


def test_two_versions_or_another_text_are_mixed() -> None:
    expectation = expecting((1, "old"), (2, "new"))
    assert "mixed" in names(asked(None, (1, "old"), (2, "new")), expectation)
    assert "mixed" in names(asked(None, (1, "new")), expectation)
    assert "mixed" in names(asked(None, (9, "new")), expectation)


def test_what_was_told_to_be_there_has_not_vanished_unless_it_was_deleted() -> None:
    assert names(asked(Told(1, "indexed")), expecting((1, "old"), (2, "new"))) == ["vanished"]
    assert names(asked(Told(1, "indexed")), expecting((1, "old"), (2, None))) == []


def test_a_part_of_a_version_is_torn() -> None:
    assert names(asked(None, (1, "one")), expecting((1, "one two"))) == ["torn"]
    assert covered("one two", [(0, 3), (4, 7)])
    assert not covered("one two", [(0, 3), (5, 7)])
