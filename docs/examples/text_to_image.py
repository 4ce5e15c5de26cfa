"""Text to image over ComfyUI's API: sends a prompt, follows it, and saves the images.

    python text_to_image.py "a small yellow star on a black background" --output star.png
    python text_to_image.py --graph my_graph.json --output images.png

Needs a running ComfyUI with this pack, and aiohttp, which ComfyUI itself needs. Without other choices it uses the
tiny cascade. The prompt below, and a graph of your own, are what the page gives with "Export (API)".
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

TINY = "tiny cascade (included)"
PATIENCE = 10.0
"""Seconds for the results of a finished prompt: ComfyUI says that it is done before it files them."""


class Refused(Exception):
    """The prompt was not accepted."""


class Failed(Exception):
    """A node stopped with an error, somebody pressed stop, or there is no image."""


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

    Raises Refused and Failed; aiohttp.ClientError or asyncio.TimeoutError where no ComfyUI answers.
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
            # A node that makes nodes while it runs gives them ids that the prompt does not have.
            kind_of_node = prompt.get(data["node"], {}).get("class_type", data["node"])
            show(f"{kind_of_node}: step {data['value']} of {data['max']}")
        elif kind == "execution_error":
            raise Failed(f"{data['node_type']}: {data['exception_message'].strip()}")
        elif kind == "execution_interrupted":
            raise Failed("It was stopped.")
        elif kind == "execution_success":
            return
    raise Failed("ComfyUI closed the connection.")


async def images(session: aiohttp.ClientSession, name: str) -> list[bytes]:
    """The files that a finished prompt saved, without the previews. Raises Failed where there are none."""
    found = []
    for output in (await outputs(session, name)).values():
        for image in output.get("images", []):
            if image["type"] != "output":
                continue
            async with session.get("/view", params=image) as response:
                response.raise_for_status()
                found.append(await response.read())
    if not found:
        raise Failed("The prompt saved no image. It needs a Save Image node.")
    return found


async def outputs(session: aiohttp.ClientSession, name: str) -> dict[str, Any]:
    """What each node of a finished prompt gave. Raises Failed."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while True:
        async with session.get(f"/history/{name}") as response:
            history = await response.json()
        if name in history:
            return history[name]["outputs"]
        if asyncio.get_running_loop().time() > end:
            raise Failed("ComfyUI has no results of this prompt.")
        await asyncio.sleep(0.1)


def show(line: str) -> None:
    print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def read_graph(path: Path) -> dict[str, Any]:
    """A prompt that the page exported. Raises Refused, OSError."""
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise Refused(f"{path} is not JSON: {problem}") from None
    if not isinstance(prompt, dict) or not all(
        isinstance(each, dict) and "class_type" in each for each in prompt.values()
    ):
        raise Refused(f"{path} is not a prompt for the API. On the page, save it with Export (API).")
    return prompt


def save(found: list[bytes], output: Path) -> list[Path]:
    """Write the images: star.png, star_2.png, star_3.png. Raises OSError."""
    paths = [output] + [output.with_stem(f"{output.stem}_{number}") for number in range(2, len(found) + 1)]
    for path, image in zip(paths, found, strict=True):
        path.write_bytes(image)
    return paths


def address(text: str) -> str:
    """An address as aiohttp wants it, for argparse. Raises ValueError, too, for a port that cannot be."""
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.port == 0 or url.path.strip("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as http://127.0.0.1:8188")
    return text.rstrip("/")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Text to image over ComfyUI's API.")
    parser.add_argument("text", nargs="?")
    parser.add_argument("--negative", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="side in pixels; 1024 for the released models")
    parser.add_argument("--checkpoint", default=TINY, help="a choice of Load Checkpoint (Stable Cascade)")
    parser.add_argument("--graph", type=Path, help="a file from the page's Export (API), in place of all of these")
    parser.add_argument("--output", type=Path, default=Path("cascade.png"), help="more images: NAME_2.png, ...")
    parser.add_argument("--server", type=address, default="http://127.0.0.1:8188")
    options = parser.parse_args()
    if (options.text is None) == (options.graph is None):
        parser.error("give either a text or --graph")
    return options


def run(options: argparse.Namespace) -> list[Path]:
    """The images that were saved. Raises what `generate`, `read_graph` and `save` raise."""
    if options.graph:
        prompt = read_graph(options.graph)
    else:
        prompt = text_to_image(options.text, options.negative, options.seed, options.checkpoint, options.size)
    # Whether the folder takes files is asked now, not after minutes of generating.
    with tempfile.TemporaryFile(dir=options.output.parent):
        pass
    return save(asyncio.run(generate(options.server, prompt)), options.output)


def main() -> int:
    options = arguments()
    try:
        saved = run(options)
    except (Refused, Failed) as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (aiohttp.ClientError, asyncio.TimeoutError) as problem:
        print(f"ComfyUI at {options.server} does not answer: {problem}", file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    print("", *saved, sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
