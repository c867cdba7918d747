"""The optional parts of the installation: which extra of the package brings which module."""

from __future__ import annotations

from importlib.util import find_spec

from segan.errors import UsageError

# By extra, the modules of its packages in pyproject.toml, and those of their requirements that are
# imported by name. The base installation has none of them.
MODULES = {
    "train": (
        "numpy",
        "PIL",
        "pyarrow",
        "ray",
        "safetensors",
        "scipy",
        "tensorboard",
        "torch",
        "zlib_ng",
    ),
    "serve": ("contourpy", "fastapi", "python_multipart", "starlette", "uvicorn"),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "dicom": ("pydicom",),
    "optuna": ("optuna",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}
CPU_TORCH_HINT = (
    "without a GPU, first pip install torch --index-url https://download.pytorch.org/whl/cpu, "
    "which saves gigabytes"
)


def missing_module_error(needed_by: str, module: str) -> UsageError | None:
    """The error for a module that is not installed; None if no extra brings it."""
    extra = next((extra for extra, names in MODULES.items() if module in names), None)
    if extra is None:
        return None
    advice = f"pip install 'segan[{extra}]', or in a checkout pip install -e '.[{extra}]'"
    if extra == "train" and find_spec("torch") is None:
        advice = f"{advice}; {CPU_TORCH_HINT}"
    return UsageError(f"{needed_by} needs {module}, which is not installed; {advice}")


def require_extra(needed_by: str, extra: str) -> None:
    """Raises UsageError, which says what to install, if a module of an extra is missing.

    For what writes before it imports, or cannot use ModuleNotFoundError.
    """
    for module in MODULES[extra]:
        if find_spec(module) is None and (error := missing_module_error(needed_by, module)):
            raise error
