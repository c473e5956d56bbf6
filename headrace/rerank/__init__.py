"""Orders hits once more with a cross-encoder.

The model's class is imported from its module (`cross_encoder`), since torch takes seconds to import.
"""

from headrace.rerank.port import Pair, Reranker, Scores
from headrace.rerank.queue import RerankQueue
from headrace.rerank.settings import RerankSettings

__all__ = ["Pair", "RerankQueue", "RerankSettings", "Reranker", "Scores"]
