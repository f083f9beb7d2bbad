"""The settings of a run: its recipe, its data and its reference, from Python, the command line, YAML or JSON."""

from __future__ import annotations

import dataclasses
import difflib
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from .annotations import Within, annotations_of, conform
from .arms import ARMS, LOOP, parse_arm
from .distillation_losses import DISTILLATION_LOSSES, losses_of_kind
from .foreign_text import parse_json, parse_yaml
from .layers import GRAMMAR
from .measures import examples

Config = TypeVar("Config")

#: A number of 1 or more.
Positive = Annotated[int, Within(1)]

#: Parts of a model, by the role of its modules: what `inherit` names.
PARTS = ("embeddings", "positions", "attention", "mlp", "norms", "final_norm", "lm_head")

#: Named choices of parts: everything; what the paper's text names; what its released code copies (PAPER: Algorithm 1).
INHERIT_PRESETS = {
    "all": PARTS,
    "paper": ("embeddings", "attention", "mlp", "norms", "lm_head"),
    "released-code": ("attention", "mlp", "norms", "lm_head"),
}


#: Quantizations of a teacher by name, as the `quantization_config` of Transformers writes them.
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "8bit": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "4bit": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}


def setting(default: Any, help_text: str) -> Any:
    """Return a field of a configuration, with its default, copied for each object, and its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help_text})
    return field(default=default, metadata={"help": help_text})


def with_documented_settings(cls: type[Config]) -> type[Config]:
    """Write the settings of a configuration, with their types, defaults and help texts, into its docstring."""
    untyped: Any = cls
    about, raises, errors = (cls.__doc__ or "").partition("\n    Raises:")
    lines = []
    for item in dataclasses.fields(untyped):
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        lines.append(f"        {item.name} (`{item.type}`, *optional*, defaults to `{default!r}`):")
        margin = " " * 12
        lines += textwrap.wrap(
            item.metadata["help"], 112, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
        )
    cls.__doc__ = "\n".join([f"{about}\n    Args:", *lines, raises + errors])
    return cls


@with_documented_settings
@dataclass
class InherituneConfig:
    """
    Say how a student is inherited, grown and judged.

    The same class is read from Python, from the command line and from YAML or JSON files. Settings that
    `transformers.TrainingArguments` already has (learning rate, precision, trackers, seed) are set there only.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    keep_layers: int | str | list[int] = setting(
        "half",
        "Layers of the reference that the first student inherits: a number ('12'), 'half' (the paper), 'first:12', "
        "'last:8', 'ends:4+4', 'every:2', 'spaced:12', half-open ranges ('0:8,10'), a size ('params:350M') or a "
        f"list; or by a measure, in whose order the student also grows: 'loss:half', {examples()}; experimental: "
        "'auto'.",
    )
    inherit: str = setting(
        "all",
        "What is inherited from the reference: 'all', 'paper' (blocks, token embeddings and head), 'released-code' "
        "(blocks and head), or parts separated by commas, out of embeddings, positions, attention, mlp, norms, "
        "final_norm and lm_head. Parts left out are initialised at random as the architecture does, with the run's "
        "seed.",
    )
    attention_scale: Literal["keep", "position"] = setting(
        "keep",
        "For a GPT-2 with scale_attn_by_inverse_layer_idx, whose attention is divided by a block's position: a block "
        "that moves can 'keep' its scale, or take that of its new 'position'.",
    )
    grow_by: Positive = setting(2, "Layers added in each further round (the paper: 2), up to the reference's depth.")
    schedule: list[str] = setting(
        [],
        "Layers of each round's student, instead of grow_by, written as keep_layers is; each includes those of the "
        "round before. Needed to grow from layers that are neither the first ones nor chosen by a measure.",
    )
    growth: Literal["reinherit", "continue"] = setting(
        "reinherit",
        "After a miss: 'reinherit' a deeper student from the reference (the paper), or 'continue' training the same "
        "student with blocks added.",
    )
    new_blocks: Literal["reference", "copy_last", "identity", "random"] = setting(
        "reference",
        "With growth 'continue', where added blocks come from: the 'reference', a copy of the block before "
        "('copy_last'), blocks with zeroed outputs ('identity'), or 'random' weights.",
    )
    optimizer_state: Literal["reset", "keep"] = setting(
        "reset", "With growth 'continue', whether to 'keep' or 'reset' the optimizer's moments of trained blocks."
    )
    lr_schedule: Literal["restart", "continue"] = setting(
        "restart",
        "Whether warm-up and decay 'restart' in each round, or 'continue' as one schedule over all rounds (which needs "
        "max_steps).",
    )
    data_order: Literal["restart", "continue"] | None = setting(
        None,
        "Whether each round reads the data from the start, or continues where the last one stopped; if not given, as "
        "growth: 'restart' with 'reinherit', 'continue' with 'continue'.",
    )
    match_at: Literal["round_end", "evaluation"] = setting(
        "round_end",
        "When a student may match: at the end of a round (the paper), or also within it, at two evaluations in a row, "
        "so that frequent evaluation makes no match by chance.",
    )
    abandon: float | None = setting(
        None,
        "End a round early, and grow, once two forecasts in a row give a miss at least this probability (such as "
        "0.95). A student that cannot grow further is trained to the end. Off if not given.",
    )
    max_layers: Positive | None = setting(
        None, "Deepest student to try, in layers; the reference's depth if not given."
    )
    steps_per_round: Positive | None = setting(
        None, "Optimizer steps of one round. Needed to train, not to build a student."
    )
    target: str | float = setting(
        "reference",
        "Validation loss to reach: 'reference' (the reference's, measured on the selection set) or a number in nats "
        "per token.",
    )
    tolerance: float = setting(0.01, "Loss above the target that still counts as a match, in nats per token.")
    confidence: float | None = setting(
        0.95,
        "One-sided confidence, over all rounds together, with which the loss must be within the tolerance; intervals "
        "are clustered by document. 'none' compares the plain means (with tolerance 0: the paper's rule).",
    )
    loss: Literal["auto", "full", "chunked", "linear", "liger"] = setting(
        "auto",
        "How the loss is computed: from all logits at once ('full'), or from those of a few tokens at a "
        "time, by this package ('chunked'), by PyTorch's linear_cross_entropy ('linear') or by Liger's kernel on "
        "CUDA ('liger'). 'auto' chooses by device and vocabulary and logs its choice. All compute the same loss.",
    )
    distillation: str | None = setting(
        None,
        "Train with the reference as teacher: losses and their weights, such as 'cross_entropy=0.6,forward_kl=0.4' "
        f"(the paper's baseline), out of {', '.join(DISTILLATION_LOSSES)}. The reference stays in memory. Students "
        "are always evaluated by their plain cross-entropy. 'none' takes back what a preset or a file sets.",
    )
    distillation_temperature: float = setting(1.0, f"Temperature of {', '.join(losses_of_kind('logits'))}.")
    distillation_top_k: Positive | None = setting(
        None,
        "Cache the reference's k most likely tokens at each position on disk, so that it runs once over each "
        "sequence; all tokens count if not given. Not with losses on hidden states.",
    )
    distillation_dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "Precision of the reference's weights while it teaches."
    )
    distillation_quantization: dict[str, Any] | str | None = setting(
        None,
        "Quantization of the reference while it teaches: '8bit' or '4bit' (bitsandbytes), or a quantization_config of "
        "Transformers, as a mapping with quant_method. Its loss is measured, and students are trained, unquantized.",
    )

    def __post_init__(self) -> None:
        given: Any = self.inherit
        if isinstance(given, list | tuple) and all(isinstance(part, str) for part in given):
            self.inherit = ",".join(given)
        _ = self.inherited_parts
        # Files and the command line may bring numbers as text: YAML reads 1e-2 as a word.
        if self.target != "reference":
            target = number(self.target)
            if target is None or not 0 < target < math.inf:
                raise ValueError(
                    f"target must be 'reference' or a number above 0 in nats per token, got {self.target!r}."
                )
            self.target = target
        tolerance = number(self.tolerance)
        if tolerance is None or not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be 0 nats per token or more, got {self.tolerance!r}.")
        self.tolerance = tolerance
        # A command line says none, over a preset or a file that has some.
        self.distillation = None if self.distillation == "none" else self.distillation
        self.confidence = one_sided(self.confidence)
        self.abandon = one_sided(self.abandon, "abandon", "train every round to its end")
        check_settings(self, besides=("keep_layers", "schedule"))  # these have a grammar of their own
        if isinstance(self.keep_layers, bool) or not isinstance(self.keep_layers, int | str | Sequence):
            raise ValueError(f"keep_layers must be {GRAMMAR}, got {self.keep_layers!r}.")
        if not isinstance(self.schedule, list):
            raise ValueError(f"schedule must be a list of what keep_layers may be, got {self.schedule!r}.")
        self._check_distillation()
        if self.growth == "reinherit":
            for name, paper in (("new_blocks", "reference"), ("optimizer_state", "reset")):
                if getattr(self, name) != paper:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} needs growth 'continue': a student that is inherited afresh "
                        "has nothing that was trained before."
                    )

    def _check_distillation(self) -> None:
        if not self.distillation_temperature > 0:
            raise ValueError(f"distillation_temperature must be above 0, got {self.distillation_temperature!r}.")
        states = [name for name in self.distillation_weights if name in losses_of_kind("states")]
        if states and self.distillation_top_k is not None:
            raise ValueError(
                "distillation_top_k keeps the teacher's likeliest tokens, not its states: leave "
                f"{' and '.join(states)} out of distillation, or distillation_top_k."
            )
        if self.quantization_config is not None and "quant_method" not in self.quantization_config:
            raise ValueError(
                f"distillation_quantization must be {', '.join(QUANTIZATIONS)} or a mapping with quant_method, got "
                f"{self.distillation_quantization!r}."
            )

    @property
    def inherited_parts(self) -> tuple[str, ...]:
        """The parts that `inherit` names, in the order of `PARTS`."""
        given: Any = self.inherit
        if isinstance(given, str) and given in INHERIT_PRESETS:
            return INHERIT_PRESETS[given]
        named = {part.strip() for part in given.split(",")} if isinstance(given, str) else set()
        if not named or not named <= set(PARTS):
            raise ValueError(
                f"inherit must be one of {', '.join(INHERIT_PRESETS)}, or parts out of {', '.join(PARTS)}, "
                f"got {self.inherit!r}."
            )
        return tuple(part for part in PARTS if part in named)

    @property
    def distillation_weights(self) -> dict[str, float]:
        """The losses that `distillation` names, with their weights; none without it."""
        weights: dict[str, float] = {}
        for item in [] if self.distillation is None else self.distillation.split(","):
            name, _, text = (part.strip() for part in item.partition("="))
            weight = number(text)
            if name not in DISTILLATION_LOSSES or name in weights or weight is None or not weight > 0:
                raise ValueError(
                    f"distillation must be 'none' or losses out of {', '.join(DISTILLATION_LOSSES)}, each once and "
                    f"with a weight above 0, such as 'cross_entropy=0.6,forward_kl=0.4', got {self.distillation!r}."
                )
            weights[name] = weight
        return weights

    @property
    def quantization_config(self) -> dict[str, Any] | None:
        """The teacher's quantization as Transformers reads it; None without one."""
        given = self.distillation_quantization
        return QUANTIZATIONS.get(given, {}) if isinstance(given, str) else given

    @property
    def continues_data(self) -> bool:
        """Whether a round continues in the data where the one before stopped."""
        return self.data_order == "continue" or (self.data_order is None and self.growth == "continue")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as a plain dictionary that JSON and YAML can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InherituneConfig:
        """Build a recipe from `values`; an unknown key is a `ValueError` that names the nearest one."""
        return from_mapping(cls, values)

    @classmethod
    def from_file(cls, path: str | Path) -> InherituneConfig:
        """Read a recipe from a YAML or JSON file; an unknown key is a `ValueError` that names the nearest one."""
        return from_mapping(cls, read_mapping(path))


#: What a row of data may hold.
RowKind = Literal["text", "tokens", "messages"]


@with_documented_settings
@dataclass
class DataConfig:
    """
    Say which text is the train set, the selection (validation) set and the test set.

    Give one of `dataset_name` (a Hub data set, or a folder of one), `train_files` and `sources` (a mixture). The
    selection and test sets are given, or held out of the training source in whole documents.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    dataset_name: str | None = setting(None, "Hub id, or local folder, of a data set with a text column.")
    dataset_config: str | None = setting(None, "Configuration name of the Hub data set.")
    train_split: str = setting("train", "Split of the Hub data set to train on.")
    selection_split: str | None = setting(
        None, "Validation split, which decides about growing and stopping; held out of the training split if not given."
    )
    test_split: str | None = setting(
        None, "Test split, for the reported result; held out of the training split if not given."
    )
    train_files: list[str] = setting(
        [],
        "Text (one document each), JSONL, JSON, Parquet, Arrow, CSV, TSV or token (.bin) files to train "
        "on; globs, and .gz, .xz and .zst of all but Parquet and Arrow, are allowed.",
    )
    selection_files: list[str] = setting(
        [], "Validation files, which decide about growing and stopping; held out of the training files if not given."
    )
    test_files: list[str] = setting(
        [], "Test files, for the reported result; held out of the training files if not given."
    )
    sources: list[dict[str, Any]] = setting(
        [],
        "A mixture: for each source dataset_name (with dataset_config and split) or files, and optionally "
        "text_column, rows and weight (its share of the tokens; without weights every document is used once in "
        "a pass over all of them).",
    )
    text_column: str = setting("text", "Column that holds a document's text.")
    rows: RowKind = setting(
        "text",
        "What a row holds: 'text', 'tokens' (input_ids and, optionally, labels with -100 where a token does "
        "not count) or 'messages' (a chat, written by the tokenizer's template).",
    )
    chat_loss: Literal["all", "assistant"] = setting(
        "all", "Tokens of a chat that count in the loss: 'all', or 'assistant' (if the template marks them)."
    )
    streaming: bool = setting(False, "Read and pack the training source while training, without a copy on disk.")
    document_boundaries: bool = setting(
        False, "Let no token attend to another document packed into its sequence; positions restart with each document."
    )
    damaged_rows: Literal["error", "skip"] = setting(
        "error", "A row that cannot be read is an 'error' that names file and row, or is skipped and counted ('skip')."
    )
    max_document_bytes: Positive = setting(
        16_000_000, "Longest document, in bytes; a longer one counts as damaged. It bounds the memory needed."
    )
    token_dtype: Literal["uint16", "uint32"] = setting(
        "uint16", "Type of the tokens in .bin files without a header: 'uint16' or 'uint32'."
    )
    duplicates: Literal["report", "remove"] = setting(
        "report", "Documents that are identical to one of another set: 'report' or 'remove' them."
    )
    near_duplicates: Literal["ignore", "report", "remove"] = setting(
        "report", "Documents that are nearly identical to one of another set: 'ignore', 'report' or 'remove' them."
    )
    near_duplicate_threshold: float = setting(
        0.8, "Share of common 5-grams of tokens (Jaccard) from which documents are near-duplicates."
    )
    holdout_documents: Positive = setting(
        20_000, "Documents at the start of each streamed source from which the held-out sets are taken."
    )
    shuffle_documents: Annotated[int, Within(0)] = setting(
        1_000,
        "Documents of a stream that are shuffled together (at most 32 million characters of them); 0 keeps "
        "the order of the source.",
    )
    selection_fraction: float = setting(
        0.05, "Share of the training documents held out as selection (validation) set if none is given."
    )
    test_fraction: float = setting(0.05, "Share of the training documents held out as test set if none is given.")
    block_size: Annotated[int, Within(2)] | None = setting(
        None,
        "Tokens of one sequence; if not given, that of prepared data, else the reference's context length "
        "(at most 1024).",
    )
    max_sequences_per_document: Positive | None = setting(
        None, "Sequences kept of each selection or test document, spread evenly over it; all if not given."
    )
    preprocessing_workers: Positive | None = setting(None, "Processes that tokenize; this process alone if not given.")

    def __post_init__(self) -> None:
        for name in ("train_files", "selection_files", "test_files"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        check_settings(self)
        for name in ("selection_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"{name} must be above 0 and below 0.5, got {getattr(self, name)!r}.")
        if not 0 < self.near_duplicate_threshold <= 1:
            raise ValueError(
                f"near_duplicate_threshold must be above 0 and at most 1, got {self.near_duplicate_threshold!r}."
            )
        if self.dataset_name and self.train_files:
            raise ValueError("Give dataset_name or train_files, not both.")
        if self.sources and (self.dataset_name or self.train_files):
            raise ValueError("Give sources, or dataset_name or train_files, not both: name all sources in sources.")
        if self.chat_loss != "all" and self.rows != "messages" and not self.sources:
            raise ValueError("chat_loss is about rows of messages; set rows to 'messages', or leave chat_loss out.")

    def to_dict(self) -> dict[str, Any]:
        """Return the data settings as a plain dictionary that JSON and YAML can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """Build data settings from `values`; an unknown key is a `ValueError` that names the nearest one."""
        return from_mapping(cls, values)


#: What the embedded run sets unless the user says otherwise: names of recipe and training arguments.
EMBEDDED_DEFAULTS: dict[str, Any] = {
    # Measured on the embedded reference (docs/results/embedded.md): it has stopped improving and few of its layers can
    # go in minutes. Layers go by the loss without them, and a low rate undoes less than one that suits random weights.
    "keep_layers": "skip:10",
    "grow_by": 1,
    "tolerance": 0.05,
    "distillation": "forward_kl=1",
    "steps_per_round": 80,
    "data_order": "continue",
    "output_dir": "inheritune-demo",
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 32,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "eval_strategy": "steps",
    "eval_steps": 8,
    "save_steps": 40,
    "logging_steps": 10,
    "save_total_limit": 1,
}


#: Settings of recipe and training by the name of a preset; what a file or the command line says wins over them.
PRESETS: dict[str, dict[str, Any]] = {
    # The paper's rule of growing and matching (arXiv 2404.08634v4, Algorithm 1 and section 4), weight decay and betas.
    "paper": {
        "keep_layers": "half",
        "grow_by": 2,
        "growth": "reinherit",
        "lr_schedule": "restart",
        "data_order": "restart",
        "tolerance": 0.0,
        "confidence": None,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
    },
    # Beyond the paper; examples/recipes/heal.yaml says why, and what was measured.
    "heal": {
        "keep_layers": "loss:half",
        "growth": "continue",
        "optimizer_state": "keep",
        "lr_schedule": "continue",
        "distillation": "cross_entropy=0.3,forward_kl=0.7",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.1,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
    },
}


@with_documented_settings
@dataclass
class RunConfig:
    """
    Say which reference a run starts from, and how it ends under a launcher.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    reference: str | None = setting(
        None, "Hub id or path of the reference; the embedded default runs offline if none is given."
    )
    revision: str | None = setting(None, "Branch, tag or commit of the reference on the Hub.")
    text_model: bool = setting(False, "Use the text model inside a multimodal reference.")
    gguf_file: str | None = setting(
        None, "GGUF file of the reference, which is read whole and dequantized; it holds the tokenizer too."
    )
    attn_implementation: str | None = setting(
        None,
        "Attention of the reference and of its students, as from_pretrained takes it: 'sdpa', 'eager', "
        "'flash_attention_2' or another; what Transformers chooses if not given.",
    )
    preset: Literal["paper", "heal"] | None = setting(
        None,
        "Defaults for recipe and training; any setting that is given wins. 'paper': the paper's rule, weight decay and "
        "betas. 'heal', for released models and small budgets: layers chosen by loss, growth that continues, the "
        "reference as teacher, one schedule over max_steps.",
    )
    collapse_every: Positive | None = setting(
        None, "Measure the student's lazy layers at every n-th evaluation; never if not given."
    )
    reference_cache: bool = setting(
        True, "Cache the reference's loss, and reuse it if it was measured before on the same data."
    )
    require_match: bool = setting(False, "Let the example script end with the outcome's exit status, not 0, on a miss.")

    def __post_init__(self) -> None:
        check_settings(self)
        if "/" in (self.attn_implementation or ""):
            raise ValueError(
                f"attn_implementation must be an attention of Transformers, such as 'sdpa', got "
                f"{self.attn_implementation!r}: a kernel of the Hub is code, and is allowed in Python alone, by "
                "reference_kwargs."
            )

    @property
    def where(self) -> dict[str, Any]:
        """What opening the reference takes beside its name."""
        return reference_options(self)


@with_documented_settings
@dataclass
class CompareConfig:
    """
    Say which arms are compared, with which seeds, under which budget.

    Raises:
        ValueError: If a value cannot be used; the message says what came and what is allowed.
    """

    arms: list[str] = setting(
        ["inheritune", "inherited", "random", "stacking", "hybrid-stacking", "half-width", "last"],
        f"Arms to compare, out of {', '.join(ARMS)}; optionally with /moved-scale or /kd after the name.",
    )
    controls: bool = setting(
        True,
        "Always include the controls: the reference trained further, random weights, and random weights that get the "
        "reference's own training too.",
    )
    seeds: list[int] = setting([1, 2, 3], "Seeds; every arm is run with each.")
    learning_rates: list[float] = setting(
        [0.5, 1.0, 2.0],
        "Learning rates to try with the first seed, as multiples of learning_rate; each arm then uses the one with the "
        "lowest selection loss, and the loop the one with its shallowest match.",
    )
    budget: Literal["tokens", "flops"] = setting(
        "tokens", "What is equal for all arms: 'tokens' or 'flops'; controls take the loop's steps under either."
    )
    budget_steps: Positive | None = setting(
        None, "The budget in optimizer steps; if not given, what the loop took over all its rounds, seed by seed."
    )
    layers: Positive | None = setting(
        None, "Depth of the other arms' models; if not given, that of the loop's last student, seed by seed."
    )
    reference_steps: Positive | None = setting(
        None, "Steps of this batch size that the reference itself was trained for; random-long needs it."
    )

    def __post_init__(self) -> None:
        for name in ("arms", "seeds", "learning_rates"):
            values = getattr(self, name)
            if not isinstance(values, list) or not values or len(set(map(repr, values))) < len(values):
                raise ValueError(f"{name} must be a list of different values, got {values!r}.")
        check_settings(self)
        for arm in self.arms:
            parse_arm(arm)
        if not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be multiples above 0, got {self.learning_rates!r}.")
        if LOOP not in self.arms and not (self.budget_steps and self.layers):
            raise ValueError(
                "Without the arm 'inheritune' nothing says how deep the others are and how long they train: give "
                "layers and budget_steps."
            )

    @property
    def cells(self) -> int:
        """Cells of each arm: one for each learning rate with the first seed, and one for each further seed."""
        return len(self.learning_rates) + len(self.seeds) - 1


def reference_options(options: Any) -> dict[str, Any]:
    """Return what opening a reference takes beside its name, of settings or options that have fields for it."""
    names = ("revision", "text_model", "gguf_file", "attn_implementation")
    known = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in known.items() if value}


# Reading and checking


def read_mapping(path: str | Path) -> dict[str, Any]:
    """
    Read a YAML or JSON file that holds one mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is neither YAML nor JSON, or holds something else than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; give the path of a YAML or JSON file.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}).") from error
    values = parse_json(text, str(path)) if path.suffix == ".json" else parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold 'name: value' settings, got a {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}


def reject_unknown_keys(values: Mapping[str, Any], allowed: set[str], source: str) -> None:
    """Raise a `ValueError` that names every key of `values` that is not `allowed`, with the nearest allowed one."""
    complaints = []
    for key in values:
        if key not in allowed:
            nearest = difflib.get_close_matches(key, sorted(allowed), n=1)
            complaints.append(f"{key!r}" + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))
    if complaints:
        raise ValueError(f"{source} has no setting named {', '.join(complaints)}.")


def from_mapping(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a configuration from `values`; an unknown key is a `ValueError` that names the nearest one."""
    untyped: Any = cls
    reject_unknown_keys(values, {item.name for item in dataclasses.fields(untyped)}, cls.__name__)
    return cls(**values)


def check_settings(config: Any, besides: Sequence[str] = ()) -> None:
    """
    Check every setting against its annotation; numbers that came as text become numbers.

    Args:
        config: A dataclass of settings, which is changed in place.
        besides (sequence of `str`): Settings that are checked elsewhere.

    Raises:
        ValueError: If a value does not fit; the message names the setting, what came and what is allowed.
    """
    settings: Any = type(config)
    for name, kind in annotations_of(settings).items():
        value = getattr(config, name)
        if name not in besides:
            wanted = number(value) if kind is float and isinstance(value, str) else None
            setattr(config, name, conform(kind, value if wanted is None else wanted, name))


def one_sided(value: Any, name: str = "confidence", without: str = "compare means") -> float | None:
    """
    Return the confidence that a setting gives as a number, or None if it is none.

    Raises:
        ValueError: If it is neither in [0.5, 1) nor none.
    """
    if str(value).lower() == "none":
        return None
    confidence = number(value)
    if confidence is None or not 0.5 <= confidence < 1:
        raise ValueError(f"{name} must be in [0.5, 1), or none to {without}, got {value!r}.")
    return confidence


def number(value: Any) -> float | None:
    """Return `value` as a number, or None if it is none."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
