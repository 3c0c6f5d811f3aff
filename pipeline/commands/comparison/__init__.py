"""What `compare` says of several runs."""
