"""A window that answers questions about a long document.

    python examples/desktop/window.py [MODEL] [DOCUMENT]

Everything slow is done by model_worker.py on a thread of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from model_worker import ModelWorker
from PySide6.QtCore import QSize, Qt, QThread, Signal
from PySide6.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QTextCursor
from PySide6.QtWidgets import (
    QApplication,
    QFileDialog,
    QGridLayout,
    QLabel,
    QLineEdit,
    QMainWindow,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QWidget,
)

from snapkv_local import PrefillStats, SnapKVError, read_text

MIB = 1024**2


class Window(QMainWindow):
    """Model, document, question, answer.

    Args:
        budget, options: as ModelWorker.
    """

    load_requested = Signal(str)
    ask_requested = Signal(str, str)

    def __init__(self, budget: int = 2048, **options: Any) -> None:
        super().__init__()
        self.document = ""
        self.has_model = False
        self.busy = False
        self._build()

        self.worker_thread = QThread()
        self.worker = ModelWorker(budget, **options)
        self.worker.moveToThread(self.worker_thread)
        # Between threads Qt queues these calls, and each slot runs on its object's thread. A lambda has
        # no object: it would run on the worker's thread, where no widget may be touched.
        self.load_requested.connect(self.worker.load)
        self.ask_requested.connect(self.worker.ask)
        self.worker.loaded.connect(self._on_loaded)
        self.worker.progressed.connect(self._on_progress)
        self.worker.said.connect(self._on_text)
        self.worker.answered.connect(self._on_answered)
        self.worker.cancelled.connect(self._on_cancelled)
        self.worker.failed.connect(self._on_failed)
        self.worker_thread.start()

    def load(self, model: str) -> None:
        """Load a GGUF file, `demo`, or hf:owner/repo."""
        if not self.busy:
            self.has_model = False
            self.model_label.setText("No model")
            self._begin(f"Loading {model} …")
            self.load_requested.emit(model)

    def open_document(self, path: str) -> None:
        """Read a file: text, PDF or DOCX. Its text goes before each question."""
        try:
            text = read_text(path)
        except SnapKVError as e:
            self._show(str(e), is_error=True)
            return
        self.document = text
        self.document_label.setText(f"{Path(path).name}, {len(text.split()):,} words")
        self._show("")
        self._update()

    def ask(self) -> None:
        """Ask the question that stands in the window."""
        if self.ask_button.isEnabled():
            self.answer.clear()
            self._begin("Reading …")
            self.ask_requested.emit(self.document, self.question.text())

    def cancel(self) -> None:
        """End the answer, or the prefill before it."""
        self.worker.stop.set()

    def closeEvent(self, event: QCloseEvent) -> None:
        """Wait for the worker, which ends at its next chunk of the prompt or token."""
        self.worker.stop.set()
        self.worker_thread.quit()
        self.worker_thread.wait()
        self.worker.close()
        event.accept()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if event.mimeData().hasUrls() and not self.busy:
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        path = event.mimeData().urls()[0].toLocalFile()
        if path.endswith(".gguf"):
            self.load(path)
        else:
            self.open_document(path)

    def _on_loaded(self, name: str) -> None:
        self.has_model = True
        self.model_label.setText(name)
        self._end("")

    def _on_progress(self, done: int, total: int) -> None:
        self.progress.setRange(0, total)
        self.progress.setValue(done)

    def _on_text(self, text: str) -> None:
        self.progress.hide()
        self.answer.moveCursor(QTextCursor.MoveOperation.End)
        self.answer.insertPlainText(text)

    def _on_answered(self, stats: PrefillStats | None) -> None:
        if stats is None:
            self._end("The prompt is within the budget: all of it was kept.")
            return
        self._end(
            f"Kept {stats.n_kept:,} of {stats.n_prompt:,} tokens "
            f"({stats.n_kept / stats.n_prompt:.0%}), with {stats.coverage:.0%} of the attention. "
            f"KV cache {stats.bytes_kv / MIB:.1f} MiB "
            f"instead of {stats.bytes_kv_full / MIB:.1f} MiB."
        )

    def _on_cancelled(self) -> None:
        self._end("Cancelled.")

    def _on_failed(self, message: str) -> None:
        self._end(message, is_error=True)

    def _begin(self, status: str) -> None:
        self.worker.stop.clear()
        self.busy = True
        self.progress.setRange(0, 0)  # moves to and fro until the first report
        self.progress.show()
        self._show(status)
        self._update()

    def _end(self, status: str, is_error: bool = False) -> None:
        self.busy = False
        self.progress.hide()
        self._show(status, is_error)
        self._update()

    def _show(self, status: str, is_error: bool = False) -> None:
        self.status.setText(status)
        self.status.setStyleSheet("color: #c62828" if is_error else "")

    def _update(self) -> None:
        for widget in (self.model_button, self.document_button, self.question):
            widget.setEnabled(not self.busy)
        asked = bool(self.question.text().strip())
        self.ask_button.setEnabled(self.has_model and asked and not self.busy)
        self.cancel_button.setEnabled(self.busy and self.has_model)  # loading cannot be ended

    def _choose_model(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a model", "", "GGUF models (*.gguf)")
        if path:
            self.load(path)

    def _choose_document(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Open a document")
        if path:
            self.open_document(path)

    def _build(self) -> None:
        self.setWindowTitle("Ask a document")
        self.setAcceptDrops(True)
        self.model_button = QPushButton("Open model …", clicked=self._choose_model)
        self.model_label = QLabel("No model")
        self.document_button = QPushButton("Open document …", clicked=self._choose_document)
        self.document_label = QLabel("No document: open one, or drop it here")
        self.question = QLineEdit(placeholderText="Question", returnPressed=self.ask)
        self.question.textChanged.connect(self._update)
        self.ask_button = QPushButton("Ask", clicked=self.ask)
        self.cancel_button = QPushButton("Cancel", clicked=self.cancel)
        self.progress = QProgressBar(textVisible=False)
        self.answer = QPlainTextEdit(readOnly=True)
        self.status = QLabel(wordWrap=True)
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        for field in (self.question, self.answer):
            field.setAcceptDrops(False)  # the window takes what is dropped on them

        body = QWidget()
        grid = QGridLayout(body)
        grid.addWidget(self.model_button, 0, 0)
        grid.addWidget(self.model_label, 0, 1, 1, 3)
        grid.addWidget(self.document_button, 1, 0)
        grid.addWidget(self.document_label, 1, 1, 1, 3)
        grid.addWidget(self.question, 2, 0, 1, 2)
        grid.addWidget(self.ask_button, 2, 2)
        grid.addWidget(self.cancel_button, 2, 3)
        grid.addWidget(self.progress, 3, 0, 1, 4)
        grid.addWidget(self.answer, 4, 0, 1, 4)
        grid.addWidget(self.status, 5, 0, 1, 4)
        grid.setColumnStretch(1, 1)
        self.setCentralWidget(body)
        self.resize(QSize(720, 480))
        self.progress.hide()
        self._update()


def main(arguments: list[str]) -> int:
    app = QApplication(arguments)
    window = Window()
    window.show()
    if len(arguments) > 1:
        window.load(arguments[1])
    if len(arguments) > 2:
        window.open_document(arguments[2])
    return app.exec()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
