"""`inheritune compare`: what its exit status says."""

import pytest

from inheritune_hf import experiments
from inheritune_hf.cli import main


def answer(result):
    def run(*_, **__):
        if isinstance(result, BaseException):
            raise result
        return result

    return run


@pytest.mark.parametrize(
    ("result", "status", "said"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 75, "interrupted; the same command resumes from what is on disk"),
        (ValueError("no such data"), 1, "inheritune compare: error: no such data"),
        (OSError("No space left on device"), 1, "error: No space left"),
        (FloatingPointError("not finite"), 1, "error: not finite"),
    ],
)
def test_exit_status(monkeypatch, capsys, tmp_path, result, status, said):
    """0 says that all cells were run, 75 that the same command goes on, 1 that something is wrong, which is told."""
    monkeypatch.setattr(experiments, "run_comparison", answer(result))
    words = ["--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path)]
    assert main(["compare", *words]) == status
    assert said in capsys.readouterr().err
