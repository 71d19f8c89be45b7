"""The desktop example: a model is asked about a document, and the window never freezes."""

import importlib
import itertools
import os
import sys
import time
from pathlib import Path

import pytest

from snapkv_local.models.resolve import needle_model

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
try:
    import PySide6
    from PySide6.QtCore import QEvent, QMimeData, QPointF, Qt, QTimer, QUrl
    from PySide6.QtGui import QDragEnterEvent, QDropEvent
    from PySide6.QtWidgets import QApplication
except ImportError as e:  # the package, or a library of the system such as libEGL
    pytest.skip(f"Qt does not load: {e}", allow_module_level=True)
if PySide6.__version__ == "6.12.0" and sys.version_info < (3, 12):
    pytest.skip(
        "PySide6 6.12.0 loses a reference to True with each signal, and ends in a fatal error",
        allow_module_level=True,
    )

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "snapkv_local" / "demo" / "station.txt"
# one thread: two would wait for each other on a busy machine
SETTINGS = {"budget": 512, "n_ctx": 8192, "n_threads": 1, "n_threads_batch": 1}
QUESTION = "In which room does the cooling pump stand?"
# of a prefill, between two ticks: on the window's own thread it would be all of it
LONGEST_GAP = 0.3


@pytest.fixture(scope="module")
def app():
    return QApplication.instance() or QApplication(["test"])


@pytest.fixture(scope="module")
def wait(app):
    """Runs the event loop until a condition holds."""

    def wait(condition, seconds=300):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            app.processEvents()
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="module")
def window_class():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples" / "desktop"))
        yield importlib.import_module("window").Window


@pytest.fixture(scope="module")
def window(window_class, wait):
    """With the package's model and the document."""
    window = window_class(**SETTINGS)
    window.show()
    window.load("needle")
    wait(lambda: not window.busy)
    assert window.has_model, window.status.text()
    window.open_document(str(DOCUMENT))
    yield window
    window.close()
    assert window.worker_thread.isFinished()


@pytest.fixture(scope="module")
def all_reports(window):
    reports = []
    window.worker.progressed.connect(lambda done, total: reports.append((done, total)))
    return reports


@pytest.fixture
def reports(all_reports):
    """(done, total) of each report of a prefill in this test."""
    all_reports.clear()
    return all_reports


@pytest.fixture
def ticks(app):
    """Times at which the event loop came to a timer of 10 ms."""
    times = []
    timer = QTimer(interval=10)
    timer.timeout.connect(lambda: times.append(time.monotonic()))
    timer.start()
    yield times
    timer.stop()


def ask(window, question=QUESTION):
    window.question.setText(question)
    window.ask_button.click()
    assert window.busy, window.status.text()


def save_screenshot(window, name):
    if folder := os.environ.get("SNAPKV_SCREENSHOTS"):
        assert window.grab().save(str(Path(folder) / f"{name}.png"))


def test_a_question_about_a_document(window, wait, reports, ticks):
    lengths = []
    window.worker.said.connect(lambda: lengths.append(len(window.answer.toPlainText())))
    ask(window)
    assert not window.ask_button.isEnabled()
    wait(lambda: window.progress.value() > 0)
    assert window.progress.isVisible()
    assert window.progress.value() < window.progress.maximum()
    save_screenshot(window, "reading")
    wait(lambda: not window.busy)
    save_screenshot(window, "answered")

    assert "417" in window.answer.toPlainText()
    assert len(set(lengths)) > 2  # the answer came in pieces
    assert "Kept 512 of 4," in window.status.text()
    assert "KV cache" in window.status.text()
    assert reports[-1][0] == reports[-1][1]
    assert reports == sorted(reports)
    assert not window.progress.isVisible()
    gaps = [after - before for before, after in itertools.pairwise(ticks)]
    assert len(gaps) > 50
    assert max(gaps) < LONGEST_GAP * window.worker.llm.last_prefill.seconds_prefill


def test_cancel_in_the_prefill_and_ask_again(window, wait, reports):
    ask(window)
    wait(lambda: len(reports) > 3)
    window.cancel_button.click()
    wait(lambda: not window.busy)
    assert reports[-1][0] < reports[-1][1]
    assert window.status.text() == "Cancelled."
    assert window.answer.toPlainText() == ""

    ask(window)
    wait(lambda: not window.busy)
    assert "417" in window.answer.toPlainText()
    assert "Kept 512" in window.status.text()


def test_cancel_while_the_answer_comes(window, wait, tmp_path):
    """Of SmolLM2, which has more to say."""
    short = tmp_path / "short.txt"
    short.write_text(DOCUMENT.read_text(encoding="utf-8")[:2000], encoding="utf-8")
    window.load("demo")
    window.open_document(str(short))
    wait(lambda: not window.busy)
    ask(window, "Tell me everything about the station.")
    wait(lambda: window.answer.toPlainText())
    window.cancel_button.click()
    wait(lambda: not window.busy)
    assert window.status.text() == "Cancelled."
    window.load("needle")
    wait(lambda: not window.busy)


def test_errors_are_shown_and_the_next_question_works(window, wait, tmp_path):
    window.open_document(str(tmp_path / "absent.txt"))
    assert "absent.txt" in window.status.text()
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    window.open_document(str(tmp_path / "image.png"))
    assert "image.png: is a PNG picture, and no text" in window.status.text()

    long = tmp_path / "long.txt"
    long.write_text(DOCUMENT.read_text(encoding="utf-8") * 3, encoding="utf-8")
    window.open_document(str(long))
    ask(window)
    wait(lambda: not window.busy)
    assert "exceed context window" in window.status.text()
    assert "color" in window.status.styleSheet()
    save_screenshot(window, "error")

    short = tmp_path / "short.txt"
    short.write_text("The access code of the boat house is 40762.")
    drop(window, short)
    assert window.document_label.text() == "short.txt, 9 words"
    ask(window, "What is the access code of the boat house?")
    wait(lambda: not window.busy)
    assert "40762" in window.answer.toPlainText()
    assert window.status.text() == "The prompt is within the budget: all of it was kept."
    assert window.status.styleSheet() == ""


def test_a_model_that_does_not_load(window, wait, tmp_path):
    drop(window, tmp_path / "absent.gguf")
    wait(lambda: not window.busy)
    assert "absent.gguf: does not exist" in window.status.text()
    assert not window.ask_button.isEnabled()
    window.load(str(needle_model()))
    wait(lambda: not window.busy)
    assert window.ask_button.isEnabled()


def test_closing_the_window_ends_the_worker(window_class, wait):
    window = window_class(**SETTINGS)
    window.load("needle")
    wait(lambda: not window.busy)
    window.open_document(str(DOCUMENT))
    reports = []
    window.worker.progressed.connect(lambda done, total: reports.append((done, total)))
    ask(window)
    wait(lambda: len(reports) > 3)
    window.close()
    assert window.worker_thread.isFinished()
    assert reports[-1][0] < reports[-1][1]
    assert window.worker.llm is None


def drop(window, path):
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path))])
    left, keys = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPointF(9, 9).toPoint(), Qt.DropAction.CopyAction, mime, left, keys)
    QApplication.sendEvent(window, enter)
    assert enter.isAccepted()
    action, kind = Qt.DropAction.CopyAction, QEvent.Type.Drop
    QApplication.sendEvent(window, QDropEvent(QPointF(9, 9), action, mime, left, keys, kind))
