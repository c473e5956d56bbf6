"""Questions side by side: whose turn it is, for how long, embedded together, searched, answered."""

from headrace.serving.answerer import Answerer, Listener, Question
from headrace.serving.corpora import Corpora, Corpus, GenerationCorpora, OneCorpus

__all__ = ["Answerer", "Corpora", "Corpus", "GenerationCorpora", "Listener", "OneCorpus", "Question"]
