# /// script
# requires-python = ">=3.11"
# dependencies = ["inheritune-hf"]
#
# [tool.uv]
# constraint-dependencies = ["torch==2.13.0", "transformers==5.23.0"]  # known to work, as in constraints.txt
#
# [tool.uv.sources]
# inheritune-hf = { path = "..", editable = true }  # this checkout
# ///
"""
Run Inheritune from a reference to a saved student: inherit, train, compare with the reference's loss, grow, repeat.

    python examples/run_inheritune.py                                    # the embedded default: offline, minutes
    uv run examples/run_inheritune.py                                    # the same, in an environment of its own
    accelerate launch examples/run_inheritune.py --config recipe.yaml
    torchrun --nproc_per_node 2 examples/run_inheritune.py \
        --reference gpt2-medium --dataset-name stas/openwebtext-10k --steps-per-round 1000 --output-dir out

Every field of `InherituneConfig`, `DataConfig` and `transformers.TrainingArguments` is an option; `--config` reads
them from a YAML or JSON file and the command line wins. The run ends with status 0 for every completed outcome,
because a launcher calls any other a crash; with `--require-match` a miss has its own status (3 or 4). An interrupted
run ends with 75: the same command resumes from its last checkpoint. `inheritune train` is the same run.
"""

import sys

from inheritune_hf.cli import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:], prog="run_inheritune.py", launched=True))
