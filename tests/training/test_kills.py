"""A kill at any moment: the same command again, the same final bits."""

import pytest
import tiny
from test_trainer import run_program

RECIPES = {
    "reinherit": {"steps_per_round": 4, "max_layers": 2},
    "continue-keep": {"steps_per_round": 4, "max_layers": 2, "growth": "continue", "optimizer_state": "keep"},
}
ARGUMENTS = {"save_steps": 2, "eval_steps": 2, "save_total_limit": 2}


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    return tiny.write_reference(tmp_path_factory.mktemp("reference") / "tiny", steps=60)


@pytest.fixture(scope="session")
def whole_runs(reference, tmp_path_factory):
    """Uninterrupted runs, with the moments at which one could have been killed."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for name, recipe in RECIPES.items():
        moments = folder / f"{name}.moments"
        settings = {
            "reference": reference,
            "recipe": {**recipe, "target": "reference", "tolerance": 0.0, "confidence": None},
            "args": {**ARGUMENTS, "learning_rate": 1e-3},
            "moments": str(moments),
            "result": str(folder / f"{name}.json"),
        }
        result = run_program({**settings, "output_dir": str(folder / name), "moment": 0})
        found[name] = (settings, result, moments.read_text().splitlines())
    return found


def check(whole_runs, tmp_path, name, share):
    settings, whole, moments = whole_runs[name]
    at = 1 + int(share * (len(moments) - 1))
    settings = {**settings, "output_dir": str(tmp_path / "run"), "moments": str(tmp_path / "moments")}
    killed = run_program({**settings, "moment": at}, check=False)
    assert killed.returncode == -9, f"moment {moments[at - 1]} did not come: {killed.stderr[-1000:]}"
    # A run killed after its last step has nothing left to train, so it sees no parameters in training.
    after = {**run_program(settings), "sharded": whole["sharded"]}
    assert after == whole, f"killed at moment {moments[at - 1]}"


def test_runs_have_many_moments(whole_runs):
    """Writes, renames, evaluations and the growth between rounds are all among them."""
    for _, result, moments in whole_runs.values():
        assert result["layers"] == [1, 2]
        assert len(moments) > 100
        for word in ("before evaluation", "during save", "os.rename", "open .state.json.tmp", "round-02"):
            assert any(word in moment for moment in moments), word


@pytest.mark.parametrize("share", [0.2, 0.45, 0.6, 0.95])
def test_kill_at_some_moments(whole_runs, tmp_path, share):
    """Kills spread over the run end with the bits, the moments and the log of an uninterrupted one."""
    check(whole_runs, tmp_path, "reinherit", share)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("share", [number / 20 for number in range(21)])
def test_kill_at_any_moment(whole_runs, tmp_path, name, share):
    """Forty-two kills, from the first moment to the last."""
    check(whole_runs, tmp_path, name, share)
