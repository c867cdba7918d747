"""Every command that README.md and docs/ show has its options, its files and its configuration."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
from typing import Any

import pytest
import typer

from segan.cli.main import app
from segan.config import load_config
from tests.cli.test_cli import COMMANDS
from tests.documentation.blocks import ROOT, Block, read_blocks, read_inline_commands, split_words

BLOCKS = read_blocks()
COMMAND_LINES = [
    pytest.param(words, id=f"{block}-{' '.join(words)[:60]}")
    for block in BLOCKS
    for words in block.commands()
]
GROUPS = {"runs", "checkpoints", "ensemble", "bench"}
PLACEHOLDERS = {"COMMAND"}  # of a command's name, in running text


def test_the_blocks_are_read_as_a_shell_reads_them() -> None:
    text = "a \\\n   b 'c\n d' |  # why\n  e && f x=1 # &&\n# g\n\nh &\n"
    block = Block("page", 1, text)
    assert [*block.commands()] == [["a", "b", "c\n d"], ["e"], ["f", "x=1"], ["h"]]
    assert len(block.lines()) == 2
    assert len(BLOCKS) > 40
    assert sum(words[0] == "segan" for words in map(program_words, all_words())) > 40


def all_words() -> list[list[str]]:
    return [words for block in BLOCKS for words in block.commands()]


def program_words(words: list[str]) -> list[str]:
    """The words from the program on, without its folder and without interpreters before it."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL) and len(words) > 1:
        words = words[1:]
    words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :]
    if words[0] in ("python", "python3") and words[1:2] == ["-m"]:
        words = words[2:]
        if words[0] == "pdb":
            words = words[2:]
        if words[0].startswith("ray_jobs."):
            words = ["segan", words[0].removeprefix("ray_jobs."), *words[1:]]
    return words


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_bash_can_read_the_block(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_a_segan_command_has_these_arguments(words: list[str]) -> None:
    """Through the command line's own parser; its configuration is loaded and checked, too."""
    words = program_words(words)
    if words[0].startswith(("baselines.", "experiments.")):
        command: Any = typer.main.get_command(importlib.import_module(words[0]).app)
        name, arguments = words[0], words[1:]
    elif words[0] == "segan":
        name = " ".join(words[1 : 3 if words[1] in GROUPS else 2])
        assert name in COMMANDS, f"no command {name!r}"
        command, arguments = COMMANDS[name], words[1 + len(name.split()) :]
    else:
        return
    found = command.make_context(name, arguments).params
    if "overrides" in found:
        load_config(found.get("config"), found["overrides"] or [])


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_a_file_of_the_project_is_there(words: list[str]) -> None:
    top = {path.name for path in ROOT.iterdir() if path.is_dir()} - {
        *("demo", "cluster", "site", ".local", ".venv")  # what commands create
    }
    if words[:1] == ["kubectl"] and "label" in words:
        return  # a label looks like a path
    for word in words:
        for path in re.findall(r"(?:^|[=@])([\w.]+/[\w./-]+)", word):
            if path.split("/")[0] in top:
                assert (ROOT / path).exists(), path


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_a_module_or_a_target_is_there(words: list[str]) -> None:
    words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {w for w in words[1:] if "=" not in w} <= {*targets}
    if words[0] in ("python", "python3") and words[1] == "-m":
        assert importlib.util.find_spec(words[2]), words[2]


@pytest.mark.parametrize(("page", "text"), read_inline_commands())
def test_a_command_in_running_text_has_these_options(page: str, text: str) -> None:
    """Such a command is often shown in part, so that its arguments are not checked."""
    group: Any = typer.main.get_command(app)
    words = [word for word in split_words(text)[1:] if word not in ("...", "…")]
    options = {option for parameter in group.params for option in parameter.opts}
    options |= {"--help", "--install-completion"}
    while words and hasattr(group, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        if name in PLACEHOLDERS:
            break
        assert name in group.commands, f"{page}: {text}"
        group = group.commands[name]
        options |= {o for p in group.params for o in (*p.opts, *p.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options, f"{page}: {text}"
    config = words[words.index("--config") + 1] if "--config" in words else None
    load_config(config, [word for word in words if re.match(r"\w+\.\w+=\w", word)])


@pytest.mark.parametrize("page", ["README.md", "docs/models.md", "docs/checkpoints.md"])
def test_python_that_is_shown_uses_what_is_there(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, page, "exec")
        for line in re.findall(r"^(?:from|import) .+", block, re.MULTILINE):
            exec(line, {})
