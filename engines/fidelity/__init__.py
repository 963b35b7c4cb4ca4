"""How far an engine's answers are from FP32's, and what a contract asks of that."""
