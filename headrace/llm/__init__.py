"""Language models: callers, prompts, checked citations. Importing this stays light:
the SDKs are loaded when a model is built, not before.
"""

from headrace.llm.answering import answer, is_relevant, unknown_answer
from headrace.llm.building import build
from headrace.llm.citations import CitationChecker
from headrace.llm.port import CallFailed, LanguageModel, Refused
from headrace.llm.prompts import Prompt, Source, build_prompt
from headrace.llm.tokens import estimated_tokens

__all__ = [
    "CallFailed",
    "CitationChecker",
    "LanguageModel",
    "Prompt",
    "Refused",
    "Source",
    "answer",
    "build",
    "build_prompt",
    "estimated_tokens",
    "is_relevant",
    "unknown_answer",
]
