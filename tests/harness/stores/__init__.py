"""Session stores for tests: one in this process, and a real one."""
