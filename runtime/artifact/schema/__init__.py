"""The schema of `build_metadata.json`, part by part; `runtime/artifact/metadata.py` puts the parts together.

Every part is an `Entry`. Writers refuse unknown keys; readers tolerate them. May import `artifact` and `host`.
"""
