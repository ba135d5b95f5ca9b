"""Makes ready what a deployment needs: the bucket, and tables and pool of Dagster's storage as this version wants them.

Run at every start, before everything else: what is there stays.
"""

import os
import subprocess

import boto3
import dagster as dg
from botocore.exceptions import ClientError

from novelsum_dagster.defs.gpu import GPU_POOL


def make_bucket(endpoint: str, name: str, region: str) -> None:
    """Create a bucket where there is none."""
    client = boto3.client("s3", endpoint_url=endpoint, region_name=region)
    # AWS wants to be told the region, but for the one that is its default, which it refuses to be told.
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        client.create_bucket(Bucket=name, **place)


def make_pool(instance: dg.DagsterInstance) -> None:
    """Write down the limit of the GPU pool: of two runs that did so at once, as the first ever, one would fail."""
    storage = instance.event_log_storage
    if GPU_POOL not in {pool.name for pool in storage.get_pool_limits()}:
        storage.initialize_concurrency_limit_to_default(GPU_POOL)


if __name__ == "__main__":
    make_bucket(
        os.environ["DAGSTER_LOGS_ENDPOINT"], os.environ["DAGSTER_LOGS_BUCKET"], os.environ["AWS_DEFAULT_REGION"]
    )
    subprocess.run(["dagster", "instance", "migrate"], check=True)
    with dg.DagsterInstance.get() as found:
        make_pool(found)
