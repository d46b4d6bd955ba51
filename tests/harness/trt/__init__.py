"""The TensorRT-LLM lane without TensorRT-LLM: its recorded interface, and a lane that runs on the stand-in."""
