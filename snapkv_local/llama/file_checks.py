"""Whether the files that a Llama has mapped are what they were, asked before they are used."""

from __future__ import annotations

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import Progress  # isort: skip

from snapkv_local.errors import ModelFileError
from snapkv_local.mapped import MappedFile
from snapkv_local.native import vault


class FileChecks:
    """The part of Llama that looks at files."""

    _attached: vault.Segment | None  # memory that the vault reads
    _model_files: tuple[MappedFile, ...]

    def _check_model(self) -> None:
        """Called before weights are used.

        Raises:
            ModelFileError: they may be gone.
        """
        error = self.model_change()
        if error is not None:
            raise error

    def model_change(self) -> ModelFileError | None:
        """What forbids to use the model any more: its file was cut or written to. None if nothing."""
        for file in self._model_files:
            change = file.change()
            if change is not None:
                return ModelFileError(
                    str(file.path),
                    f"{change} after it was loaded, and weights may be gone",
                    "load it again; {no_mmap} reads a file that changes into memory",
                )
        return None

    def _check_vault(self) -> None:
        """Called before the vault is used.

        Raises:
            DocumentError: it reads from a file that is no longer what it was.
        """
        error = None if self._attached is None else self._attached.change()
        if error is not None:
            raise error

    def _checking(self, progress: Progress | None) -> Progress:
        """A prefill takes long, so it looks at the files with each report."""

        def report(done: int, total: int) -> None:
            self._check_model()
            self._check_vault()
            if progress is not None:
                progress(done, total)

        return report
