"""What the quantizer's worker needs of ModelOpt before TensorRT-LLM takes over: its configurations."""
