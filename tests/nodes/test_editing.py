"""Editing with the nodes: the library's result on a real host, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.conditioning import StageCInputs, TextEmbedding
from cascade.diffusion import Guidance, Inverted, SamplingSettings
from cascade.editing import EditStrength, PromptTokens, PromptToPrompt, WordMaps, align
from cascade.pipelines import Inversion, StagePlan, Start
from cascade.pipelines.inversion import MadeWith
from cascade.pipelines.stages import invert_stage_c, sample_stage_c
from tests.nodes import networks, node_calls
from tests.nodes.networks import random
from tests.nodes.node_calls import NEGATIVE, clip, conditioning, model, stage_b, stage_c
from tests.support import relative_error

BEFORE, AFTER = "a red circle on a white background", "a green star on a white background"
LATENTS, EMPTY = 100 * random(2, 16, 5, 6, seed=4), torch.zeros(2, 16, 5, 6)
"""Images, as large as what the random network makes, and none."""
SETTINGS = {"seed": 7, "steps": 4, "cfg": 4.0, "shift": 2.0}
STRENGTHS = {"text_attention": 0.6, "image_attention": 0.4, "blend": 0.0, "skip": 0}
RUN = SamplingSettings(steps=4, shift=2.0, guidance=Guidance(cfg=4.0))


def text_encode(host: Any, text: str) -> Any:
    return host.call("CascadeTextEncode", clip=clip(host), positive=text, negative="")[0]


def prompt(host: Any, text: str) -> Any:
    """Text Encode's, with a smaller embedding: those of the random text encoder are so large that rounding grows."""
    [[_, extras]] = text_encode(host, text)
    return conditioning(embedding(text), **{"cascade_prompt": extras["cascade_prompt"]})


def embedding(text: str) -> TextEmbedding:
    """Of start and end token, and seven between them."""
    return node_calls.embedding(sum(map(ord, text)))


def tokens(host: Any, text: str) -> PromptTokens:
    return PromptTokens(text, text_encode(host, text)[0][1]["cascade_prompt"].tokens.ids)


def inverted(host: Any, **changes: Any) -> Any:
    given = {"positive": prompt(host, BEFORE), "negative": conditioning(NEGATIVE)}
    given |= {"model": model(host, "stage_c"), "latent_image": {"samples": LATENTS}, **SETTINGS}
    return host.call("CascadeInvertImage", **{**given, **changes})[0]


def edited(host: Any, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """After, before, mask."""
    given = {"source": prompt(host, BEFORE), "positive": prompt(host, AFTER), "negative": conditioning(NEGATIVE)}
    given |= {"model": model(host, "stage_c"), "latent_image": {"samples": EMPTY}, "sampler_name": "ddpm"}
    after, before, mask = host.call("CascadeEditByPrompt", **{**given, **SETTINGS, **STRENGTHS, **changes})
    return after["samples"], before["samples"], mask


def plan(host: Any, *texts: str, **more: Any) -> StagePlan[StageCInputs]:
    """The library's plan of a run with two images of each prompt."""
    text = TextEmbedding.join([embedding(text) for text in texts for _ in range(2)])
    cond = StageCInputs.without_image(text, networks.IMAGE)
    given = {"size": LATENTS.shape[1:], "seeds": [7, 8] * len(texts), "settings": RUN, "cond": cond, **more}
    return StagePlan(stage="stage_c", uncond=cond.unconditional(NEGATIVE), **given)


def control(host: Any, **strength: float) -> PromptToPrompt:
    return PromptToPrompt(align(tokens(host, BEFORE), tokens(host, AFTER), 9), EditStrength(**strength))


def library_net() -> Any:
    return networks.network("stage_c")


@pytest.mark.parametrize("blend", [0.0, 0.5])
def test_an_edit_is_the_librarys(host: Any, blend: float) -> None:
    acting = control(host, blend=blend)
    with torch.no_grad():
        expected = sample_stage_c(
            library_net(),
            plan(
                host,
                BEFORE,
                AFTER,
                attention=acting,
                keeping=acting.keeping,
                start=Start(latents=EMPTY.repeat(2, 1, 1, 1)),
            ),
        )
    after, before, mask = edited(host, blend=blend)
    assert relative_error(before, expected[:2]) < 1e-4
    assert relative_error(after, expected[2:]) < 1e-4
    assert relative_error(after, before) > 1e-2
    assert mask.shape == (2, 216, 256)
    assert bool((mask == 1).all()) == (blend == 0)


def test_the_image_before_is_the_plain_one(host: Any) -> None:
    _, before, _ = edited(host)
    assert relative_error(before, stage_c(host, batch=2, positive=prompt(host, BEFORE), **plain())) < 1e-4


def plain() -> dict[str, Any]:
    return {"negative": conditioning(NEGATIVE)}


def test_an_edit_that_is_off_changes_no_bit(host: Any) -> None:
    after, before, _ = edited(host, text_attention=0.0, image_attention=0.0)
    [[old, extras]], [[new, others]] = prompt(host, BEFORE), prompt(host, AFTER)
    pooled = torch.cat([extras["pooled_output"]] * 2 + [others["pooled_output"]] * 2)
    both = [[torch.cat([old, old, new, new]), {"pooled_output": pooled}]]
    latent = {"samples": torch.zeros(4, 16, 5, 6), "batch_index": [0, 1, 0, 1]}
    assert torch.equal(torch.cat([before, after]), stage_c(host, positive=both, latent_image=latent, **plain()))


def test_an_image_is_edited_the_same_alone(host: Any) -> None:
    alone, _, _ = edited(host, latent_image={"samples": EMPTY[1:], "batch_index": [1]})
    assert relative_error(alone, edited(host)[0][1:]) < 1e-3


@pytest.mark.parametrize("skip", [0, 2])
def test_an_edit_of_an_inverted_image_is_the_librarys(host: Any, skip: int) -> None:
    acting, net, latent = control(host), library_net(), inverted(host)
    noise = latent["cascade_inversion"].noise
    with torch.no_grad():
        found = invert_stage_c(net, plan(host, BEFORE, start=Start(latents=LATENTS)))
        made = Inversion(LATENTS, Inverted(noise.starts, noise.added), MadeWith(4, 4.0, 2.0))
        expected = sample_stage_c(net, made.plan(plan(host, BEFORE, AFTER, attention=acting), skip))
    assert relative_error(noise.starts, found.starts) < 1e-4
    assert relative_error(noise.added, found.added) < 1e-4
    after, before, _ = edited(host, latent_image=latent, skip=skip)
    assert relative_error(after, expected[2:]) < 1e-4
    assert relative_error(before, LATENTS) < 1e-4
    assert relative_error(after, LATENTS) > 1e-3


def test_previews_show_the_edit(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_preview

    seen: list[Tensor] = []
    monkeypatch.setattr(latent_preview, "prepare_callback", lambda *_: lambda step, x0, x, total: seen.append(x0))
    after, _, _ = edited(host)
    assert len(seen) == 4
    assert relative_error(seen[-1], after) < 1e-4


def test_word_maps_are_the_librarys(host: Any) -> None:
    reading = host.pack("nodes.host.editing").READING
    settings = SamplingSettings(steps=reading.steps, shift=2.0, start_percent=0.5, guidance=Guidance(cfg=1.0))
    maps = WordMaps()
    given = plan(host, BEFORE, settings=settings, seeds=[0, 1], start=Start(latents=LATENTS), attention=maps)
    with torch.no_grad():
        invert_stage_c(library_net(), given)
    places = {word: tokens(host, BEFORE).find(tokens(host, word)) for word in ("circle", "white background")}
    image = torch.rand(1, 216, 256, 3)
    overlay, mask = word_map(host, words="circle, white background", threshold=0.0, image=image)
    expected = torch.cat([maps.shown(at, (216, 256)) for at in places.values()])[:, 0]
    assert mask.shape == (4, 216, 256)
    assert float((mask - expected).abs().max()) < 1e-3
    assert overlay.shape == (4, 216, 256, 3)
    assert bool((overlay <= image).all())
    cut = word_map(host, words="circle", threshold=0.5)[1]
    assert torch.equal(cut, (mask[:2] >= 0.5).float())


def word_map(host: Any, **changes: Any) -> Any:
    given = {"model": model(host, "stage_c"), "positive": prompt(host, BEFORE), "latent": {"samples": LATENTS}}
    return host.call("CascadeWordMap", **{**given, "words": "circle", "threshold": 0.5, **changes})


def test_words_that_are_not_in_the_prompt_are_named(host: Any) -> None:
    for words in ("star", "circle, star", " , "):
        with pytest.raises(host.errors.InvalidSettings, match="is not in the prompt 'a red circle"):
            word_map(host, words=words)


def test_only_prompts_with_words_can_be_compared(host: Any) -> None:
    for wrong in (conditioning(NEGATIVE), [*prompt(host, AFTER), *prompt(host, BEFORE)]):
        with pytest.raises(host.errors.CascadeError, match="positive must be one prompt whose words are known"):
            edited(host, positive=wrong)
        with pytest.raises(host.errors.CascadeError, match="positive must be one prompt"):
            word_map(host, positive=wrong)
        with pytest.raises(host.errors.CascadeError, match="positive must be one prompt"):
            inverted(host, positive=wrong)
    with pytest.raises(host.errors.CascadeError, match="source must be one prompt"):
        edited(host, source=conditioning(NEGATIVE))


def test_prompts_must_share_a_word_and_differ(host: Any) -> None:
    with pytest.raises(host.errors.InvalidSettings, match="no word in common"):
        edited(host, positive=prompt(host, "two blue hearts"))
    with pytest.raises(host.errors.InvalidSettings, match="the same prompt"):
        edited(host, positive=prompt(host, BEFORE))
    with pytest.raises(host.errors.InvalidSettings, match="77 and 154 tokens"):
        edited(host, source=text_encode(host, BEFORE), positive=text_encode(host, BEFORE + ", red" * 60))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, "made with steps 4, and the edit has 5"),
        ({"shift": 1.0}, "made with shift 2, and the edit has 1"),
        ({"sampler_name": "ddim"}, "made with sampler_name ddpm, and the edit has ddim"),
        ({"skip": 4}, "can skip 0 to 3, not 4"),
    ],
)
def test_an_inversion_with_other_settings_is_refused(host: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(host.errors.InvalidSettings, match=message):
        edited(host, latent_image=inverted(host), **changes)


def test_an_inversion_of_something_else_is_refused(host: Any) -> None:
    latent = inverted(host)
    with pytest.raises(host.errors.InvalidSettings, match="latents of height x width 5 x 6, and the edit has 10 x 12"):
        edited(host, latent_image={**latent, "samples": LATENTS.repeat(1, 1, 2, 2)})
    with pytest.raises(host.errors.InvalidSettings, match="inverted 2 images, and latent_image has 1"):
        edited(host, latent_image={**latent, "samples": LATENTS[:1]})
    with pytest.raises(host.errors.InvalidSettings, match="inverted with the prompt 'a red circle"):
        edited(host, latent_image=latent, source=prompt(host, "a blue circle"))
    found = latent["cascade_inversion"]
    other = type(found)(found.latents, found.noise, type(found.made)(4, 4.0, 2.0, prompt=BEFORE, model="other"))
    with pytest.raises(host.errors.IncompatibleCheckpoint, match="another Stage C"):
        edited(host, latent_image={**latent, "cascade_inversion": other})


def test_an_image_that_was_not_inverted_is_refused(host: Any) -> None:
    with pytest.raises(host.errors.CascadeError, match="put Invert Image"):
        edited(host, latent_image={"samples": LATENTS})
    with pytest.raises(host.errors.InvalidSettings, match="skip is for images of Invert Image"):
        edited(host, skip=1)
    for call in (inverted, word_map):
        with pytest.raises(host.errors.CascadeError, match="This latent is empty"):
            call(host, **{"latent_image" if call is inverted else "latent": {"samples": EMPTY}})


def test_stage_b_is_refused(host: Any) -> None:
    for call in (inverted, edited, word_map):
        with pytest.raises(host.errors.CascadeError, match="takes a Stage C model"):
            call(host, model=model(host, "stage_b"))


def test_the_stop_button_ends_them(host: Any) -> None:
    import comfy.model_management as management

    for call in (inverted, edited, word_map):
        management.interrupt_current_processing()
        with pytest.raises(management.InterruptProcessingException):
            call(host)
    assert edited(host, latent_image=inverted(host))[0].shape == LATENTS.shape


def test_stage_b_takes_the_result(host: Any) -> None:
    assert stage_b(host, edited(host)[0]).shape[:2] == (2, 4)
