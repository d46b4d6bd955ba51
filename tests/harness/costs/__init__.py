"""What work costs, measured so that a busy machine says the same as an idle one."""
