"""The installer passes pip's configuration on to uv, and chooses the build of torch."""

import sys
from pathlib import Path

import pytest

from infra.install import pip_options, torch_arguments, uv_environment

PIP_CONFIG = """
[global]
index-url = https://mirror.example.com/simple
extra-index-url =
    https://one.example.com/simple
    https://two.example.com/simple
cert = /etc/global.pem
timeout = 60
[install]
cert = /etc/install.pem
[download]
find-links = /not/for/install
"""


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's only configuration file, empty at first."""
    for name in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "CONSTRAINT", "CERT"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    # Above every other file; options that it lacks could still come from those.
    file = tmp_path / "pip.conf"
    file.touch()
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    return file


def test_sections_override_each_other_as_in_pip(
    configure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure.write_text(PIP_CONFIG)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    options = pip_options(Path(sys.executable))
    assert options["index-url"] == ["https://mirror.example.com/simple"]
    assert options["cert"] == ["/etc/install.pem"]
    assert options["find-links"] == ["/wheels", "/more"]
    assert options["timeout"] == ["60"]


def test_uv_gets_the_sources_and_the_certificates_of_pip(
    configure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure.write_text(PIP_CONFIG)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    environment = uv_environment(pip_options(Path(sys.executable)))
    assert environment["UV_DEFAULT_INDEX"] == "https://mirror.example.com/simple"
    assert environment["UV_INDEX"] == (
        "https://one.example.com/simple https://two.example.com/simple"
    )
    assert environment["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert environment["UV_FIND_LINKS"] == "/wheels,/more"
    assert environment["SSL_CERT_FILE"] == "/etc/install.pem"


def test_variables_of_uv_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine.example.com/simple")
    environment = uv_environment({"index-url": ["https://mirror.example.com/simple"]})
    assert environment["UV_DEFAULT_INDEX"] == "https://mine.example.com/simple"


@pytest.mark.parametrize("dont_write", [True, False])
def test_packages_are_compiled_where_imports_keep_no_bytecode(
    dont_write: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_COMPILE_BYTECODE", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", dont_write)
    assert ("UV_COMPILE_BYTECODE" in uv_environment({})) == dont_write


@pytest.mark.parametrize(
    ("torch", "options", "expected"),
    [
        ("", {}, ["--torch-backend", "auto"]),
        ("", {"timeout": ["60"]}, ["--torch-backend", "auto"]),
        ("", {"find-links": ["/wheels"]}, []),
        ("", {"index-url": ["https://mirror.example.com/simple"]}, []),
        ("cpu", {}, ["--torch-backend", "cpu"]),
        ("cpu", {"find-links": ["/wheels"]}, ["--torch-backend", "cpu"]),
    ],
)
def test_torch_is_this_machines_build_unless_pip_has_sources_or_torch_is_set(
    configure: Path, torch: str, options: dict[str, list[str]], expected: list[str]
) -> None:
    assert torch_arguments(torch, options) == expected
