"""What a job may be configured with: pydantic models, read from YAML and key=value."""
