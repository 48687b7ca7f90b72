"""Models that come and go."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest
from tests.server.kit import ANSWER, describe, scripted

from aperto.errors import MemoryLimitError, ModelNotFoundError
from aperto.server import ServerSettings
from aperto.server.errors import ApiError
from aperto.server.models import model_object
from aperto.server.pool import ModelPool


def pool_of(*models, **settings):
    loaded = []

    def load(source):
        loaded.append(source)
        return scripted(ANSWER)

    return ModelPool(ServerSettings(models=models, **settings), load, describe), loaded


def test_every_engine_shares_the_prompt_cache(tmp_path):
    config = pool_of("a", prompt_cache=tmp_path, prompt_cache_bytes=5)[0].engine_config
    assert (config.prefix_dir, config.prefix_disk_bytes) == (tmp_path, 5)
    assert pool_of("a")[0].engine_config.prefix_dir is None


def test_a_model_is_loaded_once_however_many_ask(tmp_path):
    pool, loaded = pool_of("a", "b")

    async def use():
        async with pool.lease("a") as lease:
            await asyncio.sleep(0.01)
            return lease.model

    async def run():
        models = await asyncio.gather(*(use() for _ in range(5)))
        assert len(set(map(id, models))) == 1 and list(pool.loaded()) == ["a"]
        await pool.close()

    asyncio.run(run())
    assert loaded == ["a"]


@pytest.mark.parametrize("name", ["gpt-oss:20b", "gpt-oss-20b", "openai/gpt-oss-20b", None, ""])
def test_the_only_model_answers_to_the_names_of_its_family(name):
    assert pool_of("nano")[0].resolve(name) == ("nano", None)


def test_names_that_are_spelled_otherwise():
    pool, _ = pool_of("openai/gpt-oss-20b", "openai/gpt-oss-120b")
    assert pool.resolve("gpt-oss:120b")[0] == "openai/gpt-oss-120b"
    assert pool.resolve("gpt-oss:20b:law") == ("openai/gpt-oss-20b", "law")
    for name in ("gpt-oss", "gpt-4", "x:y"):
        with pytest.raises(ApiError) as error:
            pool.resolve(name)
        assert error.value.status == 404


def test_folders_are_served_under_their_own_name(tmp_path):
    first, second = tmp_path / "x" / "tuned", tmp_path / "y" / "tuned"
    pool, _ = pool_of(str(first), str(second))
    assert pool.names() == ["tuned", str(second)]


def test_an_idle_model_is_unloaded_and_comes_back():
    pool, loaded = pool_of("a", idle_unload_s=0.05)

    async def run():
        pool.start()
        async with pool.lease("a"):
            await asyncio.sleep(0.2)
            assert list(pool.loaded()) == ["a"]
        while pool.loaded():
            await asyncio.sleep(0.01)
        async with pool.lease("a"):
            pass
        await pool.close()

    asyncio.run(run())
    assert loaded == ["a", "a"]


def test_the_longest_unused_model_makes_room():
    pool, _ = pool_of("a", "b", "c", memory_cap_bytes=2500)  # each takes 1000 bytes

    async def run():
        for name in ("a", "b", "a"):
            async with pool.lease(name):
                pass
        async with pool.lease("c"), pool.lease("a"):
            assert sorted(pool.loaded()) == ["a", "c"]
            with pytest.raises(MemoryLimitError, match="in use"):
                async with pool.lease("b"):
                    pass
        await pool.close()

    asyncio.run(run())


def test_a_model_above_the_cap_is_refused_with_the_numbers():
    pool, loaded = pool_of("a", memory_cap_bytes=500)

    async def run():
        with pytest.raises(MemoryLimitError, match="may use"):
            async with pool.lease("a"):
                pass

    asyncio.run(run())
    assert loaded == []


def test_what_loading_raises_is_raised_again_for_the_next_who_asks():
    pool, _ = pool_of("a")
    broken = ModelPool(ServerSettings(models=("gone/model",)))

    async def run():
        for _ in range(2):
            with pytest.raises(ModelNotFoundError):
                async with broken.lease(None):
                    pass
        assert not await pool.unload("a")

    asyncio.run(run())


def test_nano_is_described_without_being_loaded():
    pool = ModelPool(ServerSettings(models=("nano",), context_tokens=2048))
    info = pool.info("nano")
    assert info.context_tokens == 2048 and info.num_bytes > 1 << 20
    assert pool.loaded() == {} and dataclasses.asdict(info)["fingerprint"].startswith("aperto-")


def test_an_intervention_is_served_beside_its_model(tmp_path):
    change = {"point": "layers.*.moe.topk", "count": 1}
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"format": "aperto-variant", "version": 1, "changes": [change]}))
    settings = ServerSettings(models=("nano",), adapters={"one": path}, context_tokens=512)
    pool = ModelPool(settings)

    async def run():
        answers = {}
        for name in ("nano", "nano:one"):
            async with pool.lease(name) as lease:
                answers[lease.name] = lease.model.trace("bread", ["layers.0.moe.topk"])
                if lease.adapter:
                    assert (lease.info.vetted, lease.info.path) == ("no", path)
        with pytest.raises(ApiError, match="no adapter 'two' here; there are: nano, nano:one"):
            async with pool.lease("nano:two"):
                pass
        await pool.close()
        return [(taken["layers.0.moe.topk"] >= 0).mean() for taken in answers.values()]

    assert asyncio.run(run()) == [1.0, 0.5]  # of two places a token
    base, own = pool.info("nano"), pool.variant_info("nano", "one")
    assert base.vetted is None and base.fingerprint != own.fingerprint
    assert model_object(own)["vetted"] == "no" and model_object(own)["id"] == "nano:one"
