"""Fine-tuning as one job, on a tiny checkpoint; and what is told before it begins."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.tiny import write_tiny

from aperto.adapt import experts
from aperto.adapt import job as jobs
from aperto.adapt.attention import attend
from aperto.adapt.batches import RowBatches
from aperto.adapt.data import Dataset
from aperto.adapt.estimate import estimate_memory
from aperto.adapt.finetune import Finetune, FinetuneConfig
from aperto.adapt.job import Subject
from aperto.adapt.lora import LoraConfig
from aperto.adapt.model import GptOss
from aperto.adapt.packing import Example, pack
from aperto.adapt.routing import hottest_experts
from aperto.adapt.train import cross_entropy, mean_loss
from aperto.adapt.trunk import Trunk
from aperto.errors import ConfigError, DiskSpaceError, MemoryLimitError, UsageError
from aperto.formats import mxfp4, open_checkpoint
from aperto.formats.adapter import read_adapter
from aperto.formats.lineage import Lineage, Parent, read_lineage
from aperto.formats.merged import Merged

CONFIG = FinetuneConfig(
    steps=12, length=32, rows_per_step=2, learning_rate=2e-2, dtype="float32", warmup=0.1
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("m") / "tiny", windows=(8, 0)))


def dataset(count=6):
    drawn = np.random.default_rng(1)

    def example(length):
        ids = drawn.integers(0, 384, length).astype(np.int32)
        return Example(ids, np.ones(length, np.float32))

    return Dataset(tuple(example(20) for _ in range(count)), (example(20),))


LINEAGE = Lineage((Parent("tiny", "0" * 16),), ())


def job(stored, out, config=CONFIG, **options):
    options = {"adapted": LoraConfig(rank=2, alpha=4.0)} | options
    subject = Subject(source=stored, lineage=LINEAGE, **options)
    return Finetune(subject, dataset(), config, out)


def whole(stored, out, config, **options):
    return job(stored, out, config, adapted=None, **options)


def test_the_adapter_in_the_folder_is_the_trained_model(stored, tmp_path):
    work = job(stored, tmp_path / "out", hottest=1, licences={"LICENSE": "a text"})
    outcome = work.run()
    assert outcome.finished
    assert "eval_loss" in outcome.measures
    adapter = read_adapter(tmp_path / "out", stored.config)
    merged = GptOss.from_checkpoint(Merged(stored, adapter), dtype=torch.float32)
    batches = list(work.batches(0))
    # Changed experts are rounded to MXFP4 in the merge, so the losses are near, not equal.
    trained = mean_loss(work.model, batches, cross_entropy)
    base = mean_loss(GptOss.from_checkpoint(stored), batches, cross_entropy)
    assert abs(mean_loss(merged, batches, cross_entropy) - trained) < (base - trained) / 4
    lineage = read_lineage(tmp_path / "out")
    assert lineage.vetted == "no"
    assert lineage.steps == ("adapted tiny: 12 of 12 steps",)
    assert (tmp_path / "out" / "LICENSE").read_text() == "a text"


@pytest.mark.parametrize("rows_per_batch", [1, 2])
def test_the_top_layers_learn_the_same_from_what_the_lower_ones_gave(
    stored, tmp_path, rows_per_batch
):
    """In float32 and row by row, the bits of the same layers trained without a file."""
    config = dataclasses.replace(CONFIG, fast=1, steps=4, rows_per_batch=rows_per_batch)
    filled = []
    quick = job(stored, tmp_path / "fast", config, hottest=1)
    assert quick.run(watch_trunk=lambda *at: filled.append(at)).finished
    assert filled[-1] == (len(quick.rows), len(quick.rows))
    adapted = LoraConfig(rank=2, alpha=4.0, first_layer=1, experts=quick.adapted.experts)
    plain = dataclasses.replace(config, fast=0)
    slow = job(stored, tmp_path / "slow", plain, adapted=adapted)
    assert slow.run().finished
    assert slow.trainable.keys() == quick.trainable.keys()
    assert all(name.startswith("layers.1.") for name in quick.trainable)
    for name, parameter in quick.trainable.items():
        if rows_per_batch == 1:
            assert torch.equal(parameter, slow.trainable[name]), name
        else:  # products over two rows may be split otherwise
            torch.testing.assert_close(parameter, slow.trainable[name], rtol=1e-3, atol=1e-4)
    infos = [quick.memory().items[0].num_bytes, slow.memory().items[0].num_bytes]
    assert infos[0] < infos[1]


def test_the_lower_layers_go_on_where_they_were(stored, tmp_path, monkeypatch):
    rows = pack(dataset(40).train, 32)
    model = GptOss.from_checkpoint(stored, packed=True)
    whole_trunk = Trunk(tmp_path / "a", model, rows, 1, torch.bfloat16)
    whole_trunk.fill()

    def stop(done, of):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trunk(tmp_path / "b", model, rows, 1, torch.bfloat16).fill(stop)
    seen = []
    again = Trunk(tmp_path / "b", model, rows, 1, torch.bfloat16)
    again.fill(lambda done, of: seen.append(done))
    assert seen[0] == 17  # noted every 16 rows
    assert torch.equal(again.of([0, 19, 39]), whole_trunk.of([0, 19, 39]))
    with pytest.raises(UsageError, match="first_layer"):
        Trunk(tmp_path / "b", model, rows, 2, torch.bfloat16).fill()
    monkeypatch.setattr("aperto.formats.disk.free_bytes", lambda path: 100)
    with pytest.raises(DiskSpaceError, match="frozen layers"):
        Trunk(tmp_path / "c", model, rows, 1, torch.bfloat16).fill()


@pytest.mark.parametrize("rounded", [False, True])
def test_every_weight_trained_is_a_model(stored, tmp_path, rounded):
    """Trained with rounding, the stored experts are those of training, to the bit."""
    config = dataclasses.replace(CONFIG, qat=rounded, learning_rate=5e-3)
    work = whole(stored, tmp_path / "out", config)
    assert work.run().finished
    written = open_checkpoint(tmp_path / "out")
    assert written.lineage.parents[0].name == "tiny" and written.lineage.vetted == "no"
    assert {name: written.info(name).dtype for name in written.names()} == {
        name: stored.info(name).dtype for name in stored.names()
    }
    batches = list(work.batches(0))
    trained = mean_loss(work.model, batches, cross_entropy)
    base = mean_loss(GptOss.from_checkpoint(stored), batches, cross_entropy)
    again = mean_loss(GptOss.from_checkpoint(written), batches, cross_entropy)
    assert trained < 0.8 * base
    # Rounding to MXFP4 costs what was not trained against; the rest is rounded to 8 bits.
    assert abs(again - trained) < (base - trained) * (0.02 if rounded else 0.25)
    if rounded:
        name = "layers.0.moe.down.weight"
        seen = mxfp4.decode(*mxfp4.encode(work.trainable[name].detach().numpy()))
        np.testing.assert_array_equal(written.tensor(name).to_float32(), seen)


def test_what_cannot_fit_is_refused_before_it_is_read(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(GptOss, "from_checkpoint", None)
    with pytest.raises(MemoryLimitError, match="trained values, gradients and moments"):
        whole(stored, tmp_path / "out", CONFIG, available_bytes=1 << 20)
    bfloat16 = dataclasses.replace(CONFIG, dtype="bfloat16")
    with pytest.raises(ConfigError, match="expected float32"):
        whole(stored, tmp_path / "out", bfloat16)


def test_the_plain_path_learns_what_the_blocked_one_does(stored, tmp_path, monkeypatch):
    """Other devices run plain torch; here the CPU does, decoding included."""
    blocked = job(stored, tmp_path / "a", dataclasses.replace(CONFIG, steps=3))
    blocked.run()
    monkeypatch.setattr(jobs, "attention_on", lambda name: attend)
    monkeypatch.setattr(experts, "_decode_on_cpu", experts.decode_plain)
    plain = job(stored, tmp_path / "b", dataclasses.replace(CONFIG, steps=3))
    plain.run()
    for name, parameter in blocked.trainable.items():
        # Two orders of summation; AdamW divides by the gradient's size, so that the smallest
        # gradients' last bits reach the parameters whole.
        far = (parameter - plain.trainable[name]).abs().max()
        assert far < 0.05 * CONFIG.learning_rate, name


def test_a_device_that_is_not_there(stored, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match=r"'cuda', which torch .* does not find here"):
        job(stored, tmp_path / "a", dataclasses.replace(CONFIG, device="cuda"))
    with pytest.raises(ConfigError, match="expected one of cpu, cuda, mps"):
        job(stored, tmp_path / "a", dataclasses.replace(CONFIG, device="tpu"))


def test_another_job_in_the_folder_is_refused(stored, tmp_path):
    job(stored, tmp_path / "out").run()
    with pytest.raises(UsageError, match=r"learning_rate was 0\.02, asked for is 0\.001"):
        job(stored, tmp_path / "out", FinetuneConfig(steps=12, length=32, learning_rate=1e-3))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no run"):
        job(stored, tmp_path / "full")


def test_epochs_are_steps():
    assert FinetuneConfig(epochs=2.5).num_steps(4) == 10
    assert FinetuneConfig(epochs=0.01).num_steps(4) == 1
    assert FinetuneConfig(steps=7).num_steps(4) == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"epochs": 0}, "epochs is 0"), ({"length": 1}, "length is 1"), ({"warmup": 1}, "warmup is")],
)
def test_out_of_range(fields, message):
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(**fields)


def test_hottest_experts_are_those_the_router_chooses(stored):
    model = GptOss.from_checkpoint(stored)
    with torch.no_grad():
        model.layers[0].moe.router.bias[2] += 100
        model.layers[1].moe.router.bias[1] += 100
    rows = job_rows()
    found = hottest_experts(model, RowBatches(rows, rows_per_step=2)(0), 1)
    assert found == {0: (2,), 1: (1,)}
    with pytest.raises(ConfigError, match="99 experts"):
        hottest_experts(model, [], 99)


def job_rows():
    from aperto.adapt.packing import pack

    return pack(dataset().train, 32)


def test_memory_is_told_and_refused(stored, tmp_path):
    work = job(stored, tmp_path / "out")
    memory = work.memory()
    assert memory.total_bytes == sum(item.num_bytes for item in memory.items)
    memory.require(memory.total_bytes)
    with pytest.raises(MemoryLimitError, match=r"training takes .* are available"):
        memory.require(memory.total_bytes - 1)
    assert work.seconds() > 0
    assert all(p.grad is None for p in work.model.parameters())


def test_memory_of_the_optimiser(stored):
    def total(optimiser):
        return estimate_memory(
            stored.config,
            weights=0,
            trained=10**6,
            batch_tokens=10,
            value_bytes=4,
            optimiser=optimiser,
        ).total_bytes

    assert total("adamw") - total("adamw8bit") == 6 * 10**6
