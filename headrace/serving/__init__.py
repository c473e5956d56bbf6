"""Questions side by side: whose turn it is, for how long, embedded together, searched, answered."""

from headrace.serving.answerer import Answerer, Listener, Question

__all__ = ["Answerer", "Listener", "Question"]
