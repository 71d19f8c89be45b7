"""Texts as haystacks, and the tokenizer: corpus.py FOLDER OUT.

FOLDER holds unpacked Debian packages (README.md names them); docstrings of Python's library are added. Its
manual (pydoc_data) is left out: `snapkv-local eval` takes haystacks from it.
"""

from __future__ import annotations

import ast
import gzip
import html
import json
import random
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import frames
import held_out
import words
from snapkv_local.eval.words import CITIES, COLOURS, NAMES

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
N_VOCABULARY = 12_288
# llama.cpp's "llama-bpe": numbers in groups of three digits, as the vocabularies of many usual models
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
HELD_OUT_CHARACTERS = 2_400_000
N_NUMBERS = 2000  # how often each is shown to the tokenizer
N_TOKENS = 12_000_000  # of haystacks; a random part of the texts


def paragraphs(text: str) -> Iterator[str]:
    """Those that are English prose, each in one line."""
    for block in re.split(r"\n\s*\n", text):
        flat = " ".join(block.split())
        n_english = len(re.findall(r" (?:the|of|to|and|is) ", flat))
        is_prose = sum(c.isalpha() or c == " " for c in flat) > 0.8 * len(flat)
        if len(flat) > 60 and is_prose and n_english > flat.count(" ") / 25:
            yield flat


def pod(text: str) -> str:
    """Perl's documentation without its marks."""
    text = re.sub(r"[A-Z]<<+ (.*?) >>+", r"\1", text, flags=re.S)
    for _ in range(3):
        text = re.sub(r"[A-Z]<([^<>]*)>", r"\1", text)
    return re.sub(r"^=\w+.*$", "", text, flags=re.M)


def page(text: str) -> str:
    """A page of HTML without its marks."""
    text = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.S)
    text = re.sub(r"</?(p|div|li|h\d|td|dd|dt|pre)[^>]*>", "\n\n", text)
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def docstrings(path: Path) -> Iterator[str]:
    """Of a module and what is in it."""
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def is_english(path: str) -> bool:
    """By the folder or suffix that translations have."""
    if "debian-handbook" in path:
        return "/en-US/" in path
    return not re.search(r"[/.](da|de|es|fr|it|ja|ko|pt-br|pt|ru|sv|tr|zh-cn|zh-tw)([/.]|$)", path)


def texts(folder: Path) -> Iterator[str]:
    """Everything that is read, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        at = str(path.relative_to(folder))
        if not path.is_file() or not is_english(at):
            continue
        if path.suffix == ".pod":
            yield pod(path.read_text("utf-8", "replace"))
        elif path.name.endswith((".html", ".html.en", ".xhtml")):
            yield page(path.read_text("utf-8", "replace"))
        elif path.name.endswith(".dict.dz"):
            yield gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        elif ".txt" in path.name and ("policy" in at or "git" in at or "vim" in at):
            raw = path.read_bytes()
            yield (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")
        elif "games/fortunes" in at and path.suffix == "":
            yield path.read_text("utf-8", "replace").replace("\n%\n", "\n\n")
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if not any(part in str(path) for part in ("pydoc_data", "site-packages", "test")):
            yield "\n\n".join(docstrings(path))


def listed(folder: Path) -> tuple[list[str], list[str]]:
    """Given names of miscfiles and places of iso-codes, but for those that answers are measured with."""
    names = (
        gzip.decompress((folder / "usr/share/dict/propernames.gz").read_bytes()).decode().split()
    )
    regions = json.loads((folder / "usr/share/iso-codes/json/iso_3166-2.json").read_text("utf-8"))[
        "3166-2"
    ]
    places = dict.fromkeys(region["name"] for region in regions)
    left_out = {*NAMES, *CITIES, *COLOURS, *held_out.NAMES, *held_out.CITIES}
    is_fine = re.compile(r"[A-Z][a-z]{2,11}").fullmatch
    return tuple(
        [w for w in found if is_fine(w) and w not in left_out] for found in (names, places)
    )


def samples(found: list[str], more: list[str], rng: random.Random) -> Iterator[str]:
    """What the tokenizer is trained on: texts, the words of facts and more, numbers."""
    yield from found
    every = [*words.CITIES, *words.COLOURS, *words.FIRST_NAMES, *words.THINGS, *words.MONTHS]
    every += [
        *words.WHO,
        *words.DID,
        *words.WHAT,
        *words.WHEN,
        *words.DO,
        *words.DO_WHAT,
        *words.DO_WHERE,
    ]
    every += [a for a, _ in (*frames.ATTRIBUTES, *frames.COLUMNS)] + list(frames.PEOPLE)
    every += [text for frame in frames.FRAMES for text in frame.said + frame.asked + frame.backward]
    every += more
    every += ["name | city | number | value", *frames.GENERIC, *frames.GENERIC_ASKED]
    for _ in range(30):
        for text in every:
            yield f" {text}"
    # as usual vocabularies do, this one has every number of up to three digits
    numbers = " ".join(f"{n:03d}" for n in range(1000))
    for _ in range(N_NUMBERS):
        yield numbers
    for _ in range(10_000):
        for make in (words.made_up, words.key, words.code, words.variable):
            yield f" {make(rng)}"


def make_tokenizer(
    vocabulary: dict[str, int] | None = None, merges: Sequence[Sequence[str]] = ()
) -> Tokenizer:
    """Byte-level BPE with llama.cpp's "llama-bpe" pieces; without a vocabulary, it is to be trained."""
    if vocabulary is None:
        tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    else:
        pairs = [(a, b) for a, b in merges]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if vocabulary is not None:
        tokenizer.add_special_tokens(
            [AddedToken(s, special=True, normalized=False) for s in SPECIAL]
        )
    return tokenizer


def train_tokenizer(found: list[str], more: list[str], rng: random.Random) -> Tokenizer:
    """No sample has an end of line, so no token but the one has it."""
    tokenizer = make_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(samples(found, more, rng), trainer)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return tokenizer


def common(found: list[str], pattern: str, n: int) -> list[str]:
    """The n most frequent words that a pattern finds, without the 200 first and those of eval."""
    counts: dict[str, int] = {}
    for paragraph in found:
        for word in re.findall(pattern, paragraph):
            counts[word] = counts.get(word, 0) + 1
    left_out = {*NAMES, *CITIES, *COLOURS, *held_out.COLOURS}
    by_count = sorted(counts, key=counts.__getitem__, reverse=True)
    return [word for word in by_count[200:] if word not in left_out][:n]


def main(folder: Path, out: Path) -> None:
    """Writes tokenizer.json, corpus.npy, words.txt, names.txt, places.txt and held-out.txt."""
    rng = random.Random(1)
    found = list(dict.fromkeys(p for text in texts(folder) for p in paragraphs(text)))
    rng.shuffle(found)
    n_held_out = size = 0
    while size < HELD_OUT_CHARACTERS:
        size += len(found[n_held_out])
        n_held_out += 1
    held_out, found = found[:n_held_out], found[n_held_out:]
    size = sum(map(len, found))
    print(f"{len(found):,} paragraphs, {size:,} characters; held out: {len(held_out):,}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "held-out.txt").write_text("\n".join(held_out), "utf-8")
    (out / "words.txt").write_text("\n".join(common(found, r"(?<= )[a-z]{4,9}(?= )", 4000)))
    given, places = listed(folder)
    (out / "names.txt").write_text("\n".join(given))
    (out / "places.txt").write_text("\n".join(places))
    print(f"{len(given):,} names, {len(places):,} places")

    tokenizer = train_tokenizer(found, given + places, rng)
    tokenizer.save(str(out / "tokenizer.json"))
    # a paragraph follows another after a space or an empty line
    ids: list[int] = []
    for encoded in tokenizer.encode_batch(
        ["\n\n" + p if rng.random() < 0.3 else " " + p for p in found], add_special_tokens=False
    ):
        ids += encoded.ids
    np.save(out / "corpus.npy", np.array(ids[:N_TOKENS], np.uint16))
    print(
        f"{len(ids):,} tokens, {size / len(ids):.2f} characters each, {tokenizer.get_vocab_size():,} known"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
