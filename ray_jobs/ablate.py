"""An ablation study as a Ray job.

ray job submit --working-dir . -- python -m ray_jobs.ablate s3://bucket/studies/claims --config ...
"""

import sys

from segan.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv[1:]]))
