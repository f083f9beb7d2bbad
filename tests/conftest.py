"""Every test: offline, one torch thread, caches and outputs in temporary folders."""

import os
import sys
from contextlib import contextmanager

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """Keep what libraries cache out of the home folder."""
    import datasets
    import evaluate
    import transformers

    folder = tmp_path_factory.mktemp("caches")
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    evaluate.config.HF_METRICS_CACHE = str(folder / "metrics")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    return folder


#: Signals that tests sent to processes, this one included.
sent = []
sys.addaudithook(lambda event, args: sent.append(args) if event == "os.kill" else None)


@pytest.fixture(autouse=True)
def signals_from_outside(monkeypatch):
    """End the session when a time limit's SIGTERM comes: a trainer under test would take it for one of its own test."""
    from inheritune_hf.training.callbacks import RoundCallback

    listening = RoundCallback.listening

    @contextmanager
    def guarded(callback):
        before = len(sent)
        with listening(callback):
            yield
        if callback._asked and len(sent) == before:
            pytest.exit("a signal from outside came while a trainer listened for one", returncode=143)

    monkeypatch.setattr(RoundCallback, "listening", guarded)
