"""A hyperparameter search as a Ray job.

ray job submit --working-dir . -- python -m ray_jobs.tune s3://bucket/studies/first --config ...
"""

import sys

from segan.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
