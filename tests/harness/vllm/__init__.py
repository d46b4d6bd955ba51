"""Two views of vLLM that need no GPU: its recorded interface, and its tables of graphs."""
