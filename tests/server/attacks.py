"""What a server must bear: hostile prompts, interrupts and kills at any moment, two clients at once.

Every case says what is wrong, or None, and ends with a good prompt.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cascade.training.state import load_state
from tests.nodes.networks import file_name
from tests.server import templates
from tests.server.hostile import hostile
from tests.server.prompts import Prompt, cascade, node
from tests.server.serving import Server
from tests.server.watching import Watch

KEEP = ("--cache-lru", "50")
"""Of the host's command line: networks stay loaded from prompt to prompt, or most of the time would go into loading."""
STOPPED = 30
"""Seconds from the stop button to the end of a prompt, on a busy machine."""
SLOW = ("Large Image (no extra files)", "Train a LoRA", "Train a ControlNet", "Finetune a model")
"""Templates that take long on a CPU; trainings are sent with small networks."""
PARTS = {"unet_name": "stage_c", "clip_name": "text_encoder", "encoder_name": "effnet"}
TINY = "tiny cascade (included)"
NAME = "attacked"
"""Of what is trained and saved."""


class Attacks:
    """The classes of cases against one server with small networks; `all` has them by name."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.info = server.json("/object_info")
        found = templates.prompts(server, steps=1)
        self.prompts = {name: prompt for name, prompt in found.items() if name not in SLOW}
        self.prompts |= {"training": self.training(1), "saving": saving(), "merging": merging()}
        self.watch = Watch(server)
        self.all: dict[str, Callable[[random.Random], str | None]] = {
            "prompts": self.prompt,
            "interrupts": self.interrupt,
            "kills": self.kill,
            "clients": self.clients,
        }

    def training(self, steps: int, seed: int = 0) -> Prompt:
        """Train LoRA on included images."""
        inputs = self.info["CascadeTrainLora"]["input"]["required"].items()
        values = {key: spec[1]["default"] for key, spec in inputs if "default" in spec[1]}
        values |= {key: file_name(kind) for key, kind in PARTS.items()}
        values |= {"name": NAME, "token": "", "steps": steps, "seed": seed, "resolution": 64, "rank": 4}
        values |= {"previewer": "none"}
        return {"train": node("CascadeTrainLora", **values)}

    def prompt(self, dice: random.Random) -> str | None:
        """A hostile prompt."""
        note, prompt = hostile(self.prompts, self.info, dice)
        problem = self.watch.wrong_answer(prompt)
        problem = problem or self.watch.wrong_after()
        return f"{problem}\n{note}\n{json.dumps(prompt)}" if problem else None

    def interrupt(self, dice: random.Random) -> str | None:
        """Stopped at a random moment; a training then goes on from there."""
        trains = dice.random() < 0.4
        seed = dice.randrange(2**32)  # another one each time: the host answers a prompt that it knows from its cache
        prompt = self.training(200, seed) if trains else cascade(seed=seed, steps=100)
        name = self.server.queue(prompt)
        time.sleep(2 * dice.random())
        since = time.monotonic()
        messages = dict(self.server.stopped(name)["status"]["messages"])
        if (seconds := time.monotonic() - since) > STOPPED:
            return f"it went on for {seconds:.0f} seconds"
        if "execution_error" in messages:
            return f"an error: {messages['execution_error']}"
        return (self._wrong_training(seed) if trains else None) or self.watch.wrong_after()

    def kill(self, dice: random.Random) -> str | None:
        """Killed in a training, or while it writes LoRAs or checkpoints; the next server goes on with whole files."""
        models = self.server.base / "models"
        prompts, folder = dice.choice(
            (
                ([self.training(10 * number + 10) for number in range(10)], self._run),
                ([saving(f"{NAME}_{number}") for number in range(10)], models / "loras"),
                ([merging(f"{NAME}_{number}") for number in range(10)], models / "diffusion_models"),
            )
        )
        for prompt in prompts:
            self.server.queue(prompt)
        _wait(folder, dice)
        self.server.kill()
        self.server.launch()
        problem = self._wrong_training() if folder == self._run else self._wrong_files(prompts, folder)
        return problem or self.watch.wrong_after()

    def clients(self, dice: random.Random) -> str | None:
        """Two at once: one makes images, the other stops what it queues."""
        problems: list[str | None] = []

        def stops() -> None:
            for _ in range(3):
                name = self.server.queue(cascade(seed=dice.randrange(2**32), steps=100))
                time.sleep(dice.random())
                messages = dict(self.server.stopped(name)["status"]["messages"])
                problems.append(str(messages) if "execution_error" in messages else None)

        def draws() -> None:
            problems.extend(self.watch.wrong_image() for _ in range(4))

        threads = [threading.Thread(target=each) for each in (stops, draws)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(problems) != 7:
            return "a client got no answer"
        return next(filter(None, problems), None) or self.watch.wrong_after()

    @property
    def _run(self) -> Path:
        return self.server.base / "output" / "stable_cascade" / "training" / NAME

    def _wrong_training(self, seed: int = 0) -> str | None:
        """Of the state that a training left at some moment, and of going on from it."""
        state = load_state(self._run)
        wanted = (state["config"]["steps"] if state else 0) + 3
        status = self.server.run(self.training(wanted, seed))["status"]
        if status["status_str"] != "success":
            return f"the training does not go on: {status['messages'][-1]}"
        lines = (self._run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        after = (load_state(self._run) or {"step": 0})["step"]
        wrong = after != wanted or steps != sorted(set(steps))
        return f"wanted {wanted} steps, came {after}; lines of steps {steps}" if wrong else None

    def _wrong_files(self, prompts: list[Prompt], folder: Path) -> str | None:
        """Of files of one and the same content that were being written, and are written again."""
        for prompt in prompts:
            status = self.server.run(prompt)["status"]
            if status["status_str"] != "success":
                return f"it is not saved again: {status['messages'][-1]}"
        contents = {path.name: path.read_bytes() for path in folder.glob(f"{NAME}*")}
        abandoned = [path.name for path in folder.glob(".*.tmp")]
        if len(contents) < len(prompts) or len(set(contents.values())) != 1 or abandoned:
            return f"sizes: { {name: len(each) for name, each in contents.items()} }, left over: {abandoned}"
        return None


def saving(prefix: str = NAME) -> Prompt:
    values = {"lora_name": TINY, "filename_prefix": prefix, "token_names": ""}
    return {"save": node("CascadeSaveLora", **values, format="cascade")}


def merging(prefix: str = NAME) -> Prompt:
    lora = {"model": ["c", 0], "strength_model": 1.0, "strength_clip": 1.0, "lora_name": TINY, "token_names": ""}
    return {
        "c": node("CascadeLoadStageC", unet_name=TINY, weight_dtype="default", previewer="none"),
        "lora": node("CascadeLoadLora", **lora),
        "merge": node("CascadeMergeLora", model=["lora", 0], filename_prefix=prefix),
    }


def _wait(folder: Path, dice: random.Random) -> None:
    """Until a random moment, or until a file is just being written to the folder."""
    end = time.monotonic() + 3 * dice.random()
    if dice.random() < 0.5:
        time.sleep(end - time.monotonic())
        return
    while not any(folder.glob("**/.*.tmp")) and time.monotonic() < end + 20:
        pass
    time.sleep(0.002 * dice.random())
