"""The verbs about one student or its reference: `inherit`, `doctor`, `verify` and `publish`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config import reference_options
from .parsing import VerbParser


def inherit(argv: Sequence[str], prog: str) -> int:
    """Show what is kept, dropped and read, then build and save a student."""
    parser = VerbParser(prog, "Build a student from some layers of a reference, and save it.")
    parser.add_argument("reference", help="Hub id or path of the reference.")
    parser.add_shared("--keep-layers", "--inherit", "--attention-scale")
    parser.add_argument("--seed", type=int, default=42, help="Seed of parts that are not inherited (default: 42).")
    parser.add_argument(
        "--files",
        nargs="+",
        default=[],
        help="Text that 'auto' and measures are measured on (default: novels of the package).",
    )
    parser.add_argument("--output", required=True, help="Folder to save the student in.")
    parser.add_shared("--revision", "--text-model", "--gguf-file")
    parser.add_argument("--dtype", default="float32", help="Type of the weights (default: float32).")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="Refuse a reference that holds tensors of kept layers that its architecture does not know.",
    )
    options = parser.parse_args(argv)

    from ..layers import describe
    from ..measures import is_measured
    from ..publishing import save_inherited
    from ..students import open_reference
    from .tables import show_plan
    from .terminal import Terminal

    terminal = Terminal()
    reference, choice = open_reference(options.reference, **reference_options(options)), options.keep_layers
    order = None
    if is_measured(choice):
        from ..analysis import default_sequences, measure_order, paper_tokens, scores_folder

        sequences = default_sequences(reference.tokenizer, tokens=paper_tokens(reference), files=options.files)
        order = measure_order(reference, choice, sequences, progress=True, cache_dir=scores_folder())
        choice = describe(sorted(order.layers[: order.first]))
    save_inherited(
        reference,
        choice,
        options.output,
        inherit=options.inherit,
        seed=options.seed,
        attention_scale=options.attention_scale,
        show=lambda plan: show_plan(terminal, plan),
        order=order,
        dtype=options.dtype,
        strict=options.strict,
    )
    terminal.print_facts([("saved in", options.output)])
    return 0


def doctor(argv: Sequence[str], prog: str) -> int:
    """Say whether and how a reference can be cut, and what would be read, from its config and file headers."""
    parser = VerbParser(
        prog, "Check whether a reference can be cut, and what would be read, from its config and file headers alone."
    )
    parser.add_argument("reference", help="Hub id or path of the reference.")
    parser.add_shared(
        "--keep-layers", "--inherit", "--attention-scale", "--revision", "--text-model", "--gguf-file", "--json"
    )
    options = parser.parse_args(argv)

    from ..students import plan_inheritance
    from .tables import show_plan
    from .terminal import Terminal, quiet_transformers

    quiet_transformers()
    choice = (options.keep_layers, options.inherit, options.attention_scale)
    plan = plan_inheritance(options.reference, *choice, **reference_options(options))
    terminal = Terminal()
    if options.json:
        terminal.print_record(plan, notes=plan.notes, bytes_to_read=plan.bytes_to_read)
        return 0
    terminal.print("The reference can be cut.")
    show_plan(terminal, plan)
    head = "shares the token embedding's weights" if plan.tied else "has weights of its own"
    terminal.print_facts([("blocks", f"{plan.block_list}; the head {head}")])
    return 0


def verify(argv: Sequence[str], prog: str) -> int:
    """Check a saved student against its reference, reload it and let it generate; 1 if something failed."""
    parser = VerbParser(prog, "Check a saved student against its reference.")
    parser.add_argument("student", help="Folder of the student.")
    parser.add_argument("--reference", help="Hub id or path of the reference (default: what the lineage names).")
    parser.add_shared("--revision", "--json")
    options = parser.parse_args(argv)

    from ..students import verify_student
    from .tables import show_verification
    from .terminal import Terminal, quiet_transformers

    quiet_transformers()
    found = verify_student(options.student, options.reference, **reference_options(options))
    if options.json:
        Terminal().print_record(found, passed=found.passed)
    else:
        show_verification(Terminal(), found)
    return 0 if found.passed else 1


def publish(argv: Sequence[str], prog: str) -> int:
    """Load a student in a fresh process and show what would be uploaded; with `--push` it is."""
    parser = VerbParser(prog, "Upload a saved student to the Hub. Without --push nothing leaves this machine.")
    add = parser.add_argument
    add("folder", help="Folder of the student, or output folder of its run.")
    add("--repo-id", required=True, help="The repository, owner/name.")
    add("--push", action="store_true", help="Upload; without it the command only shows what would be uploaded.")
    add("--private", action="store_true", default=None, help="Make the repository private.")
    add("--revision", help="Branch to commit to, created if missing (default: main).")
    add(
        "--rounds", action="store_true", help="Also upload the student of each round, to branches round-1, round-2, ..."
    )
    add("--license", help="Licence, by the Hub's identifier (default: the reference's).")
    add("--language", nargs="+", default=[], help="Languages, such as en (default: the reference's).")
    add("--dataset", nargs="+", default=[], help="Hub ids of the data sets that it was trained on.")
    add("--message", default="Publish a student", help="Commit message.")
    options = parser.parse_args(argv)

    from ..publishing import publish_student
    from ..training.checkpoints import round_students
    from .tables import show_publication
    from .terminal import Terminal, quiet_transformers

    quiet_transformers()
    terminal = Terminal()
    wanted = {"license": options.license, "language": options.language, "datasets": options.dataset}
    where = {"push": options.push, "private": options.private, **wanted}
    last = {"revision": options.revision, "commit_message": options.message, **where}
    show_publication(terminal, publish_student(options.folder, options.repo_id, **last))
    for index, folder in round_students(Path(options.folder)) if options.rounds else ():
        each = {"revision": f"round-{index}", "commit_message": f"Student of round {index}", **where}
        part = publish_student(folder, options.repo_id, **each)
        went = part.url or f"not uploaded; branch round-{index}"
        weights = sum(size for name, size in part.files.items() if name.endswith(".safetensors"))
        text = f"{weights:,} bytes of weights: {went}"
        terminal.print_facts([(f"round {index}", text)])
    if not options.push:
        terminal.print("Nothing was uploaded. Add --push to upload.")
    return 0
