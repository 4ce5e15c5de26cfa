"""A real ComfyUI in this process: booted once, then asked to run prompts."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import shutil
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.nodes import networks

ROOT = Path(__file__).resolve().parent.parent.parent
Link = list[Any]


class Kept:
    """An output node that keeps what it is given."""

    values: dict[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING", {}), "value": (Anything("*"), {})}}

    RETURN_TYPES = ()
    FUNCTION = "keep"
    OUTPUT_NODE = True
    CATEGORY = "tests"

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")

    def keep(self, name: str, value: Any) -> tuple[()]:
        self.values[name] = value
        return ()


class Anything(str):
    """A type that fits every type."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


@dataclass
class Graph:
    """A prompt in the format of the API, written as calls."""

    prompt: dict[str, Any] = field(default_factory=dict)

    def __call__(self, node: str, **inputs: Any) -> Outputs:
        name = str(len(self.prompt) + 1)
        plain = {key: value[0] if isinstance(value, Outputs) else value for key, value in inputs.items()}
        self.prompt[name] = {"class_type": node, "inputs": plain}
        return Outputs(name)


@dataclass(frozen=True)
class Outputs:
    """The outputs of a node, by number; the node itself stands for its first."""

    node: str

    def __getitem__(self, index: int) -> Link:
        return [self.node, index]


class Refused(Exception):
    """The host did not accept a prompt; `errors` by node."""

    def __init__(self, error: Any, errors: Any) -> None:
        super().__init__(f"{error} {errors}")
        self.errors = errors


class Failed(Exception):
    """A node raised; `details` are what the page would show."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(f"{details.get('node_type')}: {details.get('exception_message')}")
        self.details = details


class Server:
    """What the executor wants of a server; keeps what would have been sent to the page."""

    client_id = "tests"
    last_node_id = None

    def __init__(self) -> None:
        self.sockets_metadata: dict[str, Any] = {}
        self.sent: list[tuple[str, Any]] = []

    def send_sync(self, event: str, data: Any, sid: Any = None) -> None:
        self.sent.append((event, data))


class Host:
    """A booted ComfyUI."""

    def __init__(self, path: Path, base: Path) -> None:
        import execution

        import nodes

        self.path, self.base, self.execution = path, base, execution
        self.classes = nodes.NODE_CLASS_MAPPINGS
        self.classes["Kept"] = Kept
        self.version = importlib.import_module("comfyui_version").__version__
        self.server = Server()
        self.executor = self._executor()

    def _executor(self) -> Any:
        make = self.execution.PromptExecutor
        keywords = {
            "cache_args": {"lru": 0, "ram": 0.0, "ram_inactive": 0.0},
            "cache_type": getattr(self.execution, "CacheType", None),
        }
        known = inspect.signature(make).parameters
        given = {name: value for name, value in keywords.items() if name in known}
        if "cache_type" in given:
            given["cache_type"] = self.execution.CacheType.CLASSIC
        return make(self.server, **given)

    @property
    def models(self) -> Path:
        return self.base / "models"

    def pack(self, module: str) -> Any:
        """A module of this pack as the host loaded it: `host.pack("nodes.host.models")`."""
        root = self.classes["CascadeLoadStageC"].__module__.removesuffix(".nodes.loaders")
        return importlib.import_module(f"{root}.{module}")

    @property
    def errors(self) -> Any:
        """The pack's `cascade.errors` as the host loaded it: its classes are others than those of `import cascade`."""
        return self.pack("cascade.errors")

    def run(self, graph: Graph, *, fresh: bool = False, previews: str = "none", **wanted: Any) -> SimpleNamespace:
        """Run a prompt; the values of `wanted` (name = output) come back as attributes.

        What the prompt before it loaded is still there, as on the page; `fresh` forgets it. `previews` is the setting
        of the page.

        Raises Refused or Failed.
        """
        for name, value in wanted.items():
            graph("Kept", name=name, value=value)
        Kept.values.clear()
        if fresh:
            self.executor.reset()
        asyncio.run(self._run(graph.prompt, previews))
        return SimpleNamespace(**Kept.values)

    async def _run(self, prompt: dict[str, Any], previews: str) -> None:
        name = str(uuid.uuid4())
        extra = [None] if len(inspect.signature(self.execution.validate_prompt).parameters) > 2 else []
        valid, error, outputs, errors = await self.execution.validate_prompt(name, prompt, *extra)
        if not valid:
            raise Refused(error, errors)
        self.server.sent.clear()
        settings = {"client_id": "tests", "preview_method": previews}
        await self.executor.execute_async(prompt, name, settings, outputs)
        # What a blocked node says goes to the page alone.
        for event, data in [*self.executor.status_messages, *self.server.sent]:
            if event in ("execution_error", "execution_interrupted"):
                raise Failed(data)

    def call(self, node: str, **inputs: Any) -> Any:
        """A node's `execute` itself, without a prompt; its outputs."""
        import torch

        with torch.inference_mode():
            return self.classes[node].execute(**inputs).result


def boot(path: str, cpu: bool = True) -> Host:
    """Start the host that lies at a path, on the CPU or on its own device.

    In this order, or it reads the wrong folders.
    """
    host = Path(path).resolve()
    if not (host / "execution.py").exists():
        raise FileNotFoundError(f"COMFYUI_PATH={path}: there is no ComfyUI")
    base = Path(tempfile.mkdtemp(prefix="cascade-host-"))
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "stable-cascade").symlink_to(ROOT)
    networks.write(base / "models")
    shutil.copytree(ROOT / "web" / "samples", base / "input")
    sys.path.insert(0, str(host))
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        from comfy.cli_args import args

        args.cpu, args.base_directory = cpu, str(base)
        import utils.extra_config  # noqa: F401  before `nodes`: a package there has the same name

        import nodes

        init = nodes.init_extra_nodes
        asyncio.run(init(init_custom_nodes=True, init_api_nodes=False))
    finally:
        sys.argv = arguments
    import atexit

    atexit.register(shutil.rmtree, base, ignore_errors=True)
    return Host(host, base)
