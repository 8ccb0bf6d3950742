"""Published archives and downloads turned into datasets."""
