"""The embedded corpus: the source of the running interpreter's standard library, real text that needs no download."""

from __future__ import annotations

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Tests and demonstrations repeat the library they test; the other names are tables, copies or not the library at all.
LEFT_OUT = {"test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3", "idlelib", "turtledemo", "ensurepip"}
LEFT_OUT |= {"site-packages", "dist-packages", "__pycache__", "lib-dynload"}
LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")
# Of the whole library, only tables (character references, string preparation) reach one digit in ten characters.
MAX_DIGIT_SHARE = 0.10

# A package of more documents would fill a set on its own, and one author's style would decide the loss.
MAX_EVALUATION_MODULE = 8
MIN_EVALUATION_DOCUMENTS = 48


@dataclass(frozen=True)
class Document:
    """One text: its path relative to the corpus, what must stay on one side of a split (its module), and the text."""

    name: str
    group: str
    text: str


def standard_library_documents() -> list[Document]:
    """
    Return the Python sources of the running interpreter's standard library, one document per file, sorted by name.

    Tests, demonstrations, installed packages, generated tables, empty files and files equal to an earlier one are left
    out. Each source is decoded by the encoding it declares.

    Raises:
        FileNotFoundError: If this interpreter comes without the source of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    documents: dict[str, Document] = {}
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in _python_files(root)):
        with tokenize.open(path) as source:
            text = source.read()
        if text.strip() and not is_generated_table(text):
            documents.setdefault(text, Document(name, name.split("/")[0].removesuffix(".py"), text))
    if not documents:
        raise FileNotFoundError(
            f"This Python has no standard library source in {root}; use an interpreter that is installed with its "
            "source, or give dataset_name or train_files."
        )
    return list(documents.values())


def is_generated_table(text: str) -> bool:
    """Tell whether more than one in ten characters of `text` is a digit: a table, from which no style is learned."""
    return sum(map(str.isdigit, text)) > MAX_DIGIT_SHARE * len(text)


def split_standard_library(
    documents: Sequence[Document],
) -> tuple[list[Document], list[Document], list[Document]]:
    """
    Split `documents` into train, selection and test by their group, so that a module is on one side only.

    The split depends on the names alone: modules in the order of the sha256 of their name fill the selection set and
    then the test set up to 48 documents each; the rest, and every module of more than 8 documents, is for training.
    Each set keeps the order of the documents.

    Raises:
        ValueError: If there are too few documents in small modules to fill both sets.
    """
    sizes: dict[str, int] = {}
    for document in documents:
        sizes[document.group] = sizes.get(document.group, 0) + 1
    small = [group for group, size in sizes.items() if size <= MAX_EVALUATION_MODULE]
    filled = {"selection": 0, "test": 0}
    side: dict[str, str] = {}
    for group in sorted(small, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        name = next((name for name, count in filled.items() if count < MIN_EVALUATION_DOCUMENTS), None)
        if name is None:
            break
        side[group] = name
        filled[name] += sizes[group]
    if filled["test"] < MIN_EVALUATION_DOCUMENTS:
        raise ValueError(
            f"The selection and test sets need {MIN_EVALUATION_DOCUMENTS} documents each from modules of at most "
            f"{MAX_EVALUATION_MODULE} documents, got {sum(filled.values())} in all; give more documents."
        )
    parts: dict[str, list[Document]] = {"train": [], "selection": [], "test": []}
    for document in documents:
        parts[side.get(document.group, "train")].append(document)
    return parts["train"], parts["selection"], parts["test"]


def _python_files(folder: Path) -> Iterator[Path]:
    # Folders are pruned on the way down: site-packages may hold a hundred thousand files.
    for path in folder.iterdir():
        if path.name in LEFT_OUT or path.name.startswith(LEFT_OUT_PREFIXES):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _python_files(path)
        elif path.suffix == ".py" and path.is_file():
            yield path
