"""The verbs and their exit statuses, as programs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from tiny_reference import save_reference
from transformers import AutoModelForCausalLM

from inheritune_hf import InherituneTrainer, __version__
from inheritune_hf.cli import main, run

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = EXAMPLES / "accelerate_configs"
STORIES = [f"The {thing} of number {number} is {number} and {number}. " * 12 for number in range(30) for thing in "ab"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A tiny GPT-2 with its tokenizer, in a folder."""
    return save_reference(tmp_path_factory.mktemp("reference") / "tiny")


@pytest.fixture
def recipe(reference, tmp_path):
    """A recipe file for a short run on JSONL text."""
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES))
    settings = {
        "reference": reference,
        "train_files": [str(tmp_path / "stories.jsonl")],
        "selection_fraction": 0.2,
        "test_fraction": 0.2,
        "keep_layers": 1,
        "max_layers": 2,
        "grow_by": 1,
        "steps_per_round": 6,
        "confidence": "none",
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "use_cpu": True,
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**settings, "confidence": None}))
    return path


def table_of(path):
    """The cells of the header and of the student's row in a run's results."""
    lines = [line for line in path.read_text().splitlines() if line.startswith(("| model", "| student"))]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def program(*words, timeout=300, **env):
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def test_train_matches_and_saves_a_student(recipe, tmp_path, capsys):
    """A recipe runs to its end: status 0, a table, a picture, records, and a student that Transformers loads."""
    assert main(["train", "--config", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert "test loss" in shown
    folder = tmp_path / "run"
    assert shown.splitlines()[-4:] == [
        "outcome     matched: A student of 1 of 4 layers matched its starting reference.",
        "exit status 0",
        f"student     {folder}",
        f"next        inheritune evaluate {folder}, inheritune report {folder}, inheritune publish {folder} "
        "--repo-id OWNER/NAME",
    ]
    assert {"losses.png", "results.md", "rounds.json", "inheritune_config.json"} <= {
        item.name for item in folder.iterdir()
    }
    records = json.loads((folder / "rounds.json").read_text())
    assert records["outcome"] == "matched"
    assert records["results"][1]["model"] == "student"
    student = AutoModelForCausalLM.from_pretrained(folder)
    assert student.config.n_layer == records["rounds"][-1]["kept_layers"][-1] + 1


@pytest.mark.parametrize(("words", "status"), [([], 3), (["--max_steps", "3"], 4)])
def test_a_miss_has_its_own_status(recipe, words, status, capsys):
    """Out of layers is 3, out of budget is 4."""
    assert main(["train", "--config", str(recipe), "--target", "0.01", *words]) == status
    *_, outcome, told, _, following = capsys.readouterr().out.splitlines()
    assert "No student matched the target loss" in outcome
    assert told == f"exit status {status}"
    assert "publish" not in following
    # The final table is judged by the run's own target, not by the reference.
    assert [row[-2] for row in table_of(recipe.parent / "run" / "results.md")] == ["matched", "no"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_ends_with_75(recipe, tmp_path, monkeypatch, capsys, number):
    """Ctrl-C and SIGTERM within step 9 end with 75 and a checkpoint; the same command goes on to the same bits."""
    command = ["train", "--config", str(recipe), "--target", "0.01", "--save_steps", "100"]
    assert main([*command, "--output_dir", str(tmp_path / "whole")]) == 3
    plain = InherituneTrainer.training_step

    def training_step(self, *args):
        if self.state.global_step == 8:
            signal.raise_signal(number)
        return plain(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(InherituneTrainer, "training_step", training_step)
        assert main(command) == 75
    shown = capsys.readouterr().out
    assert "outcome     interrupted: The run was interrupted: whether its student of" in shown
    assert shown.splitlines()[-3:] == [
        "exit status 75",
        f"checkpoints {tmp_path / 'run'}",
        "next        the same command again resumes it",
    ]
    assert (tmp_path / "run" / "checkpoint-9" / "inheritune_state.json").is_file()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert main(command) == 3
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_example_script_ends_with_75_on_a_signal(recipe, tmp_path, number):
    """A signal from outside, as a scheduler sends it, ends the script with 75 after its step."""
    words = ["--steps_per_round", "1000000", "--save_steps", "5", "--save_total_limit", "2", "--target", "0.01"]
    running = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "run_inheritune.py"), "--config", str(recipe), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 240
    while not list((tmp_path / "run").glob("checkpoint-*/inheritune_state.json")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    running.send_signal(number)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 75, errors[-2000:]
    assert "interrupted at step" in errors


@pytest.mark.parametrize(("words", "status"), [([], 0), (["--require_match"], 3)])
def test_a_launched_run_ends_with_0_on_a_miss_unless_asked(recipe, words, status):
    """A launcher must not see a crash in a miss; --require_match tells."""
    assert run("train", ["--config", str(recipe), "--target", "0.01", *words], launched=True) == status


@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint"],
        pytest.param(
            [
                "-m",
                "accelerate.commands.launch",
                "--config_file",
                str(CONFIGS / "cpu.yaml"),
                "--main_process_port",
                "0",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["torchrun", "accelerate"],
)
def test_example_script_runs_in_two_processes(recipe, tmp_path, launcher):
    """The same script and recipe run under both launchers, in two processes that agree."""
    words = [*launcher, "localhost:0"] if launcher[-1] == "--rdzv_endpoint" else launcher
    script = str(EXAMPLES / "run_inheritune.py")
    done = program(sys.executable, *words, script, "--config", str(recipe), "--per_device_train_batch_size", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "run" / "_inheritune" / "state.json").read_text())
    assert state["identity"]["args.world_size"] == 2
    assert done.stdout.count("test loss") == 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path):
    """Each ready configuration is one of accelerate's, for two processes, and asks for no CPU of the launcher."""
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    assert not config.use_cpu
    assert config.distributed_type == {"f": "FSDP", "z": "DEEPSPEED"}.get(path.stem[0], "MULTI_GPU")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_configurations_start_two_processes(recipe, tmp_path, name):
    """Each configuration for GPUs runs on processors too, in two processes; FSDP says that it needs a device."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{name}.yaml")]
    script = [str(EXAMPLES / "run_inheritune.py"), "--config", str(recipe), "--per_device_train_batch_size", "2"]
    done = program(sys.executable, *launcher, "--main_process_port", "0", *script, "--target", "0.01")
    if name == "fsdp2":
        assert "fsdp without a device: Accelerate does not shard on processors" in done.stderr
        return
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "run" / "_inheritune" / "state.json").read_text())
    assert state["identity"]["args.world_size"] == 2
    assert [len(item["kept_layers"]) for item in state["rounds"]] == [1, 2]
    assert (tmp_path / "run" / "checkpoint-12" / "optimizer.pt").exists() == (name == "ddp")


@pytest.mark.slow
def test_launcher_that_starts_one_process_for_two_is_an_error(recipe, tmp_path):
    """accelerate launch with --cpu starts one process, whatever is asked for: the run does not begin, and says why."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    done = program(sys.executable, *launcher, str(EXAMPLES / "run_inheritune.py"), "--config", str(recipe))
    assert done.returncode != 0
    assert "asked for several processes but started one" in done.stderr
    assert not (tmp_path / "run" / "_inheritune").exists()


def test_students_load_with_transformers_alone(reference, tmp_path):
    """The second example generates from a saved student where this package cannot be imported."""
    assert main(["inherit", reference, "--output", str(tmp_path / "run")]) == 0
    (tmp_path / "inheritune_hf.py").write_text("raise ImportError('not needed')\n")
    done = program(
        sys.executable,
        "-P",
        str(EXAMPLES / "load_student.py"),
        str(tmp_path / "run"),
        "--prompt",
        "The a",
        "--max-new-tokens",
        "4",
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("The a")


def test_inherit_prints_what_was_kept(reference, tmp_path, capsys):
    """`inherit` saves a student with its tokenizer and says which layers and parameters are left."""
    assert main(["inherit", reference, "--keep-layers", "first:3", "--output", str(tmp_path / "student")]) == 0
    shown = capsys.readouterr().out
    assert "kept        0:3 (3 of 4 layers)" in shown
    assert "dropped     3:4" in shown
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (reference, tmp_path / "student"))
    assert f"parameters  {before.num_parameters():,} -> {after.num_parameters():,}" in shown
    assert (tmp_path / "student" / "tokenizer.json").is_file()
    assert after.config.n_layer == 3


@pytest.mark.parametrize(("layers", "message"), [("-1", "between 1 and 4"), ("abc", "abc")])
def test_inherit_refuses_layers_that_are_not_there(reference, tmp_path, capsys, layers, message):
    """A choice of layers that cannot be made is an error, and nothing is written."""
    status = main(["inherit", reference, f"--keep-layers={layers}", "--output", str(tmp_path / "student")])
    assert status == 1
    shown = capsys.readouterr().err
    assert "inheritune inherit: error: keep_layers" in shown
    assert message in shown
    assert not (tmp_path / "student").exists()


def test_errors_of_a_run_are_one_line(recipe, tmp_path, capsys):
    """A bad source ends with status 1 and a message, not a traceback."""
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    words = ["train", "--config", str(recipe), "--train_files", str(tmp_path / "bad.txt")]
    assert main(words) == 1
    assert "bad.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_train_epochs", "2"], "num_train_epochs: a run's length is given in steps"),
        (["--keep_layers", "13"], "keep_layers must be between 1 and 4"),
        (["--max_layers", "9"], "max_layers must be between 1"),
    ],
)
def test_settings_are_refused_before_the_data_is_read(recipe, capsys, words, message):
    """What the trainer would refuse comes before hours of tokenizing: the data is not even looked for."""
    words = ["train", "--config", str(recipe), "--train_files", "not-there.txt", *words]
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_data_without_a_reference_is_refused(tmp_path, capsys):
    """Data settings alone do not run the embedded default behind the user's back."""
    words = ["train", "--train_files", "mine.txt", "--output_dir", str(tmp_path / "run"), "--use_cpu"]
    assert main(words) == 1
    assert "train_files came without a reference" in capsys.readouterr().err


def test_help_version_and_unknown_verbs(capsys):
    """The front door: help lists the verbs, an unknown one is status 2."""
    assert main(["--help"]) == 0
    assert "inherit " in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"inheritune-hf {__version__}\n"
    assert main([]) == 2
    capsys.readouterr()
    assert main(["grow"]) == 2
    assert "there is no verb 'grow'" in capsys.readouterr().err
