"""`pip install nox && nox` runs every check of this project: the linters, then the tests."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

TORCH = "torch==2.13.0"
LINTERS = ["ruff==0.17.5", "pyright[nodejs]==1.1.414"]
TEST_TOOLS = ["pytest==9.2.0", "hypothesis==6.170.15"]
# A second implementation to compare with, not something the library uses.
PEERS = ["diffusers==0.42.1", "accelerate==1.15.0"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, likely bugs, and the types of `cascade/`."""
    session.install(TORCH, "-r", "requirements.txt", *LINTERS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """The library's tests; `nox -s tests -- -k sampler` passes words on to pytest."""
    session.install(TORCH, "-r", "requirements.txt", *TEST_TOOLS, *PEERS)
    session.run("pytest", *session.posargs)
