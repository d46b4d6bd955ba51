"""Building: what a lane's engine loads, from a quantized model; one module a lane."""
