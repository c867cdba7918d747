"""Makes the virtual environment .venv and installs this checkout and some of its extras into it.

    python3 infra/install.py EXTRA [EXTRA ...]        in the checkout; standard library only

It uses uv, from the PATH or as a wheel, because pip takes minutes for this many packages, and pip
where there is no uv. uv does not read pip's configuration, so its sources and certificates are
passed on: a machine that installs from a mirror goes on doing so.

uv takes the build of torch that suits this machine: for the GPU driver that it finds, else the one
for CPUs. TORCH=cpu (or cu128, ...: the values of `uv pip install --torch-backend`) chooses another.
Where pip is configured with sources of its own, torch comes from these unless TORCH is set.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

VENV = Path(".venv")
REQUIREMENTS = ("--constraint", "constraints.txt")
# pip's options with the variables of uv that mean the same, and what joins several values.
UV_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}
SOURCES = ("index-url", "extra-index-url", "find-links", "no-index")
# In the order in which they override each other.
PIP_SECTIONS = ("global", "install", ":env:")


def main(extras: Sequence[str]) -> int:
    """Returns the exit code of the installation."""
    python = VENV / "bin" / "python"
    if not python.exists():
        venv.create(VENV, with_pip=True)
    options = pip_options(python)
    torch = os.environ.get("TORCH", "")
    target = ["--editable", f".[{','.join(extras)}]"]
    if uv := find_uv(python):
        command = [uv, "pip", "install", "--python", str(python), *REQUIREMENTS, *target]
        command += torch_arguments(torch, options)
        print(f"installing {target[1]} with uv; torch: {torch_source(torch, options)}", flush=True)
        if subprocess.run([*command, "--quiet"], env=uv_environment(options)).returncode == 0:
            return 0
        print("uv failed; trying pip", file=sys.stderr)
    if torch:
        print(
            f"TORCH={torch} needs uv, which could not be installed; see docs/getting-started.md",
            file=sys.stderr,
        )
        return 1
    print(
        f"installing {target[1]} with pip, which takes minutes; torch: the build of pip's index, "
        "which on Linux includes CUDA (gigabytes) if that is PyPI",
        flush=True,
    )
    command = [str(python), "-m", "pip", "install", "-q", *REQUIREMENTS, *target]
    return subprocess.run(command).returncode


def find_uv(python: Path) -> str | None:
    """The path of uv, installed into the environment if it is not on the PATH; None without one."""
    if found := shutil.which("uv"):
        return found
    wheel = python.with_name("uv")
    if not wheel.exists():
        command = [str(python), "-m", "pip", "install", "-q", "--only-binary=:all:", "uv"]
        subprocess.run(command)
    return str(wheel) if wheel.exists() else None


def pip_options(python: Path) -> dict[str, list[str]]:
    """The values of pip's configuration, by option, of files and PIP_* variables together."""
    command = [str(python), "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections: dict[str, dict[str, list[str]]] = {section: {} for section in PIP_SECTIONS}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections:
            sections[section][option] = str(ast.literal_eval(value)).split()
    return {
        option: value for section in PIP_SECTIONS for option, value in sections[section].items()
    }


def uv_environment(options: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """This process's environment with pip's options as variables of uv; set ones are kept."""
    translated = {
        variable: separator.join(options[option])
        for option, (variable, separator) in UV_VARIABLES.items()
        if option in options
    }
    if "extra-index-url" in options:  # as pip does: the best version of all indexes
        translated["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if sys.dont_write_bytecode:
        # Unlike pip, uv leaves compiling to the first import. Where that keeps nothing, each of
        # Ray's processes would compile torch and Ray again: three times the CPU time of a start.
        translated["UV_COMPILE_BYTECODE"] = "1"
    return translated | os.environ


def torch_arguments(torch: str, options: Mapping[str, Sequence[str]]) -> list[str]:
    """The arguments of `uv pip install` that choose the build of torch."""
    if torch:
        return ["--torch-backend", torch]
    return [] if has_own_sources(options) else ["--torch-backend", "auto"]


def torch_source(torch: str, options: Mapping[str, Sequence[str]]) -> str:
    """Where torch comes from, in words."""
    if torch:
        return f"the build {torch}"
    if has_own_sources(options):
        return "from pip's configured sources"
    return "the build for this machine's GPU driver, or for CPUs if it has none"


def has_own_sources(options: Mapping[str, Sequence[str]]) -> bool:
    """Whether pip is configured with an index or links, or uv with an index by its variables."""
    return any(option in options for option in SOURCES) or any(
        name in os.environ for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
