"""How good the answers are: questions with judgements, measures with their intervals, comparisons. Pure."""

from headrace.evaluation.comparison import Change, Compared, compare, difference
from headrace.evaluation.dataset import Dataset, read_dataset, read_judgements, read_unanswerable
from headrace.evaluation.intervals import Interval, mean_interval
from headrace.evaluation.measures import Seen, document_values, evidence_values
from headrace.evaluation.questions import Question, Span, halves
from headrace.evaluation.relevance import Cosines, Relevance, nearest, tune_relevance
from headrace.evaluation.report import Measured, Report, SettingReport, measured
from headrace.evaluation.settings import PREDEFINED, RetrievalSetting, parse_setting

__all__ = [
    "PREDEFINED",
    "Change",
    "Compared",
    "Cosines",
    "Dataset",
    "Interval",
    "Measured",
    "Question",
    "Relevance",
    "Report",
    "RetrievalSetting",
    "Seen",
    "SettingReport",
    "Span",
    "compare",
    "difference",
    "document_values",
    "evidence_values",
    "halves",
    "mean_interval",
    "measured",
    "nearest",
    "parse_setting",
    "read_dataset",
    "read_judgements",
    "read_unanswerable",
    "tune_relevance",
]
