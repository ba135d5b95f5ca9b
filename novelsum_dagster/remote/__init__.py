"""Storage on S3: the client, the mirror of the storage folder, locks."""
