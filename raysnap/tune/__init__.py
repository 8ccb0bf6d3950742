"""The only package that talks to Ray Tune and Ray Train."""
