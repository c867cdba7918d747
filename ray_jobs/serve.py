"""A model behind a page and an HTTP API.

`segan serve MODEL`, or `serve deploy` and KubeRay's RayService with the import path
`ray_jobs.serve:build` and the argument `model`.
"""

import sys

from ray_jobs.serving.deployment import build
from segan.cli.main import main

__all__ = ["build"]

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
