"""One training run as a Ray job.

ray job submit --working-dir . -- python -m ray_jobs.train RUN --config paper
"""

import sys

from segan.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
