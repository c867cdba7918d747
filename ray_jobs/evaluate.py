"""The scores of a model on a split of an archive as a Ray job.

ray job submit --working-dir . -- python -m ray_jobs.evaluate MODEL ARCHIVE --split test
"""

import sys

from segan.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
