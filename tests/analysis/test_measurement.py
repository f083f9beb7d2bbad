"""A model is measured as it is, whatever it is, and left as it was."""

import copy
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lazy_models import HEADS, LAYERS, VOCABULARY, collapse_layers, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from inheritune_hf.analysis import CollapseReport, approximate_rank, measure_collapse
from inheritune_hf.analysis import measurement as measurement_module
from inheritune_hf.analysis.collapse import attention_entropy, column_mass, sink_share, uniform_attention
from inheritune_hf.analysis.measurement import random_twin
from inheritune_hf.records import decode, encode

sys.path.insert(0, str(Path(__file__).parents[1] / "students"))
from families import CASES, NEEDY

OnGpu = SimpleNamespace(device=torch.device("cuda", 0))


def fast(model, sequences, **changes):
    return measure_collapse(model, sequences, **{"controls": False, "blocks": False, **changes})


def attentions_of(model, sequences):
    """The probabilities that the model itself returns."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        return eager(sequences, output_attentions=True).attentions


def weights_hash(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.float().numpy().tobytes())
    return digest.hexdigest()


def test_scores_are_those_of_the_models_attention(model, sequences):
    """Ranks, masses, entropy and sink are those of the probabilities that an eager model returns."""
    report = fast(model, sequences)
    assert report.depth == LAYERS
    for layer, attention in enumerate(attentions_of(model, sequences)):
        for tau in report.shares:
            assert report.ranks(layer, tau).tolist() == approximate_rank(attention, tau).tolist()
        assert report.layers[layer].sink == pytest.approx(attention[..., 1:, 0].mean((0, 2)).tolist(), abs=1e-5)
    assert report.max_ranks()[0] == report.ranks(0).mean(0).max()
    assert report.avg_rank() == pytest.approx(np.mean(report.max_ranks()))
    assert report.avg_masses()[0] == report.masses(0).mean()


def test_a_model_forced_to_one_column_is_lazy_exactly_there(collapsed, sequences):
    """Layers whose heads were forced to one column are lazy by the paper's definition, and no other layer is."""
    report = fast(collapsed, sequences)
    assert report.lazy_layers() == [2, 4, 5]
    assert report.lazy_layers(0.5) == [2, 4, 5]
    for layer in (2, 4, 5):
        assert report.avg_masses()[layer] == 1
        assert report.layers[layer].sink == pytest.approx([1.0] * HEADS, abs=1e-4)


def test_controls(model, sequences):
    """The random twin is measured on the same sequences, uniform attention is that of the same length."""
    report = measure_collapse(model, sequences, blocks=False)
    assert report.uniform.ranks[report.shares.index(0.9)] == int(
        approximate_rank(torch.ones(24, 24).tril() / torch.arange(1, 25)[:, None])
    )
    # Fresh weights are small, so that every query looks at everything nearly alike.
    assert set(report.max_ranks(random=True)) == {float(report.uniform.ranks[report.shares.index(0.9)])}
    twins = report.random[0].masses[report.shares.index(0.9)]
    assert np.mean(twins) > report.uniform.masses[report.shares.index(0.9)] - 3
    assert fast(model, sequences).random == ()


def test_sliding_layers_have_a_control_of_their_own(sequences):
    """Sliding layers are compared with uniform attention within their window, where that is narrower."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma2", num_hidden_layers=2, sliding_window=6, head_dim=8, num_key_value_heads=1, **shape
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    report = fast(model, sequences[:4])
    assert [item.kind for item in report.layers] == ["sliding_attention", "attention"]
    assert [report.uniform_of(layer).window for layer in range(2)] == [6, None]
    for layer, window in ((0, 6), (1, None)):
        attention, control = uniform_attention(24, window), report.uniform_of(layer)
        assert control.ranks == tuple(int(approximate_rank(attention, tau)) for tau in report.shares)
        assert control.masses == tuple(int(column_mass(attention, eta)) for eta in report.shares)
        assert control.entropy == pytest.approx(float(attention_entropy(attention)))
        assert control.sink == pytest.approx(float(sink_share(attention)))
    assert report.sliding.ranks[2] > report.uniform.ranks[2]
    assert decode(CollapseReport, json.loads(json.dumps(encode(report))), "report") == report
    # The window holds all of a shorter sequence.
    short = fast(model, sequences[:4, :6])
    assert short.sliding is None
    assert short.uniform_of(0) == short.uniform


def test_the_twin_of_a_spread_model_stays_in_main_memory(model, monkeypatch):
    """A model on several devices has a twin whose parts go to the device of the inputs only while they run."""
    moved = []
    monkeypatch.setattr(measurement_module, "cpu_offload", lambda twin, device: moved.append(device) or twin)
    spread = copy.deepcopy(model)
    assert random_twin(spread).device.type == "cpu"
    spread.hf_device_map = {"transformer.wte": 0, "transformer.h": "cpu"}
    monkeypatch.setattr(spread, "get_input_embeddings", lambda: SimpleNamespace(parameters=lambda: iter([OnGpu])))
    assert random_twin(spread).device.type == "cpu"
    assert moved == [torch.device("cuda", 0)]


def test_model_is_left_as_it_was(model, sequences):
    """Weights, mode, hooks, blocks, gradients, config and the random state are those of before."""
    lent = copy.deepcopy(model).train()
    lent.transformer.h[1].eval()
    modes = [module.training for module in lent.modules()]
    blocks, before, config = list(lent.transformer.h), weights_hash(lent), lent.config.to_dict()
    random = torch.get_rng_state()
    measure_collapse(lent, sequences)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in lent.modules()] == modes
    assert list(lent.transformer.h) == blocks
    assert weights_hash(lent) == before
    assert lent.config.to_dict() == config
    assert all(parameter.grad is None and parameter.requires_grad for parameter in lent.parameters())


def test_model_is_left_as_it_was_after_an_exception(model, sequences, monkeypatch):
    """So it is if measuring is interrupted in the middle of the attention, or of the blocks."""
    lent = copy.deepcopy(model).train()
    blocks = list(lent.transformer.h)

    def hooks():
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lent.modules()]

    hooked = hooks()

    def stop(*_):
        raise KeyboardInterrupt

    for name in ("score_attention", "influence.sequence_sums"):
        with monkeypatch.context() as patch:
            owner, _, attribute = name.rpartition(".")
            target = getattr(measurement_module, owner) if owner else measurement_module
            calls = iter([False] * 8 + [True])
            original = getattr(target, attribute)
            patch.setattr(target, attribute, lambda *x, o=original, c=calls: stop() if next(c) else o(*x))
            with pytest.raises(KeyboardInterrupt):
                measure_collapse(lent, sequences)
        assert list(lent.transformer.h) == blocks
        assert all(module.training for module in lent.modules())
        assert hooks() == hooked


def test_a_model_is_measured_in_its_own_precision(sequences):
    """A model in bfloat16 stays in bfloat16, and its scores are finite."""
    model = tiny_model().to(torch.bfloat16)
    report = measure_collapse(model, sequences[:4])
    assert all(item.heads == HEADS for item in report.layers)
    assert model.dtype == torch.bfloat16
    assert np.isfinite(report.blocks.loss)


def test_spread_over_devices(model, sequences, tmp_path):
    """A model that is partly on disk (`device_map`) gives what the whole one gives, and stays where it was."""
    model.save_pretrained(tmp_path / "model")
    parts = {f"transformer.h.{layer}": "disk" if layer > 3 else "cpu" for layer in range(LAYERS)}
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu", "transformer.ln_f": "cpu"}
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map={**places, **parts, "lm_head": "cpu"}, offload_folder=tmp_path / "disk"
    )
    report, whole = measure_collapse(spread, sequences[:8]), measure_collapse(model, sequences[:8])
    assert [item.ranks for item in report.layers] == [item.ranks for item in whole.layers]
    assert report.blocks.skipped == pytest.approx(whole.blocks.skipped, abs=1e-6)
    assert spread.transformer.h[5].attn.c_attn.weight.is_meta


def test_hybrids_report_what_has_no_softmax_attention(sequences):
    """In a hybrid, layers without softmax attention have no rank, are named, and count in no average."""
    config = AutoConfig.for_model(
        "lfm2",
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=4,
        intermediate_size=32,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    report = measure_collapse(AutoModelForCausalLM.from_config(config).eval(), sequences[:30])
    assert [item.kind for item in report.layers] == ["conv", "attention", "conv", "attention"]
    ranks = report.max_ranks()
    assert ranks[0] is None
    assert ranks[2] is None
    assert report.avg_rank() == pytest.approx((ranks[1] + ranks[3]) / 2)
    assert report.max_rank_intervals()[0] is None
    assert report.avg_masses()[0] is None
    assert report.ranks(0).shape == report.masses(0).shape == (30, 0)
    assert set(report.to_pandas()["layer"]) == {1, 3}
    assert decode(CollapseReport, json.loads(json.dumps(encode(report))), "report") == report


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), NEEDY)
def test_every_kind_of_hybrid_is_measured(kind, number, sequences):
    """Layers have ranks exactly where they have softmax attention, and each is skipped, alone or up to its depth."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **CASES[kind][number])
    report = measure_collapse(AutoModelForCausalLM.from_config(config).eval(), sequences[:8])
    kinds = getattr(config, "layer_types", None) or ["attention"] * 6
    without = {layer for layer, item in enumerate(kinds) if item in ("conv", "linear_attention", "mlp", "moe")}
    assert {layer for layer, rank in enumerate(report.max_ranks()) if rank is None} == without
    assert {item.layer for item in report.random if not item.heads} == without
    assert {item.layer for item in report.maps} <= set(range(6)) - without
    assert np.isfinite([*report.blocks.skipped, *report.blocks.by_depth, *report.blocks.influence]).all()
    assert report.blocks.by_depth[6] == report.blocks.loss


def test_scores_are_cached(model, sequences, tmp_path, monkeypatch):
    """A path gives what the model gives, and again without loading it; other shares, data or weights are measured."""
    path, loads, load = tmp_path / "model", [], measurement_module.load_model
    model.save_pretrained(path)
    cached = {"cache_dir": tmp_path / "scores"}
    first, same = fast(path, sequences, **cached), fast(model, sequences)
    assert first == dataclasses.replace(same, model=str(path), weights=first.weights)
    monkeypatch.setattr(measurement_module, "load_model", lambda *x, **y: loads.append(x) or load(*x, **y))
    assert fast(path, sequences, **cached) == first
    assert loads == []
    assert fast(path, sequences, shares=(0.5,), **cached).shares == (0.5,)
    fast(path, sequences[:-1], **cached)
    measure_collapse(path, sequences, blocks=False, **cached)
    tiny_model(seed=1).save_pretrained(path)
    assert fast(path, sequences, **cached) != first
    assert len(loads) == 4


def test_unseen_attention_is_an_error(model, sequences, monkeypatch):
    """A layer that has attention of which nothing was seen is an error that says what to do."""
    monkeypatch.setattr(measurement_module, "watch_attention", lambda model, seen: torch.no_grad())
    with pytest.raises(RuntimeError, match=r"Layer 0 of GPT2LMHeadModel has attention .* attn_implementation='eager'"):
        fast(model, sequences[:2])


def test_two_attentions_in_a_layer_are_refused(model, sequences, monkeypatch):
    """A layer that attends twice has more than one rank."""
    lent = copy.deepcopy(model)
    inner = lent.transformer.h[1].attn.forward
    monkeypatch.setattr(lent.transformer.h[1].attn, "forward", lambda *x, **y: (inner(*x, **y), inner(*x, **y))[0])
    with pytest.raises(RuntimeError, match="Layer 1 attends more than once"):
        fast(lent, sequences[:2])


def test_maps_of_chosen_heads(model, sequences, tmp_path):
    """A head's map is its mean attention over the first three sequences; what is cached stays as it is."""
    folder = tmp_path / "scores"
    first = fast(model, sequences, cache_dir=folder)
    chosen = fast(model, sequences, cache_dir=folder, heads=[(3, 1), (0, 0)])
    assert [(item.layer, item.head) for item in chosen.maps] == [(3, 1), (0, 0)]
    assert dataclasses.replace(chosen, maps=first.maps) == first == fast(model, sequences, cache_dir=folder)
    wanted = attentions_of(model, sequences[:3])[3][:, 1].mean(0)
    torch.testing.assert_close(torch.tensor(chosen.maps[0].weights), wanted, atol=1e-4, rtol=0)
    for head in ((LAYERS, 0), (0, HEADS), (0, -1)):
        with pytest.raises(ValueError, match=rf"no softmax attention in layer {head[0]}, head {head[1]} of GPT2LM"):
            fast(model, sequences, cache_dir=folder, heads=[head])


def lazy_layers(repository, cache, sequences, **where):
    """Measure what is on the Hub; returns the lazy layers and the fingerprint of the weights."""
    options = {"controls": False, "blocks": False, "cache_dir": cache, "dtype": torch.float32}
    report = measure_collapse(repository, torch.tensor(sequences), **options, **where)
    return report.lazy_layers(), report.weights


@pytest.fixture
def commits(hub, tmp_path):
    """Two commits of one repository: an ordinary model, then one whose last layers have collapsed."""
    found = []
    for name, layers in (("first", ()), ("second", (4, 5))):
        collapse_layers(tiny_model(), layers).save_pretrained(tmp_path / name)
        found.append(hub.add("me/measured", tmp_path / name))
    return found


def test_a_revision_of_the_hub_is_measured(commits, hub, on_hub, sequences, tmp_path):
    """Each revision has its own scores; asked for again, nothing is loaded."""

    def lazy_at(**where):
        return on_hub(lazy_layers, "me/measured", tmp_path / "scores", sequences[:8].tolist(), **where)

    newest, first = lazy_at(), lazy_at(revision=commits[0])
    assert newest[0] == [4, 5]
    assert first[0] == []
    assert newest[1] != first[1]
    hub.clear()
    assert lazy_at(revision=commits[0]) == first
    assert not any(entry["path"].endswith(".safetensors") for entry in hub.log)
