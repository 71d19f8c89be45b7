"""A document's tokens and full KV cache in a file, for any number of questions later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from snapkv_local.native import vault
from snapkv_local.native.states import State
from snapkv_local.storage import fingerprint, seal, sealed

KIND = "document"


@dataclass(frozen=True, eq=False)
class Document:
    """A file that Llama.ingest() has written, open for reading.

    Attributes:
        path: of the file.
        title: as it was given.
        text: of the document.
        prefix: what the tokens spell: the chat template's words before the document, and its text.
        tokens: int32 [n_tokens].
        n_bytes: of the file.
        kv_type: of K and V, such as "f16".
        model: name, file and fingerprint of the model (fingerprint.Model).
        segment: the vault's part that it is.
    """

    path: Path
    title: str
    text: str
    prefix: str
    tokens: npt.NDArray[np.int32]
    n_bytes: int
    kv_type: str
    model: fingerprint.Model
    segment: vault.Segment

    @classmethod
    def open(cls, path: str | Path, mapped: bool = True) -> Document:
        """Read and check all of a file.

        Args:
            mapped: K and V are read from the file as they are used. False reads them into memory
                now: what happens to the file is then of no concern.

        Raises:
            DocumentError: it is missing, of another kind, truncated or damaged.
        """
        with sealed.Sealed.open(path, KIND, mapped) as file:
            found = {name: file.array(name) for name in file.names()}
            about = file.header
            text = found.pop("text").tobytes().decode()
            # a copy: each prompt is compared with them, those about other things, too
            tokens = np.array(found.pop("tokens"))
            segment = vault.from_arrays(
                found, tokens, about["n_swa_rows"], about.get("states", ()), file.file
            )
            return cls(
                path=file.path,
                title=about["title"],
                text=text,
                prefix=about["opening"] + text,
                tokens=tokens,
                n_bytes=file.n_bytes,
                kv_type=about["model"]["kv_type"],
                model=fingerprint.Model(**about["model"]),
                segment=segment,
            )


def blocks_of(parts: list[vault.Segment], held: list[State]) -> list[seal.Block]:
    """K and V of segments that follow each other, and the vault's states, to be written."""
    return [
        seal.Block(name, np.uint8, (sum(map(len, pieces)), *pieces[0].shape[1:]), pieces)
        for name, pieces in vault.joined(parts, held)
    ]
