"""A stand-in for ModelOpt, as far as the worker needs it before TensorRT-LLM takes over: its configurations."""
