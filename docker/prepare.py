"""Makes ready what a deployment needs: the bucket, and the tables of Dagster's storage as this version wants them.

Run at every start, before everything else: what is there stays.
"""

import os
import subprocess

import boto3
from botocore.exceptions import ClientError


def make_bucket(endpoint: str, name: str) -> None:
    """Create a bucket where there is none."""
    client = boto3.client("s3", endpoint_url=endpoint)
    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        client.create_bucket(Bucket=name)


if __name__ == "__main__":
    make_bucket(os.environ["DAGSTER_LOGS_ENDPOINT"], os.environ["DAGSTER_LOGS_BUCKET"])
    subprocess.run(["dagster", "instance", "migrate"], check=True)
