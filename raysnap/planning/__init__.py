"""What a job will do and take, known before it starts; no torch."""
