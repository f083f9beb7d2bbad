"""Every test: offline, one torch thread, caches and outputs in temporary folders."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed says on standard output that it found no other

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
