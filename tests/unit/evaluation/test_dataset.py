import gzip
from pathlib import Path

import pytest

from headrace.evaluation import Question, Span, halves, read_dataset, read_judgements, read_unanswerable

CORPUS = '{"_id": "a", "title": "Pumps", "text": "Water."}\n{"_id": "b", "title": "", "text": "Bread is baked."}\n'
QUERIES = '{"_id": "1", "text": "Which fluid?"}\n{"_id": "2", "text": "What is baked?"}\n'
QRELS = "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n2\tb\t1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_text(CORPUS)
    (tmp_path / "queries.jsonl").write_text(QUERIES)
    (tmp_path / "qrels.tsv").write_text(QRELS)
    return tmp_path


def test_a_folder_as_beir_has_it_is_read(folder: Path) -> None:
    (folder / "qrels").mkdir()
    (folder / "qrels.tsv").rename(folder / "qrels/test.tsv")
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\n2\ta\t1\n")
    dataset = read_dataset(folder)
    assert [(one.doc_id, one.title, one.text) for one in dataset.documents()] == [
        ("a", "Pumps", "Water."),
        ("b", None, "Bread is baked."),
    ]
    assert dataset.test == [
        Question(id="1", text="Which fluid?", relevant={"a": 2}),
        Question(id="2", text="What is baked?", relevant={"b": 1}),
    ]
    assert dataset.train == [Question(id="2", text="What is baked?", relevant={"a": 1})]
    assert not dataset.has_evidence


def test_a_folder_with_other_names_zipped_and_with_evidence_is_read(folder: Path) -> None:
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.write(CORPUS.replace("_id", "id"))
    (folder / "corpus.jsonl").unlink()
    (folder / "queries.jsonl").write_text(
        '{"id": 1, "text": "Which fluid?", "evidence": [{"doc": "a", "start": 0, "end": 5}]}\n'
        '{"id": 2, "text": "What is baked?", "evidence": {"b": [{"sentences": [0]}]}}\n'
    )
    (folder / "queries-train.jsonl").write_text('{"id": 3, "text": "Who bakes?"}\n')
    (folder / "qrels-train.tsv").write_text("3\tb\t1\n")
    dataset = read_dataset(folder)
    assert [question.evidence for question in dataset.test] == [[Span(doc_id="a", start=0, end=5)], []]
    assert [question.text for question in dataset.train] == ["Who bakes?"]
    assert dataset.has_evidence


def test_the_digest_tells_documents_apart_and_nothing_else(folder: Path) -> None:
    before = read_dataset(folder).digest
    (folder / "queries.jsonl").write_text(QUERIES.replace("fluid", "liquid"))
    assert read_dataset(folder).digest == before
    (folder / "corpus.jsonl").write_text(CORPUS.replace("Pumps", "Pump"))
    assert read_dataset(folder).digest != before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n\n{', "corpus.jsonl:3: "),
        ("corpus.jsonl", '{"_id": "a"}', "corpus.jsonl:1: .*`text`"),
        ("corpus.jsonl", '{"text": "x"}', "corpus.jsonl:1: has no `id`"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}', "corpus.jsonl:2: there is another"),
        ("corpus.jsonl", "", "corpus.jsonl: has no documents"),
        ("queries.jsonl", '{"_id": "1", "text": ""}', "queries.jsonl:1: a question has"),
        ("queries.jsonl", '{"_id": "1", "text": "x"}\n{"_id": "1", "text": "y"}', "queries.jsonl:2: there is another"),
        ("queries.jsonl", '{"_id": "1", "text": "x", "evidence": [{"doc": "a"}]}', "queries.jsonl:1: evidence: "),
        (
            "queries.jsonl",
            '{"_id": "2", "text": "y"}\n{"_id": "1", "text": "x", "evidence": [{"doc": "a", "start": 3, "end": 7}]}',
            "queries.jsonl:2: evidence 3 to 7 is not in the document 'a'",
        ),
        ("qrels.tsv", "query-id\tcorpus-id\tscore\n1\ta", "qrels.tsv:2: has 2 columns"),
        ("qrels.tsv", "1\ta\t1\n1\ta\tgood", "qrels.tsv:2: the score 'good' is not"),
        ("qrels.tsv", "9\ta\t1", "qrels.tsv:1: judges the query '9'"),
        ("qrels.tsv", "1\tz\t1", "qrels.tsv:1: names the document 'z'"),
        ("qrels.tsv", "1\ta\t0", "qrels.tsv: judges no document as relevant"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder: Path, file: str, content: str, said: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_dataset(folder)


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_what_is_missing_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        read_dataset(folder)


def test_a_file_that_is_not_gzip_is_told(folder: Path) -> None:
    (folder / "corpus.jsonl").rename(folder / "corpus.jsonl.gz")
    with pytest.raises(ValueError, match=r"corpus.jsonl.gz:1: can't be read"):
        read_dataset(folder)


def test_ones_own_judgements_are_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"query": "Which fluid?", "doc_ids": ["a", "c"]}\n\n'
        '{"id": "second", "query": "Baked?", "evidence": [{"doc_id": "b", "start": 0, "end": 5}]}\n'
    )
    assert read_judgements(file) == [
        Question(id="1", text="Which fluid?", relevant={"a": 1, "c": 1}),
        Question(id="second", text="Baked?", relevant={"b": 1}, evidence=[Span(doc_id="b", start=0, end=5)]),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"query": "x"}', "mine.jsonl:1: names no doc_ids and no evidence"),
        ('{"query": "x", "doc_ids": ["a"]}\n{"doc_ids": ["a"]}', "mine.jsonl:2: .*`query`"),
        ('{"query": "x", "evidence": [{"start": 0, "end": 5}]}', "mine.jsonl:1: evidence names no document"),
        ('{"query": "x", "evidence": [{"doc_id": "a", "start": 5, "end": 5}]}', "mine.jsonl:1: evidence from 5 to 5"),
        ("\n", "mine.jsonl: is empty"),
    ],
)
def test_wrong_judgements_are_told_with_their_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_judgements(file)


def test_a_question_is_always_in_the_same_half() -> None:
    questions = [Question(id=str(number), text="x", relevant={"a": 1}) for number in range(200)]
    train, test = halves(questions)
    assert 70 < len(train) < 130
    assert sorted([*train, *test], key=lambda one: int(one.id)) == questions
    fewer = questions[50:100]
    assert halves(fewer) == ([one for one in train if one in fewer], [one for one in test if one in fewer])


def test_questions_that_nothing_answers_are_lines_of_text_or_of_json(tmp_path: Path) -> None:
    file = tmp_path / "unanswerable.txt"
    file.write_bytes(
        b"\xef\xbb\xbfWho painted the Mona Lisa?\r\n\n  How old is it?\n"
        b'{"query": "Why?"}\n{"text": "Where?", "_id": "x", "id": 7}\n'
    )
    assert read_unanswerable(file) == [
        Question(id="Who painted the Mona Lisa?", text="Who painted the Mona Lisa?"),
        Question(id="How old is it?", text="How old is it?"),
        Question(id="Why?", text="Why?"),
        Question(id="7", text="Where?"),
    ]


def test_a_question_without_an_id_stays_on_its_side_when_others_come_before_it(tmp_path: Path) -> None:
    before, after = tmp_path / "before.txt", tmp_path / "after.txt"
    texts = [f"Question {number}?" for number in range(20)]
    before.write_text("\n".join(texts))
    after.write_text("\n".join(["A new one?", *reversed(texts)]))
    for earlier, later in zip(halves(read_unanswerable(before)), halves(read_unanswerable(after)), strict=True):
        assert {question.text for question in earlier} == {question.text for question in later} - {"A new one?"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"Why?\nWhy?\n", "questions:2: there is another question 'Why\\?'"),
        (b'{"question": "Why?"}', "questions:1: has no `query`"),
        (b"{Why?", "questions:1: JSON"),
        (b"Wh\xffy?", "questions:1: .*utf-8"),
        (b"x" * 8193, "questions:1: a question has 1 to 8192 characters"),
    ],
)
def test_what_is_no_list_of_questions_is_told_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "questions"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_unanswerable(file)
