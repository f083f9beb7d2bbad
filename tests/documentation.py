"""The documentation as data: pages, their code blocks and links, and the folder that the blocks run in."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inheritune_hf.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

#: What a test cannot wait for, or a machine without a GPU cannot do, and what it does instead.
SHORTENED = (
    (re.compile(r"steps_per_round(=|: )[\d_]{3,}"), r"steps_per_round\g<1>2"),
    (re.compile(r"\bbf16(=True|: true)"), "use_cpu\\1"),
    (re.compile(r"--(steps-per-round|max-steps) \d{2,}"), r"--\1 2"),
    (re.compile(r"--bf16\b"), "--use-cpu"),
    # A folder of the package's name beside the code would be imported in its place.
    (re.compile(r"(?<![\w./])inheritune_hf/embedded/"), f"{ROOT.as_posix()}/inheritune_hf/embedded/"),
)


#: Where the data set of the quickstart has its text.
WEB = "---\nconfigs:\n- config_name: sample-10BT\n  data_files: sample.jsonl\n---\n"


@dataclass(frozen=True)
class Block:
    """A code block of a page: its language, the file it is to be saved as, its code and its first line's number."""

    language: str
    title: str | None
    code: str
    line: int

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, with continued lines joined."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the code blocks of a page in their order, shortened."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        code = found["code"]
        for pattern, shorter in SHORTENED:
            code = pattern.sub(shorter, code)
        yield Block(found["language"], found["title"], code, text[: found.start()].count("\n") + 2)


def links(page: Path) -> list[str]:
    """Return the link and picture targets of a page, those in code blocks left out."""
    return [found["target"] for found in _LINK.finditer(_BLOCK.sub("", page.read_text(encoding="utf-8")))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in _HEADING.findall(text)}


def make_targets() -> set[str]:
    """Return what the Makefile declares that it can make."""
    declared = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return set(declared[1].split()) if declared else set()


def build_workspace(folder: Path) -> None:
    """
    Fill `folder` with what pages take for granted: a folder of texts, and, as deep as they are but tiny, a GPT-2 XL, a
    SmolLM2-135M and a FineWeb-Edu, each at the path that is its name on the Hub.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **end)
    torch.manual_seed(0)
    last = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=48, n_head=2, bos_token_id=last, eos_token_id=last
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2-xl")
    tokenizer.save_pretrained(folder / "gpt2-xl")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 30}
    llama = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, bos_token_id=last, eos_token_id=last, **shape
    )
    LlamaForCausalLM(llama).save_pretrained(folder / "HuggingFaceTB" / "SmolLM2-135M")
    tokenizer.save_pretrained(folder / "HuggingFaceTB" / "SmolLM2-135M")
    web = folder / "HuggingFaceFW" / "fineweb-edu"
    web.mkdir(parents=True)
    (web / "README.md").write_text(WEB, encoding="utf-8")
    rows = [{"text": f"Page number {number} of the web. " * 20} for number in range(100)]
    (web / "sample.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "text").mkdir()
    for number in range(40):
        (folder / "text" / f"{number:02d}.txt").write_text(f"Text number {number}. " * 20, encoding="utf-8")
    # What a user has in a checkout.
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "constraints.txt", folder)


def run_words(words: list[str]) -> object:
    """Do what a command of a page does, in this process: call the command-line interface, or run a script."""
    if words[0] == "inheritune":
        return main(words[1:])
    sys.argv = words[1:]
    runpy.run_path(words[1], run_name="__main__")
    return 0


def offline_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a command: no network, one thread, caches in `folder`, this Python's scripts first."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
