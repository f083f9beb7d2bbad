"""The embedded corpus."""

from __future__ import annotations

import random
import sysconfig

import pytest

from inheritune_hf.data import Document, split_standard_library, standard_library_documents
from inheritune_hf.data.corpora import is_generated_table


@pytest.fixture(scope="module")
def library():
    return standard_library_documents()


def test_the_library_is_hundreds_of_sorted_distinct_sources(library):
    """Every document is a source file of the standard library, with text, and no text comes twice."""
    names = [document.name for document in library]
    assert len(library) > 300
    assert names == sorted(names)
    assert len({document.text for document in library}) == len(library)
    assert all(document.text.strip() and document.name.endswith(".py") for document in library)
    groups = {document.name: document.group for document in library}
    assert (groups["argparse.py"], groups["json/decoder.py"]) == ("argparse", "json")


def test_tests_packages_and_tables_are_left_out(library):
    """Neither tests nor installed packages nor generated tables are in the corpus."""
    parts = {part for document in library for part in document.name.split("/")}
    assert not parts & {"test", "tests", "encodings", "site-packages", "idlelib", "__pycache__"}
    assert not any(part.startswith("_sysconfigdata") for part in parts)
    assert "stringprep.py" not in parts
    assert not any(is_generated_table(document.text) for document in library)


def test_the_split_keeps_modules_together_and_loses_nothing(library):
    """The three sets hold every document once, share no module, and are large enough to judge by."""
    sets = split_standard_library(library)
    groups = [{document.group for document in part} for part in sets]
    assert sorted(document.name for part in sets for document in part) == [document.name for document in library]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    train, selection, test = map(len, sets)
    assert 48 <= selection < 56
    assert 48 <= test < 56
    assert train > selection + test


def test_big_modules_are_trained_on():
    """A module of nine documents is never used for evaluation; one of eight may be."""
    documents = [Document(f"m{module}/{i}.py", f"m{module}", f"{module} {i}") for module in range(40) for i in range(8)]
    documents += [Document(f"big/{i}.py", "big", f"{i}") for i in range(9)]
    train, selection, test = split_standard_library(documents)
    assert [document.group for document in train].count("big") == 9
    assert len(selection) == len(test) == 48


def test_the_split_does_not_depend_on_the_order(library):
    """Shuffled documents fall on the same sides."""
    shuffled = random.Random(0).sample(library, len(library))
    for part, other in zip(split_standard_library(library), split_standard_library(shuffled), strict=True):
        assert {document.name for document in part} == {document.name for document in other}


def test_too_few_documents_cannot_be_split():
    """A corpus that cannot fill both sets is refused."""
    documents = [Document(f"{i}.py", f"{i}", "x") for i in range(60)]
    with pytest.raises(ValueError, match=r"need 48 documents each from modules of at most 8 documents, got 60 in all"):
        split_standard_library(documents)


def test_an_interpreter_without_source_is_named(tmp_path, monkeypatch):
    """Where the library has no source, the message says what to use instead."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no standard library source in .*give dataset_name or train_files"):
        standard_library_documents()


def test_declared_encodings_blank_files_and_left_out_folders(tmp_path, monkeypatch):
    """A source is decoded as it declares; blank files, copies and tests are skipped."""
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (tmp_path / "blank.py").write_text("\n\n")
    (tmp_path / "zcopy.py").write_bytes((tmp_path / "latin.py").read_bytes())
    (tmp_path / "package" / "tests").mkdir(parents=True)
    (tmp_path / "package" / "tests" / "left_out.py").write_text("x = left_out")
    (tmp_path / "package" / "module.py").write_text("value = one")
    (tmp_path / "_sysconfigdata_linux.py").write_text("x = left_out")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert standard_library_documents() == [
        Document("latin.py", "latin", "# -*- coding: latin-1 -*-\nname = 'é'\n"),
        Document("package/module.py", "package", "value = one"),
    ]
