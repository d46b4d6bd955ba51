"""Runs of the pipeline in tests: requests on described machines, stand-ins for heavy parts, what a run tells."""
