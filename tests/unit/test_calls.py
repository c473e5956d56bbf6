import threading

from headrace.calls import asking, longest_unanswered


def test_the_oldest_open_call_of_all_threads_is_told() -> None:
    asked, answered = threading.Event(), threading.Event()

    def call() -> None:
        with asking("milvus"):
            asked.set()
            answered.wait(10)

    thread = threading.Thread(target=call)
    thread.start()
    asked.wait(10)
    with asking("opensearch"):
        oldest = longest_unanswered()
        assert oldest is not None
        assert oldest.service == "milvus"
        answered.set()
        thread.join()
        left = longest_unanswered()
        assert left is not None
        assert left.service == "opensearch"
        assert left.since >= oldest.since
    assert longest_unanswered() is None
