"""LoRAs and learned tokens on a real host: what they do is what the library does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascade.adapters import Applied, Lora, LowRank, Rows, Token, attach, read_lora, save_lora
from cascade.adapters.changes import Full
from cascade.adapters.lora import TABLE
from cascade.conditioning import TextEncoder
from cascade.models import StageC
from tests.nodes import networks
from tests.nodes.graphs import LoadedGraph
from tests.nodes.hosting import Failed, Graph
from tests.nodes.networks import WIDTH, file_name
from tests.support import relative_error

QUERY = "down_blocks.0.2.attention.attn.to_q.weight"
FC1 = "text_model.encoder.layers.0.mlp.fc1.weight"
WORD = "[owl]"


def low(out: int, into: int, seed: int = 0, dora: int | None = None) -> LowRank:
    """dora 0 or 1: lengths of its rows or columns."""
    generator = torch.Generator().manual_seed(seed)
    lengths = None if dora is None else torch.rand((out, 1) if dora == 0 else (1, into), generator=generator) + 0.5
    return LowRank(torch.randn(2, into, generator=generator), torch.randn(out, 2, generator=generator), 1.0, lengths)


def some_lora(*, token: bool = True) -> Lora:
    """Every kind of change, and a token of two vectors."""
    stage_c = {
        QUERY: low(64, 64, 1),
        QUERY.replace("to_q", "to_k"): low(64, 64, 2, dora=0),
        QUERY.replace("to_q", "to_v"): low(64, 64, 3, dora=1),
        "down_blocks.0.0.depthwise.weight": LowRank(torch.randn(2, 64, 3, 3), torch.randn(1, 2, 1, 1), 0.1),
        "clf.1.weight": LowRank(torch.randn(2, 64, 1, 1), torch.randn(16, 2, 1, 1), 0.1),
        "clf.1.bias": Full(torch.randn(16)),
    }
    text = {FC1: low(48, WIDTH, 4), TABLE: Rows(torch.tensor([320]), torch.ones(1, WIDTH))}
    generator = torch.Generator().manual_seed(5)
    tokens = (Token(WORD, torch.randn(2, WIDTH, generator=generator)),) if token else ()
    return Lora({"stage_c": stage_c, "text_encoder": text}, tokens, {"steps": 7})


def put(host: Any, lora: Lora, name: str = "some.safetensors", **options: Any) -> str:
    folder = host.models / "loras"
    folder.mkdir(exist_ok=True)
    save_lora(lora, folder / name, **options)
    return name


def model(host: Any, dtype: str = "fp32") -> Any:
    return host.call("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype=dtype, previewer="none")[0]


def clip(host: Any) -> Any:
    return host.call("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")[0]


def load(
    host: Any, lora_name: str, model: Any = None, clip: Any = None, strengths: tuple[float, float] = (1, 1), **more: Any
):
    return host.call(
        "CascadeLoadLora",
        lora_name=lora_name,
        model=model,
        clip=clip,
        strength_model=strengths[0],
        strength_clip=strengths[1],
        **more,
    )


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"clip_text": (1, 5, WIDTH), "clip_text_pooled": (1, 1, WIDTH), "clip_img": (1, 1, networks.IMAGE)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


X = torch.randn(1, 16, 6, 5, generator=torch.Generator().manual_seed(2))
R = torch.tensor([0.4])


def predicted(patcher: Any) -> Tensor:
    """What the host's network says with its patches in its weights."""
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        net = patcher.model.diffusion_model
        net.cache.clear()
        return net.denoise(X, R, net.conditions(**inputs())).clone()


def expected(lora: Lora, strength: float) -> Tensor:
    net: Any = networks.network("stage_c")
    with attach([Applied(lora, strength)], stage_c=net), torch.no_grad():
        return net.denoise(X, R, net.conditions(**inputs()))


def encoded(clip: Any, prompt: str) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        [[hidden, extras]] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return hidden, extras["pooled_output"]


@pytest.mark.parametrize("strength", [1.0, 0.3, -0.5])
def test_a_lora_acts_as_in_the_library(host: Any, strength: float) -> None:
    lora = some_lora()
    base = model(host)
    before = predicted(base)
    changed, _, report = load(host, put(host, lora), base, clip(host), (strength, 1.0))
    assert relative_error(predicted(changed), expected(lora, strength)) < 1e-4
    assert relative_error(before, expected(lora, 1.0)) > 1e-2
    assert torch.equal(predicted(base), before)
    assert "Stage C: 6 of 6 tensors" in report
    assert "text encoder: 2 of 2 tensors" in report
    assert WORD in report


def test_the_text_encoder_and_its_tokens_are_the_librarys(host: Any) -> None:
    lora, net = some_lora(), networks.network("text_encoder")
    changed = load(host, put(host, lora), None, clip(host), (1.0, 0.7))[1]
    from cascade.conditioning import tokenizer

    for prompt in ("a red circle", f"a red {WORD} here", f"{WORD}{WORD}, a ({WORD})", "", f"an {WORD.upper()}."):
        with attach([Applied(lora, 0.0, 0.7)], text_encoder=net, tokenizer=tokenizer()) as attachment:
            theirs = TextEncoder(net, attachment.tokenizer).encode([prompt.replace("(", "").replace(")", "")])
        if "(" in prompt:  # a weight of 1.1 the library does not have
            continue
        hidden, pooled = encoded(changed, prompt)
        assert relative_error(hidden, theirs.hidden) < 1e-4, prompt
        assert relative_error(pooled, theirs.pooled[:, 0]) < 1e-4, prompt


def test_tokens_have_weights_and_stand_anywhere(host: Any) -> None:
    lora = Lora({}, some_lora().tokens)
    known = load(host, put(host, lora), None, clip(host))[1]
    tokens = known.tokenize(f"a ({WORD}:1.2) and {WORD}")["g"][0]
    vectors = [(token, weight) for token, weight, *_ in tokens if torch.is_tensor(token)]
    assert [weight for _, weight in vectors] == [1.2, 1.2, 1.0, 1.0]
    assert torch.equal(vectors[0][0], lora.tokens[0].vectors[0])
    assert torch.equal(vectors[3][0], lora.tokens[0].vectors[1])
    one, other = host.call("CascadeTextEncode", clip=known, positive=f"({WORD}:1.4)", negative=WORD)
    assert relative_error(one[0][0], other[0][0]) > 1e-3
    assert torch.equal(encoded(known, "a red circle")[0], encoded(clip(host), "a red circle")[0])
    assert not any(torch.is_tensor(token) for token, *_ in clip(host).tokenize(WORD)["g"][0])
    long = known.tokenize("a red circle and " * 30 + WORD)["g"]
    assert sum(torch.is_tensor(token) for batch in long for token, *_ in batch) == 2
    assert {len(batch) for batch in long} == {77}


def test_the_hosts_own_nodes_know_the_tokens(host: Any) -> None:
    graph, file = Graph(), put(host, some_lora())
    loaded = graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
    lora = graph("CascadeLoadLora", clip=loaded, lora_name=file, strength_model=1.0, strength_clip=1.0)
    skipped = graph("CLIPSetLastLayer", clip=lora[1], stop_at_clip_layer=-1)
    prompt = f"a ({WORD}:1.2)"
    theirs = graph("CLIPTextEncode", clip=skipped[0], text=prompt)
    ours = graph("CascadeTextEncode", clip=lora[1], positive=prompt, negative="")
    plain = graph("CLIPTextEncode", clip=loaded, text=prompt)
    result = host.run(graph, theirs=theirs, ours=ours, plain=plain)
    assert torch.equal(result.theirs[0][0], result.ours[0][0])
    assert relative_error(result.plain[0][0], result.ours[0][0]) > 1e-2


def test_strength_0_is_no_lora_bit_for_bit(host: Any) -> None:
    base, text = model(host), clip(host)
    changed, known, report = load(host, put(host, some_lora()), base, text, (0.0, 0.0))
    assert changed is base
    assert known is text
    assert "0 of 6" in report


def test_several_loras_add_up(host: Any) -> None:
    one, two = some_lora(), Lora({"stage_c": {QUERY: low(64, 64, 9)}})
    slots = {f"lora_name{n}": "none" for n in range(1, 6)} | {f"strength{n}": 1.0 for n in range(1, 6)}
    slots |= {"lora_name2": put(host, one, "one.safetensors"), "lora_name4": put(host, two, "two.safetensors")}
    slots |= {"strength4": -0.5}
    changed, _, report = host.call("CascadeLoraStack", model=model(host), clip=None, **slots)
    net: Any = networks.network("stage_c")
    with attach([Applied(one), Applied(two, -0.5)], stage_c=net), torch.no_grad():
        theirs = net.denoise(X, R, net.conditions(**inputs()))
    assert relative_error(predicted(changed), theirs) < 1e-4
    assert report.count("Stage C: ") == 2
    assert "Stage C: 6 of 6" in report


def test_500_loras(host: Any) -> None:
    lora = Lora({"stage_c": {QUERY: low(64, 64, 1)}}, (Token("[x]", torch.ones(1, WIDTH)),))
    file = put(host, lora, "one_of_many.safetensors")
    changed, known = model(host), clip(host)
    slots = {f"lora_name{n}": file for n in range(1, 6)} | {f"strength{n}": 0.01 for n in range(1, 6)}
    for _ in range(100):
        changed, known, _ = host.call("CascadeLoraStack", model=changed, clip=known, **slots)
    assert len(changed.patches["diffusion_model." + QUERY]) == 500
    assert relative_error(predicted(changed), expected(replace(lora, tokens=()), 5.0)) < 1e-3
    assert known.tokenizer.clip_g.tokens == ("[x]",)


@pytest.mark.parametrize("format", ["kohya", "onetrainer", "onetrainer_diffusers", "omi", "peft"])
def test_files_of_other_trainers(host: Any, format: str) -> None:
    stage_c = {QUERY: low(64, 64, 1), QUERY.replace("to_q", "to_k"): low(64, 64, 2)}
    lora = Lora({"stage_c": stage_c, "text_encoder": {FC1: low(48, WIDTH, 4)}})
    file = put(host, lora, f"{format}.safetensors", format=format)
    changed, _, report = load(host, file, model(host), clip(host))
    assert relative_error(predicted(changed), expected(lora, 1.0)) < 1e-4
    assert "Stage C: 2 of 2" in report


def released_file(host: Any) -> str:
    blocks = [n for n, _ in networks.network("stage_c").named_parameters() if n.endswith("to_q.weight")]
    changes = {name.replace("to_q", m): low(64, 64, i) for name in blocks for i, m in enumerate(("to_q", "out_proj"))}
    token = Token(WORD, torch.zeros(1, WIDTH), "^dog</w>")
    file = put(host, Lora({"stage_c": changes}, (token,)), format="released", config=networks.CONFIGS["stage_c"])
    path = host.models / "loras" / file
    save_file(load_file(path), path)  # without the metadata that has the token's text
    return file


def test_the_released_trainers_file_and_its_token(host: Any) -> None:
    file, encoder = released_file(host), clip(host)
    with pytest.raises(host.errors.CascadeError, match="without a name"):
        load(host, file, model(host), encoder)
    changed, known, _ = load(host, file, model(host), encoder, token_names="[fernando] = ^dog</w>")
    assert relative_error(encoded(known, "a [fernando] here")[0], encoded(encoder, "a dog here")[0]) < 1e-5
    read = read_lora(host.models / "loras" / file, config=networks.CONFIGS["stage_c"])
    assert relative_error(predicted(changed), expected(read, 1.0)) < 1e-4


def by_the_host(host: Any, name: str) -> Any:
    """model and clip with a LoRA of ComfyUI's own loader."""
    graph = Graph()
    stage = graph("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="fp32", previewer="none")
    text = graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    theirs = graph("LoraLoader", model=stage, clip=text, lora_name=name, **strengths)
    return host.run(graph, model=theirs[0], clip=theirs[1])


@pytest.mark.parametrize("format", ["comfyui", "kohya", "onetrainer"])
def test_the_hosts_lora_loader_reads_what_is_converted(host: Any, format: str) -> None:
    lora = Lora({"stage_c": {QUERY: low(64, 64, 1)}, "text_encoder": {FC1: low(48, WIDTH, 4)}})
    put(host, lora, format="cascade")
    graph = Graph()
    saved = graph("CascadeSaveLora", lora_name="some.safetensors", filename_prefix=f"sub/{format}", format=format)
    path = Path(host.run(graph, path=saved).path)
    assert path == (host.models / "loras" / "sub" / f"{format}_00001_.safetensors").resolve()
    result = by_the_host(host, f"sub/{format}_00001_.safetensors")
    assert relative_error(predicted(result.model), expected(lora, 1.0)) < 1e-4
    theirs = encoded(result.clip, "a dog")[0]
    assert relative_error(theirs, encoded(load(host, "some.safetensors", None, clip(host))[1], "a dog")[0]) < 1e-5
    assert relative_error(theirs, encoded(clip(host), "a dog")[0]) > 1e-3


def test_the_hosts_lora_loader_reads_the_default_format_whole(host: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Every kind of change but DoRA, for which the host has a formula of its own."""
    lora = some_lora()
    stage_c = {
        name: change for name, change in lora.changes["stage_c"].items() if getattr(change, "dora", None) is None
    }
    stage_c["up_blocks.0.0.channelwise.2.gamma"] = Full(torch.randn(1, 1, 1, 256))
    text = {**lora.changes["text_encoder"], "text_model.final_layer_norm.weight": Full(torch.randn(WIDTH))}
    lora = replace(lora, changes={"stage_c": stage_c, "text_encoder": text})
    result = by_the_host(host, put(host, lora, "default.safetensors"))
    assert relative_error(predicted(result.model), expected(lora, 1.0)) < 1e-4
    ours = load(host, "default.safetensors", None, clip(host))[1]
    for prompt in ("a dog", "a an the"):
        assert relative_error(encoded(result.clip, prompt)[0], encoded(ours, prompt)[0]) < 1e-4
    missed = [record.getMessage() for record in caplog.records if "key not loaded" in record.getMessage()]
    assert missed == [f"lora key not loaded: bundle_emb.{WORD}.clip_g"]


def test_with_the_hosts_loader_a_default_file_makes_the_same_latents(host: Any) -> None:
    name = put(
        host, Lora({"stage_c": {QUERY: low(64, 64, 1)}, "text_encoder": {FC1: low(48, WIDTH, 4)}}), "same.safetensors"
    )
    parts = LoadedGraph()
    wanted = {"plain": parts.cascade()}
    for node in ("LoraLoader", "CascadeLoadLora"):
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        loaded = parts.graph(node, model=parts.model, clip=parts.clip, lora_name=name, **strengths)
        text = parts.encoded("a red circle on the left", clip=loaded[1])
        wanted[node] = parts.cascade(model=loaded[0], positive=text[0], negative=text[1])
    result = host.run(parts.graph, **wanted)
    theirs, ours, plain = (vars(result)[name]["samples"] for name in ("LoraLoader", "CascadeLoadLora", "plain"))
    assert relative_error(theirs, ours) < 1e-4
    assert relative_error(plain, ours) > 1e-2


def test_a_saved_embedding_is_the_hosts(host: Any) -> None:
    put(host, Lora({}, some_lora().tokens), "word.safetensors")
    saved = {"lora_name": "word.safetensors", "filename_prefix": "embedding", "format": "embedding"}
    [path] = host.call("CascadeSaveLora", **saved)
    folder = host.models / "embeddings"
    folder.mkdir(exist_ok=True)
    Path(path).rename(folder / "owlish.safetensors")
    plain = host.call("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")[0]
    ours = load(host, "word.safetensors", None, clip(host))[1]
    assert relative_error(encoded(plain, "a embedding:owlish here")[0], encoded(ours, f"a {WORD} here")[0]) < 1e-5


@pytest.mark.usefixtures("no_merged_file_stays")
def test_a_merged_checkpoint_is_what_was_attached(host: Any) -> None:
    changed = load(host, put(host, some_lora()), model(host), None)[0]
    [path] = host.call("CascadeMergeLora", model=changed, filename_prefix="merged")
    assert Path(path).parent == (host.models / "diffusion_models").resolve()
    again = host.call("CascadeLoadStageC", unet_name=Path(path).name, weight_dtype="fp32", previewer="none")[0]
    assert relative_error(predicted(again), predicted(changed)) < 1e-4
    with pytest.raises(host.errors.CascadeError, match="nothing to merge"):
        host.call("CascadeMergeLora", model=model(host), filename_prefix="merged")


def test_an_extracted_lora_is_the_difference(host: Any) -> None:
    lora = Lora({"stage_c": {QUERY: low(64, 64, 1), QUERY.replace("to_q", "to_v"): low(64, 64, 2)}})
    base = model(host)
    changed = load(host, put(host, lora), base, None)[0]
    [found] = host.call("CascadeExtractLora", base_model=base, tuned_model=changed, rank=4)
    assert set(found.changes["stage_c"]) == set(lora.changes["stage_c"])
    again = load(host, "some.safetensors", base, None, lora=found)[0]
    assert relative_error(predicted(again), predicted(changed)) < 1e-3
    [path] = host.call(
        "CascadeSaveLora", lora_name="some.safetensors", lora=found, filename_prefix="extracted", format="onetrainer"
    )
    assert read_lora(path).format == "onetrainer"
    with pytest.raises(host.errors.CascadeError, match="equal"):
        host.call("CascadeExtractLora", base_model=base, tuned_model=base, rank=4)


def test_info_tells_and_draws(host: Any) -> None:
    info, image = host.call("CascadeLoraInfo", lora_name=put(host, some_lora()))
    assert "rank: 2" in info
    assert f"token: {WORD}, 2 vectors" in info
    assert "steps: 7" in info
    assert image.shape == (1, 420, 1024, 3)
    blue = (image[0] - torch.tensor([0x1F, 0x4E, 0x8C]) / 255).abs().amax(-1) < 0.02
    assert blue.float().mean() > 0.01


def test_an_embedding_alone(host: Any) -> None:
    folder = host.models / "embeddings"
    folder.mkdir(exist_ok=True)
    vectors = torch.randn(2, WIDTH)
    save_file({"clip_g": vectors}, folder / "barn owl.safetensors")
    for word, name in (("", "[barn_owl]"), ("[b]", "[b]")):
        known, words = host.call(
            "CascadeLoadEmbedding", clip=clip(host), embedding_name="barn owl.safetensors", token=word
        )
        assert words == name
        found = [token for token, *_ in known.tokenize(f"a {name}")["g"][0] if torch.is_tensor(token)]
        assert torch.equal(torch.stack(found), vectors)
    known, words = host.call("CascadeLoadEmbedding", clip=clip(host), embedding_name=put(host, some_lora()), token="")
    assert words == WORD
    assert not known.patcher.patches
    with pytest.raises(host.errors.CascadeError, match="no learned tokens"):
        host.call(
            "CascadeLoadEmbedding",
            clip=clip(host),
            embedding_name=put(host, some_lora(token=False), "no.safetensors"),
            token="",
        )


def bad(host: Any, name: str, data: bytes) -> str:
    (host.models / "loras").mkdir(exist_ok=True)
    (host.models / "loras" / name).write_bytes(data)
    return name


class Evil:
    def __reduce__(self) -> Any:
        return print, ("code was run",)


def evil() -> bytes:
    import io
    import pickle

    buffer = io.BytesIO()
    torch.save({"weights": Evil()}, buffer, pickle_module=pickle)
    return buffer.getvalue()


def with_tensors(host: Any, name: str, tensors: dict[str, Tensor]) -> str:
    (host.models / "loras").mkdir(exist_ok=True)
    save_file(tensors, host.models / "loras" / name)
    return name


def pair(name: str, out: int, into: int, rank: int = 2) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": torch.ones(rank, into), f"{name}.lora_up.weight": torch.ones(out, rank)}


STEM = "lora_unet_down_blocks_0_2_attention_attn_to_q"
BAD: dict[str, tuple[Any, str]] = {
    "empty.safetensors": (lambda host, name: bad(host, name, b""), "empty"),
    "cut.safetensors": (
        lambda host, name: bad(host, name, (host.models / "loras" / put(host, some_lora())).read_bytes()[:-64]),
        "truncated",
    ),
    "evil.pt": (lambda host, name: bad(host, name, evil()), "code"),
    "rank0.safetensors": (lambda host, name: with_tensors(host, name, pair(STEM, 64, 64, 0)), "rank 0"),
    "nan.safetensors": (
        lambda host, name: with_tensors(host, name, {k: v * float("nan") for k, v in pair(STEM, 64, 64).items()}),
        "NaN",
    ),
    "wrong_size.safetensors": (
        lambda host, name: with_tensors(host, name, pair(STEM, 2048, 2048)),
        "made for a Stage C 2048 wide",
    ),
    "elsewhere.safetensors": (
        lambda host, name: with_tensors(host, name, pair("lora_unet_down_blocks_7_2_attention_attn_to_q", 64, 64)),
        "is not there",
    ),
    "sdxl.safetensors": (
        lambda host, name: with_tensors(host, name, pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", 8, 8)),
        "SDXL",
    ),
    "common.safetensors": (
        lambda host, name: put(host, Lora({}, (Token("dog", torch.zeros(1, WIDTH)),)), name),
        "ordinary word",
    ),
    "wide.safetensors": (
        lambda host, name: put(host, Lora({}, (Token("[w]", torch.zeros(1, 1280)),)), name),
        "1280 wide",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_reason(host: Any, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, reason = BAD[name]
    make(host, name)
    graph = Graph()
    stage = graph("CascadeLoadStageC", unet_name=file_name("stage_c"), weight_dtype="fp32", previewer="none")
    text = graph("CascadeLoadTextEncoder", clip_name=file_name("text_encoder"), weight_dtype="fp32")
    lora = graph("CascadeLoadLora", model=stage, clip=text, lora_name=name, strength_model=1.0, strength_clip=1.0)
    with pytest.raises(Failed, match=reason) as error:
        host.run(graph, fresh=True, model=lora[0], clip=lora[1])
    assert error.value.details["node_type"] == "CascadeLoadLora"
    assert name in error.value.details["exception_message"]
    assert "code was run" not in capfd.readouterr().out


def test_two_loras_that_define_one_token_differently(host: Any) -> None:
    one, other = (Lora({}, (Token("[w]", torch.full((1, WIDTH), value)),)) for value in (1.0, 2.0))
    first = load(host, put(host, one, "a.safetensors"), None, clip(host))[1]
    load(host, "a.safetensors", None, first)
    with pytest.raises(
        host.errors.CascadeError, match=r"a\.safetensors and .*b\.safetensors both define the token \[w\]"
    ):
        load(host, put(host, other, "b.safetensors"), None, first)


def test_a_lora_that_would_do_nothing_is_refused(host: Any) -> None:
    file = put(host, Lora({"stage_c": {QUERY: low(64, 64)}}))
    with pytest.raises(host.errors.CascadeError, match="connect model"):
        load(host, file, None, clip(host))
    words = put(host, Lora({}, some_lora().tokens), "words.safetensors")
    with pytest.raises(host.errors.CascadeError, match="connect clip"):
        load(host, words, model(host), None)
    assert "not added: connect clip" in load(host, put(host, some_lora()), model(host), None)[2]


def test_a_stage_b_is_refused(host: Any) -> None:
    stage_b = host.call("CascadeLoadStageB", unet_name=file_name("stage_b"), weight_dtype="fp32")[0]
    with pytest.raises(host.errors.CascadeError, match="Stage C"):
        load(host, put(host, some_lora()), stage_b, None)


def test_saved_files_are_numbered_and_replace_none(host: Any) -> None:
    put(host, some_lora())
    folder = (host.models / "loras" / "numbered").resolve()

    def save(prefix: str) -> Path:
        given = {"lora_name": "some.safetensors", "format": "cascade"}
        return Path(host.call("CascadeSaveLora", filename_prefix=prefix, **given)[0])

    first = save("numbered/owl")
    before = first.read_bytes()
    (folder / "owl_00007_.safetensors").write_bytes(b"of somebody else")
    assert [first, save("numbered/owl"), save("numbered/other")] == [
        folder / name for name in ("owl_00001_.safetensors", "owl_00008_.safetensors", "other_00001_.safetensors")
    ]
    assert first.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [(name, "no name for a file") for name in ("../outside", "/tmp/outside", "", "  ", "a/../../b")]
    + [("x\0y", "no control characters")],
)
def test_files_are_written_nowhere_else(host: Any, name: str, reason: str) -> None:
    put(host, some_lora())
    with pytest.raises(host.errors.CascadeError, match=reason):
        host.call("CascadeSaveLora", lora_name="some.safetensors", filename_prefix=name, format="cascade")


def test_the_library_has_the_class_of_the_host(host: Any) -> None:
    """Merging goes through the library's own Stage C, whose config the host's network carries."""
    net = model(host).model.diffusion_model
    assert net.config.to_dict() == networks.CONFIGS["stage_c"].to_dict()
    assert StageC.__name__ in {cls.__name__ for cls in type(net).__mro__}
