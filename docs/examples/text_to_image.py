"""Text to image over ComfyUI's API: sends a prompt, follows it, and saves the images.

    python text_to_image.py "a small yellow star on a black background" --output star.png

Needs a running ComfyUI with this pack, and aiohttp, which ComfyUI itself needs. Without other choices it uses the
tiny cascade. The prompt below is what the page gives with "Export (API)".
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import aiohttp

TINY = "tiny cascade (included)"


class Refused(Exception):
    """ComfyUI did not accept the prompt."""


class Failed(Exception):
    """A node stopped with an error, or somebody pressed stop."""


def text_to_image(
    text: str, negative: str = "", seed: int = 1, checkpoint: str = TINY, size: int = 256
) -> dict[str, Any]:
    """The prompt in the format of the API: a node a name, links as [name, number of the output]."""
    sampling = {"seed": seed, "sampler_name": "ddpm", "denoise": 1.0}
    prompts = {"positive": ["text", 0], "negative": ["text", 1]}
    return {
        "checkpoint": node(
            "CascadeLoadCheckpoint", ckpt_name=checkpoint, second_ckpt_name="auto", weight_dtype="default"
        ),
        "text": node("CascadeTextEncode", clip=["checkpoint", 2], positive=text, negative=negative),
        "size": node("CascadeEmptyLatent", preset="custom", width=size, height=size, batch_size=1),
        "stage_c": node(
            "CascadeSampleStageC",
            **{"model": ["checkpoint", 0], "latent_image": ["size", 0], "steps": 20, "cfg": 4.0, "shift": 2.0},
            **prompts,
            **sampling,
        ),
        "stage_b": node(
            "CascadeSampleStageB",
            **{"model": ["checkpoint", 1], "stage_c": ["stage_c", 0], "latent_image": ["size", 1]},
            **{"steps": 10, "cfg": 1.1, "shift": 1.0},
            **prompts,
            **sampling,
        ),
        "decode": node("CascadeDecode", samples=["stage_b", 0], vae=["checkpoint", 3], tiling="auto", tile_size=1024),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="cascade_api"),
    }


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


async def generate(server: str, prompt: dict[str, Any]) -> list[bytes]:
    """The images that a prompt makes, as the files that ComfyUI saved.

    Raises Refused, Failed, and aiohttp.ClientError where the server is away.
    """
    client = str(uuid.uuid4())
    async with aiohttp.ClientSession(server) as session:
        # Listening first: what happens between sending and listening would be missed.
        async with session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as events:
            name = await send(session, prompt, client)
            try:
                await follow(events, name, prompt)
            except asyncio.CancelledError:
                # Ctrl-C: whether it waits or runs, ComfyUI need not finish it.
                await session.post("/queue", json={"delete": [name]})
                await session.post("/interrupt", json={"prompt_id": name})
                raise
        return await images(session, name)


async def send(session: aiohttp.ClientSession, prompt: dict[str, Any], client: str) -> str:
    """Queue a prompt; its id."""
    async with session.post("/prompt", json={"prompt": prompt, "client_id": client}) as response:
        answer = await response.json()
    if response.status != 200:
        raise Refused(explain(answer, prompt))
    return answer["prompt_id"]


def explain(answer: dict[str, Any], prompt: dict[str, Any]) -> str:
    """ComfyUI's refusal in lines: each node, and what is wrong with its inputs."""
    lines = [answer.get("error", {}).get("message", "The prompt was refused.")]
    for name, problem in (answer.get("node_errors") or {}).items():
        kind = prompt.get(name, {}).get("class_type", name)
        lines += [f"  {kind}: {each['message']}: {each['details']}" for each in problem["errors"]]
    return "\n".join(lines)


async def follow(events: aiohttp.ClientWebSocketResponse, name: str, prompt: dict[str, Any]) -> None:
    """Show the progress of a prompt until it is done. Raises Failed."""
    async for message in events:
        if message.type != aiohttp.WSMsgType.TEXT:
            continue  # binary ones are previews
        event = json.loads(message.data)
        kind, data = event["type"], event["data"]
        if data.get("prompt_id") != name:
            continue
        if kind == "progress":
            show(f"{prompt[data['node']]['class_type']}: step {data['value']} of {data['max']}")
        elif kind == "execution_error":
            raise Failed(f"{data['node_type']}: {data['exception_message'].strip()}")
        elif kind == "execution_interrupted":
            raise Failed("It was stopped.")
        elif kind == "execution_success":
            return
    raise Failed("ComfyUI closed the connection.")


async def images(session: aiohttp.ClientSession, name: str) -> list[bytes]:
    """The files that a finished prompt saved."""
    async with session.get(f"/history/{name}") as response:
        outputs = (await response.json())[name]["outputs"]
    found = []
    for output in outputs.values():
        for image in output.get("images", []):
            async with session.get("/view", params=image) as response:
                response.raise_for_status()
                found.append(await response.read())
    return found


def show(line: str) -> None:
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Text to image over ComfyUI's API.")
    parser.add_argument("text")
    parser.add_argument("--negative", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="side in pixels; 1024 for the released models")
    parser.add_argument("--checkpoint", default=TINY, help="a choice of Load Checkpoint (Stable Cascade)")
    parser.add_argument("--output", type=Path, default=Path("cascade.png"))
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    prompt = text_to_image(options.text, options.negative, options.seed, options.checkpoint, options.size)
    try:
        [image] = asyncio.run(generate(options.server, prompt))
    except (Refused, Failed) as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except aiohttp.ClientError as problem:
        print(f"ComfyUI at {options.server} does not answer: {problem}", file=sys.stderr)
        return 1
    options.output.write_bytes(image)
    print(f"\n{options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
