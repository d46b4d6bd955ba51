"""What of the contract is used in vLLM's workers, the processes that run the model. May import `engines`."""
