"""Questions to hits and cited answers: both stores asked at once, only live chunks kept, two ranked lists made one."""

from headrace.retrieval.answering import extractive_answer
from headrace.retrieval.retriever import Retriever, StoreTimeouts
from headrace.retrieval.search import Found

__all__ = ["Found", "Retriever", "StoreTimeouts", "extractive_answer"]
