"""Only the kept tensors are read, from every layout, and broken files are named."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors.torch import save_file

from inheritune_hf.students import InheritedGPT2, Source, checkpoints, find_weights
from inheritune_hf.students.checkpoints import open_bin, open_safetensors, open_tensors

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["safetensors", "safetensors-sharded"])
def test_only_kept_tensors_are_read(layout, dtype, publish, monkeypatch):
    """The bytes asked of safetensors files are those of the student's parameters, whatever type it is loaded in."""
    asked = []
    fill = checkpoints._fill
    monkeypatch.setattr(
        checkpoints, "_fill", lambda file, flat, path: (asked.append(flat.nbytes), fill(file, flat, path))
    )
    student = InheritedGPT2.from_pretrained(publish(layout), keep_layers=[0, 5], dtype=dtype)
    assert student.dtype is dtype
    assert sum(asked) == 4 * student.num_parameters()


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what a process reads")
def test_opening_a_zip_file_does_not_read_it(tmp_path):
    """Of a zip .bin with one small and one large tensor only the small one is read, if only it is asked for."""

    def bytes_read():
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counts["rchar"])

    torch.save({"kept": torch.arange(3), "dropped": torch.zeros(2**22)}, tmp_path / "pytorch_model.bin")
    before = bytes_read()
    opened = open_bin(tmp_path / "pytorch_model.bin", weights_only=True)
    assert torch.equal(opened["kept"][...], torch.arange(3))
    assert bytes_read() - before < opened["dropped"].nbytes / 8


@pytest.mark.parametrize("piece", [8, 40, 4096])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_types_change_piece_by_piece(layout, dtype, piece, publish, reference, monkeypatch):
    """A tensor that is converted while it is read is the converted tensor, however small the pieces."""
    monkeypatch.setattr(checkpoints, "_PIECE", piece)
    folder = publish(layout)
    if layout == "bin":
        opened = open_bin(folder / "pytorch_model.bin", weights_only=True)
    else:
        opened = open_safetensors(folder / "model.safetensors")
    for name, unread in opened.items():
        if not name.endswith("attn.bias"):
            expected = reference.state_dict()[f"transformer.{name}"]
            assert torch.equal(unread.in_dtype(dtype)[...], expected.to(dtype))
            assert torch.equal(unread[0], expected[0])


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


@pytest.mark.parametrize("name", ["/etc/model", "../model", "a/../../b", "a\\b", "a\nb", "", "a//b", ".."])
def test_names_of_shards_stay_in_their_folder(name, publish):
    """A shard whose name leads out of the folder is refused before anything is looked for there."""
    folder = publish("safetensors-sharded")
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["h.3.ln_1.bias"] = name
    index.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"names .* as a shard, which is no name of a file beside it\."):
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


def test_tensors_are_opened_under_their_names_in_the_student(published):
    """Opened tensors are unread, and named as chosen; what is not chosen is not there."""
    found = open_tensors(find_weights(Source(str(published))), lambda _: {"h.3.ln_1.weight": "h.0.ln_1.weight"})
    assert list(found) == ["h.0.ln_1.weight"]
    unread = found["h.0.ln_1.weight"]
    assert unread.get_shape() == [16]
    assert unread.nbytes == 64
    assert unread.in_dtype(torch.int32).dtype is torch.float32
    assert json.loads((published / "config.json").read_text())["n_layer"] == 12


def test_large_tensors_are_read_whole(tmp_path):
    """A tensor of many pieces is read exactly, in its type and in another."""
    stored = torch.arange(3 * 2**20, dtype=torch.float32).reshape(3, -1)
    save_file({"a": torch.ones(5), "b": stored}, tmp_path / "model.safetensors")
    unread = open_safetensors(tmp_path / "model.safetensors")["b"]
    assert torch.equal(unread[...], stored)
    assert torch.equal(unread.in_dtype(torch.bfloat16)[...], stored.bfloat16())


def test_whole_numbers_keep_their_type(tmp_path):
    """A tensor of whole numbers is not turned into floating point."""
    save_file({"ids": torch.arange(3)}, tmp_path / "model.safetensors")
    (unread,) = open_safetensors(tmp_path / "model.safetensors").values()
    assert torch.equal(unread.in_dtype(torch.bfloat16)[...], torch.arange(3))


def test_empty_and_single_numbers_are_read(tmp_path):
    """A tensor without numbers, one of a single number without axes, and parts of others are read as they are."""
    values = {"none": torch.zeros(0, 3), "one": torch.tensor(2.5)}
    save_file(values, tmp_path / "model.safetensors")
    # Only a .bin can hold a tensor that lies otherwise than it is read.
    turned = {**values, "turned": torch.arange(6.0).view(2, 3).T, "part": torch.arange(12.0).view(3, 4)[:, 1:3]}
    turned["trained"] = torch.nn.Parameter(torch.ones(2, 2))
    torch.save(turned, tmp_path / "pytorch_model.bin")
    opened = [*open_safetensors(tmp_path / "model.safetensors").items()]
    opened += open_bin(tmp_path / "pytorch_model.bin", weights_only=True).items()
    assert len(opened) == 7
    for name, unread in opened:
        for dtype in (torch.float32, torch.float64):
            found = unread.in_dtype(dtype)[...]
            assert torch.equal(found, turned[name].to(dtype))
            assert not found.requires_grad
            assert found.untyped_storage().nbytes() == found.nbytes


def test_a_type_that_is_not_known_is_named(tmp_path):
    """A safetensors file with numbers of a type that no student is made of is refused with the tensor's name."""
    save_file({"wte.weight": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    message = r"model\.safetensors holds wte\.weight in C64; a student is made of plain weights \(F64, F32, "
    with pytest.raises(OSError, match=message):
        open_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("change", ["replace", "rewrite", "shorten", "empty"])
def test_a_file_that_changes_while_it_is_read_is_named(layout, change, publish, monkeypatch):
    """A file that is replaced, rewritten, shortened or emptied after its header was read gives an error, no weights."""
    folder = publish(layout)
    (file,) = [path for path in folder.iterdir() if path.suffix != ".json"]
    opened = checkpoints.open_tensors

    def open_then_change(*args):
        found = opened(*args)
        if change == "replace":
            (folder / "new").write_bytes(file.read_bytes())
            (folder / "new").replace(file)
        elif change == "rewrite":
            status = file.stat()
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        else:
            os.truncate(file, file.stat().st_size - 1 if change == "shorten" else 0)
        return found

    monkeypatch.setattr("inheritune_hf.students.reference.open_tensors", open_then_change)
    with pytest.raises(OSError, match=r"was changed while it was read; run it again when it is whole\."):
        InheritedGPT2.from_pretrained(folder, keep_layers=2)


def test_a_mapped_file_that_is_emptied_while_it_is_copied_is_named(tmp_path, monkeypatch):
    """A .bin that shrinks in the middle of a tensor gives an error before its missing pages are touched."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(8, 1024)}, path)
    unread = open_bin(path, weights_only=True)["a"]
    check, looks = checkpoints._check_unchanged, []

    def empty_then_check(*args):
        if args[0] != path:  # a thread of an earlier test may still be reading what that one changed
            return check(*args)
        looks.append(args)
        if len(looks) == 3:
            os.truncate(path, 0)
        return check(path, args[1], os.stat(path))  # noqa: PTH116

    monkeypatch.setattr(checkpoints, "_PIECE", 4096)
    monkeypatch.setattr(checkpoints, "_check_unchanged", empty_then_check)
    with pytest.raises(OSError, match=r"was changed while it was read; run it again when it is whole\."):
        unread[...]
    assert len(looks) == 3


def test_a_file_that_ends_early_is_named(published, monkeypatch):
    """If a file gives fewer bytes than its header says, that is an error and not zeros."""
    check, whole = checkpoints._check_unchanged, published / "model.safetensors"
    monkeypatch.setattr(checkpoints, "_check_unchanged", lambda *args: None if args[0] == whole else check(*args))
    (unread, *_) = open_safetensors(published / "model.safetensors").values()
    read = unread.read.__closure__
    assert read
    with (published / "model.safetensors").open("rb") as file:
        file.seek(0, 2)
        with pytest.raises(OSError, match=r"x ends before one of its tensors does\. Download it again\."):
            checkpoints._fill(file, torch.zeros(4), "x")


def test_old_files_are_read_whole_and_it_is_said(publish, logged):
    """A .bin from before PyTorch 1.6 works, with a note that it cannot be read in part."""
    InheritedGPT2.from_pretrained(publish("legacy-bin"), keep_layers=2)
    (message,) = logged
    assert "is in the format from before PyTorch 1.6, which cannot be read in part: all its" in message
