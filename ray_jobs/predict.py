"""Masks of many images as a Ray job.

ray job submit --working-dir . -- python -m ray_jobs.predict MODEL IMAGES OUT
"""

import sys

from segan.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
