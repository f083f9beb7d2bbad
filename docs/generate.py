"""Fill the tables of the reference pages from the code, so that every text is written once (a hook of mkdocs)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

ROOT = Path(__file__).resolve().parent.parent

# Docstrings name types in Markdown (`str`, *optional*); mkdocstrings shows them as code, where the marks would be seen.
_TYPE = re.compile(r"<code>(`[^<]*)</code>")
_MARK = re.compile(r"<!-- table: ([\w-]+) -->")

#: What each outcome means; an outcome without a line here is an error.
OUTCOMES = {
    "matched": "A student reached the target, under the recipe's tolerance and confidence. At the reference's full "
    "depth that is no reduction, and is called so; so is a match that the test set does not confirm.",
    "no_more_layers": "The deepest student allowed was trained for a whole round and missed the target.",
    "budget_exhausted": "`max_steps` was used up before a student reached the target.",
    "interrupted": "The run was stopped by Ctrl-C or SIGTERM. The same command resumes it from its last checkpoint.",
}

#: How an argument behaves across rounds, with the values that are not refused; the others are in `arguments.REFUSED`.
HONOURED: dict[str, str] = {
    "output_dir": "The folder of the whole run: checkpoints of all rounds, the run's state, the student.",
    "per_device_train_batch_size": "The same in every round.",
    "max_steps": "Above 0 it caps all rounds together. The length of a round is `steps_per_round` in the recipe.",
    "learning_rate": "Peak of each round; of the run with `lr_schedule: continue`.",
    "lr_scheduler_type": "Runs over each round; over `max_steps` with `lr_schedule: continue`.",
    "lr_scheduler_kwargs": "As `lr_scheduler_type`.",
    "warmup_steps": "Each round warms up; with `lr_schedule: continue` the run once. A fraction is a share of either.",
    "optim": "A fresh optimizer in each round; its state is kept with `optimizer_state: keep`.",
    "optim_args": "As `optim`.",
    "weight_decay": "The same in every round; norms and biases are left out, in added blocks too.",
    "adam_beta1": "The same in every round.",
    "adam_beta2": "The same in every round.",
    "adam_epsilon": "The same in every round.",
    "gradient_accumulation_steps": "The same in every round. Steps are optimizer steps.",
    "average_tokens_across_devices": "The same in every round.",
    "max_grad_norm": "The same in every round; over all parameters.",
    "label_smoothing_factor": "In training only: comparisons are of the plain loss. Refused with `distillation`.",
    "bf16": "In training and in every evaluation, the reference's included. Weights stay in float32.",
    "fp16": "As `bf16`. The loss scale starts over with each round, and is kept with `optimizer_state: keep`.",
    "tf32": "In the whole process, so the reference is measured with it too.",
    "activation_checkpointing": "Switched on for each round's student.",
    "activation_checkpointing_kwargs": "As `activation_checkpointing`.",
    "gradient_checkpointing": "The old name of `activation_checkpointing`.",
    "gradient_checkpointing_kwargs": "The old name of `activation_checkpointing_kwargs`.",
    "torch_compile": "For training, blocks are compiled one by one and rounds share their graphs. What is saved is not "
    "compiled.",
    "torch_compile_backend": "As `torch_compile`.",
    "torch_compile_mode": "As `torch_compile`.",
    "liger_kernel_config": "Not read, since `use_liger_kernel` is refused.",
    "use_cache": "In training and evaluation; a saved student has the reference's setting.",
    "neftune_noise_alpha": "In training only, in every round.",
    "torch_empty_cache_steps": "Counts over all rounds.",
    "logging_strategy": "A round's last step is logged in any case.",
    "logging_steps": "Counts over all rounds; a fraction below 1 is a share of a round.",
    "logging_first_step": "The first step of the run.",
    "log_on_each_node": "As in `Trainer`.",
    "logging_nan_inf_filter": "The log only: a loss that is not finite ends the run.",
    "include_num_input_tokens_seen": "Counts over all rounds.",
    "log_level": "As in `Trainer`.",
    "log_level_replica": "As in `Trainer`.",
    "disable_tqdm": "There is one bar for each round.",
    "report_to": "Trackers see one run, with one step count.",
    "run_name": "The name of that one run.",
    "project": "As in `Trainer`.",
    "trackio_space_id": "As in `Trainer`.",
    "trackio_bucket_id": "As in `Trainer`.",
    "trackio_static_space_id": "As in `Trainer`.",
    "eval_strategy": "A round's last step is evaluated in any case.",
    "eval_steps": "Counts over all rounds; a fraction below 1 is a share of a round.",
    "eval_delay": "Counts over all rounds; the last step of a round is evaluated all the same.",
    "per_device_eval_batch_size": "Changes no loss: it is a sum over a sum.",
    "prediction_loss_only": "Changes nothing: only sums of losses are ever gathered.",
    "eval_accumulation_steps": "As in `Trainer`.",
    "save_strategy": "A round's last step is saved in any case.",
    "save_steps": "Counts over all rounds; a fraction below 1 is a share of a round.",
    "save_total_limit": "Counts checkpoints of all rounds; an older one goes when the newer one is whole.",
    "push_to_hub": "The example script and `inheritune train` push the student once, at the end.",
    "hub_token": "For that push.",
    "hub_private_repo": "For that push.",
    "hub_model_id": "For that push; the name of `output_dir` if not given.",
    "hub_strategy": "Only `end`.",
    "hub_always_push": "Changes nothing: there is one push, and it is waited for.",
    "hub_revision": "For that push.",
    "greater_is_better": "Not read, since `metric_for_best_model` is refused.",
    "full_determinism": "Set at the start of each round.",
    "seed": "Set at the start of each round, and of parts that begin random.",
    "data_seed": "The data order of each round; of the run with `data_order: continue`.",
    "use_cpu": "As in `Trainer`.",
    "accelerator_config": "`non_blocking` and `use_configured_state`, as in `Trainer`.",
    "dataloader_drop_last": "Of the training set. No sequence of the selection set is ever dropped.",
    "dataloader_num_workers": "As in `Trainer`; a stream resumes only with the number it began with.",
    "dataloader_pin_memory": "Switched off on a CPU.",
    "dataloader_prefetch_factor": "As in `Trainer`.",
    "dataloader_multiprocessing_context": "As in `Trainer`.",
    "remove_unused_columns": "As in `Trainer`; other columns are not used either way.",
    "train_sampling_strategy": "`random` or `sequential`, the same in every round.",
    "length_column_name": "Not read, since the strategies that read it are refused.",
    "ddp_find_unused_parameters": "False if not given: every parameter of a student has a gradient.",
    "ddp_bucket_cap_mb": "The same in every round.",
    "ddp_broadcast_buffers": "The same in every round.",
    "ddp_static_graph": "The same in every round.",
    "ddp_backend": "As in `Trainer`.",
    "ddp_timeout": "As in `Trainer`.",
    "deepspeed": "Each round begins with an engine of its own. What is refused: see the table below.",
    "fsdp": "Each round's student is sharded. What is refused: see the table below.",
    "fsdp_config": "Read with `fsdp` only.",
    "skip_memory_metrics": "As in `Trainer`, for the last round.",
    "do_train": "Not read: a run always trains.",
    "do_eval": "Not read: a run always evaluates.",
    "do_predict": "Not read.",
    "local_rank": "Set by the launcher.",
}


def settings_table(config: type[Any]) -> str:
    """Return the fields of a configuration dataclass as a Markdown table: name, type, default and help."""
    rows = []
    kinds = {
        name: kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
        for name, kind in get_type_hints(config).items()
    }
    for item in dataclasses.fields(config):
        # Not `item.type`: Transformers' argument parser overwrites it.
        kind = re.sub(r"Optional\[(.*)\]", r"\1 | None", kinds[item.name].replace("typing.", "").replace("'", '"'))
        kind = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace(", ", " | "), kind).replace(" | ", "` or `")
        default = getattr(config(), item.name)
        rows.append((f"`{item.name}`", f"`{kind}`", f"`{_plain(default)}`", item.metadata["help"]))
    return _table(("setting", "type", "default", "what it says"), rows)


def arguments_table() -> str:
    """Return every training argument as a Markdown table: how it behaves across rounds, or why it is refused."""
    from transformers import TrainingArguments

    from inheritune_hf.training.arguments import REFUSED

    rows = []
    for item in dataclasses.fields(TrainingArguments):
        note, why = HONOURED.get(item.name, ""), REFUSED.get(item.name, "")
        rows.append((f"`{item.name}`", note or "refused", why))
    return _table(("argument", "across rounds", "what is refused: why, and what to do"), rows)


def refused_sharding_table() -> str:
    """Return what of FSDP and DeepSpeed is refused, with the reasons, as a Markdown table."""
    from inheritune_hf.training.distributed import REFUSED_SHARDING

    return _table(("what", "why, and what to do"), [(f"`{name}`", why) for name, (_, why) in REFUSED_SHARDING.items()])


def outcome_table() -> str:
    """Return the outcomes with their exit statuses as a Markdown table."""
    from inheritune_hf.records import EXIT_STATUS

    rows = [(f"`{name}`", str(status), OUTCOMES[name]) for name, status in EXIT_STATUS.items()]
    return _table(("outcome", "exit status of `inheritune train`", "what it means"), rows)


def architecture_list() -> str:
    """Return the supported model types as a Markdown list."""
    from inheritune_hf.students import SUPPORTED_MODEL_TYPES

    return "\n".join(f"- `{name}`" for name in SUPPORTED_MODEL_TYPES)


def multimodal_list() -> str:
    """Return the model types whose text model can be cut, as words."""
    from inheritune_hf.students.architectures import MULTIMODAL_TYPES

    return ", ".join(f"`{name}`" for name in MULTIMODAL_TYPES) + "."


def arms_table() -> str:
    """Return the arms of a comparison as a Markdown table."""
    from inheritune_hf.arms import ARMS

    return _table(
        ("arm", "what it trains", "source"), [(f"`{arm.name}`", arm.summary, arm.source) for arm in ARMS.values()]
    )


def comparison_table() -> str:
    """Return the settings of a comparison as a Markdown table."""
    from inheritune_hf.config import CompareConfig

    return settings_table(CompareConfig)


def recipes_table() -> str:
    """Return the recipes of `examples/recipes/` as a Markdown table, from the first lines of each."""
    rows = []
    for file in sorted((ROOT / "examples" / "recipes").glob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        what, published, run = (line.removeprefix("# ") for line in lines[:3])
        kind = "comparison" if run.startswith("Run: inheritune compare") else "run"
        rows.append((f"`{file.name}`", kind, what, published))
    return _table(("file", "kind", "what it is", "notes"), rows)


def citation() -> str:
    """Return what CITATION.cff says, the paper first, as BibTeX."""
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    entries = []
    for paper in facts["references"]:
        names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        number = paper["identifiers"][0]["value"].removeprefix("arXiv:")
        key = f"{paper['authors'][0]['family-names'].lower()}{paper['year']}"
        fields = {"title": f"{{{paper['title']}}}", "author": names, "year": paper["year"]}
        fields |= {"eprint": number, "archivePrefix": "arXiv", "url": paper["url"]}
        entries.append(_bibtex("misc", key, fields))
    names = " and ".join(f"{{{author['name']}}}" for author in facts["authors"])
    fields = {
        "title": facts["title"],
        "author": names,
        "version": facts["version"],
        "note": f"License {facts['license']}",
    }
    entries.append(_bibtex("software", "inheritune_hf", fields))
    return "```bibtex\n" + "\n\n".join(entries) + "\n```"


def security() -> str:
    """Return SECURITY.md without its title, with links as they are from here."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    return text.split("\n", 1)[1].replace("](docs/", "](")


def notebook() -> str:
    """Return `examples/inheritune.ipynb` with its outputs as Markdown."""
    shown = []
    for cell in json.loads((ROOT / "examples" / "inheritune.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        shown.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = ""
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                shown.append(f"![Figure drawn by the cell above](data:image/png;base64,{data['image/png'].strip()})")
            else:
                printed += "".join(output.get("text") or data["text/plain"])
        if printed.strip():
            shown.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(shown)


def _bibtex(kind: str, key: str, fields: dict[str, Any]) -> str:
    escaped = {name: str(value).replace("_", r"\_") for name, value in fields.items()}
    lines = [f"  {name:13} = {{{value}}}," for name, value in escaped.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _named(name: str) -> Callable[[], str]:
    def build() -> str:
        from inheritune_hf import config

        return settings_table(getattr(config, name))

    return build


#: What a page asks for by `<!-- table: NAME -->`.
TABLES: dict[str, Callable[[], str]] = {
    "InherituneConfig": _named("InherituneConfig"),
    "DataConfig": _named("DataConfig"),
    "RunConfig": _named("RunConfig"),
    "CompareConfig": comparison_table,
    "arms": arms_table,
    "arguments": arguments_table,
    "refused-sharding": refused_sharding_table,
    "outcomes": outcome_table,
    "architectures": architecture_list,
    "multimodal": multimodal_list,
    "recipes": recipes_table,
    "notebook": notebook,
    "citation": citation,
    "security": security,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables where a page asks for them; called by mkdocs for every page."""
    return _MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Take Markdown's marks out of the types of parameters; called by mkdocs for every page."""
    return _TYPE.sub(lambda found: f"<code>{found[1].translate(str.maketrans('', '', '`*'))}</code>", html)


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    # Between backticks a bar separates nothing.
    cells = [tuple(cell if cell.startswith("`") else cell.replace("|", r"\|") for cell in row) for row in rows]
    lines = [headers, ("---",) * len(headers), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
