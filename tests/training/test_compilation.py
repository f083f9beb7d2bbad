"""Compiling block by block: one graph for each kind of block, none for depth or growth, and the plain results."""

import pytest
import tiny
import torch
from test_trainer import run_program
from torch._dynamo.utils import counters
from transformers import SmolLM3Config, SmolLM3ForCausalLM, TrainerCallback

from inheritune_hf.training.speed import compile_blocks

# Dynamo looks at .grad of what it traces (torch/_dynamo/variables/builder.py) and warns of itself.
# Inductor imports torch/utils/mkldnn.py, which still scripts its modules.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)

EAGER = {"backend": "aot_eager", "mode": None, "dynamic": False}  # traces as any backend, and generates no code


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny", layers=6, dropout=0.0)


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    """No graphs from before, and nothing left of what TrainingArguments tells Accelerate by the environment."""
    for name in ("BACKEND", "MODE"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no" if name == "BACKEND" else "default")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def step(model, batch=2):
    tokens = torch.arange(batch * 8).view(batch, 8)
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss.detach()


def test_depth_adds_no_graphs():
    """Six blocks take one graph, as one does; another model of eight takes none more; each batch size takes one."""
    found = []
    for layers, batch in ((1, 2), (6, 2), (8, 2), (8, 3)):
        model = tiny.reference_model(layers, dropout=0.0).train()
        plain = step(model, batch)
        names = list(model.state_dict())
        compile_blocks(model, EAGER)
        torch.testing.assert_close(step(model, batch), plain)
        assert list(model.state_dict()) == names
        found.append(graphs())
    assert found == [1, 1, 1, 2]


def test_each_kind_of_block_takes_a_graph():
    """Blocks with rotary positions and without take a graph each, however many there are."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    found = []
    for layers in (1, 2, 6):
        torch.manual_seed(0)
        config = SmolLM3Config(
            vocab_size=64, num_hidden_layers=layers, no_rope_layers=([1, 0] * 3)[:layers], pad_token_id=0, **shape
        )
        model = SmolLM3ForCausalLM(config).train()
        compile_blocks(model, EAGER)
        step(model)
        found.append(graphs())
    assert found == [1, 2, 2]


class Count(TrainerCallback):
    """Writes down how many graphs there are when a round ends."""

    def __init__(self, steps):
        self.steps, self.found = steps, []

    def on_save(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.found.append(graphs())


@pytest.mark.parametrize("growth", ["reinherit", "continue"])
def test_growing_compiles_nothing(growth, reference, tmp_path):
    """One graph, of a batch of training, serves students of one, two and three layers; evaluating takes none."""
    count = Count(10)
    trainer = tiny.make_trainer(tmp_path, reference, {"growth": growth}, [count], torch_compile_backend="aot_eager")
    trainer.train()
    assert [item.layers for item in trainer.rounds] == [1, 2, 3]
    assert count.found == [1, 1, 1]


def test_evaluation_leaves_the_graphs_to_training(reference, tmp_path):
    """Batches of twelve widths, in which reference and student are evaluated, are no graphs; training is one."""
    lengths = tuple(length for length in range(4, tiny.TOKENS) for _ in range(8))  # a batch is as wide as its rows
    found = []
    for name, backend in (("plain", None), ("compiled", "aot_eager")):
        trainer = tiny.make_trainer(
            tmp_path / name,
            reference,
            {"target": "reference", "max_layers": 1, "steps_per_round": 5},
            torch_compile_backend=backend,
        )
        trainer.eval_dataset = tiny.selection_set(len(lengths), lengths)
        trainer.train()
        found.append((trainer.reference_validation, trainer.rounds[0].loss))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=2e-4)
    assert graphs() == 1


def curve(folder, reference, **changes):
    recipe = {"keep_layers": 2, "max_layers": 2, "steps_per_round": 50, **changes.pop("recipe", {})}
    trainer = tiny.make_trainer(folder, reference, recipe, logging_steps=1, save_strategy="no", **changes)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_losses_over_50_compiled_steps_are_the_plain_ones(reference, tmp_path):
    """Compiled by blocks, 50 steps of training have the losses of a plain run."""
    plain = curve(tmp_path / "plain", reference)
    compiled = curve(tmp_path / "compiled", reference, torch_compile_backend="aot_eager")
    assert len(plain) == 50
    assert compiled == pytest.approx(plain, abs=2e-4)
    assert graphs() > 0


@pytest.mark.slow
def test_generated_code_gives_the_plain_losses(reference, tmp_path):
    """With the default backend too, and with all that trains fast together: chunks and recomputed activations."""
    plain = curve(tmp_path / "plain", reference, activation_checkpointing=True)
    recipe = {"loss": "chunked"}
    compiled = curve(tmp_path / "compiled", reference, recipe=recipe, torch_compile=True, activation_checkpointing=True)
    assert compiled == pytest.approx(plain, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_compiled_run_goes_on_to_the_same_bits(processes, reference, tmp_path):
    """SIGKILL in round 2 of a run with compiled blocks, the same command again: an uninterrupted run's weights."""
    settings = {
        "reference": reference,
        "result": str(tmp_path / "result.json"),
        "args": {"torch_compile_backend": "aot_eager"},
    }
    whole = run_program({**settings, "output_dir": str(tmp_path / "whole")}, processes)
    run_program({**settings, "output_dir": str(tmp_path / "cut"), "kill_at": 14}, processes, check=False)
    resumed = run_program({**settings, "output_dir": str(tmp_path / "cut")}, processes)
    assert resumed == whole
    assert whole["world_size"] == processes
