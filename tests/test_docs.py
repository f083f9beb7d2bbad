"""The documentation is true: its code runs, its commands exist, its tables come from the code, its links lead on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import forking
import pytest
import yaml
from documentation import (
    PAGES,
    ROOT,
    anchors,
    blocks,
    build_workspace,
    links,
    make_targets,
    offline_environment,
    run_words,
)
from huggingface_hub.errors import EntryNotFoundError

RUNNABLE = [page for page in PAGES if any(block.language in {"python", "bash"} for block in blocks(page))]
# Blocks of the page of costs: its recipe, its command, what that prints.
PLAN_BLOCKS = ("yaml", "bash", "text")
# Long runs; their options are read, and nothing is trained.
LONG = ("python examples/run_inheritune.py",)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("documentation")
    build_workspace(folder)
    return folder


@pytest.fixture
def folder(workspace, tmp_path, monkeypatch):
    """A page's own copy of the workspace, without a network, with a folder for a Hub."""
    import datasets
    import huggingface_hub.constants

    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("inheritune_hf.publishing.hub.HfApi", FolderHub)
    # The trial in a fresh process takes seconds; commands make it, and blocks of Python would make it again.
    monkeypatch.setattr("inheritune_hf.publishing.hub.try_out", lambda _: None)
    return tmp_path


class FolderHub:
    """The Hub as a folder: a repository is a path below the one that code runs in."""

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, private=None, exist_ok=False):
        Path(repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def hf_hub_download(self, repo_id, filename, revision=None, local_dir=None):
        raise EntryNotFoundError(filename)

    def upload_folder(
        self, repo_id, folder_path, allow_patterns, delete_patterns=None, revision=None, commit_message=None
    ):
        for pattern in allow_patterns:
            for file in Path(folder_path).glob(pattern):
                shutil.copy(file, repo_id)
        return SimpleNamespace(commit_url=f"folder:{repo_id}")


#: Pages that train for longest, on what the tutorial and other pages train on too.
HEAVY = {
    "docs/quickstart.md",
    "docs/how-to/choose-layers.md",
    "docs/how-to/inspect-and-verify.md",
    "docs/explanation/pruning.md",
}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if name_of(page) in HEAVY else ()) for page in RUNNABLE],
    ids=name_of,
)
def test_code_of_a_page_runs_from_top_to_bottom(page, folder, request):
    """A reader who copies every block of a page, in order, gets through to its end."""
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
        if block.language == "python":
            run_python(block, page, namespace)
        elif block.language == "bash":
            for command in block.commands:
                hub = request.getfixturevalue("hub") if "--push" in command else None
                run_or_check(command, folder, hub)


@pytest.mark.slow
def test_the_notebook_runs(folder):
    """Whoever runs every cell of the notebook gets through to a student that grew and matched."""
    cells = json.loads(Path("examples/inheritune.ipynb").read_text(encoding="utf-8"))["cells"]
    namespace = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(line for line in cell["source"] if not line.startswith("%")), namespace)
    assert namespace["trainer"].outcome == "matched"
    assert [item.layers for item in namespace["trainer"].rounds] == [9, 11]
    assert namespace["loaded"].config.n_layer == 11


def run_python(block, page, namespace):
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    for expected in re.findall(r"# prints (.+)$", block.code, re.MULTILINE):
        assert expected in printed.getvalue().splitlines()


def run_or_check(command, folder, hub=None):
    words = shlex.split(command)
    if command.startswith(("inheritune ", "python examples/")) and not command.startswith(LONG):
        run_command(words, folder, hub)
    else:
        check_command(words)


def run_command(words, folder, hub=None):
    if hub is None:
        result = forking.run(run_words, words, folder=folder)
    else:
        # The environment of a client is read when libraries are imported: this is the program that a user starts.
        known, own = hub.environment(folder / "cache", HF_TOKEN="hf_name"), offline_environment(folder)
        environment = {**known, **{name: own[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")}}
        result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    # A miss is a result too.
    assert result.returncode in {0, 3, 4}, result.stderr


def check_command(words):
    """Fail unless everything that a command names is there: make's target, pip's files, a launcher's options."""
    if words[0] == "make":
        assert set(words[1:]) <= make_targets()
    elif words[:4] == ["python", "-m", "pip", "install"]:
        assert words[4:6] == ["-c", "constraints.txt"]
        assert words[6:] == ["."]
        assert Path("constraints.txt").is_file()
    elif words[:3] == ["python", "-m", "venv"]:
        assert words[3:] == [".venv"]
    elif words[0] == ".":
        assert words[1:] == [".venv/bin/activate"]
    elif words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        options, unknown = launch_command_parser().parse_known_args(words[2:])
        assert not unknown
        assert options.config_file is None or (ROOT / options.config_file).is_file()
        check_script(options.training_script, options.training_script_args)
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(words[1:])
        check_script(options.training_script, options.training_script_args)
    elif words[0] == "python":
        check_script(words[1], words[2:])
    else:
        pytest.fail(f"nobody knows how to check this command: {shlex.join(words)}")


def check_script(script, options):
    from inheritune_hf.cli.settings import parse_settings

    assert script == "examples/run_inheritune.py"
    assert (ROOT / script).is_file()
    assert parse_settings(options).run.reference is not None


def test_recipes_are_read_as_they_stand(folder):
    """Every YAML block is a recipe that the command line takes."""
    from inheritune_hf.cli.settings import parse_comparison, parse_settings

    recipes = [(page, block) for page in PAGES for block in blocks(page) if block.language == "yaml"]
    assert len(recipes) >= 4
    for _, block in recipes:
        Path("block.yaml").write_text(block.code, encoding="utf-8")
        if re.search("^arms:", block.code, re.MULTILINE):
            settings, _ = parse_comparison(["block.yaml"])
        else:
            settings = parse_settings(["--config", "block.yaml"])
        assert settings.data.train_files or settings.data.dataset_name or settings.data.sources


def test_relative_links_lead_to_files_and_headings():
    """No page links to a file or a heading that is not there."""
    broken = []
    for page in PAGES:
        for target in links(page):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.is_file() or (anchor and anchor not in anchors(file)):
                broken.append(f"{name_of(page)}: {target}")
    assert broken == []


def test_every_page_can_be_found():
    """Every page of docs/ is in the navigation."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert [page for page in pages if page not in navigation] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed; install it with: pip install -e '.[docs]'")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    environment = offline_environment(target)
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return target


def text_of(page: Path) -> str:
    """Return the text of a page of the site, without tags and with entities resolved."""
    import html

    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))))


def test_configuration_page_says_what_the_fields_say(site):
    """Each setting is on the configuration page with its allowed values and its help text."""
    from inheritune_hf.config import DataConfig, InherituneConfig, RunConfig

    page = text_of(site / "reference" / "configuration" / "index.html")
    for config in (InherituneConfig, DataConfig, RunConfig):
        for item in dataclasses.fields(config):
            assert item.name in page
            assert item.metadata["help"] in page
            allowed = re.findall(r"'(\w+)'", config.__annotations__[item.name])
            assert [value for value in allowed if f'"{value}"' not in page] == []


def test_tables_of_arguments_outcomes_and_architectures_are_complete(site):
    """Each training argument, outcome and architecture of the code is on its page."""
    from transformers import TrainingArguments

    from inheritune_hf.records import EXIT_STATUS
    from inheritune_hf.students import SUPPORTED_MODEL_TYPES
    from inheritune_hf.training.arguments import REFUSED
    from inheritune_hf.training.distributed import REFUSED_SHARDING

    arguments = text_of(site / "reference" / "arguments" / "index.html")
    assert [name for name, why in REFUSED.items() if name not in arguments or why not in arguments] == []
    honoured = runpy.run_path(str(ROOT / "docs" / "generate.py"))["HONOURED"]
    fields = {item.name for item in dataclasses.fields(TrainingArguments)}
    assert fields == {*honoured, *REFUSED}
    notes = {name: note.replace("`", "") for name, note in honoured.items()}
    assert [name for name, note in notes.items() if name not in arguments or note not in arguments] == []
    sharding = text_of(site / "how-to" / "processes" / "index.html")
    assert [name for name, (_, why) in REFUSED_SHARDING.items() if name not in sharding or why not in sharding] == []
    outcomes = text_of(site / "reference" / "outcomes" / "index.html")
    assert [name for name, status in EXIT_STATUS.items() if f"{name} {status} " not in outcomes] == []
    types = text_of(site / "reference" / "architectures" / "index.html")
    assert [name for name in SUPPORTED_MODEL_TYPES if name not in types] == []


def test_recipes_and_citation_are_on_their_pages(site):
    """Each file of examples/recipes is in the table with its first line, and BibTeX says what CITATION.cff says."""
    page = text_of(site / "reference" / "recipes" / "index.html")
    files = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
    first = {file.name: file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for file in files}
    assert first
    assert [name for name, line in first.items() if name not in page or line not in page] == []
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    page = text_of(site / "cite" / "index.html")
    titles = [item["title"].replace("_", r"\_") for item in (facts, *facts["references"])]
    assert [title for title in titles if title not in page] == []
    assert facts["version"] in page


@pytest.mark.slow
def test_costs_page_shows_what_the_command_prints(tmp_path):
    """For the shape of GPT-2 XL, the plan prints every line of the page, and every peak of its table."""
    from transformers import GPT2Config

    text = (ROOT / "docs" / "how-to" / "costs.md").read_text(encoding="utf-8")
    recipe, command, printed = (re.search(rf"^```{kind}.*?\n(.*?)^```", text, re.M | re.S)[1] for kind in PLAN_BLOCKS)
    shape = GPT2Config(n_layer=48, n_embd=1600, n_head=25, n_positions=1024, vocab_size=50257)
    shape.save_pretrained(tmp_path / "gpt2-xl")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    environment = {**offline_environment(tmp_path), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}

    def plan(options):
        words = [*shlex.split(command), *options]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    shown = plan([])
    assert [line for line in printed.splitlines() if line not in shown.splitlines()] == []
    rows = re.findall(r"^\| (nothing|`--.*`) \| (.+ GB) \| (.+ GB) \|$", text, re.MULTILINE)
    assert len(rows) == 3
    for options, *peaks in rows:
        output = shown if options == "nothing" else plan(shlex.split(options.strip("`")))
        assert [re.search(rf"train {depth} layers .* (\S+ GB) │$", output, re.M)[1] for depth in (24, 28)] == peaks


def test_every_public_name_is_in_the_reference(site):
    """Each name of `inheritune_hf.__all__` has its entry on the Python page, with its signature."""
    import inheritune_hf

    page = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert [name for name in inheritune_hf.__all__ if f'id="inheritune_hf.{name}"' not in page] == []


def test_site_asks_no_other_server(site):
    """No page of the site loads a font, script, style or picture from elsewhere."""
    asks = re.compile(
        r'<(?:script|img|iframe)[^>]+src="https?:|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="https?:'
    )
    assert [page for page in site.rglob("*.html") if asks.search(page.read_text(encoding="utf-8"))] == []


def test_readme_tells_the_exit_statuses():
    """The statuses in README.md are those of the code."""
    from inheritune_hf.records import EXIT_STATUS

    table = dict(re.findall(r"^\| (\d+) \| `(\w+)`", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {name: int(status) for status, name in table.items()} == EXIT_STATUS


def test_page_of_untrained_losses_is_what_was_measured():
    """The rows of the repository's own reference are those of its record, and what the page says of it holds there."""
    found = json.loads((ROOT / "docs" / "results" / "untrained.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "how-to" / "choose-layers.md").read_text(encoding="utf-8")
    losses = found["losses"]
    for count in (6, 8, 10):
        place = found["depths"].index(count)
        assert f"| {count} | " + " | ".join(f"{losses[name][place]:.3f}" for name in ("first", "skip", "loss")) in page
    assert f"| {found['loss']:.3f} | {found['uniform']:.3f} |" in page
    assert all(mine <= first for mine, first in zip(losses["loss"], losses["first"], strict=True))
    assert all(loss > found["uniform"] for loss in losses["rank"][:11])


def test_page_of_lazy_layers_is_what_was_measured():
    """Ranks and losses of the trained and the forced model are those of the record."""
    found = json.loads((ROOT / "docs" / "results" / "lazy-layers.json").read_text(encoding="utf-8"))
    page = " ".join((ROOT / "docs" / "explanation" / "lazy-layers.md").read_text(encoding="utf-8").split())
    trained, forced = found["trained"], found["forced"]
    assert f"MaxRank between {min(trained['max_ranks']):.0f} and {max(trained['max_ranks']):.0f}" in page
    assert f"The loss rose from {trained['loss']:.2f} to {forced['loss']:.2f} nats per token" in page
    assert f"layer 2 falls from {trained['max_ranks'][2]:.0f} to {forced['max_ranks'][2]:.0f}" in page
    assert [layer for layer, rank in enumerate(forced["max_ranks"]) if rank < 1.5] == [9, 10, 11]
    assert len(forced["recommendation"]["layers"]) == 9


def test_citation_and_changelog_have_the_version():
    """CITATION.cff and CHANGELOG.md speak of the version that is installed."""
    from inheritune_hf import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
