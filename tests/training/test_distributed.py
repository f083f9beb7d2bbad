"""Several processes: how they are started, what of sharding is refused, and that growth and kills change nothing."""

import signal
from types import SimpleNamespace

import pytest
import tiny
import torch
from accelerate.utils import DistributedType
from test_growth_modes import CONTINUE, EVERYTHING
from test_trainer import run_program

from inheritune_hf import InherituneConfig
from inheritune_hf.training.distributed import REFUSED_SHARDING, check_launch, check_sharding
from inheritune_hf.training.expansion import complete_state, parameter_names, rekeyed

KEEP = {**CONTINUE, "optimizer_state": "keep"}
FSDP = {"fsdp": True, "per_device_train_batch_size": 2, "save_steps": 2}


def zero(stage, **changes):
    """Arguments of two processes with DeepSpeed; the last two settings are there for processors and for stage 3."""
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
    }
    return {"deepspeed": config, "per_device_train_batch_size": 2, "save_steps": 2, **changes}


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny", steps=60)


LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_one_process_where_several_were_asked_for_is_an_error():
    """What accelerate's launcher leaves when it starts one process for several is an error that says what to do."""
    with pytest.raises(ValueError, match=r"asked for several processes but started one.*torchrun --nproc_per_node N"):
        check_launch(LAUNCHED, 1)


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1),
        ({"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"}, 1),
        ({**LAUNCHED, "WORLD_SIZE": "1"}, 1),
        ({**LAUNCHED, "OMPI_COMM_WORLD_SIZE": "1"}, 1),
        ({**LAUNCHED, "WORLD_SIZE": "2"}, 2),
    ],
)
def test_other_launches_are_fine(environment, processes):
    """One process by python, by a launcher that was asked for one, or by a scheduler, and several processes, pass."""
    check_launch(environment, processes)


def fsdp(**changes):
    plugin = {"fsdp_version": 2, "state_dict_type": "StateDictType.FULL_STATE_DICT", "cpu_ram_efficient_loading": False}
    return SimpleNamespace(distributed_type=DistributedType.FSDP, fsdp_plugin=SimpleNamespace(**{**plugin, **changes}))


def deepspeed(stage=2, **changes):
    config = {"zero_optimization": {"stage": stage}, **changes}
    return SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED, deepspeed_plugin=SimpleNamespace(deepspeed_config=config)
    )


ON_CPU = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
MEGATRON = SimpleNamespace(distributed_type=DistributedType.MEGATRON_LM)
REFUSALS = {
    "fsdp without a device": (ON_CPU, {}, "ACCELERATE_USE_FSDP"),
    "deepspeed without an engine": (ON_CPU, {}, "ACCELERATE_USE_DEEPSPEED"),
    "fsdp_version": (fsdp(fsdp_version=1), {}, None),
    "fsdp_state_dict_type": (fsdp(state_dict_type="StateDictType.SHARDED_STATE_DICT"), {}, None),
    "fsdp_cpu_ram_efficient_loading": (fsdp(cpu_ram_efficient_loading=True), {}, None),
    "deepspeed with optimizer_state 'keep'": (deepspeed(), KEEP, None),
    "deepspeed with lr_schedule 'continue'": (deepspeed(), {"lr_schedule": "continue"}, None),
    "scheduler in the DeepSpeed configuration": (deepspeed(scheduler={"type": "WarmupLR"}), {}, None),
    "stage3_gather_16bit_weights_on_model_save": (deepspeed(stage=3), {}, None),
    "distributed_type": (MEGATRON, {}, None),
}


@pytest.mark.parametrize("name", sorted(REFUSED_SHARDING))
def test_refused_sharding_says_why(name, monkeypatch):
    """What of FSDP and DeepSpeed cannot work with rounds is refused by name, with its reason, and nothing else is."""
    state, recipe, variable = REFUSALS[name]
    if variable:
        monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match="cannot work with growth on several devices") as error:
        check_sharding(state, InherituneConfig(**recipe))
    assert str(error.value).splitlines()[1:] == [f"- {name}: {REFUSED_SHARDING[name][1]}."]


@pytest.mark.parametrize("state", [ON_CPU, fsdp(), deepspeed(1), deepspeed(2)])
def test_other_sharding_is_taken(state):
    """Several processes, FSDP2 with whole checkpoints, and ZeRO for fresh optimizers are taken."""
    check_sharding(state, InherituneConfig())


def test_optimizer_states_by_name_are_complete():
    """An optimizer's state goes from names to places and back; what has none begins with zeros of the right shapes."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = [item for item in model.parameters() if item.dim() == 2]
    biases = [item for item in model.parameters() if item.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": biases}], lr=1e-2)
    saved = {
        "state": {"0.weight": {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 2), "exp_avg_sq": torch.ones(3, 2)}},
        "param_groups": [{"params": ["0.weight", "1.weight"], "lr": 0.5}, {"params": ["0.bias", "1.bias"], "lr": 0.1}],
    }
    names = parameter_names(optimizer, model)
    places = rekeyed(saved, {name: place for place, name in enumerate(names)})
    assert places["param_groups"] == [{"params": [0, 1], "lr": 0.5}, {"params": [2, 3], "lr": 0.1}]
    assert list(places["state"]) == [0]
    named = rekeyed(places, dict(enumerate(names)))
    assert named["param_groups"] == saved["param_groups"]
    state = complete_state(named["state"], names, optimizer)
    assert state["0.weight"] is saved["state"]["0.weight"]
    for name, parameter in model.named_parameters():
        assert state[name]["exp_avg"].shape == parameter.shape
        assert state[name]["step"] == (3 if name == "0.weight" else 0)
    assert not state["1.bias"]["exp_avg_sq"].any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("args", "recipe"), [(FSDP, KEEP), (zero(3), {})], ids=["fsdp", "zero3"])
def test_sharded_rounds_equal_those_that_are_not(tmp_path, args, recipe):
    """Two processes with parts of parameters: losses, layers and tokens are those of one process with all of them."""
    reference = tiny.write_reference(tmp_path / "reference", steps=60, dropout=0.0)
    recipe = {**recipe, "target": "reference", "tolerance": 0.0, "confidence": None, "max_layers": 2}
    one = tiny.make_trainer(tmp_path / "one", reference, recipe)
    one.train()
    settings = {"reference": reference, "result": str(tmp_path / "result.json"), "recipe": recipe, "args": args}
    two = run_program({**settings, "output_dir": str(tmp_path / "two")}, processes=2)
    assert (two["world_size"], two["sharded"]) == (2, [True])
    assert two["layers"] == [item.layers for item in one.rounds] == [1, 2]
    assert two["tokens"] == [item.tokens for item in one.rounds]
    assert two["reference"] == pytest.approx(one.reference_validation.loss, abs=1e-5)
    assert two["losses"] == pytest.approx([item.loss for item in one.rounds], abs=1e-3)


RUNS = {
    "fsdp-reinherit": ({}, FSDP, [10, 14]),
    "fsdp-continue-keep": (KEEP, FSDP, [10, 14]),
    "fsdp-continue-rates": ({**CONTINUE, "lr_schedule": "continue"}, FSDP, [14]),
    "fsdp-everything": (EVERYTHING, FSDP, [14]),
    "fsdp-identity": ({**KEEP, "new_blocks": "identity"}, FSDP, [14]),
    "zero1-reinherit": ({}, zero(1), [14]),
    "zero2-reinherit": ({}, zero(2), [14]),
    "zero3-reinherit": ({}, zero(3), [10, 14]),
    "zero3-continue": (CONTINUE, zero(3), [14]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RUNS))
def test_killed_sharded_runs_go_on_to_the_same_bits(reference, tmp_path, name):
    """Two processes of FSDP2 or ZeRO, killed in round 2: weights, optimizer state and log are those of a whole run."""
    recipe, args, kills = RUNS[name]
    settings = {
        "reference": reference,
        "result": str(tmp_path / "result.json"),
        "recipe": {**recipe, "max_layers": 2},
        "args": {**args, "max_steps": 20},
    }
    whole = run_program({**settings, "output_dir": str(tmp_path / "whole")}, processes=2)
    assert (whole["world_size"], whole["layers"]) == (2, [1, 2])
    assert whole["sharded"] == [name.startswith(("fsdp", "zero3"))]
    for kill_at in kills:
        cut = {**settings, "output_dir": str(tmp_path / f"cut-{kill_at}")}
        killed = run_program({**cut, "kill_at": kill_at}, processes=2, check=False)
        assert not isinstance(killed, dict)
        assert run_program(cut, processes=2) == whole, f"killed at step {kill_at}"


@pytest.mark.slow
def test_interrupted_sharded_run_is_saved_and_goes_on(reference, tmp_path):
    """SIGTERM to two processes of FSDP2 finishes the step on both and saves; the run goes on to the same bits."""
    settings = {"reference": reference, "result": str(tmp_path / "r.json"), "args": FSDP}
    whole = run_program({**settings, "output_dir": str(tmp_path / "whole")}, processes=2)
    settings["output_dir"] = str(tmp_path / "cut")
    cut = run_program({**settings, "kill_at": 13, "signal": int(signal.SIGTERM)}, processes=2)
    assert cut["outcome"] == "interrupted"
    assert (tmp_path / "cut" / "checkpoint-13").is_dir()
    resumed = run_program(settings, processes=2)
    assert (resumed["weights"], resumed["optimizer"]) == (whole["weights"], whole["optimizer"])


@pytest.mark.slow
@pytest.mark.parametrize("args", [{"per_device_train_batch_size": 2}, FSDP], ids=["ddp", "fsdp"])
def test_main_process_decides_within_rounds(reference, tmp_path, args):
    """With match_at 'evaluation' a process that judges otherwise goes the main process's way, and nobody waits."""
    recipe = {"target": 3.0, "confidence": None, "steps_per_round": 40, "match_at": "evaluation", "max_layers": 2}
    settings = {"reference": reference, "result": str(tmp_path / "r.json"), "recipe": recipe, "args": args}
    agreed = run_program({**settings, "output_dir": str(tmp_path / "agreed")}, processes=2)
    settings["disagree"] = True
    assert run_program({**settings, "output_dir": str(tmp_path / "other")}, processes=2) == agreed
    assert agreed["outcome"] == "matched"
    assert agreed["history"][-1]["step"] % 40


@pytest.mark.slow
@pytest.mark.parametrize("args", [FSDP, zero(2)], ids=["fsdp", "zero2"])
def test_killed_with_accumulation_reduced_precision_and_workers(reference, tmp_path, args):
    """The same bits with accumulation of 2, bfloat16 and data workers, while the student is sharded."""
    args = {**args, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "bf16": True}
    settings = {
        "reference": reference,
        "result": str(tmp_path / "result.json"),
        "recipe": {"max_layers": 2},
        "args": {**args, "dataloader_num_workers": 2},
    }
    whole = run_program({**settings, "output_dir": str(tmp_path / "whole")}, processes=2)
    cut = {**settings, "output_dir": str(tmp_path / "cut")}
    killed = run_program({**cut, "kill_at": 14}, processes=2, check=False)
    assert not isinstance(killed, dict)
    assert run_program(cut, processes=2) == whole
    assert (whole["world_size"], whole["layers"]) == (2, [1, 2])
