"""Storage on S3: objects (`s3`), a local folder that mirrors them (`mirror`), one run at a time (`lock`)."""
