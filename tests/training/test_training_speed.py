"""What makes training fast changes no result: blocks compiled one by one, fewer collections, slow settings named."""

import gc
import inspect
import logging
import weakref

import pytest
import tiny
import torch
from test_trainer import run_program
from torch._dynamo.utils import counters
from transformers import GPT2LMHeadModel, SmolLM3Config, SmolLM3ForCausalLM, TrainerCallback
from transformers.utils.import_utils import enable_tf32

from inheritune_hf.training.speed import compile_blocks, frozen_gc, slow_settings

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


@pytest.mark.skipif(
    "recompile_limit" not in inspect.signature(torch.compile).parameters, reason="PyTorch gives up after eight graphs"
)
def test_attention_scaled_by_depth_takes_a_graph_for_each_layer():
    """Twelve layers, each with its own scale, are all compiled, for two shapes of batches."""
    config = tiny.reference_model(12, dropout=0.0).config
    config.scale_attn_by_inverse_layer_idx = True
    model = GPT2LMHeadModel(config).train()
    plain = step(model)
    compile_blocks(model, EAGER)
    torch.testing.assert_close(step(model), plain)
    step(model, 3)
    assert graphs() == 24


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


class Ring:
    """A cycle that only a collection can free."""

    def __init__(self):
        self.me = self


def test_what_is_made_within_is_collected():
    """A cycle made and dropped within is gone after a collection; one from before is gone when it is over."""
    before = Ring()
    old = weakref.ref(before)
    with frozen_gc():
        young = weakref.ref(Ring())
        del before
        gc.collect()
        assert young() is None
        assert old() is not None
    gc.collect()
    assert old() is None


def test_released_after_an_error():
    """Nothing stays frozen when training fails."""

    @frozen_gc()
    def fail():
        raise RuntimeError(gc.get_freeze_count())

    with pytest.raises(RuntimeError) as error:
        fail()
    assert error.value.args[0] > 0
    assert not gc.get_freeze_count()


def test_what_others_froze_stays():
    """A process that froze its objects itself finds them as they were."""
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with frozen_gc():  # frozen objects that nobody needs any more may go; none is thawed, and none is added
            assert 0 < gc.get_freeze_count() <= count
        assert 0 < gc.get_freeze_count() <= count
    finally:
        gc.unfreeze()


def test_a_run_searches_only_its_own(tmp_path):
    """While rounds are trained the packages' objects are set aside; afterwards they are back."""
    reference = tiny.write_reference(tmp_path / "reference")
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(gc.get_freeze_count())

    tiny.make_trainer(tmp_path / "run", reference, {"max_layers": 2}, callbacks=[Watch()]).train()
    assert min(seen) > 10_000
    assert not gc.get_freeze_count()


@pytest.fixture
def processor(monkeypatch):
    """A CPU that multiplies the given types."""

    def able(*types):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        for name, kind in (("avx512_bf16", "bf16"), ("amx_tile", "amx"), ("amx_fp16", "fp16")):
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda kind=kind: kind in types, raising=False)

    return able


@pytest.mark.parametrize(
    ("precision", "types", "slow"),
    [
        ("no", (), False),
        ("bf16", (), True),
        ("bf16", ("bf16",), False),
        ("bf16", ("amx",), False),
        ("fp16", ("bf16", "amx"), True),
        ("fp16", ("fp16",), False),
    ],
)
def test_precision_on_a_cpu(precision, types, slow, processor):
    """A precision that the processor has no instructions for is named."""
    processor(*types)
    found = slow_settings(tiny.reference_model(1), torch.device("cpu"), precision)
    assert [line.partition(" on ")[0] for line in found] == ([precision] if slow else [])


@pytest.mark.parametrize(
    ("precision", "major", "expected"),
    [
        ("bf16", 7, "bf16 on a GPU that only imitates it; use fp16"),
        ("bf16", 8, None),
        ("no", 8, "float32 on a GPU with faster units for bf16 and TF32; use bf16, or tf32"),
        ("no", 7, None),
    ],
)
def test_precision_on_a_gpu(precision, major, expected, monkeypatch):
    """On a GPU, bfloat16 before there were units for it and plain float32 after are named."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    found = slow_settings(tiny.reference_model(1), torch.device("cuda"), precision)
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize("setting", ["Transformers", "torch"])
def test_tf32_is_not_slow(setting, monkeypatch):
    """TF32 is known for what it is, set as Transformers sets it or by torch's older function."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    before = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    try:
        if setting == "Transformers":
            enable_tf32.__wrapped__(True)  # not the cached function: that would do nothing the next time
        else:
            torch.set_float32_matmul_precision("high")
        assert slow_settings(tiny.reference_model(1), torch.device("cuda"), "no") == []
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_attention_written_out_is_named_once_and_used(tmp_path, caplog):
    """Eager attention trains as asked; one warning for all rounds names what is faster."""
    reference = tiny.write_reference(tmp_path / "reference")
    trainer = tiny.make_trainer(
        tmp_path / "run", reference, {"steps_per_round": 2}, reference_kwargs={"attn_implementation": "eager"}
    )
    with caplog.at_level(logging.WARNING, "inheritune_hf"):
        trainer.train()
    said = [message for message in caplog.messages if message.startswith("slow here")]
    assert said == ["slow here: attention written out ('eager'); use attn_implementation 'sdpa'"]
    assert trainer.student.config._attn_implementation == "eager"
    assert len(trainer.rounds) == 3


def test_written_out_attention_is_not_slow_in_bfloat16_on_a_cpu():
    """The one place where it was measured to be faster than the fused one gets no warning."""
    model = tiny.reference_model(1)
    model.set_attn_implementation("eager")
    said = ["attention written out ('eager'); use attn_implementation 'sdpa'"]
    assert slow_settings(model, torch.device("cpu"), "no") == said
    assert set(said).isdisjoint(slow_settings(model, torch.device("cpu"), "bf16"))
