"""The measurement of many questions: its pure parts, and that its record adds up. No model is loaded."""

import json

import numpy as np
import pytest

import heard as measure_heard
import questions as measure_questions
from heard import Answer, Heard
from snapkv_local.eval.case import Case


@pytest.mark.parametrize(
    ("a", "b", "n"), [("abcd", "abxd", 2), ("ab", "abc", 2), ("", "a", 0), ("xa", "a", 0)]
)
def test_what_two_prompts_begin_with(a, b, n):
    assert measure_heard.common(a, b) == n


def test_jaccard_by_layer_and_head():
    a = np.array([[[0, 1, 2, 3]], [[4, 5, 6, 7]]])
    b = np.array([[[0, 1, 2, 9]], [[4, 5, 6, 7]]])
    assert measure_heard.jaccard(a, b).tolist() == [[3 / 5], [1.0]]


def heard(*rows):
    return Heard(1.0, 1.0, 1, 1, np.array(rows, np.float32))


def test_logits_of_the_question_and_of_the_answer_are_told_apart():
    kept = [np.zeros((1, 1, 1), int)] * 2
    a = [heard([0, 0], [0, 1]), heard([0, 0], [0, 1], [2, 0])]
    b = [heard([0, 4], [0, 1]), heard([0, 0], [3, 1], [2, 0])]
    found = measure_heard.compare(a, b, kept, kept)
    assert found["logits_largest_difference_question"] == 4
    assert found["logits_largest_difference_answer"] == 3
    assert found["same_answer_tokens"] == pytest.approx(2 / 3)
    assert found["jaccard_min"] == 1


def test_a_summary_leaves_the_first_question_out_of_the_seconds():
    answers = [
        Answer(seconds, seconds / 2, 5, {"exact": exact, "kl": 0.5})
        for seconds, exact in ((100, 1.0), (1, 0.0), (2, 1.0), (6, 1.0))
    ]
    found = measure_heard.summary(answers)
    assert (found["right"], found["n"]) == (3, 4)
    assert found["seconds_first"] == 100
    assert (found["seconds_median"], found["seconds_max"]) == (2, 6)
    assert found["seconds_cpu_median"] == 1


def test_the_record_adds_up():
    record = json.loads(measure_questions.RECORD.read_text(encoding="utf-8"))
    assert record["settings"]["n_prompt"] == measure_questions.N_PROMPT
    for row in record["rows"]:
        answers = [Answer(**answer) for answer in row["answers"]]
        assert len(answers) == measure_questions.N_QUESTIONS
        for name, value in measure_heard.summary(answers).items():
            assert row[name] == pytest.approx(value), (row["way"], name)


def test_the_document_is_what_stands_before_the_question(monkeypatch):
    text = b"<user>The pump is old.\n\nWhere is the pump?<end>"
    monkeypatch.setattr(
        measure_questions.vocabulary, "pieces", lambda llm, tokens: [bytes([t]) for t in tokens]
    )
    question = (text.index(b"Where"), text.index(b"<end>"))
    case = Case("x", "t", "d", 9, tuple(text), (1,), (2,), system=(0, 6), question=question)
    assert measure_questions.document_of(None, case) == "The pump is old."
