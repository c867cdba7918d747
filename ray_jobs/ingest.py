"""An archive to records as a Ray job.

ray job submit --working-dir . -- python -m ray_jobs.ingest s3://bucket/isic2017 s3://bucket/records
"""

import sys

from segan.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
