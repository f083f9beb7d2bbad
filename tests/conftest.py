"""Every test: offline, one torch thread, caches and outputs in temporary folders."""

import logging
import os
import shutil
import tempfile

os.environ["HF_HOME"] = tempfile.mkdtemp()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed says on standard output that it found no other

import pytest
import torch
from hub_process import LocalHub, client_process

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quiet_again():
    """Take back the level that a command sets for this package's log: `caplog` sees all of it in the next test."""
    yield
    logging.getLogger("inheritune_hf").setLevel(logging.NOTSET)


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
    yield folder
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def hub_and_client(tmp_path_factory):
    """A Hub in a process of its own, and a function that runs another one in a process that knows this Hub alone."""
    hub = LocalHub()
    with client_process(hub, tmp_path_factory.mktemp("hf_home")) as call:
        yield hub, call
    hub.stop()


@pytest.fixture
def hub(hub_and_client):
    """The local Hub, without faults and with an empty log."""
    hub_and_client[0].clear()
    return hub_and_client[0]


@pytest.fixture
def on_hub(hub_and_client, hub):
    """Run a function of a test module, with arguments, where `HF_ENDPOINT` is the local Hub."""
    return hub_and_client[1]
