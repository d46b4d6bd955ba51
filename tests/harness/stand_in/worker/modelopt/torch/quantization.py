"""The configuration that TensorRT-LLM takes from here for INT8, as the attribute of this module."""

INT8_SMOOTHQUANT_CFG = {"algorithm": "smoothquant"}
