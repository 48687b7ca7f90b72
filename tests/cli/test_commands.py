import json

import pytest
from tests.tiny import write_tiny

from aperto.engine.prefix_store import PageLayout, PrefixOwner, PrefixStore
from aperto.formats import open_checkpoint
from aperto.formats.hub import ModelEntry
from aperto.measure.references import MANIFEST, REFERENCES
from aperto.tokenizer import Tokenizer


@pytest.fixture
def model(tmp_path):
    return write_tiny(tmp_path / "model", tokenizer=True)


def test_info_as_text(aperto, tiny):
    shown = aperto("info", str(tiny)).stdout
    for words in ("layers", "1 with a window of 8", "37 (33 BF16, 4 MXFP4)", "It fits."):
        assert words in shown


def test_info_as_json(aperto, tiny):
    fields = json.loads(aperto("info", str(tiny), "--context", "64", "--json").stdout)
    assert fields["layout"] == "hf"
    assert fields["config"]["hidden_size"] == 64
    plan = fields["plan"]
    assert plan["context"] == 64
    assert plan["total_bytes"] == sum(item["num_bytes"] for item in plan["items"])
    assert sum(fields["bytes_by_kind"].values()) > 0


def test_info_says_what_to_change(aperto, tiny, monkeypatch):
    monkeypatch.setattr("aperto.machine.available_bytes", lambda: 260 * 2**20)
    shown = aperto("info", str(tiny), "--precision", "exact").stdout
    assert "It does not fit." in shown
    assert "--context" in shown
    assert "--precision q8" in shown


def test_info_refuses_a_context_beyond_the_model(aperto, tiny):
    result = aperto("info", str(tiny), "--context", "999999999")
    assert (result.exit_code, "131072" in result.stderr) == (2, True)


def test_info_of_a_damaged_file(aperto, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert aperto("info", str(tmp_path / "x.gguf")).exit_code == 3


def test_check_fails_with_exit_code_1(aperto, model):
    config = model / "generation_config.json"
    config.write_text(json.dumps({"temperature": 0.6}))
    result = aperto("check", str(model), "--weights-only")
    assert result.exit_code == 1
    assert "FAIL     sampling defaults  temperature is 0.6" in result.stdout


def test_check_against_what_it_wrote(aperto, model):
    (model / "generation_config.json").write_text("{}")
    written = aperto("check", str(model), "--write")
    assert MANIFEST in written.stdout
    assert REFERENCES in written.stdout
    result = aperto("check", str(model), "--json")
    assert result.exit_code == 0, result.stdout
    statuses = {entry["name"]: entry["status"] for entry in json.loads(result.stdout)}
    assert statuses["tensors"] == statuses["logits"] == "PASS"


def test_check_prints_hashes(aperto, model):
    lines = aperto("check", str(model), "--hashes").stdout.splitlines()
    assert len(lines) == 37
    assert lines[0].split()[1] == "embedding.weight"
    assert len(lines[0].split()[0]) == 64


@pytest.mark.parametrize("layout", ["hf", "openai", "gguf"])
def test_convert(aperto, model, tmp_path, layout):
    out = tmp_path / ("out.gguf" if layout == "gguf" else "out")
    result = aperto("convert", str(model), str(out), "--layout", layout)
    assert result.exit_code == 0, result.output
    assert open_checkpoint(out).layout == layout


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_convert_gives_the_original_layout_its_vocabulary(aperto, tmp_path, layout):
    source = write_tiny(tmp_path / "m", layout="openai", vocab=201088, hidden=32, windows=(8,))
    out = tmp_path / ("out.gguf" if layout == "gguf" else "out")
    assert aperto("convert", str(source), str(out), "--layout", layout).exit_code == 0
    tokenizer = Tokenizer.from_checkpoint(open_checkpoint(out).tokenizer_source())
    assert tokenizer.encode("Hello world") == Tokenizer.bundled().encode("Hello world")


def test_convert_reports_the_error_of_plain_experts(aperto, tmp_path):
    source = write_tiny(tmp_path / "bf16", tokenizer=True, expert_dtype="bf16")
    result = aperto("convert", str(source), str(tmp_path / "out"), "--layout", "hf")
    assert result.stdout.count("quantised to MXFP4, relative RMS error") == 4


@pytest.mark.parametrize(("layout", "name"), [("gguf", "out.hf"), ("hf", "out.gguf")])
def test_convert_refuses_a_name_of_another_layout(aperto, model, tmp_path, layout, name):
    result = aperto("convert", str(model), str(tmp_path / name), "--layout", layout)
    assert (result.exit_code, f"layout {layout} is a" in result.stderr) == (2, True)
    assert not (tmp_path / name).exists()


def test_convert_refuses_to_overwrite(aperto, model):
    result = aperto("convert", str(model), str(model), "--layout", "hf")
    assert (result.exit_code, "exists" in result.stderr) == (2, True)


def test_models(aperto, tmp_path, monkeypatch):
    entry = ModelEntry("org/m", tmp_path, 3 * 2**30)
    monkeypatch.setattr("aperto.formats.hub.list_models", lambda: [entry])
    assert aperto("models").stdout.split() == ["org/m", "3.00", "GiB", str(tmp_path)]
    assert json.loads(aperto("models", "--json").stdout)[0]["bytes"] == 3 * 2**30
    monkeypatch.setattr("aperto.formats.hub.list_models", list)
    assert "aperto pull" in aperto("models").stdout


def test_pull_passes_its_options_on(aperto, tmp_path, monkeypatch):
    asked = []

    def pull(repo, layout, **options):
        asked.append((repo, layout, options["file"], options["revision"]))
        options["progress"](1, 2)
        return tmp_path

    monkeypatch.setattr("aperto.formats.hub.pull", pull)
    result = aperto("pull", "org/m", "--layout", "gguf", "--file", "Q8")
    assert asked == [("org/m", "gguf", "Q8", "main")]
    assert f"aperto chat {tmp_path}" in result.stdout
    assert "aperto chat org/m" in aperto("pull", "org/m").stdout


def test_cache_lists_and_removes_saved_prompts(aperto, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("APERTO_CACHE", str(folder))
    owner = PrefixOwner("/models/tiny", "q8", "fingerprint")
    layout = PageLayout((8, 0), 4, (32, 32))
    store = PrefixStore(folder / "prompts", 1 << 20, owner, layout)
    (piece,) = store.pieces(store.keys([b"page"]), 1)
    store.write(piece, memoryview(bytes(piece.nbytes)))
    (listed,) = json.loads(aperto("cache", "ls", "--json").stdout)
    assert (listed["kind"], listed["source"]) == ("prompts", "/models/tiny")
    assert listed["bytes"] > piece.nbytes
    assert "prompts" in aperto("cache", "ls").stdout
    assert aperto("cache", "rm", "weights").exit_code == 0
    assert store.read(piece) is not None
    assert "freed" in aperto("cache", "rm", "prompts").stdout
    assert store.read(piece) is None
    assert json.loads(aperto("cache", "ls", "--json").stdout) == []


def test_pull_refuses_a_bad_name(aperto):
    assert aperto("pull", "no-slash").exit_code == 2


def test_cache_lists_and_removes(aperto, tiny, tmp_path, monkeypatch):
    from aperto.formats import packed

    folder = tmp_path / "cache"
    monkeypatch.setenv("APERTO_CACHE", str(folder))
    assert "empty" in aperto("cache", "ls").stdout
    monkeypatch.setattr(packed, "SMALL_BYTES", 0)
    monkeypatch.setattr(packed, "SHORT_BYTES", 0)
    packed.open_packed(open_checkpoint(tiny), "q8", folder)
    listed = json.loads(aperto("cache", "ls", "--json").stdout)
    assert listed[0]["precision"] == "q8"
    assert listed[0]["name"] in aperto("cache", "ls").stdout
    assert aperto("cache", "rm", "other").exit_code == 2
    assert "freed" in aperto("cache", "rm", listed[0]["name"]).stdout
    assert json.loads(aperto("cache", "ls", "--json").stdout) == []


def test_bench_passes_its_options_on(aperto, tiny, monkeypatch):
    from aperto import machine
    from aperto.measure import bench

    asked = {}

    def run_bench(path, **options):
        asked.update(options, path=path)
        options["progress"](0, 1, "load")
        rows = (bench.BenchRow("decode, empty", "tokens/s", (2.0, 3.0, 4.0), 6.0, 0.5),)
        return bench.BenchReport(machine.describe(), str(path), "exact", 1, "avx2", None, rows)

    monkeypatch.setattr(bench, "run_bench", run_bench)
    arguments = ("bench", str(tiny), "--precision", "exact", "--threads", "1", "--repeats", "2")
    shown = aperto(*arguments).stdout
    assert (asked["path"], asked["precision"], asked["threads"], asked["repeats"]) == (
        tiny,
        "exact",
        1,
        2,
    )
    assert "| decode, empty |" in shown
    assert json.loads(aperto(*arguments, "--json").stdout)["rows"][0]["unit"] == "tokens/s"
    assert not asked["confirm"]("Write 12.1 GB?"), "nobody is there to agree"
    aperto(*arguments, "--yes")
    assert asked["confirm"]("Write 12.1 GB?")


def test_merge_and_what_info_tells_of_it(aperto, model, tmp_path):
    from tests.formats.test_adapter import ATTENTION, BOTH, made

    from aperto.formats.adapter import write_adapter

    config = open_checkpoint(model).config
    write_adapter(tmp_path / "words", made(config, ATTENTION + BOTH), config)
    told = aperto("info", str(tmp_path / "words")).stdout
    assert "rank        3, scaling 2" in told and "vetted      no" in told
    assert "1 x model.layers.*.mlp.experts.gate_up_proj" in told
    assert "1 x model.layers.*.mlp.experts.down_proj" in told
    result = aperto("merge", str(model), str(tmp_path / "words"), "--out", str(tmp_path / "m"))
    assert result.exit_code == 0, result.output
    assert result.stdout.count("rounding is") == 6 and "vetted: no" in result.stdout
    for path, layout in ((tmp_path / "m", "gguf"), (tmp_path / "again.gguf", "hf")):
        told = aperto("info", str(path)).stdout
        assert f"merged words into {model}" in told and told.count("made from") == 2
        out = tmp_path / ("again.gguf" if layout == "gguf" else "back")
        assert aperto("convert", str(path), str(out), "--layout", layout).exit_code == 0
    assert open_checkpoint(tmp_path / "back").lineage == open_checkpoint(tmp_path / "m").lineage
