"""From the Hub only the kept tensors come, over whatever connection, and never wrong ones."""

import json
import random
import shutil
import traceback
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from transformers import GPT2LMHeadModel

from inheritune_hf import InheritedGPT2
from inheritune_hf.students import checkpoints, download, plan_inheritance
from inheritune_hf.students.download import RemoteFile, Span, fetch_tensors, merge, split

KEEP = 4
DEPTH = 12


def load(repository, cache, keep=KEEP, piece=None, seconds=None, offline=False, **kwargs):
    """Build a student in a client process; returns its tensors, what was logged and the waits, or the error's text."""
    from huggingface_hub import constants, utils

    logged, told, waits = [], [], []
    utils.disable_progress_bars()
    with (
        mock.patch.object(download, "PIECE", piece or download.PIECE),
        mock.patch.object(constants, "HF_HUB_DOWNLOAD_TIMEOUT", seconds or constants.HF_HUB_DOWNLOAD_TIMEOUT),
        mock.patch.object(constants, "HF_HUB_OFFLINE", offline),
        mock.patch.object(checkpoints.logger, "warning", lambda text, *args: logged.append(text % args)),
        mock.patch.object(download.logger, "info", lambda text, *args: told.append(text % args)),
        mock.patch("time.sleep", waits.append),
    ):
        try:
            student = InheritedGPT2.from_pretrained(repository, keep_layers=keep, cache_dir=cache, **kwargs)
        except OSError as error:
            trace = "".join(traceback.format_exception(error))
            return {"error": str(error), "trace": trace, "logged": logged, "told": told, "waits": waits}
    tensors = {name: tensor.numpy() for name, tensor in student.state_dict().items()}
    return {"tensors": tensors, "logged": logged, "told": told, "waits": waits, "lineage": student.config.inheritune}


def plan(repository, cache, keep=KEEP):
    found = plan_inheritance(repository, keep, cache_dir=cache)
    return {"fetch": found.bytes_to_fetch, "read": found.bytes_to_read, "notes": found.notes, "files": found.files}


@pytest.fixture
def is_cut(reference):
    """Whether what a client loaded is, bit for bit, the reference's first layers."""

    def check(found, keep=KEEP):
        assert "error" not in found, found["error"]
        expected = reference.state_dict()
        names = {name for name in expected if not name.startswith("transformer.h.") or int(name.split(".")[2]) < keep}
        assert set(found["tensors"]) == names
        return all(torch.equal(torch.from_numpy(found["tensors"][name]), expected[name]) for name in names)

    return check


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def kept_bytes(reference, keep=KEEP):
    tensors = reference.state_dict()
    return sum(
        tensor.nbytes
        for name, tensor in tensors.items()
        if name != "lm_head.weight" and (not name.startswith("transformer.h.") or int(name.split(".")[2]) < keep)
    )


def sent(hub, ending=".safetensors"):
    return sum(entry["bytes"] for entry in hub.log if entry["server"] == "storage" or ending in entry["path"])


HEADER_BYTES = 20_000  # of the small files here


@pytest.fixture
def small_headers(on_hub):
    """Let clients ask for few bytes at first: in files this small the usual request is all there is."""
    on_hub(set_header, HEADER_BYTES)
    yield
    on_hub(set_header, 100_000)


def set_header(size):
    download._HEADER = size


@pytest.mark.parametrize("layout", ["safetensors", "safetensors-sharded"])
@pytest.mark.usefixtures("small_headers")
def test_only_kept_tensors_are_fetched(layout, hub, on_hub, publish, reference, is_cut, cache):
    """The bytes over the wire are the kept tensors, a header for each file, and gaps of one percent at most."""
    commit = hub.add("me/ranged", publish(layout))
    found = on_hub(load, "me/ranged", cache)
    assert is_cut(found)
    assert found["lineage"]["revision"] == commit
    files = KEEP + 1 if layout.endswith("sharded") else 1
    assert kept_bytes(reference) <= sent(hub) <= 1.01 * kept_bytes(reference) + files * HEADER_BYTES
    resolved = [entry for entry in hub.log if entry["server"] == "hub" and entry["path"].endswith(".safetensors")]
    assert all(commit in entry["path"] for entry in resolved)
    assert not any(f"model-{KEEP}.safetensors" in entry["path"] for entry in hub.log)


@pytest.mark.usefixtures("small_headers")
def test_growing_fetches_the_next_layers_only(hub, on_hub, publish, reference, is_cut, cache):
    """What was fetched stays: the same student costs nothing, two more layers cost two layers."""
    hub.add("me/growing", publish())
    on_hub(load, "me/growing", cache)
    hub.clear()
    assert is_cut(on_hub(load, "me/growing", cache))
    assert sent(hub) == 0
    assert is_cut(on_hub(load, "me/growing", cache, KEEP + 2), KEEP + 2)
    added = kept_bytes(reference, KEEP + 2) - kept_bytes(reference)
    assert added <= sent(hub) <= 1.01 * added
    files = [path for path in cache.rglob("inheritune/**/*.safetensors") if path.is_file()]
    assert len(files) == 2
    names = []
    for file in files:
        with safe_open(file, "pt") as opened:
            names += opened.keys()
            assert opened.metadata()["source"].startswith("me/growing@")
    assert len(names) == len(set(names))
    hub.clear()
    assert is_cut(on_hub(load, "me/growing", cache, force_download=True))
    assert sent(hub) >= kept_bytes(reference)


def test_offline_uses_what_is_there(hub, on_hub, publish, is_cut, cache):
    """Offline, and with `local_files_only`, a student is built of what was fetched, and what lacks is named."""
    hub.add("me/offline", publish())
    for options in ({"offline": True}, {"local_files_only": True}):
        found = on_hub(load, "me/offline", cache / "empty", **options)
        assert "There is no model at 'me/offline'" in found["error"]
    on_hub(load, "me/offline", cache)
    hub.clear()
    for options in ({"offline": True}, {"local_files_only": True}):
        assert is_cut(on_hub(load, "me/offline", cache, **options))
        assert is_cut(on_hub(load, "me/offline", cache, 2, **options), 2)
        found = on_hub(load, "me/offline", cache, KEEP + 1, **options)
        assert "12 kept tensors of model.safetensors of 'me/offline' are not in the cache (h.4." in found["error"]
    assert hub.log == []


def test_the_cache_of_transformers_comes_first(hub, on_hub, publish, is_cut, cache):
    """A file that Transformers downloaded is cut where it lies."""
    hub.add("me/cached", publish())
    on_hub(load_whole, "me/cached", cache)
    hub.clear()
    assert is_cut(on_hub(load, "me/cached", cache))
    assert sent(hub) == 0


def load_whole(repository, cache, **kwargs):
    return GPT2LMHeadModel.from_pretrained(repository, cache_dir=cache, **kwargs).num_parameters()


def test_revision_subfolder_and_variant_are_followed(hub, on_hub, publish, reference, is_cut, cache):
    """Branches, folders within a repository and variants of the weights are found as Transformers finds them."""
    folder = publish(folder="repository/inner", variant=".fp32").parent
    hub.add("me/arranged", folder)
    hub.add("me/arranged", publish(edit=lambda tensors: tensors["wte.weight"].zero_(), folder="other"), branch="other")
    found = on_hub(load, "me/arranged", cache, subfolder="inner", variant="fp32")
    assert is_cut(found)
    found = on_hub(load, "me/arranged", cache, revision="other")
    assert not found["tensors"]["transformer.wte.weight"].any()
    assert "There is no model at" in on_hub(load, "me/arranged", cache)["error"]


def test_the_second_host_never_sees_the_token(hub, on_hub, publish, is_cut, cache):
    """Private and gated repositories ask for the login; the token goes to the Hub and nowhere else."""
    hub.add("me/secret", publish(), private=True)
    hub.add("me/gated", publish(folder="gated"), gated_for=["me"])
    for repository in ("me/secret", "me/gated"):
        message = on_hub(load, repository, cache)["error"]
        assert f"The Hub did not give config.json of '{repository}'" in message
        assert "a private or gated model needs `token`" in message
        hub.clear()
        assert is_cut(on_hub(load, repository, cache, token="hf_writer"))
        seen = {entry["server"]: set() for entry in hub.log}
        for entry in hub.log:
            seen[entry["server"]].add(entry["authorization"])
        assert seen == {"hub": {"Bearer hf_writer"}, "storage": {None}}


def test_a_login_that_ends_midway_is_named(hub, on_hub, publish, cache):
    """If the Hub refuses the weights after the config, that is said with what to do."""
    hub.add("me/revoked", publish())
    hub.break_by({"server": "hub", "path": "model.safetensors$", "kind": "status", "status": 403})
    message = on_hub(load, "me/revoked", cache)["error"]
    assert "The Hub did not give model.safetensors of 'me/revoked': 403 Forbidden" in message
    assert "A private or gated model needs `token` (or hf auth login)." in message


def test_only_bin_is_told(hub, on_hub, publish, is_cut, cache):
    """A repository without safetensors is downloaded whole, and it is said with its size."""
    folder = publish("bin")
    hub.add("me/pickled", folder)
    found = on_hub(load, "me/pickled", cache)
    assert is_cut(found)
    size = (folder / "pytorch_model.bin").stat().st_size
    assert found["logged"] == [
        f"'me/pickled' has its weights as pytorch_model.bin, which cannot be fetched in part: all its {size:,} bytes "
        "are fetched. A repository with safetensors avoids that."
    ]


# Servers that misbehave: (rule, whether bytes are right, what is logged or raised)

RANGES = {"server": "storage", "method": "GET"}
BROKEN = {
    "cut": ({**RANGES, "kind": "cut", "bytes": 777, "times": 5}, None),
    "dropped": ({**RANGES, "kind": "drop", "times": 3}, None),
    "busy": ({**RANGES, "kind": "status", "status": 503, "times": 4}, None),
    "too-many": ({**RANGES, "kind": "status", "status": 429, "headers": {"Retry-After": "7"}, "times": 2}, None),
    "hub-busy": ({"server": "hub", "path": "safetensors", "kind": "status", "status": 502, "times": 3}, None),
    "expired": ({**RANGES, "kind": "expire", "after": 2}, None),
    "short": ({**RANGES, "kind": "wrong_length", "by": 100, "times": 3}, None),
    "ignored": ({**RANGES, "kind": "ignore_range", "after": 1}, "The server answers with whole files, so all of"),
    "moved": ({**RANGES, "kind": "wrong_range", "shift": 64}, "was asked for bytes 0-"),
    "other-total": ({**RANGES, "kind": "wrong_total"}, "was asked for bytes 0-"),
    "beyond": ({**RANGES, "kind": "status", "status": 416, "after": 1}, "The server has no bytes"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_connections_end_in_the_right_bytes(fault, hub, on_hub, publish, is_cut, cache):
    """Whatever breaks, the student is right: by going on, or by the whole file where ranges cannot be trusted."""
    hub.add("me/broken", publish())
    rule, message = BROKEN[fault]
    hub.break_by(rule)
    found = on_hub(load, "me/broken", cache, piece=4096)
    assert is_cut(found)
    assert not list(cache.rglob("*.incomplete"))
    if message is None:
        assert found["logged"] == []
    else:
        assert message in found["logged"][0]
    if fault == "too-many":
        assert found["waits"] == [7.0, 7.0]
    if fault == "busy":
        assert max(found["waits"]) == 8.0 or len(found["waits"]) == 4


def test_giving_up_is_said_and_the_rest_goes_on(hub, on_hub, publish, reference, is_cut, cache):
    """A server that is gone ends in an error that says so; the next call fetches what is missing and no more."""
    hub.add("me/patient", publish())
    hub.break_by({**RANGES, "kind": "status", "status": 500, "after": 9, "times": 10**6})
    found = on_hub(load, "me/patient", cache, piece=2048)
    assert "model.safetensors of 'me/patient' could not be fetched: 7 attempts in a row failed" in found["error"]
    assert "Run it again: it resumes with what is missing." in found["error"]
    (journal,) = cache.rglob("*.progress")
    finished = sum(int(end) - int(begin) for begin, end in (line.split("-") for line in journal.read_text().split()))
    assert finished >= 2048
    hub.clear()
    assert is_cut(on_hub(load, "me/patient", cache, piece=2048))
    assert sent(hub) <= 1.01 * kept_bytes(reference) - finished
    assert not list(cache.rglob("*.progress"))
    assert not list(cache.rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({"kind": "slow", "bytes": 1, "seconds": 0.05}, "came too slowly"),
        ({"kind": "status", "status": 503}, "503 Service Unavailable"),
        (
            {"kind": "status", "status": 429, "headers": {"Retry-After": "9" * 23}},
            "asks to wait for 999999",
        ),
    ],
    ids=["drips", "broken", "retry after"],
)
def test_a_server_that_does_not_serve_is_given_up(rule, complaint, hub, on_hub, publish, is_cut, cache):
    """Bytes one by one, errors, and a request to wait for years end soon, in one line without a signed address."""
    hub.add("me/dripping", publish())
    hub.break_by({**RANGES, **rule, "times": 10**6})
    found = on_hub(load, "me/dripping", cache, seconds=0.2)
    assert "model.safetensors of 'me/dripping' could not be fetched: " in found["error"]
    assert complaint in found["error"]
    assert "Signature=" not in found["trace"] + "".join(found["told"])
    assert sum(found["waits"]) < 60
    hub.clear()
    assert is_cut(on_hub(load, "me/dripping", cache))


def test_a_commit_between_requests_changes_nothing(hub, on_hub, publish, reference, is_cut, cache, tmp_path):
    """Everything is read at the commit of the config, although the branch moves on meanwhile."""
    first = hub.add("me/moving", publish())
    other = {"repository": "me/moving", "folder": str(publish(edit=zero, folder="zeros"))}
    hub.break_by({**RANGES, "kind": "commit", "repository": other, "after": 1})
    found = on_hub(load, "me/moving", cache, piece=4096)
    assert is_cut(found)
    assert found["lineage"]["revision"] == first
    found = on_hub(load, "me/moving", cache)
    assert not found["tensors"]["transformer.wte.weight"].any()


def zero(tensors):
    for tensor in tensors.values():
        tensor.zero_()


OVERLAP = (
    b'{"a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]},'
    b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}'
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1" * 9, "its header cannot be"),
        ((20).to_bytes(8, "little") + b"{" * 2000, "its header cannot be read"),
        ((2).to_bytes(8, "little") + b"{}" + b"x" * 500, "is not whole: its tensors end at byte 10, not at 510"),
        (len(OVERLAP).to_bytes(8, "little") + OVERLAP + b"x" * 40, "tensors overlap, or leave bytes between them"),
    ],
    ids=["pointer", "no-json", "truncated", "overlap"],
)
def test_what_is_no_safetensors_file_is_named(content, message, hub, on_hub, publish, cache):
    """A file with a broken header is named, and nothing more is fetched of it."""
    folder = publish()
    (folder / "model.safetensors").write_bytes(content)
    hub.add("me/nonsense", folder)
    assert message in on_hub(load, "me/nonsense", cache)["error"]


def test_a_full_disk_is_named_before(hub, on_hub, publish, cache):
    """If the kept tensors do not fit on the disk, that is said before they are fetched."""
    hub.add("me/big", publish())
    hub.clear()
    message = on_hub(load_on_full_disk, "me/big", cache)["error"]
    assert "has room for 5 bytes, and the kept tensors of model.safetensors of 'me/big' take" in message
    assert "make room, or give another cache_dir." in message


def load_on_full_disk(repository, cache):
    free = mock.Mock(free=5)
    with mock.patch.object(shutil, "disk_usage", return_value=free):
        return load(repository, cache)


@pytest.mark.parametrize("layout", ["safetensors", "safetensors-sharded", "bin"])
def test_a_plan_knows_the_bytes(layout, hub, on_hub, publish, reference, cache):
    """Before anything is fetched a plan says how much will be, exactly where headers can be read."""
    folder = publish(layout)
    hub.add("me/planned", folder)
    found = on_hub(plan, "me/planned", cache)
    if layout == "bin":
        assert found["fetch"] == (folder / "pytorch_model.bin").stat().st_size
        assert any("estimated from the config" in note for note in found["notes"])
        return
    assert found["fetch"] == found["read"] == kept_bytes(reference)
    assert found["notes"] == ()
    on_hub(load, "me/planned", cache)
    assert on_hub(plan, "me/planned", cache)["fetch"] == 0
    assert all(file.cached for file in on_hub(plan, "me/planned", cache)["files"])
    grown = on_hub(plan, "me/planned", cache, KEEP + 1)
    assert grown["fetch"] == kept_bytes(reference, KEEP + 1) - kept_bytes(reference)


def test_a_plan_of_what_may_not_be_read_is_refused(hub, on_hub, publish, cache):
    """If the Hub refuses the weights, a plan says so, with what to do."""
    hub.add("me/withheld", publish())
    hub.break_by({"server": "hub", "path": "model.safetensors$", "kind": "status", "status": 403})
    assert "The Hub did not give model.safetensors of 'me/withheld': 403" in on_hub(plan_error, "me/withheld", cache)


def plan_error(repository, cache):
    with pytest.raises(OSError, match=r"needs `token`") as error:
        plan_inheritance(repository, KEEP, cache_dir=cache)
    return str(error.value)


def test_small_gaps_are_read_over():
    """Gaps are joined from the smallest on, up to one percent of what is wanted."""
    spans = [Span(0, 5000, 0), Span(5050, 9000, 5000), Span(9040, 10000, 9000), Span(99000, 99100, 10000)]
    assert merge(spans) == [(0, 10000), (99000, 99100)]
    assert merge([Span(0, 10, 0), Span(10, 20, 10), Span(21, 30, 20)]) == [(0, 20), (21, 30)]
    assert merge([]) == []


def test_pieces_are_of_one_request(monkeypatch):
    """Long ranges are cut into pieces that cover them exactly."""
    monkeypatch.setattr(download, "PIECE", 10)
    assert split([(0, 25), (40, 45)]) == [(0, 10), (10, 20), (20, 25), (40, 45)]


def trial(repository, cache, seed, piece):
    return load(repository, cache, piece=piece, seconds=2, token="hf_writer")


def random_faults(seed, other):
    """A few faults of any kind, at random requests and offsets."""
    chance = random.Random(seed)
    rules = []
    for _ in range(chance.randint(1, 4)):
        server = chance.choice(["storage"] * 4 + ["hub"])
        kinds = ["cut", "drop", "status", "expire", "ignore_range", "wrong_length", "wrong_range", "wrong_total"]
        kind = chance.choice([*kinds, "commit"] if server == "storage" else ["drop", "status", "commit"])
        rules.append(
            {
                "server": server,
                "path": "" if server == "storage" else "safetensors",
                "kind": kind,
                "after": chance.randint(0, 12),
                "times": chance.choice([1, 1, 2, 3, 6, 40]),
                "bytes": chance.randint(0, 5000),
                "by": chance.randint(1, 3000),
                "shift": chance.choice([-64, 4, 64, 4096]),
                "status": chance.choice([403, 404, 408, 416, 429, 500, 503]),
                "headers": {"Retry-After": str(chance.randint(0, 2))},
                "repository": {"repository": "me/trials", "folder": other},
            }
        )
    return rules


def run_trials(seeds, hub, on_hub, publish, is_cut, tmp_path):
    """Each trial ends in the reference's bytes or in an error with words; returns how many ended in which."""
    folder, other = publish(), str(publish(edit=zero, folder="zeros"))
    ended = {"right": 0, "error": 0, "fallback": 0}
    for seed in seeds:
        hub.clear()
        hub.add("me/trials", folder)
        hub.break_by(*random_faults(seed, other))
        cache = tmp_path / f"cache-{seed}"
        found = on_hub(trial, "me/trials", cache, seed, random.Random(seed).choice([1024, 4096, 2**25]))
        assert not any(entry["authorization"] for entry in hub.log if entry["server"] == "storage"), seed
        assert "Signature=" not in "".join([*found["told"], *found["logged"], found.get("trace", "")]), seed
        if "error" in found:
            ended["error"] += 1
            assert "trials" in found["error"] or "injected" in found["error"], (seed, found["error"])
            hub.clear()  # the same call again, on a server that works, is right
            hub.add("me/trials", folder)
            found = on_hub(trial, "me/trials", cache, seed, 4096)
        else:
            ended["right"] += 1
        ended["fallback"] += any("so all of" in line for line in found["logged"])
        assert is_cut(found), seed
        shutil.rmtree(cache)
    return ended


def test_random_faults_never_give_wrong_weights(hub, on_hub, publish, is_cut, tmp_path):
    """A handful of seeded trials with faults of all kinds: the right bytes, or an error, then the right ones."""
    run_trials(range(6), hub, on_hub, publish, is_cut, tmp_path)


@pytest.mark.slow
def test_two_hundred_random_faults(hub, on_hub, publish, is_cut, tmp_path):
    """Two hundred seeded trials: each ends in the right bytes or a clear error, never in wrong weights."""
    ended = run_trials(range(200), hub, on_hub, publish, is_cut, tmp_path)
    assert ended["right"] >= 100
    assert ended["fallback"] >= 10
    assert ended["error"] >= 5


def test_parts_of_a_file_are_found_by_commit():
    """What is fetched lies with the repository in the Hub's cache, by commit and file."""
    file = RemoteFile("org/model", "inner/model.safetensors", "abc", cache_dir="/c")
    assert file.folder().as_posix() == "/c/models--org--model/inheritune/abc/inner/model.safetensors"
    assert file.folder("def").as_posix().endswith("/def/inner/model.safetensors")
    assert str(file) == "inner/model.safetensors of 'org/model'"


def test_an_unknown_file_is_not_there(hub, on_hub, publish, cache):
    """Asking for a file that a repository has not is a FileNotFoundError."""
    hub.add("me/empty", publish())
    assert on_hub(fetch_error, "me/empty", cache) == "'me/empty' has no other.safetensors."


def fetch_error(repository, cache):
    with pytest.raises(FileNotFoundError) as error:
        fetch_tensors(RemoteFile(repository, "other.safetensors", cache_dir=cache), dict.fromkeys)
    return str(error.value)


def test_broken_notes_in_the_cache_are_fetched_again(hub, on_hub, publish, is_cut, cache):
    """A note in the cache that cannot be read is no reason to fail."""
    hub.add("me/noted", publish())
    on_hub(load, "me/noted", cache)
    (note,) = cache.rglob("source.json")
    assert json.loads(note.read_text())["size"] > 0
    note.write_text("{")
    assert is_cut(on_hub(load, "me/noted", cache))
