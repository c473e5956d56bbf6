"""Questions to hits and cited answers: both stores asked at once, only live chunks kept, two ranked lists made one."""

from headrace.retrieval.answering import extractive_answer
from headrace.retrieval.search import Found, Retriever

__all__ = ["Found", "Retriever", "extractive_answer"]
