"""A store behind an fsspec file system: S3, Azure, SFTP, HTTP and others."""
