"""`inheritune compare`: what its exit status says."""

import os
import signal

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
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ("" if status else f"saved in    {tmp_path}\nnext        inheritune report {tmp_path}\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_sigterm_ends_it_as_ctrl_c_does(monkeypatch, capsys, tmp_path):
    """While data are read SIGTERM interrupts, with status 75; a forked worker just ends, and nothing is left behind."""
    before = signal.getsignal(signal.SIGTERM)
    ended = []

    def run(*_, **__):
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiments, "run_comparison", run)
    assert main(["compare", "--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path)]) == 75
    assert ended == [-signal.SIGTERM]
    assert "interrupted; the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("setting", ["dataloader_num_workers: [1]", "output_dir: 3", "seed: true", "keep_layers: 0.5"])
def test_a_setting_of_another_type_is_named(capsys, tmp_path, setting):
    """What YAML reads as another type than the setting's is a message that names it."""
    (tmp_path / "recipe.yaml").write_text(f"reference: {tmp_path}\nuse_cpu: true\n{setting}\n")
    try:
        status = main(["train", "--config", str(tmp_path / "recipe.yaml")])
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    assert f"{setting.partition(':')[0]} must be" in capsys.readouterr().err
