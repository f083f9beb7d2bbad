"""What is uploaded: a student's allowed files, with nothing private in them, tested where this package is not."""

from __future__ import annotations

import getpass
import json
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from .. import records
from ..foreign_text import PASSWORD, TOKEN, one_line
from ..processes import run_python
from ..records import RECORD_FILE, Lineage, RecordError, RunRecord, decode, encode, read_json, write_json, write_record

#: What may be published; anything else in a folder stays where it is.
PUBLISHED = [
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    RECORD_FILE,
    "README.md",
    "layers.png",
    "losses.png",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
]

#: The one folder of a student, in which the tokenizer keeps further templates of chats.
TEMPLATES_FOLDER = "additional_chat_templates"

# Vocabularies hold any text there is; they were learned, and say nothing of a machine.
_VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json"}
_TEXTS = (".json", ".md", ".jinja", ".txt")
# A whole text that is a path, and a path of somebody's within a text.
_PATH = re.compile(r"file://|~[/\\]|/(?:[^/\n<>{}|]+/)+[^/\n<>{}|]*$|[A-Za-z]:[\\/]|\\\\\w")
_OWN_PATH = re.compile(r"(?:^|[\s\"'`(=:,])((?:/home|/Users|/root|[A-Za-z]:[\\/]Users)[\\/][^\s\"'`),]+)")
_TRIAL = """
import json, sys
sys.modules["inheritune_hf"] = None  # importing it is an error from here on
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, architecture, has_tokenizer = sys.argv[1], sys.argv[2], sys.argv[3] == "tokenizer"
model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, local_files_only=True)
problems = [f"{kind}: {sorted(map(str, info[kind]))[:3]}" for kind in info if kind.endswith("_keys") and info[kind]]
if type(model).__name__ != architecture:
    problems.append(f"it loads as {type(model).__name__}, and config.json says {architecture}")
broken = [name for name, tensor in model.named_parameters() if not torch.isfinite(tensor).all()]
if broken:
    problems.append(f"not finite: {broken[:3]}")
vocabulary = model.config.get_text_config(decoder=True).vocab_size
prompt = torch.arange(1, 5)[None] % vocabulary
if has_tokenizer:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer("The first layers", return_tensors="pt").input_ids
    if ids.numel() and int(ids.max()) >= vocabulary:
        problems.append(f"the tokenizer gives token {int(ids.max())}, and the model knows {vocabulary}")
    elif ids.numel():
        prompt = ids
room = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 64
prompt = prompt[:, : max(1, room // 2)]
if not problems:
    with torch.no_grad():
        if not torch.isfinite(model(prompt).logits).all():
            problems.append("its logits are not finite")
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        options["max_new_tokens"] = min(8, room - prompt.shape[1])
        runs = [model.generate(prompt, use_cache=cached, **options) for cached in (True, False)]
    if not torch.equal(*runs):
        problems.append("it generates other tokens with cache than without")
print(json.dumps(problems))
"""


def read_record(folder: Path) -> RunRecord:
    """Return the record beside a student's weights."""
    path = folder / RECORD_FILE
    if not path.is_file() or not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"There is no student in {folder}: it needs config.json and {RECORD_FILE}, as `inheritune inherit`, "
            "`inheritune train` and save_student write them."
        )
    try:
        return records.read_record(RunRecord, path)
    except RecordError as error:
        raise ValueError(f"{error} Save the student again.") from error


def stage(folder: Path, target: Path) -> dict[str, str]:
    """Copy what may be published to an empty folder, without names of this machine; return what stays, with reasons."""
    left = {}
    templates = folder / TEMPLATES_FOLDER
    within = [] if templates.is_symlink() else sorted(templates.glob("*"))
    for path in (*sorted(folder.iterdir()), *within):
        name = path.relative_to(folder).as_posix()
        reason = exclusion_reason(path, name)
        if reason is None:
            (target / name).parent.mkdir(exist_ok=True)
            _copy(path, target / name)
        elif not (within and path == templates):
            left[name + ("/" if path.is_dir() else "")] = reason
    if not (target / "config.json").is_file():
        raise ValueError(f"config.json of {folder} stays behind: it {left['config.json']}.")
    config = read_json(target / "config.json")
    native = str(config.get("model_type")) in CONFIG_MAPPING  # whatever code its repository has
    if not config.get("architectures") or (config.get("auto_map") and not native):
        raise ValueError(
            f"{folder} needs code of its own (config.json has an auto_map, or no architectures): only models that "
            "Transformers itself loads are published."
        )
    if not any(target.glob("*.safetensors")):
        raise ValueError(f"There are no weights as safetensors in {folder}; save the student with save_student.")
    if isinstance(config.get("inheritune"), dict):
        config["inheritune"] = encode(
            decode(Lineage, config["inheritune"], f"{target / 'config.json'}: inheritune").published()
        )
    write_json(target / "config.json", _without_names(config))
    write_record(target / RECORD_FILE, read_record(folder).published())
    for name in ("generation_config.json", "tokenizer_config.json"):
        if (target / name).is_file():
            write_json(target / name, _without_names(read_json(target / name)))
    return left


def exclusion_reason(path: Path, name: str | None = None) -> str | None:
    """Return why a file or folder (`name` within the student's) stays behind; None if it may be published."""
    if path.is_dir():
        return "folders are never published"
    if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}:
        return "pickled files are never published"
    if not any(fnmatch(name or path.name, pattern) for pattern in PUBLISHED):
        return "not part of a student"
    if not path.is_file():
        return "is no file"
    # Weights may be links, because nothing else is loaded as weights; in the Hub's cache every file is one.
    cache = path.parent.parent.parent if path.parent.parent.name == "snapshots" else path.parent
    if path.suffix != ".safetensors" and not path.resolve().is_relative_to(cache.resolve()):
        return "is a link out of the folder"
    return None


def find_private(folder: Path, secrets: tuple[str | None, ...] = ()) -> list[str]:
    """Return what in a folder's files is private, as sentences: paths of a machine, tokens, passwords, `secrets`."""
    hidden = [text for text in (*secrets, get_token()) if text]
    home = str(Path.home())
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            strings = list(_strings(_weight_metadata(path)))
        elif path.suffix == ".json" and path.name not in _VOCABULARIES:
            strings = list(_strings(read_json(path)))
        elif path.suffix in _TEXTS:
            strings = [path.read_text(encoding="utf-8")]
        else:
            continue
        text = "\n".join(strings)
        if TOKEN.search(text) or any(secret in text for secret in hidden):
            found.append(f"{path.name} holds a token.")
        if path.name in _VOCABULARIES:
            continue
        if PASSWORD.search(text):
            found.append(f"{path.name} holds an address with a password.")
        whole = [item for item in strings if _PATH.match(item)] if path.suffix in {".json", ".safetensors"} else []
        within = [match[1] for match in _OWN_PATH.finditer(text)]
        found += [f"{path.name} holds a path: {item}." for item in dict.fromkeys((*whole, *within))]
        if len(home) > 1 and re.search(re.escape(home) + r"[/\\]", text) and not (whole or within):
            found.append(f"{path.name} holds a path below {home}.")
    return found


def mentions_user(folder: Path, repo_id: str) -> list[str]:
    """Return the names of files in which this machine's user is named, although the repository is not named so."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container may run under a number that has no name
        return []
    if len(user) < 4 or user in {"root", "user", "ubuntu"} or user in repo_id:
        return []
    named = re.compile(rf"\b{re.escape(user)}\b")
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.suffix in _TEXTS and path.name not in _VOCABULARIES and named.search(path.read_text(encoding="utf-8"))
    ]


def try_out(folder: Path) -> None:
    """Load a student in a fresh process where this package cannot be imported; a `RuntimeError` says what fails."""
    config = read_json(folder / "config.json")
    tokenizer = "tokenizer" if (folder / "tokenizer_config.json").is_file() else "none"
    done = run_python(_TRIAL, str(folder.resolve()), config["architectures"][0], tokenizer, offline=True)
    if done.returncode:
        last = one_line((done.stderr.strip().splitlines() or ["it ended without a message"])[-1])
        raise RuntimeError(f"The student does not load in a fresh process, so nothing is published: {last}")
    problems = json.loads(done.stdout.strip().splitlines()[-1])
    if problems:
        raise RuntimeError(f"The student does not work in a fresh process, so nothing is published: {problems[0]}.")


def _copy(path: Path, target: Path) -> None:
    """Link large files, which nothing writes to, and copy the others."""
    if path.suffix == ".safetensors":
        try:
            target.hardlink_to(path.resolve())
            return
        except OSError:
            pass  # another disk
    shutil.copyfile(path, target)


def _weight_metadata(path: Path) -> Any:
    """Return what the header of a file of weights says besides its tensors."""
    try:
        with safe_open(path, framework="pt") as weights:
            return weights.metadata() or {}
    except SafetensorError:
        return {}  # it cannot be loaded, which trying it out will say


def _without_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return a config without where it was loaded from, and without code that would be run in its place."""
    return {name: value for name, value in values.items() if name not in {"_name_or_path", "name_or_path", "auto_map"}}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
