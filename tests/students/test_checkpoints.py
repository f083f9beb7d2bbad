"""Only the kept tensors are read, from every layout, and broken files are named."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from safetensors import safe_open

from inheritune_hf.students import InheritedGPT2, Source, checkpoints, find_weights, open_tensors

LAYOUTS = ["safetensors", "safetensors-sharded", "bin", "bin-sharded", "legacy-bin"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def same_weights(student, reference, layers):
    """Whether every tensor of the student is the reference's tensor of the layer it came from."""
    expected = reference.state_dict()
    for name, tensor in student.state_dict().items():
        if name.startswith("transformer.h."):
            position, rest = name.removeprefix("transformer.h.").split(".", 1)
            name = f"transformer.h.{layers[int(position)]}.{rest}"
        if not torch.equal(tensor, expected[name]):
            return False
    return True


@pytest.mark.parametrize("layers", [(0, 1, 2), (1, 4, 11)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_kept_tensors(layout, layers, publish, reference):
    """Single files and shards, safetensors and .bin, without the base model's prefix, give the kept tensors exactly."""
    student = InheritedGPT2.from_pretrained(publish(layout), keep_layers=layers)
    assert same_weights(student, reference, layers)


@pytest.mark.parametrize("layout", ["safetensors-sharded", "bin-sharded"])
def test_shards_of_dropped_layers_are_not_needed(layout, publish, reference):
    """A sharded checkpoint gives a student although every shard that holds only dropped layers is gone."""
    folder = publish(layout)
    for layer in range(4, 12):
        (removed,) = folder.glob(f"*-{layer}.*")
        removed.unlink()
    assert same_weights(InheritedGPT2.from_pretrained(folder, keep_layers=4), reference, range(4))


def test_only_kept_tensors_are_read(published, reference, monkeypatch):
    """The bytes taken out of a safetensors file are those of the student's parameters, and no more."""
    read = []

    class CountedSlice:
        def __init__(self, name, inner):
            self.name, self.inner = name, inner

        def __getitem__(self, key):
            tensor = self.inner[key]
            read.append((self.name, tensor.numel() * tensor.element_size()))
            return tensor

        def get_shape(self):
            return self.inner.get_shape()

    class CountedFile:
        def __init__(self, *args, **options):
            self.file = safe_open(*args, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *exception):
            self.file.__exit__(*exception)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return CountedSlice(name, self.file.get_slice(name))

    monkeypatch.setattr(checkpoints, "safe_open", CountedFile)
    student = InheritedGPT2.from_pretrained(published, keep_layers=[0, 5])
    assert sum(size for _, size in read) == 4 * student.num_parameters()
    assert {name.split(".")[1] for name, _ in read if name.startswith("h.")} == {"0", "5"}
    assert not [name for name, _ in read if name.endswith(".attn.bias")]


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_a_student_outlives_its_file(layout, publish, reference):
    """Overwriting or truncating the reference's file in place does not change a student that was built from it."""
    folder = publish(layout)
    student = InheritedGPT2.from_pretrained(folder, keep_layers=3)
    (file,) = [path for path in folder.iterdir() if path.suffix != ".json"]
    with file.open("r+b") as stream:
        stream.write(bytes(file.stat().st_size))
    assert same_weights(student, reference, range(3))
    for tensor in [*student.parameters(), *student.buffers()]:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    with file.open("r+b") as stream:
        stream.truncate(0)
    assert same_weights(student, reference, range(3))


@pytest.mark.parametrize("layout", ["safetensors", "safetensors-sharded", "bin", "bin-sharded"])
def test_variants_are_found(layout, publish, reference):
    """`variant` chooses files such as `model.fp16.safetensors`."""
    folder = publish(layout, variant=".fp16")
    student = InheritedGPT2.from_pretrained(folder, keep_layers=2, variant="fp16")
    assert same_weights(student, reference, range(2))
    with pytest.raises(FileNotFoundError, match=r"There are no weights at .*: looked for model\.safetensors, .*"):
        InheritedGPT2.from_pretrained(folder, keep_layers=2)


def test_the_format_can_be_chosen(publish):
    """`use_safetensors` reads only the one or only the other kind of file."""
    folder = publish("bin")
    assert find_weights(Source(str(folder))).format == "bin"
    assert find_weights(Source(str(folder)), use_safetensors=False).format == "bin"
    message = r"There are no weights at .*: looked for model\.safetensors, model\.safetensors\.index\.json\. Check"
    with pytest.raises(FileNotFoundError, match=message):
        InheritedGPT2.from_pretrained(folder, keep_layers=2, use_safetensors=True)


@pytest.mark.parametrize("layout", ["safetensors-sharded", "bin-sharded"])
def test_a_missing_shard_is_named(layout, publish):
    """A shard that holds kept tensors and is not there is named."""
    folder = publish(layout)
    (removed,) = folder.glob("*-3.*")
    removed.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{removed.name} is missing at .*index\.json says that it holds tensors"
    ):
        InheritedGPT2.from_pretrained(folder, keep_layers=4)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("safetensors", r"model\.safetensors is not a complete safetensors file \(.*\)\. Download it again\."),
        ("safetensors-sharded", r"model-1\.safetensors is not a complete safetensors file"),
        ("bin", r"pytorch_model\.bin cannot be read as PyTorch weights \(.*\)\. Download it again\."),
        ("legacy-bin", r"pytorch_model\.bin cannot be read as PyTorch weights"),
    ],
)
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_truncated_file_is_named(layout, message, share, publish):
    """A file of which only a part, or nothing, arrived is named."""
    folder = publish(layout)
    (file,) = [*folder.glob("model-1.*")] or [path for path in folder.iterdir() if path.suffix != ".json"]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(OSError, match=message):
        InheritedGPT2.from_pretrained(folder, keep_layers=4)


def test_pickled_code_is_not_run(publish):
    """A .bin file that would run code is refused."""
    folder = publish("bin")

    class Harmful:
        def __reduce__(self):
            return (print, ("this code was run",))

    torch.save({"wte.weight": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(
        OSError, match=r"pytorch_model\.bin cannot be read as PyTorch weights \(Weights only load failed"
    ):
        InheritedGPT2.from_pretrained(folder, keep_layers=4)


def test_a_bin_file_of_something_else_is_refused(publish):
    """A .bin file that holds no dictionary is refused."""
    folder = publish("bin")
    torch.save(torch.zeros(2), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"pytorch_model\.bin must hold a dictionary of tensors, got a Tensor\."):
        InheritedGPT2.from_pretrained(folder, keep_layers=4)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 1}'])
def test_a_broken_index_is_named(content, publish):
    """An index of shards that cannot be read is named."""
    folder = publish("safetensors-sharded")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index\.json is not an index of shards \(a JSON file with a 'weight_map'\)"):
        InheritedGPT2.from_pretrained(folder, keep_layers=4)


def hub_cache(folder, cache, commit=COMMIT):
    """Lay `folder` out as the Hub's cache of the repository org/tiny."""
    repository = cache / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    return cache


def test_the_hub_cache_is_read_at_one_commit(publish, reference, tmp_path):
    """A Hub id is read from the cache, and the lineage holds its resolved commit and the id as given."""
    cache = hub_cache(publish("safetensors-sharded"), tmp_path / "cache")
    student = InheritedGPT2.from_pretrained("org/tiny", keep_layers=3, cache_dir=cache, local_files_only=True)
    assert same_weights(student, reference, range(3))
    assert student.config.inheritune["revision"] == COMMIT
    assert student.config.inheritune["reference"] == "org/tiny"
    assert student.name_or_path == student.config.name_or_path == "org/tiny"
    again = InheritedGPT2.from_pretrained(
        "org/tiny", keep_layers=3, config=reference.config, cache_dir=cache, local_files_only=True
    )
    assert again.config.inheritune == student.config.inheritune


def test_from_the_hub_only_what_is_needed_is_fetched(publish, reference, monkeypatch):
    """Config, index and the shards of kept layers are fetched, at the commit that the config was read at."""
    folder = publish("safetensors-sharded")
    snapshot = folder.parent / "snapshots" / COMMIT
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    fetched = []

    def fetch(repository, name, **options):
        assert repository == "org/tiny"
        assert options["token"] == "hf_x"
        if not (snapshot / name).is_file():
            raise EntryNotFoundError(name)
        fetched.append((name, options["revision"]))
        return str(snapshot / name)

    monkeypatch.setattr(checkpoints, "hf_hub_download", fetch)
    student = InheritedGPT2.from_pretrained("org/tiny", keep_layers=2, revision="v1", token="hf_x")
    assert same_weights(student, reference, range(2))
    assert fetched[0] == ("config.json", "v1")
    assert {revision for _, revision in fetched[1:]} == {COMMIT}
    shards = {name for name, _ in fetched if name.endswith(".safetensors")}
    assert shards == {"model-0.safetensors", "model-1.safetensors", "model-rest.safetensors"}
    assert student.config.inheritune["revision"] == COMMIT


def test_subfolders_are_found(publish, reference):
    """`subfolder` says where in a folder the reference is."""
    folder = publish(folder="repository/inner")
    student = InheritedGPT2.from_pretrained(folder.parent, keep_layers=2, subfolder="inner")
    assert same_weights(student, reference, range(2))


def test_a_repository_that_cannot_be_read_is_named(monkeypatch):
    """What the Hub answers about a repository that is not there, or not open, is passed on with what to do."""

    def refuse(*_args, **_options):
        response = SimpleNamespace(headers={}, request=None)
        raise RepositoryNotFoundError("401 Client Error.\nmore", response=response)

    monkeypatch.setattr(checkpoints, "hf_hub_download", refuse)
    message = r"The Hub did not give config\.json of 'org/none': 401 Client Error\. Give a folder .* needs `token`\."
    with pytest.raises(OSError, match=message):
        InheritedGPT2.from_pretrained("org/none", keep_layers=2)


def test_slices_are_opened_under_their_names_in_the_student(published):
    """Opened tensors are unread slices, renamed as wanted; what is not wanted is not there."""
    with open_tensors(find_weights(Source(str(published))), {"h.3.ln_1.weight": "h.0.ln_1.weight"}) as tensors:
        assert list(tensors) == ["h.0.ln_1.weight"]
        assert tensors["h.0.ln_1.weight"].get_shape() == [16]
    assert json.loads((published / "config.json").read_text())["n_layer"] == 12
