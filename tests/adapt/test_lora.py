"""Low-rank adapters on the twin: gradients against PEFT and finite differences, files, packing."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.formats.test_adapter import ATTENTION, BOTH, ROUTER, made  # noqa: E402
from tests.tiny import write_tiny  # noqa: E402

from aperto.adapt import lora  # noqa: E402
from aperto.adapt.experts import PackedExperts, decode_plain  # noqa: E402
from aperto.adapt.lora import LoraConfig  # noqa: E402
from aperto.adapt.model import GptOss  # noqa: E402
from aperto.errors import AdapterError, ConfigError  # noqa: E402
from aperto.formats import open_checkpoint, write_checkpoint  # noqa: E402
from aperto.formats.adapter import read_adapter, write_adapter  # noqa: E402
from aperto.formats.merged import Merged  # noqa: E402
from aperto.formats.tensor import DType  # noqa: E402

EVERYTHING = LoraConfig(
    rank=3,
    alpha=6.0,
    targets=(*lora.ATTENTION, "moe.router"),
    experts={0: (0, 2), 1: (1,)},
    in_full=("sinks", "norms", "biases"),
)
SMALL = 2 * (1 + 2 + 4 + 1 + 2) + 1  # of a layer: sinks, norms, biases; and the last norm
IDS = torch.tensor([np.random.default_rng(5).integers(0, 384, 30).tolist()])


@pytest.fixture
def stored(tmp_path):
    return open_checkpoint(write_tiny(tmp_path / "tiny", tokenizer=True, windows=(8, 0)))


def stirred(model, seed=1):
    """Give every change a B other than nought, so that all gradients are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, change in lora.changes(model):
            change.b.copy_(0.05 * torch.randn(change.b.shape, generator=generator))


def loss_of(model):
    return model.loss(IDS, torch.ones(IDS.shape))


def gradients(model):
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad.clone() for name, p in lora.trainable(model).items()}


def test_the_decoders_agree_and_are_exact_in_bfloat16(stored):
    tensor = stored.tensor(BOTH[0])
    for dtype in (torch.float32, torch.bfloat16):
        experts = PackedExperts(tensor.data, tensor.scales, torch.zeros(4, 1), dtype)
        for expert in range(experts.shape[0]):
            plain = decode_plain(experts.blocks[expert], experts.scales[expert], dtype)
            assert torch.equal(experts.matrix(expert), plain)
            np.testing.assert_array_equal(
                experts.matrix(expert).float().numpy(), tensor.to_float32()[expert]
            )


def test_packed_experts_compute_what_dense_ones_do(stored):
    dense = GptOss.from_checkpoint(stored)
    packed = GptOss.from_checkpoint(stored, packed=True)
    packed.recompute = True
    with torch.inference_mode():
        assert torch.equal(packed(IDS), dense(IDS))
    for model in (dense, packed):
        lora.attach(model, EVERYTHING, seed=3)
        stirred(model)
    expected, found = gradients(dense), gradients(packed)
    assert expected.keys() == found.keys() and len(found) == 2 * (2 * 5 + 2 * 2 + 2 * 1) + SMALL
    for name, gradient in expected.items():
        # The same products; only torch's choice of how to split them may differ.
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
        assert gradient.abs().max() > 0, name


def test_a_fresh_adapter_is_the_base_model(stored):
    model = GptOss.from_checkpoint(stored, packed=True)
    with torch.inference_mode():
        before = model(IDS)
    lora.attach(model, EVERYTHING)
    with torch.inference_mode():
        assert torch.equal(model(IDS), before)
    assert {p for p in model.parameters() if p.requires_grad} == set(lora.trainable(model).values())


def test_loss_is_the_weighted_cross_entropy_whatever_the_chunk(stored):
    model = GptOss.from_checkpoint(stored, packed=True)
    weights = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(0))
    weights[0, 5:12] = 0
    with torch.inference_mode():
        logs = model(IDS)[0].log_softmax(-1)
        expected = -(weights[0, 1:] * logs[:-1].gather(1, IDS[0, 1:, None])[:, 0]).sum()
        for chunk in (1, 7, 64):
            torch.testing.assert_close(model.loss(IDS, weights, chunk=chunk), expected)


def test_gradients_are_those_of_finite_differences(stored):
    """In float64, where a central difference of step h errs by h^2 and by eps / h."""
    model = GptOss.from_checkpoint(stored).double()
    lora.attach(model, EVERYTHING, seed=2)
    model.double()
    stirred(model)
    exact = gradients(model)
    step, rng = 1e-5, np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in lora.trainable(model).items():
            place = int(rng.integers(parameter.numel()))
            flat, kept = parameter.view(-1), float(parameter.view(-1)[place])
            sides = []
            for sign in (1, -1):
                flat[place] = kept + sign * step
                sides.append(float(loss_of(model)))
            flat[place] = kept
            difference = (sides[0] - sides[1]) / (2 * step)
            found = float(exact[name].view(-1)[place])
            # A loss of about 200 is exact to 2e-16 of itself, divided by the step: 4e-9.
            assert abs(found - difference) < 1e-5 * abs(difference) + 1e-7, name


@pytest.mark.parametrize("tensors", [ATTENTION + ROUTER, BOTH])
def test_gradients_are_those_of_transformers_and_peft(tmp_path, tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import GptOssForCausalLM

        tiny = write_tiny(tmp_path / "tiny", tokenizer=True, windows=(8, 0), expert_dtype="bf16")
        base = open_checkpoint(tiny)
        adapter = made(base.config, tensors, experts=(0, 1, 2, 3))
        write_adapter(tmp_path / "a", adapter, base.config)
        plain = GptOssForCausalLM.from_pretrained(
            tiny, dtype=torch.float32, attn_implementation="eager"
        )
        live = PeftModel.from_pretrained(plain, tmp_path / "a", is_trainable=True)
        logits = live(IDS).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, IDS[0, 1:], reduction="sum").backward()
    model = GptOss.from_checkpoint(base)
    lora.load(model, read_adapter(tmp_path / "a", base.config))
    found = gradients(model)
    theirs = {n: p.grad for n, p in live.named_parameters() if p.grad is not None}
    expected = {}
    for name, gradient in theirs.items():
        side = "a" if "lora_A" in name else "b"
        layer = name.split(".layers.")[1].split(".")[0]
        if "mlp.experts" in name:
            part = "gate_up" if "base_layer" in name else "down"
            split = gradient.reshape(4, 3, -1) if side == "a" else gradient.reshape(-1, 3, 4)
            for expert in range(4):
                key = f"layers.{layer}.moe.{part}.weight:{expert}.{side}"
                expected[key] = split[expert] if side == "a" else split[:, :, expert]
            continue
        target = next(
            ours
            for theirs_, ours in (
                ("q_proj", "attn.q"), ("k_proj", "attn.k"), ("v_proj", "attn.v"),
                ("o_proj", "attn.out"), ("router", "moe.router"),
            )
            if theirs_ in name
        )  # fmt: skip
        expected[f"layers.{layer}.{target}.weight.{side}"] = gradient
    assert expected.keys() <= found.keys() and expected
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        # Two orders of summation through two layers and back, in float32.
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=1e-5 * largest)


def test_what_is_trained_is_what_files_hold_and_merging_folds_in(stored, tmp_path):
    wide = tmp_path / "wide"
    write_checkpoint(stored, wide, "hf", dense=DType.F32)
    base = open_checkpoint(wide)
    model = GptOss.from_checkpoint(base, packed=True)
    config = LoraConfig(rank=2, alpha=4.0, rslora=True)
    lora.attach(model, config)
    stirred(model)
    adapter = lora.to_adapter(model, config, base="wide")
    write_adapter(tmp_path / "a", adapter, base.config)
    again = GptOss.from_checkpoint(base, packed=True)
    assert lora.load(again, read_adapter(tmp_path / "a", base.config)).rslora
    write_checkpoint(Merged(base, adapter), tmp_path / "m", "hf")
    merged = GptOss.from_checkpoint(open_checkpoint(tmp_path / "m"), packed=True)
    with torch.inference_mode():
        live = model(IDS)
        assert torch.equal(again(IDS), live)
        # W x + s B A x against (W + s B A) x: float32, some hundred terms.
        assert (merged(IDS) - live).abs().max() < 1e-4 * live.std()


def test_dropout_repeats_with_its_seed_and_is_off_outside_training(stored):
    model = GptOss.from_checkpoint(stored, packed=True)
    lora.attach(model, LoraConfig(rank=2, dropout=0.5))
    stirred(model)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(loss_of(model.train()).detach()))
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    assert torch.equal(loss_of(model), loss_of(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"targets": ("attn.o",)}, "attn.o"),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**settings)


def test_an_expert_that_is_not_there_and_a_foreign_adapter_are_errors(stored, tmp_path):
    model = GptOss.from_checkpoint(stored, packed=True)
    with pytest.raises(ConfigError, match="experts of layer 0"):
        lora.attach(model, LoraConfig(experts={0: (99,)}))
    adapter = made(stored.config, ATTENTION, full=("layers.0.attn.sinks",))
    short = {"layers.0.attn.sinks": np.zeros(1, np.float32)}
    with pytest.raises(AdapterError, match="sinks: found the shape"):
        lora.load(
            GptOss.from_checkpoint(stored, packed=True),
            dataclasses.replace(adapter, replaced=short),
        )


def test_small_tensors_are_trained_in_float32_beside_bfloat16(stored, tmp_path):
    model = GptOss.from_checkpoint(stored, dtype=torch.bfloat16, packed=True)
    with torch.inference_mode():
        before = model(IDS)
    lora.attach(model, EVERYTHING)
    small = dict(lora.trained_in_full(model))
    assert len(small) == SMALL and {p.dtype for p in small.values()} == {torch.float32}
    with torch.inference_mode():
        assert torch.equal(model(IDS), before)
    stirred(model)
    gradients(model)
    for name, parameter in small.items():
        assert parameter.grad is not None and parameter.grad.dtype is torch.float32, name
        with torch.no_grad():
            parameter -= 0.1 * parameter.grad
    adapter = lora.to_adapter(model, EVERYTHING)
    write_adapter(tmp_path / "a", adapter, stored.config)
    again = GptOss.from_checkpoint(stored, dtype=torch.bfloat16, packed=True)
    assert lora.load(again, read_adapter(tmp_path / "a", stored.config)) == EVERYTHING
    with torch.inference_mode():
        assert torch.equal(again(IDS), model(IDS))


@pytest.mark.parametrize("experts", ["none", {0: (0,), 1: (2,)}])
def test_peft_puts_small_tensors_in_place(tmp_path, experts):
    """With and without the wrappers that PEFT puts around the experts."""
    tiny = write_tiny(tmp_path / "tiny", tokenizer=True, windows=(8, 0), expert_dtype="bf16")
    base = open_checkpoint(tiny)
    model = GptOss.from_checkpoint(base)
    config = LoraConfig(rank=2, experts=experts, in_full=("sinks", "norms", "biases"))
    lora.attach(model, config)
    stirred(model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, parameter in lora.trained_in_full(model):
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        found = model(IDS)
    write_adapter(tmp_path / "a", lora.to_adapter(model, config), base.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import GptOssForCausalLM

        plain = GptOssForCausalLM.from_pretrained(
            tiny, dtype=torch.float32, attn_implementation="eager"
        )
        live = PeftModel.from_pretrained(plain, tmp_path / "a")
        with torch.inference_mode():
            expected = live(IDS).logits
    # Two orders of summation, as in test_model.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))
