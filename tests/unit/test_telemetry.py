"""What a worker tells of itself, and what it keeps to itself."""

import json
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from headrace.errors import Misconfigured, Poison, Transient
from headrace.telemetry import Firsts, without_words

SECRET = "zq7x9marker"


def logged(code: str, log_format: str = "json") -> str:
    """What a process writes to its log that does this."""
    begin = f"""
        import logging, threading, warnings
        import structlog
        from headrace import telemetry
        telemetry.configure_logging("INFO", "{log_format}", "headrace-commit")
        log = structlog.get_logger("headrace.test")
        SECRET = "{SECRET}"
    """
    program = textwrap.dedent(begin) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    ).stderr


def lines(code: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(code).splitlines()]


class TestFirsts:
    def test_the_first_ones_are_themselves_and_the_rest_other(self) -> None:
        firsts = Firsts(2)
        assert [firsts.label(tenant) for tenant in "abcab"] == ["a", "b", "other", "a", "b"]

    def test_none_has_a_name_where_none_may(self) -> None:
        assert Firsts(0).label("a") == "other"

    def test_threads_together_see_no_more_than_that(self) -> None:
        firsts, seen = Firsts(5), set()
        together = threading.Barrier(8)

        def ask(number: int) -> None:
            together.wait()
            seen.update(firsts.label(f"{number}-{place}") for place in range(100))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 6


class TestLogs:
    def test_a_line_has_the_service_and_what_is_bound_to_the_context(self) -> None:
        [line] = lines("""
            with structlog.contextvars.bound_contextvars(tenant="acme", request_id="7"):
                log.warning("something_happened", reason="so")
        """)
        assert line.pop("timestamp")
        assert line == {
            "event": "something_happened", "level": "warning", "logger": "headrace.test", "service": "headrace-commit",
            "tenant": "acme", "request_id": "7", "reason": "so",
        }  # fmt: skip

    def test_threads_of_asyncio_have_the_context_of_who_began_them(self) -> None:
        [line] = lines("""
            import asyncio
            async def work():
                with structlog.contextvars.bound_contextvars(tenant="acme"):
                    await asyncio.to_thread(log.warning, "something_happened")
            asyncio.run(work())
        """)
        assert line["tenant"] == "acme"

    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_nobodys_exception_shows_what_it_was_about(self, log_format: str) -> None:
        log = logged(
            """
            import traceback
            def work(text):
                try:
                    {}[text]
                except KeyError as error:
                    raise ValueError(f"no {text}") from error
            try:
                work(SECRET)
            except ValueError as error:
                log.exception("a_bug")
                logging.getLogger("mode").error("Crashed reason=%r", error, exc_info=error)
                logging.getLogger("asyncio").error(f"never retrieved\\n{error!r}", exc_info=True)
            thread = threading.Thread(target=work, args=(SECRET,)); thread.start(); thread.join()
            work(SECRET)
            """,
            log_format,
        )
        assert SECRET not in log
        for said in ("a_bug", "Crashed reason=", "never retrieved"):
            assert said in log
        assert log.count("crashed") == 2
        assert log.count("builtins.KeyError") == log.count("builtins.ValueError") == 5

    def test_what_a_library_logs_is_one_event_with_its_words(self) -> None:
        first, second, third, fourth = lines("""
            logging.getLogger("some.library").warning("%s of %d", "one", 2)
            logging.getLogger("some.library").warning("%(name)s", {"name": "three"})
            logging.getLogger("some.library").warning("wrong %s %s", "four")
            warnings.warn("five")
        """)
        assert {line["event"] for line in (first, second, third, fourth)} == {"library_message"}
        assert [first["message"], second["message"], third["message"]] == ["one of 2", "three", "wrong %s %s"]
        assert first["logger"] == "some.library"
        assert fourth["message"].endswith("UserWarning: five")

    @pytest.mark.parametrize(
        "said", [Transient("milvus", "no answer"), Misconfigured("another model"), OSError(111, "refused")]
    )
    def test_an_exception_whose_words_are_known_says_them(self, said: Exception) -> None:
        assert str(said) in without_words((type(said), said, None))

    @pytest.mark.parametrize("said", [Poison("bad_json", SECRET), ExceptionGroup(SECRET, [ValueError(SECRET)])])
    def test_one_about_a_document_does_not(self, said: Exception) -> None:
        assert SECRET not in without_words((type(said), said, None))
